"""The vectors that the envelope and the receiver must meet byte for byte, and how a test signs a push of its own.

OFFICIAL is the example of the platform's page on message encryption; W1 to W3 were made with another AES library
and opened with wechatpy.
"""

from dataclasses import dataclass
from urllib.parse import parse_qsl

from wechat.envelope import Envelope
from wechat.signature import sign


@dataclass(frozen=True)
class Account:
    appid: str
    token: str
    aes_key: str


OFFICIAL = Account("wxba5fad812f8e6fb9", "AAAAA", "A" * 43)
OFFICIAL_ENCRYPT = (
    "+qdx1OKCy+5JPCBFWw70tm0fJGb2Jmeia4FCB7kao+/Q5c/ohsOzQHi8khUOb05JCpj0JB4RvQMkUyus8TPxLKJGQqcvZqzD"
    "pVzazhZv6JsXUnnR8XGT740XgXZUXQ7vJVnAG+tE8NUd4yFyjPy7GgiaviNrlCTj+l5kdfMuFUPpRSrfMZuMcp3Fn2Pede2I"
    "uQrKEYwKSqFIZoNqJ4M8EajAsjLY2km32IIjdf8YL/P50F7mStwntrA2cPDrM1kb6mOcfBgRtWygb3VIYnSeOBrebufAlr7F"
    "9mFUPAJGj04="
)
OFFICIAL_MESSAGE = (
    '{"ToUserName":"gh_97417a04a28d","FromUserName":"o9AgO5Kd5ggOC-bXrbNODIiE3bGY","CreateTime":17141'
    '12445,"MsgType":"event","Event":"debug_demo","debug_str":"hello world"}'
)
OFFICIAL_REPLY = '{"demo_resp":"good luck"}'
OFFICIAL_REPLY_ENCRYPT = (
    "ELGduP2YcVatjqIS+eZbp80MNLoAUWvzzyJxgGzxZO/5sAvd070Bs6qrLARC9nVHm48Y4hyRbtzve1L32tmxSQ=="
)
OFFICIAL_REPLY_SIGNATURE = "1b9339964ed2e271e7c7b6ff2b0ef902fc94dea1"

ACCOUNT = Account("wx0a1b2c3d4e5f6789", "FactSheetToken7", "Zt4mQ9sVb2LxK7eWc1RyU8nHj5PaDf3GoI6TqSkXwEM")

W1_QUERY = dict(
    parse_qsl(
        "signature=13e371a054c6cb50e98a4b7f3616e8c70fe6ef5e&timestamp=1760000101&nonce=998877665&openid=o"
        "Test-AbCdEfGhIjKlMnOpQrSt_1&encrypt_type=aes&msg_signature=edd4c648a7211e6dcb0081e0033f9207f4ee7"
        "12c"
    )
)
W1_MESSAGE = (
    "<xml><ToUserName><![CDATA[gh_5e7a9c1b3d2f]]></ToUserName><FromUserName><![CDATA[oTest-AbCdEfGhIj"
    "KlMnOpQrSt_1]]></FromUserName><CreateTime>1760000100</CreateTime><MsgType><![CDATA[text]]></MsgT"
    "ype><Content><![CDATA[你好, world 🚀]]></Content><MsgId>24601000000000001</MsgId></xml>"
).encode()
W1_BODY = (
    b"<xml><ToUserName><![CDATA[gh_5e7a9c1b3d2f]]></ToUserName><Encrypt><![CDATA[HshHKolVseJhrVDNtT6WS"
    b"V++RbTQs/kgOGTIIQzExn7E2fcg5t/awArB5q5101Wl40l6d0/V7HjYcsDHNTdQPV61sQwYuV/3wkqA7N9a3cCU9s3h/Fk8z"
    b"0bnlWalYtTZ+7Qk3pFwNWqgRY/Yo6BcSQE0lrzh3I1H0MNExEM0I+kdhpclNx8wPEO8gwimYWt3Gxr4Rz6rji7fRn790Tsgb"
    b"KIDtMhwQNsBqz7SF5x1tqdiE7qoZ7eCxBcmSnDipX+rMF5l4LEdPUWwL9de7BrfqgixwhEb5x89Z9fcNdCT3jbCcyeKIjzKu"
    b"M5aBeoIdge4wBFCkbb2cBKyQG9h0Xj4TvmioJLMJ+bR8QMzs5KLgnCio7m4bjAULZeVyyP8Ap3J2cMxhU3bkamtmkz3HieuN"
    b"l7lvB/KAk77MDOxFZFIzWo3vwOeIbHqdn1A1fh+t9N8U62kB0pz3HeOfCrTQt/74w==]]></Encrypt></xml>"
)
W2_MESSAGE = (
    "<xml><ToUserName><![CDATA[oTest-AbCdEfGhIjKlMnOpQrSt_1]]></ToUserName><FromUserName><![CDATA[gh_"
    "5e7a9c1b3d2f]]></FromUserName><CreateTime>1760000102</CreateTime><MsgType><![CDATA[text]]></MsgT"
    "ype><Content><![CDATA[pong 收到]]></Content></xml>"
).encode()
W2_BODY = (
    b"<xml><Encrypt><![CDATA[gBRTrRgs6J0M6FmVEk0lf2GeK4Hyqxk3wIKGiMpI7MMffIimQ/Yoz3uWfvhx8ziDo/OrzzAVL"
    b"7NLZs5erwIwhovxhknSMUdcKJshWa++3mDf4MCd2srMSUESZNvmKkvLzUjoF3Osi9RDA0PP1QxCQ5xYMildpMlzFmTyJ4n41"
    b"FOzJZQxs6WKrDTneJF9wUNonRDBt94KFgTvuhTBMQw6aPluZTzp934QxFq4KwtCPg4rL8kE7jKE4qYx5rNMakmHrLIth2p1C"
    b"c7YlvLLvksiKNY3HFTyLlo8S+YHA50KPhYotB+Sbpvx446nLWg7YKhnLUNL+2CdiofVU//CcaxhTOipa3/6na/P+J8xCdseq"
    b"KHDAsNwb5WwWHafoiq+LGMR]]></Encrypt><MsgSignature><![CDATA[8ffa01bde376ca4a8128e5aaca2a486db3420"
    b"d0a]]></MsgSignature><TimeStamp>1760000103</TimeStamp><Nonce><![CDATA[998877665]]></Nonce></xml>"
)
W3_MESSAGE = b"ping" + b"." * 22
W3_ENCRYPT = (
    "wCW+9AMUbD/UAAd5QtNqvgZqn4GPTvfB7TcGlTTGrX1gyCSxRGxyZFxChoIkWbOIHhgyAJdN0YA5Kpket4w4KBot8vr5NFa/"
    "J9keUbkRy0sMaemJGQ1gf/m8N8SVxmv/"
)
W3_SIGNATURE = "b7c80694e325cb30c17028046dc5e8f6436d2618"

NOW = 1760000101


def signed(*, token=ACCOUNT.token, timestamp=str(NOW), nonce="1234567890", encrypt=None, **more):
    """The query of a push: signature, and msg_signature when there is an envelope."""
    query = {"signature": sign(token, timestamp, nonce), "timestamp": timestamp, "nonce": nonce, **more}
    if encrypt is not None:
        query |= {"encrypt_type": "aes", "msg_signature": sign(token, timestamp, nonce, encrypt)}
    return query


def safe_push(xml, *, account=ACCOUNT, timestamp=str(NOW), **more):
    """Query and body of a push in safe mode."""
    encrypt = Envelope(account.aes_key, account.appid).seal(xml, b"0123456789abcdef")
    body = f"<xml><ToUserName><![CDATA[gh]]></ToUserName><Encrypt><![CDATA[{encrypt}]]></Encrypt></xml>"
    return signed(token=account.token, timestamp=timestamp, encrypt=encrypt, **more), body.encode()
