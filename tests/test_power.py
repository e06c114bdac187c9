"""Power cuts, counted from outside: a bot on a file system that forgets, under load from its first second on.

The sandbox is the platform, and knows what was sent and what was answered. After each cut that is compared with what
the disk still holds; the bot then starts again on that, and the power is cut once more. At last it runs on an ordinary
folder until nothing is left to do. `make test` cuts a few times, `make faults` (--full) a hundred.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
import random
import re
import shutil
import sqlite3
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
import requests
from PIL import Image

import parts
from config import Settings
from sandbox import THROWAWAY, running_sandbox
from storage.database import connect
from storage.disk import DiskStore
from storage.ledger import Ledger
from storage.purge import Purge, Purged, PurgeRows
from storage.queue import Queue
from storage.thumbnails import Thumbnails
from tests import pushing
from tests.conftest import FAN, NOT_TRIED, Bot, eventually, free_port, missing
from tests.forgetful import NO_LIBFUSE, PAGE_BYTES, CannotMountError, forgetful
from tests.test_faults import opened
from wechat.formats import extension
from wechat.messages import parse_message

THREADS = 4
PICTURES_OF_A_FAN = 3
NUMBERS = itertools.count(1)
LOST = "answered and lost"
PROMISED = {
    "full": "nothing answered is lost, nothing stored without its file, nothing deleted comes back, no id twice",
    "normal": "the same, but for what was answered in the second before the cut",
}
NORMAL_LOSES_SECONDS = 5.0  # the documents say one, and what the disk then takes; a busy machine gets more


@pytest.fixture(scope="module", autouse=True)
def _power_can_be_cut(tmp_path_factory):
    """CI can install libfuse, but not the kernel's /dev/fuse or the right to mount."""
    try:
        with forgetful(tmp_path_factory.mktemp("try") / "disk"):
            pass
    except CannotMountError as error:
        if str(error) == NO_LIBFUSE:
            missing(f"power cuts: {error}")
        pytest.skip(f"{NOT_TRIED}power cuts: {error}")


# -- the file system itself ---------------------------------------------------------------------------------------


def test_only_what_was_synced_is_left(tmp_path):
    with forgetful(tmp_path / "disk") as disk:
        new = disk.mount / "new"
        new.mkdir()
        (new / "nobody synced the folder").touch()
        kept = disk.mount / "kept"
        kept.write_bytes(b"first")
        _sync(kept)
        _sync(disk.mount)
        kept.write_bytes(b"second, without a sync")
        renamed = kept.rename(new / "renamed")
        (disk.mount / "later").touch()
        assert renamed.read_bytes() == b"second, without a sync"
        disk.cut(tmp_path / "left")
        with pytest.raises(OSError, match="Input/output error"):
            kept.touch()
    left = tmp_path / "left"
    assert sorted(path.name for path in left.rglob("*")) == ["kept", "new"]
    assert (left / "kept").read_bytes() == b"first"
    with forgetful(tmp_path / "again", left) as disk:
        assert (disk.mount / "kept").read_bytes() == b"first"


def test_by_chance_some_of_the_rest_is_left(tmp_path):
    with forgetful(tmp_path / "disk") as disk:
        for number in range(40):
            (disk.mount / str(number)).touch()
        pages = disk.mount / "pages"
        pages.write_bytes(bytes(40 * PAGE_BYTES))
        _sync(pages)
        _sync(disk.mount)
        with pages.open("r+b") as file:
            file.write(b"x" * 40 * PAGE_BYTES)
        for number in range(40):
            (disk.mount / str(number)).unlink()
        disk.cut(tmp_path / "left", seed=1)
    left = tmp_path / "left"
    assert 0 < len(list(left.iterdir())) - 1 < 40
    content = (left / "pages").read_bytes()
    whole = [content[at : at + PAGE_BYTES] for at in range(0, len(content), PAGE_BYTES)]
    assert set(whole) == {bytes(PAGE_BYTES), b"x" * PAGE_BYTES}


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


# -- one thing done, and the power cut right after it ---------------------------------------------------------------


@pytest.mark.parametrize("sync", ["full", "normal"])
@pytest.mark.parametrize("way", ["purge", "delete"])
def test_what_has_no_file_is_deleted_for_good_too(tmp_path, sync, way):
    with forgetful(tmp_path / "disk") as disk:
        database = connect(_places(disk.mount)["DATABASE_URL"], sync=sync)
        rows = PurgeRows(database, THROWAWAY.appid)
        ledger = Ledger(database, THROWAWAY.appid)
        recorded = ledger.record(parse_message(pushing.text(1).encode()), None, time.time())
        database.sync()
        if way == "delete":
            assert rows.delete(recorded.id, time.time())
        else:
            media = disk.mount / "data" / "media"
            stores = DiskStore(media), Thumbnails(str(media))
            assert Purge(rows, *stores).purge(time.time(), fan=FAN) == Purged(rows=1, files=0)
        disk.cut(tmp_path / "left")
        database.close()
    database = connect(_places(tmp_path / "left")["DATABASE_URL"])
    assert Ledger(database, THROWAWAY.appid).get(recorded.id) is None
    database.close()


@pytest.mark.parametrize("sync", ["full", "normal"])
def test_a_message_that_may_have_left_is_not_sent_again(tmp_path, sync):
    with forgetful(tmp_path / "disk") as disk:
        database = connect(_places(disk.mount)["DATABASE_URL"], sync=sync)
        queue = Queue(database, THROWAWAY.appid)
        message = parse_message(pushing.image(1).encode())
        Ledger(database, THROWAWAY.appid).record(message, None, time.time(), send_back=True)
        (job,) = queue.claim_downloads(time.time(), 15)
        stored = DiskStore(tmp_path / "media").put(job.stem, [_plain_jpeg()], extension=extension, attempt=1)
        assert queue.mark_stored(job, stored, time.time())
        (send,) = queue.claim_sends(time.time(), 15)
        assert queue.mark_sending(send)
        disk.cut(tmp_path / "left")
        database.close()
    database = connect(_places(tmp_path / "left")["DATABASE_URL"])
    (send,) = Queue(database, THROWAWAY.appid).claim_sends(time.time() + 60, 15)
    assert send.sending
    database.close()


@pytest.mark.parametrize("sync", ["full", "normal"])
def test_what_a_command_has_done_is_done(tmp_path, make_bot, sandbox, sync):
    before, after = tmp_path / "before", tmp_path / "after"
    database = connect(_places(before)["DATABASE_URL"])
    ledger, queue = Ledger(database, THROWAWAY.appid), Queue(database, THROWAWAY.appid)
    recorded = ledger.record(parse_message(pushing.image(1).encode()), None, time.time())
    (job,) = queue.claim_downloads(time.time(), 15)
    assert queue.mark_failed(job, 40007, "invalid media_id", time.time())
    database.close()
    with forgetful(tmp_path / "disk", before) as disk:
        command = make_bot(sandbox, LEDGER_SYNC=sync, **_places(disk.mount)).flask("ledger", "retry")
        assert command.returncode == 0, command.stderr
        disk.cut(after)
    database = connect(_places(after)["DATABASE_URL"])
    assert Ledger(database, THROWAWAY.appid).get(recorded.id).media_state == "pending"
    database.close()


# -- fans, and what they saw --------------------------------------------------------------------------------------


@dataclass
class Picture:
    """What a fan sent, and the first answer to it. Times are of time.monotonic()."""

    msg_id: int
    fan: str
    sha256: str
    life: int  # how often the bot had been started when it was sent
    answer: str | None = None
    answered_at: float = 0.0
    push: dict = field(default_factory=dict, repr=False)  # as it crossed the wire


def _plain_jpeg():
    file = io.BytesIO()
    Image.effect_noise((96, 64), 50).convert("RGB").save(file, "JPEG")
    return file.getvalue()


class Fans:
    """Each sends a few pictures, one after the other, and each until it is answered, as the platform does."""

    def __init__(self, sandbox):
        self.sandbox = sandbox
        self.sent, self.done = {}, []
        self.leaving, self.gone = set(), set()  # whose purge has begun, has ended
        self._jpeg = _plain_jpeg()
        self._threads = []
        self._over = threading.Event()

    def answered(self):
        return [picture for picture in list(self.sent.values()) if picture.answer is not None]

    def begin(self, life):
        self._over.clear()
        self._threads = [threading.Thread(target=self._send, args=(life,)) for _ in range(THREADS)]
        for thread in self._threads:
            thread.start()

    def end(self):
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _send(self, life):
        while not self._over.is_set():
            fan = f"oTest-Power{next(NUMBERS):017d}"
            for _ in range(PICTURES_OF_A_FAN):
                self._until_answered(fan, life)
            if not self._over.is_set():
                self.done.append(fan)

    def _until_answered(self, fan, life):
        data = self._jpeg + random.randbytes(random.choice([8, 6000]))  # each its own, and all can be decoded
        push = self._post(fan, {"type": "image", "attempts": 1}, {"file": ("p.jpg", data)})
        picture = Picture(int(push["msg_id"]), fan, hashlib.sha256(data).hexdigest(), life)
        self.sent[picture.msg_id] = picture
        while push["attempts"][-1]["verdict"] != "reply":
            if self._over.wait(0.05):
                return
            again = {"type": "image", "attempts": 1, "msg_id": picture.msg_id, "media_id": push["media_id"]}
            push = self._post(fan, again)
        picture.push = push["attempts"][-1]
        picture.answered_at = time.monotonic()
        picture.answer = picture.push["opened"]

    def _post(self, fan, fields, files=None):
        url = f"{self.sandbox.url}/sandbox/fans/{fan}/messages"
        sent = {"data": fields, "files": files} if files else {"json": fields}
        answer = requests.post(url, timeout=60, **sent)
        assert answer.ok, answer.text
        return answer.json()


# -- one disk, and the bot that runs on it again and again ----------------------------------------------------------


class Lives:
    """A bot that is started, loaded and cut off on one disk, again and again."""

    def __init__(self, folder, sandbox, sync):
        self.folder, self.sync, self.fans = folder, sync, Fans(sandbox)
        self.left = None  # the folder with what the last cut has left
        self.life = 0
        self.problems, self.counts, self.lost_seconds = [], Counter(), 0.0
        self._named = {}  # ledger id: in which life the log named it first
        self.bot = Bot(
            folder,
            {
                "WECHAT_APPID": THROWAWAY.appid,
                "WECHAT_APPSECRET": THROWAWAY.appsecret,
                "WECHAT_TOKEN": THROWAWAY.token,
                "WECHAT_AES_KEY": THROWAWAY.aes_key,
                "WECHAT_API_BASE": sandbox.url,
                "LEDGER_SYNC": sync,
                "LEASE_SECONDS": "2",
                "PORT": str(free_port()),
                "WEB_CONCURRENCY": "1",
                **_places(folder / "disk"),
            },
        )
        sandbox.callback = f"{self.bot.url}/wechat"

    def until_a_cut(self, *, by_chance, purge):
        """Start the bot, with fans from the first second on; cut the power at some moment; look at what is left."""
        self.life += 1
        left = self.folder / f"left-{self.life}"
        purging = None
        with forgetful(self.folder / "disk", self.left) as disk:
            try:
                web = self.bot.start("gunicorn", "-c", "gunicorn.conf.py", self.bot.app)
                self._load(random.choice([1, 5, 20]))
                if purge:
                    purging = self._purge()
                    if random.random() < 0.7:  # else it is cut off
                        purging[1].popen.wait(20)
                time.sleep(random.uniform(0, 0.3))  # the moment of the cut is what chance gives
                disk.cut(left, random.randrange(1 << 30) if by_chance else None)
                cut_at = time.monotonic()
            finally:
                web.kill()
                self.fans.end()
                if purging is not None:
                    self._purged(*purging)
        (self.folder / "disk").rmdir()
        if self.left:
            shutil.rmtree(self.left)
        self.left = left
        self.counts.update(cuts=1, of_them_by_chance=by_chance)
        self._note_names(web)
        self._look(cut_at)

    def to_the_end(self):
        """Start the bot on what is left, now without a cut, until nothing is left to do; look at all of it."""
        self.life += 1
        self.bot.environ |= _places(self.left)
        web = self.bot.web()
        self._load(5)
        self.fans.end()
        everything = parts.build(self._settings(self.left)).of[""]
        eventually(lambda: everything.ledger.status(time.time()).pending == 0, 60, "all downloads")
        repeated = random.sample(kept := self._kept(), min(len(kept), 20))
        self._look_at_repeats(repeated)
        command = self.bot.flask("ledger", "purge", "--fan", "a-fan-who-never-was")
        assert command.returncode == 0, command.stderr
        assert web.stop() == 0
        # A file that somebody had in hand when it was purged has to wait an hour, and is not forgotten.
        waiting = everything.purge_rows.files_to_delete(time.time() + 3600)
        everything.database.close()
        self._note_names(web)
        self._look_at_files(self._look(time.monotonic()), waiting)
        self.counts.update(answered_pictures=len(self._kept()), repeats=len(repeated))

    def _load(self, enough):
        before = len(self.fans.answered())
        self.fans.begin(self.life)
        eventually(lambda: len(self.fans.answered()) >= before + enough, 60, "an answer")

    def _purge(self):
        """Begin to purge a fan who sends no more."""
        fan = eventually(
            lambda: [each for each in self.fans.done if each not in self.fans.leaving], what="a fan"
        )[0]
        self.fans.leaving.add(fan)
        if random.random() < 0.5:
            self.fans.end()  # the next picture to be stored would sync the folder of the deleted ones as well
        return fan, self.bot.start("flask", "--app", self.bot.app, "ledger", "purge", "--fan", fan)

    def _purged(self, fan, command):
        command.popen.wait(20)
        command.kill()
        if command.popen.returncode == 0:
            self.fans.gone.add(fan)
            self.counts["files_purged"] += json.loads(command.text().splitlines()[-1])["files"]

    def end(self):
        self.fans.end()
        for process in self.bot.processes:
            process.kill()

    def _settings(self, place):
        return Settings.from_env(self.bot.environ | _places(place), self.folder)

    def _kept(self):
        """Who was answered, and is not to be forgotten."""
        return [picture for picture in self.fans.answered() if picture.fan not in self.fans.leaving]

    # What is looked for, and told as a problem:

    def _look(self, cut_at):
        """Compare the database and its files with what the fans saw, and return the keys of what is stored. All on a
        copy: to open a database changes it."""
        copy = self.folder / "copy"
        shutil.copytree(self.left, copy)
        everything = parts.build(self._settings(copy)).of[""]
        stored = set()
        for picture in list(self.fans.sent.values()):
            entries = everything.ledger.find_by_msg_id(picture.msg_id)
            for entry in entries:
                self._look_at_entry(entry, picture, copy / "data" / "media")
            stored |= {entry.media_key for entry in entries if entry.media_state == "stored"}
            if picture.fan in self.fans.gone and picture.answer is not None and entries:
                self._problem("deleted rows back", picture)
            if picture.answer is not None and picture.fan not in self.fans.leaving and len(entries) != 1:
                self.lost_seconds = max(self.lost_seconds, cut_at - picture.answered_at)
                self._problem(LOST, picture)
                del self.fans.sent[picture.msg_id]  # told once
        everything.database.close()
        with contextlib.closing(sqlite3.connect(copy / "data" / "bot.db")) as connection:
            if connection.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                self._problem("broken database")
        shutil.rmtree(copy)
        return stored

    def _look_at_entry(self, entry, picture, media):
        if self._named.get(entry.id, picture.life) < picture.life:
            self._problem("id given twice", picture)
        if entry.media_state == "stored":
            path = media / entry.media_key
            content = path.read_bytes() if path.exists() else b""
            if not entry.media_sha256 == picture.sha256 == hashlib.sha256(content).hexdigest():
                self._problem("stored without its file", picture)

    def _look_at_repeats(self, pictures):
        for picture in pictures:
            url = f"{self.bot.url}/wechat?{picture.push['query']}"
            answer = requests.post(url, data=picture.push["sent"].encode(), timeout=30)
            if answer.status_code != 200 or opened(answer.content).decode() != picture.answer:
                self._problem("another answer to the repeat", picture)

    def _look_at_files(self, stored, waiting):
        """Once nothing is left to do: what was deleted is not there, and all that is there belongs to a row."""
        deleted = {picture.sha256 for picture in self.fans.answered() if picture.fan in self.fans.gone}
        stems = {key.rpartition(".")[0] for key in stored}
        for folder in ("media", "media-thumbnails"):
            root = self.left / "data" / folder
            for path in root.rglob("*.*"):
                key = path.relative_to(root)
                stem = str(key.with_suffix(""))
                if not path.is_file() or key.parts[0] == ".tmp" or stem in waiting:
                    continue
                self.counts[f"files_in_{folder}"] += 1
                if hashlib.sha256(path.read_bytes()).hexdigest() in deleted:
                    self._problem("deleted file back")
                # What a power cut takes of the newest rows with `normal`, it does not take of their files.
                elif self.sync == "full" and stem not in stems:
                    self._problem(f"file of nobody in {folder}")

    def _note_names(self, web):
        for ledger_id in re.findall(r"ledger_id=(\d+)", web.text()):
            self._named.setdefault(int(ledger_id), self.life)

    def _problem(self, what, picture=None):
        self.problems.append((what, self.life, picture))


def _places(folder):
    """As by default: the database makes its folder, and the files lie beside it."""
    return {"DATABASE_URL": f"sqlite:///{folder}/data/bot.db", "MEDIA_STORE": f"{folder}/data/media"}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("sync", ["full", "normal"])
def test_power_cuts(tmp_path, sync, full, counted):
    """A disk is cut off a few times, and many are, each from its first second on."""
    disks, cuts = ((20, 5) if sync == "full" else (8, 5)) if full else (1, 2)

    def on_one_disk(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        with running_sandbox() as sandbox:
            lives = Lives(folder, sandbox, sync)
            try:
                for cut in range(cuts):
                    lives.until_a_cut(by_chance=(number + cut) % 2 == 1, purge=(number + cut) // 2 % 2 == 0)
                lives.to_the_end()
            finally:
                lives.end()
        return lives

    with ThreadPoolExecutor(2) as pool:
        all_lives = list(pool.map(on_one_disk, range(disks)))
    problems = [problem for lives in all_lives for problem in lives.problems]
    lost_seconds = max(lives.lost_seconds for lives in all_lives)
    if sync == "normal":
        lost = [problem for problem in problems if problem[0] == LOST]
        problems = [problem for problem in problems if problem[0] != LOST]
        assert lost_seconds < NORMAL_LOSES_SECONDS
    counted(
        f"power cuts under load, LEDGER_SYNC={sync}",
        PROMISED[sync],
        **sum((lives.counts for lives in all_lives), Counter()),
        **Counter(what for what, *_ in problems),
        **({"lost": len(lost), "lost_seconds": round(lost_seconds, 2)} if sync == "normal" else {}),
    )
    assert not problems
