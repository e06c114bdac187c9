"""Delivers pushes to the bot: signs, seals, posts, repeats, and has the answers judged.

Knows the query string of a push, the five seconds, and when the platform tries again. It must not know
routes or which answers are right. After the five seconds it closes the socket, as the platform does.
https://developers.weixin.qq.com/doc/subscription/guide/dev/push/encryption.html
"""

from __future__ import annotations

import contextlib
import http.client
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from .cipher import Envelope, sign
from .errors import ControlError, Words
from .fans import Message
from .judge import Judge, Verdict
from .pushes import Action, as_base64, cdata, read, read_msg_id, renewed, to_xml
from .state import Push, State

MODES = ("plain", "compat", "safe")
_AS_IT_IS = "/%:@!$&'()*+,;=~-._"
"""What a URL's path may hold; all else of the callback's, such as Chinese, is sent as %XX."""
_ANSWER_BYTES = 1024 * 1024
"""More than this of an answer is not read: no reply is that long."""


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """How to deliver: in which mode, how often at most, whether also after an answer, or all at once.

    `attempts` None follows the rules; `timeout` is in seconds. Without `wait` it goes on in a thread of its own.
    """

    mode: str
    attempts: int | None = None
    force: bool = False
    together: bool = False
    timeout: float = 5
    wait: bool = True


class Sender:
    """Pushes for one state; `stop` ends waiting between deliveries when the sandbox ends."""

    def __init__(self, state: State, stop: threading.Event) -> None:
        self._state = state
        self._stop = stop
        self._judge = Judge(state.account, state.find_media)
        aes_key = state.account.aes_key
        self._envelope = None if aes_key is None else Envelope(aes_key, state.account.appid)

    @property
    def modes(self) -> tuple[str, ...]:
        """The modes that are possible with this account."""
        return MODES if self._envelope is not None else ("plain",)

    @property
    def default_mode(self) -> str:
        return self.modes[-1]

    def push(self, action: Action, delivery: Delivery) -> Push:
        """Delivers one action until it is answered, and returns what happened; without `wait`, what has so far.

        Raises ControlError without a callback, when the mode needs a key that the account does not have, or for a
        fan who has left.
        """
        self._check(delivery)
        message = self._state.message("fan", "push", action.type, action.summary, action.media_id)
        push = Push(
            openid=action.openid,
            type=action.type,
            event=action.event,
            summary=action.summary,
            msg_id=action.msg_id,
            media_id=action.media_id,
            mode=delivery.mode,
            timeout=delivery.timeout,
            xml=to_xml(action, self._state.account.original_id, int(message.time)),
            time=message.time,
        )
        return self._run(push, message, delivery)

    def resend(self, old: Push, delivery: Delivery, *, new: bool, raw: bytes | None = None) -> Push:
        """Delivers a push again, or `raw` in its place. `new`: as another message, with a MsgId of its own.

        Without `new` the fan does nothing: the chat shows no second message of theirs.
        """
        self._check(delivery)
        xml = old.xml if raw is None else raw
        if new:
            xml = renewed(xml, self._state.new_msg_id(), int(self._state.real_time()))
        summary = old.summary if raw is None or old.type == "event" else read(xml, "Content") or old.summary
        message = self._state.message("fan", "push", old.type, summary, old.media_id)
        push = Push(
            openid=old.openid,
            type=old.type,
            event=old.event,
            summary=summary,
            msg_id=read_msg_id(xml),
            media_id=old.media_id,
            mode=delivery.mode,
            timeout=delivery.timeout,
            xml=xml,
            time=message.time,
        )
        return self._run(push, message if new else None, delivery)

    def _check(self, delivery: Delivery) -> None:
        if delivery.mode != "plain" and self._envelope is None:
            raise ControlError(
                f"mode {delivery.mode}: this account has no AES key",
                f"模式 {delivery.mode}：此公众号没有 EncodingAESKey",
            )
        self._callback()

    def _run(self, push: Push, message: Message | None, delivery: Delivery) -> Push:
        callback = self._callback()
        self._state.begin_push(push, message)
        if delivery.wait:
            self._deliver_all(push, callback, delivery)
        else:
            # As a daemon, like the server's threads: a bot that hangs must not hold up the end of the sandbox.
            threading.Thread(
                target=self._deliver_all, args=(push, callback, delivery), name="push", daemon=True
            ).start()
        return push

    def _deliver_all(self, push: Push, callback: SplitResult, delivery: Delivery) -> None:
        times = delivery.attempts or self._state.rules.deliveries

        def deliver() -> Verdict:
            return self._deliver(push, callback, delivery)

        in_turn = self._in_turn(times, delivery, deliver)
        verdicts = _at_once(times, deliver) if delivery.together else list(in_turn)
        if not any(verdict.verdict in ("reply", "silent") for verdict in verdicts):
            self._show_failure(push)
        self._state.end_push(push)

    def _in_turn(self, times: int, delivery: Delivery, deliver: Callable[[], Verdict]) -> Iterator[Verdict]:
        for number in range(times):
            verdict = deliver()
            yield verdict
            final = verdict.verdict != "timeout" and not isinstance(verdict, _NoAnswer)
            if final and not delivery.force:
                return
            # The platform's pause after a refused connection is unknown; without a pause the repeats
            # would be over before a bot that restarts is back.
            pause = delivery.timeout / 5 if isinstance(verdict, _NoAnswer) and number + 1 < times else 0
            if self._stop.wait(pause):
                return

    def _deliver(self, push: Push, callback: SplitResult, delivery: Delivery) -> Verdict:
        timestamp, nonce = str(int(self._state.real_time())), str(secrets.randbelow(2**31 - 10**8) + 10**8)
        query, sent = self._seal(push, timestamp, nonce)
        received: dict[str, Any] | None = None
        started = time.monotonic()
        try:
            status, body = self._exchange(callback, query, sent, delivery.timeout)
        except TimeoutError:
            verdict = Verdict(verdict="timeout", why=_too_late(delivery.timeout))
        except (OSError, http.client.HTTPException) as error:
            verdict = _NoAnswer(verdict="refused", why=_in_words(error))
        else:
            received = {"status": status, "body": body.decode(errors="backslashreplace")}
            if status != 200:
                verdict = _NoAnswer(verdict="refused", why=_status(status))
            else:
                verdict = self._judge.judge(
                    body,
                    mode=push.mode,
                    openid=push.openid,
                    is_event=push.type == "event",
                    nonce=nonce,
                    own_video_reply=self._state.rules.own_video_reply,
                )
        seconds = round(time.monotonic() - started, 4)
        attempt: dict[str, Any] = {
            "query": query,
            "sent": sent.decode(errors="backslashreplace"),
            "received": received,
            "opened": verdict.opened,
            "seconds": seconds,
            "verdict": verdict.verdict,
            "why": verdict.why.en,
        }
        if verdict.notes:
            attempt["notes"] = [note.en for note in verdict.notes]
        self._state.record_attempt(push, attempt, _for_page(verdict, sent))
        if verdict.shown is not None:
            shown = verdict.shown
            message = self._state.message("account", "passive", shown.type, shown.content, shown.media_id)
            self._state.show(push, message)
        elif verdict.verdict == "refused" and not isinstance(verdict, _NoAnswer):
            self._show_failure(push)
        return verdict

    def _exchange(self, callback: SplitResult, query: str, sent: bytes, timeout: float) -> tuple[int, bytes]:
        """The bot's answer, changed by a fault for the callback's path."""
        deadline = time.monotonic() + timeout
        status, body = _request("POST", callback, query, sent, timeout)
        fault = self._state.take_fault(callback.path)
        if fault is None:
            return status, body
        if fault.delay:
            late = fault.delay > (left := deadline - time.monotonic())
            self._stop.wait(left if late else fault.delay)
            if late:
                raise TimeoutError
        if fault.disconnect:
            raise ConnectionResetError
        if fault.truncate is not None and fault.truncate < len(body):
            raise http.client.IncompleteRead(body[: fault.truncate])
        return fault.status or status, body if fault.body is None else fault.body.encode()

    def _show_failure(self, push: Push) -> None:
        text = self._state.rules.failure_text
        self._state.show(push, self._state.message("system", "platform", "text", text))

    def _seal(self, push: Push, timestamp: str, nonce: str) -> tuple[str, bytes]:
        """The query string and the body of one delivery."""
        account = self._state.account
        query = {
            "signature": sign(account.token, timestamp, nonce),
            "timestamp": timestamp,
            "nonce": nonce,
            "openid": push.openid,
        }
        if self._envelope is None or push.mode == "plain":
            return urlencode(query), push.xml
        encrypted = self._envelope.encrypt(push.xml, secrets.token_bytes(16))
        query["encrypt_type"] = "aes"
        query["msg_signature"] = sign(account.token, timestamp, nonce, encrypted)
        sealed = cdata("Encrypt", encrypted).encode()
        if push.mode == "safe":
            return urlencode(query), b"<xml>%b%b</xml>" % (
                cdata("ToUserName", account.original_id).encode(),
                sealed,
            )
        inside, end, after = push.xml.rpartition(b"</xml>")
        return urlencode(query), inside + sealed + end + after if end else push.xml + sealed

    def verify(self, timeout: float = 5) -> dict[str, Any]:
        """What the console does on 提交: GET with a signed echostr, which must come back byte for byte."""
        callback = self._callback()
        timestamp, nonce = str(int(self._state.real_time())), str(secrets.randbelow(10**9) + 10**9)
        echostr = str(secrets.randbelow(9 * 10**18) + 10**18)
        signature = sign(self._state.account.token, timestamp, nonce)
        query = {"signature": signature, "timestamp": timestamp, "nonce": nonce, "echostr": echostr}
        try:
            status, body = _request("GET", callback, urlencode(query), None, timeout)
        except TimeoutError:
            return {"ok": False, "why": _too_late(timeout).en, "status": None, "body": None}
        except (OSError, http.client.HTTPException) as error:
            return {"ok": False, "why": _in_words(error).en, "status": None, "body": None}
        fault = _echo_fault(status, body, echostr.encode())
        answer = body.decode(errors="backslashreplace")
        return {"ok": fault is None, "why": fault or "echostr came back", "status": status, "body": answer}

    def _callback(self) -> SplitResult:
        if not self._state.account.token:
            raise ControlError(
                "this account has no WECHAT_TOKEN, so it has no callback",
                "此公众号没有 WECHAT_TOKEN，因此没有回调地址",
            )
        if self._state.callback is None:
            raise ControlError(
                "no callback: start the sandbox with --callback URL",
                "没有回调地址：请用 --callback URL 启动沙箱",
            )
        return urlsplit(self._state.callback)


class _NoAnswer(Verdict):
    """A refusal without any answer to judge (no connection, or not HTTP 200): the platform tries again."""


def _at_once(times: int, deliver: Callable[[], Verdict]) -> list[Verdict]:
    verdicts: list[Verdict] = []
    threads = [threading.Thread(target=lambda: verdicts.append(deliver())) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return verdicts


def _request(
    method: str, callback: SplitResult, query: str, body: bytes | None, timeout: float
) -> tuple[int, bytes]:
    """Status and body, complete within `timeout` seconds. Otherwise closes the socket and raises TimeoutError.

    Not through `requests`: its time-out restarts with every byte that arrives.
    """
    kind = http.client.HTTPSConnection if callback.scheme == "https" else http.client.HTTPConnection
    connection = kind(callback.hostname or "", callback.port, timeout=timeout)
    path = quote(callback.path or "/", safe=_AS_IT_IS)
    own = quote(callback.query, safe=_AS_IT_IS + "?")
    target = f"{path}?{own}&{query}" if own else f"{path}?{query}"
    headers = {"User-Agent": "Mozilla/4.0", "Accept": "*/*", "Connection": "close"}
    if body is not None:
        headers["Content-Type"] = "text/xml"
    over = threading.Event()
    deadline = time.monotonic() + timeout
    try:
        connection.connect()
        cut = threading.Timer(deadline - time.monotonic(), _cut, (connection.sock, over))
        cut.daemon = True
        cut.start()
        try:
            connection.request(method, target, body, headers)
            with connection.getresponse() as response:
                answer = response.read(_ANSWER_BYTES)
                if response.length:  # known from Content-Length, and not all of it came
                    raise http.client.IncompleteRead(answer, response.length)
        finally:
            cut.cancel()
        if over.is_set():
            raise TimeoutError
        return response.status, answer
    except (OSError, http.client.HTTPException):
        if over.is_set():
            raise TimeoutError from None
        raise
    finally:
        connection.close()


def _cut(connected: socket.socket, over: threading.Event) -> None:
    over.set()
    with contextlib.suppress(OSError):
        connected.shutdown(socket.SHUT_RDWR)


def _too_late(timeout: float) -> Words:
    return Words(f"no whole answer within {timeout:g} s", f"{timeout:g} 秒内没有完整的回复")


def _status(status: int) -> Words:
    return Words(f"HTTP {status} instead of 200", f"HTTP {status}，应为 200")


def _in_words(error: Exception) -> Words:
    if isinstance(error, ConnectionRefusedError):
        return Words(
            "connection refused: nothing listens at the callback's address", "连接被拒绝：回调地址无人监听"
        )
    if isinstance(error, http.client.IncompleteRead):
        return Words("the connection closed in the middle of the answer", "回复到一半，连接断开了")
    if isinstance(error, http.client.RemoteDisconnected | ConnectionError):
        return Words("the connection closed without an answer", "连接已断开，没有回复")
    return Words(
        f"no usable HTTP answer ({type(error).__name__})", f"不是可用的 HTTP 回复（{type(error).__name__}）"
    )


def _for_page(verdict: Verdict, sent: bytes) -> dict[str, Any]:
    """What the control routes do not say of an attempt: the words in Chinese, and the bytes that are no text."""
    return {
        "why": verdict.why.zh,
        "notes": [note.zh for note in verdict.notes],
        "sent_base64": as_base64(sent),
    }


def _echo_fault(status: int, body: bytes, echostr: bytes) -> str | None:
    """What is wrong with the answer to a verification, or None."""
    if status != 200:
        return _status(status).en
    if body == echostr:
        return None
    if body.startswith(b"\xef\xbb\xbf"):
        return "a byte order mark before echostr"
    if body.strip() == echostr:
        return "white space around echostr, often a newline at its end"
    if body.strip(b"\"'\r\n ") == echostr:
        return "quotes around echostr: it must be plain text, not JSON"
    return "the answer is not echostr" if body else "empty answer"
