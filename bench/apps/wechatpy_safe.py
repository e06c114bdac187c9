"""wechatpy under Flask, safe mode: opens and seals the envelope, echoes the picture, keeps nothing.

https://docs.wechatpy.org/zh-cn/stable/quickstart.html
"""

from flask import Flask, Response, abort, request
from wechatpy import parse_message
from wechatpy.crypto import WeChatCrypto
from wechatpy.exceptions import InvalidAppIdException, InvalidSignatureException
from wechatpy.replies import ImageReply

from bench.account import AES_KEY, APPID, TOKEN

app = Flask(__name__, static_folder=None)
crypto = WeChatCrypto(TOKEN, AES_KEY, APPID)


@app.post("/wechat")
def receive():
    query = request.args
    timestamp, nonce = query.get("timestamp"), query.get("nonce")
    try:
        xml = crypto.decrypt_message(request.get_data(), query.get("msg_signature"), timestamp, nonce)
    except (InvalidSignatureException, InvalidAppIdException):
        abort(403)
    message = parse_message(xml)
    reply = ImageReply(media_id=message.media_id, message=message)
    return Response(crypto.encrypt_message(reply.render(), nonce, timestamp), mimetype="application/xml")
