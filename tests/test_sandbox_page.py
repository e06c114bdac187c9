"""What the phone page is made of, without a browser: its files, its feed, and the media of the chats."""

import json
import re

import pytest
import requests

from sandbox import THROWAWAY, Account, running_sandbox
from sandbox.feed import CONNECTIONS, Feed
from tests.conftest import ROOT, eventually

PHOTO = (ROOT / "sandbox" / "photos" / "grace_hopper.jpg").read_bytes()


def stored(sandbox, kind, data):
    media = sandbox.state.store_media(kind, data)
    return f"{sandbox.url}/sandbox/media/{media.media_id}"


def test_the_page_loads_nothing_from_elsewhere(sandbox):
    page = requests.get(sandbox.url, timeout=10)
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert " style=" not in page.text
    assert "onclick" not in page.text
    addresses = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert len(addresses) == 4
    for address in addresses:
        assert address.startswith("/sandbox/static/")
        file = requests.get(sandbox.url + address, timeout=10)
        assert file.status_code == 200
        assert file.headers["X-Content-Type-Options"] == "nosniff"
        assert not re.findall(r"https?://(?!www\.w3\.org|example\.org)", file.text)
    assert requests.get(f"{sandbox.url}/sandbox/calls", timeout=10).json() == {}


def test_modes_are_those_that_the_account_can_do():
    for aes_key, modes in ((THROWAWAY.aes_key, ["plain", "compat", "safe"]), (None, ["plain"])):
        account = Account(appid="wx1", appsecret="s", token="t", aes_key=aes_key, original_id="gh_1")
        with running_sandbox(account=account) as sandbox:
            page = requests.get(sandbox.url, timeout=10).text
            assert re.findall(r'<option value="(plain|compat|safe)"', page) == modes


@pytest.mark.parametrize(
    ("kind", "data", "content_type"),
    [
        ("image", PHOTO, "image/jpeg"),
        ("image", b"\x89PNG\r\n\x1a\n", "image/png"),
        ("image", b"GIF89a", "image/gif"),
        ("voice", b"ID3", "audio/mpeg"),
        ("video", b"\0\0\0\x18ftypisom", "video/mp4"),
        ("voice", b"#!AMR\n", None),
        ("voice", b"Speex   ", None),
        ("image", b"<html><script>alert(1)</script>", None),
        ("image", b"<svg xmlns='http://www.w3.org/2000/svg'/>", None),
        ("image", b"", None),
    ],
)
def test_media_are_what_their_bytes_are(sandbox, kind, data, content_type):
    served = requests.get(stored(sandbox, kind, data), timeout=10)
    assert served.content == data
    assert served.headers["Content-Type"] == (content_type or "application/octet-stream")
    assert served.headers["Content-Disposition"].startswith("inline" if content_type else "attachment")
    assert served.headers["X-Content-Type-Options"] == "nosniff"
    assert served.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "sandbox" in served.headers["Content-Security-Policy"]


def test_media_in_ranges_as_players_ask(sandbox):
    part = requests.get(stored(sandbox, "image", PHOTO), headers={"Range": "bytes=10-19"}, timeout=10)
    assert (part.status_code, part.content) == (206, PHOTO[10:20])


def test_media_that_are_gone(sandbox):
    url = stored(sandbox, "image", PHOTO)
    gone = requests.get(f"{url}x", timeout=10)
    assert gone.status_code == 404
    assert gone.json() == {
        "error": "no such media, or older than three days",
        "error_zh": "素材不存在或已超过三天",
    }
    sandbox.state.advance(3 * 24 * 3600)
    assert requests.get(url, timeout=10).status_code == 404
    url = stored(sandbox, "image", PHOTO)
    sandbox.state.find_media(url.rpartition("/")[2]).path.unlink()
    assert requests.get(url, timeout=10).status_code == 404


def test_media_and_feed_are_for_our_own_page_alone(sandbox):
    for url in (stored(sandbox, "image", PHOTO), f"{sandbox.url}/sandbox/events"):
        for headers in ({"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Origin": "null"}):
            assert requests.get(url, headers=headers, timeout=10).status_code == 403
    assert requests.get(f"{sandbox.url}/sandbox/calls", timeout=10).json() == {}


def listeners(sandbox):
    return sandbox.state.listeners


def test_a_feed_begins_with_all_there_is_and_ends_with_the_sandbox():
    with running_sandbox() as sandbox:
        url = f"{sandbox.url}/sandbox/events"
        with requests.get(url, stream=True, timeout=10) as feed:
            assert feed.headers["Content-Type"] == "text/event-stream; charset=utf-8"
            lines = feed.iter_lines()
            assert next(lines) == b"retry: 1000"
            assert next(lines) == b"event: state"
            state = json.loads(next(lines).removeprefix(b"data: "))
            assert set(state) == {"fans", "following", "pushes", "calls", "menu", "faults", "made_for"}
            next(lines)
            sandbox.state.replace_faults([{"path": "/x\ny", "errcode": 1}])
            assert next(lines) == b"event: faults"
            assert json.loads(next(lines).removeprefix(b"data: "))["faults"][0]["path"] == "/x\ny"
            sandbox.state.reset()
            sandbox.state.count_call("/x", "ok", {})
            rest = []
            for line in lines:
                rest.append(line)
                if b"event: call" in line:
                    break
            assert b"event: reset" in rest
            assert listeners(sandbox) == 1
    eventually(lambda: listeners(sandbox) == 0, what="the end of the feed")


def test_a_feed_ends_with_the_sandbox_while_it_waits():
    with running_sandbox() as sandbox:
        feed = requests.get(f"{sandbox.url}/sandbox/events", stream=True, timeout=10)
        eventually(lambda: listeners(sandbox) == 1)
    assert b"".join(feed.iter_content(None)).endswith(b"\n\n"), "a clean end, no error"


def test_the_oldest_feed_makes_room(sandbox):
    url = f"{sandbox.url}/sandbox/events"
    feeds = [requests.get(url, stream=True, timeout=10) for _ in range(CONNECTIONS + 1)]
    assert b"".join(feeds[0].iter_content(None)).count(b"event:") == 1, "it has ended"
    eventually(lambda: listeners(sandbox) == CONNECTIONS, what="the end of the oldest")
    for feed in feeds:
        feed.close()


def test_a_page_that_falls_behind_is_let_go(sandbox):
    feed = Feed()
    connection = feed.connect(sandbox.state)
    for _ in range(2000):
        sandbox.state.count_call("/x", "ok", {})
    assert len(list(connection)) == 1, "what there was; the page begins anew"
    connection.close()
    assert listeners(sandbox) == 0


def test_a_closed_feed_tells_once(sandbox):
    feed = Feed()
    feed.close()
    connection = feed.connect(sandbox.state)
    assert len(list(connection)) == 1
    connection.close()


def test_a_reset_forgets_a_push_under_way_for_the_page_too(sandbox):
    """Also when others have begun since."""
    heard = []
    sandbox.callback = "http://127.0.0.1:9/"
    state = sandbox.state
    url = f"{sandbox.url}/sandbox/fans/oFan/messages"
    answer = requests.post(url, json={"type": "text", "content": "old", "attempts": 1}, timeout=10)
    old = state.find_push(str(answer.json()["msg_id"]))
    state.reset()
    _, stop = state.listen(lambda name, facts: heard.append((name, facts)))
    state.end_push(old)
    requests.post(url, json={"type": "text", "content": "new", "attempts": 1}, timeout=10)
    state.record_attempt(old, {"verdict": "timeout"}, {})
    stop()
    assert {facts["summary"] for name, facts in heard if name == "push"} == {"new"}
