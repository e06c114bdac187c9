"""The checks of the settings: unknown names, and secrets that others can read.

Knows the environment and `.env`. Must not check values: config.py does, and refuses to start.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path

from commands.doctor.findings import Outcome
from config import OF_LIBRARIES, Settings, file_texts, known_names
from wechat.transport import is_loopback


def unknown_names(environ: Mapping[str, str], folder: Path) -> Iterator[Outcome]:
    """An outcome for each unknown name in .env. In the environment only WECHAT_*: other names may belong to others."""
    in_file = [name for name in file_texts(folder / ".env") if not OF_LIBRARIES.fullmatch(name)]
    others = [name for name in environ if name.startswith("WECHAT_")]
    known = known_names(Settings.unchecked(environ, folder))
    for name in dict.fromkeys([*in_file, *others]):
        if name in known:
            continue
        meant = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.75)
        if meant:
            yield Outcome(
                False,
                f"there is no setting {name}: did you mean {meant[0]}?",
                f"没有 {name} 这个设置，是不是 {meant[0]}？",
            )
        elif name.startswith("WECHAT_"):
            yield Outcome(
                False,
                f"there is no setting {name}: docs/reference.md lists them all",
                f"没有 {name} 这个设置，全部设置见 docs/reference.zh-CN.md",
            )


def exposed_secrets(settings: Settings, folder: Path) -> Iterator[Outcome]:
    try:
        mode = (folder / ".env").stat().st_mode
    except OSError:
        mode = 0
    if mode & 0o004:
        yield Outcome(
            False,
            "every user of this machine can read .env and its secrets: chmod 600 .env",
            "本机所有用户都能读取 .env 中的密钥，请执行 chmod 600 .env",
        )
    source = settings.wechat_token_source
    if source.lower().startswith("http://") and not is_loopback(source):
        yield Outcome(
            False,
            "WECHAT_TOKEN_SOURCE is http://, so key and access_token cross the network in clear: use https://",
            "WECHAT_TOKEN_SOURCE 使用 http://，密钥和 access_token 以明文传输，请改用 https://",
        )
