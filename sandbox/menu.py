"""The account's menu (自定义菜单): which definitions the platform accepts, and how it returns them.

Knows button kinds, counts and lengths. It must not know HTTP or what a tap pushes: the phone page does.
Menus for some fans only (个性化菜单) are not supported.
https://developers.weixin.qq.com/doc/offiaccount/Custom_Menus/Creating_Custom-Defined_Menu.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import PlatformError

# button type -> the fields that it needs, each with the most bytes that it may have
_NEEDS: dict[str, dict[str, int]] = {
    "click": {"key": 128},
    "scancode_push": {"key": 128},
    "scancode_waitmsg": {"key": 128},
    "pic_sysphoto": {"key": 128},
    "pic_photo_or_album": {"key": 128},
    "pic_weixin": {"key": 128},
    "location_select": {"key": 128},
    "view": {"url": 1024},
    "miniprogram": {"url": 1024, "appid": 64, "pagepath": 1024},
    "media_id": {"media_id": 128},
    "view_limited": {"media_id": 128},
    "article_id": {"article_id": 128},
    "article_view_limited": {"article_id": 128},
}
_TOP, _SUB = 3, 5
_TOP_NAME, _SUB_NAME = 16, 60

# what is wrong -> its code for a button of the bar, and for one of a sub-menu
_CODES = {"count": (40016, 40023), "type": (40017, 40024), "name": (40018, 40025), "key": (40019, 40026)}
_URL_CODES = (40020, 40027)


def read_menu(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The buttons of menu/create as menu/get returns them. Raises PlatformError for invalid ones."""
    buttons = body.get("button")
    if not isinstance(buttons, list) or not 1 <= len(buttons) <= _TOP:
        raise PlatformError(40016)
    return [_button(button, below=0) for button in buttons]


def _button(button: Any, *, below: int) -> dict[str, Any]:
    """`below` is 0 for the bar and 1 for a sub-menu."""
    if not isinstance(button, dict):
        raise PlatformError(47001)
    name = button.get("name")
    if not _fits(name, _SUB_NAME if below else _TOP_NAME):
        raise PlatformError(_CODES["name"][below])
    sub_buttons = button.get("sub_button") or []
    if sub_buttons:
        if below or not isinstance(sub_buttons, list) or len(sub_buttons) > _SUB:
            raise PlatformError(40022 if below else 40023)
        return {"name": name, "sub_button": [_button(one, below=1) for one in sub_buttons]}
    kind = button.get("type")
    if not isinstance(kind, str) or kind not in _NEEDS:
        raise PlatformError(_CODES["type"][below])
    for field, most in _NEEDS[kind].items():
        if not _fits(button.get(field), most):
            raise PlatformError((_URL_CODES if field == "url" else _CODES["key"])[below])
    return {"type": kind, "name": name, **{field: button[field] for field in _NEEDS[kind]}, "sub_button": []}


def _fits(text: Any, most: int) -> bool:
    return isinstance(text, str) and 0 < len(text.encode(errors="replace")) <= most
