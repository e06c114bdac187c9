"""The bot with slow handlers, for tests: gunicorn and flask load it in place of app.py.

A text "slow SECONDS WORDS" is answered with the words after so long, "wait - WORDS" when the file RUNS.go is there;
"crash" raises; "nothing" has no reply; "kill SECONDS WORDS" ends its process by -9 the first time; "cores" and, without
work, "core" tell on how many they may run; "several FILE" sends a text and the picture before its reply. Each run of
the work is noted in the file that RUNS names, and its process in RUNS.pids.
"""

import os
import signal
import time

import app
import handlers
from bench.servers import until
from handlers import Deferred
from wechat.messages import TextMessage
from wechat.replies import ImageReply, TextReply, TransferReply


def note(words):
    for end, line in (".pids", os.getpid()), ("", words):
        with open(os.environ["RUNS"] + end, "a", encoding="utf-8") as file:
            file.write(f"{line}\n")


def runs():
    with open(os.environ["RUNS"], encoding="utf-8") as file:
        return file.read().splitlines()


def where():
    return str(len(os.sched_getaffinity(0)))


def slow(message):
    kind, _, rest = message.content.partition(" ")

    def twice(account):
        """Sends a text, then a picture from a file, and returns a text."""
        account.send(TextReply("first"))
        account.send(ImageReply(account.upload(rest)))
        note(kind)
        return TextReply("last")

    def work():
        seconds, _, words = rest.partition(" ")
        note(words or kind)
        if kind == "wait":
            if not until(lambda: os.path.exists(os.environ["RUNS"] + ".go"), 60):
                raise TimeoutError("no file RUNS.go after 60 s")
            return TextReply(words)
        if kind == "crash":
            raise RuntimeError("the service is away")
        if kind == "cores":
            return TextReply(where())
        if kind == "transfer":
            return TransferReply()
        if kind == "nothing":
            return None
        if kind == "kill" and runs().count(words) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(seconds))  # the slow handler itself
        return TextReply(words)

    if kind == "several":
        return Deferred(twice)
    if kind == "core":
        return TextReply(where())
    return (
        Deferred(work)
        if kind in ("slow", "wait", "crash", "nothing", "kill", "transfer", "cores")
        else TextReply(message.content)
    )


handlers.HANDLERS = {**handlers.STOCK_HANDLERS, TextMessage: slow}
create_app = app.create_app
