"""Calls to the platform's API: hosts in order, fail-over and switch-back, repeats, return codes, the access_token.

It knows that an answer with an errcode is an error whatever its content type says, and what follows from a refused
token. It must not know sockets (`wechat.transport` does), what a single API means, where the access_token comes
from (a CurrentToken gives it) or what is stored.
https://developers.weixin.qq.com/doc/service/Basic_Information/Interface_field_description.html (hosts)
https://developers.weixin.qq.com/doc/service/en/Getting_Started/Global_Return_Code.html (codes)
"""

from __future__ import annotations

import copy
import json as jsonlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import urlencode, urlsplit

from wechat.errors import (
    ApiError,
    Cause,
    InvalidTokenError,
    TransportError,
    UnsafeMediaUrlError,
    api_error,
    printable,
    whole_code,
)
from wechat.transport import Answer, Body, Deadline, Transport, place, shown_host, web_address

Result = TypeVar("Result")

#: Seconds before a call is repeated when the platform is busy; the next pause is twice as long.
FIRST_PAUSE = 1.0

_JSON_BYTES = 1024 * 1024
_SYSTEM_BUSY = -1
_BUSY_ANSWERS = 3
_SWITCH_BACK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds. `connect`: for all addresses of a host together. `read`: longest silence. `host`: for one host, from
    connecting to the last byte. `call`: after it no further host is tried. A DNS look-up has no limit of its own, but
    nothing is sent if it took too long."""

    connect: float = 3.0
    read: float = 5.0
    host: float = 8.0
    call: float = 25.0


ORDINARY = Timeouts()


class CurrentToken(Protocol):
    """The account's access_token (see `wechat.access_token.AccessToken`)."""

    def get(self) -> str:
        """The token to use now."""

    def replace(self, stale: str) -> str:
        """A token other than `stale`, which the platform refused."""


class ApiClient:
    """The API's hosts, called with an access_token or, without `token`, with none. Any number of threads may share one.

    `bases` are root URLs in order of preference. `clock` is monotonic seconds and `sleep` the pause between repeats;
    sockets keep real time. Raises TypeError for bases that are no list, or an empty one, and for a token that is text.
    """

    def __init__(
        self,
        bases: Sequence[str],
        token: CurrentToken | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not bases or isinstance(bases, str):
            raise TypeError("bases is a list of one or more root URLs: write ApiClient([url])")
        # A base that is no web address stays in its place as "", and each call reports it.
        self._bases = [(web_address(base) or "").rstrip("/") for base in bases]
        self._token = _current(token)
        self._clock = clock
        self._sleep = sleep
        self._transport = Transport()
        self._public = Transport(public_only=True)
        # Single reads and writes of a dict are atomic, and a mark lost to a race costs one connection.
        self._down_until: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"ApiClient({', '.join(map(shown_host, self._bases))})"

    def with_token(self, token: CurrentToken | None) -> ApiClient:
        """The same hosts and connections, with another token or with none."""
        other = copy.copy(self)
        other._token = _current(token)
        return other

    def with_token_read(self) -> ApiClient:
        """The same, whose calls begin with the token of now. Raises what reading it raises: nothing was sent then."""
        return self.with_token(self._token and _ReadToken(self._token))

    def call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        json: Mapping[str, Any] | None = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool,
        timeout: Timeouts = ORDINARY,
    ) -> dict[str, Any]:
        """The answer's JSON object. Sends `json` or `body`. Raises and repeats as `exchange` does; ValueError for a
        lone surrogate in `json`."""
        return self.exchange(
            method,
            path,
            read=_read_json,
            params=params,
            body=body if json is None else _JsonBody(json),
            headers=headers,
            repeatable=repeatable,
            timeout=timeout,
        )

    def exchange(
        self,
        method: str,
        path: str,
        *,
        read: Callable[[Answer], Result],
        params: Mapping[str, str] | None = None,
        body: Body | None = None,
        headers: Mapping[str, str] | None = None,
        repeatable: bool,
        timeout: Timeouts = ORDINARY,
    ) -> Result:
        """The result of `read` for the first usable answer, which stays open unless `read` raises.

        Raises ApiError for an errcode, TransportError without a usable answer, TokenUnavailableError without a token.
        The next host is tried where nothing was sent; after a read time-out or an HTTP 5xx only if
        the call is `repeatable`; never for an errcode. HTTP 5xx (if repeatable) and errcode -1 (which says
        that nothing was done) are repeated with pauses, up to three such answers. The first answer that the token
        is invalid leads to one renewal and one repeat; the second raises InvalidTokenError.
        """
        if not path.startswith("/"):  # it would become part of the host's name
            raise ValueError("the path must begin with /, as /cgi-bin/menu/get does")

        def once(token: str | None) -> Result:
            query = {**({"access_token": token} if token else {}), **(params or {})}
            target = f"{path}?{urlencode(query)}" if query else path
            return self._first_usable(method, path, target, read, body, headers or {}, repeatable, timeout)

        if self._token is None:
            return once(None)
        token = self._token.get()
        try:
            return once(token)
        except InvalidTokenError:
            pass  # the platform did nothing with the call, so even custom/send may be repeated
        return once(self._token.replace(token))

    def get_url(self, url: str, *, path: str, timeout: Timeouts) -> Answer:
        """One GET of a URL from an answer: no token, no redirect, any status.

        It goes to the API's own hosts or, without a proxy, to public addresses only. `path` names the URL in errors.
        Raises UnsafeMediaUrlError or TransportError.
        """
        # Check the address that will be used, not the text that it was made from.
        address = web_address(url)
        if address is None or "@" in urlsplit(address).netloc:
            raise UnsafeMediaUrlError("video_url is no plain http or https address")
        transport = self._transport if place(address) in map(place, self._bases) else self._public
        return transport.open("GET", address, {}, None, _deadline(timeout, timeout.host), path=path)

    def _first_usable(
        self,
        method: str,
        path: str,
        target: str,
        read: Callable[[Answer], Result],
        body: Body | None,
        headers: Mapping[str, str],
        repeatable: bool,
        timeout: Timeouts,
    ) -> Result:
        give_up = self._clock() + timeout.call
        pause = FIRST_PAUSE
        busy = 0
        while True:
            failure: ApiError | TransportError
            for base in self._in_order():
                deadline = _deadline(timeout, min(timeout.host, give_up - self._clock()))
                try:
                    if not base:
                        raise TransportError(path, sent=False, detail="no web address", cause=Cause.API_BASE)
                    answer = self._transport.open(method, base + target, headers, body, deadline, path=path)
                    result = _judge(answer, read)
                except ApiError as error:
                    self._down_until.pop(base, None)
                    if error.code != _SYSTEM_BUSY:
                        raise
                    failure = error
                    busy += 1
                    break
                except TransportError as error:
                    server_error = error.status is not None and error.status >= 500
                    silent = error.status is None
                    if server_error or silent:
                        self._down_until[base] = self._clock() + _SWITCH_BACK_SECONDS
                    busy += server_error
                    may_repeat = not error.sent or (repeatable and (server_error or silent))
                    if not may_repeat or busy == _BUSY_ANSWERS:
                        raise
                    failure = error
                else:
                    self._down_until.pop(base, None)
                    return result
            if busy in (0, _BUSY_ANSWERS) or self._clock() + pause >= give_up:
                raise failure
            self._sleep(pause)
            pause *= 2

    def _in_order(self) -> list[str]:
        """The hosts to try, in order. A host that failed comes last for a minute."""
        now = self._clock()
        return sorted(self._bases, key=lambda base: self._down_until.get(base, now) > now)


def _current(token: CurrentToken | None) -> CurrentToken | None:
    if isinstance(token, str):
        raise TypeError("token is an object that renews it, such as AccessToken, and not the text of one")
    return token


class _ReadToken:
    """A CurrentToken that was read when this was made."""

    def __init__(self, token: CurrentToken) -> None:
        self._value, self.replace = token.get(), token.replace

    def get(self) -> str:
        return self._value


def _deadline(timeout: Timeouts, seconds: float) -> Deadline:
    return Deadline(time.monotonic() + seconds, timeout.connect, timeout.read)


def json_object(body: bytes) -> dict[str, Any] | None:
    """The JSON object that `body` begins with, or None if it begins with anything else, or ends too early.

    Read leniently, since the platform's answers need it: control characters inside texts, GBK, UTF-16, a byte order
    mark, undecodable bytes (U+FFFD), a page after the object. A number of more than 20 digits is a float.
    """
    try:
        value, _ = _JSON.raw_decode(decoded(body).lstrip("\ufeff \t\r\n"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


_LONGEST_NUMBER = 20  # digits; Python refuses numbers of some thousands of digits
_JSON = jsonlib.JSONDecoder(
    strict=False, parse_int=lambda text: int(text) if len(text) <= _LONGEST_NUMBER else float(text)
)


def decoded(body: bytes) -> str:
    """The text of an answer whose stated encoding cannot be trusted: UTF-8, UTF-16, or GBK if that fits."""
    encoding = jsonlib.detect_encoding(body)
    if encoding.startswith("utf-8"):
        for each in (encoding, "gb18030"):
            try:
                return body.decode(each)
            except UnicodeDecodeError:
                continue
    return body.decode(encoding, "replace")


def raise_errcode(answer: Mapping[str, Any], path: str) -> None:
    """Raise ApiError unless errcode is absent, empty or 0 (some APIs send it as text)."""
    code = answer.get("errcode")
    if code is not None and code != "" and whole_code(code) != 0:
        raise api_error(code, answer.get("errmsg"), path)


def _judge(answer: Answer, read: Callable[[Answer], Result]) -> Result:
    try:
        if answer.status != 200:
            raise TransportError(
                answer.path, sent=True, status=answer.status, detail=f"no usable answer from {answer.host}"
            )
        return read(answer)
    except BaseException:
        answer.close()
        raise


def _read_json(answer: Answer) -> dict[str, Any]:
    body, complete = answer.peek(_JSON_BYTES)
    answer.close()
    value = json_object(body) if complete else None
    if value is None:
        raise TransportError(
            answer.path,
            sent=True,
            status=200,
            detail=f"{answer.host} sent no JSON object, but {beginning(body)}",
        )
    raise_errcode(value, answer.path)
    return value


def beginning(body: bytes) -> str:
    """The beginning of an answer for an error message: printable, short, and without secrets."""
    start = body[:_SHOWN_BYTES]
    return repr(printable(decoded(start), _SHOWN_CHARACTERS)) if start else "nothing"


_SHOWN_BYTES = 512
_SHOWN_CHARACTERS = 80


_SURROGATE = re.compile("[\ud800-\udfff]")


class _JsonBody:
    """UTF-8 as it is: the platform refuses \\uXXXX (40033)."""

    content_type = "application/json; charset=utf-8"

    def __init__(self, value: Mapping[str, Any]) -> None:
        text = jsonlib.dumps(value, ensure_ascii=False, separators=(",", ":"))
        if _SURROGATE.search(text):  # before encode(): its error would carry the whole text, secrets too
            raise ValueError("the JSON holds half a character (a lone surrogate): leave it out")
        self._bytes = text.encode()

    def __iter__(self) -> Iterator[bytes]:
        yield self._bytes

    def __len__(self) -> int:
        return len(self._bytes)
