"""The faults that a test injects, and the rules that a test may change.

Knows the fields of a fault and of the rules, and how often a fault still applies. It must not know
how a fault is carried out: server.py does that, and sender.py for the callback's path.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .errors import ControlError

FAILURE_TEXT = "该公众号暂时无法提供服务，请稍后再试"


@dataclass(frozen=True, kw_only=True)
class Rules:
    """`token_life` in seconds; `deliveries` at most per push; `failure_text`: what the fan reads when all fail.

    `own_video_reply`: whether a video by the MediaId that a fan's own video came with is shown. The platform is
    reported not to: https://github.com/w7corp/easywechat/issues/2124
    """

    token_life: int = 7200
    deliveries: int = 3
    failure_text: str = FAILURE_TEXT
    own_video_reply: bool = False

    def __post_init__(self) -> None:
        if not _whole(self.token_life) or not 1 <= self.token_life <= 7200:
            raise ControlError("token_life: whole seconds from 1 to 7200", "token_life：1 到 7200 的整数秒")
        if not _whole(self.deliveries) or not 1 <= self.deliveries <= 10:
            raise ControlError("deliveries: a whole number from 1 to 10", "deliveries：1 到 10 的整数")
        if not isinstance(self.failure_text, str) or not self.failure_text:
            raise ControlError(
                "failure_text: the text that the fan reads", "failure_text：粉丝看到的失败提示"
            )
        if not isinstance(self.own_video_reply, bool):
            raise ControlError("own_video_reply: true or false", "own_video_reply：true 或 false")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault for one path. `times` None is for ever, `delay` in seconds, `truncate` in bytes.

    A fault for the callback's path changes the bot's answers instead: see sender.py. There `errcode`, `errmsg` and
    `content_type` do nothing.
    """

    path: str
    times: int | None = None
    errcode: int | None = None
    errmsg: str | None = None
    status: int | None = None
    body: str | None = None
    delay: float | None = None
    truncate: int | None = None
    disconnect: bool = False
    content_type: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path.startswith("/"):
            raise ControlError(
                "path: the exact path of a call, like /cgi-bin/token",
                "path：调用的完整路径，例如 /cgi-bin/token",
            )
        if self.path == "/" or self.path.startswith("/sandbox"):
            raise ControlError(
                "path: faults are for the platform's paths, not for the sandbox's own",
                "path：故障只用于微信平台的路径，不用于沙箱自己的路径",
            )
        for name, least in (("times", 1), ("status", 200), ("truncate", 0)):
            value = getattr(self, name)
            if value is not None and (not _whole(value) or value < least):
                raise ControlError(
                    f"{name}: a whole number from {least}, or null", f"{name}：不小于 {least} 的整数，或 null"
                )
        if self.status is not None and self.status > 599:
            raise ControlError("status: an HTTP status from 200 to 599", "status：200 到 599 的 HTTP 状态码")
        if self.errcode is not None and not _whole(self.errcode):
            raise ControlError("errcode: a whole number", "errcode：整数")
        for name in ("errmsg", "body", "content_type"):
            if not isinstance(getattr(self, name), str | None):
                raise ControlError(f"{name}: text", f"{name}：文本")
        kind = self.content_type or ""
        if not (kind.isascii() and kind.isprintable()):  # a header holds nothing else
            raise ControlError("content_type: one line of ASCII text", "content_type：单行 ASCII 文本")
        if self.delay is not None and (not _number(self.delay) or not 0 <= self.delay <= 3600):
            raise ControlError("delay: seconds, at most 3600", "delay：秒数，最多 3600")
        if not isinstance(self.disconnect, bool):
            raise ControlError("disconnect: true or false", "disconnect：true 或 false")


class Faults:
    """The faults in force, in the order in which they were given."""

    def __init__(self) -> None:
        self._faults: list[tuple[Fault, int | None]] = []

    def replace(self, faults: list[Fault]) -> None:
        self._faults = [(fault, fault.times) for fault in faults]

    def take(self, path: str) -> Fault | None:
        """The first fault for this path that still applies; it counts as used once more."""
        for index, (fault, left) in enumerate(self._faults):
            if fault.path == path and left != 0:
                self._faults[index] = (fault, None if left is None else left - 1)
                return fault
        return None

    def in_force(self) -> list[Fault]:
        """The faults that still apply."""
        return [fault for fault, left in self._faults if left != 0]


def fault_from_json(value: Any) -> Fault:
    """Raises ControlError for anything that is not a fault."""
    names = set(Fault.__dataclass_fields__)
    if not isinstance(value, dict) or not set(value) <= names or "path" not in value:
        others = ", ".join(sorted(names - {"path"}))
        raise ControlError(
            f"a fault is an object with path and of {others}", f"故障是一个对象，须有 path，可有 {others}"
        )
    return Fault(**value)


def rules_from_json(value: Any, now_in_force: Rules) -> Rules:
    """The rules with the given ones changed. Raises ControlError for unknown names and bad values."""
    names = set(Rules.__dataclass_fields__)
    if not isinstance(value, dict) or not set(value) <= names:
        known = ", ".join(sorted(names))
        raise ControlError(f"rules are an object with any of {known}", f"规则是一个对象，可有 {known}")
    return Rules(**{name: value.get(name, getattr(now_in_force, name)) for name in names})


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
