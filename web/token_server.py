"""The central token server (中控服务器): gives an account's access_token to clients with TOKEN_SERVER_KEY.

Knows our own routes (`/token`, `/token/refresh`) and the platform's (`/cgi-bin/token`, `/cgi-bin/stable_token`), for
SDKs whose API host can be set. Such an SDK asks again after its token was refused, but cannot say which token it was.
The bot then asks the platform whether our token works, so that no client can use up the account's fetches. A report to
`/token/refresh` is checked in the same way. Must not know how the token is fetched or stored.
https://developers.weixin.qq.com/doc/service/en/Basic_Information/Get_access_token.html
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flask import Blueprint, Response, jsonify, request

import logs
from storage.errors import DatabaseUnavailableError
from storage.sign_ins import Attempts
from web import metrics
from web.keys import is_same, sent_key
from web.senders import sender_address
from wechat.access_token import AccessToken
from wechat.errors import TokenUnavailableError

log = logging.getLogger(__name__)

TOO_MANY = "too many wrong keys from this address: the client's key must be TOKEN_SERVER_KEY"


@dataclass(frozen=True)
class Served:
    """One account's token, and the keys for it: its own, and the one for all accounts. `name` is empty if there is only
    one account."""

    name: str
    token: AccessToken
    keys: tuple[str, ...] = field(repr=False)


def token_server(
    accounts: Mapping[str, Served], attempts: Attempts, *, clock: Callable[[], float] = time.time
) -> Blueprint:
    """All routes. `accounts` are those that have a key, by AppID."""
    blueprint = Blueprint("token_server", __name__)
    counts = metrics.Counts()

    @blueprint.get("/token")
    def hand_out() -> tuple[Response, int]:
        return answer_in_our_format(AccessToken.get)

    @blueprint.post("/token/refresh")
    def refresh() -> tuple[Response, int]:
        return answer_in_our_format(report)

    def report(token: AccessToken) -> str:
        stale = (_json_body() or {}).get("access_token")
        if not isinstance(stale, str) or not stale:
            raise _NoTokenGivenError
        return token.replace(stale, reported=True)

    @blueprint.get("/cgi-bin/token")
    def platform_token() -> tuple[Response, int]:
        return answer_as_the_platform(request.args.get("appid"), request.args.get("secret"))

    @blueprint.post("/cgi-bin/stable_token")
    def platform_stable_token() -> tuple[Response, int]:
        asked = _json_body()
        if asked is None:
            return jsonify(errcode=47001, errmsg="the body is no JSON object"), 400
        return answer_as_the_platform(asked.get("appid"), asked.get("secret"))

    @blueprint.teardown_request
    def log_without_account(error: BaseException | None) -> None:
        logs.ACCOUNT.set("")

    @blueprint.after_request
    def finish(response: Response) -> Response:
        response.headers["Cache-Control"] = "no-store"
        response.set_data(response.get_data().rstrip())  # co-wechat-api fails at jsonify's line break
        return response

    def answer_in_our_format(get: Callable[[AccessToken], str]) -> tuple[Response, int]:
        sent = sent_key()
        opened = [appid for appid, served in accounts.items() if _opens(served, sent)]
        if not opened:
            if wait := refuse():
                return too_many(wait, error=TOO_MANY)
            return jsonify(error="send TOKEN_SERVER_KEY as Authorization: Bearer KEY"), 401
        appid = request.args.get("appid")
        if appid is None and len(accounts) > 1:
            return jsonify(error="say which account: ?appid=APPID"), 400
        if appid is not None and appid not in opened:
            return jsonify(error="there is no such account, or this key is another account's"), 403
        served = accounts[appid or opened[0]]
        try:
            return jsonify(handed_out(served, get)), 200
        except _NoTokenGivenError:
            return jsonify(error='say which token failed: {"access_token": "..."}'), 400
        except (TokenUnavailableError, DatabaseUnavailableError) as error:
            return jsonify(error=str(error)), 503

    def answer_as_the_platform(appid: object, secret: object) -> tuple[Response, int]:
        served = accounts.get(appid) if isinstance(appid, str) else None
        if served is None:
            return jsonify(errcode=40013, errmsg="invalid appid"), 200
        if not _opens(served, secret):
            if wait := refuse():
                return too_many(wait, errcode=40125, errmsg=TOO_MANY)
            return jsonify(
                errcode=40125, errmsg="invalid appsecret: this server takes TOKEN_SERVER_KEY as secret"
            ), 200
        try:
            return jsonify(handed_out(served, AccessToken.get_checked)), 200
        except TokenUnavailableError as error:
            return jsonify(errcode=error.code or -1, errmsg=str(error)), 200
        except DatabaseUnavailableError as error:
            return jsonify(errcode=-1, errmsg=str(error)), 200

    def handed_out(served: Served, get: Callable[[AccessToken], str]) -> dict[str, Any]:
        logs.ACCOUNT.set(served.name)
        value = get(served.token)
        row = served.token.row()  # as new as `value` or newer
        expires_in = max(int(row.expires_at - clock()), 0)
        log.info(
            "token handed out",
            extra={"to": request.remote_addr, "path": request.path, "expires_in": expires_in},
        )
        return {"access_token": row.value or value, "expires_in": expires_in}

    def refuse() -> int:
        """Count a wrong key. Returns after how many seconds this address may send another one; 0: at once.

        The right key always works, since clients may share an address with strangers. The limit does not protect
        the key, which is too long to guess. It protects the log and the database from many requests.
        """
        counts.refusals("key").inc()
        try:
            wait = attempts.try_one(sender_address(), clock())
        except DatabaseUnavailableError:
            wait = 0.0
        if wait:
            return int(wait) + 1
        log.warning("refused: wrong TOKEN_SERVER_KEY", extra={"reason": "key", "from": request.remote_addr})
        return 0

    def too_many(wait: int, **body: Any) -> tuple[Response, int]:
        response = jsonify(body)
        response.headers["Retry-After"] = str(wait)
        return response, 429

    return blueprint


def _json_body() -> dict[str, Any] | None:
    """The request's JSON object; None for any other body."""
    try:
        body = json.loads(request.get_data())
    except (ValueError, RecursionError):  # RecursionError: nested too deeply
        return None
    return body if isinstance(body, dict) else None


def _opens(served: Served, sent: object) -> bool:
    """Whether one of the keys fits. Compares with all of them, so that the time reveals nothing."""
    if not isinstance(sent, str):
        return False
    fits = [is_same(sent, key) for key in served.keys]
    return any(fits)


class _NoTokenGivenError(Exception):
    """A report does not say which token failed."""
