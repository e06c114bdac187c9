"""Who may see the gallery: the sign-in with ADMIN_PASSWORD, and the session that follows.

A session is a cookie. It is signed with the password and a random key that all web processes share, so that a new
ADMIN_PASSWORD ends all sessions. Must not know what the pages show.
https://cheatsheetseries.owasp.org/cheatsheets/Session_Management_Cheat_Sheet.html
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from flask import Blueprint, Response, abort, g, redirect, request, url_for
from flask.typing import ResponseReturnValue
from itsdangerous import BadSignature, URLSafeSerializer

from storage.database import Database
from storage.sign_ins import Attempts, Sessions
from web.keys import is_same
from web.senders import sender_address, sent_by_another_site

log = logging.getLogger(__name__)

SESSION_SECONDS = 12 * 3600.0
COOKIE = "gallery"


@dataclass(frozen=True)
class _Session:
    """What the cookie contains. `until` in unix seconds."""

    id: str
    until: float


def is_signed_in() -> bool:
    """Whether this request has a session."""
    return g.get("gallery_session") is not None


def add_sign_in(
    blueprint: Blueprint,
    database: Database,
    password: str,
    page: Callable[..., str],
    clock: Callable[[], float],
) -> None:
    """Adds the page to sign in, and leads there from all others without a session. `page` renders a template."""
    sessions = Sessions(database)

    @cache
    def key() -> bytes:
        return hmac.digest(sessions.key(), b"gallery\0" + password.encode(), "sha256")

    def cookies() -> URLSafeSerializer:
        return URLSafeSerializer(key(), salt="gallery", signer_kwargs={"digest_method": hashlib.sha256})

    def attempts() -> Attempts:
        # A new password starts with no failed tries. Two bytes of a digest in the database do not help to guess it.
        return Attempts(database, f"gallery {hmac.digest(key(), b'attempts', 'sha256')[:2].hex()}")

    def read_session() -> _Session | None:
        cookie = request.cookies.get(COOKIE)
        if not cookie:
            return None
        try:
            session = _Session(*cookies().loads(cookie))
        except (BadSignature, TypeError):
            return None
        return None if session.until <= clock() or sessions.has_ended(session.id) else session

    @blueprint.before_request
    def guard() -> ResponseReturnValue | None:
        if request.endpoint == "gallery.static":
            return None
        if request.method == "POST" and sent_by_another_site():
            log.warning("gallery: a form of another site", extra={"path": request.path})
            abort(403)
        g.gallery_session = read_session()
        at_door = request.endpoint == "gallery.sign_in"
        if is_signed_in() == at_door:
            return redirect(_wanted() if at_door else url_for("gallery.sign_in", to=_to_here()), 303)
        return None

    @blueprint.route("/sign-in", methods=["GET", "POST"])
    def sign_in() -> ResponseReturnValue:
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
        signed_in = redirect(_wanted(), 303)
        signed_in.set_cookie(
            COOKIE,
            cookies().dumps([secrets.token_urlsafe(16), clock() + SESSION_SECONDS]),
            max_age=int(SESSION_SECONDS),
            path=url_for("gallery.index"),
            secure=request.is_secure,
            httponly=True,
            samesite="Lax",
        )
        return signed_in

    def sign_in_page(status: int = 200, **what: Any) -> Response:
        return Response(page("sign_in.html", **what), status)

    @blueprint.post("/sign-out")
    def sign_out() -> ResponseReturnValue:
        session = g.gallery_session
        sessions.end(session.id, session.until, clock())
        response = redirect(url_for("gallery.sign_in"), 303)
        response.delete_cookie(COOKIE, path=url_for("gallery.index"))
        return response


def _to_here() -> str | None:
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


def _wanted() -> str:
    """The page to which the sign-in is to lead. Anybody can write such a link: it leads to pages of ours alone."""
    to, front = request.args.get("to", ""), url_for("gallery.index")
    return to if re.fullmatch(rf"{re.escape(front)}(/[0-9]+)?(\?[!-~]*)?", to) else front
