"""The `flask ...` commands: parse arguments, call, print. No logic of their own.

Exit 0 done, 1 failed (one line on stderr, with the hint), 2 wrong use or settings. The last line of stdout is for
machines; long work shows a progress bar on a terminal and plain lines elsewhere.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import click
from flask import current_app
from tqdm import tqdm

import handlers
import purge
from commands.doctor import console_entry, examine
from config import SettingsError, usable_cores
from storage.errors import DatabaseUnavailableError
from web import callback
from wechat import media as wechat_media
from wechat.errors import ApiError, TokenUnavailableError, WeChatError
from wechat.messages import parse_message
from worker import processes as worker_processes

if TYPE_CHECKING:
    from parts import Parts

WORKER_THREADS = 16  # downloads at once
# To share them, at most: two fill a line of 4 Gbit/s, and each one more costs 20 MB of memory.
WORKER_PROCESSES = 2
DEFAULT_KIND = {
    "jpg": "image",
    "png": "image",
    "gif": "image",
    "amr": "voice",
    "mp3": "voice",
    "mp4": "video",
}


def _parts() -> Parts:
    error = current_app.extensions.get("settings_error")
    if error is not None:
        _fail(cast(SettingsError, error), status=2)
    return cast("Parts", current_app.extensions["parts"])


def _fail(error: Exception | str, status: int = 1) -> NoReturn:
    click.echo(f"Error: {error}", err=True)
    sys.exit(status)


@contextmanager
def _told() -> Iterator[None]:
    """Turns what may go wrong into one line with its hint."""
    try:
        yield
    except ApiError as error:
        _fail(f"{error.code} {error.errmsg}. {error.hint_en} ({error.hint_zh})")
    except TokenUnavailableError as error:
        _fail(error.reason)
    except (WeChatError, DatabaseUnavailableError) as error:
        _fail(error)
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}" if error.filename else error)


def _show(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))


@click.command()
def worker() -> None:
    """Download what fans sent, until Ctrl-C or SIGTERM."""
    parts = _parts()
    processes = min(usable_cores(), WORKER_PROCESSES)

    def work(place: int, wait_for_stop: Callable[[], None]) -> None:
        first = place == 0
        parts.worker.start(WORKER_THREADS // processes, chores=first)
        parts.deferred.start(orphans=first)
        wait_for_stop()
        parts.stop()

    worker_processes.run(processes, work)


@click.group()
def token() -> None:
    """The account's access_token."""


@token.command("show")
def token_show() -> None:
    """Print the access_token; fetch it if there is none."""
    _print_token(_parts().token.get)


@token.command("refresh")
def token_refresh() -> None:
    """Fetch a new access_token now."""
    _print_token(_parts().token.refresh)


def _print_token(get: Callable[[], str]) -> None:
    with _told():
        value = get()
        row = _parts().token.row()
        _show({"access_token": value, "expires_in": int(row.expires_at - time.time())})


@click.group()
def media() -> None:
    """Temporary media (临时素材): it lives three days on the platform."""


@media.command("upload")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--type", "kind", type=click.Choice(["image", "voice", "video", "thumb"]), help="By content if left out."
)
def media_upload(file: Path, kind: str | None) -> None:
    """Upload FILE and print the platform's answer."""
    parts = _parts()
    with _told(), file.open("rb") as opened:
        size = file.stat().st_size
        if kind is None:
            kind = DEFAULT_KIND.get(wechat_media.extension(opened.read(512)), "image")
            opened.seek(0)
        with _progress(size, f"upload {file.name}") as progress:
            answer = wechat_media.upload(
                parts.client,
                kind=cast(Any, kind),
                file=opened,
                filename=file.name,
                size=size,
                progress=progress,
            )
        _show(answer)


@media.command("get")
@click.argument("media_id")
@click.option(
    "-o", "path", type=click.Path(dir_okay=False, path_type=Path), help="Where to; by default a name here."
)
def media_get(media_id: str, path: Path | None) -> None:
    """Download MEDIA_ID and print the path it was written to."""
    parts = _parts()
    with _told():
        partial = (path or Path(re.sub(r"[^A-Za-z0-9_-]", "_", media_id))).with_suffix(".part")
        try:
            with (
                wechat_media.open_media(
                    parts.client, media_id, max_bytes=parts.settings.max_media_bytes
                ) as chunks,
                partial.open("wb") as file,
                _progress(None, "download") as progress,
            ):
                head = b""
                for chunk in chunks:
                    head = head or chunk[:512]
                    file.write(chunk)
                    progress(len(chunk))
            path = path or partial.with_suffix(f".{wechat_media.extension(head)}")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    click.echo(str(path))


@contextmanager
def _progress(total: int | None, what: str) -> Iterator[Callable[[int], None]]:
    on_terminal = sys.stderr.isatty()
    with tqdm(total=total, unit="B", unit_scale=True, desc=what, disable=not on_terminal) as bar:
        yield lambda count: cast(None, bar.update(count))
    if not on_terminal:
        click.echo(f"{what}: done", err=True)


@click.group()
def ledger() -> None:
    """What fans sent and what became of it."""


@ledger.command("status")
def ledger_status() -> None:
    """Count what is pending, stored and failed."""
    with _told():
        status = _parts().ledger.status(time.time())
        _show(
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
    with _told():
        _show({"rows": _parts().ledger.retry(ids or None, time.time())})


@ledger.command("purge")
@click.option(
    "--before", "days", type=click.IntRange(min=0), metavar="DAYS", help="What is older than so many days."
)
@click.option("--fan", metavar="OPENID", help="What this fan sent.")
def ledger_purge(days: int | None, fan: str | None) -> None:
    """Delete rows and their files for good: old ones, a fan's, or a fan's old ones."""
    if days is None and fan is None:
        raise click.UsageError("say what to delete: --before DAYS, --fan OPENID, or both")
    with _told():
        parts, now = _parts(), time.time()
        before = None if days is None else now - days * 86400
        gone = purge.purge(parts.ledger, parts.files, parts.thumbnails, now=now, before=before, fan=fan)
        _show({"rows": gone.rows, "files": gone.files})


@click.command()
@click.argument("ledger_id", type=int)
def replay(ledger_id: int) -> None:
    """Show what the recorded message LEDGER_ID would be answered today. Nothing is sent or recorded.

    The work of a Deferred handler is done, since its result is the answer.
    """
    with _told():
        parts = _parts()
        entry = parts.ledger.get(ledger_id)
        if entry is None:
            _fail(f"the ledger has no row {ledger_id}")
        message = parse_message(entry.xml)
        try:
            outcome = handlers.dispatch(message)
            reply = outcome.work() if isinstance(outcome, handlers.Deferred) else outcome
            # With the time of then, so that nothing differs but what the handlers do differently.
            xml, send_back = callback.rendered(
                reply, message, entry.received_at, upload=parts.settings.echo_via == "upload"
            )
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            _fail(
                f"today's handler of {entry.msg_type} raises {type(error).__name__}: {error} "
                f"({Path(place.filename).name}:{place.lineno}); the fan would be answered success"
            )
    if send_back:
        click.echo("ECHO_VIA=upload: the stored copy would be sent later by customer-service message.")
    if xml != entry.reply:
        click.echo(f"Recorded then:\n{_answer(entry.reply)}\nToday:")
    click.echo(_answer(xml))


def _answer(reply: bytes | None) -> str:
    return "success" if reply is None else reply.decode()


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One line for machines.")
def doctor(as_json: bool) -> None:
    """Look for what keeps the bot from working, and say what to do about it."""
    marks = {True: "OK  ", False: "FAIL", None: "-   "}
    findings = []
    for finding in examine(os.environ):
        findings.append(finding)
        if not as_json:
            click.echo(f"{marks[finding.ok]} {finding.check}: {finding.hint}")
    if as_json:
        checked = [vars(finding) for finding in findings if finding.ok is not None]
        click.echo(json.dumps(checked, ensure_ascii=False))
    elif sys.stdout.isatty() and (entry := console_entry(os.environ)):
        click.echo(f"\n{entry}")
    failed = {finding.check for finding in findings if finding.ok is False}
    sys.exit(2 if "settings" in failed else 1 if failed else 0)
