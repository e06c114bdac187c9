"""Fans' files for a browser: the original and its thumbnail.

Knows how to serve what a stranger sent so that it cannot run in a browser, and what to do when a store fails in the
middle of it. Must not know SQL, nor how a thumbnail is made.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, cast

from flask import Blueprint, Response, abort, request
from werkzeug.exceptions import HTTPException
from werkzeug.wsgi import FileWrapper

from storage.errors import DatabaseUnavailableError
from storage.files import FileStore
from storage.ledger import Entry
from storage.thumbnails import Thumbnails
from wechat.formats import CONTENT_TYPES

log = logging.getLogger(__name__)

# What a browser shows; the store names a file by its content, so that nothing else has one of these names.
_BROWSER_TYPES = {name: CONTENT_TYPES[name] for name in ("jpg", "png", "gif", "mp3", "mp4")}
_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"
# A browser may keep a copy, but must ask before showing it: the answer differs after a sign-out, a purge or a restored
# backup.
_CACHE = "private, no-cache"


def add_files(
    blueprint: Blueprint,
    find: Callable[[int], Entry],
    files: FileStore,
    thumbnails: Thumbnails,
    miss_thumbnail: Callable[[Entry], None],
) -> None:
    """Adds the addresses of an entry's files. `find` gives the entry, or aborts with 404; `miss_thumbnail` has its
    thumbnail made again."""

    @blueprint.get("/<int(max=9223372036854775807):ledger_id>/file")
    def file(ledger_id: int) -> Response:
        """The original, also in ranges. A format that browsers do not show is a download, and any with `?download=1`.

        A link with the attribute `download` would save whatever is answered: the sign-in page, when a session is over.
        """
        entry = find(ledger_id)
        if entry.media_key is None:
            abort(404)
        size = files.size(entry.media_key)
        if size is None:
            raise FileNotFoundError(entry.media_key)
        extension = entry.media_key.rpartition(".")[2]
        response = _stream(files.open(entry.media_key), _BROWSER_TYPES.get(extension))
        if extension not in _BROWSER_TYPES or request.args.get("download"):
            name = f"{ledger_id}.{extension}"
            response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        response.content_length = size
        _tag(response, entry)
        try:
            response.make_conditional(request, accept_ranges=True, complete_length=size)
        except HTTPException:  # no such range
            response.close()
            raise
        response.response = until_it_fails(response.iter_encoded())
        return response

    @blueprint.get("/<int(max=9223372036854775807):ledger_id>/thumbnail")
    def thumbnail(ledger_id: int) -> Response:
        """The thumbnail, or an icon in its place. If its file is missing, a worker makes it again."""
        entry = find(ledger_id)
        if entry.media_key is not None and entry.thumbnail_state == "made":
            try:
                response = _stream(thumbnails.open(entry.media_key), "image/jpeg")
                _tag(response, entry)
                # Without a length it is read here, whole: it is small.
                return cast(Response, response.make_conditional(request))
            except FileNotFoundError:
                miss_thumbnail(entry)
        response = blueprint.send_static_file(f"{entry.media_kind}.svg")
        response.headers["Cache-Control"] = "no-store"
        return response


def until_it_fails(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Of an answer that has begun. When the database or the store fails then, the connection ends, so that nobody takes
    what came for the whole."""
    try:
        yield from chunks
    except (DatabaseUnavailableError, OSError) as error:
        log_unavailable(error)
        # What servers take for a connection that is gone already: they close it and say no more.
        raise ConnectionResetError(errno.ECONNRESET, "the answer cannot be completed") from None


def log_unavailable(error: Exception) -> None:
    log.error("gallery: the database or the media store cannot be reached", extra={"reason": str(error)})


def _stream(file: BinaryIO, content_type: str | None) -> Response:
    response = Response(FileWrapper(file, 64 * 1024))
    response.content_type = content_type or "application/octet-stream"
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["Cache-Control"] = _CACHE
    response.call_on_close(file.close)
    return response


def _tag(response: Response, entry: Entry) -> None:
    """Sets the ETag, so that an unchanged file is not sent again."""
    if entry.media_sha256 is not None:
        response.set_etag(entry.media_sha256)
