"""What is fuzzed: one function for each door, from the bytes of an input to a short word for what became of it.

A broken promise is an exception: anything but our own errors from a parser; a status of 500 or more, although the
ledger can be written; a row for a push that was not signed or sealed with the account's keys. Words that were not seen
before tell `fuzz.loop` which inputs are worth keeping.
"""

import io
import logging
import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from urllib3.exceptions import HTTPError
from urllib3.response import HTTPResponse
from werkzeug.datastructures import Headers
from werkzeug.test import run_wsgi_app

import logs
from app import create_app
from config import Settings
from fuzz.reader import Reader
from sandbox import THROWAWAY
from sandbox.cipher import Envelope, sign
from wechat.client import json_object, raise_errcode
from wechat.elements import cdata, legal, parse
from wechat.envelope import Envelope as OurEnvelope
from wechat.errors import PushError, ReplyError, UnsafeMediaUrlError, WeChatError
from wechat.formats import extension
from wechat.media import open_media, uploaded_media_id
from wechat.messages import parse_message
from wechat.replies import parse_reply
from wechat.token_sources import StableTokenSource
from wechat.transport import Answer

Target = Callable[[bytes], object]

SAMPLES: Final = Path(__file__).parent.parent / "tests" / "samples"
FOUND: Final = Path(__file__).parent / "found"
OTHER_KEY: Final = "Zt4mQ9sVb2LxK7eWc1RyU8nHj5PaDf3GoI6TqSkXwEM"
KEY: Final = "a-token-server-key"
PASSWORD: Final = "an admin password"
MAX_ROWS: Final = 20_000
EXTENSIONS: Final = frozenset("jpg png gif amr speex mp3 mp4 bin".split())


class BrokenPromiseError(Exception):
    """What must not happen has happened."""


def promise(kept: bool, what: str) -> None:
    if not kept:
        raise BrokenPromiseError(what)


# -- parsers ----------------------------------------------------------------------------------------------------


def xml(data: bytes) -> object:
    """Pushes and replies: a message, or one of the refusals."""
    with suppress(PushError, ReplyError):
        parse_reply(data)
    try:
        message = parse_message(data)
    except PushError as refusal:
        return refusal.reason
    promise(0 < len(message.from_user_name) <= 128, "no usable sender")
    promise(message.dedupe_key.isascii() and len(message.dedupe_key) < 48, "no usable key")
    promise(parse_message(message.raw) == message, "a later reading that differs")
    hash(message)
    return type(message).__name__, message.media_kind


def text(data: bytes) -> object:
    """Any text comes through a reply's CDATA as it was, but for what XML cannot carry."""
    given = data.decode("utf-8", "surrogatepass" if len(data) % 2 else "replace") if _decodes(data) else ""
    promise((parse(f"<x>{cdata(given)}</x>".encode()).text or "") == legal(given), "a text that was changed")
    return len(given) > 0


def _decodes(data: bytes) -> bool:
    try:
        data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return False
    return True


def envelope(data: bytes) -> object:
    """An Encrypt text: the message inside, or a refusal. (msg_signature keeps forged ones out: see `callback`.)"""
    ours, theirs = _OURS, _THEIRS
    promise(ours.open(theirs.encrypt(data, _SIXTEEN)) == data, "sealed by the platform, not opened")
    promise(theirs.decrypt(ours.seal(data, _SIXTEEN)) == data, "sealed by us, not opened")
    try:
        ours.open(data.decode("latin-1"))
    except PushError as refusal:
        return refusal.reason
    return "opened"


_OURS: Final = OurEnvelope(THROWAWAY.aes_key or "", THROWAWAY.appid)
_THEIRS: Final = Envelope(THROWAWAY.aes_key or "", THROWAWAY.appid)
_SIXTEEN: Final = b"0123456789abcdef"


def json(data: bytes) -> object:
    """An API answer: an object, an error of ours, or a token of a known life."""
    answer = json_object(data)
    if answer is None:
        return "none"
    outcomes: list[object] = []
    for use in (
        lambda: raise_errcode(answer, "/cgi-bin/x"),
        lambda: uploaded_media_id(answer),
        lambda: _fetched(answer),
    ):
        try:
            use()
        except WeChatError as error:
            outcomes.append(type(error).__name__)
        else:
            outcomes.append("ok")
    return tuple(outcomes)


def _fetched(answer: dict[str, Any]) -> None:
    class Client:
        def call(self, *_: Any, **__: Any) -> dict[str, Any]:
            raise_errcode(answer, "/cgi-bin/stable_token")
            return answer

    grant = StableTokenSource(Client(), "appid", "secret").fetch()  # type: ignore[arg-type]
    promise(bool(grant.value) and 70 <= grant.life <= 7200, "no usable token")


def media(data: bytes) -> object:
    """A download with any headers and bytes: a file, or an error of ours."""
    reader = Reader(data)
    headers = {
        name: reader.line().decode("latin-1")
        for name in ("Content-Type", "Content-Disposition", "Content-Encoding", "Content-Length")
    }
    body = reader.rest()
    kind = extension(body)
    promise(kind in EXTENSIONS, "an unknown extension")
    try:
        raw = HTTPResponse(
            io.BytesIO(body),
            headers={name: value for name, value in headers.items() if value},
            status=200,
            preload_content=False,
            decode_content=False,
        )
    except HTTPError:
        return kind, "no answer"  # as the client takes it
    try:
        with open_media(_Client(raw), "media-id", max_bytes=100_000) as chunks:  # type: ignore[arg-type]
            size = sum(map(len, chunks))
    except WeChatError as error:
        return kind, type(error).__name__
    promise(0 < size <= 100_000, "a file of no size, or over the cap")
    return kind, "file"


class _Client:
    """An ApiClient that has one answer, and follows no address."""

    def __init__(self, raw: HTTPResponse) -> None:
        self._raw = raw

    def exchange(self, *_: Any, read: Callable[[Answer], Any], **__: Any) -> Any:
        return read(Answer(self._raw, "/cgi-bin/media/get", "127.0.0.1"))

    def get_url(self, url: str, **_: Any) -> Answer:
        raise UnsafeMediaUrlError


# -- the application --------------------------------------------------------------------------------------------


class _Application:
    """An application with a ledger of its own, and how many rows it has had."""

    def __init__(self, folder: Path, **environ: str) -> None:
        folder.mkdir(parents=True)
        database = folder / "bot.db"
        self.app = create_app(
            Settings.from_env(
                {
                    "WECHAT_APPID": THROWAWAY.appid,
                    "WECHAT_APPSECRET": THROWAWAY.appsecret,
                    "WECHAT_TOKEN": THROWAWAY.token,
                    "WECHAT_API_BASE": "http://127.0.0.1:9",  # nothing listens there
                    "DATABASE_URL": f"sqlite:///{database}",
                    "LEDGER_SYNC": "normal",
                    "REPLY_SECONDS": "0.001",  # no worker makes the copy that a video's answer waits for
                    "MEDIA_STORE": str(folder / "media"),
                    **environ,
                },
                folder,
            )
        )
        self.app.config["PROPAGATE_EXCEPTIONS"] = True
        self.app.extensions["accounts"].of[""].database.prepare()
        self._rows = sqlite3.connect(database, isolation_level=None, timeout=10, check_same_thread=False)
        weakref.finalize(self, self._rows.close)

    def newest(self) -> int:
        found: int | None = self._rows.execute("SELECT max(id) FROM messages").fetchone()[0]
        if (found or 0) > MAX_ROWS:
            self._rows.execute("DELETE FROM messages")
            return 0
        return found or 0

    def call(
        self, method: str, path: str, query: bytes, body: bytes, headers: Mapping[str, str] = {}
    ) -> tuple[int, bytes, Headers]:
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": query.decode("latin-1"),
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "8000",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "CONTENT_LENGTH": str(len(body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()},
        }
        if "HTTP_CONTENT_TYPE" in environ:
            environ["CONTENT_TYPE"] = environ.pop("HTTP_CONTENT_TYPE")
        answer, status, sent = run_wsgi_app(self.app, environ, buffered=True)
        return int(status.partition(" ")[0]), b"".join(answer), sent


def callback(folder: Path) -> Target:
    """POST and GET /wechat, in each mode: unsigned, signed, sealed, and forged."""
    plain = _Application(folder / "plain")
    keys = {"WECHAT_AES_KEY": THROWAWAY.aes_key or "", "WECHAT_AES_KEY_PREVIOUS": OTHER_KEY}
    safe = _Application(folder / "safe", **keys)
    changing = _Application(
        folder / "changing", **keys, WECHAT_ACCEPT_PLAINTEXT="1", WECHAT_TOKEN_PREVIOUS="older"
    )
    forms = {"unsigned": _unsigned, "signed": _signed, "sealed": _sealed, "forged": _forged, "get": _get}

    def one(data: bytes) -> object:
        reader = Reader(data)
        application = reader.pick((plain, safe, changing))
        form = reader.pick(tuple(forms))
        method, query, body, authentic = forms[form](reader)
        before = application.newest()
        status, answer, _ = application.call(method, "/wechat", query, body, {"Content-Type": "text/xml"})
        promise(status < 500, f"{form}: HTTP {status}")
        if not authentic:
            promise(status in (400, 403, 413), f"{form}: HTTP {status} for an unsigned push")
            promise(application.newest() == before, f"{form}: a row for an unsigned push")
            promise(answer == b"", f"{form}: words for an unsigned push")
        elif status != 200:
            promise(application.newest() == before, f"{form}: a row for a push that was refused")
        return form, status, answer[:7]

    return one


_Push = tuple[str, bytes, bytes, bool]


def _query(*encrypt: str, token: str = THROWAWAY.token, in_url: bool = True) -> bytes:
    now = str(int(time.time()))
    query = {"timestamp": now, "nonce": "7"}
    if in_url:
        query["signature"] = sign(token, now, "7")
    if encrypt:
        query |= {"encrypt_type": "aes", "msg_signature": sign(token, now, "7", *encrypt)}
    return urlencode(query).encode()


def _unsigned(reader: Reader) -> _Push:
    return "POST", reader.line(), reader.rest(), False


def _signed(reader: Reader) -> _Push:
    return "POST", _query(), reader.rest(), True


def _sealed(reader: Reader) -> _Push:
    encrypt = _THEIRS.encrypt(reader.rest(), _SIXTEEN)
    return "POST", _query(encrypt), f"<xml><Encrypt>{encrypt}</Encrypt></xml>".encode(), True


def _forged(reader: Reader) -> _Push:
    """By one who knows the token but not the key; or an envelope under another one's signature."""
    knows_token = reader.byte() % 2
    encrypt = reader.rest().decode("utf-8", "replace")
    body = f"<xml><Encrypt>{cdata(encrypt)}</Encrypt></xml>".encode()
    signed = legal(encrypt).strip(" \t\r\n") if knows_token else "another envelope"  # as it will be read
    return "POST", _query(signed, in_url=False), body, False


def _get(reader: Reader) -> _Push:
    return "GET", reader.line(), b"", False


def routes(folder: Path) -> Target:
    """All other routes, with every right and without, and paths that lead nowhere."""
    application = _Application(folder / "routes", TOKEN_SERVER_KEY=KEY, ADMIN_PASSWORD=PASSWORD)
    client = application.app.test_client()
    client.post("/gallery/sign-in", data={"password": PASSWORD})
    cookie = client.get_cookie("gallery", path="/gallery")
    promise(cookie is not None, "no session")
    session = f"gallery={cookie.value}" if cookie else ""
    rules = sorted({rule.rule for rule in application.app.url_map.iter_rules()} - {"/wechat"})
    names = (
        "Cookie",
        "Authorization",
        "Content-Type",
        "Range",
        "If-None-Match",
        "Accept-Language",
        "If-Range",
    )
    for push in (b"image", b"voice"):
        body = (SAMPLES / f"message-{push.decode()}.xml").read_bytes()
        promise(application.call("POST", "/wechat", _query(), body)[0] == 200, "no row to show")

    def one(data: bytes) -> object:
        reader = Reader(data)
        method = reader.pick(("GET", "POST", "HEAD", "PUT", "OPTIONS", "DELETE"))
        rule = reader.pick((*rules, "/"))
        headers = {}
        if (rights := reader.byte()) & 1:
            headers = {"Cookie": session}
        if rights & 2:
            headers["Authorization"] = f"Bearer {KEY}"
        path = rule
        while "<" in path:
            start, _, left = path.partition("<")
            ours = str(reader.byte() % 4)
            path = start + (ours if rights & 4 else reader.line().decode("latin-1")) + left.partition(">")[2]
        for _ in range(reader.byte() % 4):
            headers[reader.pick(names)] = reader.line().decode("latin-1")
        query, body = reader.line(), reader.rest()
        if rights & 8:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        status, _, _ = application.call(method, path, query, body, headers)
        # Without a platform there is no token, and that is said with 503.
        promise(
            status < 500 or (status == 503 and rule.startswith("/token")), f"{method} {rule}: HTTP {status}"
        )
        return method, rule, status

    return one


# -- all of them ------------------------------------------------------------------------------------------------

PARSERS: Final[Mapping[str, Target]] = {
    "xml": xml,
    "text": text,
    "envelope": envelope,
    "json": json,
    "media": media,
}
APPLICATIONS: Final[Mapping[str, Callable[[Path], Target]]] = {"callback": callback, "routes": routes}


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Log lines are made, for that is part of it, and go nowhere."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        handler = logging.StreamHandler(nowhere)
        handler.setFormatter(logs.Formatter(as_json=True))
        logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
        yield


NAMES: Final = (*PARSERS, *APPLICATIONS)


def target(name: str, folder: Path) -> Target:
    """The function of that name; `folder` is for what it keeps."""
    return APPLICATIONS[name](folder) if name in APPLICATIONS else PARSERS[name]


def seeds(name: str) -> list[bytes]:
    """Inputs to begin with: the recorded samples in the target's form, and what was found before."""
    samples = [path.read_bytes() for path in sorted(SAMPLES.glob("*.xml"))]
    found = [path.read_bytes() for path in sorted(FOUND.glob(f"{name}-*"))]
    query = _query(token="a guess")
    made = {
        "xml": samples,
        "text": [b"]]>", "你好 🐼 &lt;".encode(), b"\x00\x0b\r\n", *samples[:3]],
        "envelope": [_THEIRS.encrypt(each, _SIXTEEN).encode() for each in samples[:10]],
        "json": [
            b'{"errcode":40001,"errmsg":"invalid credential rid: 65f0-1a2b-3c"}',
            b'{"access_token":"5_abc","expires_in":7200}',
            b'{"type":"image","media_id":"x","created_at":1}',
        ],
        "media": [
            b'image/jpeg\nattachment; filename="a.jpg"\n\n\n\xff\xd8\xff\xe0\x00\x10JFIF',
            b'text/plain\n\n\n\n{"errcode":40007,"errmsg":"invalid media_id"}',
            b'application/json\n\n\n\n{"video_url":"http://127.0.0.1/x"}',
            b"voice/amr\n\ngzip\n9\n#!AMR\n" + bytes(range(256)),
            b"voice/speex\n\n\n\nOggS" + bytes(24) + b"Speex   " + bytes(60),
            b"video/mp4\n\n\n\n\0\0\0\x18ftypmp42\0\0\0\0mp42isom",
        ],
        "callback": [
            bytes([mode, form]) + (query + b"\n" if form in (0, 4) else b"") + sample
            for mode in range(3)
            for form in range(5)
            for sample in samples[mode::9]
        ],
        "routes": [
            bytes([method, rule, rights, 0, 0]) + b"fan=x&day=2026-01-01\n" + b"password=y"
            for method in range(3)
            for rule in range(20)
            for rights in (0, 7, 15)
        ],
    }
    return made[name] + found
