"""`flask menu`: shows the account's custom menu (自定义菜单), sets it from a file, or deletes it.

Knows files and JSON. Must not know which menus are valid: the platform checks that.
"""

from __future__ import annotations

import json
from typing import TextIO

import click

from commands.common import account_option, app_parts, errors_in_one_line, fail, show_json
from wechat.menu import delete_menu, get_menu, set_menu


@click.group()
def menu() -> None:
    """The custom menu (自定义菜单)."""


@menu.command("show")
@account_option
def menu_show() -> None:
    """Print the menu (查看) as JSON, in the form that `set` takes."""
    with errors_in_one_line():
        found = get_menu(app_parts().client)
    if found is None:
        fail("the account has no menu: flask menu set FILE (公众号没有自定义菜单)")
    show_json(found)


@menu.command("set")
@account_option
@click.argument("file", type=click.File(encoding="utf-8-sig"))
def menu_set(file: TextIO) -> None:
    """Set the menu from FILE (设置): JSON, {"button": [...]}. `-` reads from standard input."""
    parts = app_parts()
    try:
        wanted = json.load(file)
        # As it is sent: Python also reads NaN and half a character, which are not JSON.
        json.dumps(wanted, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise click.UsageError(f"{file.name} is not JSON: {error}") from None
    buttons = wanted.get("button") if isinstance(wanted, dict) else None
    if not isinstance(buttons, list) or not all(isinstance(button, dict) for button in buttons):
        raise click.UsageError(f'{file.name} must be a JSON object with a list "button" of objects')
    with errors_in_one_line():
        set_menu(parts.client, wanted)
    show_json({"buttons": len(buttons)})


@menu.command("delete")
@account_option
def menu_delete() -> None:
    """Delete the menu (删除)."""
    with errors_in_one_line():
        delete_menu(app_parts().client)
    show_json({"buttons": 0})
