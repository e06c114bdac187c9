"""`flask media`: uploads and downloads temporary media.

Knows files and progress. Must not know the protocol.
"""

from __future__ import annotations

import os
import re
import secrets
from pathlib import Path
from typing import Any, cast

import click

from commands.common import (
    account_option,
    app_parts,
    errors_in_one_line,
    fail,
    progress_bar,
    show_json,
    text,
)
from wechat import media as wechat_media
from wechat.formats import HEAD_BYTES, extension


@click.group()
def media() -> None:
    """Temporary media (临时素材), for three days."""


@media.command("upload")
@account_option
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--type",
    "kind",
    type=click.Choice(["image", "voice", "video", "thumb"]),
    help="Default: found from the content (不指定则按内容判断).",
)
def media_upload(file: Path, kind: str | None) -> None:
    """Upload FILE (上传), and print the platform's answer."""
    parts = app_parts()
    with errors_in_one_line(), file.open("rb") as opened:
        size = file.stat().st_size
        if kind is None:
            kind = wechat_media.kind_of(opened.read(HEAD_BYTES))
            opened.seek(0)
        with progress_bar(size, f"upload {file.name}") as progress:
            answer = wechat_media.upload(
                parts.client,
                kind=cast(Any, kind),
                file=opened,
                filename=file.name,
                size=size,
                progress=progress,
            )
        show_json(answer)


@media.command("get")
@account_option
@click.argument("media_id", type=text)
@click.option(
    "-o",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where to save it; default: a name in this folder (保存路径).",
)
@click.option("--force", is_flag=True, help="Overwrite an existing file (覆盖已有文件).")
def media_get(media_id: str, path: Path | None, force: bool) -> None:
    """Download MEDIA_ID (下载), and print the path it was written to."""
    if path is not None and not path.name:
        raise click.UsageError("-o must name a file")
    parts = app_parts()
    name = path or Path(re.sub(r"[^A-Za-z0-9_-]", "_", media_id))
    folder = name.parent.absolute()
    if not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise click.UsageError(
            f"{folder} is not a folder that this user can write in: name a file in another with -o"
        )
    with errors_in_one_line():
        # A random name, so that no file of the user's is overwritten or deleted.
        partial = name.with_name(f".{name.name[:100]}.{secrets.token_hex(8)}.part")
        try:
            if path is not None:
                _refuse_to_overwrite(path, force)
            with (
                wechat_media.open_media(
                    parts.client, media_id, max_bytes=parts.settings.max_media_bytes
                ) as chunks,
                partial.open("xb") as file,
                progress_bar(None, "download") as progress,
            ):
                head = b""
                for chunk in chunks:
                    head = head or chunk[:HEAD_BYTES]
                    file.write(chunk)
                    progress(len(chunk))
            path = path or name.with_name(f"{name.name}.{extension(head)}")
            _refuse_to_overwrite(path, force)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    click.echo(str(path))


def _refuse_to_overwrite(path: Path, force: bool) -> None:
    if path.exists() and not force:
        fail(f"{path} exists already: choose another name with -o, or add --force")
