"""Whatever a fan can type, pushed raw as the platform does, gets the reply of its kind from the real bot."""

import base64

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from sandbox import THROWAWAY, running_sandbox
from sandbox.pushes import Action, to_xml
from tests.browser import running_bot
from tests.conftest import FAN

# Pieces that have broken parsers before, among any others.
PIECES = [
    b"]]>",
    b"<![CDATA[",
    b"<a><b>",
    b"</a>",
    b"&#x1D;",
    b"&#55357;",
    b"&",
    b"<MsgId>1</MsgId>",
    b"\0",
    b"\xe5\xad",
]
TYPED = st.lists(
    st.one_of(st.sampled_from(PIECES), st.binary(max_size=8), st.text(max_size=8).map(str.encode)), max_size=6
).map(b"".join)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    with running_sandbox() as sandbox, running_bot(sandbox, tmp_path_factory.mktemp("bot")):
        yield sandbox


@given(typed=TYPED, mode=st.sampled_from(["plain", "compat", "safe"]))
def test_anything_that_a_fan_types_gets_a_reply(sandbox, typed, mode):
    # A text by the platform's own hand, with these bytes in the place of its content.
    xml = to_xml(
        Action(openid=FAN, type="text", content="TYPED", msg_id=sandbox.state.new_msg_id()),
        THROWAWAY.original_id,
        int(sandbox.state.real_time()),
    )
    push = {
        "raw_base64": base64.b64encode(xml.replace(b"TYPED", typed)).decode(),
        "mode": mode,
        "attempts": 1,
    }
    answer = requests.post(f"{sandbox.url}/sandbox/fans/{FAN}/messages", json=push, timeout=20).json()
    assert [attempt["verdict"] for attempt in answer["attempts"]] == ["reply"], answer["attempts"]
    assert [message["type"] for message in answer["shown"]] == ["text"]
