"""The platform's signature: SHA-1 over the callback token and the request's parts, sorted and joined.

It knows the sorting, the hash and a comparison in constant time. It must not know XML, AES, which parameter
is checked when, or where the token comes from.

https://developers.weixin.qq.com/doc/subscription/guide/dev/push/encryption.html
"""

from __future__ import annotations

import hashlib
import hmac

from wechat.errors import Cause, SignatureError


def sign(token: str, *parts: str) -> str:
    """The signature, 40 lower-case hex digits, of `parts` (timestamp, nonce, and for a sealed body its Encrypt).

    Raises SignatureError for an empty token: anybody could sign with that.
    """
    if not token:
        raise SignatureError("no callback token is set", Cause.TOKEN)
    # Code points sort as their UTF-8 bytes do, which is the order that the platform means.
    joined = "".join(sorted((token, *parts)))
    # A lone surrogate in a query must end as a wrong signature, not as an encoding error.
    return hashlib.sha1(joined.encode("utf-8", "surrogatepass")).hexdigest()  # noqa: S324 - WeChat's choice


def verify(signature: str, token: str, *parts: str) -> None:
    """Check that `signature` is the one of `parts` under `token`. Raises SignatureError if it is not."""
    # Compared as bytes: compare_digest refuses text that is not ASCII.
    if not hmac.compare_digest(sign(token, *parts).encode(), signature.encode("utf-8", "surrogatepass")):
        raise SignatureError("the signature is wrong", Cause.TOKEN)
