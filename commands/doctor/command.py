"""`flask doctor`: prints the findings. Exit 0: all well, 1: a check failed, 2: the settings are faulty."""

from __future__ import annotations

import json
import os
import sys

import click

from commands.doctor.console import console_entry
from commands.doctor.examination import examine
from config import settings_of_commands


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One line for machines.")
def doctor(as_json: bool) -> None:
    """Look for what keeps the bot from working, and say what to do about it."""
    marks = {True: "OK  ", False: "FAIL", None: "-   "}
    environ = settings_of_commands(os.environ)
    findings = []
    for finding in examine(environ):
        findings.append(finding)
        if not as_json:
            click.echo(f"{marks[finding.ok]} {finding.check}: {finding.hint}")
    if as_json:
        checked = [
            {"check": finding.check, "ok": finding.ok, "hint": finding.hint}
            for finding in findings
            if finding.ok is not None
        ]
        click.echo(json.dumps(checked, ensure_ascii=False))
    elif sys.stdout.isatty() and (entry := console_entry(environ)):
        click.echo(f"\n{entry}")
    failed = {finding.check for finding in findings if finding.ok is False}
    sys.exit(2 if "settings" in failed else 1 if failed else 0)
