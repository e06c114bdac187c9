"""Thumbnails: whatever a fan sends, a small clean JPEG or a reason; the worker and its memory stay as they were."""

import contextlib
import io
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageOps

import thumbnails.shelf
from storage.disk import DiskStore
from storage.files import open_store
from storage.gallery import GalleryRows
from storage.ledger import Ledger
from tests.conftest import ROOT, eventually
from tests.databases import APPID
from tests.test_ledger import OTHER_FAN, T0, image, message
from thumbnails import decoder
from thumbnails.maker import CLAIM_SECONDS, ThumbnailMaker
from thumbnails.shelf import Thumbnails, beside
from thumbnails.wire import NoThumbnail, read_answer, read_picture, send_answer, send_picture
from wechat.formats import extension
from worker.chores import Chores

PHOTO = (ROOT / "sandbox" / "photos" / "grace_hopper.jpg").read_bytes()
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
    "a bomb for png alone": png(7_000, 7_000, chunk(b"IDAT", zlib.compress(b"\0" * 7_000_000))),
    "a bomb of text": png(9, 9, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000)))),
    "gif of 65535 x 65535": b"GIF89a"
    + b"\xff" * 4
    + b"\x80\0\0"
    + bytes(6)
    + b","
    + bytes(4)
    + b"\xff" * 4
    + b"\0\2\2D\1\0;",
}


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

    @pytest.mark.parametrize("case", NONE)
    def test_none_and_why(self, case):
        with pytest.raises(NoThumbnail) as caught:
            decoder.thumbnail(NONE[case])
        assert str(caught.value)

    def test_a_picture_for_too_much_memory(self, monkeypatch):
        monkeypatch.setattr(decoder, "_small", lambda image: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(NoThumbnail, match="memory"):
            decoder.thumbnail(PHOTO)

    def test_any_mutation_gives_a_thumbnail_or_a_reason(self):
        dice = random.Random(20261122)
        sources = [
            PHOTO[:6000] + PHOTO[-3000:],
            *(encoded(two_halves(60, 40), kind) for kind in ("JPEG", "PNG", "GIF")),
        ]
        for _ in range(400):
            data = bytearray(dice.choice(sources))
            for _ in range(dice.randint(1, 12)):
                data[dice.randrange(len(data))] = dice.randrange(256)
            with contextlib.suppress(NoThumbnail):
                assert decoder.thumbnail(bytes(data)).startswith(b"\xff\xd8")


class TestWire:
    def test_there_and_back(self):
        pipe = io.BytesIO()
        send_picture(pipe, [b"abc", b"def"])
        send_picture(pipe, [])
        pipe.seek(0)
        assert [read_picture(pipe), read_picture(pipe), read_picture(pipe)] == [b"abcdef", b"", None]

    def test_the_end_in_the_middle(self):
        assert read_picture(io.BytesIO(b"\0\0\0\x09abc")) is None

    def test_answers(self):
        pipe = io.BytesIO()
        send_answer(pipe, b"jpeg")
        send_answer(pipe, NoThumbnail("why"))
        pipe.seek(0)
        assert read_answer(pipe) == b"jpeg"
        with pytest.raises(NoThumbnail, match="why"):
            read_answer(pipe)

    def test_an_answer_without_end_is_none(self):
        with pytest.raises(EOFError):
            read_answer(io.BytesIO(b"\1\xff\xff\xff\xff"))


def python(code):
    return [sys.executable, "-c", f"import sys\nfrom thumbnails import decoder, wire\n{code}"]


@pytest.fixture
def shelf(tmp_path):
    """make(decoder command) -> (Thumbnails, media store); all are closed at the end."""
    made = []

    def make(**options):
        files = DiskStore(tmp_path / "media")
        one = Thumbnails(str(tmp_path / "media"), files, **options)
        made.append(one)
        return one, files

    yield make
    for one in made:
        one.close()


def put(files, data, number=1):
    return files.put(f"{APPID}/2023/11/14/{number}", [data], extension=extension, attempt=1).key


def pid(shelf):
    return shelf._decoder._process.pid


class TestShelf:
    def test_beside_the_store_and_never_in_it(self):
        assert beside("/srv/data/media") == "/srv/data/media-thumbnails"
        assert beside("s3://bucket/some/prefix") == "s3://bucket/some/prefix-thumbnails"
        assert beside("s3://bucket") == beside("s3://bucket/") == "s3://bucket/thumbnails"

    def test_made_kept_and_deleted(self, shelf, tmp_path):
        thumbs, files = shelf()
        key = put(files, PHOTO)
        with pytest.raises(FileNotFoundError):
            thumbs.open(key)
        thumbs.make(key)
        with thumbs.open(key) as file:
            assert opened(file.read()).format == "JPEG"
        assert [path.name for path in (tmp_path / "media").rglob("*.*") if path.is_file()] == ["1.jpg"]
        thumbs.delete(key.removesuffix(".jpg"))
        thumbs.delete(key.removesuffix(".jpg"))
        assert not [path for path in tmp_path.glob("media-thumbnails/**/*") if path.is_file()]

    def test_in_a_bucket(self, s3_url):
        files = open_store(s3_url)
        thumbs = Thumbnails(s3_url, files)
        key = put(files, PHOTO)
        thumbs.make(key)
        with thumbs.open(key) as file:
            assert file.read(2) == b"\xff\xd8"
        thumbs.delete(key.removesuffix(".jpg"))
        with pytest.raises(FileNotFoundError):
            thumbs.open(key)
        assert files.size(key) == len(PHOTO)
        thumbs.close()

    def test_a_picture_that_is_gone(self, shelf):
        with pytest.raises(NoThumbnail, match="MEDIA_STORE"):
            shelf()[0].make(f"{APPID}/2023/11/14/9.jpg")

    @pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
    def test_the_process_knows_no_secret(self, shelf, monkeypatch):
        monkeypatch.setenv("WECHAT_APPSECRET", "a-secret-of-this-test")
        thumbs, files = shelf()
        thumbs.make(put(files, PHOTO))
        assert Path(f"/proc/{pid(thumbs)}/environ").read_bytes() == b""

    def test_one_process_serves_many_and_goes_when_idle(self, shelf, monkeypatch):
        thumbs, files = shelf()
        key = put(files, PHOTO)
        thumbs.make(key)
        process = pid(thumbs)
        thumbs.make(key)
        thumbs.rest()
        assert pid(thumbs) == process
        monkeypatch.setattr(thumbnails.shelf, "IDLE_SECONDS", -1.0)
        thumbs.rest()
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)
        thumbs.make(key)

    def test_a_broken_picture_costs_nothing_else(self, shelf):
        thumbs, files = shelf()
        broken, whole = put(files, PHOTO[:9000]), put(files, PHOTO, 2)
        with pytest.raises(NoThumbnail):
            thumbs.make(broken)
        thumbs.make(whole)

    @pytest.mark.parametrize(
        "code",
        [
            "sys.exit(3)",
            "wire.read_picture(sys.stdin.buffer); sys.exit(3)",
            "wire.read_picture(sys.stdin.buffer); sys.stdout.write('x')",
            "decoder.SECONDS = 1; decoder.thumbnail = lambda _: [None for _ in iter(int, 1)]; decoder.main()",
        ],
        ids=["dead before", "dead after", "half an answer", "for ever"],
    )
    def test_a_decoder_that_ends_costs_its_picture(self, shelf, code):
        thumbs, files = shelf(decoder=python(code))
        key = put(files, PHOTO * 20)
        started = time.monotonic()
        with pytest.raises(NoThumbnail, match="the decoder ended"):
            thumbs.make(key)
        assert time.monotonic() - started < 10

    def test_a_decoder_that_will_not_end_is_killed(self, shelf):
        thumbs, files = shelf(
            decoder=python(
                "import time\nwire.read_picture(sys.stdin.buffer)\n"
                "wire.send_answer(sys.stdout.buffer, b'jpeg')\ntime.sleep(600)"
            )
        )
        thumbs.make(put(files, PHOTO))
        process = pid(thumbs)
        thumbs.close()
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)

    def test_memory_is_bounded(self, shelf):
        """A progressive JPEG of 200 megapixels needs some 600 MB."""
        thumbs, files = shelf()
        bomb = encoded(Image.new("L", (16000, 12500), 90), progressive=True)
        picture = encoded(Image.new("RGB", (9000, 8000)), progressive=True)
        for data in (bomb, picture):
            try:
                thumbs.make(put(files, data))
            except NoThumbnail:
                continue
            peak = Path(f"/proc/{pid(thumbs)}/status").read_text().partition("VmHWM:")[2].split()[0]
            assert int(peak) * 1024 < decoder.MEMORY_BYTES
        thumbs.make(put(files, PHOTO))

    def test_it_ends_with_the_process_that_started_it(self, tmp_path):
        put(DiskStore(tmp_path / "media"), PHOTO)
        code = f"""
import os, signal
from storage.disk import DiskStore
from thumbnails.shelf import Thumbnails
from pathlib import Path
folder = {str(tmp_path / "media")!r}
thumbs = Thumbnails(folder, DiskStore(Path(folder)))
thumbs.make({f"{APPID}/2023/11/14/1.jpg"!r})
print(thumbs._decoder._process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr

        def gone():
            try:
                state = Path(f"/proc/{int(done.stdout)}/stat").read_text().rpartition(")")[2].split()[0]
            except FileNotFoundError:
                return True
            return state == "Z"

        eventually(gone, what="the decoder's end")

    def test_a_signal_to_the_group_leaves_the_picture_in_hand(self, shelf):
        thumbs, files = shelf()
        key = put(files, PHOTO)
        thumbs.make(key)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid(thumbs), number)
        process = pid(thumbs)
        thumbs.make(key)
        assert pid(thumbs) == process

    def test_no_room(self, shelf, monkeypatch):
        thumbs, files = shelf()
        key = put(files, PHOTO)
        monkeypatch.setattr(thumbnails.shelf, "MIN_FREE_BYTES", 1 << 62)
        with pytest.raises(OSError, match="make room"):
            thumbs.make(key)


@pytest.fixture
def rows(database):
    return GalleryRows(database, APPID)


class Line:
    """A ledger, its store and a maker with a clock of its own."""

    def __init__(self, ledger, rows, files, thumbs):
        self.ledger, self.rows, self.files, self.thumbs, self.now = ledger, rows, files, thumbs, T0
        self.maker = ThumbnailMaker(rows, thumbs, clock=lambda: self.now)

    def stored(self, number, data=PHOTO):
        self.ledger.record(image(number), None, self.now)
        (job,) = self.ledger.claim_downloads(self.now, 15)
        file = self.files.put(job.stem, [data], extension=extension, attempt=1)
        assert self.ledger.mark_stored(job, file, self.now)
        return job.id

    def state(self, ledger_id):
        entry = self.ledger.get(ledger_id)
        return entry.thumbnail_state, entry.thumbnail_due


@pytest.fixture
def line(ledger, rows, shelf):
    thumbs, files = shelf()
    return Line(ledger, rows, files, thumbs)


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

    def test_voices_and_videos_have_none(self, line):
        line.ledger.record(message("voice", "<MediaId>v</MediaId><MsgId>5</MsgId>"), None, T0)
        (job,) = line.ledger.claim_downloads(T0, 15)
        line.ledger.mark_stored(
            job, line.files.put(job.stem, [b"#!AMR\n"], extension=extension, attempt=1), T0
        )
        assert line.state(job.id) == (None, None)
        assert not line.maker.step()

    def test_a_dead_process_gives_it_back(self, line):
        line.stored(1)
        picture = line.rows.claim_picture(T0, CLAIM_SECONDS)
        assert picture is not None
        assert not line.maker.step()
        line.now += CLAIM_SECONDS
        assert line.maker.step()

    def test_an_unreachable_store_costs_nothing(self, line, monkeypatch):
        ledger_id = line.stored(1)
        monkeypatch.setattr(thumbnails.shelf, "MIN_FREE_BYTES", 1 << 62)
        with pytest.raises(OSError):
            line.maker.step()
        monkeypatch.undo()
        line.now += CLAIM_SECONDS
        assert line.maker.step()
        assert line.state(ledger_id) == ("made", None)

    def test_purged_while_it_is_made(self, line, monkeypatch, tmp_path):
        line.stored(1)
        make = line.thumbs.make

        def make_slowly(key):
            make(key)
            assert line.ledger.purge(line.now, before=line.now + 1) == 1

        monkeypatch.setattr(line.thumbs, "make", make_slowly)
        assert line.maker.step()
        assert not [path for path in tmp_path.glob("media-thumbnails/**/*") if path.is_file()]

    def test_one_that_is_lost_is_made_again(self, line):
        ledger_id = line.stored(1)
        line.maker.step()
        line.rows.miss_thumbnail(ledger_id, line.now)
        assert line.state(ledger_id) == (None, line.now)
        assert line.maker.step()

    def test_many_makers_share(self, line, database):
        for number in range(12):
            line.stored(number)
        taken = []

        def take():
            rows = GalleryRows(database, APPID)
            while picture := rows.claim_picture(line.now, CLAIM_SECONDS):
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
        assert GalleryRows(database, "wxanother").claim_picture(T0, 1) is None
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
    def run(self, ledger, tmp_path):
        """run(maker) -> the event that stops the thread which is at it."""
        running = []

        def start(maker):
            chores = Chores(
                ledger,
                DiskStore(tmp_path / "media"),
                None,
                None,
                maker,
                retention_days=0,
                purge_on_unsubscribe=False,
                clock=time.time,
                jitter=random.random,
            )
            stop = threading.Event()
            thread = threading.Thread(target=chores.keep_making_thumbnails, args=(stop, lambda: False))
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
        run(ThumbnailMaker(line.rows, line.thumbs))
        eventually(lambda: all(line.state(one)[0] == "made" for one in ids), what="all thumbnails")

    @pytest.mark.parametrize("fault", [OSError("no room"), RuntimeError("?")])
    def test_faults_are_waited_out(self, run, monkeypatch, caplog, fault):
        monkeypatch.setattr("worker.chores.THUMBNAIL_FAULT_SECONDS", 0.01)
        maker = Steps(fault)
        run(maker)
        eventually(lambda: maker.steps > 1, what="another step")
        assert "thumbnails have to wait" in caplog.text or "the loop goes on" in caplog.text

    def test_stopping_is_quick_and_closes(self, ledger, run):
        maker = Steps()
        stop = run(maker)
        eventually(lambda: maker.steps, what="the first step")
        started = time.monotonic()
        stop.set()
        eventually(lambda: maker.closed, what="the end")
        assert time.monotonic() - started < 3
