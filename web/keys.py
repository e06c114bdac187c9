"""Server keys (TOKEN_SERVER_KEY, METRICS_KEY): reads the one that a request sends, and compares secrets.

Knows the header `Authorization: Bearer KEY`. werkzeug's own reader is not used: it takes a key with `=` in it for
parameters, and raises for some headers. Must not know what a key opens.
https://www.rfc-editor.org/rfc/rfc6750#section-2.1
"""

from __future__ import annotations

import hmac
from hashlib import sha256

from flask import request


def sent_key() -> str | None:
    """The request's key; None without one. The scheme's name may be in small or capital letters."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else None


def is_same(sent: str, secret: str) -> bool:
    """Whether a key or a password is the right one. How long this takes tells neither its length nor a part of it."""
    sent_digest, digest = (sha256(text.encode("utf-8", "surrogatepass")).digest() for text in (sent, secret))
    return hmac.compare_digest(sent_digest, digest)
