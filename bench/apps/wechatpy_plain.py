"""wechatpy under Flask, plain mode: checks the signature, echoes the picture, keeps nothing.

https://docs.wechatpy.org/zh-cn/stable/quickstart.html
"""

from flask import Flask, Response, abort, request
from wechatpy import parse_message
from wechatpy.exceptions import InvalidSignatureException
from wechatpy.replies import ImageReply
from wechatpy.utils import check_signature

from bench.account import TOKEN

app = Flask(__name__, static_folder=None)


@app.post("/wechat")
def receive():
    query = request.args
    try:
        check_signature(TOKEN, query.get("signature"), query.get("timestamp"), query.get("nonce"))
    except InvalidSignatureException:
        abort(403)
    message = parse_message(request.get_data())
    reply = ImageReply(media_id=message.media_id, message=message)
    return Response(reply.render(), mimetype="application/xml")
