"""The checks that call the platform: the access_token, the platform's view of the callback, and the clock.

Gets a token without replacing the one that the bot uses. Must not know the stores, or what the callback answers.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit
from urllib.request import getproxies

import parts
from commands.doctor.findings import Outcome
from config import token_reason
from parts import Parts
from storage.errors import DatabaseUnavailableError
from wechat.access_token import AccessToken, MemoryTokenStore
from wechat.client import CurrentToken
from wechat.errors import ApiError, TokenUnavailableError, TransportError, WeChatError
from wechat.token_sources import FETCH_TIMEOUT
from wechat.transport import Answer, place

# The account, its secret or this machine's address is refused: /cgi-bin/token would answer the same.
_REFUSED_EITHER_WAY = frozenset(
    {-1, 40001, 40002, 40013, 40125, 40164, 40243, 41002, 41004, 45009, 45011}
    | {50004, 50007, 89501, 89503, 89506, 89507}
)
# callback/check was refused: this says nothing of the callback.
_MAY_NOT_ASK = frozenset({45009, 45011, 48001, 50001})


class Platform:
    """The checks that call the platform, and the token that the first one gets for the others."""

    def __init__(self, bot: Parts, clock: Callable[[], float]) -> None:
        self._bot, self._settings, self._clock = bot, bot.settings, clock
        self._source: CurrentToken | None = None

    def check_token(self) -> Outcome:
        try:
            if self._settings.wechat_token_source == "classic":  # noqa: S105  (a mode's name)
                return self._shared_token()
            return self._own_token()
        except DatabaseUnavailableError as error:
            return Outcome(False, str(error), "数据库不可用，请检查 DATABASE_URL")
        except TokenUnavailableError as error:
            if error.what_zh:  # a reason in two languages already says what to do
                return Outcome(False, error.reason, error.what_zh)
            return Outcome(
                False,
                f"{error.reason}: check the network and WECHAT_API_BASE; {_proxy_hint()[0]}",
                f"{error.reason}：请检查网络与 WECHAT_API_BASE；{_proxy_hint()[1]}",
            )

    def _own_token(self) -> Outcome:
        """Fetches without the shared row. It replaces no token: this source gives all callers the same one."""
        source = parts.token_source(self._settings, self._bot.client.with_token(None))
        token = AccessToken(MemoryTokenStore(), source, explained=token_reason)
        try:
            value = token.get()
        except TokenUnavailableError as error:
            if self._settings.wechat_token_source != "stable" or error.code in _REFUSED_EITHER_WAY | {None}:  # noqa: S105
                raise
            if not self._classic_works():
                raise
            return Outcome(
                False,
                f"stable_token is refused ({error.reason}), but /cgi-bin/token works: "
                "set WECHAT_TOKEN_SOURCE=classic",
                f"stable_token 被拒绝（{error.what_zh or error.reason}），但 /cgi-bin/token 可用："
                "请设置 WECHAT_TOKEN_SOURCE=classic",
            )
        self._source = _Fetched(value)
        left = token.row().expires_at - time.time()
        return Outcome(
            True,
            f"an access_token was handed out, good for {left:.0f} s",
            f"已取得 access_token，{left:.0f} 秒内有效",
        )

    def _classic_works(self) -> bool:
        # A token of /cgi-bin/token does not replace the one of stable_token, which the bot uses.
        classic = self._settings.model_copy(update={"wechat_token_source": "classic"})
        try:
            parts.token_source(classic, self._bot.client.with_token(None)).fetch()
        except WeChatError:
            return False
        return True

    def _shared_token(self) -> Outcome:
        """Each fetch from /cgi-bin/token ends the token before it, so the new one must go into the shared row."""
        token = self._bot.token
        left = token.row().expires_at - time.time()
        how = "is kept"
        if left < 60:
            token.replace(token.row().value, at_once=True)
            left, how = token.row().expires_at - time.time(), "was fetched"
        self._source = token
        return Outcome(
            True, f"an access_token {how}, good for {left:.0f} s", f"access_token 可用，{left:.0f} 秒内有效"
        )

    def check_callback_url(self) -> Outcome:
        """POST callback/check: how the platform reaches the URL in its console.

        https://developers.weixin.qq.com/doc/service/Basic_Information/Network_Detection.html
        """
        if self._source is None:
            return Outcome(None, "not checked: no access_token", "未检查：没有 access_token")
        client = self._bot.client.with_token(self._source)
        try:
            answer = client.call(
                "POST",
                "/cgi-bin/callback/check",
                json={"action": "all", "check_operator": "DEFAULT"},
                repeatable=True,
                timeout=FETCH_TIMEOUT,
            )
        except ApiError as error:
            if error.code in _MAY_NOT_ASK:
                return Outcome(
                    None,
                    f"not checked: this account may not ask now ({error.code} {error.errmsg})",
                    f"未检查：该账号暂无此接口权限或额度（{error.code}）",
                )
            if error.code == 40201:
                url = f"{self._settings.public_url or 'https://YOUR-HOST'}{self._settings.callback_path}"
                return Outcome(
                    False,
                    f"40201: the console holds no callback URL, or an invalid one: enter {url} and the Token there",
                    f"40201：公众平台没有填写服务器地址(URL)，或地址无效，请填写 {url} 与令牌(Token)",
                )
            return Outcome(
                False, f"{error.code} ({error.errmsg}): {error.hint_en}", f"{error.code}：{error.hint_zh}"
            )
        except (TokenUnavailableError, TransportError) as error:
            return Outcome(False, error.what, error.what_zh or "请检查网络与 WECHAT_API_BASE")
        except DatabaseUnavailableError as error:
            return Outcome(False, str(error), "数据库不可用，请检查 DATABASE_URL")
        return self._reached(answer)

    def _reached(self, answer: Mapping[str, object]) -> Outcome:
        found, pings = _objects(answer.get("dns")), _objects(answer.get("ping"))
        addresses = sorted({each["ip"] for each in found if "ip" in each})
        if not addresses:
            return Outcome(
                False,
                "the platform finds no address for the host of the console's URL: check the URL, and its DNS",
                "平台无法解析公众平台所填 URL 的域名，请检查 URL 与 DNS",
            )
        lost = sorted({each.get("ip", "?") for each in pings if each.get("package_loss", "0%") != "0%"})
        if lost:
            return Outcome(
                False,
                f"the platform cannot reach {', '.join(lost)}, where the console's URL leads: is the server up, the "
                "firewall open for ports 80 and 443, the URL in the console the right one?",
                f"平台无法连通 {', '.join(lost)}，请检查服务器是否在运行、防火墙（80、443 端口）与公众平台所填的 URL",
            )
        english = f"the platform reaches the console's URL at {', '.join(addresses)}"
        chinese = f"平台可连通公众平台所填的 URL（{', '.join(addresses)}）"
        here = _addresses(urlsplit(self._settings.public_url or "").hostname)
        if here and not here & set(addresses):
            english += (
                f" (from here PUBLIC_URL leads to {', '.join(sorted(here))}: "
                "if no push arrives, compare it with the console's URL)"
            )
            chinese += f"（从本机看 PUBLIC_URL 指向 {', '.join(sorted(here))}：收不到推送时请核对两者）"
        return Outcome(True, english, chinese)

    def check_clock(self) -> Outcome:
        def date(answer: Answer) -> str:
            answer.close()
            return answer.header("Date")

        asked_at = self._clock()
        try:
            # Without a token the platform says 41001 at once, with its time in the headers.
            header = self._bot.client.with_token(None).exchange(
                "GET", "/cgi-bin/getcallbackip", read=date, repeatable=True, timeout=FETCH_TIMEOUT
            )
            theirs = parsedate_to_datetime(header).timestamp()
        except TransportError:
            return Outcome(None, "not checked: the platform does not answer", "未检查：平台没有回复")
        except (ValueError, OverflowError):
            return Outcome(None, "not checked: the platform's answer has no Date", "未检查：回复中没有 Date")
        off = round((asked_at + self._clock()) / 2 - theirs)
        window = self._settings.wechat_timestamp_window
        if window and abs(off) > window:
            return Outcome(
                False,
                f"this machine's clock is {off:+d} s off the platform's, more than "
                f"WECHAT_TIMESTAMP_WINDOW={window}: every push is refused; set the clock (NTP)",
                f"本机时钟与平台相差 {off:+d} 秒，超出 WECHAT_TIMESTAMP_WINDOW={window}，"
                "所有推送都会被拒绝，请校时（NTP）",
            )
        lease = self._settings.lease_seconds
        if abs(off) > lease and not self._bot.database.is_sqlite:
            return Outcome(
                False,
                f"this machine's clock is {off:+d} s off the platform's, more than LEASE_SECONDS={lease:g}: "
                "machines with one database take each other's work; set the clock (NTP)",
                f"本机时钟与平台相差 {off:+d} 秒，超出 LEASE_SECONDS={lease:g}，"
                "共用数据库的各台机器会互相抢走任务，请校时（NTP）",
            )
        return Outcome(True, f"{off:+d} s off the platform's", f"与平台相差 {off:+d} 秒")


class _Fetched:
    """An access_token that is never renewed: forced renewals are limited by the day, and left to the bot."""

    def __init__(self, value: str) -> None:
        self._value = value

    def get(self) -> str:
        return self._value

    def replace(self, stale: str) -> str:
        raise TokenUnavailableError(
            "the platform refuses the access_token that it has just handed out: does another program force "
            "new ones for this account?",
            "平台拒绝刚取得的 token，请检查是否有其他程序在强制刷新",
        )


def _proxy_hint() -> tuple[str, str]:
    """How HTTPS_PROXY may be the reason that the platform is not reached."""
    proxy = getproxies().get("https")
    if not proxy:
        return (
            "if this machine reaches the Internet through a proxy, set HTTPS_PROXY",
            "若本机须经代理上网，请设置 HTTPS_PROXY",
        )
    found = place(proxy if "://" in proxy else f"http://{proxy}")
    if found is None:
        return "HTTPS_PROXY must be like http://host:port", "HTTPS_PROXY 必须形如 http://主机:端口"
    where = f"{found[0]}:{found[1]}"
    return f"HTTPS_PROXY leads to {where}, is that right?", f"HTTPS_PROXY 指向 {where}，是否正确？"


def _objects(value: object) -> list[dict[str, str]]:
    """The value as a list of objects with texts; empty if it is something else."""
    listed = value if isinstance(value, list) else []
    return [{str(k): str(v) for k, v in each.items()} for each in listed if isinstance(each, dict)]


def _addresses(host: str | None) -> set[str]:
    try:
        return {str(info[4][0]) for info in socket.getaddrinfo(host, None, socket.AF_INET)} if host else set()
    except (OSError, UnicodeError):
        return set()
