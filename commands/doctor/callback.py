"""The check of the callback: does it answer on this machine, and at PUBLIC_URL, as the platform needs it?

Knows what tunnels and proxies answer when the bot does not. No probe becomes a ledger row. Must not know other checks.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urljoin, urlsplit

import requests

from commands.doctor.findings import Outcome
from config import Settings
from web import doctor_mark
from wechat.envelope import RANDOM_BYTES, Envelope
from wechat.signature import sign

PROBE_TIMEOUTS = (3.0, 5.0)  # seconds to connect, and to answer: the platform waits for 5 s
_PAGE_BYTES = 64 * 1024


class Callback:
    """Two checks: the callback itself, and the proxies that its answers tell of."""

    def __init__(self, settings: Settings) -> None:
        assert settings.wechat_token is not None, "an account without it has no callback"
        self._settings, self._token = settings, settings.wechat_token.get_secret_value()
        self._path = settings.callback_path or ""
        self._proxies = 0

    def check(self, now: int) -> Outcome:
        """`now` in unix seconds."""
        settings = self._settings
        here = f"http://127.0.0.1:{settings.port}"
        base = settings.public_url or here
        if (trouble := _unreachable_port(base)) is not None:
            return trouble
        at = base + self._path
        probes = _probes(settings, self._token, now)
        mark = doctor_mark.mark(self._token, now)
        trouble = self._trouble_at(base, probes, mark)
        if trouble is None:
            modes = ", ".join(probe.name for probe in probes if probe.accepted)
            return Outcome(
                True,
                f"{at} answers signed requests ({modes}) and refuses others",
                f"{at} 正确回复已签名的请求（{modes}），并拒绝其他请求",
            )
        if base != here and self._trouble_at(here, probes, mark) is None:
            return Outcome(
                False,
                f"{trouble.english} (on this machine the bot answers correctly at {here}{self._path}: "
                "the fault is in the tunnel or proxy)",
                f"{trouble.chinese}（本机 {here}{self._path} 正常，问题在内网穿透或反向代理）",
            )
        return trouble

    def check_proxy(self) -> list[Outcome]:
        """Call it after `check`. An outcome only if requests come through a proxy although PROXY_HOPS is 0."""
        if not self._proxies or self._settings.proxy_hops or not self._settings.public_url:
            return []
        return [
            Outcome(
                False,
                f"{self._proxies} proxies stand in front of the bot (X-Forwarded-For) and PROXY_HOPS=0, so that all "
                f"callers have one address: set PROXY_HOPS={self._proxies}",
                f"机器人前面有 {self._proxies} 层代理（X-Forwarded-For），而 PROXY_HOPS=0，所有来访者都显示为同一地址："
                f"请设置 PROXY_HOPS={self._proxies}",
            )
        ]

    def _trouble_at(self, base: str, probes: list[_Probe], mark: str) -> Outcome | None:
        """What is wrong with the first wrong answer; None when all are right."""
        at = base + self._path
        for probe in probes:
            try:
                page = _ask(at, probe, mark)
            except requests.exceptions.SSLError:
                return Outcome(
                    False,
                    f"{base} has no valid TLS certificate, so the platform will not call it",
                    f"{base} 的 HTTPS 证书无效，平台不会访问",
                )
            except requests.exceptions.ReadTimeout:
                return Outcome(
                    False,
                    f"{at} gives no answer within 5 s, and the platform waits no longer",
                    f"{at} 在 5 秒内没有回复，平台不会再等",
                )
            except ValueError:  # requests reads the redirect though it does not follow it
                return _redirected(base, "an address that cannot be read", "无法识别的地址")
            except requests.exceptions.RequestException as error:
                return Outcome(
                    False,
                    f"nothing answers at {base} ({type(error).__name__}): start the bot, "
                    "and the tunnel or proxy in front of it",
                    f"{base} 没有回复（{type(error).__name__}），请启动机器人，以及它前面的内网穿透或反向代理",
                )
            if page.proxies.isdecimal():
                self._proxies = int(page.proxies)
            trouble = _trouble_with(page, probe, base, at)
            if trouble is not None:
                return trouble
        return None


@dataclass(frozen=True)
class _Probe:
    """A request to the callback, and the status that is right for it. No probe can become a ledger row: one with a
    right signature is a GET, or is refused for its content."""

    name: str
    method: str
    query: Mapping[str, str]
    body: bytes | None
    status: int

    @property
    def accepted(self) -> bool:
        return self.status != 403


class _Page(NamedTuple):
    """The answer to a probe."""

    status: int
    content_type: str
    text: str
    location: str
    ngrok_error: str
    proxies: str
    """How many proxies X-Forwarded-For named, as the bot tells the doctor; empty when something else answered."""


def _probes(settings: Settings, token: str, now: int) -> list[_Probe]:
    """One for each mode that the settings accept, a plain push if they refuse it, and wrongly signed ones."""
    timestamp, nonce = str(now), str(secrets.randbelow(10**9))
    signed = {"signature": sign(token, timestamp, nonce), "timestamp": timestamp, "nonce": nonce}
    wrong = {**signed, "signature": sign(secrets.token_hex(16), timestamp, nonce)}
    message = "<MsgType><![CDATA[doctor]]></MsgType>"
    # A DOCTYPE is refused after the signature was accepted, and before anything is handled or recorded.
    plain = f"<!DOCTYPE xml><xml>{message}</xml>".encode()
    echo = {"echostr": str(secrets.randbelow(9 * 10**18) + 10**18)}
    probes = [
        _Probe("GET", "GET", signed | echo, None, 200),
        _Probe("GET with a wrong signature", "GET", wrong | echo, None, 403),
        _Probe("push with a wrong signature", "POST", wrong, plain, 403),
    ]
    if settings.wechat_aes_key is None:
        compat = f"<!DOCTYPE xml><xml>{message}<Encrypt>?</Encrypt></xml>".encode()
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
        _Probe("plain", "POST", signed, plain, 400)
        if settings.wechat_accept_plaintext
        else _Probe("plain", "POST", signed, f"<xml>{message}</xml>".encode(), 403),
    ]


def _ask(url: str, probe: _Probe, mark: str) -> _Page:
    """Sends the probe with the platform's headers: a tunnel may answer browsers differently."""
    with requests.Session() as session:
        if url.startswith("http://127.0.0.1:"):
            session.trust_env = False  # a proxy of the environment does not lead to this machine
        response = session.request(
            probe.method,
            url,
            params=dict(probe.query),
            data=probe.body,
            headers={
                "User-Agent": "Mozilla/4.0",
                "Accept": "*/*",
                "Content-Type": "text/xml",
                doctor_mark.HEADER: mark,
            },
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
        response.headers.get(doctor_mark.HEADER, ""),
    )


def _redirected(base: str, where: str, where_zh: str) -> Outcome:
    return Outcome(
        False,
        f"{base} redirects to {where}, and the platform does not follow: set PUBLIC_URL to the final address",
        f"{base} 跳转到 {where_zh}，平台不会跟随，请将 PUBLIC_URL 设为最终地址",
    )


def _trouble_with(page: _Page, probe: _Probe, base: str, at: str) -> Outcome | None:
    """What is wrong with this answer; the most specific cause first."""
    code = re.search(r"ERR_NGROK_\d+", f"{page.ngrok_error} {page.text}")
    if code is not None and code[0] == "ERR_NGROK_6024":
        return Outcome(
            False,
            "ngrok's free plan shows its warning page instead of the bot (ERR_NGROK_6024), also to the platform: use "
            "another tunnel, or a plan without that page",
            "ngrok 免费版返回警告页（ERR_NGROK_6024）而非机器人的回复，平台得到的也是它：请更换内网穿透工具或套餐",
        )
    if code is not None:
        return Outcome(
            False,
            f"ngrok answers instead of the bot: {code[0]}, see https://ngrok.com/docs/errors/{code[0].lower()}; is "
            f"`ngrok http` running, for the bot's PORT?",
            f"ngrok 返回 {code[0]} 而非机器人的回复，请检查 ngrok 是否在运行、端口是否正确",
        )
    if page.status == 404:
        return Outcome(
            False,
            f"{at} does not exist (404): PUBLIC_URL is the bot's address without /wechat, or another "
            "program answers there",
            f"{at} 不存在（404）：PUBLIC_URL 是机器人的地址，不含 /wechat；或该地址是其他程序",
        )
    if 300 <= page.status < 400:
        target = urlsplit(urljoin(at, page.location))
        address = _printable(f"{target.scheme}://{target.netloc.rpartition('@')[2]}{target.path}")
        return _redirected(base, address, address)
    if page.status in (502, 503, 504):
        return Outcome(
            False,
            f"HTTP {page.status} at {base}: the proxy or tunnel there does not reach the bot; is it running on its "
            "PORT?",
            f"{base} 返回 HTTP {page.status}：反向代理或内网穿透连不到机器人，请检查机器人是否在运行、端口是否正确",
        )
    # An empty body is not a page, whatever its Content-Type.
    if page.text.strip() and "html" in page.content_type + page.text[:100].lower():
        return Outcome(
            False,
            f"an HTML page{_title(page.text)} came instead of the bot's answer: a tunnel's or proxy's own page, or "
            "another program",
            f"返回的是 HTML 页面{_title(page.text)}而非机器人的回复：内网穿透或反向代理自己的页面，或其他程序",
        )
    if page.status == probe.status and (probe.status != 200 or page.text == probe.query["echostr"]):
        return None
    return Outcome(
        False,
        f"{at} answers HTTP {page.status} to the doctor's request ({probe.name}), where HTTP {probe.status} is right: "
        "the bot there runs with other settings (WECHAT_TOKEN, WECHAT_AES_KEY, WECHAT_APPID, WECHAT_ACCEPT_PLAINTEXT) "
        "or another clock; restart it after a change",
        f"{at} 对检查请求（{probe.name}）返回 HTTP {page.status}，应为 {probe.status}："
        "该处机器人的设置或时钟与这里不同，修改设置后请重启",
    )


def _unreachable_port(base: str) -> Outcome | None:
    address = urlsplit(base)
    default = {"http": 80, "https": 443}[address.scheme]
    if address.port in (None, default) or address.hostname in ("127.0.0.1", "localhost", "::1"):
        return None
    return Outcome(
        False,
        f"PUBLIC_URL has port {address.port}, and the platform calls ports 80 (http) and 443 (https) only",
        f"PUBLIC_URL 的端口是 {address.port}，平台只访问 80（http）与 443（https）端口",
    )


def _title(html: str) -> str:
    """The page's title, by which the user recognises it."""
    found = re.search(r"<title[^>]*>([^<]{1,200})", html, re.IGNORECASE)
    words = _printable(found[1]).strip() if found else ""
    return f" ({words[:60]})" if words else ""


def _printable(text: str) -> str:
    return "".join(filter(str.isprintable, text))
