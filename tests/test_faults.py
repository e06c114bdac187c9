"""The fault suite: what was promised for each fault, and what was counted while a real bot met it.

`make test` runs it with small counts, `make faults` (--full) with those that the promises name, and prints a table.
Nothing is lost and nothing done twice: that is counted in the ledger, in the media store and in the answers. Every
wait has a condition and an end, and every process that was started here is ended here.
"""

import contextlib
import fcntl
import functools
import hashlib
import http.client
import itertools
import os
import random
import re
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree

import psutil
import pytest
import requests
from psycopg import sql
from requests.exceptions import ChunkedEncodingError

import parts
from sandbox import THROWAWAY, running_sandbox
from sandbox.cipher import Envelope
from tests import pushing
from tests.conftest import FAN, Bot, eventually, free_port
from tests.postgresql import PostgreSQL
from tests.stub_platform import StubPlatform, drip, hang, raw, reply
from tests.test_database import Proxy
from tests.test_flow import calls, chat, control, entries, files, send, stored

pytestmark = pytest.mark.xdist_group("waits-2")

OTHER_KEY = "Zt4mQ9sVb2LxK7eWc1RyU8nHj5PaDf3GoI6TqSkXwEM"
MEDIA_GET = "/cgi-bin/media/get"
STABLE_TOKEN = "/cgi-bin/stable_token"
NUMBERS = itertools.count(1_000_000)
HEAD = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"


@pytest.fixture
def long_run(full):
    """For what only waits, and whose parts other tests have: `make faults` runs it, `make test` does not."""
    if not full:
        pytest.skip("with --full: make faults")


# -- a platform that can do anything, and many fans -------------------------------------------------------------


def picture(media_id):
    """The bytes behind a MediaId: each different, of 0.3 to 16 kB."""
    digest = hashlib.sha256(media_id.encode()).digest()
    return HEAD + digest * (10 + digest[0] * 2)


def send_picture(sock, asked):
    return reply(picture(asked.query["media_id"]), content_type="image/jpeg")(sock, asked)


@pytest.fixture
def platform():
    """A platform with tokens and a picture for every MediaId."""
    with StubPlatform() as stub:
        stub.on(STABLE_TOKEN, {"access_token": "a-token-of-this-test", "expires_in": 7200})
        stub.on(MEDIA_GET, send_picture)
        yield stub


THREADS = 16


class Load:
    """Pictures from many fans, delivered as the platform does: again until an answer is there, some more than once."""

    def __init__(self, bot, count, *, fans=50, twice=0.1):
        self.bot, self.count = bot, count
        self.answers = defaultdict(set)
        self.deliveries = self.unanswered = 0
        self.broken_off = False
        self._local = threading.local()
        self._lock = threading.Lock()
        self._connections = []
        first = next(NUMBERS) * 100_000
        self.pushes = {number: f"oTest-Fan{number % fans:019d}" for number in range(first, first + count)}
        self.order = list(self.pushes)
        again = [number for number in self.order if random.random() < 2 * twice]
        for number in again:  # half of them at the same time, half of them later
            place = self.order.index(number)
            self.order.insert(place + random.choice([1, 60]), number)

    def run(self, *, rate=None, threads=THREADS, seconds=90):
        """Deliver all; `rate` messages a second. Returns the seconds that it took."""
        started = time.monotonic()

        def one(place, number):
            if rate and not self.broken_off:
                time.sleep(max(started + place / rate - time.monotonic(), 0))  # so many a second
            self._until_answered(number, seconds)

        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(one, *each) for each in enumerate(self.order)]:
                done.result()
        for connection in self._connections:
            connection.close()
        return time.monotonic() - started

    def _until_answered(self, number, seconds):
        deadline = time.monotonic() + seconds
        while not self.broken_off:
            answer = self._deliver(number)
            with self._lock:
                self.deliveries += 1
                if answer is not None:
                    self.answers[number].add(answer)
                    return
                self.unanswered += 1
            assert time.monotonic() < deadline, f"no answer within {seconds} s"
            time.sleep(0.2)  # what is down says nothing when it is back

    def xml(self, number):
        return pushing.image(number, fan=self.pushes[number], media_id=f"media-{number}")

    def _deliver(self, number):
        """The reply that the fan would see, in plain XML; None when there was no answer, or 503."""
        sealed = random.random() < 0.5
        path, body = pushing.safe(self.xml(number)) if sealed else pushing.plain(self.xml(number))
        connection = getattr(self._local, "connection", None)
        if connection is None:
            port = int(self.bot.environ["PORT"])
            self._local.connection = connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            self._connections.append(connection)
        try:
            connection.request("POST", path, body, {"Content-Type": "text/xml"})
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException):
            connection.close()
            return None
        if answer.status == 503:
            return None
        assert answer.status == 200
        return opened(content) if sealed else content

    def check(self, everything, seconds=120):
        """One row, one answer and one whole file for each message; returns what was counted."""
        figures = self.count_up(everything, seconds)
        assert not any(list(figures.values())[3:]), figures
        return figures

    def count_up(self, everything, seconds=120):
        """Each message is answered, what was recorded is worked on; the figures."""
        eventually(lambda: everything.ledger.status(time.time()).pending == 0, seconds, "all downloads")
        columns = "msg_id, sender, reply, media_state, media_key, media_sha256"
        rows = everything.database.run(
            lambda connection: connection.exec_driver_sql(f"SELECT {columns} FROM messages").all()
        )
        by_number = {int(row.msg_id): row for row in rows if int(row.msg_id) in self.pushes}
        of_other_loads = {row.media_key for row in rows if int(row.msg_id) not in self.pushes}
        media = self.bot.folder / "media"
        here = [path for path in files(self.bot) if path.relative_to(media).as_posix() not in of_other_loads]
        in_store = [path for path in here if path.parent.name != ".tmp"]
        lost = [number for number, row in by_number.items() if row.media_state != "stored"]
        broken = [
            number
            for number, row in by_number.items()
            if row.media_key and (media / row.media_key).read_bytes() != picture(f"media-{number}")
        ]
        marked = Counter(re.findall(r"INFO worker: stored ledger_id=(\d+)", self.bot.logs()))
        figures = {
            "pushes": self.count,
            "deliveries": self.deliveries,
            "of_them_unanswered": self.unanswered,
            "answered_without_a_row": sum(
                number not in by_number or by_number[number].reply not in answers
                for number, answers in self.answers.items()
            ),
            "with_two_answers": sum(len(answers) != 1 for answers in self.answers.values()),
            "with_two_rows": len([row for row in rows if int(row.msg_id) in self.pushes]) - len(by_number),
            "downloads_lost": len(lost),
            "stored_twice": sum(count > 1 for count in marked.values()) + abs(len(in_store) - len(by_number)),
            "broken_files": len(broken) + len(here) - len(in_store),
        }
        assert len(self.answers) == self.count
        assert all(row.sender == self.pushes[number] for number, row in by_number.items())
        return figures


def opened(body, envelope=pushing.ENVELOPE):
    return envelope.decrypt(ElementTree.fromstring(body).findtext("Encrypt"))


def said(body):
    """The words of a text reply, sealed or plain."""
    root = ElementTree.fromstring(body)
    if (sealed := root.findtext("Encrypt")) is not None:
        root = ElementTree.fromstring(pushing.ENVELOPE.decrypt(sealed))
    return root.findtext("Content")


def post(bot, push, timeout=30):
    path, body = push
    return requests.post(f"{bot.url}{path}", data=body, timeout=timeout)


def status(everything):
    return everything.ledger.status(time.time())


@pytest.fixture
def make_loaded(platform, make_bot):
    """make_loaded(SETTING=...) -> (bot, its parts): sealed and plain pushes, pictures from `platform`."""

    def make(**environ):
        bot = make_bot(platform, WECHAT_ACCEPT_PLAINTEXT="1", LEASE_SECONDS="2", **environ)
        return bot, parts.build(bot.settings).of[""]

    return make


# -- kill -9 ----------------------------------------------------------------------------------------------------


class Killer:
    """Kills a process of the bot, whichever, again and again, and starts another in its place."""

    def __init__(self, bot, workers=2):
        self.bot, self.web = bot, bot.web()
        self.workers = [bot.worker() for _ in range(workers)]
        self.kills = Counter()
        self.trouble = None

    def once(self):
        victim = random.choices(["a web process", "all web processes", "a worker"], [10, 3, 7])[0]
        if victim == "a web process":
            children = psutil.Process(self.web.pid).children()
            if not children:
                return
            os.kill(random.choice(children).pid, signal.SIGKILL)
        elif victim == "all web processes":
            self.web.kill()
            self.web = self.bot.web()
        else:
            place = random.randrange(len(self.workers))
            self.workers[place].kill()
            self.workers[place] = self.bot.worker()
        self.kills[victim] += 1

    def until(self, done, pause, at_least):
        try:
            while self.kills.total() < at_least or not done.is_set():
                time.sleep(random.uniform(0, 2 * pause))  # the moment is what chance gives
                self.once()
        except BaseException as error:
            self.trouble = error


@pytest.mark.timeout(900)
def test_kill_9_at_random_instants_during_load(sqlite_unless_full, make_loaded, database_url, full, counted):
    count, kills, pause = (10_000, 100, 0.6) if full else (100, 3, 0.2)
    bot, everything = make_loaded(DATABASE_URL=database_url, WEB_CONCURRENCY="2", LEDGER_SYNC="normal")
    killer = Killer(bot, workers=2 if full else 1)
    load = Load(bot, count)
    done = threading.Event()
    thread = threading.Thread(target=killer.until, args=(done, pause, kills))
    thread.start()
    try:
        seconds = load.run(rate=count / (kills * (pause + 0.5)))
    finally:
        done.set()
        thread.join()
    assert killer.trouble is None
    figures = load.check(everything)
    assert killer.web.stop() == 0
    # One that was just started does not know yet what it is to do when asked to end.
    for worker in killer.workers:
        eventually(lambda pid=worker.pid: psutil.Process(pid).num_threads() > 4, what="the worker's threads")
    assert [worker.stop() for worker in killer.workers] == [0] * len(killer.workers)
    counted(
        f"kill -9 at random instants, {'SQLite' if everything.database.is_sqlite else 'PostgreSQL'}",
        "every answered message in the ledger, one answer each, every picture stored once and whole",
        kills=killer.kills.total(),
        **figures,
        seconds=round(seconds),
    )


# -- the platform's faults, one by one --------------------------------------------------------------------------


class World:
    """One bot in real processes, on both hosts of the API (the first one is down), and the sandbox it talks to."""

    def __init__(self, sandbox, folder, times):
        self.sandbox, self.times = sandbox, times
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
            nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.bot = Bot(
            folder,
            {
                "WECHAT_APPID": THROWAWAY.appid,
                "WECHAT_APPSECRET": THROWAWAY.appsecret,
                "WECHAT_TOKEN": THROWAWAY.token,
                "WECHAT_AES_KEY": THROWAWAY.aes_key,
                "WECHAT_AES_KEY_PREVIOUS": OTHER_KEY,
                "WECHAT_ACCEPT_PLAINTEXT": "1",
                "WECHAT_API_BASE": f"{nobody},{sandbox.url}",
                "DATABASE_URL": f"sqlite:///{folder}/bot.db",
                "MEDIA_STORE": f"{folder}/media",
                "PORT": str(free_port()),
                "WEB_CONCURRENCY": "2",
                "REPLY_SECONDS": "1",
                "LEASE_SECONDS": "2",
                "RUNS": str(folder / "runs"),
            },
        )
        self.bot.app = "tests.slow_app:create_app()"
        self.everything = parts.build(self.bot.settings).of[""]
        sandbox.callback = f"{self.bot.url}/wechat"
        (folder / "runs").touch()
        self.bot.web()

    def faults(self, path, *each):
        control(self.sandbox, "faults", [{"path": path, "times": 1, **one} for one in each])

    def picture(self, seconds=20, **fields):
        """A picture that has to end stored, whole; its entry."""
        return stored(self.bot, send(self.sandbox, **fields), seconds)

    def text(self, content, **fields):
        url = f"{self.sandbox.url}/sandbox/fans/{FAN}/messages"
        body = {"type": "text", "content": content, "msg_id": next(NUMBERS), **fields}
        return requests.post(url, json=body, timeout=60).json()

    def row(self, push, lane="media", state="failed"):
        """The push's entry once its lane is in that state."""

        def look():
            found = entries(self.bot, push)
            return [entry for entry in found if getattr(entry, f"{lane}_state") == state]

        return eventually(look, what=f"{lane} {state}")[0]

    def token_needed(self):
        control(self.sandbox, "token/expire", {}, "POST")

    def fetches(self):
        return Counter(calls(self.sandbox, STABLE_TOKEN))

    def rows(self):
        return self.everything.database.run(
            lambda connection: connection.exec_driver_sql("SELECT count(*) FROM messages").scalar()
        )


@pytest.fixture(scope="module")
def world(request, tmp_path_factory):
    times = 2 if request.config.getoption("--full") else 1
    with running_sandbox() as sandbox:
        made = World(sandbox, tmp_path_factory.mktemp("world"), times)
        yield made
        for process in made.bot.processes:
            process.kill()


def a_lost_answer_while_the_work_goes_on(world):
    """answered once, worked once"""
    push = world.text("slow 0.9 late but right", timeout=0.7)

    def shown():
        return [
            one
            for one in chat(world.sandbox)
            if one["from"] == "account" and one["content"] == "late but right"
        ]

    eventually(shown, what="the answer")
    assert len(shown()) == 1
    runs = (world.bot.folder / "runs").read_text(encoding="utf-8").splitlines()
    assert runs.count("late but right") == 1
    return {"deliveries": len(push["attempts"]), "runs_of_the_work": 1}


def a_lost_answer_then_the_repeat(world):
    """the same answer, one row, one download"""
    world.faults("/wechat", {"disconnect": True})
    push = send(world.sandbox)
    assert [attempt["verdict"] for attempt in push["attempts"]] == ["refused", "reply"]
    world.row(push, state="stored")
    assert len(entries(world.bot, push)) == 1
    return {"deliveries": 2, "rows": 1}


def two_repeats_in_parallel(world):
    """the same answer, one row"""
    push = send(world.sandbox, attempts="3", force="true", together="true")
    assert len({attempt["opened"] for attempt in push["attempts"]}) == 1
    world.row(push, state="stored")
    assert len(entries(world.bot, push)) == 1
    return {"deliveries": 3, "different_answers": 0}


def a_token_killed_by_another_fetcher(world):
    """one fetch, no picture lost"""
    world.picture()
    before = world.fetches()
    world.token_needed()
    for _ in range(3):
        world.picture()
    assert world.fetches() - before == Counter(ok=1)
    return {"pictures": 3, "fetches": 1}


def a_stable_token_in_its_last_five_minutes(world):
    """the old token serves until it ends, then one fetch"""
    world.token_needed()
    world.picture()
    before = world.fetches()
    control(world.sandbox, "clock", {"advance": 7100}, "POST")
    account = THROWAWAY
    body = {"grant_type": "client_credential", "appid": account.appid, "secret": account.appsecret}
    other = requests.post(f"{world.sandbox.url}{STABLE_TOKEN}", json=body, timeout=5).json()
    assert other["expires_in"] > 7000, "another program has the next token already"
    world.picture()
    assert (world.fetches() - before)["ok"] == 1, "that other program's"
    control(world.sandbox, "clock", {"advance": 400}, "POST")
    world.picture()
    assert (world.fetches() - before)["ok"] == 2
    return {"pictures": 2, "fetches": 1}


def a_whitelist_with_a_changing_ip(world):
    """tried again, the reason and the IP visible"""
    world.token_needed()
    world.faults(
        STABLE_TOKEN,
        *(
            {"errcode": 40164, "errmsg": f"invalid ip 203.0.113.{n}, not in whitelist rid: 6666-{n}"}
            for n in range(world.times)
        ),
    )
    world.picture()
    assert f"203.0.113.{world.times - 1}" in world.bot.logs()
    return {"refusals": world.times, "pictures_lost": 0}


def a_refusal_until_the_operator_confirms(world):
    """tried again with a back-off (89503)"""
    world.token_needed()
    world.faults(STABLE_TOKEN, {"errcode": 89503})
    world.picture()
    return {"refusals": 1, "pictures_lost": 0}


def a_busy_system(world):
    """-1, then stored"""
    world.faults(MEDIA_GET, *[{"errcode": -1}] * world.times)
    entry = world.picture()
    return {"attempts_counted": entry.media_attempts, "pictures_lost": 0}


def a_quota_that_is_used_up(world):
    """45009: the reason visible while it waits, then stored"""
    world.faults(MEDIA_GET, {"errcode": 45009})
    push = send(world.sandbox)

    def reason():
        (entry,) = entries(world.bot, push)
        return entry if entry.media_code == 45009 else None

    assert eventually(reason, what="the reason").media_state == "pending"
    world.row(push, state="stored")
    return {"pictures_lost": 0}


def a_used_up_allowance_of_messages(world):
    """45015, 45047: recorded with the code, sent to nobody, not repeated"""
    for code in (45015, 45047)[: world.times]:
        world.faults("/cgi-bin/message/custom/send", {"errcode": code})
        push = world.text(f"slow 1.3 too late {code}")
        assert world.row(push, "send").send_code == code
    shown = [one["content"] for one in chat(world.sandbox) if one["by"] == "custom"]
    assert not [words for words in shown if words.startswith("too late")]
    return {"refusals_recorded": world.times, "messages_sent": 0}


def expired_media(world):
    """failed at once, with the platform's code"""
    world.faults(MEDIA_GET, {"errcode": 40007})
    entry = world.row(send(world.sandbox))
    assert (entry.media_code, entry.media_attempts, entry.media_key) == (40007, 1, None)
    return {"attempts": 1, "code": 40007}


def an_error_as_text_plain(world):
    """never stored as a picture"""
    world.faults(MEDIA_GET, {"errcode": 40007, "content_type": "text/plain"})
    assert world.row(send(world.sandbox)).media_code == 40007
    return {"files_of_json": 0}


def an_errmsg_with_rid(world):
    """the rid is kept for the platform's support"""
    world.faults(MEDIA_GET, {"errcode": 40007, "errmsg": "invalid media_id rid: 65f0-1a2b-3c"})
    assert "rid: 65f0-1a2b-3c" in world.row(send(world.sandbox)).media_reason
    return {"rid": "recorded"}


def a_video_behind_a_video_url(world):
    """fetched without the token, stored whole"""
    video = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + os.urandom(30_000)
    entry = world.picture(data=video, type="video")
    assert entry.media_sha256 == hashlib.sha256(video).hexdigest()
    return {"videos": 1}


def a_page_from_a_gateway(world):
    """502 with HTML is no picture"""
    world.faults(MEDIA_GET, {"status": 502, "body": "<html>Bad Gateway</html>"})
    world.picture()
    return {"pages_stored": 0}


def a_body_that_breaks_off(world):
    """tried again, nothing half left"""
    world.faults(MEDIA_GET, *[{"truncate": 20_000, "delay": 0.3}, {"disconnect": True}][: world.times])
    world.picture()
    assert not list((world.bot.folder / "media" / ".tmp").iterdir())
    return {"half_files": 0}


def one_host_down(world):
    """all of these cases ran over the second host"""
    world.picture()
    return {"pictures_lost": 0}


def kinds_that_nobody_knows(world):
    """success, and kept"""
    for elements in (
        {"MsgType": "hologram", "MsgId": next(NUMBERS)},
        {"MsgType": "event", "Event": "a_new_one", "EventKey": "x"},
    ):
        before = world.rows()
        answer = post(world.bot, pushing.safe(pushing.message(**elements)))
        assert (answer.status_code, answer.content) == (200, b"success")
        assert world.rows() == before + 1
    return {"kinds": 2, "rows": 2}


def msg_ids_beyond_53_bits(world):
    """told apart"""
    numbers = [2**53, 2**53 + 1, 2**63, 2**64 - 1]
    for number in numbers:
        assert (
            said(post(world.bot, pushing.safe(pushing.text(number, f"id {number}"))).content)
            == f"id {number}"
        )
    for number in numbers:
        (entry,) = world.everything.ledger.find_by_msg_id(number)
        assert f"id {number}".encode() in entry.xml
    return {"messages": len(numbers), "rows": len(numbers)}


def strange_words(world):
    """echoed as they were"""
    words = ["a]]>b", "&lt;b&gt; &amp;", "🐼👩‍👩‍👧‍👦", "<xml>", "行\n行"]
    for each in words:
        content = each.replace("]]>", "]]]]><![CDATA[>")
        assert said(post(world.bot, pushing.safe(pushing.text(next(NUMBERS), content))).content) == each
    return {"texts": len(words), "changed": 0}


def a_rotation_of_the_aes_key(world):
    """the old key still opens and seals"""
    old = Envelope(OTHER_KEY, THROWAWAY.appid)
    answer = post(world.bot, pushing.safe(pushing.text(next(NUMBERS), "old key"), envelope=old))
    assert b"old key" in opened(answer.content, old)
    return {"answered_with_the_key_that_opened": 1}


def another_appid_in_the_envelope(world):
    """403, no row"""
    other, before = Envelope(THROWAWAY.aes_key, "wx0000000000000000"), world.rows()
    answer = post(world.bot, pushing.safe(pushing.text(next(NUMBERS)), envelope=other))
    assert (answer.status_code, answer.content) == (403, b"")
    assert world.rows() == before
    return {"rows": 0}


def every_length_of_padding(world):
    """1 to 32 bytes of padding, both ways"""
    for length in range(1, 33):
        words = "x" * length
        assert said(post(world.bot, pushing.safe(pushing.text(next(NUMBERS), words))).content) == words
    return {"lengths": 32}


CASES = [
    a_lost_answer_while_the_work_goes_on,
    a_lost_answer_then_the_repeat,
    two_repeats_in_parallel,
    a_token_killed_by_another_fetcher,
    a_stable_token_in_its_last_five_minutes,
    a_whitelist_with_a_changing_ip,
    a_refusal_until_the_operator_confirms,
    a_busy_system,
    a_quota_that_is_used_up,
    a_used_up_allowance_of_messages,
    expired_media,
    an_error_as_text_plain,
    an_errmsg_with_rid,
    a_video_behind_a_video_url,
    a_page_from_a_gateway,
    a_body_that_breaks_off,
    one_host_down,
    kinds_that_nobody_knows,
    msg_ids_beyond_53_bits,
    strange_words,
    a_rotation_of_the_aes_key,
    another_appid_in_the_envelope,
    every_length_of_padding,
]


@pytest.mark.xdist_group("world")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_fault_of_the_platform(world, case, counted):
    control(world.sandbox, "faults", [])
    counted(case.__name__, case.__doc__, **case(world))
    assert "Traceback" not in world.bot.logs()


# -- the disk, the database and the clock -----------------------------------------------------------------------


@contextlib.contextmanager
def mounted(folder, size):
    """A small file system of its own on `folder`; where it may not be mounted the test is skipped."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "none", folder],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_the_disk_of_the_ledger_is_full(make_loaded, tmp_path, counted):
    with mounted(tmp_path / "disk", "6m") as disk:
        bot, everything = make_loaded(DATABASE_URL=f"sqlite:///{disk}/bot.db")
        bot.web()
        before = Load(bot, 10)
        before.run()
        eventually(lambda: status(everything).stored == 10, what="the downloads")
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        during = [pushing.safe(pushing.text(next(NUMBERS), f"question {n}")) for n in range(8)]
        with ThreadPoolExecutor(8) as pool:
            refused = list(pool.map(functools.partial(post, bot), during))
            assert {answer.status_code for answer in refused} <= {200, 503}
            kept = [answer.status_code for answer in refused].count(200)  # what was left of a page
            assert kept < len(during)
            assert "free some disk space" in bot.logs()
            assert "holds the write lock" not in bot.logs(), "they were in each other's way"
            filler.unlink()
            again = list(pool.map(functools.partial(post, bot), during))
        assert [answer.status_code for answer in again] == [200] * len(during)
        rows = everything.database.run(
            lambda connection: connection.exec_driver_sql("SELECT count(*) FROM messages").scalar()
        )
        assert rows == 10 + len(during)
        figures = before.check(everything)
        counted(
            "disk of the ledger full",
            "503 after the platform's 5 s, the repeat is answered as soon as there is room",
            answered_503=len(during) - kept,
            answered_later=len(during),
            downloads_lost=figures["downloads_lost"],
        )
        bot.processes[0].kill()
        everything.database.close()


def test_the_disk_of_temporary_files_is_full(make_loaded, tmp_path):
    """The counters lie there. A running process goes on counting, and one that starts answers."""
    with mounted(tmp_path / "disk", "2m") as disk:
        bot, _ = make_loaded(TMPDIR=str(disk), WORKER="external")
        web = bot.web()
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        children = psutil.Process(web.pid).children()
        for event in range(40):  # each type is one more counter
            answer = post(bot, pushing.plain(pushing.message(MsgType="event", Event=f"unheard_of_{event}")))
            assert answer.status_code == 200
        assert psutil.Process(web.pid).children() == children
        for child in children:
            child.kill()
        psutil.wait_procs(children)
        assert post(bot, pushing.plain(pushing.text(next(NUMBERS)))).status_code == 200
        assert "this process counts for itself until it is started again" in bot.logs()
        assert not [path for path in disk.rglob("*.db") if path.stat().st_size == 0]
        assert web.stop() == 0


def test_the_disk_of_the_media_is_full(make_loaded, platform, counted):
    """A process that may not write more than a megabyte into a file has a disk that is full for a larger picture."""
    bot, everything = make_loaded()
    web = bot.web()
    big = HEAD + os.urandom(2 * 1024 * 1024)
    platform.on(MEDIA_GET, reply(big, content_type="image/jpeg"))
    (process,) = psutil.Process(web.pid).children()
    _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1024 * 1024, hard))
    number = next(NUMBERS)
    assert post(bot, pushing.plain(pushing.image(number))).status_code == 200

    def entry():
        (found,) = everything.ledger.find_by_msg_id(number)
        return found

    eventually(lambda: "MEDIA_STORE: " in (entry().media_reason or ""), what="the reason")
    assert entry().media_state == "pending"
    assert not [path for path in files(bot) if path.parent.name != ".tmp"]
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    eventually(lambda: entry().media_state == "stored", what="the download")
    (path,) = files(bot)
    assert path.read_bytes() == big
    counted(
        "disk of the media full in the middle of a file",
        "nothing half left, the reason visible, tried again",
        attempts=entry().media_attempts,
        pictures_lost=0,
        broken_files=0,
    )


def test_another_process_locks_the_database(make_loaded, full, tmp_path, counted):
    seconds, count = (20, 200) if full else (2, 40)
    bot, everything = make_loaded(WEB_CONCURRENCY="2")
    bot.web()
    everything.database.prepare()
    other = sqlite3.connect(tmp_path / "bot.db", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(seconds, other.rollback)
    release.start()
    load = Load(bot, count)
    took = load.run()
    release.join()
    other.close()
    assert took >= seconds
    figures = load.check(everything)
    counted(
        f"database locked for {seconds} s",
        "pushes wait, past 5 s they get 503 and are repeated",
        **figures,
    )


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_the_database_is_read_only(make_loaded, tmp_path, counted, long_run, end):
    with mounted(tmp_path / "disk", "16m") as disk:
        bot, everything = make_loaded(DATABASE_URL=f"sqlite:///{disk}/bot.db")
        web = bot.web()
        first = pushing.safe(pushing.text(next(NUMBERS), "before"))
        assert post(bot, first).status_code == 200
        everything.database.close()
        if end == "stopped":
            assert web.stop() == 0
        else:
            web.kill()
        assert (disk / "bot.db-wal").exists() is (end == "killed"), "a log is left only by who had no time"
        # The killed one's children close what they had open a moment after it.
        eventually(
            lambda: subprocess.run(["mount", "-o", "remount,ro", disk]).returncode == 0, what="the remount"
        )
        bot.web()
        push = pushing.safe(pushing.image(next(NUMBERS), media_id="m"))
        started = time.monotonic()
        refused = post(bot, push)
        assert (refused.status_code, refused.content) == (503, b"")
        assert time.monotonic() - started > 5
        eventually(lambda: "writable" in bot.logs(), what="the reason")
        ready = requests.get(f"{bot.url}/readyz", timeout=30)
        assert (ready.status_code, ready.json()["ready"]) == (503, False)
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        assert post(bot, push).status_code == 200
        eventually(lambda: status(everything).stored == 1, what="the download")
        counted(
            "database file read-only",
            "503, /readyz says why, and all goes on by itself once it can be written",
            answered_503=1,
            answered_later=1,
            pictures_lost=0,
        )
        bot.processes[-1].kill()
        everything.database.close()


# Loaded by every Python process that starts with this folder on its path: time.time() goes wrong by what a file says.
WRONG_CLOCK = """
import time
_true = time.time
def _wrong():
    with open({path!r}) as file:
        return _true() + float(file.read())
time.time = _wrong
"""


def test_the_clock_jumps(make_loaded, platform, tmp_path, full, counted):
    jumps = [86_400, 0, -86_400, 0, 172_800, 7_200, -7_200, 0] if full else [86_400, 0, -7_200]
    offset = tmp_path / "offset"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WRONG_CLOCK.format(path=str(offset)))

    def set_clock(seconds):
        new = tmp_path / "offset.new"
        new.write_text(str(seconds))
        new.replace(offset)

    set_clock(0)
    bot, everything = make_loaded(WECHAT_TIMESTAMP_WINDOW="0", WEB_CONCURRENCY="2")
    bot.environ["PYTHONPATH"] = str(tmp_path / "site")
    bot.web()
    bot.worker()
    load = Load(bot, 40 * len(jumps))
    pushing_now = threading.Thread(target=load.run, kwargs={"rate": 40})
    pushing_now.start()
    for number, jump in enumerate(jumps):
        eventually(lambda: len(load.answers) > number * 40 + 10, what="some answers")  # noqa: B023
        set_clock(jump)
        bot.processes[-1].kill()  # a claim of this moment must not be held for a day
        bot.worker()
    pushing_now.join()
    figures = load.check(everything, 60)
    fetches = len(platform.calls(STABLE_TOKEN))
    assert fetches <= 2 * len(jumps) + 1
    counted(
        f"clock jumps to {', '.join(f'{jump / 3600:+g} h' for jump in jumps)}, a worker killed at each",
        "nothing lost, nothing twice, no storm of token fetches",
        jumps=len(jumps),
        token_fetches=fetches,
        **figures,
    )


def test_pushes_while_the_clock_is_wrong_name_the_setting(make_loaded, tmp_path, counted):
    bot, _ = make_loaded()
    bot.web()
    push = pushing.safe(pushing.text(next(NUMBERS)), timestamp=int(time.time()) + 7200)
    assert post(bot, push).status_code == 403
    assert re.search(
        "7(199|200|201).*WECHAT_TIMESTAMP_WINDOW|WECHAT_TIMESTAMP_WINDOW.*7(199|200|201)", bot.logs()
    )
    counted("a clock two hours wrong", "refused, the log names seconds and setting", rows=0)


# -- the network, repeats and order -----------------------------------------------------------------------------


GZIP_BOMB = b"\x1f\x8b\x08\x00" + bytes(50)
GARBAGE = {
    "random bytes": raw(random.Random(1).randbytes(3000)),
    "nothing at all": raw(b""),
    "HTTP 999": reply(b"?", status=999),
    "HTTP without a length, cut off": raw(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Le"),
    "a thousand headers": reply(b"x", headers={f"X-{number}": "y" for number in range(1000)}),
    "a header of 100 kB": reply(b"x", headers={"X-Long": "y" * 100_000}),
    "a length that is no number": raw(b"HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\n0123456789"),
    "a length that is too long": reply(HEAD, content_type="image/jpeg", length=5000),
    "broken chunks": raw(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: image/jpeg\r\n\r\nZZZ\r\nabc"
    ),
    "broken gzip": reply(GZIP_BOMB, content_type="image/jpeg", headers={"Content-Encoding": "gzip"}),
    "an empty picture": reply(b"", content_type="image/jpeg"),
    "JSON that is no object": reply(b"[1, 2", content_type="application/json"),
    "JSON nested 100,000 deep": reply(b'{"a":' * 100_000, content_type="application/json"),
    "an errcode that is text": reply({"errcode": "minus one", "errmsg": 7}),
    "a page": reply("<!DOCTYPE html><h1>hello</h1>", content_type="text/html"),
}


def test_the_platform_answers_garbage(make_loaded, platform, full, counted):
    """Each kind once (many times with --full) instead of a picture, and all of them instead of a token."""
    rounds = 10 if full else 1
    served = Counter()
    kinds = list(GARBAGE) * rounds
    waiting = dict(zip((f"media-{number}" for number in itertools.count()), kinds, strict=False))

    def answer(sock, asked):
        kind = waiting.pop(asked.query["media_id"], None)
        if kind is None:
            return send_picture(sock, asked)
        served[kind] += 1
        return GARBAGE[kind](sock, asked)

    platform.on(MEDIA_GET, answer)
    tokens = ["random bytes", "nothing at all", "a page", "JSON that is no object"][: 4 if full else 1]
    platform.on(
        STABLE_TOKEN,
        *[GARBAGE[kind] for kind in tokens],
        {"access_token": "a-token-of-this-test", "expires_in": 7200},
    )
    bot, everything = make_loaded()
    load = Load(bot, len(kinds))
    waiting = dict(zip((f"media-{number}" for number in load.pushes), kinds, strict=True))
    bot.web()
    load.run()
    figures = load.check(everything)
    assert served == dict.fromkeys(GARBAGE, rounds)
    assert "Traceback" not in bot.logs()
    counted(
        "the platform answers garbage",
        "every kind is tried again, none is stored as a picture",
        kinds=len(GARBAGE),
        garbage_answers=served.total() + len(tokens),
        **figures,
    )


@pytest.mark.timeout(300)
def test_slow_and_half_open_connections_to_the_platform(make_loaded, platform, counted, long_run):
    """A server that says nothing, or a byte now and then, delays its own pictures and nobody else's."""
    slow = 9
    head = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: 5000\r\n\r\n"
    kinds = itertools.cycle([hang(), hang(head + HEAD), drip(b"HTTP/1.1 200 OK\r\n", 1.0)])
    waiting = {}

    def answer(sock, asked):
        return waiting.pop(asked.query["media_id"], send_picture)(sock, asked)

    platform.on(MEDIA_GET, answer)
    bot, everything = make_loaded()
    bot.web()
    stuck, others = Load(bot, slow, twice=0), Load(bot, 20, twice=0)
    waiting.update((f"media-{number}", next(kinds)) for number in stuck.pushes)
    stuck.run()
    eventually(lambda: not waiting, 60, "slow downloads")
    started = time.monotonic()
    others.run()
    eventually(lambda: status(everything).pending <= slow, 30, "the others' downloads")
    seconds = time.monotonic() - started
    eventually(lambda: status(everything).pending == 0, 60, "all downloads")
    assert status(everything).stored == slow + 20
    counted(
        "slow and half-open connections to the platform",
        "given up after 5 s of silence or 8 s for headers, tried again",
        slow_connections=slow,
        other_pictures=20,
        seconds_for_the_others=round(seconds, 1),
        pictures_lost=status(everything).failed,
    )


def test_ten_thousand_duplicates(make_loaded, full, counted, platform):
    """One message, again and again, to several processes at once."""
    count = 10_000 if full else 300
    bot, everything = make_loaded(WEB_CONCURRENCY="2")
    bot.web()
    load = Load(bot, 1, twice=0)
    load.order *= count
    seconds = load.run()
    figures = load.check(everything)
    downloads = len(platform.calls(MEDIA_GET))
    assert downloads == 1
    figures["pushes"] = 1
    counted(
        "duplicates of one message",
        "one row, one answer, one download",
        **figures,
        downloads=downloads,
        seconds=round(seconds),
    )


def test_pushes_out_of_order(make_loaded, full, counted):
    """Messages of few fans, shuffled, some days old, each of them twice."""
    count = 3000 if full else 100
    bot, everything = make_loaded(WEB_CONCURRENCY="2")
    bot.web()
    load = Load(bot, count, fans=5, twice=0)
    load.order = random.sample(load.order * 2, 2 * count)
    old = {number: int(time.time()) - random.randrange(2 * 86_400) for number in load.pushes}
    load.xml = lambda number: pushing.image(
        number, fan=load.pushes[number], media_id=f"media-{number}", create_time=old[number]
    )
    load.run()
    figures = load.check(everything)
    counted("pushes out of order, each twice", "each its own row and answer", **figures)


# -- what falls silent, is taken away, runs out or is held by others ----------------------------------------------


def ready(bot):
    return requests.get(f"{bot.url}/readyz", timeout=30)


def answered(bot, timeout=30):
    """The status of a new push's answer."""
    return post(
        bot, pushing.safe(pushing.image(number := next(NUMBERS), media_id=f"media-{number}")), timeout
    ).status_code


@pytest.mark.timeout(300)
def test_the_connections_to_postgresql_fall_silent(make_loaded, postgresql_url, full, counted):
    """All that are open, at once and again; TCP goes on, and new ones are answered."""
    times, count = (5, 100) if full else (1, 20)
    proxy = Proxy(postgresql_url)
    try:
        bot, everything = make_loaded(DATABASE_URL=proxy.url, WEB_CONCURRENCY="2")
        web = bot.web()
        figures = Counter()
        for _ in range(times):
            load = Load(bot, count)
            proxy.fall_silent()
            figures.update({"seconds": round(load.run())})
            figures.update(load.check(everything, 60))
        proxy.fall_silent()
        started = time.monotonic()
        assert web.stop() == 0
        stopped_after = time.monotonic() - started
        assert stopped_after < 25
    finally:
        everything.database.close()
        proxy.close()
    counted(
        "every connection to PostgreSQL falls silent while TCP lives",
        "statements end, pushes and downloads go on over new connections, SIGTERM is heard",
        times=times,
        **figures,
        seconds_to_stop=round(stopped_after, 1),
    )


class Servers:
    """A PostgreSQL primary and its standby. The bot is told of both, and never which is which."""

    def __init__(self, *, synchronous):
        self.primary = PostgreSQL()
        url = self.primary.new_migrated()
        self.standby = PostgreSQL(standby_of=self.primary)
        hosts = [quote(server.host, safe="") for server in (self.primary, self.standby)]
        self.url = f"postgresql://postgres@{','.join(hosts)}{urlsplit(url).path}"
        set_on(self.primary, synchronous_standby_names="*" if synchronous else "")
        self._follows = "sync" if synchronous else "async"
        self.until_standby_is(self._follows)

    def until_standby_is(self, state):
        """`sync` or `async`; None: it does not follow."""
        look = "SELECT max(sync_state) FROM pg_stat_replication WHERE state = 'streaming'"
        with self.primary.connection() as connection:
            eventually(lambda: connection.execute(look).fetchone() == (state,), what=str(state))

    @contextlib.contextmanager
    def apart(self):
        """Both are there, and the standby is sent nothing."""
        with self.standby.connection() as connection:
            (told,) = connection.execute("SHOW primary_conninfo").fetchone()
        set_on(self.standby, primary_conninfo="")
        self.until_standby_is(None)
        yield
        if self.primary.runs() and self.standby.runs():  # no failover meanwhile
            set_on(self.standby, primary_conninfo=told)
            self.until_standby_is(self._follows)

    def promote(self):
        """What somebody does when the primary is gone: the standby takes its place, and waits for no other."""
        set_on(self.standby, synchronous_standby_names="")
        self.standby.promote()
        self.primary, self.standby = self.standby, self.primary

    def close(self):
        for server in (self.standby, self.primary):
            server.close()


def set_on(server, **settings):
    with server.connection() as connection:
        for name, value in settings.items():
            connection.execute(
                sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value))
            )
        connection.execute("SELECT pg_reload_conf()")


@contextlib.contextmanager
def replicated(make_loaded, pushes, *, synchronous):
    """Two servers, what is stored there, and a load for a bot upon them."""
    with contextlib.closing(Servers(synchronous=synchronous)) as servers:
        bot, everything = make_loaded(DATABASE_URL=servers.url, WEB_CONCURRENCY="2")
        web = bot.web()
        yield servers, everything, Load(bot, pushes)
        assert web.stop() == 0


@contextlib.contextmanager
def under(load, rate):
    """The load runs meanwhile, to its end; it is broken off when what is done meanwhile fails."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(load.run, rate=rate)
        try:
            yield
        except BaseException:
            load.broken_off = True
            raise
        done.result()


def more_answers(load, count):
    """Waits for so many more than there are now; returns the seconds."""
    started, so_far = time.monotonic(), len(load.answers)
    eventually(lambda: len(load.answers) >= so_far + count, 60, f"{count} more answers")
    return time.monotonic() - started


def fail_over(servers, load):
    """Returns the seconds until somebody promoted the standby, and from then to an answer."""
    started = time.monotonic()
    servers.primary.kill()
    eventually(lambda before=load.unanswered: load.unanswered > before, what="a push without an answer")
    servers.promote()
    return {
        "seconds_until_the_standby_was_promoted": round(time.monotonic() - started, 1),
        "seconds_from_then_to_an_answer": round(more_answers(load, 1), 2),
    }


@pytest.mark.timeout(300)
def test_a_synchronous_standby_takes_over(long_run, make_loaded, counted):
    """Under load the standby is away for a time; then the primary is, for ever."""
    with replicated(make_loaded, 1000, synchronous=True) as (servers, everything, load):
        with under(load, rate=100):
            more_answers(load, 100)
            with servers.apart():
                answered = len(load.answers)
                eventually(lambda: load.unanswered > 30, what="pushes without an answer")
                answered = len(load.answers) - answered
            assert answered <= THREADS, "only what was on its way"
            more_answers(load, 100)
            figures = fail_over(servers, load)
        figures |= load.check(everything)
    counted(
        "PostgreSQL's synchronous standby is away; then the primary is killed, the standby promoted",
        "nothing is answered that is not on both; all is answered once there is a primary; 0 lost",
        answered_without_a_standby=answered,
        **figures,
    )


@pytest.mark.timeout(300)
@pytest.mark.parametrize("behind", [False, True], ids=["that_follows", "that_is_behind"])
def test_an_asynchronous_standby_takes_over(long_run, make_loaded, behind, counted):
    """What was answered and is lost is counted: PostgreSQL promises nothing here."""
    with replicated(make_loaded, 500, synchronous=False) as (servers, everything, load):
        with under(load, rate=100):
            more_answers(load, 100)
            with servers.apart() if behind else contextlib.nullcontext():
                more_answers(load, 50)
                figures = fail_over(servers, load)
        figures |= load.count_up(everything)
    kept = ("pushes", "answered_without_a_row", "with_two_rows", "downloads_lost")
    figures = {name: figure for name, figure in figures.items() if "seconds" in name or name in kept}
    assert figures["with_two_rows"] == figures["downloads_lost"] == 0
    assert figures["answered_without_a_row"] > 0 or not behind
    counted(
        f"PostgreSQL's primary is killed, its asynchronous standby{' (sent nothing for a time)' * behind} promoted",
        "the bot goes on; what the standby did not have is lost",
        **figures,
    )


@pytest.mark.parametrize("how", ["deleted", "replaced", "robbed of its log"])
def test_the_database_file_is_taken_away(make_loaded, tmp_path, counted, how):
    bot, everything = make_loaded()
    bot.web()
    assert answered(bot) == 200
    everything.database.close()
    names = [tmp_path / f"bot.db{end}" for end in ("", "-wal", "-shm")]
    started = time.monotonic()
    if how == "deleted":
        for name in names:
            name.unlink(missing_ok=True)
    elif how == "robbed of its log":
        for name in names[1:]:
            name.unlink()
    else:  # a backup is restored while a process has the file open
        copy = tmp_path / "copy.db"
        copy.write_bytes(names[0].read_bytes())
        copy.replace(names[0])
    eventually(lambda: ready(bot).status_code == 503, 10, "what /readyz says")
    noticed_after = time.monotonic() - started
    into_nothing = [answered(bot) for _ in range(3)].count(200)
    assert into_nothing == 0
    assert "DATABASE_URL" in bot.logs()
    counted(
        f"the database file is {how} under a running bot",
        "503 and /readyz within seconds, nothing is answered into a file that is gone",
        noticed_after_seconds=round(noticed_after, 1),
        answered_into_nothing=into_nothing,
    )


@pytest.mark.parametrize("limit", [200, 700])
def test_more_connections_than_file_descriptors(make_loaded, counted, limit):
    """The web process raises its soft limit to the hard one, and takes no more connections than it can serve."""
    bot, everything = make_loaded()
    command = ["sh", "-c", f'ulimit -Sn 100; ulimit -Hn {limit}; exec "$0" "$@"', sys.executable]
    web = bot.run([*command, "-m", "gunicorn", "-c", "gunicorn.conf.py", bot.app], "gunicorn")
    bot.answers(web)
    (child,) = psutil.Process(web.pid).children()
    with contextlib.ExitStack() as idle:
        for _ in range(limit + 100):
            with contextlib.suppress(OSError):
                idle.enter_context(socket.create_connection(("127.0.0.1", bot.settings.port), timeout=1))
        # gunicorn.conf.py leaves the rest to the ledger and the downloads.
        taken = limit - min(256, limit // 2)
        eventually(lambda: psutil.Process(child.pid).num_fds() >= taken, what="no room")
    eventually(lambda: answered(bot, 5) == 200, what="an answer")
    assert [each.pid for each in psutil.Process(web.pid).children()] == [child.pid]
    assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE) == (limit, limit)
    assert "Traceback" not in bot.logs()
    eventually(lambda: status(everything).pending == 0, what="the download")
    counted(
        f"{limit + 100} idle connections, {limit} file descriptors",
        "no process and no thread dies, and pushes are answered once there is room",
        processes_that_died=0,
        pictures_lost=status(everything).failed,
    )


def test_others_hold_a_lock_on_the_data_folder(make_loaded, tmp_path, counted):
    bot, everything = make_loaded(DATABASE_URL=f"sqlite:///{tmp_path}/data/bot.db")
    (tmp_path / "data").mkdir(mode=0o700)
    handle = os.open(tmp_path / "data", os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        bot.web()
        load = Load(bot, 20)
        load.run()
        figures = load.check(everything)
    finally:
        os.close(handle)
    counted("another user's flock on the data folder", "pushes go on", **figures)


# -- a slow handler, and a process that dies over it ------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("late", ["customer_service", "redelivery"])
def test_a_slow_handler_whose_process_is_killed(make_bot, sandbox, late, full, counted):
    """Three deliveries, four processes, one of them killed while it works: one right answer, and nobody else waits."""
    if not full and late == "redelivery":
        pytest.skip("with --full: make faults; tests/test_deferred.py has it with one process")
    seconds, fans = (12, 8) if full else (2, 3)
    bot = make_bot(
        sandbox,
        WEB_CONCURRENCY="4",
        LATE_REPLY=late,
        LEASE_SECONDS="2",
        REPLY_SECONDS="4.5" if full else "1",
    )
    bot.app = "tests.slow_app:create_app()"
    runs = bot.folder / "runs"
    runs.touch()
    bot.environ["RUNS"] = str(runs)
    bot.web()
    done = threading.Event()

    def push(fan, content, msg_id=None, **fields):
        url = f"{sandbox.url}/sandbox/fans/{fan}/messages"
        body = {"type": "text", "content": content, "msg_id": msg_id or next(NUMBERS), **fields}
        return requests.post(url, json=body, timeout=120).json()

    def slow(fan):
        """Three deliveries whatever comes; in `redelivery` the fan then asks until the answer is there."""
        content = f"slow {seconds} the answer for {fan}"
        push(fan, content)
        if late == "redelivery":
            eventually(lambda: had(fan) or (push(fan, "and now?") and had(fan)), 60, "the answer")

    def had(fan):
        shown = [one["content"] for one in chat(sandbox, fan) if one["from"] == "account"]
        return shown.count(f"the answer for {fan}")

    def others(enough):
        """The seconds that each quick push took, sorted."""
        session, taken = requests.Session(), []
        while not enough(taken):
            path, body = pushing.safe(pushing.text(next(NUMBERS), "quick"))
            started = time.perf_counter()
            # To the killed process, perhaps in the middle of its answer: the platform repeats it.
            with contextlib.suppress(requests.ConnectionError, ChunkedEncodingError):
                assert session.post(f"{bot.url}{path}", data=body, timeout=30).status_code == 200
                taken.append(time.perf_counter() - started)
            time.sleep(0.01)  # a light load
        return sorted(taken)

    def p99(taken):
        return taken[int(len(taken) * 0.99)]

    before = others(lambda taken: len(taken) >= (500 if full else 20))
    names = [f"oTest-Slow{number:018d}" for number in range(fans)]
    meanwhile = []
    quick = threading.Thread(target=lambda: meanwhile.extend(others(lambda taken: done.is_set())))
    threads = [threading.Thread(target=slow, args=(name,)) for name in names]
    for thread in (quick, *threads):
        thread.start()
    eventually(lambda: len(runs.read_text().splitlines()) == fans, what="the work")
    os.kill(int((bot.folder / "runs.pids").read_text().split()[0]), signal.SIGKILL)
    for thread in threads:
        thread.join()
    eventually(lambda: all(map(had, names)), 60, "all answers")
    done.set()
    quick.join()
    ledger = parts.build(bot.settings).of[""].ledger
    eventually(lambda: ledger.status(time.time()).replies_pending == 0, what="the end of all work")
    assert [had(name) for name in names] == [1] * fans
    begun = len(runs.read_text().splitlines())
    assert begun > fans, "the killed process had work in hand, and another one began it again"
    if full:
        assert p99(meanwhile) < 0.1, f"{p99(before):.3f} s before"
    counted(
        f"a {seconds} s handler, one of four processes killed, LATE_REPLY={late}",
        "each fan one right answer, the others wait under 100 ms (p99)",
        slow_fans=fans,
        answers=sum(map(had, names)),
        times_the_work_was_begun=begun,
        other_pushes=len(meanwhile),
        ms_median=round(meanwhile[len(meanwhile) // 2] * 1000, 1),
        ms_p99=round(p99(meanwhile) * 1000, 1),
        ms_p99_before=round(p99(before) * 1000, 1),
    )
