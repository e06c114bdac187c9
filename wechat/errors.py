"""The error tree, and how a stranger's text is cut and cleaned before it becomes part of an error.

It must not know who raises these errors, how they are logged, or what a page shows of them.
No error holds a message's text, a secret or a URL's query.
"""

from __future__ import annotations

import enum
import re

from wechat.codes import Kind, explain

# The tree, and what a caller does with each:
#
# WeChatError
# +-- PushError                   a push that is no message; .status (HTTP), .reason (the word for the log)
# |   +-- SignatureError, TimestampError, EnvelopeError, AppIdError      403
# |   +-- DoctypeError                                                   400
# |   +-- UnreadablePushError                                            200: a repeat would say the same
# +-- ReplyError                  a reply that cannot exist (also a ValueError)
# +-- ApiError                    the platform answered with an errcode; .kind says what to do
# |   +-- InvalidTokenError       fetch a new access_token, then repeat once
# +-- TransportError              no usable answer; .sent: may the request have arrived?
# +-- MediaError                  a download that failed
# |   +-- TruncatedMediaError, MediaTooLargeError, UnsafeMediaUrlError
# +-- MediaRefusedError           our own check before an upload
# +-- TokenUnavailableError       no valid access_token, and none can be fetched now


class Cause(enum.Enum):
    """A value that the caller configured and that may have caused an error. The caller knows the setting's name."""

    TOKEN = enum.auto()  # the callback token
    NO_AES_KEY = enum.auto()  # an encrypted push, and no key is set
    NOT_ENCRYPTED = enum.auto()  # a key is set, and the push is plain
    AES_KEY = enum.auto()
    APPID = enum.auto()
    APPSECRET = enum.auto()
    WINDOW = enum.auto()  # the seconds that a push's timestamp may be off
    MEDIA_SIZE = enum.auto()  # the cap on a download
    API_BASE = enum.auto()
    CENTRAL_SERVER = enum.auto()  # the central token server's address
    CENTRAL_KEY = enum.auto()


class WeChatError(Exception):
    """The root of all errors of this package. Each holds, as data, what to do about it.

    `what` says what happened, without a hint; `what_zh` says it in Chinese, or is empty. `code` is the platform's, with
    its hints in both languages. `final`: a repeat would fail too. `retry_at` (unix seconds): do not retry before.
    `cause`: which of the caller's values to check.
    """

    code: int | None = None
    hint_en: str = ""
    hint_zh: str = ""
    final: bool = False
    retry_at: float | None = None
    cause: Cause | None = None
    what_zh: str = ""

    @property
    def what(self) -> str:
        return str(self)


class PushError(WeChatError):
    """A push that reaches no handler: `status` is the HTTP status, `reason` one word for the log and the
    metrics. A status of 200 means the answer `success`."""

    status: int
    reason: str

    def __init__(self, message: str, cause: Cause | None = None) -> None:
        self.cause = cause
        super().__init__(message)


class SignatureError(PushError):
    """The signature is missing or wrong."""

    status = 403
    reason = "signature"


class TimestampError(PushError):
    """A correct signature over a time outside the window.

    `seconds_off` is push time minus our time in seconds, or None where the timestamp is no number.
    """

    status = 403
    reason = "timestamp"

    def __init__(self, seconds_off: int | None) -> None:
        self.seconds_off = seconds_off
        if seconds_off is None:
            off = "the push's timestamp is not a number"
        else:
            off = f"the push's timestamp is {seconds_off:+d} seconds off"
        super().__init__(off, Cause.WINDOW)


class EnvelopeError(PushError):
    """The encrypted envelope is missing, or cannot be opened. What was wrong is not said: it would help an attacker."""

    status = 403
    reason = "envelope"


class AppIdError(PushError):
    """The envelope was sealed for another AppID."""

    status = 403
    reason = "appid"


class DoctypeError(PushError):
    """The XML has a DOCTYPE."""

    status = 400
    reason = "doctype"


class UnreadablePushError(PushError):
    """A push from the platform that cannot be read, not even leniently, or lacks what every message has.

    It is answered `success`: the platform would repeat the same bytes, and show the fan a failure at the end.
    """

    status = 200
    reason = "xml"


class ReplyError(WeChatError, ValueError):
    """A handler built a reply that the platform could not take."""

    final = True


class ApiError(WeChatError):
    """The platform answered with an errcode other than 0. Build it with `api_error`, which picks the class.

    `errmsg` is the platform's text (with its rid; anything that looks like a secret is removed), `path` the
    API's path without its query, `kind`, `hint_en` and `hint_zh` come from the code table.
    """

    def __init__(self, code: int, errmsg: str, path: str) -> None:
        known = explain(code)
        self.code = code
        self.errmsg = printable(errmsg, _ERRMSG_CHARACTERS)
        rid = _RID.search(errmsg[-_RID_CHARACTERS:])
        self.rid = rid[1] if rid else None
        self.path = path.partition("?")[0]
        self.kind = known.kind
        self.hint_en = known.hint_en
        self.hint_zh = known.hint_zh
        self.final = known.kind is Kind.GIVE_UP
        super().__init__(f"{self.path} answered {code} ({self.errmsg}): {self.hint_en} / {self.hint_zh}")

    @property
    def what(self) -> str:
        rid = f" rid: {self.rid}" if self.rid and self.rid not in self.errmsg else ""
        return f"{self.code} {self.errmsg}{rid}".rstrip()  # errmsg may be missing


class InvalidTokenError(ApiError):
    """The access_token is invalid (40001, 40014, 42001) or was not sent (41001): renew it, repeat once."""


class TransportError(WeChatError):
    """No usable answer came. `sent` is True if the request may have reached the platform, so that a repeat
    could act twice; `status` is the HTTP status where there was one. Of a body no more than its beginning is kept."""

    def __init__(
        self,
        path: str,
        *,
        sent: bool,
        status: int | None = None,
        detail: str = "no answer",
        cause: Cause | None = None,
    ) -> None:
        self.cause = cause
        self.path = path.partition("?")[0]
        self.sent = sent
        self.status = status
        http = "" if status is None else f" (HTTP {status})"
        super().__init__(f"{self.path}: {detail}{http}")


class MediaError(WeChatError):
    """A download that failed."""


class TruncatedMediaError(MediaError):
    """The body ended before its announced length."""


class MediaTooLargeError(MediaError):
    """The body is larger than `limit` bytes."""

    final = True
    cause = Cause.MEDIA_SIZE

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"the file is larger than {limit} bytes")


class UnsafeMediaUrlError(MediaError):
    """A video_url that leads to a private address or to no web address at all."""

    def __init__(self, message: str = "video_url leads to an address that is not public") -> None:
        super().__init__(message)


class MediaRefusedError(WeChatError):
    """Our own check before an upload. `code` is what the platform would have answered, with its hints."""

    final = True

    def __init__(self, code: int, message: str) -> None:
        known = explain(code)
        self.code = code
        self.hint_en = known.hint_en
        self.hint_zh = known.hint_zh
        self._message = message
        super().__init__(f"{message}: {self.hint_en} / {self.hint_zh} ({code})")

    @property
    def what(self) -> str:
        return self._message


class TokenUnavailableError(WeChatError):
    """No valid access_token, and none can be fetched now.

    `reason` and `what_zh` say why and what to do, `code` is the platform's code where there was one, `retry_at` (unix
    seconds) when the next fetch will be tried. The message has both languages.
    """

    def __init__(
        self,
        reason: str,
        reason_zh: str = "",
        *,
        code: int | None = None,
        retry_at: float | None = None,
        cause: Cause | None = None,
    ) -> None:
        self.cause = cause
        self.reason = _without_secrets(reason)
        self.what_zh = _without_secrets(reason_zh)
        self.code = code
        self.retry_at = retry_at
        super().__init__(f"{self.reason} / {self.what_zh}" if self.what_zh else self.reason)

    @property
    def what(self) -> str:
        return self.reason


_NO_NUMBER = -2
_INVALID_TOKEN = frozenset({40001, 40014, 42001, 41001})


def api_error(code: object, errmsg: object, path: str) -> ApiError:
    """The error for an answer of the platform. Never fails.

    `code` and `errmsg` are as they came out of the JSON, of any type and size; `path` is the API's path.
    """
    number = whole_code(code)
    text = errmsg if isinstance(errmsg, str) else ""
    if number in _INVALID_TOKEN:
        return InvalidTokenError(number, text, path)
    return ApiError(number, text, path)


def whole_code(code: object) -> int:
    """An errcode as a whole number of 32 bits; anything else counts as the unknown code -2. Some APIs send text."""
    is_text = isinstance(code, str) and re.fullmatch(r"\s*-?[0-9]{1,10}\s*", code)
    if is_text or (isinstance(code, float) and code.is_integer()):
        code = int(code)  # type: ignore[call-overload]
    if isinstance(code, int) and not isinstance(code, bool) and -(2**31) <= code < 2**31:
        return code
    return _NO_NUMBER


def printable(text: str, limit: int) -> str:
    """At most `limit` characters of a stranger's text on one line: printable ones alone, and without secrets."""
    text = _without_secrets(text[: 4 * limit])
    text = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


_ERRMSG_CHARACTERS = 300


# The platform appends " rid: 5f3ded7d-22929d02-4ba1f5f6" to most errmsg: the ticket number for its support.
_RID = re.compile(r"\brid:\s*([0-9a-f]{1,16}(?:-[0-9a-f]{1,16}){1,4})", re.IGNORECASE)
_RID_CHARACTERS = 2000

# A named secret, or 32 and more characters of the alphabet of AppSecret, AES key, access_token. The IP that
# 40164 names, a rid and an OpenID are shorter or have other characters, and stay.
_SECRET = re.compile(
    r"(?P<name>\b(?:access_token|app_?secret|secret)[\"']?\s*[=:]\s*[\"']?)[^\s\"'&,;}]+|[A-Za-z0-9_-]{32,}",
    re.IGNORECASE,
)


def _without_secrets(text: str) -> str:
    return _SECRET.sub(lambda found: f"{found['name'] or ''}***", text)
