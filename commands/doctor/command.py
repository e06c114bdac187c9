"""`flask doctor`: prints the findings. Exit 0: nothing is wrong, 1: a check failed, 2: the settings are faulty.

On a terminal in columns and colours, with each language on its own line, or only Chinese if LANG says so. Elsewhere
each finding is one line. Must not know what is checked.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Mapping

import click

from commands.common import account_option, chosen_account
from commands.doctor.console import console_entry
from commands.doctor.examination import examine
from commands.doctor.findings import Finding
from config import Settings, accounts, settings_of_commands

_WORDS = {True: "OK", False: "FAIL", None: "-"}
_COLOURS = {True: "green", False: "red", None: "yellow"}
_CHECK_COLUMNS = 16  # the mark and the check's name, in front of the text


@click.command()
@account_option
@click.option("--json", "as_json", is_flag=True, help="One line for machines (供程序读取).")
def doctor(as_json: bool) -> None:
    """Find what is wrong (检查问题), and say what to do about it.

    检查机器人为什么不工作，以及怎么办。
    """
    logging.disable()  # the findings say it; log lines would only come between them
    environ = settings_of_commands(os.environ)
    account = chosen_account(accounts(Settings.unchecked(environ)) or [""])
    on_terminal = os.isatty(1) and not as_json  # sys.stdout is None where it was closed
    findings = []
    for finding in examine(environ, account=account):
        findings.append(finding)
        if on_terminal:
            _print_in_columns(finding, os.environ)
        elif not as_json:
            click.echo(f"{_WORDS[finding.ok]:4} {finding.check}: {finding.hint}")
    wrong = [finding for finding in findings if finding.ok is False]
    if as_json:
        checked = [
            {"check": finding.check, "ok": finding.ok, "hint": finding.hint}
            for finding in findings
            if finding.ok is not None
        ]
        click.echo(json.dumps(checked, ensure_ascii=False))
    elif wrong:
        english, chinese = _what_to_do_first(wrong)
        click.echo(f"\n{english}\n{chinese}" if on_terminal else f"{english} / {chinese}")
    elif on_terminal:
        click.echo("\nNothing is wrong.\n没有发现问题。")
    if on_terminal and (entry := console_entry(environ, account=account)):
        click.echo(f"\n{entry}")
    sys.exit(2 if "settings" in {finding.check for finding in wrong} else 1 if wrong else 0)


def _what_to_do_first(wrong: list[Finding]) -> tuple[str, str]:
    """The first fault: each check comes after those that it depends on, so the first fault may cause the others."""
    first, more = wrong[0].check, len(wrong) - 1
    if not more:
        return (
            f"Correct this ({first}), then run flask doctor again.",
            f"请先解决这一项（{first}），再运行 flask doctor。",
        )
    return (
        f"Begin with {first}, then run flask doctor again: it may explain the {more} after it.",
        f"请先解决 {first}，再运行 flask doctor：后面的 {more} 项可能由它引起。",
    )


def _print_in_columns(finding: Finding, environ: Mapping[str, str]) -> None:
    texts = [finding.chinese] if _speaks_chinese(environ) else [finding.english, finding.chinese]
    room = max(shutil.get_terminal_size().columns - _CHECK_COLUMNS, 30)
    mark = click.style(f"{_WORDS[finding.ok]:5}", fg=_COLOURS[finding.ok], bold=finding.ok is False)
    margin = mark + f"{finding.check:{_CHECK_COLUMNS - 5}}"
    for number, text in enumerate(texts):
        for line in _wrapped(text, room):
            click.echo(margin + click.style(line, dim=number > 0))
            margin = " " * _CHECK_COLUMNS


def _speaks_chinese(environ: Mapping[str, str]) -> bool:
    language = environ.get("LC_ALL") or environ.get("LC_MESSAGES") or environ.get("LANG") or ""
    return language.startswith("zh")


def _wrapped(text: str, columns: int) -> list[str]:
    """The text in lines of at most so many columns. A Chinese character takes two, and a line may end after any."""
    if not any(_width(letter) == 2 for letter in text):
        return textwrap.wrap(text, columns, break_long_words=False, break_on_hyphens=False)
    lines, line, width = [], "", 0
    for word in _breakable(text):
        length = sum(map(_width, word))
        if line and width + length > columns:
            lines.append(line.rstrip())
            line, width = "", 0
        line, width = line + word, width + length
    return [*lines, line]


def _breakable(text: str) -> list[str]:
    """The text in pieces. A line may end after each: after a Chinese character, and after a space."""
    pieces = [""]
    for letter in text:
        if _width(letter) == 2 and unicodedata.category(letter).startswith("L"):
            pieces.append(letter)
        else:
            pieces[-1] += letter
        if letter == " ":
            pieces.append("")
    return pieces


def _width(letter: str) -> int:
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1
