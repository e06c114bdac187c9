"""The `flask ...` commands, one module for each subject: they parse arguments, call, and print.

Exit 0 done, 1 failed (one line on stderr, with the hint), 2 wrong use or settings. The last line of stdout is for
machines; long work shows a progress bar on a terminal and plain lines elsewhere. Must not decide anything itself.
"""

from __future__ import annotations

import io
import sys

import click
from flask import Flask
from flask.cli import FlaskGroup

from commands import common, ledger, media, menu, replay, token, worker
from commands.doctor import command as doctor_command
from config import SettingsError
from handlers import HandlerError

COMMANDS = (
    doctor_command.doctor,
    ledger.ledger,
    media.media,
    menu.menu,
    replay.replay,
    token.token,
    worker.worker,
)
_OF_FLASK = ("run", "shell", "routes")


def add_to(app: Flask) -> None:
    """Adds our commands to the application. Flask's own still work, but `flask --help` no longer lists them."""
    for command in COMMANDS:
        app.cli.add_command(command)
    context = click.get_current_context(silent=True)
    root = context.find_root().command if context else None
    if isinstance(root, FlaskGroup):
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a terminal may know no Chinese
        for name in _OF_FLASK:
            root.commands[name].hidden = True


def use_without_parts(app: Flask, error: SettingsError | HandlerError) -> None:
    """For faulty settings or handlers: `doctor` and `--help` work, every other command prints what is wrong.

    `flask run` would serve an application without routes, so it ends here.
    """
    context = click.get_current_context(silent=True)
    if context is not None and context.info_name in _OF_FLASK:
        common.fail_without_parts(error)
    app.extensions["start_error"] = error
