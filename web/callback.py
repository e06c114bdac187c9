"""GET and POST /wechat: what the platform calls. Converts a request, calls, converts the answer back.

Knows the order of an answer: open, parse, look up, handle, record, seal. Does not know cryptography, XML or SQL. A
refusal is told to our log in one line and to the caller by its status alone.
https://developers.weixin.qq.com/doc/subscription/guide/dev/push/encryption.html
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping

from flask import Blueprint, Response, request
from werkzeug.exceptions import ClientDisconnected, HTTPException, MethodNotAllowed, RequestEntityTooLarge

import handlers
from answers.late import DeferredReplies, HeldError
from handlers import Deferred
from storage.errors import DatabaseUnavailableError
from storage.ledger import Ledger, Recorded
from web import metrics
from wechat.errors import PushError, UnreadablePushError
from wechat.messages import Message, UnknownMessage, parse_message
from wechat.receiver import Receiver
from wechat.replies import ImageReply, Reply, VideoReply, VoiceReply, render_reply

log = logging.getLogger(__name__)

# The platform's parameters as they are: signature, timestamp, nonce, openid, encrypt_type, msg_signature.
_UNQUOTED = re.compile(r"[A-Za-z0-9_-]+=[A-Za-z0-9_-]*(?:&[A-Za-z0-9_-]+=[A-Za-z0-9_-]*)*")

DEADLINE_SECONDS = 5.0  # then the platform drops the connection and repeats the push


def callback(
    receiver: Receiver,
    ledger: Ledger,
    *,
    max_push_bytes: int,
    upload: bool,
    wake: Callable[[], None],
    deferred: DeferredReplies,
    clock: Callable[[], float] = time.time,
) -> Blueprint:
    """The two views. `upload`: what a handler gives back of the fan's own is sent later from the stored copy.
    `wake` is called when a download was recorded."""
    blueprint = Blueprint("callback", __name__)

    @blueprint.get("/wechat", provide_automatic_options=False)
    def verify() -> Response:
        return Response(receiver.verify_url(request.args, clock()), mimetype="text/plain")

    @blueprint.post("/wechat", provide_automatic_options=False)
    def receive() -> Response:
        arrived = time.monotonic()
        now = clock()
        push = receiver.open(query(), read_body(max_push_bytes), now)
        message = parse_message(push.xml)
        known = "unknown" if isinstance(message, UnknownMessage) else message.msg_type
        metrics.deliveries(known).inc()
        recorded = ledger.find(message)
        if recorded is None:
            recorded = deferred.given(message, now) or answer(message, now, arrived)
        else:
            metrics.DUPLICATES.inc()
            if recorded.working:
                recorded = deferred.answer_again(recorded, arrived)
        if recorded.reply is None:
            response = Response(b"success", mimetype="text/plain")
        else:
            response = Response(
                push.seal(recorded.reply, int(clock())), content_type="application/xml; charset=utf-8"
            )
        seconds = time.monotonic() - arrived
        metrics.REPLY_SECONDS.observe(seconds)
        if seconds > DEADLINE_SECONDS:
            metrics.DEADLINE_MISSES.inc()
        return response

    def answer(message: Message, now: float, arrived: float) -> Recorded:
        fault: Exception | None = None
        xml, send_back = None, False
        try:
            outcome = handlers.dispatch(message)
            if isinstance(outcome, Deferred):
                return deferred.answer(message, outcome, now, arrived)
            xml, send_back = rendered(outcome, message, now, upload=upload)
        except (DatabaseUnavailableError, HeldError):
            raise
        except Exception as error:  # a handler's fault must not become the fan's
            fault = error
        recorded = ledger.record(message, xml, now, send_back=send_back)
        if fault is not None:
            log.error(
                "a handler failed; the fan was answered success",
                exc_info=fault,
                extra={"ledger_id": recorded.id, "msg_type": message.msg_type},
            )
        if message.media_id is not None:
            wake()
        return recorded

    @blueprint.errorhandler(PushError)
    def refused(refusal: PushError) -> Response:
        return refuse(refusal.status, refusal.reason, str(refusal))

    @blueprint.errorhandler(UnreadablePushError)
    def not_understood(error: UnreadablePushError) -> Response:
        metrics.REFUSALS.labels(error.reason).inc()
        log.warning(
            "a push was not understood; it was answered success: %s", error, extra={"reason": error.reason}
        )
        return Response(b"success", mimetype="text/plain")

    @blueprint.errorhandler(UnicodeDecodeError)
    def undecodable(error: UnicodeDecodeError) -> Response:
        return refuse(403, "signature", "the query is not UTF-8")  # werkzeug raises on the first look at it

    @blueprint.errorhandler(DatabaseUnavailableError)
    def unavailable(error: DatabaseUnavailableError) -> Response:
        log.error(
            "the ledger cannot be written; the platform will repeat the push", extra={"reason": str(error)}
        )
        return Response(status=503)

    @blueprint.errorhandler(HeldError)
    def held(error: HeldError) -> Response:
        # Nobody reads this: the platform hung up before. If somebody does, it must not pass for an answer.
        return Response(status=503)

    @blueprint.errorhandler(RequestEntityTooLarge)
    def too_large(error: RequestEntityTooLarge) -> Response:
        return refuse(413, "size", f"the body is over MAX_PUSH_BYTES={max_push_bytes}")

    @blueprint.errorhandler(HTTPException)
    def unreadable(error: HTTPException) -> Response:
        return refuse(400, "xml", "the body could not be read")

    return blueprint


def read_body(limit: int) -> bytes:
    """The request's body. Raises `RequestEntityTooLarge`, and `ClientDisconnected` for one that ends too early."""
    told = request.environ.get("CONTENT_LENGTH", "")
    if told.isdecimal() and len(told) < 10 and int(told) <= limit:
        # What werkzeug does for any body costs more than to parse it.
        try:
            body: bytes = request.environ["wsgi.input"].read(int(told))
        except OSError:
            raise ClientDisconnected from None
        if len(body) < int(told):
            raise ClientDisconnected
        return body
    request.max_content_length = limit + 1  # at this length werkzeug cuts a chunked body off without a word
    body = request.get_data(cache=False)
    if len(body) > limit:
        raise RequestEntityTooLarge
    return body


def rendered(reply: Reply | None, message: Message, now: float, *, upload: bool) -> tuple[bytes | None, bool]:
    """What a push is answered: plain XML, None for `success`; and whether the stored copy is sent back later.

    `now` (unix seconds) is the reply's CreateTime, `upload` says ECHO_VIA=upload. Raises ReplyError.
    """
    own = isinstance(reply, ImageReply | VoiceReply | VideoReply) and reply.media_id == message.media_id
    if reply is None or (upload and own):
        return None, reply is not None
    return render_reply(reply, message, int(now)), False


def query() -> Mapping[str, str]:
    """The query's parameters, of a repeated one the first; without Flask's price where nothing is quoted."""
    raw = request.environ["QUERY_STRING"]
    if _UNQUOTED.fullmatch(raw):
        return dict(reversed([parameter.split("=") for parameter in raw.split("&")]))
    return request.args


def wrong_method(error: MethodNotAllowed) -> Response:
    """405, for the application: routing fails before a blueprint is chosen."""
    if request.path != "/wechat":
        return Response(status=405, headers={"Allow": ", ".join(error.valid_methods or ())})
    return refuse(405, "method", "the platform calls with GET and POST only")


def refuse(status: int, reason: str, why: str) -> Response:
    metrics.REFUSALS.labels(reason).inc()
    log.warning("refused: %s", why, extra={"reason": reason, "status": status})
    return Response(status=status)
