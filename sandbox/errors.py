"""How the sandbox refuses: the platform's return codes, and errors of the control routes.

Knows code numbers and the platform's own texts for them. It must not know HTTP or when a code
applies: state.py raises, server.py and api.py write. Codes and texts:
https://developers.weixin.qq.com/doc/service/en/Getting_Started/Global_Return_Code.html
"""

from __future__ import annotations

from typing import NamedTuple

ERRMSG = {
    -1: "system error",
    0: "ok",
    40001: "invalid credential, access_token is invalid or not latest",
    40002: "invalid grant_type",
    40003: "invalid openid",
    40004: "invalid media type",
    40005: "invalid file type",
    40006: "invalid meida size",  # the platform's own spelling
    40007: "invalid media_id",
    40008: "invalid message type",
    40009: "invalid image size",
    40010: "invalid voice size",
    40011: "invalid video size",
    40012: "invalid thumb size",
    40013: "invalid appid",
    40014: "invalid access_token",
    40016: "invalid button size",
    40017: "invalid button type",
    40018: "invalid button name size",
    40019: "invalid button key size",
    40020: "invalid button url size",
    40022: "invalid subbutton level",
    40023: "invalid subbutton size",
    40024: "invalid subbutton type",
    40025: "invalid subbutton name size",
    40026: "invalid subbutton key size",
    40027: "invalid subbutton url size",
    40033: "invalid charset. please check your request, if include \\uxxxx will create fail!",
    40035: "invalid parameter",
    40066: "invalid url",
    40125: "invalid appsecret",
    40164: "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist",
    40201: "invalid callback url",
    40202: "invalid action",
    40203: "invalid check_operator",
    40243: "appsecret frozen",
    41001: "access_token missing",
    41002: "appid missing",
    41004: "appsecret missing",
    41005: "media data missing",
    41006: "media_id missing",
    42001: "access_token expired",
    43001: "require GET method",
    43002: "require POST method",
    44001: "empty media data",
    44002: "empty post data",
    44003: "empty news data",
    44004: "empty content",
    45001: "media size out of limit",
    45002: "content size out of limit",
    45007: "playtime out of limit",
    45008: "article size out of limit",
    45009: "reach max api daily quota limit",
    45011: "api minute-quota reach limit must slower retry next minute",
    45015: "response out of time limit or subscription is canceled",
    45047: "out of response count limit",
    45072: "invalid typing command",
    45080: "no exchange with the user in the last 30 seconds",
    45081: "already typing",
    46003: "menu no exist",
    47001: "data format error",
    48001: "api unauthorized",
    48006: "forbid to clear quota because of reaching the limit",
}


class Words(NamedTuple):
    """A sentence for people, in both languages of the phone page."""

    en: str
    zh: str

    def as_error(self) -> dict[str, str]:
        """The JSON of a refusal: programs read `error`, the page in Chinese shows `error_zh`."""
        return {"error": self.en, "error_zh": self.zh}


class PlatformError(Exception):
    """The platform refuses an API call; `code` and `errmsg` go into its JSON answer (HTTP 200)."""

    def __init__(self, code: int, errmsg: str | None = None) -> None:
        self.code = code
        self.errmsg = errmsg or ERRMSG[code]
        super().__init__(f"{code} {self.errmsg}")


class ControlError(Exception):
    """A control route was used wrongly; `words` say how to use it. Answered with HTTP 400."""

    def __init__(self, en: str, zh: str) -> None:
        self.words = Words(en, zh)
        super().__init__(en)
