"""The sandbox takes what others' bots answer: unmodified ones as processes, others by the shape of their replies."""

import hashlib
import os
import socket
import sys
from pathlib import Path

import pytest
import requests

from sandbox import THROWAWAY, Account, running_sandbox
from sandbox.judge import Judge, Shown
from sandbox.media import Media
from tests.conftest import FAN, ROOT, Process, clean_environ, eventually, free_port

PEERS = ROOT / "tests" / "peers"
SAMPLES = Path(__file__).parent / "samples" / "peers"
PHOTO = (ROOT / "sandbox" / "photos" / "grace_hopper.jpg").read_bytes()


@pytest.fixture(scope="module")
def bots(tmp_path_factory):
    """The address of each bot: WeRoBot without and with an AES key, wechatpy for all modes."""
    folder = tmp_path_factory.mktemp("peers")
    account = {
        "WECHAT_APPID": THROWAWAY.appid,
        "WECHAT_TOKEN": THROWAWAY.token,
        "WECHAT_AES_KEY": THROWAWAY.aes_key,
    }
    plain = {name: value for name, value in account.items() if name != "WECHAT_AES_KEY"}
    processes, urls = [], {}
    try:
        for name, environ in (("wechatpy", account), ("werobot", account), ("werobot plain", plain)):
            port = free_port()
            script = PEERS / f"{name.split()[0]}_bot.py"
            command = [sys.executable, str(script), str(port)]
            processes.append(Process(command, clean_environ() | environ, folder / f"{name}.log"))
            urls[name] = f"http://127.0.0.1:{port}/"
        for process, url in zip(processes, urls.values(), strict=True):
            eventually(lambda process=process, url=url: listens(process, url), what=url)
        yield urls
    finally:
        for process in processes:
            process.kill()


def listens(process, url):
    assert process.popen.poll() is None, process.text()
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(url.rstrip("/").rpartition(":")[2]))) == 0


@pytest.mark.parametrize("mode", ["plain", "compat", "safe"])
@pytest.mark.parametrize("peer", ["wechatpy", "werobot"])
def test_no_answer_of_an_unmodified_bot_is_refused(bots, peer, mode):
    name = "werobot plain" if (peer, mode) == ("werobot", "plain") else peer
    with running_sandbox(callback=bots[name]) as sandbox:
        url = f"{sandbox.url}/sandbox/fans/{FAN}/messages"
        text = {"type": "text", "content": "你好 <&> 🚀", "mode": mode}
        picture = {"type": "image", "mode": mode}
        pushes = [
            requests.post(url, json=text, timeout=30).json(),
            requests.post(url, data=picture, files={"file": ("a.jpg", PHOTO)}, timeout=30).json(),
        ]
    attempts = [attempt for push in pushes for attempt in push["attempts"]]
    assert [attempt["verdict"] for attempt in attempts] == ["reply", "reply"], attempts
    assert pushes[0]["shown"][0]["content"] == "你好 <&> 🚀"
    assert pushes[1]["shown"][0]["sha256"] == hashlib.sha256(PHOTO).hexdigest()
    notes = {note for attempt in attempts for note in attempt.get("notes", [])}
    if peer == "wechatpy":
        assert notes == set()
    elif mode == "plain":
        assert notes == {"white space before <xml>"}
    else:
        assert notes == {"white space before <xml>", "Nonce is not the one of the push"}


ACCOUNT = Account(
    appid="wx0a1b2c3d4e5f6789",
    appsecret="never used",
    token="FactSheetToken7",
    aes_key="Zt4mQ9sVb2LxK7eWc1RyU8nHj5PaDf3GoI6TqSkXwEM",
    original_id="gh_5e7a9c1b3d2f",
)
OWN_NONCE = "Nonce is not the one of the push"
MILLISECONDS = "CreateTime has 13 digits: no seconds"
PONG = Shown("text", "pong 收到")
SONG = Shown("music", "song\nartist\nhttps://example.org/a.mp3")
PICTURE = Shown("image", None, "{image}")
SHAPES = {
    "wxjava-text": (PONG, []),
    "wxjava-image": (PICTURE, []),
    "wxjava-text-sealed": (PONG, [OWN_NONCE]),
    "easywechat-text": (PONG, []),
    "easywechat-music": (SONG, ["music without ThumbMediaId"]),
    "easywechat-text-sealed": (PONG, [OWN_NONCE]),
    "senparc-text": (PONG, []),
    "senparc-text-sealed": (PONG, ["TimeStamp has 18 digits: no seconds", OWN_NONCE]),
    "npm-wechat-text": (PONG, [MILLISECONDS]),
    "npm-wechat-music": (SONG, [MILLISECONDS, "music without ThumbMediaId"]),
    "npm-wechat-news": (
        Shown("news", "first\nhttps://example.org/read"),
        [MILLISECONDS, "2 articles: only 1 shown here"],
    ),
    "co-wechat-image": (PICTURE, [MILLISECONDS]),
    "co-wechat-text-sealed": (PONG, ["TimeStamp has 13 digits: no seconds", OWN_NONCE, MILLISECONDS]),
    "silenceper-text": (PONG, []),
    "silenceper-news": (
        Shown("news", "headline\nhttps://example.org/read"),
        ["an item without Description, PicUrl"],
    ),
    "silenceper-text-sealed": (PONG, []),
}


def find_picture(media_id):
    return Media(
        media_id=media_id,
        key="key",
        type="image",
        extension="jpg",
        size=1,
        sha256="",
        expires_at=float("inf"),
        path=Path(os.devnull),
        seconds=None,
        from_fan=True,
    )


@pytest.mark.parametrize("name", sorted(path.stem for path in SAMPLES.iterdir()))
def test_the_reply_of_a_library(name):
    shown, notes = SHAPES[name]
    mode = "safe" if name.endswith("sealed") else "plain"
    verdict = Judge(ACCOUNT, find_picture).judge(
        (SAMPLES / f"{name}.xml").read_bytes(), mode=mode, openid=FAN, is_event=False, nonce="998877665"
    )
    assert verdict.verdict == "reply", verdict.why
    assert verdict.shown == shown
    assert [note.en for note in verdict.notes] == notes
