"""The platform's API over HTTP: converts a request, asks the state, writes the platform's JSON.

Knows paths, methods, and the order of the platform's checks. It must not keep anything: rules and memory
are in state.py. Errors come with HTTP 200, as on the platform.
https://developers.weixin.qq.com/doc/service/en/guide/dev/api/
"""

from __future__ import annotations

import json
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from flask import Blueprint, Request, Response, request
from werkzeug.exceptions import RequestEntityTooLarge

from .errors import ERRMSG, PlatformError
from .media import UPLOAD_BYTES, Media
from .state import State, parse_body

JSON = "application/json; encoding=utf-8"
"""The platform really says encoding, not charset."""

_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]
_CHUNK = 256 * 1024
_ESCAPED = re.compile(rb"(?<!\\)(?:\\\\)*\\u[0-9A-Fa-f]{4}")


def answer_json(value: dict[str, Any]) -> Response:
    return Response(json.dumps(value, ensure_ascii=False), content_type=JSON)


def answer_error(code: int, errmsg: str, now: float) -> Response:
    """The platform's refusal, with a rid whose first group is the time of the call."""
    rid = f"{int(now):08x}-{secrets.token_hex(4)}-{secrets.token_hex(4)}"
    return answer_json({"errcode": code, "errmsg": f"{errmsg} rid: {rid}"})


def create_api(state: State) -> Blueprint:
    """The routes of the platform for one state."""
    api = Blueprint("api", __name__)

    def route(path: str, method: str, view: Callable[[], Response], *, token: bool = True) -> None:
        def call() -> Response:
            try:
                if request.method != method:
                    raise PlatformError(43001 if method == "GET" else 43002)
                if token:
                    state.enter(path, request.args.get("access_token", ""))
                return view()
            except PlatformError as error:
                return answer_error(error.code, error.errmsg, state.real_time())

        api.add_url_rule(path, path, call, methods=_METHODS, provide_automatic_options=False)

    def fetch_token() -> Response:
        return answer_json(state.fetch_token(request.args))

    def fetch_stable_token() -> Response:
        return answer_json(state.fetch_stable_token(parse_body(request.get_data())))

    def upload() -> Response:
        return answer_json(state.upload(request.args.get("type", ""), _uploaded(request)))

    def get_media() -> Response:
        media, file = state.open_media(request.args.get("media_id", ""))
        if media.type == "video":
            file.close()
            return answer_json({"video_url": f"{request.host_url}video?key={media.key}"})
        return _send(media, file)

    def send_custom() -> Response:
        state.send_custom(_unescaped_body())
        return _ok()

    def typing() -> Response:
        state.typing(parse_body(request.get_data()))
        return _ok()

    def addresses() -> Response:
        return answer_json({"ip_list": ["127.0.0.1"]})

    def check_callback() -> Response:
        return answer_json(_check_callback(state.callback, parse_body(request.get_data())))

    def clear_quota() -> Response:
        state.clear_quota(parse_body(request.get_data()).get("appid"))
        return _ok()

    def user_info() -> Response:
        return answer_json(state.user_info(request.args.get("openid")))

    def create_menu() -> Response:
        state.create_menu(_unescaped_body())
        return _ok()

    def get_menu() -> Response:
        return answer_json({"menu": {"button": state.menu()}})

    def delete_menu() -> Response:
        state.delete_menu()
        return _ok()

    route("/cgi-bin/token", "GET", fetch_token, token=False)
    route("/cgi-bin/stable_token", "POST", fetch_stable_token, token=False)
    route("/cgi-bin/media/upload", "POST", upload)
    route("/cgi-bin/media/get", "GET", get_media)
    route("/cgi-bin/message/custom/send", "POST", send_custom)
    route("/cgi-bin/message/custom/typing", "POST", typing)
    route("/cgi-bin/getcallbackip", "GET", addresses)
    route("/cgi-bin/get_api_domain_ip", "GET", addresses)
    route("/cgi-bin/callback/check", "POST", check_callback)
    route("/cgi-bin/clear_quota", "POST", clear_quota)
    route("/cgi-bin/user/info", "GET", user_info)
    route("/cgi-bin/menu/create", "POST", create_menu)
    route("/cgi-bin/menu/get", "GET", get_menu)
    route("/cgi-bin/menu/delete", "GET", delete_menu)

    @api.get("/video")
    @api.get("/picture")
    def keyed() -> Response:
        """What video_url and PicUrl point to: no token, as on the platform's file hosts."""
        found = state.open_media_key(request.args.get("key", ""))
        return Response("not found\n", 404, mimetype="text/plain") if found is None else _send(*found)

    return api


def answer_unplayed(state: State, path: str, token: str) -> Response:
    """The answer to a call that the sandbox does not support. The token is checked first, as for all calls."""
    try:
        state.enter(path, token)
        raise PlatformError(40066, f"{ERRMSG[40066]}: the sandbox does not play {path}")
    except PlatformError as error:
        return answer_error(error.code, error.errmsg, state.real_time())


def _unescaped_body() -> dict[str, Any]:
    """The JSON object of a call that refuses escaped characters (40033)."""
    body = request.get_data()
    if _ESCAPED.search(body):
        raise PlatformError(40033)
    return parse_body(body)


def _ok() -> Response:
    return answer_json({"errcode": 0, "errmsg": ERRMSG[0]})


def _uploaded(upload: Request) -> bytes:
    """The file of the multipart field `media`; 41005 for a form that the platform cannot read."""
    length = upload.content_length
    if length is None:  # chunked: the platform is said to need a Content-Length
        raise PlatformError(41005)
    if length > UPLOAD_BYTES:
        raise PlatformError(45001)
    try:
        file = upload.files.get("media")
    except RequestEntityTooLarge:  # a large field without a filename, as a rule the file itself
        raise PlatformError(41005) from None
    # To the platform, `filename*=` alone or a name that is not ASCII is an upload without a file:
    # https://github.com/wechatpy/wechatpy/issues/293
    if file is None or not file.filename or not file.filename.isascii():
        raise PlatformError(41005)
    if "filename=" not in file.headers.get("Content-Disposition", ""):
        raise PlatformError(41005)
    return file.stream.read()


def _send(media: Media, file: BinaryIO) -> Response:
    response = Response(_Chunks(file), content_type=media.content_type)
    response.content_length = media.size
    response.headers["Content-disposition"] = f'attachment; filename="{media.media_id}.{media.extension}"'
    response.headers["Cache-Control"] = "no-cache, must-revalidate"
    return response


class _Chunks(Iterator[bytes]):
    """A file in pieces, closed at its end. The server calls `close` too, unless the client reset the connection."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def __next__(self) -> bytes:
        chunk = self._file.read(_CHUNK)
        if not chunk:
            raise StopIteration
        return chunk

    def close(self) -> None:
        self._file.close()

    __del__ = close


def _check_callback(callback: str | None, body: dict[str, Any]) -> dict[str, Any]:
    """callback/check with this machine as the only operator: one look-up, one connection per address."""
    action, operator = body.get("action"), body.get("check_operator", "DEFAULT")
    if action not in ("dns", "ping", "all"):
        raise PlatformError(40202)
    if operator not in ("CHINANET", "UNICOM", "CAP", "DEFAULT"):
        raise PlatformError(40203)
    address = urlsplit(callback or "")
    if not address.hostname:
        raise PlatformError(40201)
    port = address.port or (443 if address.scheme == "https" else 80)
    try:
        found = socket.getaddrinfo(address.hostname, port, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        found = []
    ips = sorted({str(info[4][0]) for info in found})
    answer: dict[str, Any] = {}
    if action in ("dns", "all"):
        answer["dns"] = [{"ip": ip, "real_operator": "UNICOM"} for ip in ips]
    if action in ("ping", "all"):
        answer["ping"] = [{"ip": ip, "from_operator": "UNICOM", **_ping(ip, port)} for ip in ips]
    return answer


def _ping(ip: str, port: int) -> dict[str, str]:
    started = time.monotonic()
    try:
        socket.create_connection((ip, port), timeout=2).close()
    except OSError:
        return {"package_loss": "100%", "time": "0.000ms"}
    return {"package_loss": "0%", "time": f"{(time.monotonic() - started) * 1000:.3f}ms"}
