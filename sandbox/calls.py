"""One call of the platform's API as the phone page shows it: what was asked, what was answered, how long it took.

Knows which words are secret: access_token and AppSecret are removed, also from bodies that cannot be parsed. It must
not know what a call means.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from flask import Request, Response
from werkzeug.exceptions import HTTPException

_SHOWN = 4000
"""How many characters of a body are kept."""
_SECRET = ("access_token", "secret", "appsecret")
_IN_JSON = re.compile(rf'("(?:{"|".join(_SECRET)})"\s*:\s*)"(?:[^"\\]|\\.)*"?')
_IN_FORM = re.compile(rf"\b((?:{'|'.join(_SECRET)})=)[^&\s]*")
_TEXT = ("application/json", "text/", "application/xml")


def describe(request: Request, response: Response, secrets: Iterable[str]) -> dict[str, Any]:
    """`secrets` are replaced wherever they occur. Call it before the response is sent."""
    known = [secret for secret in secrets if secret]
    query = "&".join(
        f"{name}={value}" for name, value in request.args.items(multi=True) if name not in _SECRET
    )
    return {
        "method": request.method,
        "query": _hide(query, known),
        "request": _hide(_request_body(request), known),
        "answer": _hide(_answer_body(response), known),
    }


def _hide(text: str, secrets: list[str]) -> str:
    text = _IN_FORM.sub(r"\1***", _IN_JSON.sub(r'\1"***"', text))
    for secret in secrets:
        text = text.replace(secret, "***")
    return text[:_SHOWN]


def _request_body(request: Request) -> str:
    try:
        if request.mimetype != "multipart/form-data":
            return request.get_data().decode(errors="backslashreplace")
        files = [f"{name}: {file.filename}" for name, file in request.files.items()]
        return ", ".join([*files, f"multipart/form-data, {request.content_length} bytes"])
    except HTTPException:
        return "(it did not come whole)"


def _answer_body(response: Response) -> str:
    kind = response.content_type or ""
    if response.is_sequence and kind.startswith(_TEXT):
        return response.get_data().decode(errors="backslashreplace")
    return f"{kind}, {response.content_length} bytes"
