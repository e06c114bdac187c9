"""Temporary media (临时素材): upload a file, download one by its media_id.

It knows the platform's limits, that a download may answer JSON instead of bytes, and how far to trust a
video_url. It must not know where the bytes go or come from. A message's PicUrl is never fetched.
https://developers.weixin.qq.com/doc/service/api/material/temporary/api_uploadtempmedia
https://developers.weixin.qq.com/doc/service/api/material/temporary/api_getmedia
"""

from __future__ import annotations

import io
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, BinaryIO, Literal
from urllib.parse import urljoin

from wechat.client import ApiClient, Timeouts, beginning, decoded, json_object, raise_errcode
from wechat.errors import (
    MediaRefusedError,
    MediaTooLargeError,
    TransportError,
    TruncatedMediaError,
    UnsafeMediaUrlError,
)
from wechat.formats import CONTENT_TYPES, HEAD_BYTES, extension
from wechat.messages import MediaKind
from wechat.transport import CHUNK_BYTES, Answer

#: Time limits for one upload, and for one download.
UPLOAD_TIMEOUT = Timeouts(read=30.0, host=300.0, call=300.0)
DOWNLOAD_TIMEOUT = Timeouts(host=600.0, call=600.0)

LIFE_SECONDS = 3 * 86400
"""How long the platform keeps a file."""

_UPLOAD_PATH = "/cgi-bin/media/upload"
_SMALL_JSON_BYTES = 64 * 1024
_SPOOL_BYTES = 64 * 1024  # a copy up to this size stays in memory
_MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SEND_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class _Limit:
    max_bytes: int
    too_large: int  # the platform's code
    extensions: frozenset[str]


_LIMITS: Mapping[str, _Limit] = {
    "image": _Limit(10 * 1024 * 1024, 40009, frozenset({"jpg", "png", "gif"})),
    "voice": _Limit(2 * 1024 * 1024, 40010, frozenset({"amr", "mp3"})),
    "video": _Limit(10 * 1024 * 1024, 40011, frozenset({"mp4"})),
    "thumb": _Limit(64 * 1024, 40012, frozenset({"jpg"})),
}


def kind_of(head: bytes) -> MediaKind:
    """The type to upload a file as, by its first bytes. A file that is no media is an image, for `upload` to refuse."""
    kinds: tuple[MediaKind, ...] = ("image", "voice", "video")
    return next((kind for kind in kinds if extension(head) in _LIMITS[kind].extensions), "image")


def upload(
    client: ApiClient,
    *,
    kind: Literal["image", "voice", "video", "thumb"],
    file: BinaryIO,
    filename: str,
    size: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Upload `size` bytes of `file`, from where it stands; the platform's JSON (see `uploaded_media_id`).

    Type, size and format (by content) are checked first: MediaRefusedError, which calls the file `filename`;
    the platform gets a plain name of ours. The file is streamed, and sent again from its beginning if the
    call is repeated. `progress` is called with the bytes sent since the last time, a negative number at a new
    start. Raises ApiError, TransportError and TokenUnavailableError too; TypeError for a file that is not open in
    binary mode.
    """
    if not hasattr(file, "read") or isinstance(file, io.TextIOBase):
        raise TypeError('file is a file open for bytes: write open(path, "rb"), or io.BytesIO(data)')
    shown = str(filename).encode("unicode_escape").decode()
    limit = _LIMITS.get(kind)
    if limit is None:
        raise MediaRefusedError(40004, f"{shown}: there is no media type {kind!r}")
    if size <= 0:
        raise MediaRefusedError(40006, f"{shown} is empty")
    if size > limit.max_bytes:
        raise MediaRefusedError(limit.too_large, f"{shown} has {size} bytes, {kind} takes {limit.max_bytes}")
    with _rewindable(file) as source:
        start = source.tell()
        found = extension(source.read(HEAD_BYTES))
        if found not in limit.extensions:
            wanted = ", ".join(sorted(limit.extensions))
            raise MediaRefusedError(
                40005, f"the content of {shown} is not of a format that {kind} takes ({wanted})"
            )
        if source.seek(0, os.SEEK_END) - start != size:
            raise MediaRefusedError(40006, f"{shown} should have {size} bytes, and does not")
        return client.call(
            "POST",
            _UPLOAD_PATH,
            params={"type": kind},
            body=_Multipart(source, start, size, f"{kind}.{found}", CONTENT_TYPES[found], progress),
            repeatable=True,  # a second copy on the platform does no harm
            timeout=UPLOAD_TIMEOUT,
        )


_MEDIA_ID = re.compile(r"[!-~]{1,512}")


def uploaded_media_id(answer: Mapping[str, Any]) -> str:
    """The id in an upload's answer; for a thumbnail it is called thumb_media_id.

    Raises TransportError if there is none.
    """
    media_id = answer.get("media_id") or answer.get("thumb_media_id")
    if not isinstance(media_id, str) or not _MEDIA_ID.fullmatch(media_id):
        raise TransportError(_UPLOAD_PATH, sent=True, status=200, detail="the answer holds no media_id")
    return media_id


@contextmanager
def open_media(client: ApiClient, media_id: str, *, max_bytes: int) -> Iterator[Iterator[bytes]]:
    """The file as chunks of at most 256 KiB; the connection is closed on leaving.

    Raised on entering or while iterating: ApiError; TokenUnavailableError; TransportError (no usable
    answer); TruncatedMediaError (broken off, stalled, or empty); MediaTooLargeError; UnsafeMediaUrlError.
    Chunks that came before an error are not a whole file.
    """
    opened = client.exchange(
        "GET",
        "/cgi-bin/media/get",
        read=_file_or_url,
        params={"media_id": media_id},
        repeatable=True,
        timeout=DOWNLOAD_TIMEOUT,
    )
    answer = opened if isinstance(opened, Answer) else _follow(client, opened)
    try:
        if answer.length is None and answer.header("Content-Length") and not answer.chunked:
            raise TruncatedMediaError("the announced length is no number, so it is unknown whether all came")
        if answer.length is not None and answer.length > max_bytes:
            raise MediaTooLargeError(max_bytes)
        yield _chunks(answer, max_bytes)
    finally:
        answer.close()


def _file_or_url(answer: Answer) -> Answer | str:
    """The answer if it is a file, or the address in it. Raises ApiError, TransportError.

    The content decides: headers prove neither a file nor an error. If it has none of the known formats, and begins like
    JSON or a page or is called text, it is read as JSON. If that fails too, another attempt may succeed.
    """
    head, complete = answer.peek(0)
    if extension(head[:HEAD_BYTES]) != "bin" or not head:
        return answer
    if not _begins_like_text(head, answer.header("Content-Type")):
        return answer
    if not complete:
        head, complete = answer.peek(_SMALL_JSON_BYTES)
    value = (json_object(head) if complete else None) or {}
    raise_errcode(value, answer.path)
    for name in ("video_url", "down_url"):
        url = value.get(name)
        if isinstance(url, str):
            answer.close()
            return url
    raise TransportError(
        answer.path, sent=True, status=200, detail=f"{answer.host} sent no file, but {beginning(head)}"
    )


# An object, an array, a page; or a call with one of them inside (JSONP).
_TEXT = re.compile(r'[\ufeff\s]*(?:[\w.$]+\(\s*)?(?:\{\s*(?:["}]|$)|\[\s*(?:[\["{\]\d]|$)|<[!?/a-zA-Z])')
_TEXT_TYPE = re.compile(
    r"\s*(?:text/|application/(?:[\w.+-]*json|[\w.+-]*xml|[\w-]*javascript))", re.IGNORECASE
)


_NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f]")


def _begins_like_text(head: bytes, content_type: str) -> bool:
    head = head[:HEAD_BYTES]
    return bool(_TEXT.match(decoded(head)) or (_TEXT_TYPE.match(content_type) and not _NO_TEXT.search(head)))


def _follow(client: ApiClient, url: str) -> Answer:
    """The video behind a video_url. Every redirect is checked as the first address was."""
    for _ in range(1 + _MAX_REDIRECTS):
        answer = client.get_url(url, path="video_url", timeout=DOWNLOAD_TIMEOUT)
        if answer.status not in _REDIRECTS:
            return _video(answer)
        answer.close()
        try:
            url = urljoin(url, answer.header("Location"))
        except ValueError:
            url = ""  # refused by get_url
    raise UnsafeMediaUrlError("video_url is redirected again and again")


def _video(answer: Answer) -> Answer:
    try:
        if answer.status == 200 and isinstance(_file_or_url(answer), Answer):
            return answer
        raise TransportError(
            answer.path, sent=True, status=answer.status, detail=f"no video at {answer.host}"
        )
    except BaseException:
        answer.close()
        raise


def _chunks(answer: Answer, max_bytes: int) -> Iterator[bytes]:
    total = 0
    while chunk := _read(answer, total):
        total += len(chunk)
        if total > max_bytes:
            raise MediaTooLargeError(max_bytes)
        yield chunk
    if total == 0:
        raise TruncatedMediaError("the platform sent an empty file")


def _read(answer: Answer, total: int) -> bytes:
    try:
        return answer.read()
    except TransportError:
        pass
    raise TruncatedMediaError(f"the download broke off after {total} bytes")


@contextmanager
def _rewindable(file: BinaryIO) -> Iterator[IO[bytes]]:
    """The file itself, or a copy on disk if it cannot be read twice (an object of a remote store)."""
    if file.seekable():
        yield file
        return
    with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as copy:
        shutil.copyfileobj(file, copy, CHUNK_BYTES)
        copy.seek(0)
        yield copy


class _Multipart:
    """A form with the one file, at a known length: the platform may not take chunked bodies."""

    def __init__(
        self,
        source: IO[bytes],
        start: int,
        size: int,
        name: str,
        content_type: str,
        progress: Callable[[int], None] | None,
    ) -> None:
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self._before = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="media"; filename="{name}"\r\n'
            f"Content-Type: {content_type}\r\n\r\n"
        ).encode()
        self._after = f"\r\n--{boundary}--\r\n".encode()
        self._source = source
        self._start = start
        self._size = size
        self._progress = progress or (lambda sent: None)
        self._sent = 0

    def __len__(self) -> int:
        return len(self._before) + self._size + len(self._after)

    def __iter__(self) -> Iterator[bytes]:
        if self._sent:
            self._progress(-self._sent)
            self._sent = 0
        self._source.seek(self._start)
        yield self._before
        while chunk := self._source.read(_SEND_BYTES):
            yield chunk
            self._sent += len(chunk)
            self._progress(len(chunk))
        yield self._after
