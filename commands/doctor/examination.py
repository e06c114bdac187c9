"""`flask doctor`: what keeps the bot from working, one finding a check, each with what to do about it.

Knows the checks and their order. Must not know how findings are printed. It leaves nothing behind: no ledger row, no
token in the shared row, no file. Each check runs in a thread of its own, so that one that hangs holds up neither the
others nor the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

import parts
from commands.doctor import stores
from commands.doctor.callback import check_callback
from commands.doctor.findings import Finding, Outcome, finding
from commands.doctor.platform import Platform
from config import FOLDER, Settings, SettingsError

DEADLINE_SECONDS = 25.0
"""When it is over, what still hangs is a finding."""

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
_EVERY_SETTING = frozenset(map(str.upper, Settings.model_fields))


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
        faulty = frozenset(fault.name for fault in error.faults)
        for name, english, chinese in error.faults:
            yield finding("settings", Outcome(False, f"{name} {english}", f"{name} {chinese}"))
        settings = _without(Settings.given(environ, folder), faulty)
    else:
        mode = "AES key: safe mode" if settings.wechat_aes_key else "no AES key: plaintext mode"
        yield finding("settings", Outcome(True, f"complete for {settings.wechat_appid} ({mode})", "配置完整"))
    yield from _Examination(settings, faulty, clock).findings()


class _Examination:
    """The checks, each in a thread, and what they learn from one another."""

    def __init__(self, settings: Settings, faulty: frozenset[str], clock: Callable[[], float]) -> None:
        self._settings, self._faulty, self._clock = settings, faulty, clock
        self._parts = parts.build(settings)
        self._platform = Platform(self._parts, clock)
        self._running: dict[str, Future[Outcome]] = {}

    def findings(self) -> Iterator[Finding]:
        give_up_at = time.monotonic() + DEADLINE_SECONDS
        checks: list[tuple[str, Callable[[], Outcome], frozenset[str]]] = [
            ("database", lambda: stores.check_database(self._parts), _DATABASE),
            ("media", lambda: stores.check_media(self._parts), frozenset({"MEDIA_STORE"})),
            ("token", self._token, _ACCOUNT | _DATABASE),
            ("platform", self._callback_url, _ACCOUNT | _DATABASE),
            ("callback", lambda: check_callback(self._settings, int(self._clock())), _EVERY_SETTING),
            ("clock", self._platform.check_clock, frozenset({"WECHAT_API_BASE", "WECHAT_TIMESTAMP_WINDOW"})),
            ("worker", self._queue, _DATABASE | {"WECHAT_APPID"}),
            ("disk", lambda: stores.check_disk(self._settings), _DATABASE | {"MEDIA_STORE"}),
        ]
        for name, check, needs in checks:
            faults = needs & self._faulty
            self._running[name] = _not_checked_before(faults) if faults else _started(check)
        for name, future in self._running.items():
            try:
                outcome = future.result(max(give_up_at - time.monotonic(), 0.0))
            except TimeoutError:
                outcome = Outcome(
                    False,
                    f"no result within {DEADLINE_SECONDS:.0f} s: the network or the name look-up (DNS) hangs",
                    "超时无结果，请检查网络与 DNS",
                )
            yield finding(name, outcome)

    def _database_works(self) -> bool:
        return bool(self._running["database"].result().ok)

    def _token(self) -> Outcome:
        if self._settings.wechat_token_source == "classic" and not self._database_works():  # noqa: S105  (a mode's name)
            return Outcome(
                None, "not checked: a classic token is kept in the database", "未检查：需先修复数据库"
            )
        return self._platform.check_token()

    def _callback_url(self) -> Outcome:
        self._running["token"].result()
        return self._platform.check_callback_url()

    def _queue(self) -> Outcome:
        if not self._database_works():
            return Outcome(None, "not checked: the queue is in the database", "未检查：需先修复数据库")
        return stores.check_queue(self._parts, self._clock())


def _without(given: dict[str, str], faulty: frozenset[str]) -> Settings:
    """The settings without the faulty ones. What they need is made up: no check that needs it will run."""
    rest = {name: value for name, value in given.items() if name not in faulty}
    if "WECHAT_AES_KEY" not in rest:
        rest.pop("WECHAT_AES_KEY_PREVIOUS", None)
    names = ("WECHAT_APPID", "WECHAT_TOKEN", "WECHAT_APPSECRET", "WECHAT_TOKEN_SOURCE_KEY")
    return Settings.model_validate(dict.fromkeys(names, "unset") | rest)


def _started(check: Callable[[], Outcome]) -> Future[Outcome]:
    """The check in a thread that nobody waits for at the end of the process."""
    future: Future[Outcome] = Future()

    def run() -> None:
        try:
            future.set_result(check())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future


def _not_checked_before(names: frozenset[str]) -> Future[Outcome]:
    future: Future[Outcome] = Future()
    settings = ", ".join(sorted(names))
    future.set_result(
        Outcome(None, f"not checked before {settings} is mended", f"未检查：请先修改 {settings}")
    )
    return future
