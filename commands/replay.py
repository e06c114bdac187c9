"""`flask replay`: what today's handlers would answer to a recorded message.

Knows what to print. Must not send or record anything.
"""

from __future__ import annotations

import json
import os
import traceback
from pathlib import Path

import click

import handlers
from answers.answer import rendered
from answers.failures import HANDLER_FAULTS
from answers.late import carry_out
from commands.common import LEDGER_ID, account_option, app_parts, errors_in_one_line, fail
from handlers import HandlerError
from logs import escaped_lines
from wechat.messages import parse_message
from wechat.replies import Reply


@click.command()
@account_option
@click.argument("ledger_id", type=LEDGER_ID, required=False)
@click.option("--last", is_flag=True, help="The newest message (最新一条).")
def replay(ledger_id: int | None, last: bool) -> None:
    """Answer a recorded message again (重新回复). Nothing is sent or recorded.

    按当前代码，这条消息会得到什么回复。

    The work of a Deferred runs, since its result is the answer. What it would send or upload is printed instead.
    """
    if last == (ledger_id is not None):
        raise click.UsageError("say which message: its ledger ID, or --last")
    with errors_in_one_line():
        parts = app_parts()
        if ledger_id is None:
            newest = parts.ledger.newest(1)
            if not newest:
                fail("the ledger is empty")
            entry = newest[0]
        else:
            found = parts.ledger.get(ledger_id)
            if found is None:
                fail(f"the ledger has no row {ledger_id}")
            entry = found
        message = parse_message(entry.xml, parts.settings.account)
        memory = parts.memories.read(entry.sender).json
        try:
            outcome = handlers.dispatch(message, lambda: json.loads(memory))
            reply, remembered = carry_out(outcome, _DryRunAccount())
            # The recorded time: then a difference can only come from the handlers.
            answer = rendered(reply, message, entry.received_at, echo_via=parts.settings.echo_via)
        except KeyboardInterrupt:
            raise  # Ctrl-C
        except HANDLER_FAULTS as error:
            frames = traceback.extract_tb(error.__traceback__)
            own = [one for one in frames if Path(one.filename).parent.name == "handlers"]
            place = next(
                (one for one in reversed(own) if Path(one.filename).stem not in _NOT_HANDLERS), frames[-1]
            )
            # A HandlerError names the place itself: it is raised by the check, not by the handler.
            where = (
                "" if isinstance(error, HandlerError) else f" ({Path(place.filename).name}:{place.lineno})"
            )
            fail(
                f"today's handler of {entry.msg_type} raises {type(error).__name__}: {error}{where}; "
                "the fan would be answered success"
            )
    if remembered is not None:
        click.echo(f"The fan's memory is {memory} and would be {remembered}.")
    if answer.by_copy:
        click.echo(
            "ECHO_VIA=auto: the stored copy would be uploaded, and be the answer under its new MediaId."
        )
        return
    if answer.send_back:
        click.echo("ECHO_VIA=upload: the stored copy would be sent later by customer-service message.")
    if answer.xml != entry.reply:
        click.echo(f"Recorded then:\n{_as_text(entry.reply)}\nToday:")
    click.echo(_as_text(answer.xml))


class _DryRunAccount:
    """An account that says what would be sent and uploaded."""

    def send(self, reply: Reply) -> None:
        click.echo(f"Would be sent: {escaped_lines(repr(reply))}")

    def upload(self, path: str | os.PathLike[str]) -> str:
        click.echo(f"Would be uploaded: {escaped_lines(os.fspath(path))}")
        return "id_of_the_upload"


# The modules of handlers/ that contain no handler.
_NOT_HANDLERS = {"__init__", "calls", "router", "memory", "deferred"}


def _as_text(reply: bytes | None) -> str:
    return "success" if reply is None else escaped_lines(reply.decode())
