"""What a handler may be and give: the checks and their words, and the router; handlers called as plain functions."""

import dataclasses
import functools
import re
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import handlers
from handlers import Deferred, HandlerError, Remember, Router, dispatch, exact, pattern, prefix
from tests.conftest import ROOT
from tests.handler_messages import a
from wechat.messages import (
    ClickEvent,
    Event,
    ImageMessage,
    Message,
    ScanEvent,
    SubscribeEvent,
    TextMessage,
    VoiceMessage,
)
from wechat.replies import ImageReply, TextReply


@pytest.fixture
def table(monkeypatch):
    """table(kind, handler) makes that the whole bot."""
    return lambda kind, handler: monkeypatch.setattr(handlers, "HANDLERS", {kind: handler})


def answers_with_text(message):
    return "hello"


def test_the_stock_bot_gives_a_picture_back_and_says_so_to_words():
    assert handlers.STOCK_HANDLERS[ImageMessage](a(ImageMessage, media_id="M")) == ImageReply("M")
    assert "picture" in handlers.STOCK_HANDLERS[TextMessage](a(TextMessage, content="hi")).content


@pytest.mark.parametrize("wrong", ["hello", 5, {"text": "hi"}, TextReply, ("a", "b")])
def test_a_wrong_return_names_the_handler_and_what_to_write(table, wrong):
    def answer(message):
        return wrong

    table(TextMessage, answer)
    line = answer.__code__.co_firstlineno
    place = rf"test_handlers.*answer \(test_handlers.py, line {line}\) returned .*: write return "
    with pytest.raises(HandlerError, match=place) as caught:
        dispatch(a(TextMessage))
    assert type(wrong).__name__ in str(caught.value)
    assert ("return TextReply(...)" in str(caught.value)) == isinstance(wrong, str)


@dataclasses.dataclass
class Greeter:
    """Compared by its fields, so it cannot be hashed."""

    word: str

    def __call__(self, message):
        return self.word


def test_an_instance_of_a_dataclass_is_a_handler(table):
    table(TextMessage, Greeter(TextReply("hello")))
    handlers.check()
    assert dispatch(a(TextMessage)) == TextReply("hello")


@pytest.mark.parametrize("wrap", [lambda greeter: greeter, functools.partial])
def test_a_wrong_return_of_an_object_names_its_line_too(table, wrap):
    table(TextMessage, wrap(Greeter("hello")))
    line = Greeter.__call__.__code__.co_firstlineno
    with pytest.raises(HandlerError, match=rf"Greeter \(test_handlers.py, line {line}\) returned 'hello'"):
        dispatch(a(TextMessage))


@pytest.mark.parametrize("wrong", [str, max])
def test_a_function_that_does_not_say_its_parameters_is_told_at_the_start(table, wrong):
    table(TextMessage, wrong)
    with pytest.raises(HandlerError, match=r"does not say its parameters: write def answer\(message\)"):
        handlers.check()
    with pytest.raises(TypeError, match=r"write def work\(\), or def work\(account\)"):
        Deferred(wrong)


@pytest.mark.parametrize("wrong", [["a"], {"a": 1}])
def test_what_is_no_function_is_told_also_if_it_cannot_be_hashed(table, wrong):
    table(TextMessage, wrong)
    with pytest.raises(HandlerError, match="is no function"):
        handlers.check()


async def answers_with_a_coroutine(message=None):
    return TextReply("hello")


def answers_with_a_generator(message=None):
    yield TextReply("hello")


class Awaited:
    async def __call__(self, message=None):
        return TextReply("hello")


@pytest.mark.parametrize(
    ("wrong", "write"),
    [
        (answers_with_a_coroutine, "is async def: write def"),
        (functools.partial(answers_with_a_coroutine), "is async def: write def"),
        (Awaited(), "is async def: write def"),
        (answers_with_a_generator, "has yield: write return"),
    ],
)
def test_a_function_that_is_async_or_has_yield_is_found_before_it_is_called(table, wrong, write):
    table(TextMessage, wrong)
    with pytest.raises(HandlerError, match=write):
        handlers.check()
    with pytest.raises(HandlerError, match=write):
        Router((exact("help"), wrong))
    with pytest.raises(TypeError, match=write):
        Deferred(wrong)


def test_deferred_takes_what_can_be_called():
    with pytest.raises(TypeError, match=r"not Deferred\(work\(\)\)"):
        Deferred(TextReply("already done"))
    with pytest.raises(TypeError, match=r"write def work\(\), or def work\(account\)"):
        Deferred(lambda one, other: None)


@pytest.mark.parametrize(
    ("kind", "handler"),
    [
        ("text", answers_with_text),
        (str, answers_with_text),
        (Event, answers_with_text),
        (Message, answers_with_text),
        (TextMessage, "hint"),
        (TextMessage, lambda: None),
        (TextMessage, lambda message, memory, more: None),
    ],
)
def test_a_wrong_table_is_found_before_the_first_message(table, kind, handler):
    table(kind, handler)
    with pytest.raises(HandlerError, match=r"write|name one"):
        handlers.check()


def checked_with(folder, text):
    """What checking the handlers says with this as handlers/own.py."""
    for name in ("handlers", "wechat"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("own.py"))
    (folder / "handlers" / "own.py").write_text(text)
    command = [sys.executable, "-c", "import handlers; handlers.check()"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True).stderr


@pytest.mark.parametrize("text", ["HANDLERS = None", "HANDLERS = []", "ACCOUNT_HANDLERS = ['shop']"])
def test_a_table_of_ones_own_that_is_none_is_told_with_its_file(tmp_path, text):
    assert re.search(r"HANDLERS of handlers/own\.py is .*: write a table", checked_with(tmp_path, text))


def test_ones_own_handlers_can_import_every_name_of_handlers(tmp_path):
    assert checked_with(tmp_path, "from handlers import *\nHANDLERS = {**STOCK_HANDLERS}") == ""


def test_an_accounts_table_that_is_none_is_told(monkeypatch):
    monkeypatch.setattr(handlers, "ACCOUNT_HANDLERS", {"shop": None})
    with pytest.raises(HandlerError, match=r"ACCOUNT_HANDLERS\['shop'\] is None: write a table"):
        handlers.check()


@pytest.mark.parametrize(
    "build",
    [
        lambda: Router(("help", answers_with_text)),
        lambda: Router(exact("help"), answers_with_text),
        lambda: Router([(exact("help"), answers_with_text)]),
        lambda: Router((exact("help"), exact("info"), answers_with_text)),
        lambda: exact(["help", "info"]),
        lambda: prefix(5),
    ],
)
def test_what_is_no_route_is_told_with_what_to_write(build):
    with pytest.raises(HandlerError, match=r'write \(?exact\("help"'):
        build()


def test_a_second_argument_is_the_fans_memory(table):
    table(TextMessage, lambda message, memory: Remember(TextReply(f"{memory}"), {"seen": 1}))
    assert dispatch(a(TextMessage), lambda: {"seen": 0}) == Remember(TextReply("{'seen': 0}"), {"seen": 1})
    table(TextMessage, lambda message: None)
    assert dispatch(a(TextMessage), lambda: pytest.fail("looked up for nobody")) is None


def test_the_size_of_a_memory_is_that_of_its_text_in_utf8():
    assert Remember(None, {"n": "你" * 2700}).memory
    assert Remember(None, {"n": "\ud83d" * 2700}).memory, "half a character, as a cut text may end"
    with pytest.raises(ValueError, match="8198 bytes"):
        Remember(None, {"n": "你" * 2730})


@pytest.mark.parametrize(
    "memory", [[], {1: 2}, {"x": object()}, {"x": float("nan")}, {"x": "a" * 9000}, "text"]
)
def test_what_cannot_be_remembered(memory):
    with pytest.raises((TypeError, ValueError)):
        Remember(None, memory)


# -- the router -------------------------------------------------------------------------------------------------


def said(*arguments):
    return lambda message, *given: TextReply("|".join((*arguments, *given)))


def add(message, one, other):
    return TextReply(str(int(one) + int(other)))


def weather(message, place):
    return TextReply(f"weather in {place or 'all the world'}")


def named(message, name, memory):
    return Remember(TextReply(f"was {memory.get('name')}"), {"name": name})


WORDS = Router(
    (exact("help", "帮助"), lambda message: TextReply("help")),
    (prefix("weather", "天气"), weather),
    (pattern(r"(\d+)\s*\+\s*(\d+)"), add),
    (prefix("I am"), named),
    default=lambda message: TextReply("?"),
)


@pytest.mark.parametrize(
    ("content", "reply"),
    [
        ("help", "help"),
        (" HELP\n", "help"),
        ("帮助", "help"),
        ("help me", "?"),
        ("weather", "weather in all the world"),
        ("Weather Oslo ", "weather in Oslo"),
        ("天气奥斯陆", "weather in 奥斯陆"),
        ("weatherman", "?"),
        ("1 + 41", "42"),
        ("1 + 41!", "?"),
        ("", "?"),
    ],
)
def test_words_find_their_handler(table, content, reply):
    table(TextMessage, WORDS)
    handlers.check()
    assert dispatch(a(TextMessage, content=content)) == TextReply(reply)


def test_a_route_may_ask_for_the_memory_too(table):
    table(TextMessage, WORDS)
    again = dispatch(a(TextMessage, content="I am Wu"), lambda: {"name": "Li"})
    assert again == Remember(TextReply("was Li"), {"name": "Wu"})


def test_menu_keys_scenes_and_spoken_words_alike(table):
    for message in (
        a(ClickEvent, event="CLICK", event_key="help"),
        a(ScanEvent, event="SCAN", event_key="help"),
        a(SubscribeEvent, event="subscribe", event_key="qrscene_help"),
        a(VoiceMessage, recognition="Help."),
    ):
        table(type(message), WORDS)
        assert dispatch(message) == TextReply("help")


def test_the_first_route_that_fits_is_taken_and_without_a_default_nothing_is_said(table):
    table(TextMessage, Router((prefix("a"), said("first")), (prefix("a b"), said("second"))))
    assert dispatch(a(TextMessage, content="a b")) == TextReply("first|b")
    assert dispatch(a(TextMessage, content="c")) is None


def test_a_route_whose_handler_takes_other_arguments_is_found_at_the_start():
    for route in (exact("x"), prefix("x"), pattern("(x)(y)(z)")):
        with pytest.raises(HandlerError, match="write def"):
            Router((route, lambda: None))
    with pytest.raises(HandlerError):
        Router((exact("x"), lambda message, memory, more: None))


@given(st.text())
def test_any_words_get_one_answer(content):
    assert isinstance(WORDS.answer(a(TextMessage, content=content), dict), TextReply | Remember)
