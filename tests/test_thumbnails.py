"""Thumbnails: whatever a fan sends, a small clean JPEG or a reason; the worker and its memory stay as they were."""

import contextlib
import errno
import io
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import psutil
import pytest
from PIL import Image, ImageOps

import storage.thumbnails
import worker.thumbnails
from storage.disk import DiskStore
from storage.files import open_store
from storage.ledger import Ledger
from storage.purge import Purge
from storage.queue import Queue
from storage.thumbnails import Thumbnails, thumbnail_store
from tests.conftest import ROOT, eventually
from tests.databases import APPID
from tests.test_ledger import OTHER_FAN, T0, image, message
from wechat.formats import extension
from worker import decoder
from worker.chores import Chores, keep_making_thumbnails
from worker.thumbnails import CLAIM_SECONDS, COMMAND, Decoder, NoThumbnailError, ThumbnailMaker

PATH = ROOT / "sandbox" / "photos" / "grace_hopper.jpg"
PHOTO = PATH.read_bytes()
LEFT, RIGHT = (200, 30, 30), (30, 30, 200)


def encoded(picture, kind="JPEG", **options):
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def two_halves(width=600, height=300, mode="RGB"):
    """Red on the left, blue on the right."""
    picture = Image.new("RGB", (width, height), LEFT)
    picture.paste(RIGHT, (width // 2, 0, width, height))
    return picture.convert(mode)


def opened(data):
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def near(pixel, wanted):
    return all(abs(one - other) < 40 for one, other in zip(pixel, wanted, strict=True))


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, *chunks):
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


NONE = {
    "empty": b"",
    "a page": b"<html><script>alert(1)</script></html>",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
    "another format": encoded(two_halves(), "BMP"),
    "cut off": PHOTO[: len(PHOTO) // 2],
    "a head alone": PHOTO[:30],
    "png without pixels": png(100, 100),
    "png that lies": png(100, 100, chunk(b"IDAT", zlib.compress(b"\0" * 10))),
    "a bomb of pixels": png(60_000, 60_000, chunk(b"IDAT", zlib.compress(b"\0" * 100_000))),
    "gif of 65535 x 65535": b"GIF89a"
    + b"\xff" * 4
    + b"\x80\0\0"
    + bytes(6)
    + b","
    + bytes(4)
    + b"\xff" * 4
    + b"\0\2\2D\1\0;",
}
BOMBS = {  # made by the tests that ask: not when the file is imported
    "a bomb for png alone": lambda: png(7_000, 7_000, chunk(b"IDAT", zlib.compress(b"\0" * 7_000_000))),
    "a bomb of text": lambda: png(9, 9, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000)))),
}


def none(case):
    return BOMBS[case]() if case in BOMBS else NONE[case]


class TestPictures:
    def test_a_photo_becomes_small(self):
        small = opened(decoder.thumbnail(PHOTO))
        assert small.format == "JPEG"
        assert max(small.size) == decoder.SIDE
        assert len(decoder.thumbnail(PHOTO)) < 40_000

    def test_a_small_picture_stays_as_large_as_it_is(self):
        assert opened(decoder.thumbnail(encoded(two_halves(40, 20), "PNG"))).size == (40, 20)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_it_is_upright(self, orientation):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(two_halves(), exif=exif, quality=95)
        small = opened(decoder.thumbnail(data))
        wanted = ImageOps.exif_transpose(opened(data)).resize(small.size)
        assert small.size == ((400, 200) if orientation < 5 else (200, 400))
        for place in ((5, 5), (small.width - 5, 5), (5, small.height - 5)):
            assert near(small.getpixel(place), wanted.getpixel(place))
        assert not small.getexif()

    @pytest.mark.parametrize(
        "exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1\x12", b"Exif\0\0II*\0"]
    )
    def test_broken_exif_data_does_no_harm(self, exif):
        assert opened(decoder.thumbnail(encoded(two_halves(), exif=exif))).size == (400, 200)

    def test_nothing_that_the_file_told_goes_on(self):
        exif = Image.Exif()
        exif[0x010F] = "CameraMaker"
        exif.get_ifd(0x8825)[1] = "N"
        data = encoded(two_halves(), exif=exif, comment=b"where I live", icc_profile=b"profile " * 20)
        assert b"where I live" in data
        small = decoder.thumbnail(data)
        for told in (b"CameraMaker", b"where I live", b"profile", b"Exif", b"ICC_PROFILE"):
            assert told not in small
        assert b"where I live" not in decoder.thumbnail(encoded(two_halves(), "GIF", comment=b"where I live"))

    @pytest.mark.parametrize(
        ("kind", "mode"),
        [
            ("JPEG", "CMYK"),
            ("JPEG", "L"),
            ("PNG", "L"),
            ("PNG", "LA"),
            ("PNG", "P"),
            ("PNG", "1"),
            ("PNG", "RGBA"),
            ("PNG", "I;16"),
            ("GIF", "P"),
        ],
    )
    def test_every_kind_of_pixels(self, kind, mode):
        picture = Image.new("I;16", (600, 300), 40000) if mode == "I;16" else two_halves(mode=mode)
        small = opened(decoder.thumbnail(encoded(picture, kind)))
        assert (small.mode, small.size) == ("RGB", (400, 200))
        if mode == "I;16":
            assert near(small.getpixel((5, 5)), (40000 // 256,) * 3)
        if mode in ("CMYK", "P", "RGBA"):
            assert near(small.getpixel((10, 100)), LEFT)
            assert near(small.getpixel((390, 100)), RIGHT)

    @pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
    def test_what_is_transparent_is_white(self, mode):
        picture = Image.new("RGBA", (300, 300), (0, 0, 0, 0))
        options = {}
        if mode == "P":
            picture = Image.new("P", (300, 300), 0)
            options = {"transparency": 0}
        elif mode == "LA":
            picture = picture.convert("LA")
        small = opened(decoder.thumbnail(encoded(picture, "PNG", **options)))
        assert near(small.getpixel((150, 150)), (255, 255, 255))

    def test_of_an_animation_the_first_frame(self):
        frames = [Image.new("RGB", (200, 200), color) for color in (LEFT, RIGHT, RIGHT)]
        data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=50)
        assert near(opened(decoder.thumbnail(data)).getpixel((100, 100)), LEFT)

    def test_a_200_megapixel_photo_is_no_bomb(self):
        monster = encoded(Image.new("L", (16000, 12500), 90))
        assert opened(decoder.thumbnail(monster)).size == (400, 313)

    @pytest.mark.parametrize("case", [*NONE, *BOMBS])
    def test_none_and_why(self, case):
        with pytest.raises(decoder.UndecodableError) as caught:
            decoder.thumbnail(none(case))
        assert str(caught.value)

    def test_a_picture_for_too_much_memory(self, monkeypatch):
        def too_large(*_, **__):
            raise MemoryError

        monkeypatch.setattr(Image.Image, "thumbnail", too_large)
        with pytest.raises(decoder.UndecodableError, match="memory"):
            decoder.thumbnail(PHOTO)

    def test_any_mutation_gives_a_thumbnail_or_a_reason(self, full):
        dice = random.Random(20261122)
        sources = [
            PHOTO[:6000] + PHOTO[-3000:],
            *(encoded(two_halves(60, 40), kind) for kind in ("JPEG", "PNG", "GIF")),
        ]
        for _ in range(2000 if full else 150):
            data = bytearray(dice.choice(sources))
            for _ in range(dice.randint(1, 12)):
                data[dice.randrange(len(data))] = dice.randrange(256)
            with contextlib.suppress(decoder.UndecodableError):
                assert decoder.thumbnail(bytes(data)).startswith(b"\xff\xd8")


def python(code):
    """A decoder of the test's own: `connection` is its end."""
    start = "import sys\nfrom multiprocessing.connection import Connection\nfrom worker import decoder\n"
    return [sys.executable, "-c", f"{start}connection = Connection(sys.stdin.fileno())\n{code}"]


@pytest.fixture
def started():
    """started(command) -> a Decoder; all are closed at the end."""
    made = []

    def start(command=COMMAND):
        made.append(Decoder(command))
        return made[-1]

    yield start
    for one in made:
        one.close()


def processes():
    """The decoders' processes that run."""
    return [child for child in psutil.Process().children() if "decoder" in " ".join(child.cmdline())]


class TestDecoder:
    def test_pictures_come_in_chunks(self, started):
        one = started()
        chunks = [PHOTO[start : start + 1000] for start in range(0, len(PHOTO), 1000)]
        assert one.thumbnail(chunks) == one.thumbnail([PHOTO])
        assert opened(one.thumbnail([PHOTO])).format == "JPEG"

    @pytest.mark.parametrize("case", ["cut off", "a bomb of pixels", "gif of 65535 x 65535", *BOMBS])
    def test_none_and_why(self, started, case):
        """With the memory that it may have, too."""
        with pytest.raises(NoThumbnailError) as caught:
            started().thumbnail([none(case)])
        assert str(caught.value)
        assert "the decoder ended" not in str(caught.value)

    @pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
    def test_it_knows_no_secret(self, started, monkeypatch):
        monkeypatch.setenv("WECHAT_APPSECRET", "a-secret-of-this-test")
        started().thumbnail([PHOTO])
        (process,) = processes()
        assert Path(f"/proc/{process.pid}/environ").read_bytes() == b""

    def test_one_process_serves_many_and_goes_when_idle(self, started, monkeypatch):
        one = started()
        one.thumbnail([PHOTO])
        (process,) = processes()
        one.thumbnail([PHOTO])
        one.close_if_idle()
        assert processes() == [process]
        monkeypatch.setattr(worker.thumbnails, "IDLE_SECONDS", -1.0)
        one.close_if_idle()
        assert processes() == []
        one.thumbnail([PHOTO])

    def test_a_store_that_fails_in_the_middle(self, started):
        def chunks():
            yield PHOTO[:9000]
            raise OSError("the store is away")

        one = started()
        with pytest.raises(OSError, match="the store is away"):
            one.thumbnail(chunks())
        assert opened(one.thumbnail([PHOTO])).format == "JPEG"

    @pytest.mark.parametrize(
        "code",
        [
            "sys.exit(3)",
            "decoder.read_picture(connection); sys.exit(3)",
            "import os; decoder.read_picture(connection); os.write(0, bytes([0, 0, 0, 9, 1]))",
            "import os; decoder.read_picture(connection); os.write(0, bytes([64, 0, 0, 0, 1]))",
            "decoder.SECONDS = 1; decoder.thumbnail = lambda _: [None for _ in iter(int, 1)]; decoder.main()",
        ],
        ids=["dead before", "dead after", "half an answer", "an answer without end", "for ever"],
    )
    def test_one_that_ends_costs_its_picture(self, started, code):
        one = started(python(code))
        began = time.monotonic()
        with pytest.raises(NoThumbnailError, match="the decoder ended"):
            one.thumbnail([PHOTO] * 20)
        assert time.monotonic() - began < 10
        assert processes() == []

    @pytest.mark.parametrize(
        "code",
        [
            "time.sleep(600)",
            "decoder.read_picture(connection)\ntime.sleep(600)",
            "decoder.read_picture(connection)\nos.write(0, bytes([0, 0, 0, 9, 1]))\ntime.sleep(600)",
        ],
        ids=["reads nothing", "answers nothing", "half an answer"],
    )
    def test_one_that_does_not_go_on_is_ended(self, started, monkeypatch, code):
        monkeypatch.setattr(worker.thumbnails, "ANSWER_SECONDS", 1.5)
        monkeypatch.setattr(worker.thumbnails, "CLOSE_SECONDS", 0.1)
        one = started(python(f"import os, time\n{code}"))
        with pytest.raises(NoThumbnailError, match="the decoder ended"):
            one.thumbnail([PHOTO] * 20)
        assert processes() == []

    def test_one_that_will_not_end_is_killed(self, started, monkeypatch):
        monkeypatch.setattr(worker.thumbnails, "CLOSE_SECONDS", 0.1)
        one = started(
            python(
                "import time\ndecoder.read_picture(connection)\n"
                "connection.send_bytes(bytes([1]) + b'jpeg')\ntime.sleep(600)"
            )
        )
        assert one.thumbnail([PHOTO]) == b"jpeg"
        assert processes()
        one.close()
        assert processes() == []

    @pytest.mark.skipif(sys.platform != "linux", reason="macOS has no such limit")
    def test_memory_is_bounded(self, started):
        """A progressive JPEG of 200 megapixels needs some 600 MB."""
        one = started()
        with pytest.raises(NoThumbnailError):
            one.thumbnail([encoded(Image.new("L", (16000, 12500), 90), progressive=True)])
        one.thumbnail([PHOTO])

    def test_it_ends_with_the_process_that_started_it(self):
        code = f"""
import os, signal, psutil
from pathlib import Path
from worker.thumbnails import Decoder
decoder = Decoder()
decoder.thumbnail([Path({str(PATH)!r}).read_bytes()])
print(*(child.pid for child in psutil.Process().children()), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr

        def gone():
            try:
                return psutil.Process(int(done.stdout)).status() == psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                return True

        eventually(gone, what="the decoder's end")

    def test_a_signal_to_the_group_leaves_the_picture_in_hand(self, started):
        one = started()
        one.thumbnail([PHOTO])
        (process,) = processes()
        for number in (signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
        one.thumbnail([PHOTO])
        assert processes() == [process]


class TestStore:
    """Where thumbnails lie."""

    def test_beside_the_store_and_never_in_it(self):
        assert thumbnail_store("/srv/data/media") == "/srv/data/media-thumbnails"
        assert thumbnail_store("s3://bucket/some/prefix") == "s3://bucket/some/prefix-thumbnails"
        assert thumbnail_store("s3://bucket") == thumbnail_store("s3://bucket/") == "s3://bucket/thumbnails"

    @pytest.mark.parametrize("place", ["folder", "bucket"])
    def test_kept_and_deleted(self, place, request, tmp_path):
        media_store = request.getfixturevalue("s3_url") if place == "bucket" else str(tmp_path / "media")
        stem, thumbs = f"{APPID}/2023/11/14/1", Thumbnails(media_store)
        with pytest.raises(FileNotFoundError):
            thumbs.open(f"{stem}.png")
        thumbs.put(f"{stem}.png", b"\xff\xd8small")
        with thumbs.open(f"{stem}.png") as file:
            assert file.read() == b"\xff\xd8small"
        assert open_store(media_store).size(f"{stem}.jpg") is None
        thumbs.delete(stem)
        thumbs.delete(stem)
        with pytest.raises(FileNotFoundError):
            thumbs.open(f"{stem}.png")

    def test_no_room(self, tmp_path, monkeypatch):
        monkeypatch.setattr(storage.thumbnails, "MIN_FREE_BYTES", 1 << 62)
        with pytest.raises(OSError, match="make room"):
            Thumbnails(str(tmp_path / "media")).put(f"{APPID}/2023/11/14/1.jpg", b"\xff\xd8")


class Line:
    """A ledger, its store and a maker with a clock of its own."""

    def __init__(self, ledger, queue, purge_rows, files, thumbs, decoder):
        self.ledger, self.queue, self.purge_rows = ledger, queue, purge_rows
        self.files, self.thumbs, self.now = files, thumbs, T0
        self.maker = ThumbnailMaker(queue, files, thumbs, decoder, clock=lambda: self.now)

    def stored(self, number, data=PHOTO):
        self.ledger.record(image(number), None, self.now)
        (job,) = self.queue.claim_downloads(self.now, 15)
        file = self.files.put(job.stem, [data], extension=extension, attempt=1)
        assert self.queue.mark_stored(job, file, self.now)
        return job.id

    def state(self, ledger_id):
        entry = self.ledger.get(ledger_id)
        return entry.thumbnail_state, entry.thumbnail_due


@pytest.fixture(scope="class")
def one_decoder():
    decoder = Decoder()
    yield decoder
    decoder.close()


@pytest.fixture
def line(ledger, queue, purge_rows, one_decoder, tmp_path):
    media_store = tmp_path / "media"
    return Line(ledger, queue, purge_rows, DiskStore(media_store), Thumbnails(str(media_store)), one_decoder)


class Unreadable(io.BytesIO):
    """A stored file on a bad disk."""

    def read(self, *_):
        raise OSError(errno.EIO, "Input/output error")


class TestMaker:
    def test_once_each_the_newest_first(self, line):
        assert not line.maker.step()
        older = line.stored(1)
        line.now += 1
        newer = line.stored(2)
        assert line.state(newer) == (None, line.now)
        assert line.maker.step()
        assert line.state(newer) == ("made", None)
        assert line.state(older)[0] is None
        assert line.maker.step()
        assert line.state(older) == ("made", None)
        assert not line.maker.step()
        line.maker.close()

    def test_what_cannot_be_made_is_not_tried_again(self, line, caplog):
        broken = line.stored(1, PHOTO[:9000])
        assert line.maker.step()
        assert line.state(broken) == ("failed", None)
        assert "no thumbnail" in caplog.text
        line.now += 1e6
        assert not line.maker.step()

    def test_a_picture_whose_file_is_gone(self, line, caplog):
        ledger_id = line.stored(1)
        line.files.delete_all([line.ledger.get(ledger_id).media_key.rpartition(".")[0]])
        assert line.maker.step()
        assert line.state(ledger_id) == ("failed", None)
        assert "MEDIA_STORE" in caplog.text

    def test_a_broken_picture_costs_nothing_else(self, line):
        whole = line.stored(1)
        line.now += 1
        broken = line.stored(2, PHOTO[:9000])
        while line.maker.step():
            pass
        assert line.state(broken)[0] == "failed"
        assert line.state(whole)[0] == "made"
        with line.thumbs.open(line.ledger.get(whole).media_key) as file:
            assert opened(file.read()).format == "JPEG"

    def test_voices_and_videos_have_none(self, line):
        line.ledger.record(message("voice", "<MediaId>v</MediaId><MsgId>5</MsgId>"), None, T0)
        (job,) = line.queue.claim_downloads(T0, 15)
        line.queue.mark_stored(
            job, line.files.put(job.stem, [b"#!AMR\n"], extension=extension, attempt=1), T0
        )
        assert line.state(job.id) == (None, None)
        assert not line.maker.step()

    def test_a_dead_process_gives_it_back(self, line):
        line.stored(1)
        picture = line.queue.claim_picture(T0, CLAIM_SECONDS)
        assert picture is not None
        assert not line.maker.step()
        line.now += CLAIM_SECONDS
        assert line.maker.step()

    @pytest.mark.parametrize("fault", ["opening", "reading"])
    def test_pictures_that_cannot_be_read_do_not_hold_up_the_others(self, line, monkeypatch, caplog, fault):
        good = line.stored(1)
        line.now += 1
        bad = [line.stored(2), line.stored(3)]
        keys = {line.ledger.get(one).media_key for one in bad}
        open_file = line.files.open

        def open_or_fail(key):
            if key not in keys:
                return open_file(key)
            if fault == "opening":
                raise PermissionError(errno.EACCES, "Permission denied", key)
            return Unreadable()

        monkeypatch.setattr(line.files, "open", open_or_fail)
        for _ in range(3):
            assert line.maker.step()
        assert not line.maker.step()
        assert line.state(good)[0] == "made"
        assert caplog.text.count("no thumbnail yet: MEDIA_STORE: ") == 1
        monkeypatch.undo()
        line.now += CLAIM_SECONDS
        while line.maker.step():
            pass
        assert [line.state(one)[0] for one in bad] == ["made", "made"]

    def test_an_unreachable_store_costs_nothing(self, line, monkeypatch):
        ledger_id = line.stored(1)
        monkeypatch.setattr(storage.thumbnails, "MIN_FREE_BYTES", 1 << 62)
        with pytest.raises(OSError):
            line.maker.step()
        monkeypatch.undo()
        line.now += CLAIM_SECONDS
        assert line.maker.step()
        assert line.state(ledger_id) == ("made", None)

    def test_purged_while_it_is_made(self, line, monkeypatch, tmp_path):
        line.stored(1)
        put = line.thumbs.put

        def put_slowly(key, jpeg):
            put(key, jpeg)
            assert line.purge_rows.purge(line.now, before=line.now + 1) == 1

        monkeypatch.setattr(line.thumbs, "put", put_slowly)
        assert line.maker.step()
        assert not [path for path in tmp_path.glob("media-thumbnails/**/*") if path.is_file()]

    def test_one_that_is_lost_is_made_again(self, line):
        ledger_id = line.stored(1)
        line.maker.step()
        line.queue.miss_thumbnail(ledger_id, line.now)
        assert line.state(ledger_id) == (None, line.now)
        assert line.maker.step()

    def test_many_makers_share(self, line, database):
        for number in range(12):
            line.stored(number)
        taken = []

        def take():
            mine = Queue(database, APPID)
            while picture := mine.claim_picture(line.now, CLAIM_SECONDS):
                taken.append(picture.id)

        threads = [threading.Thread(target=take) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(taken) == sorted(set(taken))
        assert len(taken) == 12

    def test_another_accounts_are_left_alone(self, line, database):
        line.stored(1)
        assert Queue(database, "wxanother").claim_picture(T0, 1) is None
        assert Ledger(database, "wxanother").record(image(1, OTHER_FAN), None, T0)


class Steps:
    """A maker whose steps are written down, and raise what they are told."""

    def __init__(self, *faults):
        self.faults, self.steps, self.closed = list(faults), 0, False

    def step(self):
        self.steps += 1
        if self.faults:
            raise self.faults.pop(0)
        return False

    def close(self):
        self.closed = True


class TestWorker:
    @pytest.fixture
    def run(self, purge_rows, tmp_path):
        """run(maker) -> the event that stops the thread which is at it."""
        running = []

        def start(maker):
            chores = Chores(
                "",
                Purge(purge_rows, DiskStore(tmp_path / "media"), None),
                None,
                maker,
                retention_days=0,
                purge_on_unsubscribe=False,
                clock=time.time,
            )
            stop = threading.Event()
            thread = threading.Thread(target=keep_making_thumbnails, args=([chores], stop, lambda: False))
            thread.start()
            running.append((stop, thread))
            return stop

        yield start
        for stop, thread in running:
            stop.set()
            thread.join(20)
            assert not thread.is_alive()

    def test_what_lies_there_is_made(self, line, run):
        ids = [line.stored(number) for number in range(5)]
        run(line.maker)
        eventually(lambda: all(line.state(one)[0] == "made" for one in ids), what="all thumbnails")

    @pytest.mark.parametrize("fault", [OSError("no room"), RuntimeError("?")])
    def test_faults_are_waited_out(self, run, monkeypatch, caplog, fault):
        monkeypatch.setattr("worker.chores.THUMBNAIL_FAULT_SECONDS", 0.01)
        maker = Steps(fault)
        run(maker)
        eventually(lambda: maker.steps > 1, what="another step")
        assert "thumbnails have to wait" in caplog.text or "the loop goes on" in caplog.text

    def test_stopping_is_quick_and_closes(self, run):
        maker = Steps()
        stop = run(maker)
        eventually(lambda: maker.steps, what="the first step")
        started = time.monotonic()
        stop.set()
        eventually(lambda: maker.closed, what="the end")
        assert time.monotonic() - started < 3
