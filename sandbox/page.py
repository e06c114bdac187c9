"""The phone page at /: its files, its live feed, and the media of the chats.

Knows how to serve files so that they cannot run in the browser. It must not keep anything: the page acts through the
control routes. Nothing here counts as a call of the API.
"""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from flask import Blueprint, Response, jsonify, render_template, request, send_file

from .account import Account
from .errors import Words
from .feed import Feed
from .media import SHOWN_TYPES
from .state import State

_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_MEDIA_POLICY = "default-src 'none'; sandbox; frame-ancestors 'none'"


def create_page(state: State, feed: Feed, modes: Sequence[str], accounts: Sequence[Account]) -> Blueprint:
    """The page for one state; `modes` that its account can do, the usual one last; `accounts` to switch to."""
    page = Blueprint("page", __name__, static_folder="static", static_url_path="/sandbox/static")

    @page.get("/")
    def phone() -> Response:
        """Neither secrets nor the callback's own user, password and query are shown."""
        appid = request.args.get("appid")
        gone = len(accounts) > 1 and appid is not None and appid not in {one.appid for one in accounts}
        if gone:
            html = render_template("gone.html", appid=appid)
        else:
            html = render_template(
                "phone.html",
                account=state.account,
                accounts=accounts if len(accounts) > 1 else (),
                modes=modes,
                made_for=state.made_for,
                callback=state.shown_callback,
                callback_path=urlsplit(state.callback or "").path,
            )
        response = Response(html, 404 if gone else 200, content_type="text/html; charset=utf-8")
        response.headers["Content-Security-Policy"] = _PAGE_POLICY
        response.headers["Cache-Control"] = "no-cache"
        return response

    @page.get("/sandbox/events")
    def events() -> Response:
        response = Response(feed.connect(state), content_type="text/event-stream; charset=utf-8")
        response.headers["Cache-Control"] = "no-store"
        return response

    @page.get("/sandbox/media/<media_id>")
    def media(media_id: str) -> Response | tuple[Response, int]:
        """The bytes as they came, also in ranges, with a type by content: never HTML, SVG or a guess."""
        found = state.find_media(media_id)
        content_type = found and SHOWN_TYPES.get(found.extension)
        try:
            if found is None:
                raise FileNotFoundError
            response = send_file(
                found.path,
                mimetype=content_type or "application/octet-stream",
                as_attachment=content_type is None,
                download_name=f"{found.type}.{found.extension}",
                etag=found.sha256,
                max_age=3600,
            )
        except FileNotFoundError:  # a reset deleted it at this moment
            gone = Words("no such media, or older than three days", "素材不存在或已超过三天")
            return jsonify(gone.as_error()), 404
        response.headers["Content-Security-Policy"] = _MEDIA_POLICY
        return response

    return page
