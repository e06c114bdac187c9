"""The custom menu (自定义菜单): read it, set it, delete it.

Knows the three calls. Must not know which menus are valid: the platform checks that.
https://developers.weixin.qq.com/doc/service/api/custommenu/api_createcustommenu.html
"""

from collections.abc import Mapping
from typing import Any

from wechat.client import ApiClient
from wechat.errors import ApiError

_NO_MENU = 46003


def get_menu(client: ApiClient) -> dict[str, Any] | None:
    """The menu, as `set_menu` takes it; None when the account has none. Raises as `client.call` does."""
    try:
        menu = client.call("GET", "/cgi-bin/menu/get", repeatable=True).get("menu")
    except ApiError as error:
        if error.code == _NO_MENU:
            return None
        raise
    return menu if isinstance(menu, dict) else None


def set_menu(client: ApiClient, menu: Mapping[str, Any]) -> None:
    """Set the account's menu, `{"button": [...]}`. Fans see it after some minutes. Raises as `client.call` does."""
    client.call("POST", "/cgi-bin/menu/create", json=menu, repeatable=True)


def delete_menu(client: ApiClient) -> None:
    """Delete the menu. Raises as `client.call` does."""
    client.call("GET", "/cgi-bin/menu/delete", repeatable=True)
