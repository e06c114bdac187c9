"""A bot made with wechatpy and Flask, as in wechatpy's own example: `python wechatpy_bot.py PORT`.

Its account is WECHAT_* of the environment; it takes plaintext, compat and safe mode.
"""

import os
import sys

from flask import Flask, request
from wechatpy import create_reply, parse_message
from wechatpy.crypto import WeChatCrypto
from wechatpy.replies import ImageReply
from wechatpy.utils import check_signature

TOKEN, AES_KEY, APPID = (os.environ[f"WECHAT_{name}"] for name in ("TOKEN", "AES_KEY", "APPID"))
app = Flask(__name__)


@app.post("/")
def wechat():
    signature, timestamp, nonce = (request.args[name] for name in ("signature", "timestamp", "nonce"))
    check_signature(TOKEN, signature, timestamp, nonce)
    if request.args.get("encrypt_type", "raw") == "raw":
        return answer(request.data)
    crypto = WeChatCrypto(TOKEN, AES_KEY, APPID)
    opened = crypto.decrypt_message(request.data, request.args["msg_signature"], timestamp, nonce)
    return crypto.encrypt_message(answer(opened), nonce, timestamp)


def answer(xml):
    message = parse_message(xml)
    if message.type == "image":
        return ImageReply(message=message, media_id=message.media_id).render()
    return create_reply(message.content, message).render()


app.run("127.0.0.1", int(sys.argv[1]))
