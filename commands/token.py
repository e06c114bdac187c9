"""`flask token`: prints the account's access_token, or fetches a new one.

No other command, page or log line shows the token. Must not know how it is fetched.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from commands.common import account_option, app_parts, errors_in_one_line, show_json
from wechat.access_token import AccessToken


@click.group()
def token() -> None:
    """The account's access_token (接口调用凭证)."""


@token.command("show")
@account_option
def token_show() -> None:
    """Print the token (查看); fetch one if there is none."""
    _print_token(AccessToken.get)


@token.command("refresh")
@account_option
def token_refresh() -> None:
    """Ask for it anew, now (重新获取)."""
    _print_token(lambda token: token.replace(token.row().value, at_once=True))


def _print_token(get: Callable[[AccessToken], str]) -> None:
    shared = app_parts().token
    with errors_in_one_line():
        value = get(shared)
        show_json({"access_token": value, "expires_in": int(shared.row().expires_at - time.time())})
