"""All that the sandbox remembers, and the platform's rules for it.

One lock guards all of it. It is never held during a wait for the network. Time is the
sandbox's own clock, which tests may advance; only a chat's times are real. It must not know HTTP,
Flask or how a push is delivered.
"""

from __future__ import annotations

import base64
import contextlib
import json
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from .account import Account
from .custom import read_message
from .errors import ControlError, PlatformError
from .fans import Fan, Message
from .faults import Fault, Faults, Rules, fault_from_json, rules_from_json
from .media import THUMBNAIL, Media, MediaStore, check_upload
from .menu import read_menu
from .pushes import as_base64, as_editable, read
from .tokens import Tokens, day

# Calls a day of a new account, https://developers.weixin.qq.com/doc/service/en/guide/dev/api/limit.html
_DAILY = {
    "/cgi-bin/token": 2_000,
    "/cgi-bin/stable_token": 500_000,
    "/cgi-bin/media/upload": 100_000,
    "/cgi-bin/media/get": 200_000,
    "/cgi-bin/message/custom/send": 500_000,
}
_STABLE_A_MINUTE = 10_000
_CLEARINGS_A_MONTH = 10
# The clock goes no further: soon after, there are no days.
_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
_KEPT_PUSHES = 1000
_KEPT_CALLS = 200

# The most past events that a new listener gets.
_FEED_PUSHES = 50
_FEED_FANS = 50
_FEED_MESSAGES = 100

Listener = Callable[[str, Mapping[str, Any]], None]


@dataclass(kw_only=True)
class Push:
    """One push: who sent what, and each delivery as the control route shows it.

    `xml` is as it was before any encryption, `timeout` in seconds; `number` is assigned when it begins.
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
    for_page: list[dict[str, Any]] = field(default_factory=list)
    shown: list[Message] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The push's id in a URL: its MsgId, or its number if it has none."""
        return f"push-{self.number}" if self.msg_id is None else str(self.msg_id)

    def to_json(self) -> dict[str, Any]:
        return {
            "msg_id": self.msg_id,
            "media_id": self.media_id,
            "attempts": self.attempts,
            "shown": [message.to_json() for message in self.shown],
        }

    def for_feed(self) -> dict[str, Any]:
        """`to_json` and more, for the page: a copy that later deliveries do not change.

        `msg_id` is text here: a browser's numbers are exact up to 2**53 only, and a MsgId is larger.
        """
        return {
            **self.to_json(),
            **{name: getattr(self, name) for name in _PUSH_FACTS},
            "msg_id": None if self.msg_id is None else str(self.msg_id),
            "attempts": list(self.attempts),
            "for_page": list(self.for_page),
            "number": self.number,
            "id": self.id,
            "plain": self.xml.decode(errors="backslashreplace"),
            "plain_base64": as_base64(self.xml),
            "editable": as_editable(self.xml),
            "ended": self.ended,
        }

    @classmethod
    def from_feed(cls, facts: Mapping[str, Any]) -> Push:
        """A push of an earlier run, from the result of `for_feed`."""
        encoded = facts["plain_base64"]
        return cls(
            **{name: facts[name] for name in (*_PUSH_FACTS, "attempts", "for_page")},
            msg_id=None if facts["msg_id"] is None else int(facts["msg_id"]),
            xml=facts["plain"].encode() if encoded is None else base64.b64decode(encoded),
            ended=True,
            shown=[Message.from_json(one) for one in facts["shown"]],
        )


_PUSH_FACTS = ("openid", "type", "event", "summary", "media_id", "mode", "timeout", "time")
"""Fields of a push that are the same in JSON."""


class State:
    """The platform's memory for one account. Every method may be called from any thread.

    `folder` receives the media; `clock` gives Unix seconds. `base_url` is the
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
        self._menu: list[dict[str, Any]] | None = None

    @property
    def shown_callback(self) -> str | None:
        """The callback without its own user, password and query."""
        if self.callback is None:
            return None
        parts = urlsplit(self.callback)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

    @property
    def made_for(self) -> str:
        """What of the account and the callback a page shows and acts by. A page that was made for another one, by an
        earlier run at the same address, is not right any more."""
        account = self.account
        modes = "plain" if account.aes_key is None else "all"
        return json.dumps([account.appid, account.original_id, modes, self.shown_callback])

    def knows(self, token: str, media_key: str) -> bool:
        """Whether this account gave out the token (it may have expired), or has media of that key."""
        with self._lock:
            return self._tokens.knows(token) or self._media.find_key(media_key, self.now()) is not None

    def reset(self) -> None:
        """Forgets all but the account, the callback and the listeners."""
        with self._lock:
            self._begin()
            self._media.clear()
            self._tell("reset", {})

    def clear_history(self) -> None:
        """Forgets what was said, pushed and called; media, rights, counts and the menu stay."""
        with self._lock:
            for fan in self._fans.values():
                fan.chat.clear()
            self._pushes.clear()
            self._latest_calls.clear()
            self._tell("cleared", self._so_far())

    def snapshot(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The events from which `restore` rebuilds this state: every chat whole, and the latest pushes and calls."""
        with self._lock:
            so_far = self._so_far()
            events: list[tuple[str, Mapping[str, Any]]] = [
                ("media", media.to_json()) for media in self._media.living(self.now())
            ]
            events += [
                ("message", {"openid": fan.openid, **self._message_for_feed(message)})
                for fan in self._fans.values()
                for message in fan.chat
            ]
            events += [("push", push) for push in so_far["pushes"] if push["ended"]]
            events += [("call", call) for call in so_far["calls"]]
            return [*events, ("menu", {"menu": self._menu})]

    def restore(self, events: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        """Restores an earlier run from its events. Skips events of another version that it cannot read."""
        with self._lock:
            for name, facts in events:
                with contextlib.suppress(KeyError, TypeError, ValueError, ControlError):
                    self._restore(name, facts)

    def _restore(self, name: str, facts: Mapping[str, Any]) -> None:
        match name:
            case "media":
                self._media.restore(dict(facts))
            case "message":
                self._restore_message(facts["openid"], Message.from_json(facts))
            case "push":
                push = Push.from_feed(facts)
                self._pushed += 1
                push.number = self._pushed
                self._pushes.append(push)
            case "call":
                self._latest_calls.append(dict(facts))
            case "menu":
                self._menu = facts["menu"]

    def _restore_message(self, openid: str, message: Message) -> None:
        fan = self._fans.setdefault(openid, Fan(openid))
        fan.chat.append(message)
        if message.by == "push":
            fan.acts(message.type, (message.content or "").split(" ")[0], message.time)
        elif message.by == "custom":
            with contextlib.suppress(PlatformError):
                fan.spend_right(message.time)

    # The clock, rules and faults.

    def now(self) -> float:
        """Unix seconds by the sandbox's clock."""
        return self._clock() + self._advanced

    def real_time(self) -> float:
        """Unix seconds by the real clock, for what is pushed and for the chats."""
        return self._clock()

    def advance(self, seconds: float) -> None:
        """Raises ControlError for a time after which `day` knows no more days."""
        with self._lock:
            if self.now() + seconds > _LATEST:
                raise ControlError(
                    "advance: the clock cannot pass the year 9998", "advance：时钟不能超过公元 9998 年"
                )
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
            raise ControlError(
                "faults are a list; an empty one ends all faults", "故障是一个列表；空列表结束所有故障"
            )
        faults = [fault_from_json(one) for one in value]
        with self._lock:
            self._faults.replace(faults)
            self._tell("faults", self._faults_for_feed())
        return faults

    def take_fault(self, path: str) -> Fault | None:
        with self._lock:
            fault = self._faults.take(path)
            if fault is not None and fault.times is not None:
                self._tell("faults", self._faults_for_feed())
            return fault

    def _faults_for_feed(self) -> dict[str, Any]:
        return {"faults": [vars(fault) for fault in self._faults.in_force()]}

    # Counting.

    def count_call(self, path: str, outcome: str, details: Mapping[str, Any]) -> None:
        """`outcome` is "ok", an errcode, "HTTP 502", "truncated" or "disconnect"; `details` are for the page."""
        call = {"path": path, "outcome": outcome, "time": round(self.real_time(), 3), **details}
        with self._lock:
            self._calls[path][outcome] += 1
            self._latest_calls.append(call)
            self._tell("call", call)

    def secrets(self) -> list[str]:
        """What must not be shown: the account's and all tokens that are known."""
        with self._lock:
            account = self.account
            return [account.appsecret, account.token, account.aes_key or "", *self._tokens.values()]

    def calls(self) -> dict[str, dict[str, int]]:
        with self._lock:
            return {path: dict(outcomes) for path, outcomes in self._calls.items()}

    def _use(self, path: str) -> None:
        """Counts against the path's quota: 45009 when it is used up for the day."""
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

    def _check_credentials(self, credentials: Mapping[str, Any]) -> None:
        if credentials.get("grant_type") != "client_credential":
            raise PlatformError(40002)
        if not credentials.get("appid"):
            raise PlatformError(41002)
        if not credentials.get("secret"):
            raise PlatformError(41004)
        if credentials["appid"] != self.account.appid:
            raise PlatformError(40013)
        if credentials["secret"] != self.account.appsecret:
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
            self._tell("media", media.to_json())
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

    def new_msg_id(self) -> int:
        """A MsgId above 2**53, as real ones are. It never repeats, not even in a sandbox started later."""
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
                chose = push.type == "text" and read(push.xml, "bizmsgmenuid")
                fan.acts("msgmenu" if chose else push.type, push.event, self.now())
            self._pushed += 1
            push.number = self._pushed
            self._pushes.append(push)
            self._tell_push(push)
            if message is not None:
                self._say(fan, message)

    def find_push(self, push_id: str) -> Push:
        """The newest push with this `Push.id`. Raises ControlError if there is none."""
        with self._lock:
            for push in reversed(self._pushes):
                if push.id == push_id:
                    return push
        raise ControlError(
            f"no push with MsgId {push_id}: it was never sent, or too long ago",
            f"没有 MsgId 为 {push_id} 的推送：从未发送过，或时间太久",
        )

    def record_attempt(self, push: Push, attempt: dict[str, Any], for_page: dict[str, Any]) -> None:
        """`for_page` is what only the page needs to know of the attempt."""
        with self._lock:
            push.attempts.append(attempt)
            push.for_page.append(for_page)
            self._tell_push(push)

    def end_push(self, push: Push) -> None:
        """Marks the push as done: no further delivery follows."""
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
            if fan is None or not fan.following:  # a reset deleted the fan, or the fan has left
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
            sent = read_message(body, self.find_media, self._rules.own_video_reply)
            fan.spend_right(self.now())
            message = self.message("account", "custom", sent.type, sent.content, sent.media_id)
            self._say(fan, replace(message, choices=sent.choices))

    def user_info(self, openid: str | None) -> dict[str, Any]:
        """GET user/info: who follows, since when; names and pictures are not given any more."""
        with self._lock:
            fan = self._fan(openid)
            if not fan.following:
                return {"subscribe": 0, "openid": fan.openid, "tagid_list": []}
            return {
                "subscribe": 1,
                "openid": fan.openid,
                "language": "zh_CN",
                "subscribe_time": int(fan.followed_at),
                "remark": "",
                "groupid": 0,
                "tagid_list": [],
                "subscribe_scene": "ADD_SCENE_SEARCH",
                "qr_scene": 0,
                "qr_scene_str": "",
            }

    # The menu.

    def create_menu(self, body: Mapping[str, Any]) -> None:
        menu = read_menu(body)
        with self._lock:
            self._menu = menu
            self._tell("menu", {"menu": menu})

    def menu(self) -> list[dict[str, Any]]:
        """Raises PlatformError 46003 without one."""
        with self._lock:
            if self._menu is None:
                raise PlatformError(46003)
            return self._menu

    def delete_menu(self) -> None:
        with self._lock:
            self._menu = None
            self._tell("menu", {"menu": None})

    def _say(self, fan: Fan, message: Message) -> None:
        fan.chat.append(message)
        self._tell(
            "message", {"openid": fan.openid, "following": fan.following, **self._message_for_feed(message)}
        )

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

    # The event feed.

    def listen(self, listener: Listener) -> tuple[dict[str, Any], Callable[[], None]]:
        """Calls `listener(name, facts)` for every push, message, call, file, change of faults or the menu, and reset.

        Returns the events so far, which the calls continue without a gap, and a function to stop. The
        listener is called in the order of events from whichever thread made one, and must return at once.
        """
        with self._lock:
            self._listeners.append(listener)
            so_far = {**self._so_far(), "made_for": self.made_for}

        def stop() -> None:
            with self._lock:
                self._listeners.remove(listener)

        return so_far, stop

    @property
    def listeners(self) -> int:
        """How many listeners there are."""
        return len(self._listeners)

    def _so_far(self) -> dict[str, Any]:
        by_activity = sorted(self._fans.values(), key=lambda fan: fan.chat[-1].time if fan.chat else 0)
        shown = {fan.openid for fan in by_activity[-_FEED_FANS:]}
        fans = [fan for fan in self._fans.values() if fan.openid in shown]  # in the order in which they came
        return {
            "fans": {
                fan.openid: [self._message_for_feed(message) for message in fan.chat[-_FEED_MESSAGES:]]
                for fan in fans
            },
            "following": {fan.openid: fan.following for fan in fans},
            "pushes": [push.for_feed() for push in list(self._pushes)[-_FEED_PUSHES:]],
            "calls": list(self._latest_calls),
            "menu": self._menu,
            **self._faults_for_feed(),
        }

    def _message_for_feed(self, message: Message) -> dict[str, Any]:
        """A chat entry with the facts of its media that a page needs; `media` is None if the file is gone."""
        media = None if message.media_id is None else self._media.find(message.media_id, self.now())
        facts = media and {"extension": media.extension, "size": media.size, "seconds": media.seconds}
        return {**message.to_json(), "media": facts, "choices": message.choices}

    def _tell_push(self, push: Push) -> None:
        """Announces a push, unless a reset has deleted it: numbers go on growing."""
        if self._listeners and self._pushes and push.number >= self._pushes[0].number:
            self._tell("push", push.for_feed())

    def _tell(self, name: str, facts: Mapping[str, Any]) -> None:
        """Call it under the lock, so that all listeners get the events in the same order."""
        for listener in self._listeners:
            listener(name, facts)


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
