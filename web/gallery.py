"""GET /gallery: what fans sent, behind ADMIN_PASSWORD.

Knows sign-in, sessions, and how to serve fans' files so that they cannot run in a browser. Must not know SQL, nor how
a thumbnail is made. A session is a cookie. It is signed with the password and a random key that all web processes
share, so that a new ADMIN_PASSWORD ends all sessions. The one script reloads a page that has changed.
https://cheatsheetseries.owasp.org/cheatsheets/Session_Management_Cheat_Sheet.html
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import logging
import math
import re
import secrets
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cache
from typing import Any, BinaryIO, cast
from zoneinfo import ZoneInfo

from flask import Blueprint, Response, abort, g, redirect, render_template, request, url_for
from itsdangerous import BadSignature, URLSafeSerializer
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound
from werkzeug.wsgi import FileWrapper

from storage.database import Database
from storage.errors import DatabaseUnavailableError
from storage.files import FileStore
from storage.gallery import KINDS, STATES, Filter, GalleryRows, Place, Shown
from storage.ledger import Entry
from storage.purge import Purge, PurgeRows
from storage.queue import Queue
from storage.sign_ins import Attempts, Sessions
from storage.thumbnails import Thumbnails
from web.export import exported
from web.keys import is_same
from web.senders import sender_address, sent_by_another_site
from wechat.codes import explain
from wechat.formats import CONTENT_TYPES
from wechat.media import LIFE_SECONDS
from wechat.messages import LinkMessage, LocationMessage, TextMessage, parse_message

log = logging.getLogger(__name__)

PAGE_ENTRIES = 48
SESSION_SECONDS = 12 * 3600.0
SHOWN_CHARACTERS = 300  # of a text in the list
COUNTED = 1000  # entries; above that the page says that there are more

COOKIE = "gallery"

# What a browser shows; the store names a file by its content, so that nothing else has one of these names.
_BROWSER_TYPES = {name: CONTENT_TYPES[name] for name in ("jpg", "png", "gif", "mp3", "mp4")}
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; media-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_FILE_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"
# A browser may keep a copy, but must ask before showing it: the answer differs after a sign-out, a purge or a restored
# backup.
_FILE_CACHE = "private, no-cache"


@dataclass(frozen=True)
class _Session:
    """What the cookie contains. `until` in unix seconds."""

    id: str
    until: float


@dataclass(frozen=True)
class AccountEntries:
    """One account's entries. `name` is empty where there is one account."""

    name: str
    appid: str
    queue: Queue
    purge_rows: PurgeRows


def gallery(
    accounts: Sequence[AccountEntries],
    database: Database,
    rows: GalleryRows,
    files: FileStore,
    thumbnails: Thumbnails,
    *,
    password: str,
    zone: ZoneInfo | None = None,
    clock: Callable[[], float] = time.time,
) -> Blueprint:
    """All pages. Times are shown in `zone`; None: the machine's zone."""
    blueprint = Blueprint(
        "gallery", __name__, url_prefix="/gallery", template_folder="templates", static_folder="static"
    )
    sessions = Sessions(database)
    by_appid = {account.appid: account for account in accounts}
    names = {account.appid: account.name for account in accounts if account.name}

    @cache
    def key() -> bytes:
        return hmac.digest(sessions.key(), b"gallery\0" + password.encode(), "sha256")

    def cookies() -> URLSafeSerializer:
        return URLSafeSerializer(key(), salt="gallery", signer_kwargs={"digest_method": hashlib.sha256})

    def attempts() -> Attempts:
        # A new password starts with no failed tries. Two bytes of a digest in the database do not help to guess it.
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
            return redirect(wanted() if inside else url_for("gallery.sign_in", to=to_here()), 303)
        return None

    def to_here() -> str | None:
        """The page to which a sign-in leads from this request; for a file or a form that of its entry. None: the front
        page."""
        query = request.query_string.decode("latin-1")
        ledger_id = (request.view_args or {}).get("ledger_id")
        if ledger_id is not None:
            path = url_for("gallery.entry", ledger_id=ledger_id)
        elif query:
            path = url_for("gallery.index")
        else:
            return None
        return f"{path}?{query}" if query else path

    def wanted() -> str:
        """The page to which the sign-in is to lead. Anybody can write such a link: it leads to pages of ours alone."""
        to, front = request.args.get("to", ""), url_for("gallery.index")
        return to if re.fullmatch(rf"{re.escape(front)}(/[0-9]+)?(\?[!-~]*)?", to) else front

    def read_session() -> _Session | None:
        cookie = request.cookies.get(COOKIE)
        if not cookie:
            return None
        try:
            session = _Session(*cookies().loads(cookie))
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
        if not is_same(request.form.get("password", ""), password):
            log.warning("gallery: wrong ADMIN_PASSWORD", extra={"from": address})
            return sign_in_page(403, wrong=True)
        tries.forgive(address, clock())
        log.info("gallery: signed in", extra={"from": address})
        response = cast(Response, redirect(wanted(), 303))
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

    def page(template: str, *, at: float | None = None, **what: Any) -> str:
        """The page of something that happened `at` (unix seconds; None: now). It names the offset from UTC of then; a
        time with another one, of the other half of the year, carries its own."""
        offset = _offset(clock() if at is None else at, zone)

        def when(seconds: float) -> str:
            own = _offset(seconds, zone)
            return _when(seconds, zone) + (own if own != offset else "")

        known = (language[:2].lower() for language, _ in request.accept_languages)
        zh = next((language for language in known if language in ("en", "zh")), "en") == "zh"
        return render_template(
            f"gallery/{template}",
            t=lambda en, chinese: chinese if zh else en,
            zh=zh,
            lang="zh-CN" if zh else "en",
            names=names,
            when=when,
            zone=f"{zone.key if zone else ''} UTC{offset}".strip(),
            signed_in=g.get("gallery") is not None,
            **what,
        )

    @blueprint.get("")
    def index() -> Any:
        asked = _asked(request.args, zone, names)
        limit = PAGE_ENTRIES + 1
        found = rows.page(asked.which, before=asked.before, after=asked.after, limit=limit)
        entries, more = found.entries, len(found.entries) == limit
        if asked.after and not more and not found.searched_to:
            # All that is newer is on the front page, which shows what comes in.
            return redirect(asked.link(), 303)
        total, whole = rows.count(asked.which, COUNTED)
        pages = math.ceil(total / PAGE_ENTRIES)
        if number := request.args.get("page", type=int):
            entries_above = (min(number, pages) - 1) * PAGE_ENTRIES
            above = rows.place(asked.which, entries_above) if entries_above > 0 else None
            return redirect(asked.link(**({"before": above} if above else {})), 303)
        if more:
            entries = entries[1:] if asked.after else entries[:PAGE_ENTRIES]
        newer = older = None
        if entries and (asked.before or (asked.after and more)):
            newer = asked.link(after=entries[0].place)
        if entries and (asked.after or more):
            older = asked.link(before=entries[-1].place)
        further = None
        if found.searched_to and not more:
            further = asked.link(**{"after" if asked.after else "before": found.searched_to})
        return page(
            "index.html",
            at=entries[0].received_at if entries else None,
            entries=[_for_template(entry, clock()) for entry in entries],
            asked=asked,
            newer=newer,
            older=older,
            further=further,
            oldest=asked.link(after=(0.0, 0)),
            total=total,
            whole=whole,
            pages=pages,
            kinds=(*KINDS, "text"),
            states=STATES,
            failed=rows.failed(asked.which, COUNTED + 1),
            counted=COUNTED,
        )

    @blueprint.get("/<int(max=9223372036854775807):ledger_id>")
    def entry(ledger_id: int) -> str:
        _, found = find(ledger_id)
        asked = _asked(request.args, zone, names)
        place = found.received_at, found.id
        next_one = rows.page(asked.which, before=place, limit=1).entries
        one_before = rows.page(asked.which, after=place, limit=1).entries
        return page(
            "entry.html",
            at=found.received_at,
            entry=found,
            text=_said(found),
            extension=(found.media_key or "").rpartition(".")[2],
            problems=_problems(found, clock()),
            account=names.get(found.appid),
            can_retry=found.media_state == "failed" or found.send_state in ("failed", "unknown"),
            asked=asked,
            newer=one_before and one_before[0].id,
            older=next_one and next_one[0].id,
        )

    @blueprint.post("/<int(max=9223372036854775807):ledger_id>/retry")
    def retry(ledger_id: int) -> Response:
        account, _ = find(ledger_id)
        if account.queue.retry([ledger_id], clock()):
            log.info("gallery: a retry was asked for", extra={"ledger_id": ledger_id})
        here = _asked(request.args, zone, names).here
        return cast(Response, redirect(_url("gallery.entry", ledger_id=ledger_id, **here), 303))

    @blueprint.post("/retry")
    def retry_all() -> Response:
        asked = _asked(request.args, zone, names)
        chosen = [account for account in accounts if asked.which.appid in (None, account.appid)]
        if count := sum(account.queue.retry(None, clock()) for account in chosen):
            log.info("gallery: a retry of all was asked for", extra={"rows": count})
        words = {name: word for name, word in asked.words.items() if name == "account"}
        pending, _ = rows.count(Filter(state="pending", appid=asked.which.appid), 1)
        if pending:  # none if only sends had failed
            words["state"] = "pending"
        return cast(Response, redirect(_url("gallery.index", **words), 303))

    @blueprint.post("/<int(max=9223372036854775807):ledger_id>/delete")
    def delete(ledger_id: int) -> Response:
        account, _ = find(ledger_id)
        if account.purge_rows.delete(ledger_id, clock()):
            log.info("gallery: an entry was deleted", extra={"ledger_id": ledger_id})
            Purge(account.purge_rows, files, thumbnails).delete_files(clock())
        return cast(Response, redirect(_url("gallery.index", **_asked(request.args, zone, names).here), 303))

    @blueprint.get("/export")
    def export() -> Response:
        """All entries of the filter, as a ZIP that is made while it is sent."""
        asked = _asked(request.args, zone, names)
        chunks = exported(
            lambda: _all(rows, asked.which), files, lambda seconds: _when(seconds, zone), _said, names
        )
        response = Response(_until_it_fails(chunks), content_type="application/zip")
        name = f"gallery-{_when(clock(), zone)[:10]}.zip"
        response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        response.headers["Cache-Control"] = "no-store"
        return response

    def find(ledger_id: int) -> tuple[AccountEntries, Entry]:
        found = rows.entry(ledger_id)
        if found is None:
            abort(404)
        return by_appid[found.appid], found

    # -- files -------------------------------------------------------------------------------------------------

    @blueprint.get("/<int(max=9223372036854775807):ledger_id>/file")
    def file(ledger_id: int) -> Response:
        """The original, also in ranges. A format that browsers do not show is a download, and any with `?download=1`.

        A link with the attribute `download` would save whatever is answered: the sign-in page, when a session is over.
        """
        _, found = find(ledger_id)
        size = None if found.media_key is None else files.size(found.media_key)
        if found.media_key is None or size is None:
            abort(404)
        extension = found.media_key.rpartition(".")[2]
        response = _stream(files.open(found.media_key), _BROWSER_TYPES.get(extension))
        if extension not in _BROWSER_TYPES or request.args.get("download"):
            name = f"{ledger_id}.{extension}"
            response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        response.content_length = size
        _tag(response, found)
        try:
            response.make_conditional(request, accept_ranges=True, complete_length=size)
        except HTTPException:  # no such range
            response.close()
            raise
        response.response = _until_it_fails(response.iter_encoded())
        return response

    @blueprint.get("/<int(max=9223372036854775807):ledger_id>/thumbnail")
    def thumbnail(ledger_id: int) -> Response:
        """The thumbnail, or an icon in its place. If its file is missing, a worker makes it again."""
        account, found = find(ledger_id)
        if found.media_key is not None and found.thumbnail_state == "made":
            try:
                response = _stream(thumbnails.open(found.media_key), "image/jpeg")
                _tag(response, found)
                # Without a length it is read here, whole: it is small.
                return cast(Response, response.make_conditional(request))
            except FileNotFoundError:
                account.queue.miss_thumbnail(ledger_id, clock())
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

    @blueprint.before_app_request
    def nowhere() -> Response | None:
        """Answers for an address or a method that no route has. Routing fails before a blueprint is chosen, so that its
        handlers and headers are not for such a request. The page shows nothing, and needs no session."""
        error = request.routing_exception
        if not isinstance(error, (NotFound, MethodNotAllowed)):
            return None
        if not f"{request.path}/".startswith(f"{blueprint.url_prefix}/"):
            return None
        response = cast(Response, error.get_response())
        response.set_data(page("message.html", status=error.code, nowhere=True))
        return headers(response)

    # The application's own handler of 404 would come before one of HTTPException.
    @blueprint.errorhandler(404)
    @blueprint.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[str, int]:
        return page("message.html", status=error.code), error.code or 500

    @blueprint.errorhandler(FileNotFoundError)
    def gone(error: FileNotFoundError) -> tuple[str, int]:
        return page("message.html", status=404), 404

    @blueprint.errorhandler(DatabaseUnavailableError)
    @blueprint.errorhandler(OSError)
    def unavailable(error: Exception) -> tuple[str, int]:
        _log_unavailable(error)
        return page("message.html", status=503), 503

    return blueprint


def _log_unavailable(error: Exception) -> None:
    log.error("gallery: the database or the media store cannot be reached", extra={"reason": str(error)})


def _until_it_fails(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Of an answer that has begun. When the database or the store fails then, the connection ends, so that nobody takes
    what came for the whole."""
    try:
        yield from chunks
    except (DatabaseUnavailableError, OSError) as error:
        _log_unavailable(error)
        # What servers take for a connection that is gone already: they close it and say no more.
        raise ConnectionResetError(errno.ECONNRESET, "the answer cannot be completed") from None


def _stream(file: BinaryIO, content_type: str | None) -> Response:
    response = Response(FileWrapper(file, 64 * 1024))
    response.content_type = content_type or "application/octet-stream"
    response.headers["Content-Security-Policy"] = _FILE_POLICY
    response.headers["Cache-Control"] = _FILE_CACHE
    response.call_on_close(file.close)
    return response


def _tag(response: Response, entry: Entry) -> None:
    """Sets the ETag, so that an unchanged file is not sent again."""
    if entry.media_sha256 is not None:
        response.set_etag(entry.media_sha256)


@dataclass(frozen=True)
class _Asked:
    """What a URL asks for: the filter, where the page begins, and the filter's parameters for further links."""

    which: Filter
    before: Place | None
    after: Place | None
    words: dict[str, str]

    def link(self, **place: Place) -> str:
        return _url("gallery.index", **self.words, **{name: _place_text(at) for name, at in place.items()})

    @property
    def here(self) -> dict[str, str]:
        """The parameters of a link back to this page."""
        places = (("before", self.before), ("after", self.after))
        return self.words | {name: _place_text(place) for name, place in places if place}


def _url(endpoint: str, **values: Any) -> str:
    """`url_for` for values in a dict: mypy would hold them against the types of its own parameters, like _external."""
    return url_for(endpoint, **values)


def _asked(query: Mapping[str, str], zone: ZoneInfo | None, names: Mapping[str, str]) -> _Asked:
    """Reads the parameters; `names` are the accounts' by AppID. Aborts with 400 if one is invalid."""
    words = {
        name: query[name].strip()
        for name in ("account", "kind", "state", "fan", "day")
        if query.get(name, "").strip()
    }
    account = words.get("account")
    appid = next((appid for appid, name in names.items() if name == account), None)
    if account and appid is None:
        abort(400)
    kind, state, fan, day = (words.get(name) for name in ("kind", "state", "fan", "day"))
    if kind not in (None, *KINDS, "text") or state not in (None, *STATES) or "\0" in (fan or ""):
        abort(400)
    since = until = None
    if day is not None:
        try:
            since, until = (
                _midnight(date.fromisoformat(day) + timedelta(days=days), zone) for days in (0, 1)
            )
        except (ValueError, OverflowError, OSError):
            abort(400)
    which = Filter(cast(Any, kind), cast(Any, state), fan, since, until, appid)
    return _Asked(which, _place(query.get("before")), _place(query.get("after")), words)


def _place_text(place: Place) -> str:
    """For a link; `_place` reads it."""
    return f"{place[0]!r}_{place[1]}"


def _place(text: str | None) -> Place | None:
    if not text:
        return None
    place = re.fullmatch(r"([0-9]{1,11}(?:\.[0-9]{1,9})?)_([0-9]{1,18})", text)
    if place is None:
        abort(400)
    return float(place[1]), int(place[2])


def _midnight(day: date, zone: ZoneInfo | None) -> float:
    return datetime.combine(day, datetime.min.time(), zone).timestamp()


def _when(seconds: float, zone: ZoneInfo | None) -> str:
    """A time as text in that zone (None: the machine's). A push may contain any number as its time."""
    try:
        return datetime.fromtimestamp(seconds, zone).astimezone(zone).isoformat(" ", "seconds")[:19]
    except (ValueError, OverflowError, OSError):
        return str(seconds)


def _offset(seconds: float, zone: ZoneInfo | None) -> str:
    """That zone's offset from UTC at that time, like "+01:00"; empty for a number that is no time."""
    try:
        offset = datetime.fromtimestamp(seconds, zone).astimezone(zone).strftime("%z")
    except (ValueError, OverflowError, OSError):
        return ""
    return f"{offset[:3]}:{offset[3:5]}"


def _said(entry: Entry | Shown) -> str | None:
    """The text of a text, location or link message; None for others."""
    if entry.media_kind is not None:
        return None
    message = parse_message(entry.xml)
    if isinstance(message, TextMessage):
        return message.content
    if isinstance(message, LocationMessage):
        return f"{message.label} ({message.location_x}, {message.location_y})"
    if isinstance(message, LinkMessage):
        return f"{message.title}\n{message.description}\n{message.url}"
    return None


@dataclass(frozen=True)
class _Problem:
    """Why a download or a send failed."""

    of_send: bool
    state: str | None
    said: str
    """The platform's own words, or ours."""
    code: int | None
    hint_en: str
    hint_zh: str
    fan_en: str
    fan_zh: str


_AGAIN = ("The fan has to send it again.", "需请粉丝重新发送。")
_FOLLOW = ("The fan has to follow the account first.", "需粉丝先关注公众号。")
_WRITE = ("The fan has to write to the account first; then retry.", "需粉丝先给公众号发一条消息，然后重试。")
_FAN_HAS_TO = {
    40007: _AGAIN,
    43004: _FOLLOW,
    45015: _WRITE,
    45047: _WRITE,
    48002: ("The fan has to allow messages of the account again.", "需粉丝重新允许接收公众号消息。"),
    50005: _FOLLOW,
}


def _for_template(entry: Shown, now: float) -> dict[str, Any]:
    """An entry of the list, as the template takes it."""
    text = (_said(entry) or "")[:SHOWN_CHARACTERS]
    return {
        "one": entry,
        "text": text if _is_visible(text) else None,
        "problem": next(iter(_problems(entry, now)), None),
    }


def _is_visible(text: str) -> bool:
    """Whether anything of it can be seen: no spaces, controls, marks of width zero, or letters that are blank."""
    return any(
        unicodedata.category(character) not in _UNSEEN and character not in _BLANK for character in text
    )


_UNSEEN = {"Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Mn", "Me"}
_BLANK = "\u115f\u1160\u2800\u3164\uffa0"  # Hangul fillers, and the Braille cell without dots


def _problems(entry: Entry | Shown, now: float) -> list[_Problem]:
    over = now > entry.create_time + LIFE_SECONDS  # then the platform has deleted the file
    media = _problem(False, entry.media_state, entry.media_code, entry.media_reason, over=over)
    send = _problem(True, entry.send_state, entry.send_code, entry.send_reason)
    return [problem for problem in (media, send) if problem is not None]


def _problem(
    of_send: bool, state: str | None, code: int | None, reason: str | None, *, over: bool = False
) -> _Problem | None:
    if not reason or state in ("stored", "sent"):
        return None
    known = explain(code) if code else None
    said = reason.partition(known.hint_en)[0].rstrip(" .:") if known else reason
    hints = (known.hint_en, known.hint_zh) if known else ("", "")
    fan = ("", "")
    if state == "failed":
        fan = _AGAIN if over else _FAN_HAS_TO.get(code or 0, fan)
    return _Problem(of_send, state, said, code, *hints, *fan)


def _all(rows: GalleryRows, which: Filter) -> Iterator[Shown]:
    """All entries of the filter, read page by page."""
    place: Place | None = None
    while True:
        found = rows.page(which, before=place, limit=200)
        yield from found.entries
        if not found.entries and not found.searched_to:
            return
        place = found.entries[-1].place if found.entries else found.searched_to
