"""The worker against the sandbox: every download ends stored or failed, every send once, whatever the platform does."""

import contextlib
import hashlib
import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest
import requests

import parts
from answers.copies import StoredCopies
from app import create_app
from config import Settings
from storage.disk import DiskStore
from storage.errors import DatabaseUnavailableError
from storage.queue import Queue
from tests import pushing
from tests.conftest import ACCOUNT, FAN, ROOT, eventually
from tests.databases import sqlite_url
from tests.serving import serving
from wechat import client
from wechat.access_token import AccessToken
from worker import downloads
from worker.jobs import Failures

pytestmark = pytest.mark.xdist_group("waits-1")

PHOTO = ROOT / "sandbox" / "photos" / "grace_hopper.jpg"
SHA256 = hashlib.sha256(PHOTO.read_bytes()).hexdigest()
AMR = b"#!AMR\n" + bytes(range(256)) * 20
MP4 = b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom" + bytes(range(256)) * 400


class Rig:
    """A bot in this process whose worker does one piece of work at a time, with a clock of its own."""

    def __init__(self, sandbox, settings):
        self.sandbox, self.settings = sandbox, settings
        self.app = create_app(settings)
        self.parts = self.app.extensions["accounts"].of[""]
        self.now = time.time()
        self.worker = parts.build(settings, clock=lambda: self.now, jitter=lambda: 0.5).worker

    def push(self, kind="image", data=None, **fields):
        """A fan sends `data`; returns the ledger's entry."""
        files = {"file": (f"x.{kind}", PHOTO.read_bytes() if data is None else data)}
        url = f"{self.sandbox.url}/sandbox/fans/{FAN}/messages"
        answer = requests.post(url, data={"type": kind, "mode": "plain", **fields}, files=files, timeout=30)
        assert answer.status_code == 200, answer.text
        self.now = max(self.now, time.time())
        (entry,) = self.parts.ledger.find_by_msg_id(int(answer.json()["msg_id"]))
        return entry

    def entry(self, entry):
        return self.parts.ledger.get(entry.id)

    def fault(self, path="/cgi-bin/media/get", times=None, **fault):
        requests.put(
            f"{self.sandbox.url}/sandbox/faults", json=[{"path": path, "times": times, **fault}], timeout=5
        )

    def heal(self):
        requests.put(f"{self.sandbox.url}/sandbox/faults", json=[], timeout=5)

    def calls(self, path):
        return requests.get(f"{self.sandbox.url}/sandbox/calls", timeout=5).json().get(path, {})

    def chat(self):
        return requests.get(f"{self.sandbox.url}/sandbox/fans/{FAN}/messages", timeout=5).json()

    def stored_files(self):
        root = self.settings.media_store
        return sorted(
            os.path.relpath(os.path.join(folder, name), root)
            for folder, _, names in os.walk(root)
            for name in names
        )


@pytest.fixture
def make_rig(sandbox, tmp_path):
    opened = []

    def make(**environ):
        given = ACCOUNT | {
            "DATABASE_URL": sqlite_url(tmp_path / "bot.db"),
            "MEDIA_STORE": f"{tmp_path}/media",
            "WECHAT_API_BASE": sandbox.url,
        }
        rig = Rig(sandbox, Settings.from_env(given | environ, tmp_path))
        server = serving(rig.app)
        sandbox.callback = f"{server.__enter__()}/wechat"
        opened.append(server)
        return rig

    yield make
    for server in opened:
        server.__exit__(None, None, None)


def test_a_photo_is_stored_whole_under_its_ledger_id(make_rig):
    rig = make_rig()
    entry = rig.push()
    assert rig.worker.run_once()
    stored = rig.entry(entry)
    day = time.strftime("%Y/%m/%d", time.gmtime(stored.received_at))
    assert stored.media_state == "stored"
    assert stored.media_key == f"{rig.settings.wechat_appid}/{day}/{entry.id}.jpg"
    assert (stored.media_size, stored.media_sha256) == (PHOTO.stat().st_size, SHA256)
    with rig.parts.files.open(stored.media_key) as file:
        assert file.read() == PHOTO.read_bytes()
    assert not rig.worker.run_once()


@pytest.mark.parametrize(
    ("kind", "data", "extension"), [("voice", AMR, "amr"), ("video", MP4, "mp4"), ("shortvideo", MP4, "mp4")]
)
def test_voice_and_video_are_stored_too(make_rig, kind, data, extension):
    rig = make_rig()
    entry = rig.push(kind, data)
    assert rig.worker.run_once()
    stored = rig.entry(entry)
    assert (stored.media_state, stored.media_sha256) == ("stored", hashlib.sha256(data).hexdigest())
    assert stored.media_key.endswith(f".{extension}")


RETRIED = {
    "busy": {"errcode": -1, "errmsg": "system error"},
    "quota": {"errcode": 45009, "errmsg": "reach max api daily quota limit"},
    "an operator's": {"errcode": 48001, "errmsg": "api unauthorized"},
    "an unknown code": {"errcode": 99999, "errmsg": "?"},
    "an error as text/plain": {"errcode": 45011, "errmsg": "slower", "content_type": "text/plain"},
    "a gateway's page": {"status": 502, "body": "<html>Bad Gateway</html>", "content_type": "text/html"},
    "a truncated body": {"truncate": 1000},
    "a hang-up": {"disconnect": True},
}


@pytest.mark.parametrize("case", RETRIED)
def test_retried_with_its_reason_visible_until_it_works(make_rig, monkeypatch, case):
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)  # within one call; what is tested are the worker's own
    rig = make_rig()
    entry = rig.push()
    rig.fault(**RETRIED[case])
    assert rig.worker.run_once()
    pending = rig.entry(entry)
    assert pending.media_state == "pending"
    assert pending.media_reason
    assert pending.media_due == pytest.approx(rig.now + 1.0)
    assert not rig.worker.run_once(), "not before its pause is over"
    assert rig.stored_files() == [], "no partial file is left"
    rig.now += 1.1
    assert rig.worker.run_once()
    assert rig.entry(entry).media_due == pytest.approx(rig.now + 2.0)
    rig.heal()
    rig.now += 2.1
    assert rig.worker.run_once()
    stored = rig.entry(entry)
    assert (stored.media_state, stored.media_reason, stored.media_attempts) == ("stored", None, 3)
    assert rig.stored_files() == [stored.media_key]


FAILED = {
    "gone": {"errcode": 40007, "errmsg": "invalid media_id rid: 64f4444a-5f19e663-62c00404"},
    "gone, as text/plain": {"errcode": 40007, "errmsg": "invalid media_id", "content_type": "text/plain"},
}


@pytest.mark.parametrize("case", FAILED)
def test_failed_at_once_with_the_platforms_code_and_a_hint(make_rig, case):
    rig = make_rig()
    entry = rig.push()
    rig.fault(**FAILED[case])
    assert rig.worker.run_once()
    failed = rig.entry(entry)
    assert (failed.media_state, failed.media_code) == ("failed", 40007)
    assert "invalid media_id" in failed.media_reason
    assert "素材已过期" in failed.media_reason
    assert rig.stored_files() == []
    rig.heal()
    assert rig.parts.queue.retry(None, rig.now) == 1
    assert rig.worker.run_once()
    assert rig.entry(entry).media_state == "stored"


@pytest.mark.parametrize("left", ["half a file", "a whole file"])
@pytest.mark.parametrize("end", ["refused", "three days"])
def test_a_failed_download_leaves_nothing_of_killed_attempts(make_rig, left, end):
    rig = make_rig()
    entry = rig.push()
    (job,) = rig.parts.queue.claim_downloads(rig.now, 15)
    stored = rig.parts.files.put(job.stem, [PHOTO.read_bytes()], extension=lambda _: "jpg", attempt=1)
    if left == "half a file":
        store = Path(rig.settings.media_store)
        flat = job.stem.replace("/", "-")
        (store / stored.key).rename(store / ".tmp" / f"{flat}.{job.attempt}.0123abcd")
    assert len(rig.stored_files()) == 1
    rig.now += 16 if end == "refused" else 3 * 86400
    rig.fault(errcode=40007 if end == "refused" else 45009, errmsg="?")
    assert rig.worker.run_once()
    assert rig.entry(entry).media_state == "failed"
    assert rig.stored_files() == []


def test_a_retry_while_a_failed_download_is_tidied_loses_no_file(make_rig, monkeypatch):
    rig = make_rig()
    entry = rig.push()
    other = parts.build(rig.settings, clock=lambda: rig.now, jitter=lambda: 0.5).worker
    delete_all = DiskStore.delete_all

    def slow(store, stems):
        monkeypatch.setattr(DiskStore, "delete_all", delete_all)
        rig.heal()
        rig.parts.queue.retry([entry.id], rig.now)
        other.run_once()
        return delete_all(store, stems)

    monkeypatch.setattr(DiskStore, "delete_all", slow)
    rig.fault(errcode=40007, errmsg="?")
    assert rig.worker.run_once()
    now = rig.entry(entry)
    assert rig.stored_files() == ([now.media_key] if now.media_state == "stored" else [])
    rig.parts.queue.retry([entry.id], rig.now)
    rig.worker.run_once()
    assert rig.stored_files() == [rig.entry(entry).media_key]


def test_nobody_takes_a_failed_download_while_it_is_tidied(make_rig, monkeypatch):
    """The claim is renewed after a third of LEASE_SECONDS, and has to last until then."""
    rig = make_rig(LEASE_SECONDS="600")
    entry = rig.push()
    other = parts.build(rig.settings, clock=lambda: rig.now, jitter=lambda: 0.5).worker
    delete_all, taken = DiskStore.delete_all, []

    def slow(store, stems):
        monkeypatch.setattr(DiskStore, "delete_all", delete_all)
        rig.heal()
        rig.now += 199
        taken.append(other.run_once())
        return delete_all(store, stems)

    monkeypatch.setattr(DiskStore, "delete_all", slow)
    rig.fault(errcode=40007, errmsg="?")
    assert rig.worker.run_once()
    assert taken == [False]
    assert rig.entry(entry).media_state == "failed"


def test_who_lost_the_claim_deletes_nothing(make_rig):
    rig = make_rig()
    entry = rig.push()
    (lost,) = rig.parts.queue.claim_downloads(rig.now, 15)
    rig.now += 16
    assert rig.worker.run_once()
    failures = Failures(
        rig.parts.queue, rig.parts.files, lease_seconds=15, clock=lambda: rig.now, jitter=lambda: 0.5
    )
    failures.fail(lost, None, "too late")
    assert rig.stored_files() == [rig.entry(entry).media_key]


def test_a_body_over_the_cap_fails_and_leaves_nothing(make_rig):
    rig = make_rig(MAX_MEDIA_BYTES="50000")
    entry = rig.push()
    assert rig.worker.run_once()
    failed = rig.entry(entry)
    assert failed.media_state == "failed"
    assert "MAX_MEDIA_BYTES" in failed.media_reason
    assert rig.stored_files() == []


def test_retries_end_three_days_after_the_message(make_rig):
    rig = make_rig()
    entry = rig.push()
    rig.fault(errcode=-1, errmsg="system error")
    assert rig.worker.run_once()
    pauses = []
    while (found := rig.entry(entry)).media_state == "pending":
        pauses.append(found.media_due - rig.now)
        rig.now = found.media_due + 0.01
        if len(pauses) == 20:  # No worker ran for more than two days.
            rig.now = entry.create_time + 3 * 86400 - 3600
        rig.fault(errcode=45009, errmsg="reach max api daily quota limit")
        assert rig.worker.run_once()
    assert found.media_state == "failed"
    assert rig.now == pytest.approx(entry.create_time + 3 * 86400, abs=601)
    assert pauses[:10] == pytest.approx([2**n for n in range(10)])
    assert pauses[10:] == pytest.approx([600] * (len(pauses) - 10)), "they grow to 10 minutes and no further"
    assert "45009" in found.media_reason


def test_the_reason_names_the_place_that_cannot_be_written(make_rig):
    """The rest of the store is well, and so are /readyz and the doctor."""
    rig = make_rig()
    entry = rig.push()
    day = Path(
        rig.settings.media_store,
        ACCOUNT["WECHAT_APPID"],
        time.strftime("%Y/%m/%d", time.gmtime(entry.received_at)),
    )
    day.parent.mkdir(parents=True)
    day.write_bytes(b"")
    assert rig.worker.run_once()
    assert rig.entry(entry).media_reason == f"MEDIA_STORE: {day}/{entry.id}.jpg: Not a directory"
    day.unlink()
    rig.now += 5
    assert rig.worker.run_once()
    assert rig.entry(entry).media_state == "stored"


def test_a_full_disk_pauses_downloads_and_says_so(make_rig, monkeypatch):
    rig = make_rig()
    entry = rig.push()
    free = rig.parts.files.free_bytes()
    monkeypatch.setattr(downloads, "MIN_FREE_BYTES", free * 2)
    assert not rig.worker.run_once()
    pending = rig.entry(entry)
    assert pending.media_state == "pending"
    assert "make room" in pending.media_reason
    assert (pending.media_attempts, pending.media_due) == (0, rig.now + 10), "a wait is no attempt"
    assert rig.push().reply is not None, "answers go on"
    monkeypatch.undo()
    rig.now += 11
    while rig.worker.run_once():
        pass
    assert rig.entry(entry).media_state == "stored"


def test_a_full_disk_is_said_once_a_minute(make_rig, monkeypatch, caplog):
    rig = make_rig()
    entries = [rig.push() for _ in range(3)]
    monkeypatch.setattr(downloads, "MIN_FREE_BYTES", 1 << 62)
    start = rig.now
    for seconds, lines in ((0, 1), (11, 1), (22, 1), (61, 2)):
        rig.now = start + seconds
        for _ in entries:
            assert not rig.worker.run_once()
        assert all("make room" in rig.entry(entry).media_reason for entry in entries)
        assert sum("have to wait" in one.message for one in caplog.records) == lines


def test_a_full_disk_ends_downloads_three_days_after_the_message(make_rig, monkeypatch):
    rig = make_rig()
    entry = rig.push()
    monkeypatch.setattr(downloads, "MIN_FREE_BYTES", 1 << 62)
    rig.now = entry.create_time + 3 * 86400 - 20
    assert not rig.worker.run_once()
    assert rig.entry(entry).media_state == "pending"
    rig.now += 11
    assert not rig.worker.run_once()
    failed = rig.entry(entry)
    assert failed.media_state == "failed"
    assert "make room" in failed.media_reason
    assert "72 hours" in failed.media_reason


@pytest.fixture
def started(make_rig):
    """A rig with a stored copy to send and a picture to download; started() starts its threads. They end with the
    test."""
    rig = make_rig(ECHO_VIA="upload")
    sent = rig.push()
    assert rig.worker.run_once()
    new = rig.push()
    worker = rig.app.extensions["accounts"].worker
    yield rig, sent, new, lambda: worker.start(4)
    worker.stop()


def test_without_the_media_store_the_reason_is_seen_until_it_is_back(started, monkeypatch):
    rig, sent, new, start = started
    monkeypatch.setattr(downloads, "NO_ROOM_PAUSE_SECONDS", 0.2)
    store = Path(rig.settings.media_store)
    store.rename(f"{store}-away")
    store.touch()  # no folder can be made there
    start()
    eventually(lambda: "MEDIA_STORE" in (rig.entry(sent).send_reason or ""), what="the reason of the send")
    eventually(
        lambda: "MEDIA_STORE" in (rig.entry(new).media_reason or ""), what="the reason of the download"
    )
    store.unlink()
    Path(f"{store}-away").rename(store)
    eventually(lambda: rig.entry(sent).send_state == "sent", what="the send")
    eventually(lambda: rig.entry(new).media_state == "stored", what="the download")


def test_a_send_is_done_although_downloads_cannot_be_claimed(started, monkeypatch):
    rig, sent, _, start = started

    def claim_downloads(*_):
        raise DatabaseUnavailableError("away")

    monkeypatch.setattr(Queue, "claim_downloads", claim_downloads)
    start()
    eventually(lambda: rig.entry(sent).send_state == "sent", what="the send")
    assert rig.entry(sent).send_attempts == 1


def test_a_lost_claim_changes_nothing(make_rig):
    rig = make_rig()
    entry = rig.push()
    queue = rig.parts.queue
    (lost,) = queue.claim_downloads(rig.now, 15)
    rig.now += 16
    assert rig.worker.run_once()
    assert rig.entry(entry).media_state == "stored"
    assert not queue.mark_failed(lost, None, "late", rig.now)
    assert rig.entry(entry).media_state == "stored"


# -- ECHO_VIA=upload --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "data"), [("image", None), ("voice", AMR), ("video", MP4)])
def test_upload_sends_the_stored_copy_back_once(make_rig, kind, data):
    rig = make_rig(ECHO_VIA="upload")
    entry = rig.push(kind, data)
    assert entry.reply is None
    assert entry.send_state == "waiting"
    assert rig.worker.run_once()
    assert rig.worker.run_once()
    assert not rig.worker.run_once()
    sent = rig.entry(entry)
    assert (sent.media_state, sent.send_state) == ("stored", "sent")
    (shown,) = [one for one in rig.chat() if one["from"] == "account"]
    assert (shown["type"], shown["by"], shown["sha256"]) == (kind, "custom", sent.media_sha256)
    assert shown["media_id"] != entry.media_id
    assert rig.calls("/cgi-bin/media/upload") == {"ok": 1}


def test_upload_leaves_words_as_ever(make_rig):
    rig = make_rig(ECHO_VIA="upload")
    with rig.app.test_client() as client:
        path, body = pushing.plain(pushing.text(5))
        assert b"Content" in client.post(path, data=body).data
    assert not rig.worker.run_once()


@pytest.mark.parametrize("code", [45015, 45047, 48001, 40003])
def test_a_refused_send_fails_and_the_file_stays_stored(make_rig, code):
    rig = make_rig(ECHO_VIA="upload")
    entry = rig.push()
    rig.fault("/cgi-bin/message/custom/send", errcode=code, errmsg="refused")
    assert rig.worker.run_once()
    assert rig.worker.run_once()
    failed = rig.entry(entry)
    assert (failed.media_state, failed.send_state, failed.send_code) == ("stored", "failed", code)
    assert str(code) in failed.send_reason


def test_a_time_out_after_the_send_left_is_unknown_and_never_repeated(make_rig):
    rig = make_rig(ECHO_VIA="upload")
    entry = rig.push()
    rig.fault("/cgi-bin/message/custom/send", disconnect=True)
    assert rig.worker.run_once()
    assert rig.worker.run_once()
    unknown = rig.entry(entry)
    assert unknown.send_state == "unknown"
    assert "may have arrived" in unknown.send_reason
    rig.heal()
    rig.now += 3600
    assert not rig.worker.run_once()
    assert sum(rig.calls("/cgi-bin/message/custom/send").values()) == 1


def test_a_crash_while_the_send_was_on_its_way_is_unknown(make_rig):
    rig = make_rig(ECHO_VIA="upload")
    entry = rig.push()
    assert rig.worker.run_once()
    (send,) = rig.parts.queue.claim_sends(rig.now, 15)
    assert rig.parts.queue.mark_sending(send)
    rig.now += 16
    assert rig.worker.run_once()
    assert rig.entry(entry).send_state == "unknown"
    assert rig.calls("/cgi-bin/message/custom/send") == {}


def test_a_crash_while_the_token_of_a_send_is_read_loses_nothing(make_rig, monkeypatch):
    rig = make_rig(ECHO_VIA="upload")
    entry = rig.push()
    assert rig.worker.run_once()
    mark_uploaded = Queue.mark_uploaded

    class Killed(BaseException):
        """As of kill -9: nothing is done after it."""

    with monkeypatch.context() as patch:

        def killed(token):
            raise Killed

        def marks(queue, send, media_id):
            patch.setattr(AccessToken, "get", killed)
            return mark_uploaded(queue, send, media_id)

        patch.setattr(Queue, "mark_uploaded", marks)
        with pytest.raises(Killed):
            rig.worker.run_once()
    rig.now += 20
    assert rig.worker.run_once()
    assert rig.entry(entry).send_state == "sent"
    assert rig.calls("/cgi-bin/message/custom/send") == {"ok": 1}


def test_a_send_whose_refused_token_cannot_be_replaced_is_sent_later(make_rig, monkeypatch):
    """It is known not to have left, although it was marked as on its way."""
    rig = make_rig(ECHO_VIA="upload")
    entry = rig.push()
    assert rig.worker.run_once()
    rig.fault("/cgi-bin/message/custom/send", times=1, errcode=40001, errmsg="invalid credential")

    def away(token, stale):
        raise DatabaseUnavailableError("the database is away")

    with monkeypatch.context() as patch:
        patch.setattr(AccessToken, "replace", away)
        assert rig.worker.run_once()
    waiting = rig.entry(entry)
    assert (waiting.send_state, waiting.send_reason) == ("pending", "the database is away")
    rig.now += 20
    assert rig.worker.run_once()
    assert rig.entry(entry).send_state == "sent"
    assert rig.calls("/cgi-bin/message/custom/send") == {"40001": 1, "ok": 1}


def test_a_busy_platform_delays_a_send_and_uploads_once(make_rig):
    rig = make_rig(ECHO_VIA="upload")
    entry = rig.push()
    assert rig.worker.run_once()
    rig.fault("/cgi-bin/message/custom/send", errcode=45009, errmsg="reach max api daily quota limit")
    assert rig.worker.run_once()
    assert rig.entry(entry).send_state == "pending"
    assert "45009" in rig.entry(entry).send_reason
    rig.heal()
    rig.now += 2
    assert rig.worker.run_once()
    assert rig.entry(entry).send_state == "sent"
    assert rig.calls("/cgi-bin/media/upload") == {"ok": 1}


def test_what_may_not_be_uploaded_fails_before_the_network(make_rig):
    rig = make_rig(ECHO_VIA="upload")
    entry = rig.push("voice", b"#!AMR\n" + bytes(3 * 1024 * 1024))
    assert rig.worker.run_once()
    assert rig.worker.run_once()
    failed = rig.entry(entry)
    assert (failed.media_state, failed.send_state) == ("stored", "failed")
    assert rig.calls("/cgi-bin/media/upload") == {}


def test_a_failed_download_fails_its_send(make_rig):
    rig = make_rig(ECHO_VIA="upload")
    entry = rig.push()
    rig.fault(errcode=40007, errmsg="invalid media_id")
    assert rig.worker.run_once()
    assert rig.entry(entry).send_state == "failed"
    assert not rig.worker.run_once()


# -- threads ----------------------------------------------------------------------------------------------------


def test_started_threads_work_and_stop_gives_work_back(make_rig):
    rig = make_rig()
    entry = rig.push()
    worker = rig.app.extensions["accounts"].worker
    worker.start(2)
    try:
        eventually(lambda: rig.entry(entry).media_state == "stored", what="the download")
        rig.fault(delay=30)
        slow = rig.push()
        eventually(lambda: rig.entry(slow).media_lease_until, what="the claim")
    finally:
        worker.stop()


def test_a_stop_does_not_wait_for_an_upload_that_takes_minutes(make_rig, monkeypatch):
    rig = make_rig(ECHO_VIA="upload")
    entry = rig.push()
    assert rig.worker.run_once()
    monkeypatch.setattr("worker.loop.GRACE_SECONDS", 0.2)
    monkeypatch.setattr("worker.loop.GIVE_BACK_SECONDS", 0.2, raising=False)
    upload, uploading, go_on = StoredCopies.upload, threading.Event(), threading.Event()

    def upload_slowly(*given):
        if not uploading.is_set():
            uploading.set()
            go_on.wait(60)
        return upload(*given)

    monkeypatch.setattr(StoredCopies, "upload", upload_slowly)
    worker = rig.app.extensions["accounts"].worker
    worker.start(2)
    stopping = threading.Thread(target=worker.stop, daemon=True)
    try:
        assert uploading.wait(20)
        stopping.start()
        stopping.join(10)
        assert not stopping.is_alive()
        assert not rig.worker.run_once(), "its lease goes on"
        rig.now += 16
        assert rig.worker.run_once(), "another process does it"
        assert rig.entry(entry).send_state == "sent"
    finally:
        go_on.set()
    eventually(lambda: all(one.name != "work" for one in threading.enumerate()), what="the end of the first")
    assert len([one for one in rig.chat() if one["from"] == "account"]) == 1


def test_a_ledger_that_is_away_does_not_hold_up_the_end_when_nothing_is_in_hand(tmp_path):
    claiming = threading.Event()

    def clock():  # asked before each claim
        claiming.set()
        return time.time()

    names = [f"a{number}" for number in range(4)]
    environ = {
        "ACCOUNTS": ",".join(names),
        "WECHAT_APPSECRET": "0" * 32,
        "WECHAT_API_BASE": "http://127.0.0.1:9",
        "DATABASE_URL": f"sqlite:///{tmp_path}/bot.db",
        "MEDIA_STORE": f"{tmp_path}/media",
        "RETENTION_DAYS": "1",
    }
    environ |= {f"{name.upper()}_WECHAT_APPID": f"wx-of-{name}" for name in names}
    accounts = parts.build(*Settings.of_accounts(environ, tmp_path), clock=clock)
    accounts.database.prepare()
    with contextlib.closing(sqlite3.connect(tmp_path / "bot.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        accounts.start(4)
        assert claiming.wait(10)
        asked = time.monotonic()
        accounts.stop()
        assert time.monotonic() - asked < 2


def test_a_long_download_keeps_its_claim(make_rig):
    rig = make_rig(LEASE_SECONDS="1")
    entry = rig.push()
    rig.fault(delay=3, times=1)
    worker = rig.app.extensions["accounts"].worker
    worker.start(1)
    try:
        eventually(lambda: rig.entry(entry).media_state == "stored", what="the download")
    finally:
        worker.stop()
    assert rig.entry(entry).media_attempts == 1
    assert rig.calls("/cgi-bin/media/get") == {"ok": 1}


@contextlib.contextmanager
def working(rig):
    """The worker of this process with four threads. It must be able to stop, whatever happens to them."""
    worker = rig.app.extensions["accounts"].worker
    worker.start(4)
    try:
        yield
    finally:
        stopping = threading.Thread(target=worker.stop, daemon=True)
        stopping.start()
        stopping.join(10)
    assert not stopping.is_alive()


def test_without_a_new_thread_the_work_is_given_back_and_done_later(make_rig, monkeypatch, caplog):
    rig = make_rig()
    entries = [rig.push() for _ in range(3)]
    begin, refused = threading.Thread.start, threading.Event()

    def start(thread):
        if thread.name.startswith("work") and not refused.is_set():
            refused.set()
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with working(rig):
        for entry in entries:
            eventually(lambda entry=entry: rig.entry(entry).media_state == "stored", what="the download")
    assert [rig.entry(entry).media_attempts for entry in entries] == [1, 1, 1]
    assert [one.reason for one in caplog.records if "no thread" in one.message] == ["can't start new thread"]


def test_while_no_thread_can_be_started_another_process_does_the_work(make_rig, monkeypatch, caplog):
    rig = make_rig()
    begin = threading.Thread.start

    def start(thread):
        if thread.name.startswith("work"):
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    with working(rig):
        entry = rig.push()
        eventually(lambda: "no thread can be started" in caplog.text, what="the line in the log")
        eventually(lambda: rig.worker.run_once(), what="a claim by another process")
        assert rig.entry(entry).media_state == "stored"


def test_parts_cost_no_io(tmp_path):
    given = ACCOUNT | {"DATABASE_URL": f"sqlite:///{tmp_path}/no/bot.db", "MEDIA_STORE": f"{tmp_path}/media"}
    parts.build(Settings.from_env(given, tmp_path))
    assert list(tmp_path.iterdir()) == []
