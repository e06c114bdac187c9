"""GET /gallery: what fans sent, for who knows ADMIN_PASSWORD. Converts a request, calls, converts the answer back.

Knows sign-in, sessions and how to serve what strangers sent so that it cannot run in a browser. Does not know SQL, nor
how a thumbnail is made. A session is a cookie, signed with a random key that all web processes share and with the
password, so that another ADMIN_PASSWORD ends all of them. There is no script on these pages.
https://cheatsheetseries.owasp.org/cheatsheets/Session_Management_Cheat_Sheet.html
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any, BinaryIO, Final, cast

from flask import Blueprint, Response, abort, g, redirect, render_template, request, url_for
from itsdangerous import BadSignature, URLSafeSerializer
from werkzeug.exceptions import HTTPException
from werkzeug.wsgi import FileWrapper

from storage.database import Database
from storage.errors import DatabaseUnavailableError
from storage.files import FileStore
from storage.gallery import KINDS, STATES, Filter, GalleryRows
from storage.ledger import Entry, Ledger
from storage.sign_ins import Attempts, Sessions
from thumbnails.shelf import Thumbnails
from web.senders import sender_address, sent_by_another_site
from web.voice_length import voice_seconds
from wechat.codes import explain

log = logging.getLogger(__name__)

PAGE_ENTRIES = 48
SESSION_SECONDS = 12 * 3600.0
MAX_VOICE_BYTES = 4 * 1024 * 1024  # no voice is that long: the platform ends one after 60 seconds

COOKIE = "gallery"

# What a browser shows; the store names a file by its content, so that nothing else has one of these names.
_SHOWN: Final = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "mp3": "audio/mpeg",
    "mp4": "video/mp4",
}
_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_PAGE_POLICY: Final = (
    "default-src 'none'; style-src 'self'; img-src 'self'; media-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_FILE_POLICY: Final = "default-src 'none'; sandbox; frame-ancestors 'none'"
# A browser keeps a copy but asks before it shows it: who signed out sees no more of it, a purged file is gone, and
# after a backup was restored an id may be another message's.
_FILE_CACHE: Final = "private, no-cache"


@dataclass(frozen=True)
class _Session:
    """What the cookie of one who signed in says. `until` in unix seconds."""

    id: str
    until: float


def gallery(
    database: Database,
    ledger: Ledger,
    rows: GalleryRows,
    files: FileStore,
    thumbnails: Thumbnails,
    *,
    password: str,
    wake: Callable[[], None],
    clock: Callable[[], float] = time.time,
) -> Blueprint:
    """All pages. `wake` is called when a retry was asked for."""
    blueprint = Blueprint(
        "gallery", __name__, url_prefix="/gallery", template_folder="templates", static_folder="static"
    )
    sessions = Sessions(database)

    @cache
    def key() -> bytes:
        return hmac.digest(sessions.key(), b"gallery\0" + password.encode(), "sha256")

    def cookies() -> URLSafeSerializer:
        return URLSafeSerializer(key(), salt="gallery", signer_kwargs={"digest_method": hashlib.sha256})

    def attempts() -> Attempts:
        # Another password begins with no tries. The two bytes in the database tell next to nothing about it.
        return Attempts(database, f"gallery {hmac.digest(key(), b'attempts', 'sha256')[:2].hex()}")

    # -- sessions ----------------------------------------------------------------------------------------------

    @blueprint.before_request
    def guard() -> Any:
        if request.endpoint == "gallery.static":
            return None
        if request.method == "POST" and sent_by_another_site():
            log.warning("gallery: a form of another site", extra={"path": request.path})
            abort(403)
        g.gallery = session = read_session()
        inside, at_door = session is not None, request.endpoint == "gallery.sign_in"
        if inside == at_door:
            return redirect(url_for("gallery.index" if inside else "gallery.sign_in"), 303)
        return None

    def read_session() -> _Session | None:
        given = request.cookies.get(COOKIE)
        if not given:
            return None
        try:
            session = _Session(*cookies().loads(given))
        except (BadSignature, TypeError):
            return None
        return None if session.until <= clock() or sessions.has_ended(session.id) else session

    @blueprint.route("/sign-in", methods=["GET", "POST"])
    def sign_in() -> Response:
        if request.method != "POST":
            return sign_in_page()
        address, tries = sender_address(), attempts()
        wait = tries.try_one(address, clock())
        if wait:
            log.warning("gallery: too many sign-ins", extra={"from": address})
            response = sign_in_page(429, wait_minutes=int(wait // 60) + 1)
            response.headers["Retry-After"] = str(int(wait) + 1)
            return response
        if not _same(request.form.get("password", ""), password):
            log.warning("gallery: wrong ADMIN_PASSWORD", extra={"from": address})
            return sign_in_page(403, wrong=True)
        tries.forgive(address, clock())
        log.info("gallery: signed in", extra={"from": address})
        response = cast(Response, redirect(url_for("gallery.index"), 303))
        response.set_cookie(
            COOKIE,
            cookies().dumps([secrets.token_urlsafe(16), clock() + SESSION_SECONDS]),
            max_age=int(SESSION_SECONDS),
            path=url_for("gallery.index"),
            secure=request.is_secure,
            httponly=True,
            samesite="Lax",
        )
        return response

    def sign_in_page(status: int = 200, **what: Any) -> Response:
        return Response(page("sign_in.html", **what), status)

    @blueprint.post("/sign-out")
    def sign_out() -> Response:
        sessions.end(g.gallery.id, g.gallery.until, clock())
        response = cast(Response, redirect(url_for("gallery.sign_in"), 303))
        response.delete_cookie(COOKIE, path=url_for("gallery.index"))
        return response

    # -- pages -------------------------------------------------------------------------------------------------

    def page(template: str, **what: Any) -> str:
        known = (language[:2].lower() for language, _ in request.accept_languages)
        zh = next((language for language in known if language in ("en", "zh")), "en") == "zh"
        return render_template(
            f"gallery/{template}",
            t=lambda en, chinese: chinese if zh else en,
            lang="zh-CN" if zh else "en",
            when=_when,
            signed_in=g.get("gallery") is not None,
            **what,
        )

    @blueprint.get("")
    def index() -> str:
        which, before, given = _asked(request.args)
        entries = rows.page(which, before=before, limit=PAGE_ENTRIES + 1)
        last = entries[PAGE_ENTRIES - 1] if len(entries) > PAGE_ENTRIES else None
        older = last and {**given, "before": f"{last.received_at!r}_{last.id}"}
        return page(
            "index.html",
            entries=entries[:PAGE_ENTRIES],
            given=given,
            older=older,
            kinds=KINDS,
            states=STATES,
        )

    @blueprint.get("/<int(max=9223372036854775807):ledger_id>")
    def entry(ledger_id: int) -> str:
        found = find(ledger_id)
        extension = (found.media_key or "").rpartition(".")[2]
        return page(
            "entry.html",
            entry=found,
            extension=extension,
            seconds=length_of(found) if extension in ("amr", "speex") else None,
            codes=[explain(code) for code in (found.media_code, found.send_code) if code],
            can_retry=found.media_state == "failed" or found.send_state in ("failed", "unknown"),
            given=_asked(request.args)[2],
        )

    def length_of(found: Entry) -> float | None:
        if found.media_key is None or (found.media_size or 0) > MAX_VOICE_BYTES:
            return None
        try:
            with files.open(found.media_key) as file:
                return voice_seconds(file.read(MAX_VOICE_BYTES))
        except OSError:
            return None

    @blueprint.post("/<int(max=9223372036854775807):ledger_id>/retry")
    def retry(ledger_id: int) -> Response:
        find(ledger_id)
        if ledger.retry([ledger_id], clock()):
            log.info("gallery: a retry was asked for", extra={"ledger_id": ledger_id})
            wake()
        return cast(Response, redirect(url_for("gallery.entry", ledger_id=ledger_id), 303))

    def find(ledger_id: int) -> Entry:
        found = ledger.get(ledger_id)
        if found is None or found.media_state is None:
            abort(404)
        return found

    # -- files -------------------------------------------------------------------------------------------------

    @blueprint.get("/<int(max=9223372036854775807):ledger_id>/file")
    def file(ledger_id: int) -> Response:
        """The original, also in ranges; what no browser shows is a download."""
        found = find(ledger_id)
        size = None if found.media_key is None else files.size(found.media_key)
        if found.media_key is None or size is None:
            abort(404)
        extension = found.media_key.rpartition(".")[2]
        response = _stream(files.open(found.media_key), _SHOWN.get(extension))
        if extension not in _SHOWN:
            name = f"{ledger_id}.{extension}"
            response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        response.content_length = size
        _tag(response, found)
        try:
            response.make_conditional(request, accept_ranges=True, complete_length=size)
        except HTTPException:  # no such range
            response.close()
            raise
        return response

    @blueprint.get("/<int(max=9223372036854775807):ledger_id>/thumbnail")
    def thumbnail(ledger_id: int) -> Response:
        """The thumbnail, or a plain sign in its place; one that is gone is made again by a worker."""
        found = find(ledger_id)
        if found.media_key is not None and found.thumbnail_state == "made":
            try:
                response = _stream(thumbnails.open(found.media_key), "image/jpeg")
                _tag(response, found)
                return cast(Response, response.make_conditional(request))
            except FileNotFoundError:
                rows.miss_thumbnail(ledger_id, clock())
        response = blueprint.send_static_file(f"{found.media_kind}.svg")
        response.headers["Cache-Control"] = "no-store"
        return response

    # -- always ------------------------------------------------------------------------------------------------

    @blueprint.after_request
    def headers(response: Response) -> Response:
        for name, value in _HEADERS.items():
            response.headers[name] = value
        response.headers.setdefault("Content-Security-Policy", _PAGE_POLICY)
        if response.mimetype == "text/html":
            response.headers["Cache-Control"] = "no-store"
        return response

    @blueprint.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[str, int]:
        return page("message.html", status=error.code), error.code or 500

    @blueprint.errorhandler(FileNotFoundError)
    def gone(error: FileNotFoundError) -> tuple[str, int]:
        return page("message.html", status=404), 404

    @blueprint.errorhandler(DatabaseUnavailableError)
    @blueprint.errorhandler(OSError)
    def unavailable(error: Exception) -> tuple[str, int]:
        log.error("gallery: a store is away", extra={"reason": str(error)})
        return page("message.html", status=503), 503

    return blueprint


def _stream(file: BinaryIO, content_type: str | None) -> Response:
    response = Response(FileWrapper(file, 64 * 1024), direct_passthrough=True)
    response.content_type = content_type or "application/octet-stream"
    response.headers["Content-Security-Policy"] = _FILE_POLICY
    response.headers["Cache-Control"] = _FILE_CACHE
    response.call_on_close(file.close)
    return response


def _tag(response: Response, entry: Entry) -> None:
    """So that a copy that is still right is not sent again."""
    if entry.media_sha256 is not None:
        response.set_etag(entry.media_sha256)


def _asked(given: Mapping[str, str]) -> tuple[Filter, tuple[float, int] | None, dict[str, str]]:
    """(the filter, where the page begins, both as they were asked for). Aborts with 400 for what is neither."""
    asked = {name: given[name] for name in ("kind", "state", "fan", "day", "before") if given.get(name)}
    kind, state, fan = asked.get("kind"), asked.get("state"), asked.get("fan")
    if kind not in (None, *KINDS) or state not in (None, *STATES) or "\0" in (fan or ""):
        abort(400)
    since = until = before = None
    if "day" in asked:
        try:
            day = date.fromisoformat(asked["day"])
            since, until = _midnight(day), _midnight(day + timedelta(days=1))
        except (ValueError, OverflowError, OSError):
            abort(400)
    if "before" in asked:
        place = re.fullmatch(r"([0-9]{1,11}(?:\.[0-9]{1,9})?)_([0-9]{1,18})", asked["before"])
        if place is None:
            abort(400)
        before = float(place[1]), int(place[2])
    return Filter(cast(Any, kind), cast(Any, state), fan and fan.strip(), since, until), before, asked


def _midnight(day: date) -> float:
    return datetime.combine(day, datetime.min.time()).timestamp()


def _when(seconds: float) -> str:
    """A time as this machine's clock on the wall shows it; a fan's may be any number."""
    try:
        return datetime.fromtimestamp(seconds).astimezone().isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def _same(given: str, password: str) -> bool:
    """In a time that tells nothing, not even the length."""
    return hmac.compare_digest(
        hashlib.sha256(given.encode("utf-8", "replace")).digest(), hashlib.sha256(password.encode()).digest()
    )
