"""Commands on a terminal: what is shown there, and how they end."""

import contextlib
import os
import pty
import sys
import termios

from tests.conftest import clean_environ
from tests.prepared import Started


def on_a_terminal(environ, *arguments, typed="", columns=200, stdout=None, stderr=None):
    """What `flask arguments` shows there, and its exit code. `stdout` or `stderr` goes to a file, if there is one."""
    leader, follower = pty.openpty()
    termios.tcsetwinsize(follower, (24, columns))
    files = (follower, *(follower if file is None else file.fileno() for file in (stdout, stderr)))
    command = [sys.executable, "-m", "flask", *arguments]
    process = Started(command, clean_environ() | environ | {"TERM": "xterm"}, files)
    os.close(follower)
    os.write(leader, typed.encode())
    shown = b""
    with contextlib.suppress(OSError):  # what Linux says at the end of a terminal
        while chunk := os.read(leader, 100_000):
            shown += chunk
    os.close(leader)
    return shown.decode(), process.wait(60)
