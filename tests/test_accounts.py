"""Several accounts in one bot: ACCOUNTS. Three of them, against a sandbox that plays all: one in safe mode, one in
plain mode, and a mini program without a callback."""

import io
import json
import sqlite3
import time
import zipfile
from contextlib import closing

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

import logs
import parts
from app import create_app
from config import Settings, SettingsError
from handlers import HandlerError
from sandbox import Account, running_sandbox
from tests import pushing
from tests.conftest import Bot, eventually, free_port
from tests.databases import sqlite_url
from tests.test_flow import PHOTO, SHA256
from wechat.access_token import TokenRow
from wechat.messages import TextMessage, parse_message
from wechat.replies import TextReply

SHOP, CLUB, MINI = "wx1000000000000001", "wx2000000000000002", "wx3000000000000003"
THREE = {
    "ACCOUNTS": "shop,club,mini",
    "SHOP_WECHAT_APPID": SHOP,
    "SHOP_WECHAT_APPSECRET": "a" * 32,
    "SHOP_WECHAT_TOKEN": "ShopToken",
    "SHOP_WECHAT_AES_KEY": "ShopOnlyNeverUseThisKeyForARealAccount00000",
    "CLUB_WECHAT_APPID": CLUB,
    "CLUB_WECHAT_APPSECRET": "b" * 32,
    "CLUB_WECHAT_TOKEN": "ClubToken",
    "MINI_WECHAT_APPID": MINI,
    "MINI_WECHAT_APPSECRET": "c" * 32,
}
FAN = "oTest-AbCdEfGhIjKlMnOpQrSt_1"
KEY, SHOP_KEY = "a key for all of them", "a key for the shop alone"

# Where it does not matter which one it is.
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


# -- settings --


def of(environ, tmp_path):
    return {one.account: one for one in Settings.of_accounts(environ, tmp_path)}


def test_each_has_its_own_settings_and_what_holds_for_all(tmp_path):
    found = of({**THREE, "CLUB_ECHO_VIA": "upload", "REPLY_SECONDS": "3"}, tmp_path)
    assert {name: one.wechat_appid for name, one in found.items()} == {
        "shop": SHOP,
        "club": CLUB,
        "mini": MINI,
    }
    assert {name: one.echo_via for name, one in found.items()} == {
        "shop": "auto",
        "club": "upload",
        "mini": "auto",
    }
    assert {one.reply_seconds for one in found.values()} == {3.0}
    paths = {name: one.callback_path for name, one in found.items()}
    assert paths == {"shop": "/wechat/shop", "club": "/wechat/club", "mini": None}


def test_a_hyphen_is_an_underscore(tmp_path):
    environ = {"ACCOUNTS": "my-shop", "MY_SHOP_WECHAT_APPID": SHOP, "MY_SHOP_WECHAT_APPSECRET": "x"}
    assert of(environ, tmp_path)["my-shop"].wechat_appid == SHOP


def test_all_faults_of_all_accounts_come_together(tmp_path):
    environ = THREE | {
        "SHOP_WECHAT_AES_KEY": "short",
        "CLUB_WECHAT_APPSECRET": "",
        "MINI_WECHAT_APPID": SHOP,
        "REPLY_SECONDS": "9",
        "PORT": "x",
    }
    with pytest.raises(SettingsError) as caught:
        of(environ, tmp_path)
    names = [fault.name for fault in caught.value.faults]
    assert sorted(names) == [
        "CLUB_WECHAT_APPSECRET",
        "PORT",
        "REPLY_SECONDS",
        "SHOP_WECHAT_AES_KEY",
    ]
    with pytest.raises(SettingsError, match="MINI_WECHAT_APPID: is that of another account too"):
        of(THREE | {"MINI_WECHAT_APPID": SHOP}, tmp_path)


@pytest.mark.parametrize("names", ["Shop", "1shop", "shop,shop", "shop_a", "sh op"])
def test_names_that_cannot_be(tmp_path, names):
    with pytest.raises(SettingsError, match="ACCOUNTS: names"):
        of(THREE | {"ACCOUNTS": names}, tmp_path)


def test_a_table_of_handlers_for_an_account_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr("handlers.ACCOUNT_HANDLERS", {"shup": {}})
    with pytest.raises(HandlerError, match="shup"):
        create_app(Settings.of_accounts(THREE, tmp_path))


# -- in this process --


@pytest.fixture
def make_app(tmp_path):
    """make_app(SETTING=value) -> the application of the three accounts."""

    def make(**environ):
        given = THREE | {"DATABASE_URL": sqlite_url(tmp_path / "bot.db"), "MEDIA_STORE": f"{tmp_path}/media"}
        return create_app(Settings.of_accounts(given | environ, tmp_path))

    return make


def post(client, name, xml, token):
    path, body = pushing.plain(xml, token=token)
    return client.post(path.replace("/wechat", f"/wechat/{name}" if name else "/wechat"), data=body)


def test_a_push_at_another_accounts_address_is_refused(make_app, caplog):
    client = make_app(SHOP_WECHAT_AES_KEY="").test_client()
    assert post(client, "club", pushing.text(1), "ClubToken").status_code == 200
    assert post(client, "shop", pushing.text(2), "ClubToken").status_code == 403
    assert post(client, "mini", pushing.text(3), "ClubToken").status_code == 404
    assert "the callback is at /wechat/shop or /wechat/club" in caplog.text
    assert post(client, "", pushing.text(4), "ClubToken").status_code == 404, "which one is meant?"
    assert client.put("/wechat/shop").status_code == 405


def test_a_push_where_no_account_has_a_callback(make_app, caplog):
    client = make_app(SHOP_WECHAT_TOKEN="", SHOP_WECHAT_AES_KEY="", CLUB_WECHAT_TOKEN="").test_client()
    assert post(client, "shop", pushing.text(1), "ShopToken").status_code == 404
    assert "there is no callback: set WECHAT_TOKEN" in caplog.text


def test_the_only_callback_answers_at_the_plain_address_too(make_app):
    client = make_app(SHOP_WECHAT_TOKEN="").test_client()
    assert post(client, "", pushing.text(1), "ClubToken").status_code == 200
    assert post(client, "club", pushing.text(1), "ClubToken").status_code == 200


def test_a_message_knows_its_account_and_one_account_may_answer_otherwise(make_app, monkeypatch):
    own = {"club": {TextMessage: lambda message: TextReply(f"the {message.account}")}}
    monkeypatch.setattr("handlers.ACCOUNT_HANDLERS", own)
    client = make_app(SHOP_WECHAT_AES_KEY="").test_client()
    assert "the club" in post(client, "club", pushing.text(1), "ClubToken").text
    assert "Send me a picture" in post(client, "shop", pushing.text(1), "ShopToken").text


def test_replay_asks_the_accounts_own_handlers(make_app, monkeypatch):
    app = make_app(SHOP_WECHAT_AES_KEY="")
    for name in ("shop", "club"):
        post(app.test_client(), name, pushing.text(1), f"{name.title()}Token")
    own = {"club": {TextMessage: lambda message: TextReply(f"the {message.account}")}}
    monkeypatch.setattr("handlers.ACCOUNT_HANDLERS", own)

    def replayed(name):
        with app.app_context():  # as the `flask` command does
            return app.test_cli_runner().invoke(args=["replay", "--account", name, "--last"]).stdout

    assert "the club" in replayed("club").splitlines()[-1]
    assert "Send me a picture" in replayed("shop")


def test_metrics_have_a_label_of_the_account(make_app):
    client = make_app(SHOP_WECHAT_AES_KEY="").test_client()
    for number in (1, 1):
        post(client, "club", pushing.image(number), "ClubToken")
    families = {one.name: one for one in text_string_to_metric_families(client.get("/metrics").text)}
    pending = {
        sample.labels["account"]: sample.value
        for sample in families["wechat_media"].samples
        if sample.labels["state"] == "pending"
    }
    assert pending == {"shop": 0.0, "club": 1.0, "mini": 0.0}
    repeats = {sample.labels.get("account"): sample.value for sample in families["wechat_duplicates"].samples}
    assert repeats["club"] >= 1
    ready = client.get("/readyz").json
    assert set(ready["checks"]["token"]) == set(ready["last_claim_seconds"]) == {"shop", "club", "mini"}


class TestTokenServer:
    @pytest.fixture
    def client(self, make_app, monkeypatch):
        app = make_app(TOKEN_SERVER_KEY=KEY, SHOP_TOKEN_SERVER_KEY=SHOP_KEY)
        for name, one in app.extensions["accounts"].of.items():
            now = time.time()
            one.tokens.lease("test", now, 60)
            assert one.tokens.save(
                "test", TokenRow(value=f"token of {name}", fetched_at=now, expires_at=now + 7000), now
            )
        return app.test_client()

    def ask(self, client, key, appid=None):
        query = {"appid": appid} if appid else {}
        return client.get("/token", query_string=query, headers={"Authorization": f"Bearer {key}"})

    def test_the_common_key_opens_all(self, client):
        said = {appid: self.ask(client, KEY, appid).json["access_token"] for appid in (SHOP, CLUB, MINI)}
        assert said == {SHOP: "token of shop", CLUB: "token of club", MINI: "token of mini"}

    def test_its_log_lines_name_the_account(self, client, caplog):
        seen = []
        caplog.handler.addFilter(lambda record: seen.append(logs.ACCOUNT.get()) or True)
        caplog.set_level("INFO", "web.token_server")
        self.ask(client, KEY, CLUB)
        self.ask(client, "wrong")
        assert seen == ["club", ""]

    def test_a_key_of_its_own_opens_one(self, client):
        assert self.ask(client, SHOP_KEY, SHOP).json["access_token"] == "token of shop"
        assert self.ask(client, SHOP_KEY, CLUB).status_code == 403
        assert self.ask(client, "wrong", SHOP).status_code == 401

    def test_which_account_has_to_be_said(self, client):
        answer = self.ask(client, KEY)
        assert (answer.status_code, "appid" in answer.json["error"]) == (400, True)
        assert self.ask(client, KEY, "wx9").status_code == 403

    def test_the_platforms_own_routes(self, client):
        def ask(appid, secret):
            query = {"grant_type": "client_credential", "appid": appid, "secret": secret}
            return client.get("/cgi-bin/token", query_string=query).json

        assert ask(CLUB, SHOP_KEY)["errcode"] == 40125
        assert ask("wx9", KEY)["errcode"] == 40013


class TestGallery:
    @pytest.fixture
    def client(self, make_app):
        app = make_app(ADMIN_PASSWORD="a password for it", SHOP_WECHAT_AES_KEY="")
        client = app.test_client()
        post(client, "shop", pushing.image(1), "ShopToken")
        post(client, "club", pushing.image(1), "ClubToken")
        client.post("/gallery/sign-in", data={"password": "a password for it"})
        return client

    def test_all_accounts_or_one(self, client):
        def shown(query=""):
            page = client.get(f"/gallery{query}").text
            return page.count('<li class="pending">'), page.count("<p>shop</p>"), page.count("<p>club</p>")

        assert shown() == (2, 1, 1)
        assert shown("?account=shop") == (1, 1, 0)
        assert shown("?account=club&kind=image&state=pending") == (1, 0, 1)
        assert client.get("/gallery?account=nobody").status_code == 400

    def test_what_is_done_to_an_entry_is_done_for_its_account(self, client):
        for number in (1, 2):
            assert client.get(f"/gallery/{number}").status_code == 200
            assert client.post(f"/gallery/{number}/delete").status_code == 303
        assert "No fan has sent anything yet" in client.get("/gallery").text

    def test_the_export_has_a_column(self, client):
        archive = zipfile.ZipFile(io.BytesIO(client.get("/gallery/export").data))
        lines = archive.read("messages.csv").decode("utf-8-sig").splitlines()
        assert lines[0].startswith("account,id,")
        assert sorted(line.partition(",")[0] for line in lines[1:]) == ["club", "shop"]


# -- real processes, a sandbox that plays all three --


@pytest.fixture
def platform():
    first, *others = Account.all_from_env(THREE)
    with running_sandbox(account=first, others=others) as sandbox:
        yield sandbox


@pytest.fixture
def bot(platform, tmp_path, database_url):
    port = free_port()
    environ = THREE | {
        "WECHAT_API_BASE": platform.url,
        "DATABASE_URL": database_url,
        "MEDIA_STORE": f"{tmp_path}/media",
        "PORT": str(port),
        "WEB_CONCURRENCY": "1",
        "WECHAT_ACCEPT_PLAINTEXT": "0",
    }
    bot = Bot(tmp_path, environ)
    platform.callback = f"{bot.url}/wechat"
    yield bot
    for process in bot.processes:
        process.kill()


def send(platform, appid, photo=PHOTO, **fields):
    url = f"{platform.url}/sandbox/fans/{FAN}/messages?appid={appid}"
    files = {"file": (photo.name, photo.read_bytes())}
    answer = requests.post(url, data={"type": "image", **fields}, files=files, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()


def calls(platform, appid, path):
    return requests.get(f"{platform.url}/sandbox/calls?appid={appid}", timeout=5).json().get(path, {})


def entries(bot):
    of = parts.build(*Settings.of_accounts(bot.environ, bot.folder)).of
    return {name: one.ledger for name, one in of.items()}


def test_an_appid_that_the_sandbox_does_not_have(platform):
    answer = requests.get(f"{platform.url}/sandbox/calls?appid=wx9", timeout=5)
    assert (answer.status_code, set(answer.json())) == (404, {"error", "error_zh"})


def test_equal_fans_and_msg_ids_of_two_accounts_do_not_mix(platform, bot):
    web = bot.web()
    other = PHOTO.with_name("china.jpg")
    pushes = [
        send(platform, SHOP, msg_id="7001"),
        send(platform, CLUB, other, msg_id="7001"),
    ]
    assert [push["attempts"][0]["verdict"] for push in pushes] == ["reply", "reply"]
    ledgers = entries(bot)

    def stored(name):
        (entry,) = ledgers[name].find_by_msg_id(7001)
        return entry.media_state == "stored" and entry

    shop, club = (
        eventually(lambda name=name: stored(name), what="the download") for name in ("shop", "club")
    )
    assert (shop.media_sha256 == SHA256, club.media_sha256 == SHA256) == (True, False)
    assert shop.media_key.startswith(f"{SHOP}/")
    assert club.media_key.startswith(f"{CLUB}/")
    for appid in (SHOP, CLUB):
        assert calls(platform, appid, "/cgi-bin/media/get") == {"ok": 1}
    answered = [line for line in web.text().splitlines() if "web.callback: answered" in line]
    assert [line.partition("account=")[2][:6] for line in answered] == ["'shop'", "'club'"]
    assert requests.get(parse_message(club.xml).pic_url, timeout=10).content == other.read_bytes()
    again = send(platform, CLUB, other, msg_id="7001")
    assert again["attempts"][0]["opened"] == pushes[1]["attempts"][0]["opened"]


def test_cold_processes_fetch_each_accounts_token_once(platform, bot, full):
    shows = [
        bot.start("flask", "token", "show", "--account", name)
        for _ in range(8 if full else 5)
        for name in ("shop", "club", "mini")
    ]
    for show in shows:
        assert show.popen.wait(120) == 0, show.text()
    assert len({json.loads(show.text().splitlines()[-1])["access_token"] for show in shows}) == 3
    for appid in (SHOP, CLUB, MINI):
        assert calls(platform, appid, "/cgi-bin/stable_token") == {"ok": 1}


def test_an_account_in_trouble_holds_up_no_other(sqlite_unless_full, platform, bot, full, figures):
    """One is out of its quota with a long queue, and its platform is slow to say so."""
    fault = [{"path": "/cgi-bin/media/get", "times": None, "errcode": 45009, "delay": 0.5}]
    requests.put(f"{platform.url}/sandbox/faults?appid={SHOP}", json=fault, timeout=10).raise_for_status()
    many = 10_000 if full else 300
    everything = parts.build(*Settings.of_accounts(bot.environ, bot.folder)).of["shop"]
    for number in range(many):
        everything.ledger.record(parse_message(pushing.image(number + 1).encode()), None, time.time())
    bot.web()
    eventually(lambda: calls(platform, SHOP, "/cgi-bin/media/get"), what="the trouble")
    took = []
    found = entries(bot)["club"]
    for _ in range(5):
        started = time.monotonic()
        push = send(platform, CLUB)
        eventually(
            lambda: found.find_by_msg_id(int(push["msg_id"]))[0].media_state == "stored",  # noqa: B023
            what="the other's picture",
        )
        took.append(time.monotonic() - started)
    # Without --full the rest of the suite runs beside it; the queue takes half a minute and more.
    assert max(took) < (2.0 if full else 10.0)
    figures(pending=many, slowest_seconds=round(max(took), 2))
    assert everything.ledger.status(time.time()).pending > 0


def test_killed_workers_lose_nothing_of_either(platform, bot):
    bot.environ["WORKER"] = "external"
    bot.environ["LEASE_SECONDS"] = "1"
    bot.web()
    slow = [{"path": "/cgi-bin/media/get", "times": 4, "delay": 0.5}]
    for appid in (SHOP, CLUB):
        requests.put(f"{platform.url}/sandbox/faults?appid={appid}", json=slow, timeout=10).raise_for_status()
    pushes = {
        name: [send(platform, appid) for _ in range(3)] for name, appid in (("shop", SHOP), ("club", CLUB))
    }
    worker = bot.worker()
    eventually(lambda: calls(platform, SHOP, "/cgi-bin/media/get") or worker.popen.poll(), what="downloads")
    worker.kill()
    bot.worker()
    for name, ledger in entries(bot).items():
        for push in pushes.get(name, []):

            def stored():
                (entry,) = ledger.find_by_msg_id(int(push["msg_id"]))  # noqa: B023
                return entry.media_state == "stored"

            eventually(stored, what="every download")
    files = [path for appid in (SHOP, CLUB) for path in (bot.folder / "media" / appid).rglob("*.jpg")]
    assert [path.read_bytes() == PHOTO.read_bytes() for path in files] == [True] * 6


def test_from_one_account_to_several_and_one_more(tmp_path, platform):
    one = {
        "WECHAT_APPID": CLUB,
        "WECHAT_APPSECRET": "b" * 32,
        "WECHAT_TOKEN": "ClubToken",
        "DATABASE_URL": f"sqlite:///{tmp_path}/bot.db",
        "MEDIA_STORE": f"{tmp_path}/media",
    }
    client = create_app(Settings.from_env(one, tmp_path)).test_client()
    first = post(client, "", pushing.text(1), "ClubToken")
    common = {name: one[name] for name in ("DATABASE_URL", "MEDIA_STORE")}
    two = common | {name: text for name, text in THREE.items() if not name.startswith(("SHOP", "MINI"))}
    for environ in (two | {"ACCOUNTS": "club"}, common | THREE):
        client = create_app(Settings.of_accounts(environ, tmp_path)).test_client()
        again = post(client, "club", pushing.text(1), "ClubToken")
        assert again.data == first.data
    with closing(sqlite3.connect(tmp_path / "bot.db")) as connection:
        assert connection.execute("SELECT appid, count(*) FROM messages").fetchall() == [(CLUB, 1)]


@ON_SQLITE
def test_commands_ask_for_the_account(bot):
    said = bot.flask("ledger", "status")
    assert said.returncode == 2
    assert "--account NAME" in said.stderr
    assert "shop, club, mini" in said.stderr
    assert bot.flask("ledger", "status", "--account", "club").returncode == 0
    assert bot.flask("ledger", "status", "--account", "nobody").returncode == 2


@ON_SQLITE
def test_the_doctor_examines_one_account(platform, bot):
    bot.web()
    for name, appid in (("shop", SHOP), ("club", CLUB), ("mini", MINI)):
        said = bot.flask("doctor", "--json", "--account", name)
        findings = {one["check"]: one for one in json.loads(said.stdout.splitlines()[-1])}
        assert appid in findings["settings"]["hint"]
        assert findings["token"]["ok"], findings["token"]
        assert ("callback" in findings) == (name != "mini")
        assert ("48001" in findings["settings"]["hint"]) == (name != "mini")
        if name != "mini":
            assert findings["callback"]["ok"], findings["callback"]
            assert f"/wechat/{name} " in findings["callback"]["hint"]
    bot.environ["CLUB_WECHAT_AES_KEY"] = "short"
    wrong = bot.flask("doctor", "--account", "club")
    assert wrong.returncode == 2
    assert "CLUB_WECHAT_AES_KEY" in wrong.stdout
