"""Purging: rows and files go together, in batches, whatever process dies; by age, by fan, by unsubscribing."""

import errno
import io
import os
import threading
import time
from functools import partial
from pathlib import Path

import pytest
from botocore.awsrequest import AWSResponse
from botocore.httpsession import URLLib3Session
from urllib3 import HTTPResponse

from storage.deferred import DeferredWork
from storage.disk import DiskStore
from storage.files import StoreError
from storage.memories import Change, Memories, StoredMemory
from storage.purge import Purge, Purged
from storage.s3 import S3Store
from storage.thumbnails import Thumbnails
from tests import pushing
from tests.conftest import FAN, eventually
from tests.databases import APPID
from tests.test_cli import last
from tests.test_flow import control, send, stored
from tests.test_worker import PHOTO, make_rig  # noqa: F401
from wechat.formats import extension
from wechat.messages import parse_message
from worker.chores import keep_tidy

OTHER = "oTest-ZyXwVuTsRqPoNmLkJiHg_2"
NOW = 1_800_000_000.0


@pytest.fixture
def thumbnails(request, tmp_path):
    """Those beside the store of the test."""
    on_disk = request.node.callspec.params["store"] == "disk"
    place = f"{tmp_path}/media" if on_disk else request.getfixturevalue("s3_url")
    return Thumbnails(place)


@pytest.fixture
def purge_in_folder(purge_rows, tmp_path):
    """purge_in_folder(stopped) -> a Purge whose store is a folder, where the rows are what is tried."""
    return partial(Purge, purge_rows, DiskStore(tmp_path / "media"), Thumbnails(f"{tmp_path}/media"))


def keep(ledger, queue, store, number, fan=FAN, now=NOW, finish=True):
    """A message whose picture is stored; its entry's id."""
    recorded = ledger.record(parse_message(pushing.image(number, fan=fan).encode()), b"<xml/>", now)
    if finish:
        (job,) = queue.claim_downloads(now, 15)
        done = store.put(job.stem, [PHOTO.read_bytes()], extension=extension, attempt=1)
        assert queue.mark_stored(job, done, now)
    return recorded.id


def test_rows_and_files_go_together(ledger, queue, purge_rows, store, thumbnails):
    old = [keep(ledger, queue, store, number, now=NOW - 90 * 86400 + number) for number in range(5)]
    new = keep(ledger, queue, store, 99)
    keys = [ledger.get(each).media_key for each in old]
    assert Purge(purge_rows, store, thumbnails).purge(NOW, before=NOW - 30 * 86400) == Purged(rows=5, files=5)
    assert [ledger.get(each) for each in old] == [None] * 5
    assert [store.size(key) for key in keys] == [None] * 5
    assert store.size(ledger.get(new).media_key) == PHOTO.stat().st_size
    assert Purge(purge_rows, store, thumbnails).purge(NOW, before=NOW - 30 * 86400) == Purged(0, 0)


def test_a_thumbnail_goes_with_its_picture(ledger, queue, purge_rows, store, thumbnails):
    key = ledger.get(keep(ledger, queue, store, 1)).media_key
    thumbnails.put(key, b"\xff\xd8")
    with thumbnails.open(key) as small:
        assert small.read(2) == b"\xff\xd8"
    Purge(purge_rows, store, thumbnails).purge(NOW, fan=FAN)
    with pytest.raises(FileNotFoundError):
        thumbnails.open(key)


def test_one_fan_goes_and_the_others_stay(ledger, queue, purge_rows, store, thumbnails):
    mine = [keep(ledger, queue, store, number) for number in range(3)]
    other = keep(ledger, queue, store, 7, fan=OTHER)
    assert Purge(purge_rows, store, thumbnails).purge(NOW, fan=FAN) == Purged(rows=3, files=3)
    assert [ledger.get(each) for each in mine] == [None] * 3
    assert ledger.get(other).media_state == "stored"


def test_a_crash_between_row_and_file_is_made_good(ledger, queue, purge_rows, store, thumbnails):
    key = ledger.get(keep(ledger, queue, store, 1)).media_key
    assert purge_rows.purge(NOW, fan=FAN) == 1  # and here the process died
    assert store.size(key) is not None
    assert Purge(purge_rows, store, thumbnails).delete_files(NOW) == 1
    assert store.size(key) is None
    assert purge_rows.files_to_delete(NOW + 1e6) == []


def test_whatever_lies_under_a_purged_stem_goes(ledger, queue, purge_rows, store, thumbnails):
    entry = ledger.get(keep(ledger, queue, store, 1))
    stem = entry.media_key.rpartition(".")[0]
    other = store.put(f"{stem}0", [b"of another message"], extension=lambda _: "jpg", attempt=1)
    store.put(stem, [b"of an attempt that lost its claim"], extension=lambda _: "bin", attempt=1)
    assert Purge(purge_rows, store, thumbnails).purge(NOW, fan=FAN) == Purged(rows=1, files=2)
    assert store.size(entry.media_key) is store.size(f"{stem}.bin") is None
    assert store.size(other.key) is not None


def test_nothing_is_forgotten_before_the_folders_are_on_the_disk(
    ledger, queue, purge_rows, tmp_path, monkeypatch
):
    """Else a power cut brings the files back, and nobody knows that they are to go."""
    store = DiskStore(tmp_path / "media")
    thumbnails = Thumbnails(f"{tmp_path}/media")
    stem = ledger.get(keep(ledger, queue, store, 1)).media_key.rpartition(".")[0]
    small = DiskStore(tmp_path / "media-thumbnails")
    small.put(stem, [b"small"], extension=lambda _: "jpg", attempt=1)
    purge_rows.purge(NOW, fan=FAN)
    sync, synced = os.fsync, []
    lost = {"media": False, "media-thumbnails": False}

    def unreliable(handle):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        for name in lost:
            if (tmp_path / name) in path.parents and path.is_dir():
                synced.append(name)
                if lost[name]:
                    raise OSError(errno.EIO, "the disk failed")
        sync(handle)

    monkeypatch.setattr(os, "fsync", unreliable)
    for failing in lost:
        lost[failing] = True
        with pytest.raises(OSError, match="the disk failed"):
            Purge(purge_rows, store, thumbnails).delete_files(NOW)
        assert purge_rows.files_to_delete(NOW) == [stem]
        lost[failing] = False
    synced.clear()
    Purge(purge_rows, store, thumbnails).delete_files(NOW)
    assert set(synced) == {"media", "media-thumbnails"}, "though the files were gone already"
    assert purge_rows.files_to_delete(NOW) == []


def test_a_file_that_cannot_be_deleted_holds_up_no_other_one(
    ledger, queue, purge_rows, purge_in_folder, tmp_path
):
    """Neither one of its day nor one of a later batch: each may be of a fan who asked for it."""
    for number in range(502):
        now = NOW - 86400 * (number > 0)
        ledger.record(parse_message(pushing.image(number).encode()), None, now)
    stems = sorted(job.stem for job in queue.claim_downloads(NOW - 15, 15, limit=502))
    store = DiskStore(tmp_path / "media")
    for stem in stems[:50] + stems[-2:]:  # the folders list them in any order
        store.put(stem, [b"x"], extension=lambda _: "jpg", attempt=1)
    kept = [tmp_path / "media" / f"{stem}.kept" for stem in (stems[0], stems[-1])]
    for folder in kept:
        folder.mkdir()  # what nobody can unlink, not even root
    purge = purge_in_folder()
    for _ in range(2):
        with pytest.raises(OSError, match="kept"):
            purge.purge(NOW, fan=FAN)
        assert not list((tmp_path / "media").rglob("*.jpg"))
    for folder in kept:
        folder.rmdir()
    purge.delete_files(NOW)
    assert purge_rows.files_to_delete(NOW) == []


def test_an_object_that_the_bucket_keeps_holds_up_no_other_one(
    ledger, queue, purge_rows, s3_url, monkeypatch
):
    """A rule may protect some for a time: pictures, or thumbnails."""
    store, thumbnails = S3Store(s3_url), Thumbnails(s3_url)
    keys = [ledger.get(keep(ledger, queue, store, number)).media_key for number in range(3)]
    for key in keys:
        thumbnails.put(key, b"\xff\xd8")
    send_on, kept = URLLib3Session.send, [f"/prefix/{keys[1]}", f"/prefix-thumbnails/{keys[0]}"]

    def refuse(session, request):
        if request.method == "DELETE" and request.url.endswith(tuple(kept)):
            return AWSResponse(request.url, 403, {}, HTTPResponse(io.BytesIO(), preload_content=False))
        return send_on(session, request)

    monkeypatch.setattr(URLLib3Session, "send", refuse)
    purge = Purge(purge_rows, store, thumbnails)
    with pytest.raises(StoreError, match="delete: HTTP 403"):
        purge.purge(NOW, fan=FAN)
    assert [store.size(key) is not None for key in keys] == [False, True, False]
    thumbnails.open(keys[0]).close()
    for key in keys[1:]:
        with pytest.raises(FileNotFoundError):
            thumbnails.open(key)
    kept.clear()
    assert purge.delete_files(NOW) == 1
    assert purge_rows.files_to_delete(NOW) == []
    with pytest.raises(FileNotFoundError):
        thumbnails.open(keys[0])


def test_a_thumbnail_that_is_being_made_is_looked_for_again(
    ledger, queue, purge_rows, database, store, thumbnails
):
    key = ledger.get(keep(ledger, queue, store, 1)).media_key
    picture = queue.claim_picture(NOW, 120)
    assert Purge(purge_rows, store, thumbnails).purge(NOW, fan=FAN) == Purged(rows=1, files=0)
    thumbnails.put(picture.media_key, b"\xff\xd8")  # and here the process died
    assert Purge(purge_rows, store, thumbnails).delete_files(NOW + 121) == 1
    assert store.size(key) is None
    with pytest.raises(FileNotFoundError):
        thumbnails.open(key)


def test_a_download_in_the_middle_leaves_no_file(ledger, queue, purge_rows, store, thumbnails):
    keep(ledger, queue, store, 1, finish=False)
    (job,) = queue.claim_downloads(NOW, 15)
    assert Purge(purge_rows, store, thumbnails).purge(NOW, fan=FAN) == Purged(rows=1, files=0)
    done = store.put(job.stem, [PHOTO.read_bytes()], extension=extension, attempt=1)
    assert not queue.mark_stored(job, done, NOW)  # the worker dies here, with its file in place
    Purge(purge_rows, store, thumbnails).delete_files(NOW + 1)
    assert store.size(done.key) is not None, "its lease may still be running"
    Purge(purge_rows, store, thumbnails).delete_files(NOW + 16)
    assert store.size(done.key) is None


def test_a_lease_that_a_wrong_clock_set_keeps_no_file(ledger, queue, purge_rows, store, thumbnails):
    """One that ends a year from now: the file would stay for that year."""
    keep(ledger, queue, store, 1, finish=False)
    (job,) = queue.claim_downloads(NOW + 365 * 86400, 15)
    done = store.put(job.stem, [PHOTO.read_bytes()], extension=extension, attempt=1)
    assert Purge(purge_rows, store, thumbnails).purge(NOW, fan=FAN) == Purged(rows=1, files=1)
    assert store.size(done.key) is None


def test_a_deletion_noted_while_the_clock_was_wrong_is_made_good(
    ledger, queue, purge_rows, store, thumbnails
):
    key = ledger.get(keep(ledger, queue, store, 1)).media_key
    assert purge_rows.purge(NOW + 365 * 86400, fan=FAN) == 1  # and here the process died
    assert Purge(purge_rows, store, thumbnails).delete_files(NOW) == 1
    assert store.size(key) is None


def after(calls):
    """Whether to stop: no for so many questions, then yes."""
    answers = iter([False] * calls)
    return lambda: next(answers, True)


def test_a_stop_ends_a_purge_after_the_batch_in_hand(ledger, purge_in_folder):
    """It may be long: a process that is asked to end must not wait for it."""
    for number in range(501):
        ledger.record(parse_message(pushing.text(number).encode()), None, NOW - 1e6)
    some = {"now": NOW, "before": NOW - 1}
    assert purge_in_folder(after(0)).purge(**some).rows == 0
    one_batch = purge_in_folder(after(2)).purge(**some).rows
    assert 0 < one_batch < 501
    assert purge_in_folder().purge(**some).rows == 501 - one_batch


def test_a_stop_ends_the_deletion_of_files(ledger, queue, purge_rows, store, thumbnails):
    key = ledger.get(keep(ledger, queue, store, 1)).media_key
    purge_rows.purge(NOW, fan=FAN)
    assert Purge(purge_rows, store, thumbnails, after(0)).delete_files(NOW) == 0
    assert store.size(key) is not None
    assert Purge(purge_rows, store, thumbnails).delete_files(NOW) == 1


def test_a_fan_whose_purge_was_stopped_is_still_to_be_forgotten(ledger, purge_rows, purge_in_folder):
    for number in range(501):
        ledger.record(parse_message(pushing.text(number).encode()), None, NOW)
    gone = pushing.message(MsgType="event", Event="unsubscribe")
    ledger.record(parse_message(gone.encode()), None, NOW)
    assert purge_in_folder(after(2)).forget_unsubscribed(NOW) == 0
    assert ledger.get(1) is None
    assert len(purge_rows.unsubscribed()) == 1, "the event goes last"
    assert purge_in_folder().forget_unsubscribed(NOW) == 1
    assert ledger.newest(1) == []


def test_a_fan_is_forgotten_together_with_the_event_that_asks_for_it(
    database, ledger, purge_rows, purge_in_folder
):
    """Otherwise nobody would know, after a stop between the two, that the fan is still to be forgotten."""
    memories = Memories(database, ledger, APPID)
    first, change = parse_message(pushing.text(1).encode()), Change(StoredMemory(), '{"step":1}')
    memories.record(first, None, NOW, change, send_back=False)
    gone = pushing.message(MsgType="event", Event="unsubscribe")
    ledger.record(parse_message(gone.encode()), None, NOW)
    purge_in_folder(after(2)).forget_unsubscribed(NOW)
    assert purge_rows.unsubscribed() == []
    assert memories.read(FAN) == StoredMemory()


def test_a_clock_that_ran_ahead_keeps_nothing_of_a_fan_who_unsubscribed(database, ledger, purge_in_folder):
    """It may be another web process's, or was set back in between."""
    memories = Memories(database, ledger, APPID)
    first, change = parse_message(pushing.text(1).encode()), Change(StoredMemory(), '{"step":1}')
    memories.record(first, None, NOW + 3, change, send_back=False)
    gone = pushing.message(MsgType="event", Event="unsubscribe")
    ledger.record(parse_message(gone.encode()), None, NOW)
    back = ledger.record(parse_message(pushing.text(2).encode()), None, NOW + 1)
    assert purge_in_folder().forget_unsubscribed(NOW + 60) == 1
    assert [entry.id for entry in ledger.newest(3)] == [back.id], "who comes back is a new fan"
    assert memories.read(FAN) == StoredMemory()


def test_what_work_remembers_after_its_fan_unsubscribed_is_forgotten_too(database, ledger, purge_in_folder):
    memories, works = Memories(database, ledger, APPID), DeferredWork(database, ledger, APPID)
    _, work = works.record(parse_message(pushing.text(1).encode()), NOW, 15)
    gone = pushing.message(MsgType="event", Event="unsubscribe")
    ledger.record(parse_message(gone.encode()), None, NOW + 10)
    assert works.finish(work, None, NOW + 20, memory='{"step":1}')
    assert purge_in_folder().forget_unsubscribed(NOW + 60) == 1
    assert memories.read(FAN) == StoredMemory()


def test_what_a_fan_who_came_back_made_be_remembered_stays(database, ledger, purge_in_folder):
    """Also if work of before writes it once more."""
    memories, works = Memories(database, ledger, APPID), DeferredWork(database, ledger, APPID)
    _, work = works.record(parse_message(pushing.text(1).encode()), NOW, 15)
    gone = pushing.message(MsgType="event", Event="unsubscribe")
    ledger.record(parse_message(gone.encode()), None, NOW + 10)
    back, change = parse_message(pushing.text(2).encode()), Change(StoredMemory(), '{"step":1}')
    memories.record(back, None, NOW + 15, change, send_back=False)
    assert works.finish(work, None, NOW + 20, memory='{"step":2}')
    assert purge_in_folder().forget_unsubscribed(NOW + 60) == 1
    assert memories.read(FAN).json == '{"step":2}'


def test_a_fan_is_forgotten_however_the_event_is_spelled(ledger, purge_in_folder):
    ledger.record(parse_message(pushing.text(1).encode()), None, NOW)
    gone = pushing.message(MsgType="event", Event="Unsubscribe")
    ledger.record(parse_message(gone.encode()), None, NOW)
    assert purge_in_folder().forget_unsubscribed(NOW) == 1
    assert ledger.newest(10) == []


def test_a_stop_between_two_accounts_ends_the_round():
    stop, tidied = threading.Event(), []

    class Account:
        account = ""

        def tidy_once(self, stopped):
            tidied.append(self)
            stop.set()
            assert stopped()

    keep_tidy([Account(), Account()], stop, lambda: 0.0)
    assert len(tidied) == 1


def test_pushes_go_on_while_a_purge_runs(ledger, purge_in_folder):
    for number in range(1200):
        ledger.record(parse_message(pushing.text(number).encode()), None, NOW - 1e6)
    slowest = 0.0
    purging = threading.Thread(target=lambda: purge_in_folder().purge(NOW, before=NOW - 1))
    purging.start()
    number = 5000
    while purging.is_alive():
        started = time.monotonic()
        ledger.record(parse_message(pushing.text(number).encode()), None, NOW)
        slowest = max(slowest, time.monotonic() - started)
        number += 1
    purging.join()
    assert slowest < 5
    assert ledger.get(1) is None
    assert ledger.find(parse_message(pushing.text(5000).encode())) is not None


@pytest.mark.parametrize("wanted", [True, False])
def test_unsubscribing_purges_a_fan_only_when_asked_to(make_rig, wanted):  # noqa: F811
    rig = make_rig(PURGE_ON_UNSUBSCRIBE="1" if wanted else "0")
    worker = rig.app.extensions["accounts"].worker
    entry = rig.push()
    while rig.worker.run_once():
        pass
    client = rig.app.test_client()
    for fan, xml in (
        (FAN, pushing.message(MsgType="event", Event="unsubscribe")),
        (OTHER, pushing.text(77, fan=OTHER)),
    ):
        path, body = pushing.plain(xml)
        assert client.post(path, data=body).status_code == 200, fan
    worker.tidy_once()
    assert (rig.entry(entry) is None) == wanted
    assert (rig.stored_files() == []) == wanted
    assert len(rig.parts.purge_rows.unsubscribed()) == (0 if wanted else 1)
    assert rig.parts.ledger.find_by_msg_id(77), "others' messages stay"
    again = rig.push()
    worker.tidy_once()
    assert rig.entry(again) is not None, "who comes back is a new fan"


def test_retention_is_kept_by_the_workers_own_look(make_rig):  # noqa: F811
    rig = make_rig(RETENTION_DAYS="30")
    entry = rig.push()
    while rig.worker.run_once():
        pass
    rig.worker.tidy_once()
    assert rig.entry(entry) is not None
    rig.now += 31 * 86400
    rig.worker.tidy_once()
    assert rig.entry(entry) is None
    assert rig.stored_files() == []


def test_the_command(sandbox, make_bot):
    bot = make_bot(sandbox)
    bot.web()
    control(sandbox, "rules", {}, "PUT")
    mine, other = send(sandbox), send(sandbox, fan=OTHER)
    for push in (mine, other):
        stored(bot, push)
        # A file that is being made small would be deleted later.
        eventually(lambda push=push: stored(bot, push).thumbnail_state == "made", what="the thumbnail")
    assert last(bot.flask("ledger", "purge", "--before", "1")) == {"rows": 0, "files": 0}
    assert last(bot.flask("ledger", "purge", "--fan", FAN)) == {"rows": 1, "files": 1}
    assert last(bot.flask("ledger", "purge", "--before", "0")) == {"rows": 1, "files": 1}
    assert bot.flask("ledger", "purge").returncode == 2
    assert bot.ledger.status(0).stored == 0
    assert not [path for path in (bot.folder / "media").rglob("*") if path.is_file()]
