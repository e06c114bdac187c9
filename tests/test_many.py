"""Many processes, both databases, S3: one token, no download lost or stored twice, whatever process is killed.

`make test` runs each with small counts, `make faults` (--full) with the counts that the promises name; then the figures
are in its table. Nothing here sleeps for luck: every wait has a condition and an end.
"""

import hashlib
import json
import random
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

import parts
from storage.tokens import SqlTokenStore
from tests import pushing as signed
from tests.conftest import clean_environ, eventually
from tests.prepared import Talking
from tests.test_flow import PHOTO, calls, control
from wechat.access_token import AccessToken
from wechat.client import ApiClient
from wechat.token_sources import StableTokenSource

pytestmark = pytest.mark.xdist_group("waits-3")

# Waits for a line, then makes 20 calls at once with the shared token; prints how many succeeded.
TWENTY_CALLS = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
import parts
from config import Settings
everything = parts.build(Settings.from_env(os.environ)).of[""]
everything.token.get()
print("ready", flush=True)
sys.stdin.readline()
def call(_):
    return everything.client.call("GET", "/cgi-bin/getcallbackip", repeatable=True)["ip_list"]
with ThreadPoolExecutor(20) as pool:
    print(len(list(pool.map(call, range(20)))), flush=True)
"""


@pytest.fixture
def bot(sandbox, make_bot, database_url):
    return make_bot(sandbox, DATABASE_URL=database_url)


def fetches(sandbox):
    return calls(sandbox, "/cgi-bin/stable_token")


def faults_left(sandbox):
    """What the sandbox has still in store; a fault is taken when its request has arrived whole."""
    so_far, stop = sandbox.state.listen(lambda name, facts: None)
    stop()
    return so_far["faults"]


def test_eight_cold_processes_make_one_fetch(sandbox, bot):
    shows = [bot.start("flask", "token", "show") for _ in range(8)]
    for show in shows:
        assert show.popen.wait(60) == 0, show.text()
    assert len({json.loads(show.text().splitlines()[-1])["access_token"] for show in shows}) == 1
    assert fetches(sandbox) == {"ok": 1}


def test_one_revocation_costs_four_processes_one_fetch(sqlite_unless_full, sandbox, bot):
    environ = {**clean_environ(), **bot.environ}
    command = [sys.executable, "-c", TWENTY_CALLS]
    processes = [Talking(command, environ) for _ in range(4)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    control(sandbox, "token/expire", {}, "POST")
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [process.communicate()[0] for process in processes] == ["20\n"] * 4
    assert fetches(sandbox) == {"ok": 2}
    assert calls(sandbox, "/cgi-bin/getcallbackip")["ok"] == 80


def test_a_holder_killed_in_the_middle_of_a_fetch_is_followed_within_the_lease(
    sqlite_unless_full, sandbox, bot, counted
):
    control(sandbox, "faults", [{"path": "/cgi-bin/stable_token", "times": 1, "delay": 60}])
    everything = parts.build(bot.settings).of[""]
    holder = bot.start("flask", "token", "show")
    store = SqlTokenStore(everything.database, bot.settings.wechat_appid)
    eventually(lambda: not store.lease("somebody else", time.time(), 0), what="the lease")
    eventually(lambda: not faults_left(sandbox), what="the fetch")
    holder.kill()
    started = time.monotonic()
    others = [bot.start("flask", "token", "show") for _ in range(2)]
    for other in others:
        assert other.popen.wait(60) == 0, other.text()
    seconds = time.monotonic() - started
    assert seconds < 20, "the lease is 15 s"
    assert fetches(sandbox).get("ok") == 1, "nobody loops"
    counted(
        "kill -9 in the middle of a token fetch",
        "another process fetches within the lease",
        took_over_after_seconds=round(seconds, 1),
    )


def test_ten_minutes_without_the_platform_around_a_renewal(sandbox, bot, counted):
    now = time.time()
    everything = parts.build(bot.settings).of[""]
    plain = ApiClient([sandbox.url], sleep=lambda seconds: None)
    account = sandbox.account
    token = AccessToken(
        SqlTokenStore(everything.database, account.appid),
        StableTokenSource(plain, account.appid, account.appsecret),
        clock=lambda: now,
    )
    client = plain.with_token(token)

    def advance(seconds):
        nonlocal now
        now += seconds
        control(sandbox, "clock", {"advance": seconds}, "POST")

    def call():
        return client.call("GET", "/cgi-bin/getcallbackip", repeatable=True)

    first = token.get()
    advance(7200 - 310)
    assert token.keep_fresh() > 0
    assert fetches(sandbox) == {"ok": 1}, "never earlier than 300 s before the end"
    control(
        sandbox, "faults", [{"path": "/cgi-bin/stable_token", "times": None, "status": 502, "body": "<html>"}]
    )
    down_until, made, failed_at = now + 600, 0, None
    while now < down_until:
        advance(max(token.keep_fresh(), 1.0))
        if now < down_until - 310:  # the old token lives
            call()
            made += 1
        failed_at = failed_at or (now if fetches(sandbox).get("HTTP 502") else None)
    assert made > 5
    assert failed_at is not None
    while_down = fetches(sandbox)["HTTP 502"]
    assert while_down < 60, "a back-off, not a storm"
    control(sandbox, "faults", [])
    for _ in range(5):
        advance(max(token.keep_fresh(), 1.0))
    assert token.get() != first
    call()
    assert fetches(sandbox)["ok"] == 2, "one renewal"
    counted(
        "ten minutes without the platform around a renewal",
        "no call fails, one renewal",
        calls_without_failure=made,
        attempts_while_down=while_down,
    )


def push_many(sandbox, count, threads=16):
    """`count` pictures from different fans; the sandbox's answers."""
    data = PHOTO.read_bytes()

    def one(number):
        # Each picture differs, so that a mixed-up file is noticed.
        picture = data + number.to_bytes(4, "big")
        url = f"{sandbox.url}/sandbox/fans/oTest-Many{number:018d}/messages"
        answer = requests.post(
            url, data={"type": "image"}, files={"file": ("p.jpg", picture)}, timeout=120
        ).json()
        return hashlib.sha256(picture).hexdigest(), answer

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(one, range(count)))


@pytest.mark.timeout(900)
def test_killed_workers_lose_nothing_on_postgresql_and_s3(
    sandbox, make_bot, postgresql_url, s3_url, full, counted
):
    count, seconds_between_kills, how_many = (2000, 3.0, 3) if full else (40, 1.0, 2)
    bot = make_bot(
        sandbox,
        DATABASE_URL=postgresql_url,
        MEDIA_STORE=s3_url,
        WORKER="external",
        WEB_CONCURRENCY="2",
        LEASE_SECONDS="2",
    )
    bot.web()
    workers = [bot.worker() for _ in range(how_many)]
    done = threading.Event()
    kills = 0

    def kill_now_and_then():
        nonlocal kills
        eventually(lambda: not faults_left(sandbox), what="the first download")
        while kills == 0 or not done.wait(seconds_between_kills):
            victim = random.randrange(how_many)
            workers[victim].kill()
            workers[victim] = bot.worker()
            kills += 1

    # The first worker is killed while a download goes on.
    control(sandbox, "faults", [{"path": "/cgi-bin/media/get", "times": 1, "delay": 2}])
    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    everything = parts.build(bot.settings).of[""]
    started = time.monotonic()
    try:
        pushed = push_many(sandbox, count)
        status = eventually(
            lambda: (s := everything.ledger.status(time.time())).pending == 0 and s,
            600 if full else 60,
            "all downloads",
        )
    finally:
        done.set()
        killer.join()
    seconds = time.monotonic() - started
    status = everything.ledger.status(0)
    assert (status.stored, status.failed) == (count, 0)
    for digest, push in pushed:
        assert push["attempts"][-1]["verdict"] == "reply"
        (entry,) = everything.ledger.find_by_msg_id(push["msg_id"])
        assert (entry.media_state, entry.media_sha256) == ("stored", digest)
    keys = [
        entry.media_key for _, push in pushed for entry in everything.ledger.find_by_msg_id(push["msg_id"])
    ]
    assert len(set(keys)) == count
    for key, (digest, _) in zip(keys, pushed, strict=True):
        with everything.files.open(key) as file:
            assert hashlib.sha256(file.read()).hexdigest() == digest
    marked = bot.logs().count("INFO worker: stored")
    assert marked <= count, "no download is reported as stored twice"
    downloads = calls(sandbox, "/cgi-bin/media/get")
    assert downloads["ok"] >= count
    assert kills > 0
    secrets = [
        everything.token.get(),
        sandbox.account.appsecret,
        sandbox.account.token,
        "a-secret-of-this-test",
    ]
    assert not [secret for secret in secrets if secret in bot.logs()]
    counted(
        "kill -9 of workers over PostgreSQL and S3",
        "every picture stored once and whole",
        pushes=count,
        kills=kills,
        stored=status.stored,
        downloads=downloads["ok"],
        seconds=round(seconds),
    )


@pytest.mark.timeout(300)
def test_postgresql_restarted_in_the_middle(sandbox, make_bot, postgresql, postgresql_url, full, counted):
    count = 300 if full else 30
    bot = make_bot(sandbox, DATABASE_URL=postgresql_url, LEASE_SECONDS="2")
    bot.web()
    kept = bot.ledger
    control(sandbox, "rules", {"deliveries": 6})
    answers = []
    pushing = threading.Thread(target=lambda: answers.extend(push_many(sandbox, count, threads=4)))
    pushing.start()
    eventually(lambda: kept.status(0).stored > count // 10, what="some pictures")
    postgresql.crash()
    down = time.monotonic()
    path, body = signed.safe(signed.image(999_999_999))  # a push of ours during the outage, to see its end
    answer = requests.post(f"{bot.url}{path}", data=body, timeout=30)
    waited = time.monotonic() - down
    assert (answer.status_code, answer.content) == (503, b"")
    assert waited > 5, "past the platform's time-out"
    postgresql.start()
    pushing.join()
    again = requests.post(f"{bot.url}{path}", data=body, timeout=30)
    assert again.status_code == 200
    assert b"Encrypt" in again.content
    eventually(lambda: kept.status(time.time()).stored >= count, 60, "all downloads")
    for digest, push in answers:
        assert push["attempts"][-1]["verdict"] == "reply", push["attempts"]
        (entry,) = kept.find_by_msg_id(push["msg_id"])
        assert entry.media_sha256 == digest
    retried = sum(len(push["attempts"]) > 1 for _, push in answers)
    counted(
        "PostgreSQL crashes and comes back",
        "pushes wait, past 5 s they get 503 and are repeated; nothing lost",
        pushes=count,
        repeated_by_the_platform=retried,
        answer_during_outage_after_seconds=round(waited, 1),
    )
