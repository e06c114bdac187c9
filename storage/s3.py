"""The media in a bucket of an S3-compatible store: AWS, Tencent COS, Aliyun OSS, MinIO.

Knows botocore, which is imported when a store is first used, and turns its errors into an OSError that says what to
check. Must not know what the files are.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, BinaryIO

from storage.files import STEM, StoredFile, StoreError, check_key, check_stem, copy
from wechat.formats import CONTENT_TYPES

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

# These two accept a bucket only as the first part of the host's name.
_HOSTS_WITHOUT_PATH_STYLE = (".myqcloud.com", ".aliyuncs.com")

_HINTS = {
    "ConfigParseError": "correct the file that AWS_CONFIG_FILE or AWS_SHARED_CREDENTIALS_FILE names, or ~/.aws",
    "NoCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "PartialCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, both",
    "ProfileNotFound": "AWS_PROFILE names a profile that is not in ~/.aws: correct it, or leave it empty",
    "ValueError": "AWS_ENDPOINT_URL_S3 must be a whole address, like https://s3.example.com",
}
_ANY_HINT = "are AWS_ENDPOINT_URL_S3 and the other AWS_* right, and is the store up?"


class S3Store:
    """A bucket of AWS S3, Tencent COS, Aliyun OSS, MinIO. Endpoint and credentials are boto3's own settings:
    AWS_ENDPOINT_URL_S3, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY
    (https://boto3.amazonaws.com/v1/documentation/api/latest/guide/configuration.html)."""

    def __init__(self, url: str, *, check_seconds: float = 5) -> None:
        found = re.fullmatch(rf"s3://([a-z0-9][a-z0-9.-]+)(?:/({STEM.pattern})?/?)?", url)
        if found is None:
            raise ValueError("MEDIA_STORE must be a folder, or s3://bucket/prefix")
        self._bucket = found[1]
        self._prefix = f"{found[2]}/" if found[2] else ""
        self._check_seconds = check_seconds

    # Clients are made at the first use, within `_store_errors`: AWS_* that botocore cannot use are a fault of the
    # store, which is reported, and not of the program that only has one.

    @cached_property
    def _client(self) -> S3Client:
        return _s3_client(read_timeout=30, attempts=3)

    @cached_property
    def _check_client(self) -> S3Client:
        """A load balancer asks every few seconds: while the store hangs, each answer must come before the next one."""
        return _s3_client(read_timeout=self._check_seconds, attempts=1)

    def put(
        self, stem: str, chunks: Iterable[bytes], *, extension: Callable[[bytes], str], attempt: int
    ) -> StoredFile:
        check_stem(stem)
        # On disk first: length and checksum precede the body, and the body may have to be sent twice.
        with tempfile.TemporaryFile() as spool:
            md5 = hashlib.md5(usedforsecurity=False)
            head, size, digest = copy(chunks, spool, md5)
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
                    # The server compares the checksum, and rejects a body that differs.
                    ContentMD5=base64.b64encode(md5.digest()).decode(),
                    ContentType=CONTENT_TYPES.get(suffix, "application/octet-stream"),
                )
        return StoredFile(key, size, digest)

    def open(self, key: str) -> BinaryIO:
        name = self._name(key)
        verb = f"get {name}"  # it may be the only one that cannot be read
        with _store_errors(verb):
            answer = self._client.get_object(Bucket=self._bucket, Key=name)
        return io.BufferedReader(_Body(answer["Body"], verb), 1 << 16)

    def size(self, key: str) -> int | None:
        name = self._name(key)
        try:
            with _store_errors("head"):
                return self._client.head_object(Bucket=self._bucket, Key=name)["ContentLength"]
        except FileNotFoundError:
            self.check()  # an answer to HEAD does not say whether the file is missing or the whole bucket
            return None

    def delete(self, key: str) -> None:
        name = self._name(key)
        with _store_errors("delete"):
            self._client.delete_object(Bucket=self._bucket, Key=name)

    def delete_all(self, stems: Sequence[str]) -> int:
        """An object that the store refuses to delete holds up no other one: a rule may keep some of them for a time."""
        deleted, fault = 0, None
        for stem in stems:
            check_stem(stem)
            try:
                deleted += self._delete_stem(stem)
            except StoreError as error:
                self.check()  # while the whole store is away each of the others would only wait for it
                fault = error
        if fault is not None:
            raise fault
        return deleted

    def _delete_stem(self, stem: str) -> int:
        with _store_errors("list"):
            found = self._client.list_objects_v2(Bucket=self._bucket, Prefix=f"{self._prefix}{stem}.")
        items = found.get("Contents", [])
        for item in items:
            with _store_errors("delete"):
                self._client.delete_object(Bucket=self._bucket, Key=item["Key"])
        return len(items)

    def discard(self, stem: str, attempt: int) -> None:
        """Nothing to do: what is unfinished never reaches the store."""

    def free_bytes(self) -> int | None:
        return None

    def check(self) -> None:
        """Reaches the bucket with the credentials, and writes nothing: probes come often, and requests cost money."""
        try:
            with _store_errors("head"):
                self._check_client.head_bucket(Bucket=self._bucket)
        except FileNotFoundError:
            raise StoreError(f"S3: there is no bucket {self._bucket} (MEDIA_STORE, AWS_*)") from None

    def _name(self, key: str) -> str:
        check_key(key)
        return self._prefix + key


class _Body(io.RawIOBase):
    """An object's bytes as they arrive. Raises StoreError if the transfer fails."""

    def __init__(self, body: Any, verb: str) -> None:
        self._body, self._verb = body, verb

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _store_errors(self._verb):
            data = self._body.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._body.close()
        super().close()


def _s3_client(*, read_timeout: float, attempts: int) -> S3Client:
    from botocore.config import Config
    from botocore.session import Session

    config = Config(
        connect_timeout=5,
        read_timeout=read_timeout,
        # As many as eight accounts have threads in `flask worker`. A further one is warned of, and connects each time.
        max_pool_connections=128,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        # Stores other than AWS refuse the additional checksums that botocore would send.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    session: Any = Session()  # its types know only clients of any kind
    session.register_component("data_loader", _data_loader())
    client: S3Client = session.create_client("s3", config=config)
    if client.meta.endpoint_url.partition("://")[2].partition("/")[0].endswith(_HOSTS_WITHOUT_PATH_STYLE):
        client = session.create_client("s3", config=config.merge(Config(s3={"addressing_style": "virtual"})))
    return client


@cache
def _data_loader() -> Any:
    """What describes S3 is large, and is read once: not for each client."""
    from botocore.session import Session

    return Session().get_component("data_loader")


@contextlib.contextmanager
def _store_errors(verb: str) -> Iterator[None]:
    """Turn the client's errors into an OSError that says what to check."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "unknown")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code == "NoSuchKey" or (verb == "head" and status == 404):
            raise FileNotFoundError("the store has no such file") from None
        raise StoreError(f"S3 {verb}: HTTP {status} {code} (MEDIA_STORE, AWS_*)") from None
    # FileNotFoundError: a file that AWS_* name, not one of the store. ValueError: an address that is none.
    except (BotoCoreError, FileNotFoundError, ValueError) as error:
        # Without its text, which may hold a setting's value.
        kind = type(error).__name__
        raise StoreError(f"S3 {verb}: {kind}: {_HINTS.get(kind, _ANY_HINT)}") from None
