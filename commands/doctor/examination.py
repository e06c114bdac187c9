"""Runs the checks of `flask doctor`. Each gives findings: what is wrong, and what to do about it.

Knows the checks and their order. Must not know how findings are printed. Leaves nothing behind: no ledger row, no
access_token in the shared row, no file. Each check runs in its own thread, so that one that hangs delays neither the
others nor the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

import handlers
import parts
from commands.doctor import stores
from commands.doctor.callback import Callback
from commands.doctor.findings import Finding, Outcome, finding
from commands.doctor.platform import Platform
from commands.doctor.refusals import refused_lately
from commands.doctor.settings import exposed_secrets, unknown_names
from config import FOLDER, NAMES, Settings, SettingsError, name_of, texts_of

DEADLINE_SECONDS = 25.0
"""A check that has no result by then is a finding itself."""

ONLY_WHEN_WRONG = frozenset({"secrets", "proxy", "refused"})

_ACCOUNT = frozenset(
    {
        "WECHAT_APPID",
        "WECHAT_APPSECRET",
        "WECHAT_API_BASE",
        "WECHAT_TOKEN_SOURCE",
        "WECHAT_TOKEN_SOURCE_KEY",
    }
)
_DATABASE = frozenset({"DATABASE_URL"})
_EVERY_SETTING = frozenset(NAMES)


def examine(
    environ: Mapping[str, str],
    folder: Path = FOLDER,
    *,
    account: str = "",
    clock: Callable[[], float] = time.time,
) -> Iterator[Finding]:
    """All findings in the order of the checks, each as soon as it is known; all within DEADLINE_SECONDS.

    Each faulty setting is a finding of the check "settings". Checks that do not need it still run.
    The checks "secrets", "handlers", "proxy" and "refused" have findings only when something is wrong.
    """
    faulty: frozenset[str] = frozenset()
    names: list[str] = []
    try:
        of_each = {one.account: one for one in Settings.of_accounts(environ, folder)}
        settings, names = of_each[account], [name for name in of_each if name]
    except SettingsError as error:
        own, common = texts_of(Settings.unchecked(environ, folder), account)
        named = {fault.name for fault in error.faults}
        faulty = frozenset(
            name for name in NAMES if name_of(name, account, given_for_all=name in common) in named
        )
        wrong = [
            Outcome(False, f"{name} {english}", f"{name} {chinese}")
            for name, english, chinese in error.faults
        ]
        settings = _without(common | own | {"ACCOUNT": account}, faulty)
    else:
        wrong = []
    wrong += unknown_names(environ, folder)
    if wrong:
        yield from (finding("settings", outcome) for outcome in wrong)
    else:
        english = "AES key: safe mode" if settings.wechat_aes_key else "no AES key: plaintext mode"
        chinese = "有 AES 密钥，安全模式" if settings.wechat_aes_key else "无 AES 密钥，明文模式"
        if settings.wechat_token is None:
            english, chinese = "no WECHAT_TOKEN: no callback", "未设置 WECHAT_TOKEN，没有回调"
        english = f"complete for {settings.wechat_appid} ({english})"
        chinese = f"{settings.wechat_appid} 的设置完整（{chinese}）"
        sends = settings.late_reply == "customer_service" or settings.echo_via == "upload"
        if sends and settings.wechat_token is not None:
            english += "; late replies are customer-service messages, which an unverified account may not send (48001)"
            chinese += "；迟到的回复用客服消息发送，未认证的公众号不能发送（48001）"
        yield finding("settings", Outcome(True, english, chinese))
    yield from (finding("secrets", outcome) for outcome in exposed_secrets(settings, folder))
    try:
        handlers.check(names)
    except handlers.HandlerError as error:
        yield finding("handlers", Outcome(False, str(error), f"处理函数表有误：{error}"))
    yield from _Examination(settings, faulty, clock).findings()


class _Examination:
    """The running checks, and the results of one that another needs."""

    def __init__(self, settings: Settings, faulty: frozenset[str], clock: Callable[[], float]) -> None:
        self._settings, self._faulty, self._clock = settings, faulty, clock
        self._parts = parts.build(settings).of[settings.account]
        self._platform = Platform(self._parts, clock)
        self._running: dict[str, Future[list[Outcome]]] = {}

    def findings(self) -> Iterator[Finding]:
        give_up_at = time.monotonic() + DEADLINE_SECONDS
        checks: list[tuple[str, Callable[[], list[Outcome]], frozenset[str]]] = [
            ("database", lambda: [stores.check_database(self._parts)], _DATABASE),
            ("media", lambda: [stores.check_media(self._parts)], frozenset({"MEDIA_STORE"})),
            ("token", self._token, _ACCOUNT | _DATABASE),
        ]
        if self._settings.wechat_token is not None:
            callback = Callback(self._settings)
            checks += [
                ("platform", self._callback_url, _ACCOUNT | _DATABASE),
                ("callback", lambda: [callback.check(int(self._clock()))], _EVERY_SETTING),
                ("proxy", lambda: self._proxy(callback), _EVERY_SETTING),
                ("refused", self._refused, _EVERY_SETTING),
            ]
        checks += [
            (
                "clock",
                lambda: [self._platform.check_clock()],
                frozenset({"WECHAT_API_BASE", "WECHAT_TIMESTAMP_WINDOW"}),
            ),
            ("worker", self._queue, _DATABASE | {"WECHAT_APPID"}),
            ("disk", lambda: [stores.check_disk(self._settings)], _DATABASE | {"MEDIA_STORE"}),
        ]
        for name, check, needs in checks:
            faults = needs & self._faulty
            if not faults:
                self._running[name] = _started(check)
            elif name not in ONLY_WHEN_WRONG:
                self._running[name] = _not_checked_until_corrected(faults)
        for name, future in self._running.items():
            try:
                outcomes = future.result(max(give_up_at - time.monotonic(), 0.0))
            except TimeoutError:
                outcomes = [
                    Outcome(
                        False,
                        f"no result within {DEADLINE_SECONDS:.0f} s: the network or the name look-up (DNS) hangs",
                        f"{DEADLINE_SECONDS:.0f} 秒内无结果，请检查网络与 DNS",
                    )
                ]
            yield from (finding(name, outcome) for outcome in outcomes)

    def _database_works(self) -> bool:
        return bool(self._running["database"].result()[0].ok)

    def _token(self) -> list[Outcome]:
        if self._settings.wechat_token_source == "classic" and not self._database_works():  # noqa: S105  (a mode's name)
            return [
                Outcome(
                    None,
                    "not checked: a classic token is kept in the database",
                    "未检查：classic 方式的 token 保存在数据库中，请先修复数据库",
                )
            ]
        return [self._platform.check_token()]

    def _callback_url(self) -> list[Outcome]:
        self._running["token"].result()
        return [self._platform.check_callback_url()]

    def _proxy(self, callback: Callback) -> list[Outcome]:
        self._running["callback"].result()
        return callback.check_proxy()

    def _refused(self) -> list[Outcome]:
        if not self._database_works() or not self._parts.database.is_prepared():
            return []
        # If the bot runs with other settings, its refusals say nothing of these; the callback's check tells that.
        if not self._running["callback"].result()[0].ok:
            return []
        return list(refused_lately(self._parts.refusals, self._settings, self._clock()))

    def _queue(self) -> list[Outcome]:
        if not self._database_works():
            return [Outcome(None, "not checked: the queue is in the database", "未检查：请先修复数据库")]
        if not self._parts.database.is_prepared():
            return [Outcome(True, "nothing was ever pending", "还没有过待处理的任务")]
        queue = stores.check_queue(self._parts, self._clock())
        embedded = self._settings.worker == "embedded"
        callback = self._running.get("callback")
        if queue.ok is False and embedded and callback is not None and not callback.result()[0].ok:
            # Embedded workers stop with the bot: the callback's finding already says so.
            return [Outcome(None, "not checked: the bot does not answer", "未检查：机器人没有回复")]
        return [queue]


def _without(environ: dict[str, str], faulty: frozenset[str]) -> Settings:
    """Settings with made-up values for the faulty ones: no check that needs a faulty one runs."""
    faultless = {name: value for name, value in environ.items() if name not in faulty}
    if "WECHAT_AES_KEY" not in faultless:
        faultless.pop("WECHAT_AES_KEY_PREVIOUS", None)
    names = ("WECHAT_APPID", "WECHAT_TOKEN", "WECHAT_APPSECRET", "WECHAT_TOKEN_SOURCE_KEY")
    return Settings.model_validate(dict.fromkeys(names, "unset") | faultless)


def _started(check: Callable[[], list[Outcome]]) -> Future[list[Outcome]]:
    """Runs the check in a daemon thread, so that the process can end while it hangs."""
    future: Future[list[Outcome]] = Future()

    def run() -> None:
        try:
            future.set_result(check())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _not_checked_until_corrected(names: frozenset[str]) -> Future[list[Outcome]]:
    future: Future[list[Outcome]] = Future()
    settings = ", ".join(sorted(names))
    future.set_result(
        [Outcome(None, f"not checked until {settings} is corrected", f"未检查：请先修改 {settings}")]
    )
    return future
