"""The code table and the error tree: complete, and without secrets."""

import re
from pathlib import Path

import pytest

from config import HINTS, NAMES, explained, token_reason
from wechat.codes import CODES, Kind, explain
from wechat.errors import (
    ApiError,
    Cause,
    InvalidTokenError,
    MediaError,
    MediaRefusedError,
    MediaTooLargeError,
    PushError,
    ReplyError,
    TimestampError,
    TokenUnavailableError,
    TransportError,
    TruncatedMediaError,
    UnsafeMediaUrlError,
    WeChatError,
    api_error,
)

# The whole table again, by what is to be done: a row lost or moved in the code is found here.
DO = {
    Kind.OK: {0},
    Kind.RETRY: {-1},
    Kind.TOKEN: {40001, 40014, 41001, 42001},
    Kind.MINUTE: {45011},
    Kind.DAY: {45009, 48006, 89506},
    Kind.OPERATOR: {40002, 40008, 40013, 40033, 40035, 40066, 40125, 40164, 40200, 40201, 40202, 40203, 40243}
    | {41002, 41004, 41005, 41006, 43001, 43002, 43003, 44002, 45035, 47001, 48001, 48004, 48008, 48017}
    | {50001, 50002, 50004, 50007, 61004, 61024, 76003, 89501, 89503, 89507}
    | set(range(61450, 61458))
    | set(range(65400, 65416)),
    Kind.GIVE_UP: {
        40003,
        40004,
        40005,
        40006,
        40007,
        40009,
        40010,
        40011,
        40012,
        40137,
        43004,
        43019,
        44001,
        44004,
    }
    | {
        45001,
        45002,
        45003,
        45004,
        45005,
        45006,
        45007,
        45008,
        45015,
        45047,
        45072,
        45080,
        45081,
        46001,
        46004,
    }
    | {48002, 50005}
    | {40016, 40017, 40018, 40019, 40020, 40022, 40023, 40024, 40025, 40026, 40027},
}
UNCONFIRMED = (
    {
        40033,
        40035,
        40125,
        40137,
        41004,
        41005,
        41006,
        43001,
        43004,
        43019,
        44001,
        44004,
        45001,
        45003,
        45004,
        45005,
    }
    | {45006, 45007, 45008, 45015, 45047, 46001, 46004, 48002, 48008, 50004, 50005, 50007, 61024, 76003}
    | set(range(61450, 61458))
    | set(range(40023, 40028))
)


def test_the_table_is_whole():
    assert {kind: {code for code, row in CODES.items() if row.kind is kind} for kind in DO} == DO
    assert len(CODES) == sum(map(len, DO.values()))
    assert {code for code, row in CODES.items() if not row.confirmed} == UNCONFIRMED
    with pytest.raises(TypeError):
        CODES[1] = CODES[0]


@pytest.mark.parametrize("code", sorted(set(CODES) - {0}))
def test_every_code_has_its_hints(code):
    row = explain(code)
    assert row is CODES[code]
    assert row.code == code
    assert row.meaning
    assert row.hint_en.isascii() or "≤" in row.hint_en
    assert re.search("[\u4e00-\u9fff]", row.hint_zh)


def test_an_unknown_code_has_a_hint_too():
    row = explain(99999)
    assert (row.code, row.kind, row.confirmed) == (99999, Kind.UNKNOWN, False)
    assert "rid" in row.hint_en
    assert "rid" in row.hint_zh


@pytest.mark.parametrize("code", [40001, 40014, 41001, 42001])
def test_a_dead_token_is_a_type(code):
    error = api_error(code, "access_token expired", "/cgi-bin/media/get")
    assert isinstance(error, InvalidTokenError)
    assert error.kind is Kind.TOKEN


def test_an_api_error_says_all():
    error = api_error(
        40164,
        "invalid ip 203.0.113.7 ipv6 ::ffff:203.0.113.7, not in whitelist rid: 64f4444a-5f19e663-62c00404",
        "/cgi-bin/token?appid=a&secret=b",
    )
    assert type(error) is ApiError
    assert (error.code, error.kind, error.path) == (40164, Kind.OPERATOR, "/cgi-bin/token")
    assert error.rid == "64f4444a-5f19e663-62c00404"
    assert error.errmsg.endswith("203.0.113.7, not in whitelist rid: 64f4444a-5f19e663-62c00404")
    for said in ("40164", "203.0.113.7", "/cgi-bin/token answered", error.hint_en, error.hint_zh, error.rid):
        assert said in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("errcode", "code"),
    [("40001", 40001), (" -1 ", -1), (45009, 45009), (99999, 99999)]
    + [(40001.0, 40001), (2**31 - 1, 2**31 - 1), (-(2**31), -(2**31))]
    + [(odd, -2) for odd in ("", "many", None, [], {}, 1.5, "9" * 5000, "1_0", "٣", True, False)]
    + [(odd, -2) for odd in (1e26, 1e300, float("inf"), float("nan"), 2**31, -(2**31) - 1, 10**40, [40001])],
)
def test_errcode_may_be_anything(errcode, code):
    error = api_error(errcode, "", "/p")
    assert error.code == code
    assert error.kind is explain(code).kind
    assert error.rid is None


@pytest.mark.parametrize(
    ("errmsg", "shown"),
    [
        ("a\ud800b", "a b"),
        ("a\0b\x1b[31m\r\nc", "a b [31m c"),
        ("a\u202eb\u2028c", "a b c"),
        ("系统繁忙", "系统繁忙"),
        ("word " * 500_000, None),
        ("\0" * 1_000_000, ""),
        (None, ""),
        (5, ""),
        (["x"], ""),
    ],
)
def test_errmsg_is_clamped_and_printable(errmsg, shown):
    error = api_error(1, errmsg, "/p")
    assert len(error.errmsg) <= 300
    assert error.errmsg == shown or (shown is None and error.errmsg.endswith("…"))
    for text in (error.errmsg, str(error), repr(error)):
        assert text.isprintable()
        text.encode()


def test_an_error_without_errmsg_is_its_code():
    assert api_error(40007, None, "/cgi-bin/media/get").what == "40007"


def test_a_rid_is_found_at_the_end_and_clamped():
    rid = "64f4444a-5f19e663-62c00404"
    assert api_error(1, "x " * 5000 + f"rid: {rid}", "/p").rid == rid
    assert api_error(1, "rid: " + "ab-" * 100_000, "/p").rid is None
    assert len(api_error(1, "rid: " + "ab-" * 500, "/p").rid) < 100
    assert api_error(1, "rid: " + "a" * 100_000, "/p").rid is None


SECRETS = [
    "0123456789abcdef0123456789abcdef",
    "Zt4mQ9sVb2LxK7eWc1RyU8nHj5PaDf3GoI6TqSkXwEM",
    "36_2mBX" + "aB3-_" * 30,
]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize(
    "text", ["{}", "access_token={}", "at https://h/p?secret={}&x=1", '{{"app_secret": "{}"}}']
)
def test_what_looks_like_a_secret_is_removed(secret, text):
    errors = [api_error(40001, text.format(secret), "/p"), TokenUnavailableError(text.format(secret))]
    for error in errors:
        assert secret not in f"{error} {error!r} {vars(error)}"
        assert secret[:20] not in f"{error} {error!r} {vars(error)}"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("access_token=short&x=1", "access_token=***&x=1"),
        ("secret: s", "secret: ***"),
        ('{"appsecret":"s"}', '{"appsecret":"***"}'),
        ("access_token expired rid: 5f3ded7d-22929d02-4ba1f5f6", None),
        ("invalid ip 2001:0db8:85a3:0000:0000:8a2e:0370:7334, not in whitelist", None),
        ("invalid openid oTest-AbCdEfGhIjKlMnOpQrSt_1 hint: [ZE1Uxa0498age8]", None),
    ],
)
def test_the_rest_of_errmsg_is_kept(text, kept):
    assert api_error(1, text, "/p").errmsg == (kept or text)


def test_a_transport_error_says_whether_the_request_left():
    error = TransportError("/cgi-bin/media/get?access_token=t", sent=True, status=502, detail="not JSON")
    assert (error.path, error.sent, error.status) == ("/cgi-bin/media/get", True, 502)
    assert str(error) == "/cgi-bin/media/get: not JSON (HTTP 502)"
    assert str(TransportError("/p", sent=False)) == "/p: no answer"


def test_media_errors_say_whether_to_try_again():
    assert [
        (error.final, isinstance(error, MediaError))
        for error in (TruncatedMediaError("cut off"), MediaTooLargeError(5), UnsafeMediaUrlError())
    ] == [(False, True), (True, True), (False, True)]
    assert MediaTooLargeError(5).limit == 5
    assert "MAX_MEDIA_BYTES" in explained(MediaTooLargeError(5))


def test_a_refused_upload_has_the_platforms_code_and_hints():
    error = MediaRefusedError(40009, "photo.jpg has 11 MB")
    assert (error.code, error.hint_en, error.hint_zh) == (40009, CODES[40009].hint_en, CODES[40009].hint_zh)
    assert "40009" in str(error)


def test_an_unavailable_token_says_why_and_until_when():
    error = TokenUnavailableError("the IP is not on the whitelist", code=40164, retry_at=1760000000.0)
    assert (error.reason, error.code, error.retry_at) == (str(error), 40164, 1760000000.0)


def test_the_window_is_named():
    assert "WECHAT_TIMESTAMP_WINDOW" in explained(TimestampError(None))
    assert "+700 seconds" in str(TimestampError(700))


def test_every_refusal_has_a_status_and_a_word():
    words = {kind.reason: kind.status for kind in PushError.__subclasses__()}
    assert words == {
        "signature": 403,
        "timestamp": 403,
        "envelope": 403,
        "appid": 403,
        "doctype": 400,
        "xml": 200,
    }


def test_one_root():
    for kind in (PushError, ApiError, TransportError, MediaError, MediaRefusedError, TokenUnavailableError):
        assert issubclass(kind, WeChatError)


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_names_a_setting_in_both_languages(cause):
    names = set(NAMES)
    for hint in HINTS[cause]:
        assert set(re.findall(r"[A-Z]+(?:_[A-Z]+)+", hint)) & names
    assert re.search("[\u4e00-\u9fff]", HINTS[cause][1])


def test_no_setting_is_named_inside():
    names = "|".join(name for name in NAMES if "_" in name)
    for path in sorted((Path(__file__).parent.parent / "wechat").glob("*.py")):
        assert re.findall(rf"\b(?:{names})\b", path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize(
    ("error", "said", "final"),
    [
        (api_error(40007, "x rid: 1-2", "/p"), "40007 x rid: 1-2. Media expired", True),
        (api_error(45009, "x", "/p"), "45009 x. Daily API quota used up", False),
        (TransportError("/p", sent=True, status=502), "/p: no answer (HTTP 502)", False),
        (MediaRefusedError(40009, "photo.jpg has 11 MB"), "photo.jpg has 11 MB. Shrink the image", True),
        (MediaTooLargeError(5), "the file is larger than 5 bytes: the cap is MAX_MEDIA_BYTES", True),
        (TruncatedMediaError("the download broke off"), "the download broke off", False),
        (ReplyError("no"), "no", True),
        (TokenUnavailableError("no token", code=40164, retry_at=5.0), "no token", False),
    ],
)
def test_an_error_tells_what_to_do_as_data(error, said, final):
    assert explained(error).startswith(said)
    assert error.final == final
    assert (error.retry_at == 5.0) == isinstance(error, TokenUnavailableError)
    assert explained(error).isprintable()


def test_a_reason_for_the_shared_row_has_both_languages():
    assert token_reason(api_error(40013, "invalid appid", "/p")) == (
        "40013 invalid appid. Check the AppID (case, stray characters). is WECHAT_APPID that of this account?",
        "请检查 AppID（大小写、多余字符）；请检查 WECHAT_APPID 是否为本账号",
    )
