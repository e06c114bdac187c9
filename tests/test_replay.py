"""`flask replay LEDGER_ID`: what a recorded message would be answered today, with nothing sent and nothing written."""

import sqlite3
from contextlib import closing

import pytest

import handlers
from app import create_app
from config import Settings
from sandbox import THROWAWAY
from tests import pushing
from tests.conftest import ACCOUNT
from tests.databases import sqlite_url
from tests.test_flow import calls, entries, send
from wechat.messages import ImageMessage, TextMessage
from wechat.replies import ImageReply, TextReply


@pytest.fixture
def make_app(tmp_path):
    def make(**environ):
        given = ACCOUNT | {
            "WECHAT_AES_KEY": THROWAWAY.aes_key,
            "WECHAT_API_BASE": "http://127.0.0.1:9",
            "DATABASE_URL": sqlite_url(tmp_path / "bot.db"),
            "MEDIA_STORE": f"{tmp_path}/media",
        }
        return create_app(Settings.from_env(given | environ, tmp_path))

    return make


def push(app, xml):
    """The ledger id under which the message is recorded."""
    path, body = pushing.safe(xml)
    assert app.test_client().post(path, data=body).status_code == 200
    ids = range(1, 100)
    ledger = app.extensions["accounts"].of[""].ledger
    return max(each for each in ids if ledger.get(each) is not None)


def replay(app, ledger_id):
    with app.app_context():  # as the `flask` command does
        return app.test_cli_runner().invoke(args=["replay", str(ledger_id)])


def today(monkeypatch, kind, handler):
    """From now on `kind` has this handler."""
    monkeypatch.setattr(handlers, "HANDLERS", {**handlers.HANDLERS, kind: handler})


def test_an_answer_that_is_still_the_same(make_app, tmp_path):
    app = make_app()
    ledger_id = push(app, pushing.image(1))
    before = app.extensions["accounts"].of[""].ledger.get(ledger_id)
    done = replay(app, ledger_id)
    assert done.exit_code == 0
    assert done.output == before.reply.decode() + "\n"
    assert app.extensions["accounts"].of[""].ledger.get(ledger_id) == before
    with closing(sqlite3.connect(tmp_path / "bot.db")) as database:
        assert database.execute("SELECT count(*) FROM messages").fetchone() == (1,)


def test_an_answer_that_has_changed_stands_below_the_recorded_one(make_app, monkeypatch):
    app = make_app()
    ledger_id = push(app, pushing.text(1, "what are you?"))
    recorded = app.extensions["accounts"].of[""].ledger.get(ledger_id).reply.decode()
    today(monkeypatch, TextMessage, lambda message: TextReply(f"You asked: {message.content}"))
    lines = replay(app, ledger_id).output
    assert lines.startswith(f"Recorded then:\n{recorded}\nToday:\n<xml>")
    assert "You asked: what are you?" in lines.splitlines()[-1]
    assert lines.endswith("</xml>\n")


def test_success_today_and_success_then(make_app, monkeypatch):
    app = make_app()
    picture, link = (
        push(app, pushing.image(1)),
        push(app, pushing.message(MsgType="link", Title="t", Description="d", Url="u", MsgId=2)),
    )
    assert replay(app, link).output == "success\n"
    today(monkeypatch, ImageMessage, lambda message: None)
    lines = replay(app, picture).output.splitlines()
    assert lines[0] == "Recorded then:"
    assert lines[-2:] == ["Today:", "success"]


def test_the_work_of_a_deferred_handler_is_done(make_app, monkeypatch):
    app = make_app()
    ledger_id = push(app, pushing.text(1))
    today(monkeypatch, TextMessage, lambda message: handlers.Deferred(lambda: TextReply("thought over")))
    assert "thought over" in replay(app, ledger_id).output.splitlines()[-1]


def test_what_work_would_send_is_shown_and_not_sent(make_app, monkeypatch):
    def work(account):
        account.send(TextReply("first"))
        return ImageReply(account.upload("no/such/file.jpg"))

    app = make_app()
    ledger_id = push(app, pushing.text(1))
    today(monkeypatch, TextMessage, lambda message: handlers.Deferred(work))
    done = replay(app, ledger_id)
    assert done.exit_code == 0
    sent, uploaded, *_ = done.output.splitlines()
    assert sent.startswith("Would be sent: TextReply(")
    assert "first" in sent
    assert uploaded == "Would be uploaded: no/such/file.jpg"


def test_what_is_sent_back_later_is_said(make_app):
    app = make_app(ECHO_VIA="upload")
    done = replay(app, push(app, pushing.image(1)))
    assert "ECHO_VIA=upload" in done.output.splitlines()[0]
    assert done.output.splitlines()[1:] == ["success"]


@pytest.mark.parametrize("fault", [LookupError, SystemExit])
def test_a_handler_that_raises_exits_1(make_app, monkeypatch, fault):
    app = make_app()
    ledger_id = push(app, pushing.image(1))

    def broken(message):
        raise fault("no such thing")

    today(monkeypatch, ImageMessage, broken)
    done = replay(app, ledger_id)
    assert done.exit_code == 1
    assert f"{fault.__name__}: no such thing" in done.stderr
    assert "test_replay.py:" in done.stderr
    assert not done.stdout


def test_a_wrong_return_is_told_with_the_handlers_place_alone(make_app, monkeypatch):
    app = make_app()
    ledger_id = push(app, pushing.image(1))

    def wrong(message):
        return "text"

    today(monkeypatch, ImageMessage, wrong)
    done = replay(app, ledger_id)
    assert done.exit_code == 1
    assert f"(test_replay.py, line {wrong.__code__.co_firstlineno}) returned 'text'" in done.stderr
    assert "calls.py" not in done.stderr


def test_ctrl_c_ends_the_command(make_app, monkeypatch):
    app = make_app()
    ledger_id = push(app, pushing.image(1))

    def interrupted(message):
        raise KeyboardInterrupt

    today(monkeypatch, ImageMessage, interrupted)
    done = replay(app, ledger_id)
    assert "Aborted!" in done.stderr
    assert "handler" not in done.stderr


def test_an_id_that_is_not_there_exits_1(make_app):
    done = replay(make_app(), 7)
    assert done.exit_code == 1
    assert done.stderr == "Error: the ledger has no row 7\n"


def test_wrong_use_exits_2(make_app):
    assert replay(make_app(), "seven").exit_code == 2


def test_on_the_command_line_nothing_is_sent(sandbox, make_bot):
    bot = make_bot(sandbox, WORKER="external")
    bot.web()
    (entry,) = entries(bot, send(sandbox))
    before = calls(sandbox, "/cgi-bin/stable_token")
    done = bot.flask("replay", str(entry.id))
    assert done.returncode == 0
    assert done.stdout == entry.reply.decode() + "\n"
    assert calls(sandbox, "/cgi-bin/stable_token") == before
    assert calls(sandbox, "/cgi-bin/message/custom/send") == {}
    assert entries(bot, {"msg_id": entry.msg_id}) == [entry]
