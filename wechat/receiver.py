"""Decides whether a push is the platform's: signature, time, envelope, AppID, in the account's mode.

With an AES key `msg_signature` alone decides and the message comes from the envelope; without one `signature`
decides and the body is the message. During a rotation the previous token and key are accepted as well. The
clock is an argument. It must not know HTTP, what a message says, or how a refusal is answered and logged.

https://developers.weixin.qq.com/doc/subscription/guide/dev/push/encryption.html
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from wechat.elements import JSON_PUSH, cdata, is_json, legal, refuse_doctype, texts
from wechat.envelope import RANDOM_BYTES, Envelope
from wechat.errors import AppIdError, Cause, EnvelopeError, SignatureError, TimestampError
from wechat.signature import sign, verify

_MAX_TIMESTAMP_DIGITS = 15


@dataclass(frozen=True, slots=True)
class Push:
    """An accepted push: `xml` is the message, and `seal` answers it in the same mode."""

    xml: bytes = field(repr=False)
    _envelope: Envelope | None = field(default=None, repr=False)
    _token: str = field(default="", repr=False)
    _nonce: str = field(default="", repr=False)

    def seal(
        self,
        reply_xml: bytes,
        now: float,
        nonce: str | None = None,
        random: Callable[[int], bytes] = secrets.token_bytes,
    ) -> bytes:
        """The response's body for a reply: unchanged for a plain push, in an envelope for an encrypted one.

        The envelope is made with the key and the token that opened the push. `now` is in unix seconds; `nonce`
        is by default the push's; `random` returns that many random bytes. `success` is never sealed: do not pass it.
        """
        if self._envelope is None:
            return reply_xml
        encrypt = self._envelope.seal(reply_xml, random(RANDOM_BYTES))
        # Sign the nonce as it will be read: without characters that XML cannot carry.
        nonce = legal(self._nonce if nonce is None else nonce)
        timestamp = str(int(now))
        signature = sign(self._token, timestamp, nonce, encrypt)
        return (
            f"<xml><Encrypt><![CDATA[{encrypt}]]></Encrypt>"
            f"<MsgSignature><![CDATA[{signature}]]></MsgSignature>"
            f"<TimeStamp>{timestamp}</TimeStamp><Nonce>{cdata(nonce)}</Nonce></xml>"
        ).encode()


class Receiver:
    """One account's callback: checks which requests are the platform's."""

    def __init__(
        self,
        *,
        appid: str,
        token: str,
        aes_key: str | None = None,
        previous_token: str | None = None,
        previous_aes_key: str | None = None,
        accept_plaintext: bool = False,
        timestamp_window: int = 600,
    ) -> None:
        """`timestamp_window` is in seconds, 0 turns the check off. An empty previous token or key counts as not given.

        Raises ValueError for an empty token or AppID, a malformed key, or a previous key without a key; TypeError for
        one of them that is no text.
        """
        if not all(
            isinstance(each, str | None) for each in (appid, token, aes_key, previous_token, previous_aes_key)
        ):
            raise TypeError("AppID, token and AES key are text (str)")
        if not isinstance(timestamp_window, int | float):
            raise TypeError("timestamp_window is a number of seconds")
        if not token:
            raise ValueError("the token is empty: anybody could sign with that")
        if not appid:
            raise ValueError("the AppID is empty")
        if previous_aes_key and not aes_key:
            raise ValueError("a previous AES key needs an AES key")
        self._tokens = tuple(each for each in (token, previous_token) if each)
        self._envelopes = tuple(Envelope(each, appid) for each in (aes_key, previous_aes_key) if each)
        self._accept_plaintext = accept_plaintext
        self._window = timestamp_window

    def verify_url(self, query: Mapping[str, str], now: float) -> str:
        """The echostr to answer the console's check (GET) with, byte for byte. `now` is in unix seconds.

        Raises SignatureError or TimestampError.
        """
        self._verify(query, "signature")
        self._check_time(query, now)
        return _parameter(query, "echostr")

    def open(self, query: Mapping[str, str], body: bytes, now: float) -> Push:
        """The push in a POST, once it is known to be the platform's. `now` is in unix seconds.

        Raises SignatureError, TimestampError, EnvelopeError, AppIdError, DoctypeError. It does not check
        that the push is a message. No XML parser is used: it would keep every element name that strangers send.
        TypeError for a body that is no bytes, or a query with lists.
        """
        if isinstance(body, str):
            raise TypeError("body is the request's bytes as they came, and not text")
        if self._envelopes:
            return self._open_sealed(query, body, now)
        self._verify(query, "signature")
        self._check_time(query, now)
        refuse_doctype(body)
        # A compat body has the message beside Encrypt and can be read; a safe body has nothing to read.
        if b"<Encrypt" in body and texts(body, "Encrypt") and not texts(body, "MsgType"):
            raise EnvelopeError("the push is encrypted", Cause.NO_AES_KEY)
        return Push(body)

    def _open_sealed(self, query: Mapping[str, str], body: bytes, now: float) -> Push:
        # Do not search a request that cannot be verified anyway.
        signable = all(query.get(name) for name in ("msg_signature", "timestamp", "nonce"))
        encrypt = _encrypt(body) if signable else None
        if encrypt is None:
            return self._open_unsealed(query, body, now)
        token = self._verify(query, "msg_signature", encrypt)
        self._check_time(query, now)
        refuse_doctype(body)
        refusal: EnvelopeError | AppIdError | None = None
        for envelope in self._envelopes:
            try:
                xml = envelope.open(encrypt)
            except (EnvelopeError, AppIdError) as error:
                # A wrong AppID is a more useful error than a wrong key.
                if not isinstance(refusal, AppIdError):
                    refusal = error
            else:
                return Push(xml, envelope, token, query["nonce"])
        assert refusal is not None
        raise refusal

    def _open_unsealed(self, query: Mapping[str, str], body: bytes, now: float) -> Push:
        """With an AES key, a request without msg_signature or without an Encrypt element."""
        self._verify(query, "signature")
        self._check_time(query, now)
        if is_json(body):
            raise EnvelopeError(JSON_PUSH)
        if not self._accept_plaintext:
            raise EnvelopeError("the push is not encrypted", Cause.NOT_ENCRYPTED)
        refuse_doctype(body)
        if _encrypt(body) is not None:
            raise SignatureError("an encrypted push without msg_signature")
        return Push(body)

    def _verify(self, query: Mapping[str, str], parameter: str, *encrypt: str) -> str:
        """The token under which `parameter` is the request's signature."""
        signature = _parameter(query, parameter)
        parts = (_parameter(query, "timestamp"), _parameter(query, "nonce"), *encrypt)
        for token in self._tokens[:-1]:
            try:
                verify(signature, token, *parts)
            except SignatureError:
                continue
            return token
        verify(signature, self._tokens[-1], *parts)
        return self._tokens[-1]

    def _check_time(self, query: Mapping[str, str], now: float) -> None:
        if not self._window:
            return
        timestamp = query["timestamp"]
        # Not int(): that accepts signs, white space, other digits and any length.
        if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= _MAX_TIMESTAMP_DIGITS):
            raise TimestampError(None)
        off = int(timestamp) - int(now)  # the platform's time is in whole seconds
        if abs(off) > self._window:
            raise TimestampError(off)


def _parameter(query: Mapping[str, str], name: str) -> str:
    value = query.get(name)
    if not value:
        raise SignatureError(f"the request has no {name}")
    if not isinstance(value, str):
        raise TypeError(f"query[{name!r}] is a {type(value).__name__}: give one text for each name")
    return value


def _encrypt(body: bytes) -> str | None:
    """The text of the body's Encrypt element, white space around it trimmed; None if there is none."""
    found = texts(body, "Encrypt")
    if len(found) > 1:
        raise EnvelopeError("the push has more than one Encrypt")
    return found[0] if found else None
