"""`flask doctor`: what keeps the bot from working, one finding a check, each with what to do about it.

Knows the checks, their order, and what an answer means in words. It leaves nothing behind: no ledger row, no token in
the shared row, no file. Must not know how findings are printed. The callback Token is in `console_entry` alone, and no
other secret anywhere: findings are made of our own words, of settings' names, and of errors that hold no secret.
Each check runs in a thread of its own, so that one that hangs holds up neither the others nor the end.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Thread
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import requests

import parts
from config import FOLDER, Settings, SettingsError
from storage.errors import DatabaseUnavailableError
from wechat.access_token import (
    FETCH_TIMEOUT,
    AccessToken,
    MemoryTokenStore,
)
from wechat.client import Answer, ApiClient, TokenSource
from wechat.envelope import RANDOM_BYTES, Envelope
from wechat.errors import ApiError, TokenUnavailableError, TransportError, WeChatError
from wechat.signature import sign
from worker.loop import MIN_FREE_BYTES

DEADLINE_SECONDS: Final = 25.0
"""When it is over, what still hangs is a finding."""

DATABASE_SECONDS: Final = 2.0
IDLE_QUEUE_SECONDS: Final = 10.0  # a living worker looks once a second
SLOW_QUEUE_SECONDS: Final = 300.0
PROBE_TIMEOUTS: Final = (3.0, 5.0)  # seconds to connect, and the platform's own patience for an answer
_PAGE_BYTES: Final = 64 * 1024

# Refused for what the account, its secret or this machine's address is: /cgi-bin/token would say the same.
_REFUSED_EITHER_WAY: Final = frozenset(
    {-1, 40001, 40002, 40013, 40125, 40164, 40243, 41002, 41004, 45009, 45011}
    | {50004, 50007, 89501, 89503, 89506, 89507}
)
_MAY_NOT_ASK: Final = frozenset(
    {45009, 45011, 48001, 50001}
)  # of callback/check: it says nothing of the callback

_ACCOUNT: Final = frozenset(
    {
        "WECHAT_APPID",
        "WECHAT_APPSECRET",
        "WECHAT_API_BASE",
        "WECHAT_TOKEN_SOURCE",
        "WECHAT_TOKEN_SOURCE_KEY",
    }
)
_DATABASE: Final = frozenset({"DATABASE_URL"})
_EVERY_SETTING: Final = frozenset(map(str.upper, Settings.model_fields))


@dataclass(frozen=True)
class Finding:
    """One line for the operator. `ok` None: it could not be checked, and `hint` says why."""

    check: str
    ok: bool | None
    hint: str


class _Outcome(NamedTuple):
    ok: bool | None
    english: str
    chinese: str


def examine(
    environ: Mapping[str, str], folder: Path = FOLDER, *, clock: Callable[[], float] = time.time
) -> Iterator[Finding]:
    """All findings in the order of the checks, each as soon as it is there; all within DEADLINE_SECONDS.

    Of faulty settings each fault is a finding of the check "settings"; what does not need them is checked all the same.
    """
    faulty: frozenset[str] = frozenset()
    try:
        settings = Settings.from_env(environ, folder)
    except SettingsError as error:
        faulty = frozenset(name for name, _ in error.faults)
        for name, what in error.faults:
            yield _finding(
                "settings",
                _Outcome(False, f"{name} {what}", f"请在环境变量或 .env 中修改 {name}"),
            )
        settings = _sound(Settings.given(environ, folder), faulty)
    else:
        mode = "AES key: safe mode" if settings.wechat_aes_key else "no AES key: plaintext mode"
        yield _finding(
            "settings", _Outcome(True, f"complete for {settings.wechat_appid} ({mode})", "配置完整")
        )
    yield from _Examination(settings, faulty, clock).findings()


def console_entry(environ: Mapping[str, str], folder: Path = FOLDER) -> str:
    """What to enter in the console, the callback Token in clear: for a terminal only. Empty if settings are faulty."""
    try:
        settings = Settings.from_env(environ, folder)
    except SettingsError:
        return ""
    unset = "" if settings.public_url else "   (PUBLIC_URL is not set / 未设置 PUBLIC_URL)"
    lines = [
        "Enter in the console, then press 提交 (在公众平台「消息与事件推送」或测试号「接口配置信息」中填写):",
        f"   URL    {settings.public_url or 'https://YOUR-HOST'}/wechat{unset}",
        f"   Token  {settings.wechat_token.get_secret_value()}",
    ]
    if settings.wechat_aes_key:
        lines.append("   EncodingAESKey  as in WECHAT_AES_KEY; mode: 安全模式 (与 WECHAT_AES_KEY 一致)")
    return "\n".join(lines)


class _Examination:
    """The checks, and what they learn from one another."""

    def __init__(self, settings: Settings, faulty: frozenset[str], clock: Callable[[], float]) -> None:
        self._settings, self._faulty, self._clock = settings, faulty, clock
        self._parts = parts.build(settings)
        self._source: TokenSource | None = None
        self._running: dict[str, Future[_Outcome]] = {}

    def findings(self) -> Iterator[Finding]:
        give_up_at = time.monotonic() + DEADLINE_SECONDS
        checks: list[tuple[str, Callable[[], _Outcome], frozenset[str]]] = [
            ("database", self._database, _DATABASE),
            ("media", self._media, frozenset({"MEDIA_STORE"})),
            ("token", self._token, _ACCOUNT | _DATABASE),
            ("platform", self._platform, _ACCOUNT | _DATABASE),
            ("callback", self._callback, _EVERY_SETTING),
            ("clock", self._skew, frozenset({"WECHAT_API_BASE", "WECHAT_TIMESTAMP_WINDOW"})),
            ("worker", self._worker, _DATABASE | {"WECHAT_APPID"}),
            ("disk", self._disk, _DATABASE | {"MEDIA_STORE"}),
        ]
        for name, check, needs in checks:
            self._running[name] = (
                _started(check) if not needs & self._faulty else _unmended(needs & self._faulty)
            )
        for name, future in self._running.items():
            try:
                outcome = future.result(max(give_up_at - time.monotonic(), 0.0))
            except TimeoutError:
                outcome = _Outcome(
                    False,
                    f"no result within {DEADLINE_SECONDS:.0f} s: the network or the name look-up (DNS) hangs",
                    "超时无结果，请检查网络与 DNS",
                )
            yield _finding(name, outcome)

    # -- what the bot stands on --------------------------------------------------------------------------------

    def _database(self) -> _Outcome:
        try:
            self._parts.database.prepare(wait=DATABASE_SECONDS)
            # A write that changes nothing: a read-only database says so.
            self._parts.tokens.release(f"doctor-{secrets.token_hex(8)}")
        except DatabaseUnavailableError as error:
            return _Outcome(False, str(error), "数据库不可用，请检查 DATABASE_URL")
        kind = "SQLite" if self._parts.database.is_sqlite else "PostgreSQL"
        return _Outcome(True, f"{kind} can be written, its schema is up to date", "数据库可写，结构为最新")

    def _media(self) -> _Outcome:
        files = self._parts.files
        try:
            stored = files.put(
                f"doctor-{secrets.token_hex(8)}", [b"?"], extension=lambda head: "bin", attempt=1
            )
            files.delete(stored.key)
        except OSError as error:
            return _Outcome(
                False,
                f"nothing can be kept in MEDIA_STORE: {error}",
                "无法写入 MEDIA_STORE，请检查路径、权限或 S3 配置",
            )
        return _Outcome(True, f"{self._settings.media_store} can be written", "媒体存储可写")

    def _disk(self) -> _Outcome:
        settings = self._settings
        # What an S3 store is given lies in the temporary folder until it is whole.
        in_bucket = settings.media_store.startswith("s3://")
        places = {"MEDIA_STORE": Path(tempfile.gettempdir() if in_bucket else settings.media_store)}
        scheme, _, path = settings.database_url.get_secret_value().partition(":///")
        if scheme == "sqlite":
            places["DATABASE_URL"] = Path(path)
        free = {name: _free_bytes(path) for name, path in places.items()}
        name = min(free, key=lambda each: free[each])
        megabytes, least = free[name] >> 20, MIN_FREE_BYTES >> 20
        if free[name] < MIN_FREE_BYTES:
            return _Outcome(
                False,
                f"{megabytes} MB are free on the disk of {name}, less than {least}: make room, downloads pause",
                f"{name} 所在磁盘仅剩 {megabytes} MB，下载已暂停，请清理空间",
            )
        return _Outcome(True, f"{megabytes} MB free", "磁盘空间充足")

    def _worker(self) -> _Outcome:
        if not self._running["database"].result().ok:
            return _Outcome(None, "not checked: the queue is in the database", "未检查：需先修复数据库")
        now = self._clock()
        try:
            status, backlog = self._parts.ledger.status(now), self._parts.ledger.backlog(now)
        except DatabaseUnavailableError as error:
            return _Outcome(False, str(error), "数据库不可用，请检查 DATABASE_URL")
        queue = (
            f"{status.pending} downloads and {status.replies_pending} sends are pending, the oldest "
            f"for {status.oldest_pending_seconds:.0f} s"
        )
        if backlog.waiting_seconds > IDLE_QUEUE_SECONDS and not backlog.held:
            start = (
                "start `flask worker` (WORKER=external)"
                if self._settings.worker == "external"
                else "start the bot (WORKER=embedded), or restart it"
            )
            return _Outcome(
                False, f"{queue}, and no worker takes them: {start}", "没有 worker 在处理队列，请启动"
            )
        if backlog.waiting_seconds > SLOW_QUEUE_SECONDS:
            return _Outcome(
                False,
                f"{queue}: the workers do not keep up, start more `flask worker` processes",
                "队列积压，请增加 worker 进程",
            )
        if not status.pending and not status.replies_pending:
            return _Outcome(True, "nothing is pending, so a worker shows no sign of life", "队列为空")
        return _Outcome(True, f"{queue}, {backlog.held} in hand", "队列处理中")

    # -- the platform ------------------------------------------------------------------------------------------

    def _token(self) -> _Outcome:
        try:
            if self._settings.wechat_token_source == "classic":  # noqa: S105  (a mode's name)
                return self._shared_token()
            return self._own_token()
        except DatabaseUnavailableError as error:
            return _Outcome(False, str(error), "数据库不可用，请检查 DATABASE_URL")
        except TokenUnavailableError as error:
            # A reason in two languages already says what to do.
            if " / " in error.reason:
                return _Outcome(False, *_two(error.reason))
            return _Outcome(
                False,
                f"{error.reason}: check the network and WECHAT_API_BASE",
                "请检查网络与 WECHAT_API_BASE",
            )

    def _own_token(self) -> _Outcome:
        """A fetch past the shared row: it disturbs nobody, since the source gives everybody the same token."""
        hosts = self._parts.client.hosts
        token = AccessToken(MemoryTokenStore(), parts.fetcher(self._settings, hosts))
        try:
            value = token.get()
        except TokenUnavailableError as error:
            if self._settings.wechat_token_source != "stable" or error.code in _REFUSED_EITHER_WAY | {None}:  # noqa: S105
                raise
            if not self._classic_works():
                raise
            return _Outcome(
                False,
                f"stable_token is refused ({_two(error.reason)[0]}), but /cgi-bin/token works: "
                "set WECHAT_TOKEN_SOURCE=classic",
                "stable_token 不可用，请设置 WECHAT_TOKEN_SOURCE=classic",
            )
        self._source = _Fetched(value)
        left = token.row().expires_at - time.time()
        return _Outcome(True, f"an access_token was handed out, good for {left:.0f} s", "已取得 access_token")

    def _classic_works(self) -> bool:
        # /cgi-bin/token and stable_token are two slots: what the bot uses now goes on.
        classic = self._settings.model_copy(update={"wechat_token_source": "classic"})
        try:
            parts.fetcher(classic, self._parts.client.hosts).fetch()
        except WeChatError:
            return False
        return True

    def _shared_token(self) -> _Outcome:
        """Of /cgi-bin/token each fetch kills the token before it, so that what is fetched must be everybody's."""
        token = self._parts.token
        if not self._running["database"].result().ok:
            return _Outcome(
                None, "not checked: a classic token is kept in the database", "未检查：需先修复数据库"
            )
        left = token.row().expires_at - time.time()
        how = "is kept"
        if left < 60:
            token.refresh()
            left, how = token.row().expires_at - time.time(), "was fetched"
        self._source = token
        return _Outcome(True, f"an access_token {how}, good for {left:.0f} s", "access_token 可用")

    def _platform(self) -> _Outcome:
        """POST callback/check: what the platform finds at the URL that its console holds.
        https://developers.weixin.qq.com/doc/service/Basic_Information/Network_Detection.html"""
        self._running["token"].result()
        if self._source is None:
            return _Outcome(None, "not checked: no access_token", "未检查：没有 access_token")
        client = ApiClient(self._parts.client.hosts, self._source)
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
                return _Outcome(
                    None,
                    f"not checked: this account may not ask now ({error.code} {error.errmsg})",
                    "未检查：该账号暂无此接口权限或额度",
                )
            if error.code == 40201:
                url = f"{self._settings.public_url or 'https://YOUR-HOST'}/wechat"
                return _Outcome(
                    False,
                    f"40201: the console holds no callback URL, or an invalid one: enter {url} and the Token there",
                    f"公众平台尚未配置有效的 URL，请填写 {url} 与 Token",
                )
            return _Outcome(False, f"{error.code} ({error.errmsg}): {error.hint_en}", error.hint_zh)
        except (TokenUnavailableError, DatabaseUnavailableError, TransportError) as error:
            return _Outcome(False, *_two(str(error), "请检查网络与 WECHAT_API_BASE"))
        return self._reached(answer)

    def _reached(self, answer: Mapping[str, object]) -> _Outcome:
        found, pings = _objects(answer.get("dns")), _objects(answer.get("ping"))
        addresses = sorted({each["ip"] for each in found if "ip" in each})
        if not addresses:
            return _Outcome(
                False,
                "the platform finds no address for the host of the console's URL: check the URL, and its DNS",
                "平台无法解析回调域名，请检查 URL 与 DNS",
            )
        lost = sorted({each.get("ip", "?") for each in pings if each.get("package_loss", "0%") != "0%"})
        if lost:
            return _Outcome(
                False,
                f"the platform cannot reach {', '.join(lost)}, where the console's URL leads: is the server up, the "
                "firewall open for ports 80 and 443, the URL in the console the right one?",
                f"平台无法连通 {', '.join(lost)}，请检查服务器、防火墙（80/443 端口）与后台 URL",
            )
        outcome = f"the platform reaches the console's URL at {', '.join(addresses)}"
        here = _addresses(urlsplit(self._settings.public_url or "").hostname)
        if here and not here & set(addresses):
            outcome += (
                f" (from here PUBLIC_URL leads to {', '.join(sorted(here))}: "
                "if no push arrives, compare it with the console's URL)"
            )
        return _Outcome(True, outcome, "平台可连通回调地址")

    def _skew(self) -> _Outcome:
        def date(answer: Answer) -> str:
            answer.close()
            return answer.header("Date")

        asked_at = self._clock()
        try:
            # Without a token the platform says 41001 at once, with its time in the headers.
            header = self._parts.client.hosts.exchange(
                "GET", "/cgi-bin/getcallbackip", read=date, repeatable=True, timeout=FETCH_TIMEOUT
            )
            theirs = parsedate_to_datetime(header).timestamp()
        except TransportError:
            return _Outcome(None, "not checked: the platform does not answer", "未检查：平台无应答")
        except ValueError:
            return _Outcome(None, "not checked: the platform's answer has no Date", "未检查：应答中没有 Date")
        off = round((asked_at + self._clock()) / 2 - theirs)
        window = self._settings.wechat_timestamp_window
        if window and abs(off) > window:
            return _Outcome(
                False,
                f"this machine's clock is {off:+d} s off the platform's, more than "
                f"WECHAT_TIMESTAMP_WINDOW={window}: every push is refused; set the clock (NTP)",
                f"本机时钟偏差 {off:+d} 秒，所有推送都会被拒绝，请校时（NTP）",
            )
        return _Outcome(True, f"{off:+d} s off the platform's", "时钟正常")

    # -- the callback ------------------------------------------------------------------------------------------

    def _callback(self) -> _Outcome:
        settings = self._settings
        here = f"http://127.0.0.1:{settings.port}"
        base = settings.public_url or here
        if (trouble := _unreachable_port(base)) is not None:
            return trouble
        probes = _probes(settings, int(self._clock()))
        trouble = _trouble_at(base, probes)
        if trouble is None:
            modes = ", ".join(probe.name for probe in probes if probe.accepted)
            return _Outcome(
                True, f"{base}/wechat answers signed requests ({modes}) and refuses others", "回调应答正常"
            )
        if base != here and _trouble_at(here, probes) is None:
            return _Outcome(
                False,
                f"{trouble.english} (the bot itself answers well on {here}/wechat: mend the tunnel or proxy before it)",
                f"{trouble.chinese}（本机 {here}/wechat 正常，请检查隧道或反向代理）",
            )
        return trouble


class _Fetched:
    """An access_token that is not renewed: a forced renewal is the bot's to make, within its day's count."""

    def __init__(self, value: str) -> None:
        self._value = value

    def get(self) -> str:
        return self._value

    def renew(self, stale: str) -> str:
        raise TokenUnavailableError(
            "the platform refuses the access_token that it has just handed out: does another program force "
            "new ones for this account? / 平台拒绝刚取得的 token，请检查是否有其他程序在强制刷新"
        )


# -- probes of the callback ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Probe:
    """A request to the callback and the status that is right for it. None of them can become a ledger row: what is
    rightly signed is a GET, or has no sender in its message, which is looked at after signature and envelope."""

    name: str
    method: str
    query: Mapping[str, str]
    body: bytes | None
    status: int

    @property
    def accepted(self) -> bool:
        return self.status != 403


class _Page(NamedTuple):
    """What came back."""

    status: int
    content_type: str
    text: str
    location: str
    ngrok_error: str


def _probes(settings: Settings, now: int) -> list[_Probe]:
    """One for each mode that the settings accept, one for a plain push that they refuse, and wrongly signed ones."""
    token = settings.wechat_token.get_secret_value()
    timestamp, nonce = str(now), str(secrets.randbelow(10**9))
    signed = {"signature": sign(token, timestamp, nonce), "timestamp": timestamp, "nonce": nonce}
    wrong = {**signed, "signature": sign(secrets.token_hex(16), timestamp, nonce)}
    message = "<MsgType><![CDATA[doctor]]></MsgType>"
    plain = f"<xml>{message}</xml>".encode()
    echo = {"echostr": str(secrets.randbelow(9 * 10**18) + 10**18)}
    probes = [
        _Probe("GET", "GET", signed | echo, None, 200),
        _Probe("GET with a wrong signature", "GET", wrong | echo, None, 403),
        _Probe("push with a wrong signature", "POST", wrong, plain, 403),
    ]
    if settings.wechat_aes_key is None:
        compat = f"<xml>{message}<Encrypt>?</Encrypt></xml>".encode()
        return [
            *probes,
            _Probe("plain", "POST", signed, plain, 400),
            _Probe("compat", "POST", signed | {"encrypt_type": "aes"}, compat, 400),
        ]
    envelope = Envelope(settings.wechat_aes_key.get_secret_value(), settings.wechat_appid)
    encrypt = envelope.seal(plain, secrets.token_bytes(RANDOM_BYTES))
    sealed = {
        **signed,
        "encrypt_type": "aes",
        "msg_signature": sign(token, timestamp, nonce, encrypt),
    }
    return [
        *probes,
        _Probe("safe", "POST", sealed, f"<xml><Encrypt>{encrypt}</Encrypt></xml>".encode(), 400),
        _Probe("compat", "POST", sealed, f"<xml>{message}<Encrypt>{encrypt}</Encrypt></xml>".encode(), 400),
        _Probe("plain", "POST", signed, plain, 400 if settings.wechat_accept_plaintext else 403),
    ]


def _trouble_at(base: str, probes: list[_Probe]) -> _Outcome | None:
    """What is wrong with the first probe that goes wrong; None when all are answered as they should be."""
    for probe in probes:
        try:
            page = _ask(f"{base}/wechat", probe)
        except requests.exceptions.SSLError:
            return _Outcome(
                False,
                f"{base} has no valid TLS certificate, so the platform will not call it",
                "HTTPS 证书无效，平台不会访问",
            )
        except requests.exceptions.ReadTimeout:
            return _Outcome(
                False,
                f"{base}/wechat gives no answer within 5 s, and the platform waits no longer",
                "5 秒内无应答，平台不会再等",
            )
        except requests.exceptions.RequestException as error:
            return _Outcome(
                False,
                f"nothing answers at {base} ({type(error).__name__}): start the bot, and the tunnel or proxy before it",
                "无法连接，请启动机器人与隧道/反向代理",
            )
        trouble = _trouble_with(page, probe, base)
        if trouble is not None:
            return trouble
    return None


def _ask(url: str, probe: _Probe) -> _Page:
    """The answer to a request that looks like the platform's: a tunnel may answer a browser otherwise."""
    with requests.Session() as session:
        if url.startswith("http://127.0.0.1:"):
            session.trust_env = False  # nobody else's proxy leads to this machine
        response = session.request(
            probe.method,
            url,
            params=dict(probe.query),
            data=probe.body,
            headers={"User-Agent": "Mozilla/4.0", "Accept": "*/*", "Content-Type": "text/xml"},
            timeout=PROBE_TIMEOUTS,
            allow_redirects=False,
            stream=True,
        )
        body = b""
        for chunk in response.iter_content(_PAGE_BYTES):
            body += chunk
            if len(body) > _PAGE_BYTES:
                break
    return _Page(
        response.status_code,
        response.headers.get("Content-Type", ""),
        body.decode("utf-8", "replace"),
        response.headers.get("Location", ""),
        response.headers.get("Ngrok-Error-Code", ""),
    )


def _trouble_with(page: _Page, probe: _Probe, base: str) -> _Outcome | None:
    """What is wrong with this answer, the most telling first."""
    code = re.search(r"ERR_NGROK_\d+", f"{page.ngrok_error} {page.text}")
    if code is not None and code[0] == "ERR_NGROK_6024":
        return _Outcome(
            False,
            "ngrok's free plan shows its warning page instead of the bot (ERR_NGROK_6024), also to the platform: use "
            "another tunnel, or a plan without that page",
            "ngrok 免费版返回警告页而非机器人的应答，请更换隧道或套餐",
        )
    if code is not None:
        return _Outcome(
            False,
            f"ngrok answers instead of the bot: {code[0]}, see https://ngrok.com/docs/errors/{code[0].lower()}; is "
            f"`ngrok http` running, for the bot's PORT?",
            f"ngrok 返回 {code[0]}，请检查隧道是否在运行、端口是否正确",
        )
    if page.status == 404:
        return _Outcome(
            False,
            f"{base}/wechat does not exist (404): PUBLIC_URL is the bot's address without /wechat, or another "
            "program answers there",
            "404：PUBLIC_URL 不应包含 /wechat，或该地址是其他程序",
        )
    if 300 <= page.status < 400:
        target = urlsplit(page.location)
        return _Outcome(
            False,
            f"{base} redirects to {target.scheme}://{target.hostname}, and the platform does not follow: set "
            "PUBLIC_URL to the final address",
            "该地址发生跳转，请将 PUBLIC_URL 设为最终地址",
        )
    if page.status in (502, 503, 504):
        return _Outcome(
            False,
            f"HTTP {page.status} at {base}: the proxy or tunnel there does not reach the bot; is it running on its "
            "PORT?",
            f"HTTP {page.status}：代理或隧道无法连到机器人，请检查其是否在运行、端口是否正确",
        )
    # An empty body is no page, whatever it says of itself.
    if page.text.strip() and "html" in page.content_type + page.text[:100].lower():
        return _Outcome(
            False,
            f"an HTML page{_title(page.text)} came instead of the bot's answer: a tunnel's or proxy's own page, or "
            "another program",
            "返回的是 HTML 页面而非机器人的应答，请检查隧道或反向代理",
        )
    if page.status == probe.status and (probe.status != 200 or page.text == probe.query["echostr"]):
        return None
    return _Outcome(
        False,
        f"{base}/wechat answers HTTP {page.status} to a {probe.name} request, where HTTP {probe.status} is right: "
        "the bot there runs with other settings (WECHAT_TOKEN, WECHAT_AES_KEY, WECHAT_APPID, WECHAT_ACCEPT_PLAINTEXT) "
        "or another clock; restart it after a change",
        "该处机器人的配置或时钟与此不同，修改配置后请重启",
    )


def _unreachable_port(base: str) -> _Outcome | None:
    address = urlsplit(base)
    default = {"http": 80, "https": 443}[address.scheme]
    if address.port in (None, default) or address.hostname in ("127.0.0.1", "localhost", "::1"):
        return None
    return _Outcome(
        False,
        f"PUBLIC_URL has port {address.port}, and the platform calls ports 80 (http) and 443 (https) only",
        "平台只访问 80（http）与 443（https）端口",
    )


def _title(html: str) -> str:
    """The page's title, to recognise it by; only what can be printed."""
    found = re.search(r"<title[^>]*>([^<]{1,200})", html, re.IGNORECASE)
    words = "".join(filter(str.isprintable, found[1])).strip() if found else ""
    return f" ({words[:60]})" if words else ""


# -- small parts ----------------------------------------------------------------------------------------------------


def _finding(check: str, outcome: _Outcome) -> Finding:
    return Finding(check, outcome.ok, " ".join(f"{outcome.english} / {outcome.chinese}".split()))


def _sound(given: dict[str, str], faulty: frozenset[str]) -> Settings:
    """The settings without the faulty ones. What they need is made up: no check that needs it will run."""
    rest = {name: value for name, value in given.items() if name not in faulty}
    if "WECHAT_AES_KEY" not in rest:
        rest.pop("WECHAT_AES_KEY_PREVIOUS", None)
    names = ("WECHAT_APPID", "WECHAT_TOKEN", "WECHAT_APPSECRET", "WECHAT_TOKEN_SOURCE_KEY")
    return Settings.model_validate(dict.fromkeys(names, "unset") | rest)


def _started(check: Callable[[], _Outcome]) -> Future[_Outcome]:
    """The check in a thread that nobody waits for at the end of the process."""
    future: Future[_Outcome] = Future()

    def run() -> None:
        try:
            future.set_result(check())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _unmended(names: frozenset[str]) -> Future[_Outcome]:
    future: Future[_Outcome] = Future()
    settings = ", ".join(sorted(names))
    future.set_result(
        _Outcome(None, f"not checked before {settings} is mended", f"未检查：请先修改 {settings}")
    )
    return future


def _two(reason: str, chinese: str = "") -> tuple[str, str]:
    """English and Chinese of a reason that has both, or with the Chinese given."""
    english, _, rest = reason.partition(" / ")
    return english, rest or chinese


def _objects(value: object) -> list[dict[str, str]]:
    """The list of JSON objects with texts that it should be."""
    listed = value if isinstance(value, list) else []
    return [{str(k): str(v) for k, v in each.items()} for each in listed if isinstance(each, dict)]


def _addresses(host: str | None) -> set[str]:
    try:
        return {str(info[4][0]) for info in socket.getaddrinfo(host, None, socket.AF_INET)} if host else set()
    except (OSError, UnicodeError):
        return set()


def _free_bytes(path: Path) -> int:
    """Of the disk where `path` is or will be."""
    return shutil.disk_usage(next(each for each in (path, *path.parents) if os.path.isdir(each))).free
