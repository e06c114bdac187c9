"""The ledger's promises, on SQLite and on PostgreSQL: one row per message, one worker per claim, nothing lost."""

import dataclasses
import os
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from functools import partial
from itertools import count as count_from
from pathlib import Path

import psycopg
import pytest
import sqlalchemy

import storage.purge
import storage.queue
from storage.database import connect
from storage.disk import DiskStore
from storage.errors import DatabaseUnavailableError
from storage.files import StoredFile
from storage.ledger import Entry, Ledger, Recorded, Status
from storage.models import messages
from storage.purge import PurgeRows
from storage.queue import Queue
from storage.states import MEDIA_STEPS, SEND_STEPS, WORK_STEPS, MediaState, SendState, WorkState
from tests.conftest import eventually
from tests.databases import APPID, execute
from tests.prepared import Talking
from wechat.messages import parse_message

ROOT = Path(__file__).parent.parent
FAN = "oFan-AbCdEfGhIjKlMnOpQrSt_01"
OTHER_FAN = "oFan-AbCdEfGhIjKlMnOpQrSt_02"
T0 = 1_700_000_000.0  # 2023-11-14, UTC
DAY = 86400.0
FILE = StoredFile(f"{APPID}/2023/11/14/1.jpg", 1234, "ab" * 32)
REPLY = b"<xml><Content>\xe5\x9b\xbe\xe5\xb0\x9a\xe5\xbe\x80\xe6\x9d\xa5</Content></xml>"


def message(kind, inner, fan=FAN):
    return parse_message(
        f"<xml><ToUserName>gh_1</ToUserName><FromUserName>{fan}</FromUserName><CreateTime>1700000000</CreateTime>"
        f"<MsgType>{kind}</MsgType>{inner}</xml>".encode()
    )


def text(number, fan=FAN):
    return message("text", f"<Content>hi</Content><MsgId>{number}</MsgId>", fan)


def image(number, fan=FAN):
    return message("image", f"<MediaId>media-{number}</MediaId><MsgId>{number}</MsgId>", fan)


def event(name, fan=FAN, inner=""):
    return message("event", f"<Event>{name}</Event>{inner}", fan)


def count(ledger):
    return len(ledger.newest(1000))


def in_threads(*works):
    """Does all of them at the same time."""
    barrier = threading.Barrier(len(works))

    def begin(work):
        barrier.wait()
        work()

    threads = [threading.Thread(target=begin, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def download(ledger, queue, number=1, *, now=T0, send_back=False):
    """A recorded picture whose download is claimed."""
    ledger.record(image(number), REPLY, now, send_back=send_back)
    (job,) = queue.claim_downloads(now, 15)
    return job


def send(ledger, queue, number=1, *, now=T0):
    """A recorded picture that is stored and whose send is claimed."""
    assert queue.mark_stored(download(ledger, queue, number, now=now, send_back=True), FILE, now)
    (job,) = queue.claim_sends(now, 15)
    return job


class TestRecord:
    def test_what_is_recorded_is_found(self, ledger):
        assert ledger.find(image(1)) is None
        recorded = ledger.record(image(1), REPLY, T0)
        assert recorded == Recorded(recorded.id, REPLY)
        assert ledger.find(image(1)) == recorded

    def test_success_is_none(self, ledger):
        recorded = ledger.record(text(1), None, T0)
        assert ledger.find(text(1)) == Recorded(recorded.id, None)

    def test_who_comes_second_gets_what_the_first_recorded(self, ledger):
        first = ledger.record(image(1), REPLY, T0)
        assert ledger.record(image(1), b"<xml>another</xml>", T0 + 5, send_back=True) == first
        entry = ledger.get(first.id)
        assert (entry.reply, entry.received_at, entry.send_state) == (REPLY, T0, None)
        assert count(ledger) == 1

    def test_two_senders_of_one_msg_id_are_two_rows(self, ledger):
        one, other = ledger.record(image(1), REPLY, T0), ledger.record(image(1, OTHER_FAN), None, T0)
        assert one.id != other.id
        assert ledger.find(image(1)) == one
        assert ledger.find(image(1, OTHER_FAN)) == other
        assert [entry.sender for entry in ledger.find_by_msg_id(1)] == [FAN, OTHER_FAN]

    def test_two_accounts_share_nothing(self, ledger, database):
        neighbour = Ledger(database, "wxneighbour")
        recorded = ledger.record(image(1), REPLY, T0)
        assert neighbour.find(image(1)) is None
        assert neighbour.get(recorded.id) is None
        assert Queue(database, "wxneighbour").claim_downloads(T0, 15) == []
        assert Queue(database, "wxneighbour").retry([recorded.id], T0) == 0
        assert PurgeRows(database, "wxneighbour").purge(T0, before=T0 + 1) == 0
        assert neighbour.record(image(1), None, T0).id != recorded.id
        assert ledger.status(T0).pending == 1

    def test_events_are_told_apart_by_what_they_say(self, ledger):
        pushes = [event("CLICK", inner=f"<EventKey>{key}</EventKey>") for key in "ab"] + [event("subscribe")]
        assert len({ledger.record(push, None, T0).id for push in pushes * 2}) == 3

    def test_what_an_earlier_version_recorded_is_found(self, ledger, database):
        for push in (
            event("CLICK", inner="<EventKey>a</EventKey>"),
            message("text", "<Content>hi</Content>"),
        ):
            first = ledger.record(push, REPLY, T0)
            (former,) = push.former_dedupe_keys
            database.write(
                lambda connection, former=former, first=first: connection.execute(
                    messages.update().values(message_key=former).where(messages.c.id == first.id)
                )
            )
            assert ledger.find(push) == first
        assert ledger.find(event("CLICK", inner="<EventKey>b</EventKey>")) is None

    def test_every_column(self, ledger):
        push = message("image", "<MediaId>m</MediaId><MsgId>18446744073709551615</MsgId>")
        entry = ledger.get(ledger.record(push, REPLY, T0, send_back=True).id)
        assert (entry.appid, entry.sender, entry.msg_type, entry.event) == (APPID, FAN, "image", None)
        assert (entry.msg_id, entry.message_key) == ("18446744073709551615", push.dedupe_key)
        assert (entry.create_time, entry.received_at) == (1_700_000_000, T0)
        assert (entry.xml, entry.reply) == (push.raw, REPLY)
        assert (entry.media_state, entry.media_due, entry.media_id, entry.media_kind) == (
            "pending",
            T0,
            "m",
            "image",
        )
        assert entry.send_state == "waiting"
        assert "xml" not in repr(entry).replace("xml=", "")
        assert REPLY.decode() not in repr(entry)
        assert [field.name for field in dataclasses.fields(Entry)] == [column.name for column in messages.c]

    def test_an_event_with_its_name_and_a_number_of_any_size(self, ledger):
        push = event("MASSSENDJOBFINISH", inner="<MsgID>99999999999999999999</MsgID>")
        entry = ledger.get(ledger.record(push, None, T0).id)
        assert (entry.event, entry.msg_id) == ("MASSSENDJOBFINISH", "99999999999999999999")

    def test_text_has_nothing_to_do_later(self, ledger, queue):
        entry = ledger.get(ledger.record(text(1), None, T0, send_back=True).id)
        assert (entry.media_state, entry.send_state) == (None, None)
        assert queue.claim_downloads(T0, 15) == queue.claim_sends(T0, 15) == []

    def test_no_such_row(self, ledger):
        assert ledger.get(1) is None
        assert ledger.find_by_msg_id(1) == []

    def test_many_threads_record_one_message_once(self, ledger):
        barrier = threading.Barrier(8)
        results = []

        def deliver(number):
            barrier.wait()
            results.append(ledger.record(image(1), b"<xml>%d</xml>" % number, T0))

        threads = [threading.Thread(target=deliver, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(results) == 8
        assert set(results) == {ledger.find(image(1))}
        assert count(ledger) == 1

    def test_a_locked_ledger_is_waited_for(self, ledger, database):
        if not database.is_sqlite:
            pytest.skip("one writer at a time is SQLite's way; PostgreSQL's outage is below")
        pushed = threading.Thread(target=ledger.record, args=(image(1), REPLY, T0))

        def push_and_wait(_):
            pushed.start()
            pushed.join(0.3)
            return ledger.find(image(1))

        assert database.transact(push_and_wait) is None
        pushed.join()
        assert ledger.find(image(1)).reply == REPLY

    def test_a_locked_ledger_is_not_waited_for_longer(self, ledger, database):
        if not database.is_sqlite:
            pytest.skip("one writer at a time is SQLite's way")

        def while_locked(_):
            with pytest.raises(DatabaseUnavailableError):
                ledger.record(image(1), REPLY, T0, wait=0.1)
            return ledger.find(image(2))

        assert database.transact(while_locked) is None

    def test_a_row_purged_between_conflict_and_look_is_made_anew(self, ledger, database_url):
        first = ledger.record(image(1), REPLY, T0)
        another_program = connect(database_url, sync="normal")
        looks, find = [], Ledger.find

        def purging(ledger, message, **wait):
            """The row goes while the look-up is on its way."""
            gone = messages.delete().where(messages.c.sender == FAN)
            looks.append(another_program.run(lambda connection: connection.execute(gone).rowcount))
            return find(ledger, message, **wait)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Ledger, "find", purging)
            second = ledger.record(image(1), None, T0)
        assert looks == [1]
        assert second.id > first.id
        assert second.reply is None


class TestClaims:
    def test_oldest_due_first_and_each_once(self, ledger, queue):
        ids = [ledger.record(image(number), None, T0 - number).id for number in range(4)]
        jobs = queue.claim_downloads(T0, 15, limit=3)
        assert [job.id for job in jobs] == [ids[3], ids[2], ids[1]]
        assert [job.id for job in queue.claim_downloads(T0, 15, limit=3)] == [ids[0]]
        assert queue.claim_downloads(T0, 15, limit=3) == []

    def test_what_a_download_says(self, ledger, queue):
        job = download(ledger, queue, 7)
        assert (job.appid, job.media_id, job.media_kind, job.attempt) == (APPID, "media-7", "image", 1)
        assert (job.create_time, job.received_at) == (1_700_000_000, T0)
        assert isinstance(job.received_at, float)
        assert job.stem == f"{APPID}/2023/11/14/{job.id}"

    def test_the_folder_is_the_day_in_utc(self, ledger, queue):
        assert "/2023/11/15/" in download(ledger, queue, now=1_700_006_400.0).stem

    def test_not_before_it_is_due(self, ledger, queue):
        ledger.record(image(1), None, T0)
        assert queue.claim_downloads(T0 - 1, 15) == []

    def test_a_lease_that_runs_out_gives_the_work_to_the_next(self, ledger, queue):
        dead = download(ledger, queue)
        assert queue.claim_downloads(T0 + 14.9, 15) == []
        (job,) = queue.claim_downloads(T0 + 15, 15)
        assert (job.id, job.attempt) == (dead.id, 2)
        assert job.claim != dead.claim

    def test_who_lost_the_lease_changes_nothing(self, ledger, queue):
        dead = download(ledger, queue, send_back=True)
        (job,) = queue.claim_downloads(T0 + 15, 15)
        before = ledger.get(job.id)
        assert not queue.extend(dead, T0 + 16, 15)
        assert not queue.mark_stored(dead, FILE, T0 + 16)
        assert not queue.mark_retry(dead, T0 + 20, -1, "busy")
        assert not queue.mark_failed(dead, 40007, "gone", T0 + 16)
        assert not queue.give_back(dead)
        assert ledger.get(job.id) == before
        assert queue.mark_stored(job, FILE, T0 + 17)

    def test_a_lease_is_extended(self, ledger, queue):
        job = download(ledger, queue)
        assert queue.extend(job, T0 + 10, 15)
        assert queue.claim_downloads(T0 + 24, 15) == []
        assert len(queue.claim_downloads(T0 + 25, 15)) == 1

    def test_given_back_is_due_at_once_and_does_not_count(self, ledger, queue):
        job = download(ledger, queue)
        assert queue.give_back(job)
        assert not queue.give_back(job)
        assert not queue.extend(job, T0, 15)
        (again,) = queue.claim_downloads(T0, 15)
        assert again.attempt == 1

    def test_threads_never_share_a_row(self, ledger, queue):
        for number in range(60):
            ledger.record(image(number), None, T0)
        claimed = []
        barrier = threading.Barrier(6)

        def work():
            barrier.wait()
            while jobs := queue.claim_downloads(T0, 15, limit=3):
                claimed.extend(job.id for job in jobs)

        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(claimed) == sorted(set(claimed))
        assert len(claimed) == 60


class TestDownloads:
    def test_stored(self, ledger, queue):
        job = download(ledger, queue)
        assert queue.mark_stored(job, FILE, T0 + 2)
        entry = ledger.get(job.id)
        assert (entry.media_state, entry.media_done_at, entry.media_lease_until) == ("stored", T0 + 2, None)
        assert (entry.media_key, entry.media_size, entry.media_sha256) == (FILE.key, FILE.size, FILE.sha256)
        assert queue.claim_downloads(T0 + 100, 15) == []

    def test_a_mark_whose_answer_was_lost_is_repeated(self, ledger, queue):
        job = download(ledger, queue, 1)
        assert queue.mark_stored(job, FILE, T0)
        assert queue.mark_stored(job, FILE, T0)
        assert not queue.mark_failed(job, None, "too late", T0)
        failing = download(ledger, queue, 2)
        assert queue.mark_failed(failing, 40007, "no such media", T0)
        assert queue.mark_failed(failing, 40007, "no such media", T0)
        assert not queue.mark_stored(failing, FILE, T0)

    def test_retried_with_the_reason_to_be_seen(self, ledger, queue):
        job = download(ledger, queue)
        assert queue.mark_retry(job, T0 + 60, -1, "the platform is busy")
        entry = ledger.get(job.id)
        assert (entry.media_state, entry.media_code, entry.media_reason) == (
            "pending",
            -1,
            "the platform is busy",
        )
        assert queue.claim_downloads(T0 + 59, 15) == []
        (again,) = queue.claim_downloads(T0 + 60, 15)
        assert again.attempt == 2
        assert queue.mark_stored(again, FILE, T0 + 61)
        assert ledger.get(job.id).media_reason is None

    def test_failed(self, ledger, queue):
        job = download(ledger, queue)
        assert queue.mark_failed(job, 40007, "no such media", T0 + 1)
        entry = ledger.get(job.id)
        assert (entry.media_state, entry.media_code, entry.media_reason) == ("failed", 40007, "no such media")
        assert (entry.media_done_at, entry.send_state) == (T0 + 1, None)
        assert queue.claim_downloads(T0 + 100, 15) == []


class TestSends:
    def test_due_once_the_file_is_stored(self, ledger, queue):
        job = download(ledger, queue, send_back=True)
        assert queue.claim_sends(T0, 15) == []
        queue.mark_stored(job, FILE, T0 + 1)
        assert queue.claim_sends(T0, 15) == []
        (send,) = queue.claim_sends(T0 + 1, 15)
        assert (send.id, send.appid, send.openid, send.media_kind) == (job.id, APPID, FAN, "image")
        assert (send.media_key, send.attempt, send.uploaded_media_id, send.sending) == (
            FILE.key,
            1,
            None,
            False,
        )
        assert (send.create_time, send.received_at) == (1_700_000_000, T0)

    def test_fails_with_the_download(self, ledger, queue):
        job = download(ledger, queue, send_back=True)
        queue.mark_failed(job, 40007, "no such media", T0 + 1)
        entry = ledger.get(job.id)
        assert (entry.send_state, entry.send_code, entry.send_reason) == ("failed", 40007, "no such media")
        assert entry.send_done_at == T0 + 1

    def test_sent(self, ledger, queue):
        job = send(ledger, queue)
        assert queue.mark_uploaded(job, "uploaded-1")
        assert queue.mark_sending(job)
        assert queue.mark_sent(job, T0 + 3)
        assert queue.mark_sent(job, T0 + 3)
        entry = ledger.get(job.id)
        assert (entry.send_state, entry.send_done_at, entry.send_uploaded_media_id) == (
            "sent",
            T0 + 3,
            "uploaded-1",
        )
        assert entry.media_state == "stored"
        assert queue.claim_sends(T0 + 100, 15) == []

    def test_one_that_died_after_the_upload_need_not_upload_again(self, ledger, queue):
        queue.mark_uploaded(send(ledger, queue), "uploaded-1")
        (job,) = queue.claim_sends(T0 + 15, 15)
        assert (job.uploaded_media_id, job.sending) == ("uploaded-1", False)

    def test_one_that_died_while_sending_must_not_send_again(self, ledger, queue):
        queue.mark_sending(send(ledger, queue))
        (job,) = queue.claim_sends(T0 + 15, 15)
        assert job.sending
        assert queue.mark_unknown(job, "the process died while it sent", T0 + 16)
        assert queue.mark_unknown(job, "the process died while it sent", T0 + 16)
        assert queue.claim_sends(T0 + 100, 15) == []
        assert ledger.get(job.id).send_state == "unknown"

    def test_a_refusal_that_may_be_repeated_is_no_doubt(self, ledger, queue):
        job = send(ledger, queue)
        queue.mark_uploaded(job, "uploaded-1")
        queue.mark_sending(job)
        assert queue.mark_retry(job, T0 + 5, -1, "busy")
        (again,) = queue.claim_sends(T0 + 5, 15)
        assert (again.sending, again.uploaded_media_id) == (False, "uploaded-1")

    def test_refused_for_good_keeps_the_file(self, ledger, queue):
        job = send(ledger, queue)
        assert queue.mark_failed(job, 48001, "not allowed", T0 + 1)
        entry = ledger.get(job.id)
        assert (entry.send_state, entry.send_code, entry.media_state) == ("failed", 48001, "stored")
        assert entry.media_code is None

    def test_a_lost_lease(self, ledger, queue):
        dead = send(ledger, queue)
        (job,) = queue.claim_sends(T0 + 15, 15)
        assert not queue.mark_uploaded(dead, "uploaded-1")
        assert not queue.mark_sending(dead)
        assert not queue.mark_sent(dead, T0)
        assert not queue.mark_unknown(dead, "time-out", T0)
        assert queue.extend(job, T0 + 20, 15)
        assert queue.give_back(job)


class TestRetry:
    def test_a_failed_download_is_due_again_and_its_send_waits(self, ledger, queue):
        job = download(ledger, queue, send_back=True)
        queue.mark_failed(job, 40007, "no such media", T0)
        assert queue.retry([job.id], T0 + 50) == 1
        entry = ledger.get(job.id)
        assert (entry.send_state, entry.send_done_at, entry.media_done_at) == ("waiting", None, None)
        (again,) = queue.claim_downloads(T0 + 50, 15)
        assert again.attempt == 2
        assert queue.mark_stored(again, FILE, T0 + 51)
        assert len(queue.claim_sends(T0 + 51, 15)) == 1

    def test_a_failed_send_is_due_again_with_a_new_upload(self, ledger, queue):
        job = send(ledger, queue)
        queue.mark_uploaded(job, "uploaded-1")
        queue.mark_sending(job)
        queue.mark_failed(job, 45015, "out of time", T0)
        assert queue.retry(None, T0 + 50) == 1
        (again,) = queue.claim_sends(T0 + 50, 15)
        assert (again.id, again.uploaded_media_id, again.sending) == (job.id, None, False)

    def test_unknown_only_by_its_id(self, ledger, queue):
        job = send(ledger, queue)
        queue.mark_unknown(job, "time-out", T0)
        assert queue.retry(None, T0) == 0
        assert ledger.get(job.id).send_state == "unknown"
        assert queue.retry([job.id], T0) == 1
        assert len(queue.claim_sends(T0, 15)) == 1

    def test_what_did_not_fail_stays(self, ledger, queue):
        stored, pending = download(ledger, queue, 1), ledger.record(image(2), None, T0)
        queue.mark_stored(stored, FILE, T0)
        words = ledger.record(text(3), None, T0)
        assert queue.retry([stored.id, pending.id, words.id, 999], T0) == 0
        assert queue.retry([], T0) == queue.retry(None, T0) == 0

    def test_all_of_many(self, ledger, queue, monkeypatch):
        monkeypatch.setattr(storage.queue, "BATCH", 3)
        for number in range(8):
            queue.mark_failed(download(ledger, queue, number), None, "no", T0)
        ids = [job.id for job in queue.claim_downloads(T0, 15, limit=10)]
        assert ids == []
        assert queue.retry(None, T0) == 8
        jobs = queue.claim_downloads(T0, 15, limit=10)
        assert len(jobs) == 8
        for job in jobs:
            queue.mark_failed(job, None, "no", T0)
        assert queue.retry([job.id for job in jobs], T0) == 8


class TestStatus:
    def test_nothing(self, ledger):
        assert ledger.status(T0) == Status(0, 0, 0, 0, 0.0)

    def test_counts_and_age(self, ledger, queue):
        for number in range(3):
            queue.mark_stored(download(ledger, queue, number, send_back=number == 0), FILE, T0)
        queue.mark_failed(download(ledger, queue, 3), None, "no", T0)
        ledger.record(image(4), None, T0 + 10, send_back=True)
        ledger.record(image(5), None, T0 + 20)
        ledger.record(text(6), None, T0 - 99)
        queue.claim_downloads(T0 + 30, 15)
        assert ledger.status(T0 + 40) == Status(
            pending=2, stored=3, failed=1, replies_pending=2, oldest_pending_seconds=30.0
        )
        assert ledger.status(T0).oldest_pending_seconds == 0.0


def test_the_last_claim_is_noted_now_and_then(queue):
    """By whichever process, and whether there was work or not: it tells that somebody can ask."""
    assert queue.last_claim_at() is None
    for now, noted in ((T0, T0), (T0 + 5, T0), (T0 + 10, T0 + 10), (T0 - DAY, T0 - DAY)):
        queue.claim_downloads(now, 15)
        assert queue.last_claim_at() == noted


def test_a_claim_that_cannot_be_noted_takes_nothing(ledger, queue, database):
    """What is claimed without its claimer's knowledge would wait for the lease's end."""
    ledger.record(image(1), None, T0)
    database.run(partial(execute, "ALTER TABLE last_claims RENAME COLUMN at TO away"))
    with pytest.raises(sqlalchemy.exc.DBAPIError):
        queue.claim_downloads(T0, 15)
    database.run(partial(execute, "ALTER TABLE last_claims RENAME COLUMN away TO at"))
    assert len(queue.claim_downloads(T0, 15)) == 1
    assert queue.last_claim_at() == T0


class TestPurge:
    def test_by_age_in_batches_with_the_files(self, ledger, queue, purge_rows):
        jobs = []
        for number in range(4):
            jobs.append(download(ledger, queue, number, now=T0 + number * DAY))
            queue.mark_stored(jobs[-1], StoredFile(f"{jobs[-1].stem}.jpg", 1, "00"), T0 + 9 * DAY)
        words = ledger.record(text(9), None, T0 + 2 * DAY)
        now = T0 + 10 * DAY
        assert purge_rows.purge(now, before=T0) == 0
        assert purge_rows.purge(now, before=T0 + 3 * DAY, limit=3) == 3
        assert purge_rows.purge(now, before=T0 + 3 * DAY, limit=3) == 1
        assert purge_rows.purge(now, before=T0 + 3 * DAY, limit=3) == 0
        assert ledger.get(words.id) is None
        assert ledger.get(jobs[3].id) is not None
        stems = purge_rows.files_to_delete(now)
        assert sorted(stems) == [job.stem for job in jobs[:3]]
        purge_rows.mark_deleted(stems[:2])
        assert purge_rows.files_to_delete(now) == stems[2:]
        purge_rows.mark_deleted(stems)
        assert purge_rows.files_to_delete(now) == []

    def test_an_empty_ledger(self, purge_rows):
        assert purge_rows.purge(T0, before=T0) == purge_rows.purge(T0, fan=FAN) == 0
        with pytest.raises(ValueError, match="time or a fan"):
            purge_rows.purge(T0)

    def test_by_age_though_the_clock_jumped(self, ledger, purge_rows):
        times = [1, 2, 50, 3, 4, 5, 60, 61]
        ids = [ledger.record(text(number), None, T0 + time).id for number, time in enumerate(times)]
        while purge_rows.purge(T0, before=T0 + 10, limit=2):
            pass
        left = [entry.received_at - T0 for entry in map(ledger.get, ids) if entry is not None]
        assert left == [50, 60, 61]

    def test_an_id_never_comes_again(self, ledger, purge_rows):
        newest = ledger.record(image(1), None, T0)
        purge_rows.purge(T0, fan=FAN)
        assert ledger.record(image(1), None, T0).id > newest.id

    def test_by_fan(self, ledger, purge_rows):
        mine = [ledger.record(image(number), None, T0 + number).id for number in range(3)]
        hers = ledger.record(image(1, OTHER_FAN), None, T0)
        assert purge_rows.purge(T0, fan=FAN, before=T0 + 1) == 1
        assert purge_rows.purge(T0, fan=FAN, limit=1) == 1
        assert purge_rows.purge(T0, fan=FAN) == 1
        assert [ledger.get(number) for number in mine] == [None] * 3
        assert ledger.get(hers.id) is not None
        assert purge_rows.purge(T0, fan="nobody") == 0

    def test_among_very_many(self, ledger, purge_rows, database, monkeypatch):
        monkeypatch.setattr(storage.purge, "UNSETTLED_IDS", 10)
        monkeypatch.setattr(storage.purge, "BLOCK", 30)
        for number in range(100):
            ledger.record(text(number, FAN if number % 5 == 0 else OTHER_FAN), None, T0 + number)

        def in_index(fan):
            sql = f"SELECT count(*) FROM purge_index WHERE sender = '{fan}'"
            return database.run(lambda connection: connection.exec_driver_sql(sql).scalar())

        assert purge_rows.purge(T0, fan=FAN, limit=15) == 15
        assert (in_index(FAN), in_index(OTHER_FAN)) == (3, 72)
        assert purge_rows.purge(T0, fan=FAN, limit=15) == 5
        assert purge_rows.purge(T0, fan=FAN) == 0
        assert in_index(FAN) == 0
        assert purge_rows.purge(T0, before=T0 + 50) == 40
        assert in_index(OTHER_FAN) == 32
        assert count(ledger) == 40

    def test_several_at_once(self, ledger, queue, purge_rows, monkeypatch):
        monkeypatch.setattr(storage.purge, "UNSETTLED_IDS", 10)
        monkeypatch.setattr(storage.purge, "BLOCK", 7)
        for number in range(60):
            queue.mark_stored(download(ledger, queue, number), FILE, T0)
        purged = []
        barrier = threading.Barrier(4)

        def purge():
            barrier.wait()
            while rows := purge_rows.purge(T0, before=T0 + 1, limit=5):
                purged.append(rows)

        threads = [threading.Thread(target=purge) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        while rows := purge_rows.purge(T0, before=T0 + 1):
            purged.append(rows)
        assert sum(purged) == 60
        assert len(purge_rows.files_to_delete(T0 + 99)) == 60

    def test_takes_the_pending_download_and_the_worker_notices(self, ledger, queue, purge_rows):
        died = download(ledger, queue, 1, now=T0)
        assert queue.mark_retry(died, T0 + 999, None, "truncated")
        job = download(ledger, queue, 2, now=T0 + 100)
        untouched = ledger.record(image(3), None, T0 + 100)
        assert purge_rows.purge(T0 + 100, fan=FAN) == 3
        assert not queue.extend(job, T0 + 101, 15)
        assert not queue.mark_stored(job, FILE, T0 + 101)
        assert ledger.get(job.id) is None
        # What an attempt may have left is looked for once no worker can be at it any more.
        assert purge_rows.files_to_delete(T0 + 100) == [died.stem]
        purge_rows.mark_deleted([died.stem])
        # The row that no attempt was made for has nothing to look for.
        assert ledger.get(untouched.id) is None
        assert purge_rows.files_to_delete(T0 + 115) == [job.stem]


WORKER = """
import sys
from storage.database import connect
from storage.ledger import Ledger
from storage.purge import PurgeRows
from storage.queue import Queue
database = connect(sys.argv[1], sync="normal")
ledger, queue = Ledger(database, sys.argv[2]), Queue(database, sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
{}
"""

CLAIM_ALL = """
claimed = []
while jobs := queue.claim_downloads(float(sys.argv[3]), 15, limit=2):
    claimed += [job.id for job in jobs]
print(*claimed, flush=True)
"""

CLAIM_AND_HANG = """
print(*[job.id for job in queue.claim_downloads(float(sys.argv[3]), 15, limit=3)], flush=True)
sys.stdin.readline()
"""

STORE_AND_HANG = """
from pathlib import Path
from storage.disk import DiskStore
(job,) = queue.claim_downloads(float(sys.argv[3]), 15)
stored = DiskStore(Path("{}")).put(job.stem, [b"photo"], extension=lambda _: "jpg", attempt=job.attempt)
print(stored.key, flush=True)
sys.stdin.readline()
"""

RECORD = """
from tests.test_ledger import image
print(*[ledger.record(image(number), b"<xml/>", float(sys.argv[3])).id for number in range(50)], flush=True)
"""


@pytest.fixture
def workers(database_url):
    """Starts processes that run the code together; they end with the test."""
    processes = []

    def start(code, number):
        started = [
            Talking([sys.executable, "-c", WORKER.format(code), database_url, APPID, str(T0)], os.environ)
            for _ in range(number)
        ]
        processes.extend(started)
        for process in started:
            assert process.stdout.readline() == "ready\n"
        for process in started:
            process.stdin.write("go\n")
            process.stdin.flush()
        return started

    yield start
    for process in processes:
        process.communicate()  # the end of its input ends it


class TestProcesses:
    def test_never_share_a_claim(self, ledger, workers):
        for number in range(200):
            ledger.record(image(number), None, T0)
        claimed = [
            int(word) for process in workers(CLAIM_ALL, 3) for word in process.stdout.readline().split()
        ]
        assert Counter(claimed) == Counter(range(1, 201))

    def test_record_the_same_messages_once(self, ledger, workers):
        answers = [process.stdout.readline() for process in workers(RECORD, 3)]
        assert len(set(answers)) == 1
        assert count(ledger) == 50

    def test_one_killed_gives_its_work_back(self, ledger, queue, workers):
        for number in range(5):
            ledger.record(image(number), None, T0)
        (process,) = workers(CLAIM_AND_HANG, 1)
        taken = [int(word) for word in process.stdout.readline().split()]
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert len(taken) == 3
        assert len(queue.claim_downloads(T0 + 1, 15, limit=9)) == 2
        again = queue.claim_downloads(T0 + 15, 15, limit=9)
        assert [job.id for job in again if job.attempt == 2] == taken[:3]

    def test_one_killed_between_the_file_and_its_mark(self, ledger, queue, workers, tmp_path):
        ledger.record(image(1), REPLY, T0, send_back=True)
        (process,) = workers(STORE_AND_HANG.format(str(tmp_path / "media")), 1)
        key = process.stdout.readline().strip()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert queue.claim_sends(T0 + 15, 15) == []
        (job,) = queue.claim_downloads(T0 + 15, 15)
        store = DiskStore(tmp_path / "media")
        stored = store.put(job.stem, [b"photo"], extension=lambda _: "jpg", attempt=job.attempt)
        assert stored.key == key
        assert queue.mark_stored(job, stored, T0 + 16)
        assert [path.name for path in tmp_path.glob("media/**/*.*") if path.is_file()] == [f"{job.id}.jpg"]
        assert [send.media_key for send in queue.claim_sends(T0 + 16, 15)] == [key]


class TestCost:
    """What keeps the ledger quick when it is large: the indexes are used, and pushes touch few of them."""

    def plan(self, database, sql, values=None):
        prefix = "EXPLAIN QUERY PLAN " if database.is_sqlite else "EXPLAIN "

        def explain(connection):
            if not database.is_sqlite:  # or a small table is read through
                connection.exec_driver_sql("SET enable_seqscan = off")
                connection.exec_driver_sql("SET enable_bitmapscan = off")
            return "\n".join(str(tuple(row)) for row in connection.exec_driver_sql(prefix + sql, values))

        try:
            return database.run(explain)
        finally:
            database.close()

    @pytest.mark.parametrize(
        ("condition", "index"),
        [
            (f"message_key = 'm:1' AND sender = '{FAN}' AND appid = '{APPID}'", "messages_key"),
            (
                f"appid = '{APPID}' AND media_state = 'pending' AND media_due <= 1 ORDER BY media_due",
                "downloads_due",
            ),
            (
                f"appid = '{APPID}' AND send_state = 'pending' AND send_due <= 1 ORDER BY send_due",
                "sends_due",
            ),
            (f"appid = '{APPID}' AND media_state = 'failed' AND id > 1 ORDER BY id", "downloads_failed"),
            (f"appid = '{APPID}' AND send_state = 'failed' AND id > 1 ORDER BY id", "sends_failed"),
            (f"appid = '{APPID}' AND media_state = 'stored'", "downloads_stored"),
        ],
    )
    def test_indexes_are_used(self, database, condition, index):
        plan = self.plan(database, f"SELECT id FROM messages WHERE {condition}")
        assert index in plan
        assert "TEMP B-TREE" not in plan
        assert "Sort" not in plan

    @pytest.mark.parametrize(("lane", "index"), [("media", "downloads_due"), ("send", "sends_due")])
    def test_a_claim_uses_its_index(self, database, monkeypatch, lane, index):
        prepared, statements = database.prepared, []

        def prepare(statement):
            statements.append(statement)
            return prepared(statement)

        monkeypatch.setattr(database, "prepared", prepare)
        Queue(database, APPID)
        dialect = database.run(lambda connection: connection.dialect)
        (claim,) = [
            compiled
            for compiled in (statement.compile(dialect=dialect) for statement in statements)
            if f"{lane}_due <= " in compiled.string
        ]
        assert f"{lane}_state = 'pending'" in claim.string
        assert ("FOR UPDATE SKIP LOCKED" in claim.string) is not database.is_sqlite
        values = claim.construct_params(
            {"of_appid": APPID, "now": T0, "at_most": 1, "until": T0, "new_claim": 1}
        )
        if claim.positiontup is not None:
            values = tuple(values[name] for name in claim.positiontup)
        assert index in self.plan(database, claim.string, values)


def test_pushes_wait_for_postgresql_and_are_kept(postgresql, postgresql_url):
    database = connect(postgresql_url)
    ledger = Ledger(database, APPID)
    ledger.record(image(1), REPLY, T0)
    postgresql.crash()
    results = []
    threads = [
        threading.Thread(target=lambda n=number: results.append(ledger.record(image(n), REPLY, T0, wait=20)))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    started = time.monotonic()
    with pytest.raises(DatabaseUnavailableError):
        ledger.record(image(9), REPLY, T0, wait=0.2)
    assert time.monotonic() - started < 5
    postgresql.start()
    for thread in threads:
        thread.join()
    assert len({recorded.id for recorded in results}) == 4
    assert count(ledger) == 4
    database.close()


def test_messages_that_come_together_share_a_commit_of_postgresql(postgresql_url):
    database = connect(postgresql_url)
    ledger = Ledger(database, APPID)
    commits = sqlalchemy.text("SELECT count(DISTINCT xmin::text) FROM messages")
    for first in range(0, 800, 8):
        works = [
            partial(ledger.record, image(first + more), b"<xml>%d</xml>" % more, T0) for more in range(8)
        ]
        in_threads(*works)
        for more in range(8):
            assert ledger.find(image(first + more)).reply == b"<xml>%d</xml>" % more
        if database.run(lambda connection: connection.execute(commits).scalar_one()) < first + 8:
            break
    else:
        pytest.fail("each of 800 had a commit of its own")
    database.close()


def test_one_that_postgresql_refuses_does_no_harm_to_those_that_come_with_it(postgresql_url):
    database = connect(postgresql_url)
    ledger = Ledger(database, APPID)
    refused = []

    def refuse():
        too_long = dataclasses.replace(image(1), create_time=2**80)
        with pytest.raises(psycopg.DataError) as caught:
            ledger.record(too_long, REPLY, T0)
        refused.append(caught.value)

    for first in range(100, 180, 8):
        in_threads(refuse, *(partial(ledger.record, image(first + more), REPLY, T0) for more in range(8)))
    assert len(refused) == 10
    assert ledger.find(image(1)) is None
    assert count(ledger) == 80
    database.close()


def test_two_processes_with_the_same_messages_do_not_wait_for_each_other(postgresql, postgresql_url):
    def deadlocks():
        counted = "SELECT deadlocks FROM pg_stat_database WHERE datname = %s"
        with postgresql.connection() as connection:
            return connection.execute(counted, [sqlalchemy.make_url(postgresql_url).database]).fetchone()

    before = deadlocks()
    databases = [connect(postgresql_url), connect(postgresql_url)]
    ledgers = [Ledger(database, APPID) for database in databases]
    results = []
    for first in range(0, 400, 8):
        numbers = range(first, first + 8)
        in_threads(
            *(
                lambda ledger=ledger, number=number: results.append(ledger.record(image(number), REPLY, T0))
                for ledger, order in zip(ledgers, (numbers, numbers[::-1]), strict=True)
                for number in order
            )
        )
    assert Counter(Counter(recorded.id for recorded in results).values()) == {2: 400}
    assert count(ledgers[0]) == 400
    for database in databases:
        database.close()
    assert deadlocks() == before


def test_what_was_answered_is_there_after_a_crash_of_postgresql(postgresql, postgresql_url):
    database = connect(postgresql_url)
    ledger = Ledger(database, APPID)
    answered, enough = [], threading.Event()

    def record(numbers):
        for number in numbers:
            with suppress(DatabaseUnavailableError):
                answered.append((ledger.record(image(number), REPLY, T0, wait=0.1).id, number))
            if enough.is_set():
                break

    def crash():
        for goal in (100, 200, 300):
            eventually(lambda goal=goal: len(answered) >= goal)
            postgresql.crash()
            postgresql.start()
        enough.set()

    in_threads(crash, *(partial(record, count_from(thread * 1_000_000)) for thread in range(1, 9)))
    assert len(answered) >= 300
    for ledger_id, number in answered:
        assert ledger.find(image(number)) == Recorded(ledger_id, REPLY)
    database.close()


def test_what_a_clock_that_ran_ahead_put_off_is_due_when_it_is_right_again(ledger, queue):
    ran_ahead = T0 + DAY
    ledger.record(image(1), REPLY, ran_ahead)
    claimed = download(ledger, queue, 2, now=T0)
    assert queue.extend(claimed, ran_ahead, 15)
    (again,) = queue.claim_downloads(T0 + 1, 15)
    assert again.id == claimed.id, "who held it until tomorrow is gone"
    assert not queue.mark_stored(claimed, FILE, T0 + 1)
    assert queue.claim_downloads(T0 + 2, 15) == []
    assert queue.bring_back(T0 + 3) == 1
    assert queue.bring_back(T0 + 3) == 0
    (put_off,) = queue.claim_downloads(T0 + 3, 15)
    assert put_off.media_id == "media-1"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_step_that_is_not_in_the_table_is_refused_by_the_tests_databases(ledger, database):
    """So each UPDATE of a state that a test runs, here and in test_deferred, is one of the table's steps."""
    assert set(MEDIA_STEPS) == {None, *MediaState}
    assert set(SEND_STEPS) == {None, *SendState}
    assert set(WORK_STEPS) == set(WorkState)
    for steps in (MEDIA_STEPS, SEND_STEPS, WORK_STEPS):
        assert {state for following in steps.values() for state in following} <= set(steps)
    recorded = ledger.record(image(1), None, T0, send_back=True)
    for wrong in ("send_state = 'sent'", "media_state = NULL"):
        statement = f"UPDATE messages SET {wrong} WHERE id = {recorded.id}"
        with pytest.raises(sqlalchemy.exc.IntegrityError, match=r"not a step of storage\.states"):
            database.write(partial(execute, statement))
