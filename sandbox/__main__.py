"""`python -m sandbox --port P --callback URL`: runs the sandbox until a signal.

Knows arguments, environment and exit codes. It must not know what the sandbox does.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import socket
import sys
from pathlib import Path
from urllib.parse import urlsplit

from . import Account, running_sandbox
from .server import log_to


def main() -> int:
    """Runs until SIGTERM or Ctrl-C; 2 for wrong use or settings."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a terminal may know no Chinese
    parser = argparse.ArgumentParser(
        prog="python -m sandbox",
        description="A stand-in for the WeChat platform, on 127.0.0.1 only. Its account is WECHAT_APPID, "
        "WECHAT_APPSECRET, WECHAT_TOKEN and WECHAT_AES_KEY of the environment, or else a throw-away one; with ACCOUNTS "
        "there are several, as for the bot. "
        "在本机模拟微信平台；账号取自上述环境变量，没有则用一个一次性账号；设置 ACCOUNTS 则有多个。",
    )
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one (0 表示任选一个空闲端口)")
    parser.add_argument(
        "--callback",
        required=True,
        help="the bot's address (机器人的地址), like http://127.0.0.1:8000/wechat; each of ACCOUNTS has its name "
        "behind it (多个账号时各自在后面加上名称)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="a folder in which chats and pushes outlive this run; without it nothing is kept "
        "(保存数据的文件夹，不指定则不保留)",
    )
    arguments = parser.parse_args()
    if not _is_address(arguments.callback):
        parser.error("--callback must be an http:// or https:// address")
    if not 0 <= arguments.port <= 65535:
        parser.error("--port must be from 0 to 65535")
    try:
        first, *others = Account.all_from_env(os.environ)
    except ValueError as error:
        parser.error(str(error))

    # A lock or a queue would not do: a signal that another thread gets does not wake what waits for it here.
    told, tells = socket.socketpair()
    tells.setblocking(False)
    signal.set_wakeup_fd(tells.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    log_to(sys.stderr)
    options = {"callback": arguments.callback, "port": arguments.port, "data": arguments.data}
    with contextlib.ExitStack() as stack:
        try:
            sandbox = stack.enter_context(running_sandbox(account=first, others=others, **options))
        except OSError as error:
            parser.error(f"--data must be a folder that can be read and written: {error}")
        print(f"sandbox on {sandbox.url}", flush=True)
        told.recv(1)
    return 0


def _is_address(text: str) -> bool:
    """Whether pushes can be sent there: its port and its host's name must be possible too."""
    try:
        address = urlsplit(text)
        text.encode()  # bytes that are not UTF-8 arrive as halves of surrogate pairs
        host = (address.hostname or "").encode("idna")
        return address.scheme in ("http", "https") and bool(host) and address.port != 0
    except ValueError:
        return False


if __name__ == "__main__":
    sys.exit(main())
