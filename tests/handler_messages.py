"""A factory of messages, for tests of handlers: the values that a test does not care for have defaults.

from tests.handler_messages import a
assert hint(a(TextMessage, content="hi")) == TextReply(...)
"""

from dataclasses import MISSING, fields

from wechat.messages import TextMessage

_TIMES = {"create_time": 1_800_000_000, "msg_id": 24601}


def a(kind=TextMessage, **values):
    """A message of that kind with these fields; the others are empty text or zero, or as the class says."""
    given = {}
    for one in fields(kind):
        if one.name in values or not one.init:
            continue
        if one.default is MISSING and one.default_factory is MISSING:
            given[one.name] = _default(one)
    return kind(**given, **values)


def _default(one):
    if one.name in _TIMES:
        return _TIMES[one.name]
    if one.name == "from_user_name":
        return "oTest-AbCdEfGhIjKlMnOpQrSt_1"
    return {"str": "", "int": 0, "float": 0.0, "bytes": b"<xml/>"}.get(str(one.type))
