"""`flask ledger`: what fans sent and what became of it; tries again, and deletes. Knows no SQL."""

from __future__ import annotations

import time

import click

from commands.common import app_parts, errors_in_one_line, show_json
from storage import purge


@click.group()
def ledger() -> None:
    """What fans sent and what became of it."""


@ledger.command("status")
def ledger_status() -> None:
    """Count what is pending, stored and failed."""
    with errors_in_one_line():
        status = app_parts().ledger.status(time.time())
        show_json(
            {
                "pending": status.pending,
                "stored": status.stored,
                "failed": status.failed,
                "replies_pending": status.replies_pending,
                "oldest_pending_seconds": status.oldest_pending_seconds,
            }
        )


@ledger.command("retry")
@click.argument("ids", nargs=-1, type=int)
def ledger_retry(ids: tuple[int, ...]) -> None:
    """Try the failed ones again: those with the given ledger IDs, or all."""
    with errors_in_one_line():
        show_json({"rows": app_parts().ledger.retry(ids or None, time.time())})


@ledger.command("purge")
@click.option(
    "--before", "days", type=click.IntRange(min=0), metavar="DAYS", help="What is older than so many days."
)
@click.option("--fan", metavar="OPENID", help="What this fan sent.")
def ledger_purge(days: int | None, fan: str | None) -> None:
    """Delete rows and their files for good: old ones, a fan's, or a fan's old ones."""
    if days is None and fan is None:
        raise click.UsageError("say what to delete: --before DAYS, --fan OPENID, or both")
    with errors_in_one_line():
        parts, now = app_parts(), time.time()
        before = None if days is None else now - days * 86400
        gone = purge.purge(parts.ledger, parts.files, parts.thumbnails, now=now, before=before, fan=fan)
        show_json({"rows": gone.rows, "files": gone.files})
