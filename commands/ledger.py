"""`flask ledger`: lists and shows what fans sent, tries failed work again, and deletes.

Knows arguments and what to print. Must not know SQL.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from typing import Any

import click

from commands.common import LEDGER_ID, account_option, app_parts, errors_in_one_line, fail, show_json, text
from logs import escaped, escaped_lines
from storage.ledger import Entry
from storage.purge import Purge

MOST_DAYS = 100_000  # 273 years; of any number no time can be made


@click.group()
def ledger() -> None:
    """What fans sent (消息记录), and what became of it."""


@ledger.command("status")
@account_option
def ledger_status() -> None:
    """Count what is pending, stored, failed (统计)."""
    with errors_in_one_line():
        show_json(asdict(app_parts().ledger.status(time.time())))


@ledger.command("list")
@account_option
@click.option("--failed", is_flag=True, help="Only what failed (只列出失败的).")
@click.option("--fan", type=text, metavar="OPENID", help="Only what this fan sent (只列出该粉丝的).")
@click.option(
    "--last",
    "limit",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    metavar="N",
    help="How many (列出多少条).",
)
def ledger_list(failed: bool, fan: str | None, limit: int) -> None:
    """List messages (列出消息), the newest last; each is a line of JSON unless this is a terminal."""
    with errors_in_one_line():
        entries = app_parts().ledger.newest(limit, failed=failed, fan=fan)
    for entry in entries:
        line = _summary(entry)
        if os.isatty(1):
            words = [f"{line['id']:>6}", line["received_at"], f"{line['type']:10}", line["fan"]]
            words += [
                str(line[name]) for name in ("media", "send", "code", "reason") if line[name] is not None
            ]
            click.echo(escaped("  ".join(words)))
        else:
            show_json(line)


@ledger.command("show")
@account_option
@click.argument("ledger_id", type=LEDGER_ID)
def ledger_show(ledger_id: int) -> None:
    """Show one message (查看): what the fan sent, what was answered, and what became of it."""
    with errors_in_one_line():
        entry = app_parts().ledger.get(ledger_id)
    if entry is None:
        fail(f"the ledger has no row {ledger_id}")
    click.echo(f"Message:\n{escaped_lines(entry.xml.decode(errors='replace'))}\nReply:")
    click.echo("success" if entry.reply is None else escaped_lines(entry.reply.decode()))
    show_json(
        _summary(entry)
        | {
            "msg_id": entry.msg_id,
            "event": entry.event,
            "media_id": entry.media_id,
            "file": entry.media_key,
            "size": entry.media_size,
            "sha256": entry.media_sha256,
            "attempts": entry.media_attempts,
        }
    )


def _summary(entry: Entry) -> dict[str, Any]:
    return {
        "id": entry.id,
        "received_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(entry.received_at)),
        "type": entry.event or entry.msg_type,
        "fan": entry.sender,
        "media": entry.media_state,
        "send": entry.send_state,
        "code": entry.send_code if entry.media_code is None else entry.media_code,
        "reason": entry.media_reason or entry.send_reason,
    }


@ledger.command("retry")
@account_option
@click.argument("ids", nargs=-1, type=LEDGER_ID)
def ledger_retry(ids: tuple[int, ...]) -> None:
    """Try the failed ones again (重试): those with the given ledger IDs, or all."""
    with errors_in_one_line():
        parts = app_parts()
        unknown = [str(each) for each in ids if parts.ledger.get(each) is None]
        if unknown:
            fail(f"the ledger has no row {', '.join(unknown)}; nothing was changed")
        show_json({"rows": parts.queue.retry(ids or None, time.time())})


@ledger.command("purge")
@account_option
@click.option(
    "--before",
    "days",
    type=click.IntRange(0, MOST_DAYS),
    metavar="DAYS",
    help="Only what is older than DAYS days (删除多少天之前的).",
)
@click.option("--fan", type=text, metavar="OPENID", help="Only what this fan sent (删除该粉丝的).")
@click.option("--dry-run", is_flag=True, help="Count only, delete nothing (只统计，不删除).")
@click.option("--yes", is_flag=True, help="Do not ask (不再询问); without a terminal nothing is asked.")
def ledger_purge(days: int | None, fan: str | None, dry_run: bool, yes: bool) -> None:
    """Delete rows and files for good (删除): old ones, a fan's, or a fan's old ones."""
    if days is None and fan is None:
        raise click.UsageError("say what to delete: --before DAYS, --fan OPENID, or both")
    with errors_in_one_line():
        parts, now = app_parts(), time.time()
        before = None if days is None else now - days * 86400
        if dry_run or (os.isatty(0) and not yes):
            rows, files = parts.purge_rows.count(before=before, fan=fan)
            if dry_run:
                show_json({"rows": rows, "files": files})
                return
            click.confirm(f"Delete {rows} messages and {files} files for good?", abort=True, err=True)
        purge = Purge(parts.purge_rows, parts.files, parts.thumbnails)
        gone = purge.purge(now, before=before, fan=fan)
        show_json({"rows": gone.rows, "files": gone.files})
