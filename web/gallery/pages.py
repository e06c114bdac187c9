"""GET /gallery: what fans sent, behind ADMIN_PASSWORD.

Knows the pages, and what an operator may do there: retry, delete, export. Must not know SQL, nor who is signed in. The
one script reloads a page that has changed.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast
from zoneinfo import ZoneInfo

from flask import Blueprint, Response, abort, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound

from storage.database import Database
from storage.errors import DatabaseUnavailableError
from storage.files import FileStore
from storage.gallery import KINDS, STATES, Filter, GalleryRows, Place, Shown
from storage.ledger import Entry
from storage.purge import Purge, PurgeRows
from storage.queue import Queue
from storage.thumbnails import Thumbnails
from web.gallery.entries import excerpt, problems, text_of
from web.gallery.export import export_zip
from web.gallery.files import add_files, log_unavailable, until_it_fails
from web.gallery.query import read_query
from web.gallery.sign_in import add_sign_in, is_signed_in
from web.gallery.times import local_time, utc_offset

log = logging.getLogger(__name__)

PAGE_ENTRIES = 48
COUNTED = 1000  # entries; above that the page says that there are more

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
    by_appid = {account.appid: account for account in accounts}
    names = {account.appid: account.name for account in accounts if account.name}

    def find(ledger_id: int) -> Entry:
        found = rows.entry(ledger_id)
        if found is None:
            abort(404)
        return found

    def account_of(entry: Entry) -> AccountEntries:
        return by_appid[entry.appid]

    def page(template: str, *, at: float | None = None, **what: Any) -> str:
        """The page of something that happened `at` (unix seconds; None: now). It names the offset from UTC of then; a
        time with another one, of the other half of the year, carries its own."""
        offset = utc_offset(clock() if at is None else at, zone)

        def when(seconds: float) -> str:
            own = utc_offset(seconds, zone)
            return local_time(seconds, zone) + (own if own != offset else "")

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
            signed_in=is_signed_in(),
            **what,
        )

    @blueprint.get("")
    def index() -> ResponseReturnValue:
        query = read_query(request.args, zone, names)
        limit = PAGE_ENTRIES + 1
        found = rows.page(query.filter, before=query.before, after=query.after, limit=limit)
        entries, more = found.entries, len(found.entries) == limit
        if query.after and not more and not found.searched_to:
            # All that is newer is on the front page, which shows what comes in.
            return redirect(query.link(), 303)
        total, whole = rows.count(query.filter, COUNTED)
        pages = math.ceil(total / PAGE_ENTRIES)
        if number := request.args.get("page", type=int):
            entries_above = (min(number, pages) - 1) * PAGE_ENTRIES
            above = rows.place(query.filter, entries_above) if entries_above > 0 else None
            return redirect(query.link(**({"before": above} if above else {})), 303)
        if more:
            entries = entries[1:] if query.after else entries[:PAGE_ENTRIES]
        newer = older = None
        if entries and (query.before or (query.after and more)):
            newer = query.link(after=entries[0].place)
        if entries and (query.after or more):
            older = query.link(before=entries[-1].place)
        further = None
        if found.searched_to and not more:
            further = query.link(**{"after" if query.after else "before": found.searched_to})
        return page(
            "index.html",
            at=entries[0].received_at if entries else None,
            entries=[_listed(entry, clock()) for entry in entries],
            query=query,
            newer=newer,
            older=older,
            further=further,
            oldest=query.link(after=(0.0, 0)),
            total=total,
            whole=whole,
            pages=pages,
            kinds=(*KINDS, "text"),
            states=STATES,
            failed=rows.failed(query.filter, COUNTED + 1),
            counted=COUNTED,
        )

    @blueprint.get("/<int(max=9223372036854775807):ledger_id>")
    def entry(ledger_id: int) -> str:
        found = find(ledger_id)
        query = read_query(request.args, zone, names)
        place = found.received_at, found.id
        next_one = rows.page(query.filter, before=place, limit=1).entries
        one_before = rows.page(query.filter, after=place, limit=1).entries
        return page(
            "entry.html",
            at=found.received_at,
            entry=found,
            text=text_of(found),
            extension=(found.media_key or "").rpartition(".")[2],
            problems=problems(found, clock()),
            account=names.get(found.appid),
            can_retry=found.media_state == "failed" or found.send_state in ("failed", "unknown"),
            query=query,
            newer=one_before and one_before[0].id,
            older=next_one and next_one[0].id,
        )

    @blueprint.post("/<int(max=9223372036854775807):ledger_id>/retry")
    def retry(ledger_id: int) -> ResponseReturnValue:
        account, here = account_of(find(ledger_id)), read_query(request.args, zone, names).here
        if account.queue.retry([ledger_id], clock()):
            log.info("gallery: a retry was asked for", extra={"ledger_id": ledger_id})
        return redirect(url_for("gallery.entry", ledger_id=ledger_id, **here), 303)

    @blueprint.post("/retry")
    def retry_all() -> ResponseReturnValue:
        query = read_query(request.args, zone, names)
        chosen = [account for account in accounts if query.filter.appid in (None, account.appid)]
        if count := sum(account.queue.retry(None, clock()) for account in chosen):
            log.info("gallery: a retry of all was asked for", extra={"rows": count})
        words = {name: word for name, word in query.words.items() if name == "account"}
        pending, _ = rows.count(Filter(state="pending", appid=query.filter.appid), 1)
        if pending:  # none if only sends had failed
            words["state"] = "pending"
        return redirect(url_for("gallery.index", **words), 303)

    @blueprint.post("/<int(max=9223372036854775807):ledger_id>/delete")
    def delete(ledger_id: int) -> ResponseReturnValue:
        # Both before anything is done: what is answered 404 or 400 must not have been done.
        account, here = account_of(find(ledger_id)), read_query(request.args, zone, names).here
        if account.purge_rows.delete(ledger_id, clock()):
            log.info("gallery: an entry was deleted", extra={"ledger_id": ledger_id})
            Purge(account.purge_rows, files, thumbnails).delete_files(clock())
        return redirect(url_for("gallery.index", **here), 303)

    @blueprint.get("/export")
    def export() -> Response:
        """All entries of the filter, as a ZIP that is made while it is sent."""
        query = read_query(request.args, zone, names)
        chunks = export_zip(lambda: _all(rows, query.filter), files, zone, names)
        response = Response(until_it_fails(chunks), content_type="application/zip")
        name = f"gallery-{local_time(clock(), zone)[:10]}.zip"
        response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
        response.headers["Cache-Control"] = "no-store"
        return response

    add_sign_in(blueprint, database, password, page, clock)
    add_files(
        blueprint,
        find,
        files,
        thumbnails,
        lambda entry: account_of(entry).queue.miss_thumbnail(entry.id, clock()),
    )

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
        response.set_data(page("message.html", status=error.code, why="nowhere"))
        return headers(response)

    # The application's own handler of 404 would come before one of HTTPException.
    @blueprint.errorhandler(404)
    @blueprint.errorhandler(HTTPException)
    def refused(error: HTTPException) -> tuple[str, int]:
        return page("message.html", status=error.code), error.code or 500

    @blueprint.errorhandler(FileNotFoundError)
    def gone(error: FileNotFoundError) -> tuple[str, int]:
        return page("message.html", status=404, why="gone"), 404

    @blueprint.errorhandler(DatabaseUnavailableError)
    @blueprint.errorhandler(OSError)
    def unavailable(error: Exception) -> tuple[str, int]:
        log_unavailable(error)
        return page("message.html", status=503), 503

    return blueprint


def _listed(entry: Shown, now: float) -> dict[str, Any]:
    """An entry of the list, as the template takes it."""
    return {"one": entry, "text": excerpt(entry), "problem": next(iter(problems(entry, now)), None)}


def _all(rows: GalleryRows, chosen: Filter) -> Iterator[Shown]:
    """All entries of the filter, read page by page."""
    place: Place | None = None
    while True:
        found = rows.page(chosen, before=place, limit=200)
        yield from found.entries
        if not found.entries and not found.searched_to:
            return
        place = found.entries[-1].place if found.entries else found.searched_to
