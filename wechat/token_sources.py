"""Where new access_tokens come from: stable_token, the classic call, or a central token server (中控服务器).

It knows each source's request and answer. It must not know when a token is due, where it is kept, or who else fetches
(`wechat.access_token` does). The platform keeps the tokens of /cgi-bin/token and of /cgi-bin/stable_token apart: a new
token from one does not end the token from the other.
https://developers.weixin.qq.com/doc/service/api/base/api_getstableaccesstoken.html
https://developers.weixin.qq.com/doc/service/en/api/base/api_getaccesstoken
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from wechat.client import ApiClient, Timeouts
from wechat.errors import Cause, InvalidTokenError, TokenUnavailableError, TransportError

#: One HTTP step of a renewal: at most 5 s per host, 10 s for all hosts with their pauses.
FETCH_TIMEOUT = Timeouts(connect=3.0, read=4.0, host=5.0, call=10.0)

_LONGEST_LIFE = 7200.0
_SHORTEST_LIFE = 70.0  # even if the answer says less: fetches stay a minute apart


@dataclass(frozen=True, slots=True)
class Grant:
    """A new token, and its life in seconds from now (70 <= life <= 7200)."""

    value: str = field(repr=False)
    life: float


class TokenSource(Protocol):
    """A source. All methods raise ApiError, TransportError or TokenUnavailableError."""

    #: force_refresh is limited by the platform: 30 s apart, 20 a day
    force_is_limited: bool

    def fetch(self) -> Grant:
        """The current token; it may be the one that we have."""

    def is_invalid(self, token: str) -> bool:
        """Whether the source itself refuses this token, which it gave out as valid."""

    def force(self, stale: str) -> Grant:
        """A token instead of `stale`."""


class _Platform:
    """Common to both calls of the platform."""

    force_is_limited = True

    def __init__(self, client: ApiClient, appid: str, secret: str) -> None:
        """`client` is one without a token."""
        self._client = client
        self._appid = appid
        self._secret = secret

    def is_invalid(self, token: str) -> bool:
        """getcallbackip is the cheapest call that needs a token."""
        try:
            self._client.call(
                "GET",
                "/cgi-bin/getcallbackip",
                params={"access_token": token},
                repeatable=True,
                timeout=FETCH_TIMEOUT,
            )
        except InvalidTokenError:
            return True
        return False


class StableTokenSource(_Platform):
    """POST /cgi-bin/stable_token: safe beside other programs that do the same."""

    def fetch(self) -> Grant:
        return self._post(force=False)

    def force(self, stale: str) -> Grant:
        return self._post(force=True)

    def _post(self, *, force: bool) -> Grant:
        answer = self._client.call(
            "POST",
            "/cgi-bin/stable_token",
            json={
                "grant_type": "client_credential",
                "appid": self._appid,
                "secret": self._secret,
                "force_refresh": force,
            },
            repeatable=not force,  # a second forced call within 30 s only uses up the daily count
            timeout=FETCH_TIMEOUT,
        )
        return _grant(answer)


class ClassicTokenSource(_Platform):
    """GET /cgi-bin/token: each fetch replaces the token, so no other program may fetch for this account."""

    def fetch(self) -> Grant:
        answer = self._client.call(
            "GET",
            "/cgi-bin/token",
            params={"grant_type": "client_credential", "appid": self._appid, "secret": self._secret},
            repeatable=True,
            timeout=FETCH_TIMEOUT,
        )
        return _grant(answer)

    def force(self, stale: str) -> Grant:
        return self.fetch()


class CentralTokenSource:
    """A central token server that does the fetching: no AppSecret here, and no call of ours to
    the platform's token APIs. It gets the AppID, since it may have several accounts."""

    force_is_limited = False

    def __init__(
        self, base_url: str, appid: str, key: str, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._client = ApiClient([base_url], sleep=sleep)
        self._appid, self._headers = appid, {"Authorization": f"Bearer {key}"}

    def fetch(self) -> Grant:
        return self._call("GET", "/token")

    def is_invalid(self, token: str) -> bool:
        return True  # the central server checks a reported token itself

    def force(self, stale: str) -> Grant:
        return self._call("POST", "/token/refresh", json={"access_token": stale})

    def _call(self, method: str, path: str, **kwargs: Any) -> Grant:
        try:
            answer = self._client.call(
                method,
                path,
                params={"appid": self._appid},
                headers=self._headers,
                repeatable=True,
                timeout=FETCH_TIMEOUT,
                **kwargs,
            )
        except TransportError as error:
            failure = error
        else:
            return _grant(answer)
        if failure.status not in _CENTRAL_REASONS:
            raise TokenUnavailableError(
                f"the central token server failed: {failure}", "中控服务器出错", cause=Cause.CENTRAL_SERVER
            )
        english, chinese, cause = _CENTRAL_REASONS[failure.status]
        raise TokenUnavailableError(english, chinese, cause=cause)


_CENTRAL_REASONS: dict[int | None, tuple[str, str, Cause | None]] = {
    401: ("the central token server refuses the key", "中控服务器拒绝了密钥", Cause.CENTRAL_KEY),
    403: (
        "the central token server has no such AppID for this key",
        "中控服务器没有该 AppID，或密钥属于其他账号",
        Cause.CENTRAL_KEY,
    ),
    404: (
        "there is no central token server at that address",
        "该地址没有中控服务器",
        Cause.CENTRAL_SERVER,
    ),
    503: (
        "the central token server has no token itself: see its /readyz and log",
        "中控服务器自身没有可用的 token，请查看其 /readyz 与日志",
        None,
    ),
}


_TOKEN = re.compile(r"[ -~]{1,2048}")  # it travels in query strings and headers


def _grant(answer: dict[str, Any]) -> Grant:
    value, expires_in = answer.get("access_token"), answer.get("expires_in")
    try:
        life = float(expires_in) if isinstance(expires_in, int | float | str) else 0.0
    except ValueError:
        life = 0.0
    if not isinstance(value, str) or not _TOKEN.fullmatch(value):
        raise TokenUnavailableError("the answer holds no usable access_token", "返回中没有可用的 token")
    # A token without a usable expires_in may still be good.
    return Grant(value, min(life, _LONGEST_LIFE) if life > _SHORTEST_LIFE else _SHORTEST_LIFE)
