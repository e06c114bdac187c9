"""A fan of the account: the chat as the fan sees it, and what the account may still send.

Knows the send rights (下发额度) and the typing hint. It must not know HTTP, tokens or XML; `now` is the
sandbox's clock (Unix seconds); the times of messages are real.
https://developers.weixin.qq.com/doc/subscription/guide/product/kf/intro.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import ControlError, PlatformError

TYPING_AFTER = 30
TYPING_SECONDS = 15

# what the fan did -> how many messages the account may send, for how many seconds
_RIGHTS = {
    "message": (5, 48 * 3600),
    "menu": (3, 60),
    "follow": (3, 60),
    "scan": (3, 60),
}
_EVENT_RIGHTS = {
    "click": "menu",
    "scancode_push": "menu",
    "scancode_waitmsg": "menu",
    "subscribe": "follow",
    "scan": "scan",
}


@dataclass(frozen=True, kw_only=True)
class Message:
    """One entry of a chat: `sender` is fan, account or system, `by` push, passive, custom or platform.

    `choices` are the entries of a menu message: id and text.
    """

    sender: str
    by: str
    type: str
    content: str | None = None
    media_id: str | None = None
    sha256: str | None = None
    time: float
    choices: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "from": self.sender,
            "by": self.by,
            "type": self.type,
            "content": self.content,
            "media_id": self.media_id,
            "sha256": self.sha256,
            "time": self.time,
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Message:
        """What `to_json` gave; `choices` may stand beside it."""
        names = ("by", "type", "content", "media_id", "sha256", "time")
        choices = tuple((key, content) for key, content in facts.get("choices", ()))
        return cls(sender=facts["from"], choices=choices, **{name: facts[name] for name in names})


@dataclass
class _Right:
    left: int
    until: float


@dataclass
class Fan:
    """One fan. The methods that may be refused raise PlatformError and then change nothing."""

    openid: str
    chat: list[Message] = field(default_factory=list)
    following: bool = True
    followed_at: float = 0
    _rights: dict[str, _Right] = field(default_factory=dict)
    _exchanged_at: float = float("-inf")
    _typing_until: float = float("-inf")

    def acts(self, kind: str, event: str | None, now: float) -> None:
        """The fan sent a message, chose from a menu message (`kind` "msgmenu"), or pressed, followed, scanned or left
        (`kind` "event").

        Raises ControlError when a fan who has left does anything but follow again.
        """
        event = (event or "").lower()
        if not self.following and not (kind == "event" and event == "subscribe"):
            raise ControlError(
                "this fan has unsubscribed and cannot write: push the event subscribe first",
                "这位粉丝已取消关注，不能发消息：请先推送事件 subscribe",
            )
        self._exchanged_at = now
        action: str | None = "menu" if kind == "msgmenu" else "message"
        if kind == "event":
            action = _EVENT_RIGHTS.get(event)
        if kind == "event" and event == "unsubscribe":
            self.following = False
            self._rights.clear()
            return
        if not self.followed_at or event == "subscribe":
            self.followed_at = now
        self.following = True
        if action is not None:
            count, seconds = _RIGHTS[action]
            self._rights[action] = _Right(count, now + seconds)

    def check_right(self, now: float) -> None:
        """Raises 45015 without an open window, 45047 if the open ones are used up."""
        open_now = [right for right in self._rights.values() if now < right.until]
        if not open_now:
            raise PlatformError(45015)
        if not any(right.left for right in open_now):
            raise PlatformError(45047)

    def spend_right(self, now: float) -> None:
        """Use one message of the right that ends first. How rights combine is not documented."""
        self.check_right(now)
        usable = [right for right in self._rights.values() if now < right.until and right.left]
        min(usable, key=lambda right: right.until).left -= 1
        self._exchanged_at = now
        self._typing_until = now

    def type(self, command: str, now: float) -> None:
        """Shows or ends 对方正在输入, by the rules of custom/typing."""
        if command not in ("Typing", "CancelTyping"):
            raise PlatformError(45072)
        self.check_right(now)
        if command == "CancelTyping":
            self._typing_until = now
            return
        if now - self._exchanged_at > TYPING_AFTER:
            raise PlatformError(45080)
        if now < self._typing_until:
            raise PlatformError(45081)
        self._typing_until = now + TYPING_SECONDS
