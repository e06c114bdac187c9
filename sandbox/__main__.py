"""`python -m sandbox --port P --callback URL`: reads arguments and environment, and runs until a signal.

Knows the command line and nothing else.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

from . import Account, running_sandbox
from .server import log_to


def main() -> int:
    """Runs until SIGTERM or Ctrl-C; 2 for wrong use or settings."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox",
        description="A stand-in for the WeChat platform, on 127.0.0.1 only. Its account is WECHAT_APPID, "
        "WECHAT_APPSECRET, WECHAT_TOKEN and WECHAT_AES_KEY of the environment, else a throw-away one.",
    )
    parser.add_argument("--port", type=int, required=True, help="0 takes a free one")
    parser.add_argument(
        "--callback", required=True, help="the bot's address, like http://127.0.0.1:8000/wechat"
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="a folder in which chats and pushes outlive this run; without it nothing is kept",
    )
    arguments = parser.parse_args()
    address = urlsplit(arguments.callback)
    if address.scheme not in ("http", "https") or not address.hostname:
        parser.error("--callback must be an http:// or https:// address")
    try:
        account = Account.from_env(os.environ)
    except ValueError as error:
        parser.error(str(error))

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    log_to(sys.stderr)
    options = {"callback": arguments.callback, "port": arguments.port, "data": arguments.data}
    with running_sandbox(account=account, **options) as sandbox:
        print(f"sandbox on {sandbox.url}", flush=True)
        ended.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
