"""The file stores: whole or not at all, on disk and on S3 alike; what a crash or a bad server leaves."""

import base64
import contextlib
import hashlib
import http.server
import io
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from botocore.awsrequest import AWSResponse
from botocore.httpsession import URLLib3Session
from botocore.session import Session
from urllib3 import HTTPResponse

import storage.s3
from commands.worker import WORKER_THREADS
from storage.disk import DiskStore
from storage.files import StoredFile, StoreError, open_store
from storage.s3 import S3Store

ROOT = Path(__file__).parent.parent
STEM = "wx0123456789abcdef/2023/11/14/17"
KEY = f"{STEM}.jpg"
PHOTO = b"\xff\xd8\xff" + bytes(range(256)) * 5000


def jpg(_head):
    return "jpg"


def pieces(data, size=65536):
    return (data[start : start + size] for start in range(0, len(data), size))


def put(store, data=PHOTO, *, stem=STEM, attempt=1):
    return store.put(stem, pieces(data), extension=jpg, attempt=attempt)


def content(store, key=KEY):
    with store.open(key) as file:
        return file.read()


class Cut(Exception):
    """The download broke."""


def cut(data):
    yield data
    raise Cut


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class TestEveryStore:
    def test_keeps_what_it_is_given(self, store):
        stored = put(store)
        assert stored == StoredFile(KEY, len(PHOTO), hashlib.sha256(PHOTO).hexdigest())
        assert content(store) == PHOTO
        assert store.size(KEY) == len(PHOTO)

    def test_names_by_the_first_bytes_however_they_come(self, store):
        heads = []

        def look(head):
            heads.append(head)
            return "png"

        stored = store.put(STEM, pieces(PHOTO, 100), extension=look, attempt=1)
        store.put(STEM, pieces(b"tiny", 3), extension=look, attempt=1)
        store.put(STEM, [], extension=look, attempt=1)
        assert stored.key == f"{STEM}.png"
        assert heads == [PHOTO[:512], b"tiny", b""]
        assert store.size(stored.key) == 0

    def test_the_same_key_twice_is_harmless(self, store):
        assert put(store) == put(store, attempt=2)
        assert content(store) == PHOTO

    def test_a_file_that_breaks_off_is_not_there(self, store):
        with pytest.raises(Cut):
            store.put(STEM, cut(PHOTO), extension=jpg, attempt=1)
        assert store.size(KEY) is None
        with pytest.raises(FileNotFoundError):
            store.open(KEY)

    def test_one_that_breaks_off_leaves_the_older_whole(self, store):
        put(store)
        with pytest.raises(Cut):
            store.put(STEM, cut(b"other"), extension=jpg, attempt=2)
        assert content(store) == PHOTO

    def test_read_in_parts(self, store):
        put(store)
        with store.open(KEY) as file:
            assert file.read(3) == PHOTO[:3]
            assert file.read(100_000) == PHOTO[3:100_003]
            assert file.read() == PHOTO[100_003:]
            assert file.read() == b""

    def test_deleted(self, store):
        put(store)
        store.delete(KEY)
        store.delete(KEY)
        assert store.size(KEY) is None

    def test_all_of_a_stem_and_of_no_other(self, store):
        put(store)
        put(store, stem=f"{STEM}0")
        store.put(STEM, [b"x"], extension=lambda _: "png", attempt=1)
        assert store.delete_all([STEM, "wx0/2023/01/01/1"]) == 2
        assert store.delete_all([STEM]) == 0
        assert store.size(KEY) is store.size(f"{STEM}.png") is None
        assert store.size(f"{STEM}0.jpg") == len(PHOTO)

    def test_refuses_names_that_lead_elsewhere(self, store):
        for name in (
            "",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a\\b",
            "a/.tmp",
            "a\n",
            "a/b/",
            "ä",
            "a b",
            "%2e",
            "a\0",
        ):
            for refused in (
                partial(put, store, stem=name),
                partial(store.open, f"{name}.jpg"),
                partial(store.size, f"{name}.jpg"),
                partial(store.delete, f"{name}.jpg"),
                partial(store.delete_all, [name]),
            ):
                with pytest.raises(ValueError, match="not a key"):
                    refused()

    def test_refuses_an_extension_that_is_none(self, store):
        for extension in ("", "JPG", "j/g", "../x", "tar.gz"):
            with pytest.raises(ValueError, match="not a key"):
                store.put(STEM, [b"x"], extension=lambda _, bad=extension: bad, attempt=1)
        assert store.size(KEY) is None

    def test_is_found_writable(self, store):
        store.check()
        store.discard(STEM, 1)


class TestDisk:
    @pytest.fixture
    def folder(self, tmp_path):
        return tmp_path / "deep" / "media"

    @pytest.fixture
    def store(self, folder):
        return DiskStore(folder)

    def test_says_that_a_disk_is_not_mounted(self, tmp_path):
        (tmp_path / "media").symlink_to(tmp_path / "disk")
        store = DiskStore(tmp_path / "media")
        for use in store.free_bytes, store.check, partial(put, store):
            with pytest.raises(OSError, match=r"leads to .*/disk, which is not there: is its disk mounted"):
                use()
        (tmp_path / "disk").mkdir()
        put(store)
        assert content(store) == PHOTO

    def test_says_that_a_folder_is_on_another_disk(self, tmp_path):
        with contextlib.ExitStack() as stack:
            try:
                other = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
            except OSError:
                pytest.skip("no /dev/shm")
            if other.stat().st_dev == tmp_path.stat().st_dev:
                pytest.skip("/dev/shm is no other disk")
            (tmp_path / STEM.partition("/")[0]).symlink_to(other)
            with pytest.raises(OSError, match="put all of MEDIA_STORE on one disk"):
                put(DiskStore(tmp_path))
            assert files_in(tmp_path) == files_in(other) == []

    def test_holds_whole_files_only(self, store, folder):
        put(store)
        assert files_in(folder) == [KEY]
        assert stat.S_IMODE((folder / KEY).stat().st_mode) == 0o600

    def test_leaves_nothing_of_a_failed_attempt(self, store, folder):
        with pytest.raises(Cut):
            store.put(STEM, cut(PHOTO), extension=jpg, attempt=1)
        assert files_in(folder) == []

    def test_clears_up_after_older_attempts_only(self, store, folder):
        unfinished = folder / ".tmp"
        unfinished.mkdir(parents=True)
        flat = STEM.replace("/", "-")
        names = [f"{flat}.1.aa", f"{flat}.2.bb", f"{flat}.3.cc", f"{flat}0.1.dd"]
        for name in names:
            (unfinished / name).write_bytes(b"half")
        store.discard(STEM, 1)
        assert files_in(unfinished) == names[1:]
        (unfinished / names[0]).write_bytes(b"half")
        put(store, attempt=1)  # a power cut may have taken the ledger's count back
        assert files_in(unfinished) == names[1:]
        put(store, attempt=2)
        assert files_in(unfinished) == names[2:]
        with pytest.raises(Cut):
            store.put(STEM, cut(b"x"), extension=jpg, attempt=3)
        assert files_in(unfinished) == names[3:]
        (unfinished / names[0]).write_bytes(b"half")
        store.delete_all([STEM])
        assert files_in(folder) == [f".tmp/{names[3]}"]

    def test_an_attempt_that_was_given_up_cannot_finish(self, store, folder):
        def overtaken():
            yield b"half"
            put(store, attempt=2)
            yield b" and half"

        with pytest.raises(FileNotFoundError):
            store.put(STEM, overtaken(), extension=jpg, attempt=1)
        assert content(store) == PHOTO
        assert files_in(folder) == [KEY]

    def test_a_full_disk(self, store, folder):
        code = (
            "import resource, sys; from pathlib import Path; from storage.disk import DiskStore;"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
            "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "try: DiskStore(Path(sys.argv[1])).put('a/1', [b'x' * 99_999] * 3, extension=lambda _: 'jpg', attempt=1)\n"
            "except OSError as error: print(type(error).__name__)"
        )
        run = subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, capture_output=True, text=True)
        assert run.stdout == "OSError\n"
        assert files_in(folder) == []

    def test_everything_is_synced_once_it_is_in_place(self, store, folder, monkeypatch):
        synced = []
        sync = os.fsync

        def note(handle):
            synced.append(os.readlink(f"/proc/self/fd/{handle}"))
            sync(handle)

        monkeypatch.setattr(os, "fsync", note)
        put(store)
        day = (folder / KEY).parent
        assert synced[0].startswith(str(folder / ".tmp"))
        assert synced[1] == str(day)
        assert {str(parent) for parent in day.parents} <= set(synced)
        synced.clear()
        put(store, attempt=2)
        assert synced[1:] == [str(day)]

    def test_a_parent_that_may_not_be_read(self, store, monkeypatch):
        opened = os.open

        def refuse(path, *arguments, **options):
            if str(path) == "/":
                raise PermissionError
            return opened(path, *arguments, **options)

        monkeypatch.setattr(os, "open", refuse)
        put(store)
        assert content(store) == PHOTO

    def test_free_bytes(self, store):
        assert store.free_bytes() > 0

    def test_a_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(OSError, match="file"):
            DiskStore(tmp_path / "file" / "media").check()

    KILLED = """
import os, sys
from pathlib import Path
from storage.disk import DiskStore
step = sys.argv[2]

def chunks():
    yield b"half"
    if step == "writing":
        print("now", flush=True); sys.stdin.readline()
    yield b"half"

if step == "moved":
    replace = os.replace
    def move(*paths):
        replace(*paths)
        print("now", flush=True); sys.stdin.readline()
    os.replace = move
DiskStore(Path(sys.argv[1])).put("wx/2023/11/14/17", chunks(), extension=lambda _: "jpg", attempt=1)
"""

    @pytest.mark.parametrize(("step", "left"), [("writing", 1), ("moved", 0)])
    def test_killed(self, store, folder, step, left):
        process = subprocess.Popen(
            [sys.executable, "-c", self.KILLED, folder, step],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "now\n"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        key = "wx/2023/11/14/17.jpg"
        assert len(files_in(folder / ".tmp")) == left
        assert store.size(key) == (None if left else 8)
        assert put(store, b"halfhalf", stem="wx/2023/11/14/17", attempt=2).key == key
        assert files_in(folder) == [key]
        assert content(store, key) == b"halfhalf"


class Answer(http.server.BaseHTTPRequestHandler):
    """An S3 server that answers everything as the test says."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.requests.append((self.command, self.path, dict(self.headers), body))
        status, headers, answer = self.server.answer
        checksum = self.headers.get("Content-MD5")
        if checksum and base64.b64decode(checksum) != hashlib.md5(body).digest():
            answer = b"<Error><Code>BadDigest</Code></Error>"
            status, headers = 400, {"Content-Length": str(len(answer))}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")  # or the next request may meet one that is being closed
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_HEAD = do_DELETE = do_PUT  # noqa: N815

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def server(status, headers=None, body=b""):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.answer = status, headers or {"Content-Length": str(len(body))}, body
        server.requests = []
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class TestS3:
    def at(self, monkeypatch, endpoint):
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        return S3Store("s3://bucket/prefix")

    def test_objects_lie_under_the_prefix_with_their_type(self, s3_url):
        store = S3Store(s3_url)
        put(store)
        put(S3Store(s3_url.partition("/some")[0]), b"x")
        store.put(STEM, [b"x"], extension=lambda _: "bin", attempt=1)
        client = Session().create_client("s3")
        bucket = s3_url.split("/")[2]
        found = {
            item["Key"]: client.head_object(Bucket=bucket, Key=item["Key"])["ContentType"]
            for item in client.list_objects_v2(Bucket=bucket)["Contents"]
        }
        client.close()
        assert found == {
            f"some/prefix/{KEY}": "image/jpeg",
            f"some/prefix/{STEM}.bin": "application/octet-stream",
            KEY: "image/jpeg",
        }
        assert store.free_bytes() is None

    def test_sends_a_checksum_that_every_kind_of_server_knows(self, s3_settings, monkeypatch):
        with server(200, {"ETag": '"x"', "Content-Length": "0"}) as s3:
            store = self.at(monkeypatch, f"http://127.0.0.1:{s3.server_port}")
            put(store)
        ((command, path, headers, body),) = s3.requests
        assert (command, path, body) == ("PUT", f"/bucket/prefix/{KEY}", PHOTO)
        assert headers["Content-MD5"] == base64.b64encode(hashlib.md5(PHOTO).digest()).decode()
        assert int(headers["Content-Length"]) == len(PHOTO)
        assert "Transfer-Encoding" not in headers
        assert not [name for name in headers if "checksum" in name.lower() or "trailer" in name.lower()]

    def test_two_accounts_threads_keep_their_connections(self, s3_settings, monkeypatch, caplog):
        threads = 2 * WORKER_THREADS
        together = threading.Barrier(threads)

        def wait_for_all(handler):
            together.wait(30)
            Answer.do_GET(handler)

        monkeypatch.setattr(Answer, "do_HEAD", wait_for_all)
        with server(200, {"Content-Length": "0"}) as s3:
            store = self.at(monkeypatch, f"http://127.0.0.1:{s3.server_port}")
            with ThreadPoolExecutor(threads) as pool:
                assert list(pool.map(lambda _: store.size(KEY), range(threads))) == [0] * threads
        assert caplog.messages == []

    def test_memory_stays_bounded(self, s3_settings, monkeypatch):
        with server(200, {"ETag": '"x"', "Content-Length": "0"}) as s3:
            store = self.at(monkeypatch, f"http://127.0.0.1:{s3.server_port}")
            put(store)  # The client is made: that alone needs 3 to 10 MB for a moment.

            def drain(handler):
                left = int(handler.headers["Content-Length"])
                while left:
                    left -= len(handler.rfile.read(min(left, 65536)))
                handler.send_response(200)
                handler.send_header("Content-Length", "0")
                handler.send_header("Connection", "close")
                handler.end_headers()

            monkeypatch.setattr(Answer, "do_PUT", drain)
            tracemalloc.start()
            store.put(STEM, (bytes(65536) for _ in range(300)), extension=jpg, attempt=1)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 5_000_000

    @pytest.mark.parametrize("status", [500, 503, 403, 404])
    def test_a_server_that_refuses(self, s3_settings, monkeypatch, status):
        with server(status) as s3:
            store = self.at(monkeypatch, f"http://127.0.0.1:{s3.server_port}")
            for failing in (
                lambda: put(store),
                lambda: store.open(KEY),
                lambda: store.delete(KEY),
                lambda: store.delete_all([STEM]),
                store.check,
            ):
                with pytest.raises(OSError, match=r"HTTP|no (such|bucket)") as caught:
                    failing()
                assert ("S3 get" in str(caught.value)) == (f"S3 get prefix/{KEY}: " in str(caught.value))
                assert s3_settings["AWS_SECRET_ACCESS_KEY"] not in str(caught.value)

    def test_a_bucket_that_is_not_there(self, s3_settings):
        with pytest.raises(StoreError, match="no bucket no-such-bucket"):
            S3Store("s3://no-such-bucket/prefix").check()

    def test_no_file_is_taken_for_gone_where_the_bucket_is(self, s3_settings):
        with pytest.raises(StoreError, match="no bucket no-such-bucket"):
            S3Store("s3://no-such-bucket/prefix").size(KEY)

    def test_a_check_of_a_server_that_hangs_ends_soon(self, s3_settings, monkeypatch):
        """Nothing accepts: the connection stays in the queue of the listening socket."""
        with socket.create_server(("127.0.0.1", 0)) as silent:
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent.getsockname()[1]}")
            store = S3Store("s3://bucket/prefix", check_seconds=0.1)
            with pytest.raises(StoreError, match="ReadTimeoutError"):
                store.check()
            silent.setblocking(False)
            silent.accept()[0].close()
            with pytest.raises(BlockingIOError):  # it was asked once
                silent.accept()

    def test_a_server_that_is_away(self, s3_settings, monkeypatch):
        store = self.at(monkeypatch, "http://127.0.0.1:1")
        with pytest.raises(StoreError, match="AWS_ENDPOINT_URL_S3"):
            put(store)
        with pytest.raises(StoreError):
            store.check()

    @pytest.mark.parametrize(
        ("given", "hint"),
        [
            ({"AWS_ENDPOINT_URL_S3": "minio:9000"}, "AWS_ENDPOINT_URL_S3 must be a whole address"),
            ({"AWS_ENDPOINT_URL_S3": "http://[::1"}, "AWS_ENDPOINT_URL_S3 must be a whole address"),
            ({"AWS_PROFILE": "a-secret-of-this-test"}, "AWS_PROFILE"),
            ({"AWS_SECRET_ACCESS_KEY": ""}, "AWS_SECRET_ACCESS_KEY, both"),
            ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "set AWS_ACCESS_KEY_ID"),
            ({"AWS_SECRET_ACCESS_KEY": "a-secret-of-this-test\udcff"}, r"other AWS_\*"),
            ({"AWS_CONFIG_FILE": __file__}, "AWS_CONFIG_FILE"),
            (
                {
                    "AWS_ACCESS_KEY_ID": "",
                    "AWS_SECRET_ACCESS_KEY": "",
                    "AWS_ROLE_ARN": "arn:aws:iam::1:role/of-this-test",
                    "AWS_WEB_IDENTITY_TOKEN_FILE": "/no/such/file",
                },
                r"other AWS_\*",
            ),
        ],
    )
    def test_settings_that_no_client_can_be_made_with(self, s3_settings, monkeypatch, tmp_path, given, hint):
        """They are a fault of the store: the bot starts, answers, and says what is wrong."""
        for name, value in {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"), **given}.items():
            monkeypatch.setenv(name, value)
        store = S3Store("s3://bucket/prefix")
        for failing in (
            lambda: put(store),
            lambda: store.open(KEY),
            lambda: store.size(KEY),
            lambda: store.delete(KEY),
            lambda: store.delete_all([STEM]),
            store.check,
        ):
            with pytest.raises(StoreError, match=hint) as caught:
                failing()
            assert "a-secret-of-this-test" not in str(caught.value)

    def test_a_body_that_breaks_off(self, s3_settings, monkeypatch):
        with server(200, {"Content-Length": "1000", "ETag": '"x"'}, b"half") as s3:
            store = self.at(monkeypatch, f"http://127.0.0.1:{s3.server_port}")
            with store.open(KEY) as file, pytest.raises(StoreError):
                file.read()

    def test_a_body_that_was_damaged_is_refused(self, s3_settings, monkeypatch):
        copy = storage.s3.copy

        def damaged(chunks, file, *digests):
            result = copy(chunks, file, *digests)
            file.seek(0)
            file.write(b"!")
            return result

        monkeypatch.setattr(storage.s3, "copy", damaged)
        with server(200, {"ETag": '"x"', "Content-Length": "0"}) as s3:
            store = self.at(monkeypatch, f"http://127.0.0.1:{s3.server_port}")
            with pytest.raises(StoreError, match="BadDigest"):
                put(store)

    @pytest.mark.parametrize(
        ("endpoint", "bucket"),
        [
            ("https://cos.ap-guangzhou.myqcloud.com", "https://bucket.cos.ap-guangzhou.myqcloud.com"),
            ("https://oss-cn-hangzhou.aliyuncs.com", "https://bucket.oss-cn-hangzhou.aliyuncs.com"),
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000/bucket"),
            ("https://minio.example", "https://minio.example/bucket"),
        ],
    )
    def test_addresses_buckets_as_the_store_wants(self, s3_settings, monkeypatch, endpoint, bucket):
        asked = []

        def answer(_, request):
            asked.append(request.url)
            return AWSResponse(request.url, 200, {}, HTTPResponse(io.BytesIO(), preload_content=False))

        monkeypatch.setattr(URLLib3Session, "send", answer)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", endpoint)
        S3Store("s3://bucket").delete(KEY)
        assert asked == [f"{bucket}/{KEY}"]

    @pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://bucket/../x", "s3://bucket/a b", "s3://B/x"])
    def test_refuses_other_urls(self, url):
        with pytest.raises(ValueError, match="MEDIA_STORE"):
            open_store(url)


def test_open_store(tmp_path, s3_settings):
    assert isinstance(open_store(str(tmp_path)), DiskStore)
    assert isinstance(open_store("s3://bucket/prefix"), S3Store)


def test_a_folder_does_not_need_botocore(tmp_path):
    code = (
        "import sys; from storage.files import open_store; open_store(sys.argv[1]).check(); "
        "sys.exit('botocore' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT).returncode == 0
