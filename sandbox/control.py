"""The control routes under /sandbox/: how tests, and the page at /, control the sandbox.

Knows the JSON shapes that others rely on. It must not keep anything, and answers every wrong use with
a 4xx and `{"error", "error_zh"}`. Only programs on this machine may call: see the guard in server.py.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, Response, jsonify, request
from werkzeug.datastructures import FileStorage

from .errors import ControlError
from .pushes import MEDIA_TYPES, TYPES, Action, read, read_msg_id
from .sender import MODES, Delivery, Sender
from .state import State

_RAW = frozenset({"raw", "raw_base64"})
_DELIVERY = frozenset({"mode", "attempts", "force", "together", "timeout", "wait"})
MESSAGE_FIELDS = frozenset({"type", "content", "media_id", "event", "event_key", "msg_id"}) | _RAW | _DELIVERY
RESEND_FIELDS = frozenset({"new"}) | _RAW | _DELIVERY


def create_control(state: State, sender: Sender) -> Blueprint:
    """The control routes for one state."""
    control = Blueprint("control", __name__)

    @control.errorhandler(ControlError)
    def refuse(error: ControlError) -> tuple[Response, int]:
        return jsonify(error.words.as_error()), 400

    @control.post("/sandbox/fans/<openid>/messages")
    def push(openid: str) -> Response:
        fields, file = _fields(MESSAGE_FIELDS)
        delivery = _delivery(fields, sender.default_mode)
        return jsonify(sender.push(_action(state, openid, fields, file), delivery).to_json())

    @control.post("/sandbox/pushes/<push_id>/resend")
    def resend(push_id: str) -> Response:
        fields, _ = _fields(RESEND_FIELDS)
        old = state.find_push(push_id)
        delivery = _delivery(fields, old.mode)
        push = sender.resend(old, delivery, new=_flag(fields, "new"), raw=_raw(fields))
        return jsonify(push.to_json())

    @control.get("/sandbox/fans/<openid>/messages")
    def chat(openid: str) -> Response:
        return jsonify([message.to_json() for message in state.chat(openid)])

    @control.put("/sandbox/faults")
    def faults() -> Response:
        return jsonify([vars(fault) for fault in state.replace_faults(_json())])

    @control.put("/sandbox/rules")
    def rules() -> Response:
        return jsonify(vars(state.change_rules(_json())))

    @control.post("/sandbox/clock")
    def clock() -> Response:
        seconds = _object().get("advance")
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < 1e9:
            raise ControlError("advance: seconds to move the clock forward", "advance：时钟要拨快的秒数")
        state.advance(seconds)
        return jsonify(now=state.now())

    @control.post("/sandbox/token/expire")
    def expire() -> Response:
        stuck = _object().get("stuck", False)
        if not isinstance(stuck, bool):
            raise ControlError("stuck: true or false", "stuck：true 或 false")
        state.expire_tokens(stuck)
        return jsonify(ok=True)

    @control.get("/sandbox/calls")
    def calls() -> Response:
        return jsonify(state.calls())

    @control.post("/sandbox/reset")
    def reset() -> Response:
        state.reset()
        return jsonify(ok=True)

    @control.delete("/sandbox/history")
    def clear_history() -> Response:
        state.clear_history()
        return jsonify(ok=True)

    @control.post("/sandbox/verify")
    def verify() -> Response:
        return jsonify(sender.verify(_number(_object(), "timeout", 0.01, 60) or 5))

    return control


def _json() -> Any:
    try:
        value = request.get_json(force=True, silent=True)
        json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:  # too many brackets
        value = None
    except UnicodeEncodeError:  # JSON can say it, but no answer, push or header can hold it
        raise ControlError(
            "the body holds half of a surrogate pair; a push takes such bytes as raw_base64",
            "请求体含半个代理对（surrogate）；推送中这样的字节请用 raw_base64 发送",
        ) from None
    if value is None:
        raise ControlError("the body must be JSON", "请求体必须是 JSON")
    return value


def _object() -> dict[str, Any]:
    """The JSON object of the body; no body at all is an empty one."""
    value = _json() if request.get_data() else {}
    if not isinstance(value, dict):
        raise ControlError("the body must be a JSON object", "请求体必须是 JSON 对象")
    return value


def _fields(known: frozenset[str]) -> tuple[dict[str, Any], FileStorage | None]:
    if request.mimetype == "multipart/form-data":
        fields: dict[str, Any] = dict(request.form)
        file = request.files.get("file")
    else:
        fields, file = _object(), None
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ControlError(
            f"{', '.join(unknown)}: no such field (a file is a multipart part with a filename)",
            f"{'、'.join(unknown)}：没有这个字段（文件是带 filename 的 multipart 部分）",
        )
    return fields, file


def _delivery(fields: Mapping[str, Any], default_mode: str) -> Delivery:
    mode = fields.get("mode") or default_mode
    if mode not in MODES:
        raise ControlError("mode: plain, compat or safe", "mode：plain、compat 或 safe")
    attempts = _number(fields, "attempts", 1, 100)
    if attempts is not None and not attempts.is_integer():
        raise ControlError("attempts: a whole number", "attempts：整数")
    timeout = _number(fields, "timeout", 0.01, 60) or 5
    return Delivery(
        mode=mode,
        attempts=None if attempts is None else int(attempts),
        force=_flag(fields, "force"),
        together=_flag(fields, "together"),
        timeout=timeout,
        wait=_flag(fields, "wait", default=True),
    )


def _action(state: State, openid: str, fields: Mapping[str, Any], file: FileStorage | None) -> Action:
    raw = _raw(fields)
    kind, event = _text(fields, "type"), _text(fields, "event")
    content = _text(fields, "content")
    msg_id = _msg_id(fields)
    if raw is not None:  # fields that are left out are read from the XML
        kind = kind or read(raw, "MsgType") or "raw"
        event = event or read(raw, "Event")
        content = read(raw, "Content") if content is None else content
        msg_id = msg_id or read_msg_id(raw)
    elif kind is None:
        raise ControlError(
            f"type: {', '.join(TYPES[:-1])} or event", f"type：{', '.join(TYPES[:-1])} 或 event"
        )
    elif kind != "event":
        msg_id = msg_id or state.new_msg_id()
    else:
        msg_id = None
    media_id = _text(fields, "media_id")
    media = thumb = None
    if kind in MEDIA_TYPES:
        if file is not None:
            media = state.store_media(MEDIA_TYPES[kind], file.read(), from_fan=True)
            media_id = media.media_id
        elif media_id:
            media = state.find_media(media_id)
        if MEDIA_TYPES[kind] == "video":
            thumb = state.store_thumbnail().media_id
    elif file is not None or media_id is not None:
        raise ControlError(
            f"type {kind}: carries neither file nor media_id", f"type {kind}：不能带文件或 media_id"
        )
    return Action(
        openid=openid,
        type=kind,
        content=content,
        event=event,
        event_key=_text(fields, "event_key"),
        media_id=media_id,
        thumb_media_id=thumb,
        media=media,
        picture_url=f"{state.base_url}/picture?key={media.key}" if media else "",
        msg_id=msg_id,
        raw=raw,
    )


def _raw(fields: Mapping[str, Any]) -> bytes | None:
    """The push's XML exactly as it will be sent, if the request has it."""
    text, encoded = _text(fields, "raw"), _text(fields, "raw_base64")
    if text is not None and encoded is not None:
        raise ControlError("raw, raw_base64: one of them", "raw、raw_base64：只能有其一")
    try:
        if encoded is not None:
            return base64.b64decode(encoded, validate=True)
        return None if text is None else text.encode()
    except ValueError:
        raise ControlError("raw_base64: no Base64", "raw_base64：不是 Base64") from None


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise ControlError(f"{name}: text", f"{name}：文本")
    return value


def _msg_id(fields: Mapping[str, Any]) -> int | None:
    """A 64-bit number, as a number or as its digits."""
    value = fields.get("msg_id")
    if value is None:
        return None
    digits = str(value)
    # At most as many digits as 2**63 has: int() refuses thousands of them.
    if isinstance(value, bool) or not re.fullmatch("[0-9]{1,19}", digits) or not 0 < int(digits) < 2**63:
        raise ControlError("msg_id: a whole number below 2**63", "msg_id：小于 2**63 的整数")
    return int(digits)


def _number(fields: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = least - 1
    if isinstance(value, bool) or not least <= number <= most:
        raise ControlError(f"{name}: a number from {least} to {most}", f"{name}：{least} 到 {most} 的数字")
    return number


def _flag(fields: Mapping[str, Any], name: str, *, default: bool = False) -> bool:
    value = fields.get(name)
    if value is None:
        return default
    if value in (True, "true", "1"):
        return True
    if value in (False, "false", "0", ""):
        return False
    raise ControlError(f"{name}: true or false", f"{name}：true 或 false")
