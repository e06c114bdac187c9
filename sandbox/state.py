"""All that the sandbox remembers, and the platform's rules over it.

One lock guards everything, and it is never held while the network is waited for. Time is the
sandbox's own clock, which tests may advance; only a chat's times are real. It must not know HTTP,
Flask or how a push is delivered.
"""

import json
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from .account import Account
from .errors import ControlError, PlatformError
from .fans import Fan, Message
from .faults import Fault, Faults, Rules, fault_from_json, rules_from_json
from .media import THUMBNAIL, Media, MediaStore, check_upload
from .tokens import Tokens, day

# Calls a day of a new account, https://developers.weixin.qq.com/doc/service/en/guide/dev/api/limit.html
_DAILY: Final[dict[str, int]] = {
    "/cgi-bin/token": 2_000,
    "/cgi-bin/stable_token": 500_000,
    "/cgi-bin/media/upload": 100_000,
    "/cgi-bin/media/get": 200_000,
    "/cgi-bin/message/custom/send": 500_000,
}
_STABLE_A_MINUTE: Final = 10_000
_CLEARINGS_A_MONTH: Final = 10
_TEXT_BYTES: Final = 2048
_KEPT_PUSHES: Final = 1000
_KEPT_CALLS: Final = 50

# What somebody who begins to listen is told of the past, at most.
_TOLD_PUSHES: Final = 50
_TOLD_FANS: Final = 50
_TOLD_MESSAGES: Final = 100

Listener = Callable[[str, Mapping[str, Any]], None]


@dataclass(kw_only=True)
class Push:
    """What is known of one push: who sent what, and each delivery as the control route shows it.

    `xml` is as it was before any encryption, `timeout` in seconds; `number` is given when it begins.
    """

    openid: str
    type: str
    event: str | None
    summary: str | None
    msg_id: int | None
    media_id: str | None
    mode: str
    timeout: float
    xml: bytes
    time: float
    number: int = 0
    ended: bool = False
    attempts: list[dict[str, Any]] = field(default_factory=list)
    chinese: list[dict[str, Any]] = field(default_factory=list)
    shown: list[Message] = field(default_factory=list)

    @property
    def id(self) -> str:
        """What the push is called in an address: its MsgId, or its number when it has none."""
        return f"push-{self.number}" if self.msg_id is None else str(self.msg_id)

    def to_json(self) -> dict[str, Any]:
        return {
            "msg_id": self.msg_id,
            "media_id": self.media_id,
            "attempts": self.attempts,
            "shown": [message.to_json() for message in self.shown],
        }

    def told(self) -> dict[str, Any]:
        """The same and more, for the page: a copy that later deliveries do not change.

        `msg_id` is text here: a browser's numbers are exact up to 2**53 only, and a MsgId is larger.
        """
        return {
            **self.to_json(),
            "msg_id": None if self.msg_id is None else str(self.msg_id),
            "attempts": list(self.attempts),
            "chinese": list(self.chinese),
            "number": self.number,
            "id": self.id,
            "openid": self.openid,
            "type": self.type,
            "summary": self.summary,
            "mode": self.mode,
            "timeout": self.timeout,
            "plain": self.xml.decode(errors="backslashreplace"),
            "time": self.time,
            "ended": self.ended,
        }


class State:
    """The platform's memory for one account. Every method may be called from any thread.

    `folder` receives the media and must be empty; `clock` gives Unix seconds. `base_url` is the
    sandbox's own address and `callback` the bot's: both may be set later.
    """

    def __init__(self, account: Account, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self.account = account
        self.callback: str | None = None
        self.base_url = ""
        self._clock = clock
        self._lock = threading.RLock()
        self._media = MediaStore(folder)
        self._last_msg_id = 0
        self._pushed = 0
        self._listeners: list[Listener] = []
        self._begin()

    def _begin(self) -> None:
        self._advanced = 0.0
        self._rules = Rules()
        self._faults = Faults()
        self._tokens = Tokens()
        self._fans: dict[str, Fan] = {}
        self._pushes: deque[Push] = deque(maxlen=_KEPT_PUSHES)
        self._calls: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._latest_calls: deque[dict[str, Any]] = deque(maxlen=_KEPT_CALLS)
        self._used: Counter[tuple[str, str]] = Counter()
        self._clearings: Counter[str] = Counter()

    def reset(self) -> None:
        """Forgets all but the account, the callback and who listens."""
        with self._lock:
            self._begin()
            self._media.clear()
            self._tell("reset", {})

    # The clock, rules and faults.

    def now(self) -> float:
        """Unix seconds by the sandbox's clock."""
        return self._clock() + self._advanced

    def real_time(self) -> float:
        """Unix seconds by the real clock, for what is pushed and for the chats."""
        return self._clock()

    def advance(self, seconds: float) -> None:
        with self._lock:
            self._advanced += seconds

    @property
    def rules(self) -> Rules:
        return self._rules

    def change_rules(self, value: Any) -> Rules:
        with self._lock:
            self._rules = rules_from_json(value, self._rules)
            return self._rules

    def replace_faults(self, value: Any) -> list[Fault]:
        if not isinstance(value, list):
            raise ControlError("faults are a list; an empty one ends all faults")
        faults = [fault_from_json(one) for one in value]
        with self._lock:
            self._faults.replace(faults)
            self._tell("faults", self._told_faults())
        return faults

    def take_fault(self, path: str) -> Fault | None:
        with self._lock:
            fault = self._faults.take(path)
            if fault is not None and fault.times is not None:
                self._tell("faults", self._told_faults())
            return fault

    def _told_faults(self) -> dict[str, Any]:
        return {"faults": [vars(fault) for fault in self._faults.in_force()]}

    # Counting.

    def count_call(self, path: str, outcome: str) -> None:
        """`outcome` is "ok", an errcode, "HTTP 502", "truncated" or "disconnect"."""
        call = {"path": path, "outcome": outcome, "time": round(self.real_time(), 3)}
        with self._lock:
            self._calls[path][outcome] += 1
            self._latest_calls.append(call)
            self._tell("call", call)

    def calls(self) -> dict[str, dict[str, int]]:
        with self._lock:
            return {path: dict(outcomes) for path, outcomes in self._calls.items()}

    def _use(self, path: str) -> None:
        """Counts against the path's quota: 45009 when the day's is used up."""
        key = (path, day(self.now()))
        if self._used[key] >= _DAILY.get(path, 2**63):
            raise PlatformError(45009)
        self._used[key] += 1

    def clear_quota(self, appid: Any) -> None:
        with self._lock:
            if appid != self.account.appid:
                raise PlatformError(40013)
            month = day(self.now())[:7]
            if self._clearings[month] >= _CLEARINGS_A_MONTH:
                raise PlatformError(48006)
            self._clearings[month] += 1
            self._used.clear()

    # Tokens.

    def fetch_token(self, query: Mapping[str, str]) -> dict[str, Any]:
        """GET /cgi-bin/token."""
        with self._lock:
            self._check_credentials(query)
            self._use("/cgi-bin/token")
            value, expires_in = self._tokens.classic(self.now(), self._rules.token_life)
            return {"access_token": value, "expires_in": expires_in}

    def fetch_stable_token(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """POST /cgi-bin/stable_token."""
        with self._lock:
            self._check_credentials(body)
            force = body.get("force_refresh", False)
            if not isinstance(force, bool):
                raise PlatformError(47001)
            minute = ("/cgi-bin/stable_token minute", str(int(self.now()) // 60))
            if self._used[minute] >= _STABLE_A_MINUTE:
                raise PlatformError(45011)
            self._use("/cgi-bin/stable_token")
            self._used[minute] += 1
            value, expires_in = self._tokens.stable(self.now(), self._rules.token_life, force)
            return {"access_token": value, "expires_in": expires_in}

    def _check_credentials(self, given: Mapping[str, Any]) -> None:
        if given.get("grant_type") != "client_credential":
            raise PlatformError(40002)
        if not given.get("appid"):
            raise PlatformError(41002)
        if not given.get("secret"):
            raise PlatformError(41004)
        if given["appid"] != self.account.appid:
            raise PlatformError(40013)
        if given["secret"] != self.account.appsecret:
            raise PlatformError(40125)

    def enter(self, path: str, token: str) -> None:
        """Raises PlatformError unless the token works and the path's quota has something left."""
        with self._lock:
            self._tokens.check(token, self.now())
            self._use(path)

    def expire_tokens(self, stuck: bool) -> None:
        with self._lock:
            self._tokens.expire(stuck)

    # Media.

    def store_media(self, kind: str, data: bytes, *, from_fan: bool = False) -> Media:
        """Keeps the bytes for three days, whatever they are: what a fan sends is not checked."""
        media = self._media.write(kind, data, self.now(), from_fan=from_fan)
        with self._lock:
            self._media.add(media)
        return media

    def upload(self, kind: str, data: bytes) -> dict[str, Any]:
        check_upload(kind, data)
        media = self.store_media(kind, data)
        name = "thumb_media_id" if kind == "thumb" else "media_id"
        return {"type": kind, name: media.media_id, "created_at": int(self.now())}

    def store_thumbnail(self) -> Media:
        return self.store_media("thumb", THUMBNAIL)

    def find_media(self, media_id: str) -> Media | None:
        with self._lock:
            return self._media.find(media_id, self.now())

    def open_media(self, media_id: str) -> tuple[Media, BinaryIO]:
        """The media and its bytes; 41006 without an id, 40007 for one that is unknown or too old."""
        if not media_id:
            raise PlatformError(41006)
        with self._lock:
            media = self._media.find(media_id, self.now())
            if media is None:
                raise PlatformError(40007)
            return media, media.path.open("rb")

    def open_media_key(self, key: str) -> tuple[Media, BinaryIO] | None:
        """The same for an address that needs no token."""
        with self._lock:
            media = self._media.find_key(key, self.now())
            return None if media is None else (media, media.path.open("rb"))

    # Fans and their chats.

    def chat(self, openid: str) -> list[Message]:
        with self._lock:
            fan = self._fans.get(openid)
            return [] if fan is None else list(fan.chat)

    def fans(self) -> list[str]:
        with self._lock:
            return list(self._fans)

    def new_msg_id(self) -> int:
        """Above 2**53, as real ones are, and never given twice, also not by a sandbox started later."""
        with self._lock:
            self._last_msg_id = max(self._last_msg_id + 1, time.time_ns() // 1000 * 16)
            return self._last_msg_id

    def begin_push(self, push: Push, message: Message | None) -> None:
        """The fan acts: the chat shows it and the account gets the rights that go with it.

        `message` None: the fan does nothing, an earlier push is delivered once more. Raises ControlError for
        a fan who has left and does anything but come back.
        """
        with self._lock:
            fan = self._fans.setdefault(push.openid, Fan(push.openid))
            if message is not None:
                fan.acts(push.type, push.event, self.now())
            self._pushed += 1
            push.number = self._pushed
            self._pushes.append(push)
            self._tell_push(push)
            if message is not None:
                self._say(fan, message)

    def find_push(self, push_id: str) -> Push:
        """The newest that is called so, see `Push.id`. Raises ControlError without one."""
        with self._lock:
            for push in reversed(self._pushes):
                if push.id == push_id:
                    return push
        raise ControlError(f"no push with MsgId {push_id}: it was never sent, or too long ago")

    def record_attempt(self, push: Push, attempt: dict[str, Any], chinese: dict[str, Any]) -> None:
        """`chinese` holds `why` and `notes` once more, for the page."""
        with self._lock:
            push.attempts.append(attempt)
            push.chinese.append(chinese)
            self._tell_push(push)

    def end_push(self, push: Push) -> None:
        """There will be no further delivery of it."""
        with self._lock:
            push.ended = True
            self._tell_push(push)

    def show(self, push: Push, message: Message) -> None:
        """The fan sees this, once per push: a second answer to the same push changes nothing."""
        with self._lock:
            if push.shown:
                return
            push.shown.append(message)
            fan = self._fans.get(push.openid)
            if fan is None or not fan.following:  # forgotten by a reset, or out of reach
                push.shown.clear()
                return
            self._tell_push(push)
            self._say(fan, message)

    def _fan(self, openid: Any) -> Fan:
        fan = self._fans.get(openid) if isinstance(openid, str) else None
        if fan is None:
            raise PlatformError(40003)
        return fan

    def typing(self, body: Mapping[str, Any]) -> None:
        with self._lock:
            self._fan(body.get("touser")).type(str(body.get("command")), self.now())

    def send_custom(self, body: Mapping[str, Any]) -> None:
        """POST message/custom/send: the fan sees the message, or PlatformError says why not."""
        with self._lock:
            fan = self._fan(body.get("touser"))
            kind = body.get("msgtype")
            if not isinstance(kind, str) or kind not in _CUSTOM:
                raise PlatformError(40008)
            part = body.get(kind)
            if not isinstance(part, dict):
                raise PlatformError(47001)
            content, media_id = _CUSTOM[kind](self, part)
            fan.spend_right(self.now())
            self._say(fan, self.message("account", "custom", kind, content, media_id))

    def _say(self, fan: Fan, message: Message) -> None:
        fan.chat.append(message)
        self._tell("message", {"openid": fan.openid, **self._told_message(message)})

    def message(
        self, sender: str, by: str, kind: str, content: str | None = None, media_id: str | None = None
    ) -> Message:
        """A chat entry of now, with the checksum of the media it shows."""
        media = self.find_media(media_id) if media_id else None
        return Message(
            sender=sender,
            by=by,
            type=kind,
            content=content,
            media_id=media_id,
            sha256=None if media is None else media.sha256,
            time=round(self.real_time(), 3),
        )

    def _alive(self, media_id: Any, kind: str) -> str:
        media = self._media.find(media_id, self.now()) if isinstance(media_id, str) else None
        if media is None or media.type != kind:
            raise PlatformError(40007)
        return media.media_id

    def _custom_text(self, part: Mapping[str, Any]) -> tuple[str | None, str | None]:
        content = part.get("content")
        if not isinstance(content, str) or not content:
            raise PlatformError(44004)
        if len(content.encode()) > _TEXT_BYTES:
            raise PlatformError(45002)
        return content, None

    def _custom_image(self, part: Mapping[str, Any]) -> tuple[str | None, str | None]:
        return None, self._alive(part.get("media_id"), "image")

    def _custom_voice(self, part: Mapping[str, Any]) -> tuple[str | None, str | None]:
        return None, self._alive(part.get("media_id"), "voice")

    def _custom_video(self, part: Mapping[str, Any]) -> tuple[str | None, str | None]:
        if part.get("thumb_media_id"):
            self._alive(part["thumb_media_id"], "thumb")
        media_id = self._alive(part.get("media_id"), "video")
        media = self._media.find(media_id, self.now())
        if media is not None and media.from_fan and not self._rules.own_video_reply:
            raise PlatformError(40007)  # the fan's own video is not kept for sending
        return _lines(part, "title", "description"), media_id

    def _custom_music(self, part: Mapping[str, Any]) -> tuple[str | None, str | None]:
        thumb = self._alive(part.get("thumb_media_id"), "thumb")
        return _lines(part, "title", "description", "musicurl"), thumb

    def _custom_news(self, part: Mapping[str, Any]) -> tuple[str | None, str | None]:
        articles = part.get("articles")
        if not isinstance(articles, list) or not articles:
            raise PlatformError(44003)
        if len(articles) > 1:
            raise PlatformError(45008)
        if not isinstance(articles[0], dict):
            raise PlatformError(47001)
        return _lines(articles[0], "title", "description", "url"), None

    # The event feed.

    def listen(self, listener: Listener) -> tuple[dict[str, Any], Callable[[], None]]:
        """Calls `listener(name, facts)` for every push, message, call, change of faults and reset.

        Returns what there is so far, with which the calls go on without a gap, and how to stop. The
        listener is called in the order of events from whichever thread made one, and must return at once.
        """
        with self._lock:
            self._listeners.append(listener)
            so_far = self._so_far()

        def stop() -> None:
            with self._lock:
                self._listeners.remove(listener)

        return so_far, stop

    def _so_far(self) -> dict[str, Any]:
        fans = list(self._fans.values())[-_TOLD_FANS:]
        return {
            "fans": {
                fan.openid: [self._told_message(message) for message in fan.chat[-_TOLD_MESSAGES:]]
                for fan in fans
            },
            "pushes": [push.told() for push in list(self._pushes)[-_TOLD_PUSHES:]],
            "calls": list(self._latest_calls),
            **self._told_faults(),
        }

    def _told_message(self, message: Message) -> dict[str, Any]:
        """A chat entry with what a page must know of its media to show them; None when they are gone."""
        media = None if message.media_id is None else self._media.find(message.media_id, self.now())
        facts = media and {"extension": media.extension, "size": media.size, "seconds": media.seconds}
        return {**message.to_json(), "media": facts}

    def _tell_push(self, push: Push) -> None:
        """Tells nothing of a push that a reset has forgotten: numbers go on growing."""
        if self._listeners and self._pushes and push.number >= self._pushes[0].number:
            self._tell("push", push.told())

    def _tell(self, name: str, facts: Mapping[str, Any]) -> None:
        """Under the lock, so that everybody hears the same order."""
        for listener in self._listeners:
            listener(name, facts)


_CUSTOM: Final[dict[str, Callable[[State, Mapping[str, Any]], tuple[str | None, str | None]]]] = {
    "text": State._custom_text,
    "image": State._custom_image,
    "voice": State._custom_voice,
    "video": State._custom_video,
    "music": State._custom_music,
    "news": State._custom_news,
}


def _lines(part: Mapping[str, Any], *names: str) -> str | None:
    return "\n".join(str(part[name]) for name in names if part.get(name)) or None


def parse_body(data: bytes) -> dict[str, Any]:
    """The JSON object of an API call: 44002 without a body, 47001 when it is not one in UTF-8."""
    if not data:
        raise PlatformError(44002)
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError):
        raise PlatformError(47001) from None
    if not isinstance(value, dict):
        raise PlatformError(47001)
    return value
