"""ECHO_VIA=auto: a fan's own video is not shown, so a copy of it is uploaded and comes back under a MediaId of ours."""

import hashlib
import sqlite3
import time
from contextlib import closing

import pytest
import requests

from answers.late import DeferredReplies
from answers.replies import ReplyLog
from handlers import Deferred
from storage.deferred import DeferredWork
from storage.errors import DatabaseUnavailableError
from storage.files import StoredFile
from storage.memories import Memories
from tests import pushing
from tests.conftest import FAN, ROOT, eventually
from tests.databases import APPID
from tests.test_flow import calls, chat, control, entries, files, send, stored
from wechat.messages import parse_message
from wechat.replies import VideoReply

pytestmark = pytest.mark.xdist_group("waits-2")

# A second of H.264, recorded from a canvas in Chromium.
FILM = (ROOT / "tests" / "samples" / "film.mp4").read_bytes()
SHA256 = hashlib.sha256(FILM).hexdigest()
NOW = 1_800_000_000.0
STORED = StoredFile("wx/2027/01/15/1.mp4", len(FILM), SHA256)
UPLOAD = "/cgi-bin/media/upload"
OWN = b"<xml><MsgType>video</MsgType><Video><MediaId>own</MediaId></Video></xml>"


def film(sandbox, kind="video", **fields):
    return send(sandbox, FILM, type=kind, **fields)


def verdicts(push):
    return [attempt["verdict"] for attempt in push["attempts"]]


def work_of(bot, push, column="state"):
    """That column of the work for this message."""
    with closing(sqlite3.connect(bot.folder / "bot.db")) as database:
        (entry,) = entries(bot, push)
        return database.execute(f"SELECT {column} FROM works WHERE id = ?", (entry.id,)).fetchone()[0]


def shown(sandbox):
    """What the account said and WeChat showed, the platform's own words too."""
    return [(one["by"], one["type"], one["sha256"]) for one in chat(sandbox) if one["from"] != "fan"]


@pytest.mark.parametrize(("kind", "worker"), [("video", "embedded"), ("shortvideo", "external")])
def test_a_film_comes_back_within_the_delivery(sandbox, make_bot, kind, worker):
    bot = make_bot(sandbox, WORKER=worker)
    bot.web()
    if worker == "external":
        bot.worker()
    push = film(sandbox, kind)
    assert verdicts(push) == ["reply"]
    assert shown(sandbox) == [("passive", "video", SHA256)]
    entry = stored(bot, push)
    assert (entry.media_sha256, entry.send_state) == (SHA256, None)
    assert entry.media_id.encode() not in entry.reply
    again = film(sandbox, kind, msg_id=push["msg_id"], attempts="3", force="true", together="true")
    assert {one["opened"] for one in again["attempts"]} == {push["attempts"][0]["opened"]}
    assert calls(sandbox, "/cgi-bin/media/get") == {"ok": 1}
    assert calls(sandbox, UPLOAD) == {"ok": 1}
    (path,) = files(bot)
    assert path.read_bytes() == FILM


def test_three_deliveries_at_once_are_one_download_and_one_upload(sandbox, make_bot):
    bot = make_bot(sandbox, WEB_CONCURRENCY="2")
    bot.web()
    push = film(sandbox, attempts="3", force="true", together="true")
    assert verdicts(push) == ["reply"] * 3
    assert len({one["opened"] for one in push["attempts"]}) == 1
    assert calls(sandbox, "/cgi-bin/media/get") == {"ok": 1}
    assert calls(sandbox, UPLOAD) == {"ok": 1}


def test_late_it_comes_by_customer_service(sandbox, make_bot):
    bot = make_bot(sandbox, REPLY_SECONDS="0.5")
    bot.web()
    control(sandbox, "faults", [{"path": UPLOAD, "times": 1, "delay": 1.5}])
    push = film(sandbox)
    assert verdicts(push) == ["silent"]
    eventually(lambda: shown(sandbox) == [("custom", "video", SHA256)], what="the film")
    assert verdicts(film(sandbox, msg_id=push["msg_id"])) == ["silent"]
    eventually(lambda: entries(bot, push)[0].send_state == "sent", what="the mark")
    assert calls(sandbox, UPLOAD) == {"ok": 1}


def test_late_it_comes_with_the_next_delivery(sandbox, make_bot):
    bot = make_bot(sandbox, LATE_REPLY="redelivery")
    bot.web()
    control(sandbox, "faults", [{"path": UPLOAD, "times": 1, "delay": 3}])
    push = film(sandbox, timeout="2")
    assert verdicts(push)[0] == "timeout"
    assert verdicts(push)[-1] == "reply"
    assert shown(sandbox) == [("passive", "video", SHA256)]
    assert calls(sandbox, UPLOAD) == {"ok": 1}
    assert calls(sandbox, "/cgi-bin/message/custom/send") == {}


def test_a_web_process_killed_between_upload_and_reply(sandbox, make_bot):
    bot = make_bot(sandbox, WORKER="external")
    web = bot.web()
    push = film(sandbox, timeout="0.5", attempts="1")  # nobody downloads it yet
    assert verdicts(push) == ["timeout"]
    eventually(lambda: entries(bot, push), what="the row")
    web.kill()
    bot.worker()
    eventually(lambda: work_of(bot, push) == "done", what="the result")
    bot.web()
    again = film(sandbox, msg_id=push["msg_id"], force="true")
    assert verdicts(again) == ["reply"] * 3
    assert len({one["opened"] for one in again["attempts"]}) == 1
    assert calls(sandbox, UPLOAD) == {"ok": 1}
    assert calls(sandbox, "/cgi-bin/message/custom/send") == {}


def test_a_worker_killed_in_the_middle_of_the_upload(sandbox, make_bot):
    bot = make_bot(sandbox, WORKER="external", LEASE_SECONDS="2", REPLY_SECONDS="0.5")
    bot.web()
    worker = bot.worker()
    control(sandbox, "faults", [{"path": UPLOAD, "times": 1, "delay": 30}])
    push = film(sandbox)
    assert verdicts(push) == ["silent"]
    eventually(lambda: work_of(bot, push, "lease_until"), what="the upload's beginning")
    worker.kill()
    control(sandbox, "faults", [])
    bot.worker()
    eventually(lambda: shown(sandbox), what="the film")
    assert shown(sandbox) == [("custom", "video", SHA256)]
    assert calls(sandbox, "/cgi-bin/media/get") == {"ok": 1}


@pytest.mark.parametrize(("path", "code"), [(UPLOAD, 40009), ("/cgi-bin/message/custom/send", 48001)])
def test_a_refusal_is_in_the_ledger_and_the_file_stays(sandbox, make_bot, path, code):
    bot = make_bot(sandbox, REPLY_SECONDS="0.1")
    bot.web()
    control(sandbox, "faults", [{"path": path, "times": None, "errcode": code, "errmsg": "no"}])
    push = film(sandbox)
    assert verdicts(push) == ["silent"]
    entry = eventually(
        lambda: next((one for one in entries(bot, push) if one.send_state == "failed"), None),
        what="the refusal",
    )
    assert (entry.media_state, entry.send_code) == ("stored", code)
    assert str(code) in entry.send_reason
    control(sandbox, "faults", [])
    assert bot.flask("ledger", "retry", str(entry.id)).stdout.splitlines()[-1] == '{"rows": 1}'
    eventually(lambda: shown(sandbox) == [("custom", "video", SHA256)], what="the film after all")


def test_an_upload_that_may_succeed_later_is_repeated(sandbox, make_bot):
    bot = make_bot(sandbox, REPLY_SECONDS="0.1")
    bot.web()
    control(sandbox, "faults", [{"path": UPLOAD, "times": 2, "errcode": 45009, "errmsg": "quota"}])
    push = film(sandbox)
    eventually(lambda: "45009" in (entries(bot, push)[0].send_reason or ""), what="the reason, meanwhile")
    eventually(lambda: shown(sandbox) == [("custom", "video", SHA256)], what="the film")
    assert calls(sandbox, UPLOAD) == {"45009": 2, "ok": 1}


def test_a_handler_that_remembers_runs_once_for_a_film(sandbox, make_bot):
    bot = make_bot(sandbox)
    bot.app = "tests.counting_app:create_app()"
    bot.web()
    push = film(sandbox)
    assert verdicts(push) == ["reply"]
    assert shown(sandbox) == [("passive", "video", SHA256)]
    url = f"{sandbox.url}/sandbox/fans/{FAN}/messages"
    requests.post(url, json={"type": "text", "content": "how many?"}, timeout=30)
    assert chat(sandbox)[-1]["content"] == "2", "the film and this text"


def test_passive_answers_at_once_with_the_fans_own_media_id(sandbox, make_bot):
    control(sandbox, "rules", {"own_video_reply": True})
    bot = make_bot(sandbox, ECHO_VIA="passive")
    bot.web()
    push = film(sandbox)
    assert verdicts(push) == ["reply"]
    assert entries(bot, push)[0].media_id in push["attempts"][0]["opened"]
    assert calls(sandbox, UPLOAD) == {}


# -- in the ledger ----------------------------------------------------------------------------------------------


@pytest.fixture
def works(database, ledger):
    return DeferredWork(database, ledger, APPID)


def video(number=1):
    xml = pushing.message(
        MsgType="video", MediaId="own", ThumbMediaId="thumb", MsgId=number, create_time=int(NOW)
    )
    return parse_message(xml.encode())


def test_nobody_gets_the_work_before_the_file_is_stored(ledger, queue, works):
    recorded, none = works.record(video(), NOW, None, reply=OWN)
    assert (recorded.working, none) == (True, None)
    assert works.claim(NOW + 100, 15, 10) == []
    assert works.answer(recorded.id) is None
    assert works.settle(NOW + 100, "pending") == 0
    assert ledger.status(NOW).replies_pending == 1
    (download,) = queue.claim_downloads(NOW, 15)
    assert queue.mark_stored(download, STORED, NOW)
    (work,) = works.claim(NOW, 15, 10)
    assert (work.id, work.media_key) == (recorded.id, STORED.key)
    assert works.put_off(work, NOW + 5, 45009, "quota", reply=OWN)
    assert works.claim(NOW + 4, 15, 10) == []
    (work,) = works.claim(NOW + 5, 15, 10)
    assert work.attempt == 1, "what was put off did not take its process down"
    assert work.reply == OWN
    assert works.finish(work, b"<video/>", NOW)
    assert works.answer(recorded.id).reply == b"<video/>"
    entry = ledger.get(recorded.id)
    assert (entry.send_code, entry.send_reason) == (None, None), "it has been answered"


def test_work_that_answers_with_a_film_not_stored_yet_runs_once(database, ledger, works):
    message = video()
    _, work = works.record(message, NOW, 15)
    assert works.put_off(work, NOW + 1, None, "not stored yet", reply=OWN, memory='{"films":1}')
    assert Memories(database, ledger, APPID).read(message.from_user_name).json == '{"films":1}'
    (again,) = works.claim(NOW + 1, 15, 10)
    assert again.reply == OWN, "only the upload is left to be done"
    assert works.finish(again, None, NOW + 1, reason="the upload was refused")
    assert ledger.get(again.id).send_state == "failed"


@pytest.mark.parametrize("late", [True, False])
def test_a_film_that_cannot_be_downloaded_is_a_failed_reply(ledger, queue, works, late):
    recorded, _ = works.record(video(), NOW, None, reply=OWN)
    if late:
        assert works.answer(recorded.id, "later").reply is None
    (download,) = queue.claim_downloads(NOW, 15)
    assert queue.mark_failed(download, 40007, "gone", NOW)
    entry = ledger.get(recorded.id)
    assert (entry.media_state, entry.send_state, entry.send_code) == ("failed", "failed", 40007)
    assert works.answer(recorded.id).reply is None
    assert works.claim(NOW, 15, 10) == []
    assert ledger.status(NOW).replies_pending == 0
    assert queue.retry(None, NOW) == 1
    assert works.claim(NOW, 15, 10) == []
    (download,) = queue.claim_downloads(NOW, 15)
    assert queue.mark_stored(download, STORED, NOW)
    (work,) = works.claim(NOW, 15, 10)
    assert work.reply == OWN, "its handler does not run again"
    assert works.finish(work, b"<video/>", NOW)
    assert [one.id for one in queue.claim_sends(NOW, 15)] == [recorded.id]


class Copies:
    """Uploads nothing: raises these errors, one at each call, and then gives a MediaId."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def upload(self, media_key, media_kind):
        if self.errors:
            raise self.errors.pop()
        return "copy"


def late_of(works, ledger, copies, clock):
    return DeferredReplies(
        works,
        copies,
        None,
        ReplyLog(ledger),
        echo_via="auto",
        reply_seconds=0.1,
        late_reply="customer_service",
        lease_seconds=15,
        clock=clock,
    )


def test_work_that_answers_with_a_film_whose_download_fails_ends_with_it(ledger, queue, works):
    now = NOW
    late = late_of(works, ledger, Copies(), lambda: now)
    recorded = late.answer(video(), Deferred(lambda: VideoReply("own")), NOW, time.monotonic())
    eventually(lambda: ledger.get(recorded.id).send_reason, what="the first try")
    (download,) = queue.claim_downloads(NOW, 15)
    assert queue.mark_failed(download, 40007, "gone", NOW)
    now += 600
    eventually(late.adopt, what="the next try")
    entry = eventually(
        lambda: (found := ledger.get(recorded.id)).send_state == "failed" and found, what="its end"
    )
    assert (entry.send_code, entry.send_reason) == (40007, "its download failed: gone")
    assert queue.retry([recorded.id], now) == 1
    (download,) = queue.claim_downloads(now, 15)
    assert queue.mark_stored(download, STORED, now)
    eventually(late.adopt, what="the try that was asked for")
    eventually(lambda: works.result(recorded.id), what="the upload")
    late.stop()


def test_a_database_that_is_away_for_the_token_does_not_end_the_work(ledger, queue, works, caplog):
    now = NOW
    recorded, _ = works.record(video(), NOW, None, reply=OWN)
    (download,) = queue.claim_downloads(NOW, 15)
    assert queue.mark_stored(download, STORED, NOW)
    late = late_of(works, ledger, Copies(DatabaseUnavailableError("away")), lambda: now)
    assert late.adopt() == 1
    late.stop()
    assert "a result cannot be kept" in caplog.text
    assert ledger.get(recorded.id).send_state == "working"
    now += 16
    assert late_of(works, ledger, Copies(), lambda: now).adopt() == 1
    eventually(lambda: works.result(recorded.id), what="the upload")
