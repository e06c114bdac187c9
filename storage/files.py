"""Where the media lie: a folder, or a bucket of an S3-compatible store, behind the same few verbs.

A key is `APPID/YYYY/MM/DD/ID.ext`; a stem is a key without its extension, which only the content decides. A file
appears under its key whole or not at all, and writing the same key twice is harmless. Knows bytes, keys and how they
are made to last; no messages, no ledger, no platform.
"""

import base64
import contextlib
import hashlib
import io
import os
import re
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from storage.folders import make_folder, refuse_root, sync_folder, sync_parents
from storage.together import Together

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_PART = r"[A-Za-z0-9_-]+"
_STEM = re.compile(rf"{_PART}(?:/{_PART})*")
_KEY = re.compile(rf"{_STEM.pattern}\.[a-z0-9]{{1,8}}")

_HEAD_BYTES = 512  # what the kind of a file is told by

# These two know a bucket only as the first part of the host's name.
_HOSTS_WITHOUT_PATH_STYLE = (".myqcloud.com", ".aliyuncs.com")

_CONTENT_TYPES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "amr": "audio/amr",
    "speex": "audio/x-speex",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
}


class StoreError(OSError):
    """The store could not be reached, or did not do what it was asked. Nothing half done is left in it."""


@dataclass(frozen=True)
class StoredFile:
    """What was written: `size` in bytes, `sha256` in hex."""

    key: str
    size: int
    sha256: str


class FileStore(Protocol):
    """A place for media. What goes wrong with the place is an OSError; a key or stem of another form a ValueError."""

    def put(
        self, stem: str, chunks: Iterable[bytes], *, extension: Callable[[bytes], str], attempt: int
    ) -> StoredFile:
        """Keep the bytes under `stem` and the extension that their first 512 tell. Returns when they would survive a
        crash of the machine. What the chunks raise passes through, and nothing of this attempt is left."""

    def open(self, key: str) -> BinaryIO:
        """The file, to be read and closed. Raises FileNotFoundError."""

    def size(self, key: str) -> int | None:
        """The file's size in bytes; None when there is none."""

    def delete(self, key: str) -> None:
        """Delete the file; one that is not there is no error. It does not come back after a crash of the machine."""

    def delete_all(self, stems: Sequence[str]) -> int:
        """Delete whatever lies under these stems, whatever its extension, whole or not; returns how many whole files
        there were. Nothing of it comes back after a crash of the machine."""

    def discard(self, stem: str, attempt: int) -> None:
        """Delete what this attempt and those before it left unfinished."""

    def free_bytes(self) -> int | None:
        """How many bytes can still be written; None when the store has no such limit."""

    def check(self) -> None:
        """Return when files can be kept."""


def open_store(media_store: str) -> FileStore:
    """The store of a MEDIA_STORE: `s3://bucket/prefix`, or a folder."""
    if media_store.startswith("s3://"):
        return S3Store(media_store)
    return DiskStore(Path(media_store))


class DiskStore:
    """A folder. Unfinished files lie in `.tmp/` inside it, so that the move to their key stays on one file system."""

    def __init__(self, folder: Path) -> None:
        # Text: a download's five paths as Path objects would cost as much as its checks.
        self._folder = str(folder)
        self._unfinished = os.path.join(self._folder, ".tmp")
        self._sync = Together(_sync_folders)
        self._lasting: set[str] = set()
        self._is_ours = False

    def put(
        self, stem: str, chunks: Iterable[bytes], *, extension: Callable[[bytes], str], attempt: int
    ) -> StoredFile:
        _check(_STEM, stem)
        try:
            stored = self._write(stem, chunks, extension, attempt)
        except BaseException:
            self.discard(stem, attempt)
            raise
        if attempt > 1:  # those before may have been killed in the middle
            self.discard(stem, attempt)
        return stored

    def _write(
        self, stem: str, chunks: Iterable[bytes], extension: Callable[[bytes], str], attempt: int
    ) -> StoredFile:
        # The random part keeps apart two workers with the same attempt, of which one has lost its claim.
        name = f"{_flat(stem)}.{attempt}.{secrets.token_hex(4)}"
        unfinished = os.path.join(self._unfinished, name)
        with self._begun(unfinished) as file:
            head, size, digest = _copy(chunks, file)
            file.flush()
            os.fsync(file.fileno())
        key = f"{stem}.{extension(head)}"
        path = self._path(key)
        folder = os.path.dirname(path)
        try:
            os.replace(unfinished, path)
        except FileNotFoundError:  # a new day
            make_folder(Path(folder))
            os.replace(unfinished, path)
        self._sync(folder, threading.TIMEOUT_MAX)
        if folder not in self._lasting:  # once for each
            sync_parents(folder)
            self._lasting.add(folder)
        return StoredFile(key, size, digest)

    def _begun(self, unfinished: str) -> BinaryIO:
        if not self._is_ours:
            refuse_root(Path(self._folder))
            self._is_ours = True
        try:
            return open(unfinished, "xb", opener=_private)
        except FileNotFoundError:  # the first file of all
            self._make_unfinished()
            return open(unfinished, "xb", opener=_private)

    def _make_unfinished(self) -> None:
        make_folder(Path(self._unfinished))

    def open(self, key: str) -> BinaryIO:
        return open(self._path(key), "rb")

    def size(self, key: str) -> int | None:
        try:
            return os.stat(self._path(key)).st_size
        except FileNotFoundError:
            return None

    def delete(self, key: str) -> None:
        path = self._path(key)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            sync_folder(os.path.dirname(path))

    def delete_all(self, stems: Sequence[str]) -> int:
        by_folder: dict[str, set[str]] = {}
        for stem in stems:
            _check(_STEM, stem)
            folder, name = os.path.split(os.path.join(self._folder, stem))
            by_folder.setdefault(folder, set()).add(name)
        _delete_from(self._unfinished, set(map(_flat, stems)))
        return sum(_delete_from(folder, names) for folder, names in by_folder.items())

    def discard(self, stem: str, attempt: int) -> None:
        _check(_STEM, stem)
        beginning = f"{_flat(stem)}."
        with contextlib.suppress(FileNotFoundError):  # nothing was ever begun
            for name in os.listdir(self._unfinished):
                if name.startswith(beginning) and int(name.split(".")[1]) <= attempt:
                    Path(self._unfinished, name).unlink(missing_ok=True)

    def free_bytes(self) -> int | None:
        make_folder(Path(self._folder))
        return shutil.disk_usage(self._folder).free

    def check(self) -> None:
        refuse_root(Path(self._folder))
        self._make_unfinished()
        with tempfile.TemporaryFile(dir=self._unfinished) as file:
            file.write(b"?")

    def _path(self, key: str) -> str:
        _check(_KEY, key)
        return os.path.join(self._folder, key)


class S3Store:
    """A bucket of AWS S3, Tencent COS, Aliyun OSS, MinIO. Endpoint and credentials are boto3's own settings:
    AWS_ENDPOINT_URL_S3, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
    (https://boto3.amazonaws.com/v1/documentation/api/latest/guide/configuration.html)."""

    def __init__(self, url: str) -> None:
        found = re.fullmatch(rf"s3://([a-z0-9][a-z0-9.-]+)(?:/({_STEM.pattern})?/?)?", url)
        if found is None:
            raise ValueError("MEDIA_STORE must be a folder, or s3://bucket/prefix")
        self._bucket = found[1]
        self._prefix = f"{found[2]}/" if found[2] else ""
        self._client = _s3_client()

    def put(
        self, stem: str, chunks: Iterable[bytes], *, extension: Callable[[bytes], str], attempt: int
    ) -> StoredFile:
        _check(_STEM, stem)
        # On disk first: the length and the checksum go before the body, and the body may have to go twice.
        with tempfile.TemporaryFile() as spool:
            md5 = hashlib.md5(usedforsecurity=False)
            head, size, digest = _copy(chunks, spool, md5)
            suffix = extension(head)
            key = f"{stem}.{suffix}"
            name = self._name(key)
            spool.seek(0)
            with _store_errors("put"):
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=name,
                    Body=spool,
                    ContentLength=size,
                    # The server compares, and keeps nothing that differs.
                    ContentMD5=base64.b64encode(md5.digest()).decode(),
                    ContentType=_CONTENT_TYPES.get(suffix, "application/octet-stream"),
                )
        return StoredFile(key, size, digest)

    def open(self, key: str) -> BinaryIO:
        name = self._name(key)
        with _store_errors("get"):
            answer = self._client.get_object(Bucket=self._bucket, Key=name)
        return io.BufferedReader(_Body(answer["Body"]), 1 << 16)

    def size(self, key: str) -> int | None:
        name = self._name(key)
        try:
            with _store_errors("head"):
                return self._client.head_object(Bucket=self._bucket, Key=name)["ContentLength"]
        except FileNotFoundError:
            return None

    def delete(self, key: str) -> None:
        name = self._name(key)
        with _store_errors("delete"):
            self._client.delete_object(Bucket=self._bucket, Key=name)

    def delete_all(self, stems: Sequence[str]) -> int:
        deleted = 0
        for stem in stems:
            _check(_STEM, stem)
            with _store_errors("list"):
                found = self._client.list_objects_v2(Bucket=self._bucket, Prefix=f"{self._prefix}{stem}.")
            for item in found.get("Contents", []):
                with _store_errors("delete"):
                    self._client.delete_object(Bucket=self._bucket, Key=item["Key"])
                deleted += 1
        return deleted

    def discard(self, stem: str, attempt: int) -> None:
        """Nothing to do: what is unfinished never reaches the store."""

    def free_bytes(self) -> int | None:
        return None

    def check(self) -> None:
        """Reaches the bucket with the credentials, and writes nothing: probes come often, and requests cost money."""
        with _store_errors("head"):
            self._client.head_bucket(Bucket=self._bucket)

    def _name(self, key: str) -> str:
        _check(_KEY, key)
        return self._prefix + key


class _Body(io.RawIOBase):
    """An object's bytes while they come in; what goes wrong on the way is a StoreError."""

    def __init__(self, body: Any) -> None:
        self._body = body

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _store_errors("get"):
            data = self._body.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._body.close()
        super().close()


def _s3_client() -> "S3Client":
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=5,
        read_timeout=30,
        retries={"total_max_attempts": 3, "mode": "standard"},
        # Other than AWS's own stores refuse the checksums that boto3 would send on top.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session = boto3.session.Session()
    client: S3Client = session.client("s3", config=config)
    if client.meta.endpoint_url.partition("://")[2].partition("/")[0].endswith(_HOSTS_WITHOUT_PATH_STYLE):
        client = session.client("s3", config=config.merge(Config(s3={"addressing_style": "virtual"})))
    return client


@contextlib.contextmanager
def _store_errors(verb: str) -> Iterator[None]:
    """Turn what the client raises into an OSError that says what to look at."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unknown")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchKey" or (verb == "head" and status == 404):
            raise FileNotFoundError("the store has no such file") from None
        raise StoreError(f"S3 {verb}: HTTP {status} {code} (MEDIA_STORE, AWS_*)") from None
    except BotoCoreError as error:
        raise StoreError(
            f"S3 {verb}: {type(error).__name__}: is AWS_ENDPOINT_URL_S3 right, and the store up?"
        ) from None


def _copy(chunks: Iterable[bytes], file: Any, *also: Any) -> tuple[bytes, int, str]:
    """Write the chunks; returns their first bytes, their number of bytes and their SHA-256."""
    sha256 = hashlib.sha256()
    head = b""
    size = 0
    for chunk in chunks:
        if len(head) < _HEAD_BYTES:
            head += chunk[: _HEAD_BYTES - len(head)]
        size += len(chunk)
        for digest in (sha256, *also):
            digest.update(chunk)
        file.write(chunk)
    return head, size, sha256.hexdigest()


def _check(form: re.Pattern[str], name: str) -> None:
    if form.fullmatch(name) is None:
        raise ValueError("not a key of the media store")


def _flat(stem: str) -> str:
    return stem.replace("/", "-")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_folders(folders: Callable[[], Sequence[str]], wait: float) -> Sequence[None]:
    """For many files of a folder once."""
    now = folders()
    for folder in set(now):
        sync_folder(folder)
    return [None] * len(now)


def _delete_from(folder: str, stems: set[str]) -> int:
    """Delete the files of these names in one folder, whatever their extension; returns how many."""
    try:
        names = [name for name in os.listdir(folder) if name.partition(".")[0] in stems]
    except FileNotFoundError:
        return 0
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
    sync_folder(folder)  # also where nothing was found: who deleted it may have died before this
    return len(names)
