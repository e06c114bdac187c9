"""The `flask ...` commands, one module for each subject: they parse arguments, call, and print.

Exit 0 done, 1 failed (one line on stderr, with the hint), 2 wrong use or settings. The last line of stdout is for
machines; long work shows a progress bar on a terminal and plain lines elsewhere. Decisions are made elsewhere.
"""

from __future__ import annotations

import click
from flask import Flask
from flask.cli import FlaskGroup

from commands import common, ledger, media, menu, replay, token, worker
from commands.doctor import command as doctor_command
from config import SettingsError

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
    """Give the application our commands. `flask --help` lists them, and no longer Flask's own, which go on working."""
    for command in COMMANDS:
        app.cli.add_command(command)
    context = click.get_current_context(silent=True)
    root = context.find_root().command if context else None
    if isinstance(root, FlaskGroup):
        for name in _OF_FLASK:
            root.commands[name].hidden = True


def use_without_settings(app: Flask, error: SettingsError) -> None:
    """The application has faulty settings: `doctor` and `--help` work, each other command says what is wrong.

    Flask's own `flask run` would serve an application without routes: it ends here, with exit code 2.
    """
    context = click.get_current_context(silent=True)
    if context is not None and context.info_name in _OF_FLASK:
        common.fail_without_settings(error)
    app.extensions["settings_error"] = error
