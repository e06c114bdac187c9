"""What the commands share: the application's parts, errors as one line, JSON, and a progress bar.

Must not know any command.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn, cast

import click
from flask import current_app
from tqdm import tqdm

import logs
from config import SettingsError, explained
from handlers import HandlerError
from logs import escaped, escaped_lines, json_line
from storage.errors import DatabaseUnavailableError
from wechat.errors import WeChatError

if TYPE_CHECKING:
    from parts import Accounts, Parts

LEDGER_ID = click.IntRange(1, 2**63 - 1)


def text(value: str) -> str:
    """The type of an argument that is not empty, and UTF-8: neither a database nor the platform takes other bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise click.BadParameter("must be UTF-8.") from None
    if not value:
        raise click.BadParameter("must not be empty.")
    return value


account_option = click.option(
    "--account",
    metavar="NAME",
    expose_value=False,
    callback=lambda context, _, name: context.meta.__setitem__(_ACCOUNT, name),
    help="Which one of ACCOUNTS, where there are several (哪个账号).",
)
"""The option of a command that asks for `app_parts`."""
_ACCOUNT = "account"


def app_accounts() -> Accounts:
    """The application's accounts. With faulty settings or handlers it has none, and the command ends."""
    error = current_app.extensions.get("start_error")
    if error is not None:
        fail_without_parts(error)
    accounts = cast("Accounts", current_app.extensions["accounts"])
    # With LEDGER_SYNC=normal the timer that syncs what was committed ends with the process: closing does it.
    click.get_current_context().call_on_close(accounts.database.close)
    return accounts


def app_parts() -> Parts:
    """The parts of the account that --account names. Ends the command as `app_accounts` does."""
    accounts = app_accounts().of
    name = chosen_account(list(accounts))
    logs.ACCOUNT.set(name)
    return accounts[name]


def chosen_account(names: Sequence[str]) -> str:
    """The account that --account names, or the only one. Raises click.UsageError, which lists them."""
    name = click.get_current_context().meta.get(_ACCOUNT)
    if name is None and len(names) == 1:
        return names[0]
    if name is None:
        raise click.UsageError(f"say which account: --account NAME, which is one of {', '.join(names)}")
    if name not in names or not name:
        raise click.UsageError(
            f"there is no account {name!r}: the setting ACCOUNTS has {', '.join(names) or 'none'}"
        )
    return cast(str, name)


def fail(error: Exception | str, status: int = 1) -> NoReturn:
    text = escaped_lines(str(error)) if isinstance(error, SettingsError) else escaped(str(error))
    click.echo(f"Error: {text}", err=True)
    sys.exit(status)


def fail_without_parts(error: SettingsError | HandlerError) -> NoReturn:
    if isinstance(error, HandlerError):
        fail(error)
    if "WECHAT_APPID" in {fault.name for fault in error.faults}:
        click.echo(
            "Without an account: start `make run`, and use commands while it runs "
            "(没有账号：先运行 make run，在它运行期间使用命令).",
            err=True,
        )
    fail(error, status=2)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turns expected errors into one line with a hint, and exit code 1."""
    token_log = logging.getLogger("wechat.access_token")
    token_log.addFilter(_is_no_warning)
    try:
        yield
    except WeChatError as error:
        fail(explained(error))
    except DatabaseUnavailableError as error:
        fail(error)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else error)
    finally:
        token_log.removeFilter(_is_no_warning)


def _is_no_warning(record: logging.LogRecord) -> bool:
    """Why there is no access_token is the command's own line already: the log would say it a second time."""
    return record.levelno != logging.WARNING


def show_json(value: dict[str, Any]) -> None:
    """Prints one line of JSON for machines."""
    click.echo(json_line(value))


@contextmanager
def progress_bar(total: int | None, what: str) -> Iterator[Callable[[int], None]]:
    """Yields a function to call with the bytes moved since the last call. `total` is in bytes, None if unknown.

    On a terminal it draws a bar; elsewhere one line is printed at the end.
    """
    on_terminal = os.isatty(2)  # sys.stderr is None where it was closed
    with tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=not on_terminal) as bar:
        yield lambda count: cast(None, bar.update(count))
    if not on_terminal:
        click.echo(f"{what}: done", err=True)
