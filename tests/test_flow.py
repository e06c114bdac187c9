"""The whole way, in real processes: sandbox -> gunicorn -> ledger -> worker -> file, and back to the fan."""

import hashlib
import os
import sqlite3
import threading
from contextlib import closing

import psutil
import pytest
import requests

import parts
from tests.conftest import FAN, ROOT, eventually

pytestmark = pytest.mark.xdist_group("waits-3")

PHOTO = ROOT / "sandbox" / "photos" / "grace_hopper.jpg"
SHA256 = hashlib.sha256(PHOTO.read_bytes()).hexdigest()
BIG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + os.urandom(10 * 1024 * 1024 - 11)


def send(sandbox, data=None, fan=FAN, **fields):
    """A fan sends a picture; the sandbox's whole answer."""
    files = {"file": ("photo.jpg", PHOTO.read_bytes() if data is None else data)}
    url = f"{sandbox.url}/sandbox/fans/{fan}/messages"
    answer = requests.post(url, data={"type": "image", **fields}, files=files, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def chat(sandbox, fan=FAN):
    return requests.get(f"{sandbox.url}/sandbox/fans/{fan}/messages", timeout=5).json()


def calls(sandbox, path):
    return requests.get(f"{sandbox.url}/sandbox/calls", timeout=5).json().get(path, {})


def control(sandbox, path, body, method="PUT"):
    answer = requests.request(method, f"{sandbox.url}/sandbox/{path}", json=body, timeout=10)
    assert answer.ok, answer.text


def entries(bot, push):
    return bot.ledger.find_by_msg_id(int(push["msg_id"]))


def stored(bot, push, seconds=20):
    """The entry of a push once its picture is stored."""

    def look():
        return [entry for entry in entries(bot, push) if entry.media_state == "stored"]

    return eventually(look, seconds, "the download")[0]


def echoed(sandbox, count):
    """What the account said to the fan, once it is `count` messages."""

    def look():
        said = [one for one in chat(sandbox) if one["from"] == "account"]
        return said if len(said) >= count else None

    return eventually(look, what=f"echo number {count}")


def files(bot):
    """Every file in the media store, unfinished ones too."""
    return sorted(path for path in (bot.folder / "media").rglob("*") if path.is_file())


@pytest.mark.parametrize("workers", ["1", "4"])
@pytest.mark.parametrize("via", ["passive", "upload"])
def test_a_photo_comes_back_in_every_mode(sandbox, make_bot, via, workers):
    bot = make_bot(sandbox, ECHO_VIA=via, WEB_CONCURRENCY=workers, WECHAT_ACCEPT_PLAINTEXT="1")
    bot.web()
    echoes = []
    for number, mode in enumerate(("plain", "compat", "safe"), 1):
        push = send(sandbox, mode=mode)
        assert [attempt["verdict"] for attempt in push["attempts"]] == [
            "reply" if via == "passive" else "silent"
        ]
        assert stored(bot, push).media_sha256 == SHA256
        echoes = echoed(sandbox, number)
    by = "passive" if via == "passive" else "custom"
    assert [(one["by"], one["type"], one["sha256"]) for one in echoes] == [(by, "image", SHA256)] * 3
    assert len(files(bot)) == 3
    assert all(path.read_bytes() == PHOTO.read_bytes() for path in files(bot))
    assert calls(sandbox, "/cgi-bin/stable_token") == {"ok": 1}


def test_three_deliveries_of_one_message_to_four_processes(sandbox, make_bot):
    bot = make_bot(sandbox, WEB_CONCURRENCY="4")
    bot.web()
    pushes = [
        send(sandbox, attempts="3", force="true"),
        send(sandbox, attempts="3", force="true", together="true"),
    ]
    for push in pushes:
        assert [attempt["verdict"] for attempt in push["attempts"]] == ["reply"] * 3
        opened = {attempt["opened"] for attempt in push["attempts"]}
        assert len(opened) == 1, "three equal replies after decryption"
        sealed = {attempt["received"]["body"] for attempt in push["attempts"]}
        assert len(sealed) == 3, "each sealed anew"
        assert len(entries(bot, push)) == 1
        stored(bot, push)
    assert calls(sandbox, "/cgi-bin/media/get") == {"ok": 2}


def test_two_senders_with_one_msg_id(sandbox, make_bot):
    bot = make_bot(sandbox)
    bot.web()
    other = "oTest-ZyXwVuTsRqPoNmLkJiHg_2"
    first = send(sandbox, msg_id="24601")
    second = send(sandbox, fan=other, msg_id="24601")
    assert {entry.sender for entry in entries(bot, first)} == {FAN, other}
    for fan, push in ((FAN, first), (other, second)):
        assert push["media_id"] in push["attempts"][0]["opened"]
        assert [one["by"] for one in chat(sandbox, fan) if one["from"] == "account"] == ["passive"]


def test_kill_9_of_the_worker_in_the_middle_of_a_download(sandbox, make_bot):
    bot = make_bot(sandbox, WORKER="external", LEASE_SECONDS="2")
    bot.web()
    control(
        sandbox, "faults", [{"path": "/cgi-bin/media/get", "times": 1, "truncate": 5_000_000, "delay": 30}]
    )
    worker = bot.worker()
    push = send(sandbox, BIG)
    eventually(lambda: any(path.stat().st_size for path in files(bot)), what="half a file")
    worker.kill()
    (half,) = files(bot)
    assert half.parent.name == ".tmp"
    second = bot.worker()
    entry = stored(bot, push)
    assert entry.media_sha256 == hashlib.sha256(BIG).hexdigest()
    assert [path.relative_to(bot.folder / "media").as_posix() for path in files(bot)] == [entry.media_key]
    assert entry.media_attempts == 2
    assert second.stop() == 0


def test_kill_9_of_everything_keeps_the_answer(sandbox, make_bot):
    bot = make_bot(sandbox, LEASE_SECONDS="2")
    web = bot.web()
    push = send(sandbox)
    web.kill()
    bot.web()
    again = send(sandbox, msg_id=push["msg_id"], attempts="1")
    first, second = (one["attempts"][0]["opened"] for one in (push, again))
    assert second == first
    stored(bot, push)


@pytest.mark.parametrize("embedded", [True, False])
def test_sigterm_stops_cleanly_in_the_middle_of_work(sandbox, make_bot, embedded):
    bot = make_bot(sandbox, WORKER="embedded" if embedded else "external")
    web = bot.web()
    process = web if embedded else bot.worker()
    control(sandbox, "faults", [{"path": "/cgi-bin/media/get", "times": 1, "delay": 2}])
    push = send(sandbox)
    eventually(lambda: entries(bot, push)[0].media_lease_until, what="the claim")
    assert process.stop() == 0
    assert entries(bot, push)[0].media_state == "stored", "work in hand is finished"
    assert "Traceback" not in bot.logs()


def test_no_process_is_left_behind(sandbox, make_bot):
    bot = make_bot(sandbox, WEB_CONCURRENCY="2")
    web = bot.web()
    master = psutil.Process(web.pid)  # the first process answers before the second one is there
    children = eventually(lambda: len(found := master.children()) == 2 and found, what="two processes")
    assert web.stop() == 0
    _, left = psutil.wait_procs(children, timeout=1)  # what has ended is there until the system looks at it
    assert not left


@pytest.mark.parametrize(
    "faulty", [{"WECHAT_AES_KEY": "short", "PORT": "http"}, {"WECHAT_APPSECRET": "", "ECHO_VIA": "pigeon"}]
)
def test_faulty_settings_end_gunicorn_with_all_faults_named(sandbox, make_bot, faulty):
    bot = make_bot(sandbox)
    bot.environ |= faulty
    process = bot.start("gunicorn", "-c", "gunicorn.conf.py", "app:create_app()")
    assert process.popen.wait(20) != 0
    for name in faulty:
        assert name in process.text()
    assert "Traceback" not in process.text()


def test_a_token_that_died_costs_one_fetch_and_no_picture(sandbox, make_bot):
    bot = make_bot(sandbox, WEB_CONCURRENCY="2")
    bot.web()
    stored(bot, send(sandbox))
    control(sandbox, "token/expire", {"stuck": False}, "POST")
    threads = [threading.Thread(target=lambda: stored(bot, send(sandbox))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bot.ledger.status(0).stored == 9
    assert calls(sandbox, "/cgi-bin/stable_token") == {"ok": 2}


def test_the_database_is_for_its_owner_alone(sandbox, make_bot):
    bot = make_bot(sandbox)
    bot.web()
    stored(bot, send(sandbox))
    for name in ("bot.db", "bot.db-wal", "bot.db-shm"):
        assert (bot.folder / name).stat().st_mode & 0o077 == 0
    with closing(sqlite3.connect(bot.folder / "bot.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_no_secret_in_what_the_processes_print(sandbox, make_bot):
    bot = make_bot(sandbox, LOG_FORMAT="json")
    bot.web()
    stored(bot, send(sandbox))
    control(sandbox, "faults", [{"path": "/cgi-bin/media/get", "times": 2, "disconnect": True}])
    stored(bot, send(sandbox))
    requests.post(f"{bot.url}/wechat?signature=wrong&timestamp=1&nonce=2", data="x", timeout=5)
    token = parts.build(bot.settings).of[""].token.get()
    account = sandbox.account
    for secret in (token, account.appsecret, account.token, account.aes_key):
        assert secret not in bot.logs()
