"""GET and POST /wechat, or /wechat/NAME: what the platform calls.

The view opens the push, parses it, asks `answers` and seals the reply. Must not know cryptography, XML, SQL, or what
the bot says. A refusal is one line in our log; the caller gets the status alone.
https://developers.weixin.qq.com/doc/subscription/guide/dev/push/encryption.html
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence

from flask import Blueprint, Flask, Response, request
from werkzeug.exceptions import (
    BadRequest,
    ClientDisconnected,
    MethodNotAllowed,
    NotFound,
    RequestEntityTooLarge,
)

import logs
from answers.answer import Answers
from answers.late import HeldError
from config import explained
from storage.errors import DatabaseUnavailableError
from storage.refusals import Refusals
from web import doctor_mark, metrics
from wechat.errors import PushError, UnreadablePushError
from wechat.messages import UnknownMessage, parse_message
from wechat.receiver import Receiver

log = logging.getLogger(__name__)

_REPLY_KIND = re.compile(rb"<MsgType><!\[CDATA\[(\w+)")
DEADLINE_SECONDS = 5.0  # then the platform drops the connection and repeats the push


def callback(
    receiver: Receiver,
    answers: Answers,
    refusals: Refusals,
    *,
    paths: Sequence[str],
    account: str,
    max_push_bytes: int,
    token: str,
    clock: Callable[[], float] = time.time,
) -> Blueprint:
    """The two views of one account, at each of `paths`; `account` is its name in ACCOUNTS, empty without.

    `token` is the callback Token, by which `flask doctor` is recognised; `clock` gives unix seconds.
    """
    blueprint = Blueprint(f"callback {account}".strip(), __name__)
    counts = metrics.Counts(account)

    if account:

        @blueprint.before_request
        def log_with_account() -> None:
            logs.ACCOUNT.set(account)

        @blueprint.teardown_request
        def log_without_account(error: BaseException | None) -> None:
            logs.ACCOUNT.set("")

    def verify() -> Response:
        response = Response(receiver.verify_url(request.args, clock()), mimetype="text/plain")
        if is_doctor():
            log.info("flask doctor looks at the callback")
            proxies = len(
                [each for each in request.headers.get("X-Forwarded-For", "").split(",") if each.strip()]
            )
            response.headers[doctor_mark.HEADER] = f"{proxies:d}"
        return response

    def receive() -> Response:
        arrived = time.monotonic()
        now = clock()
        push = receiver.open(request.args, body(max_push_bytes), now)
        message = parse_message(push.xml, account)
        counts.deliveries("unknown" if isinstance(message, UnknownMessage) else message.msg_type).inc()
        recorded = answers.answer(message, now, arrived)
        if recorded.repeated:
            counts.duplicates.inc()
        if recorded.reply is None:
            response = Response(b"success", mimetype="text/plain")
        else:
            response = Response(
                push.seal(recorded.reply, int(clock())), content_type="application/xml; charset=utf-8"
            )
        seconds = time.monotonic() - arrived
        counts.reply_seconds.observe(seconds)
        if seconds > DEADLINE_SECONDS:
            counts.deadline_misses.inc()
        log.info(
            "answered",
            extra={
                "ledger_id": recorded.id,
                "type": message.msg_type,
                "reply": kind(recorded.reply),
                "milliseconds": round(seconds * 1000, 1),
            },
        )
        return response

    for path in paths:
        for method, view in (("GET", verify), ("POST", receive)):
            blueprint.add_url_rule(
                path, methods=[method], view_func=view, provide_automatic_options=False, strict_slashes=False
            )

    def is_doctor() -> bool:
        return doctor_mark.is_marked(request.headers.get(doctor_mark.HEADER, ""), token, clock())

    @blueprint.errorhandler(PushError)
    def refused(refusal: PushError) -> Response:
        if is_doctor():
            return Response(status=refusal.status)
        # A doctor with another Token has no valid mark, but its requests are not the platform's either.
        if doctor_mark.HEADER not in request.headers and _looks_like_the_platform():
            refusals.count(refusal.reason, clock())
        return refuse(counts, refusal.status, refusal.reason, explained(refusal))

    @blueprint.errorhandler(UnreadablePushError)
    def not_understood(error: UnreadablePushError) -> Response:
        counts.refusals(error.reason).inc()
        log.warning(
            "a push was not understood; it was answered success: %s", error, extra={"reason": error.reason}
        )
        return Response(b"success", mimetype="text/plain")

    @blueprint.errorhandler(UnicodeDecodeError)
    def undecodable(error: UnicodeDecodeError) -> Response:
        # werkzeug raises it when the query is first read
        return refuse(counts, 403, "signature", "the query is not UTF-8")

    @blueprint.errorhandler(DatabaseUnavailableError)
    def unavailable(error: DatabaseUnavailableError) -> Response:
        counts.deadline_misses.inc()  # it waited for the ledger longer than the platform waits
        log.error(
            "the ledger cannot be written; the platform will repeat the push", extra={"reason": str(error)}
        )
        return Response(status=503)

    @blueprint.errorhandler(HeldError)
    def held(error: HeldError) -> Response:
        if error.repeated:
            counts.duplicates.inc()
        # The platform has hung up already. Anything else that reads this must not take it for an answer.
        return Response(status=503)

    @blueprint.errorhandler(RequestEntityTooLarge)
    def too_large(error: RequestEntityTooLarge) -> Response:
        return refuse(counts, 413, "size", f"the body is over MAX_PUSH_BYTES={max_push_bytes}")

    @blueprint.errorhandler(BadRequest)
    def unreadable(error: BadRequest) -> Response:
        return refuse(counts, 400, "xml", "the body could not be read")

    return blueprint


def kind(reply: bytes | None) -> str:
    """A reply's MsgType; `success` where there is none."""
    found = _REPLY_KIND.search(reply) if reply is not None else None
    return found[1].decode() if found else "success"


def body(limit: int) -> bytes:
    """The request's body. Raises `RequestEntityTooLarge`, and `ClientDisconnected` for one that is not whole."""
    request.max_content_length = limit + 1  # at this length werkzeug silently cuts off a chunked body
    data = request.get_data(cache=False)
    if len(data) > limit:
        raise RequestEntityTooLarge
    if len(data) < (request.content_length or 0):
        raise ClientDisconnected
    return data


def _looks_like_the_platform() -> bool:
    """Whether the query has the form of the platform's. A scanner that tries addresses does not know that form."""
    signature = request.args.get("msg_signature") or request.args.get("signature", "")
    return bool(re.fullmatch(r"[0-9a-f]{40}", signature)) and {"timestamp", "nonce"} <= request.args.keys()


def tell_of_wrong_requests(app: Flask, accounts: Mapping[str, str]) -> None:
    """404 and 405 for the application: routing fails before a blueprint is chosen. `accounts`: their names by path."""
    places = " or ".join(accounts)

    @app.errorhandler(MethodNotAllowed)
    def wrong_method(error: MethodNotAllowed) -> Response:
        account = accounts.get(request.path.rstrip("/"))
        if account is None:
            return Response(status=405, headers={"Allow": ", ".join(error.valid_methods or ())})
        return refuse(metrics.Counts(account), 405, "method", "the platform calls with GET and POST only")

    @app.errorhandler(NotFound)
    def not_found(error: NotFound) -> Response:
        # A request with a signature may be the platform's, with a wrong URL in the console.
        if re.search(r"(^|&)(signature|echostr)=", request.environ.get("QUERY_STRING", "")):
            facts = {"path": request.path[:100]}
            if places:
                log.warning(
                    "the callback is at %s: correct the URL in the console (请检查服务器配置中的 URL)",
                    places,
                    extra=facts,
                )
            else:
                log.warning(
                    "there is no callback: set WECHAT_TOKEN (没有回调地址，请设置 WECHAT_TOKEN)", extra=facts
                )
        return Response(status=404)


def refuse(counts: metrics.Counts, status: int, reason: str, why: str) -> Response:
    # One label for every fault of an envelope: a separate count of bad paddings would help an attacker.
    counts.refusals("envelope" if reason == "appid" else reason).inc()
    log.warning("refused: %s", why, extra={"reason": reason, "status": status})
    return Response(status=status)
