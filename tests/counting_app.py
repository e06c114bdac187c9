"""The bot with a handler that counts each fan's texts, for tests: gunicorn loads it in place of app.py."""

import app
import handlers
from handlers import Remember
from wechat.messages import TextMessage
from wechat.replies import TextReply


def count(message, memory):
    number = memory.get("count", 0) + 1
    return Remember(TextReply(str(number)), {"count": number})


handlers.HANDLERS = {**handlers.STOCK_HANDLERS, TextMessage: count}
create_app = app.create_app
