"""/healthz, /readyz and /metrics: what is told while all is well, and while something is away."""

import contextlib
import re
import shutil
import signal

import psutil
import pytest
import requests

from app import create_app
from config import Settings
from tests import pushing
from tests.conftest import ACCOUNT, eventually
from tests.databases import sqlite_url
from tests.test_flow import control, send, stored

pytestmark = pytest.mark.xdist_group("waits-3")

METRICS = {
    "wechat_deliveries_total",
    "wechat_duplicates_total",
    "wechat_refusals_total",
    "wechat_faults_total",
    "wechat_deadline_misses_total",
    "wechat_reply_seconds",
    "wechat_media",
    "wechat_queue_depth",
    "wechat_queue_oldest_seconds",
    "wechat_last_claim_seconds",
    "wechat_token_age_seconds",
    "wechat_token_fetches_total",
}


def scrape(bot):
    """{name with labels: value}"""
    answer = requests.get(f"{bot.url}/metrics", timeout=5)
    assert answer.status_code == 200
    found = re.findall(r"^(\w+(?:\{[^}]*\})?) (\S+)$", answer.text, re.M)
    return {name: float(value) for name, value in found}


def test_the_counters_of_all_processes_are_added_up(sandbox, make_bot):
    bot = make_bot(sandbox, WEB_CONCURRENCY="3")
    bot.web()
    for _ in range(12):
        push = send(sandbox)
    send(sandbox, msg_id=push["msg_id"])
    for _ in range(5):
        requests.post(f"{bot.url}/wechat?signature=x&timestamp=1&nonce=2", data=b"x", timeout=5)
    eventually(lambda: scrape(bot).get('wechat_media{state="stored"}') == 12, what="the downloads")
    for _ in range(4):  # whichever process answers
        seen = scrape(bot)
        assert seen['wechat_deliveries_total{type="image"}'] == 13
        assert seen["wechat_duplicates_total"] == 1
        assert seen['wechat_refusals_total{reason="signature"}'] == 5
        assert seen["wechat_deadline_misses_total"] == 0
        assert seen["wechat_reply_seconds_count"] == 13
        assert seen['wechat_media{state="pending"}'] == seen['wechat_media{state="failed"}'] == 0
        assert seen["wechat_queue_depth"] == seen["wechat_queue_oldest_seconds"] == 0
        assert seen['wechat_token_fetches_total{result="ok"}'] == 1
        assert 0 <= seen["wechat_token_age_seconds"] < 60


def test_every_promised_metric_is_there_and_none_holds_a_secret(sandbox, make_bot):
    bot = make_bot(sandbox)
    bot.web()
    control(
        sandbox,
        "faults",
        [{"path": "/cgi-bin/stable_token", "times": 1, "errcode": 40164, "errmsg": "invalid ip"}],
    )
    stored(bot, send(sandbox), seconds=60)
    text = requests.get(f"{bot.url}/metrics", timeout=5).text
    assert not [name for name in METRICS if f"# TYPE {name} " not in text]
    assert 'wechat_token_fetches_total{result="40164"} 1.0' in text
    assert 'wechat_token_fetches_total{result="ok"} 1.0' in text
    for secret in (
        sandbox.account.appsecret,
        sandbox.account.token,
        sandbox.account.aes_key,
        "/cgi-bin",
        "oTest",
    ):
        assert secret not in text


def test_killed_processes_leave_their_counts(sandbox, make_bot):
    bot = make_bot(sandbox)
    web = bot.web()
    send(sandbox)
    worker = requests.get(f"{bot.url}/healthz", timeout=5)
    assert worker.ok
    (child,) = psutil.Process(web.pid).children()
    child.kill()
    eventually(
        lambda: [c for c in psutil.Process(web.pid).children() if c.pid != child.pid], what="a new process"
    )

    def answers():
        try:
            return scrape(bot)
        except requests.ConnectionError:
            return None

    assert eventually(answers, what="the new process")['wechat_deliveries_total{type="image"}'] == 1


def test_ready_while_all_is_well(sandbox, make_bot):
    bot = make_bot(sandbox)
    bot.web()
    assert requests.get(f"{bot.url}/healthz", timeout=5).text == "ok\n"
    answer = requests.get(f"{bot.url}/readyz", timeout=5)
    assert answer.status_code == 200
    checks = answer.json()["checks"]
    assert (checks["database"], checks["media"]) == ("ok", "ok")
    assert checks["token"].startswith("not fetched yet")
    stored(bot, send(sandbox))
    shown = requests.get(f"{bot.url}/readyz", timeout=5).json()
    assert 0 <= shown.pop("last_claim_seconds") < 20
    assert shown == {"ready": True, "checks": {"database": "ok", "media": "ok", "token": "ok"}}


def test_not_ready_without_the_media_store(sandbox, make_bot):
    bot = make_bot(sandbox)
    bot.web()
    stored(bot, send(sandbox))
    media = bot.folder / "media"

    def put_a_file_there():
        shutil.rmtree(media, ignore_errors=True)
        try:
            media.write_text("a file where the folder was")
        except IsADirectoryError:  # the bot has just made it again
            return False
        return True

    eventually(put_a_file_there)
    answer = requests.get(f"{bot.url}/readyz", timeout=5)
    assert answer.status_code == 503
    assert "MEDIA_STORE" in answer.json()["checks"]["media"]
    assert requests.get(f"{bot.url}/healthz", timeout=5).status_code == 200
    path, body = pushing.safe(pushing.text(1))
    assert requests.post(f"{bot.url}{path}", data=body, timeout=5).status_code == 200, "answers go on"


@pytest.mark.timeout(120)
def test_not_ready_without_the_database(sandbox, make_bot, postgresql, postgresql_url):
    bot = make_bot(sandbox, DATABASE_URL=postgresql_url)
    bot.web()
    assert requests.get(f"{bot.url}/readyz", timeout=5).status_code == 200
    postgresql.crash()
    try:
        answer = requests.get(f"{bot.url}/readyz", timeout=20)
        assert answer.status_code == 503
        assert answer.elapsed.total_seconds() < 5, "a probe gives up soon"
        assert "PostgreSQL" in answer.json()["checks"]["database"]
        assert requests.get(f"{bot.url}/metrics", timeout=20).status_code == 200
    finally:
        postgresql.start()
    eventually(lambda: requests.get(f"{bot.url}/readyz", timeout=20).status_code == 200, what="ready again")


# -- who may ask ----------------------------------------------------------------------------------------------------


@pytest.fixture
def make_app(tmp_path):
    def make(**environ):
        given = ACCOUNT | {
            "DATABASE_URL": sqlite_url(tmp_path / "bot.db"),
            "MEDIA_STORE": f"{tmp_path}/media",
        }
        return create_app(Settings.from_env(given | environ, tmp_path)).test_client()

    return make


@pytest.mark.parametrize("path", ["/metrics", "/readyz"])
class TestWhoMayAsk:
    @pytest.mark.parametrize(
        ("address", "headers", "status"),
        [
            ("127.0.0.1", {}, 200),
            ("::1", {}, 200),
            ("10.1.2.3", {}, 200),
            ("fd00::1", {}, 200),
            ("93.184.216.34", {}, 404),
            ("2606:4700::1111", {}, 404),
            ("", {}, 404),
            ("127.0.0.1", {"X-Forwarded-For": "10.0.0.1"}, 404),
            ("127.0.0.1", {"X-Forwarded-For": ""}, 404),
        ],
    )
    def test_without_a_key_those_who_are_near(self, make_app, path, address, headers, status):
        for hops in ("0", "1"):
            client = make_app(PROXY_HOPS=hops)
            answer = client.get(path, headers=headers, environ_overrides={"REMOTE_ADDR": address})
            assert answer.status_code == status

    @pytest.mark.parametrize(
        ("authorization", "status"),
        [
            ("Bearer the=key=1", 200),
            ("bearer the=key=1", 200),
            ("Bearer other", 401),
            ("Basic dGhlPWtleT0xOng=", 401),
            ("Bearer \xff", 401),
            ("Basic \xff", 401),
            ("the=key=1", 401),
        ],
    )
    def test_with_a_key_those_who_have_it(self, make_app, path, authorization, status):
        client = make_app(METRICS_KEY="the=key=1")
        for address in ("127.0.0.1", "93.184.216.34"):
            answer = client.get(
                path,
                headers={"Authorization": authorization, "X-Forwarded-For": "10.0.0.1"},
                environ_overrides={"REMOTE_ADDR": address},
            )
            assert answer.status_code == status
            assert client.get(path).status_code == 401
        assert client.get("/healthz").status_code == 200


def test_anybody_is_told_what_this_is(make_app):
    client = make_app(METRICS_KEY="the-key")
    answer = client.get("/", environ_overrides={"REMOTE_ADDR": "93.184.216.34"})
    assert answer.status_code == 200
    assert "微信公众号" in answer.text


# -- the folder of the counters ------------------------------------------------------------------------------------


@pytest.fixture
def temporary(tmp_path):
    """temporary(bot): its processes have a temporary directory of their own; returns the folders that are in it."""

    def given(bot):
        folder = tmp_path / "temporary"
        folder.mkdir(exist_ok=True)
        bot.environ["TMPDIR"] = str(folder)
        return lambda: sorted(folder.iterdir())

    return given


def test_a_process_that_has_only_just_made_its_file_of_counters_disturbs_no_scrape(
    sandbox, make_bot, temporary
):
    bot = make_bot(sandbox)
    folders = temporary(bot)
    bot.web()
    (folder,) = folders()
    (folder / "counter_1-0.db").touch()
    send(sandbox)
    assert scrape(bot)['wechat_deliveries_total{type="image"}'] == 1


def test_counters_whose_folder_was_cleaned_away_end_nothing(sandbox, make_bot, temporary):
    bot = make_bot(sandbox)
    folders = temporary(bot)
    web = bot.web()
    send(sandbox)
    (folder,) = folders()
    shutil.rmtree(folder)
    assert requests.get(f"{bot.url}/metrics", timeout=5).status_code == 200
    shutil.rmtree(folder)
    assert send(sandbox)["attempts"][0]["verdict"] == "reply"

    def counted():
        send(sandbox)
        return scrape(bot).get('wechat_deliveries_total{type="image"}')

    assert eventually(counted, what="a count of the process that was there before")
    (child,) = psutil.Process(web.pid).children()
    child.kill()

    def counts():
        with contextlib.suppress(requests.ConnectionError):
            send(sandbox)
            return scrape(bot).get('wechat_deliveries_total{type="image"}')

    assert eventually(counts, what="the next process")
    assert web.popen.poll() is None


def test_no_folder_of_counters_is_left_behind(sandbox, make_bot, temporary):
    bot = make_bot(sandbox)
    folders = temporary(bot)
    first = bot.web()
    kept = folders()
    assert len(kept) == 1
    first.popen.send_signal(signal.SIGHUP)
    assert first.stop() == 0
    assert folders() == []
    bot.web().kill()
    assert len(folders()) == 1
    (left,) = folders()
    last = bot.web()
    (now,) = folders()
    assert now != left
    assert last.stop() == 0
    assert folders() == []


def test_the_folder_of_a_living_server_is_left_alone(sandbox, make_bot, temporary):
    bot = make_bot(sandbox)
    folders = temporary(bot)
    bot.web()
    other = make_bot(sandbox)
    temporary(other)
    assert other.web().stop() == 0
    assert len(folders()) == 1
    assert scrape(bot)
