"""The bot with handlers that count what each fan sends, for tests: gunicorn loads it in place of app.py.

Only the first of a fan's videos comes back. A text "exit" makes its handler end the program, "cancel" end as cancelled
asyncio code does, and "panic" as a library in Rust does.
"""

import sys
from asyncio import CancelledError

import app
import handlers
from handlers import Remember
from wechat.messages import TextMessage, VideoMessage
from wechat.replies import TextReply, VideoReply


class PanicException(BaseException):
    pass


def count(message, memory):
    if message.content == "exit":
        sys.exit("as argparse does")
    if message.content == "cancel":
        raise CancelledError
    if message.content == "panic":
        raise PanicException
    number = memory.get("count", 0) + 1
    return Remember(TextReply(str(number)), {"count": number})


def film(message, memory):
    number = memory.get("count", 0) + 1
    reply = VideoReply(message.media_id) if number == 1 else TextReply("one is enough")
    return Remember(reply, {"count": number})


handlers.HANDLERS = {**handlers.STOCK_HANDLERS, TextMessage: count, VideoMessage: film}
create_app = app.create_app
