"""Pushes that are the platform's and no strict XML: what is read in them, in every mode, and what strangers cannot do.

The platform puts what people type into CDATA as it is. Reported: control characters, text cut inside a character, an
unsplit `]]>`, XML in a text, character references that no XML may have.
"""

import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

import handlers
from app import create_app
from config import Settings
from sandbox import THROWAWAY
from tests import pushing
from tests.conftest import ACCOUNT, ROOT
from wechat.elements import legal, parse, texts
from wechat.messages import TextMessage, parse_message
from wechat.replies import TextReply

MSG_IDS = itertools.count(24601000000000001)
PANDA = "🐼".encode()


def raw(msg_type, elements, *, create_time=b"1760000000", msg_id=True):
    """A push, bytes; `elements` is put between its tags as it is."""
    ids = b"<MsgId>%d</MsgId>" % next(MSG_IDS) if msg_id else b""
    return (
        b"<xml><ToUserName><![CDATA[gh]]></ToUserName><FromUserName><![CDATA[%b]]></FromUserName>"
        b"<CreateTime>%b</CreateTime><MsgType><![CDATA[%b]]></MsgType>%b%b</xml>"
    ) % (pushing.FAN.encode(), create_time, msg_type.encode(), elements, ids)


def typed(content):
    return raw("text", b"<Content><![CDATA[%b]]></Content>" % content)


# What stands in Content's CDATA, and what is read.
TYPED = {
    **{
        f"U+{code:04X}": (f"a{chr(code)}b".encode(), "ab")
        for code in (0x00, 0x02, 0x08, 0x0B, 0x10, 0x1D, 0xFFFE, 0xFFFF)
    },
    "only control characters": (b"\x00\x02\x1d", ""),
    "cut inside a character": ("你好".encode()[:-1], "你�"),
    "cut inside an emoji": (b"x" + PANDA[:2], "x�"),
    "a surrogate": (b"a\xed\xa0\x80b", "a���b"),
    "GBK": (b"a" + "你".encode("gbk") + b"b", "a��b"),
    "an unsplit end of CDATA": (b"a]]>b", "a]]>b"),
    "two of them": (b"]]>]]>", "]]>]]>"),
    "only that": (b"]]>", "]]>"),
    "XML": (b"<a><status><![CDATA[1]]></status></a>", "<a><status><![CDATA[1]]></status></a>"),
    "its own closing tag": (b"a]]></Content>b", "a]]></Content>b"),
    "another element": (
        b"]]></Content><MsgType><![CDATA[event]]></MsgType>\x02<Content><![CDATA[",
        "]]></Content><MsgType><![CDATA[event]]></MsgType><Content><![CDATA[",
    ),
    "an envelope": (b"]]></Content>\x02<Encrypt>x</Encrypt>", "]]></Content><Encrypt>x</Encrypt>"),
    "a whole push": (
        b"<xml><MsgType><![CDATA[event]]></MsgType><Content><![CDATA[hi]]></Content><MsgId>1</MsgId></xml>",
        "<xml><MsgType><![CDATA[event]]></MsgType><Content><![CDATA[hi]]></Content><MsgId>1</MsgId></xml>",
    ),
    "an end of CDATA that was split": (b"\x02a]]]]><![CDATA[>b", "a]]>b"),
    "a reference is text in CDATA": (b"&#x1D;&lt;\x02", "&#x1D;&lt;"),
    "a DOCTYPE is text in CDATA": (b"<!DOCTYPE xml>\x02", "<!DOCTYPE xml>"),
    "line ends": (b"a\r\nb\x02", "a\nb"),
}
# Bare text, without CDATA.
BARE = {
    "a control reference": (b"a&#x1D;b", "ab"),
    "a surrogate reference": (b"a&#55357;b", "ab"),
    "a pair of them": (b"a&#55357;&#56832;b", "ab"),
    "a reference past Unicode": (b"a&#9999999;b", "ab"),
    "good references": (b"&lt;&#65;&#x1F43C;&amp;amp;\x02", "<A🐼&amp;"),
    "an unknown one": (b"a&nbsp;b", "a&nbsp;b"),
    "an ampersand": (b"a & b", "a & b"),
    "less than": (b"1 < 2", "1 < 2"),
    "a control character": (b"a\x0bb", "ab"),
}


def content(xml):
    message = parse_message(xml)
    assert isinstance(message, TextMessage)
    assert message.raw == xml
    assert message.msg_id is not None
    assert parse_message(message.raw) == message, "a later reading gives the same message"
    return message.content


@pytest.mark.parametrize("case", TYPED)
def test_what_was_typed_is_read(case):
    given_bytes, read = TYPED[case]
    assert content(typed(given_bytes)) == read


@pytest.mark.parametrize("case", BARE)
def test_bare_text_is_read(case):
    given_bytes, read = BARE[case]
    assert content(raw("text", b"<Content>%b</Content>" % given_bytes)) == read


def test_other_elements_are_read_too():
    place = parse_message(
        raw(
            "location",
            b"<Location_X>31.2</Location_X><Location_Y>121.4</Location_Y><Scale>16</Scale>"
            b"<Label><![CDATA[\x02a]]>b</Label>]]></Label>",
        )
    )
    assert (place.location_x, place.location_y, place.scale) == (31.2, 121.4, 16)
    assert place.label == "a]]>b</Label>"
    link = parse_message(
        raw(
            "link",
            b"<Title><![CDATA[a\x08b]]></Title><Description><![CDATA[c]]>d]]></Description><Url>http://x/?a=1&b=2</Url>",
        )
    )
    assert (link.title, link.description, link.url) == ("ab", "c]]>d", "http://x/?a=1&b=2")
    click = parse_message(
        raw("event", b"<Event>CLICK</Event><EventKey><![CDATA[k\x10]]></EventKey>", msg_id=False)
    )
    assert click.event_key == "k"


def test_elements_inside_others_are_read_too():
    scan = parse_message(
        raw(
            "event",
            b"<Event><![CDATA[scancode_waitmsg]]></Event><EventKey><![CDATA[6]]></EventKey><ScanCodeInfo>"
            b"<ScanType><![CDATA[qrcode]]></ScanType><ScanResult><![CDATA[\x1d<a>]]>1</a>]]></ScanResult></ScanCodeInfo>",
            msg_id=False,
        )
    )
    assert (scan.scan_type, scan.scan_result) == ("qrcode", "<a>]]>1</a>")
    pictures = parse_message(
        raw(
            "event",
            b"<Event>pic_weixin</Event><EventKey><![CDATA[\x02]]></EventKey><SendPicsInfo><Count>2</Count><PicList>"
            b"<item><PicMd5Sum><![CDATA[a]]></PicMd5Sum></item><item><PicMd5Sum><![CDATA[b]]></PicMd5Sum></item>"
            b"</PicList></SendPicsInfo>",
            msg_id=False,
        )
    )
    assert (pictures.count, pictures.pic_md5_sums) == (2, ("a", "b"))


# -- through the application, in every mode -----------------------------------------------------------------------


def echo(message):
    return TextReply(message.content) if message.content.strip() else TextReply("(nothing)")


@pytest.fixture(scope="module")
def bots(tmp_path_factory):
    """One application without an AES key and one with it, which answer a text with itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers, "HANDLERS", {TextMessage: echo})
        made = []
        for more in ({}, {"WECHAT_AES_KEY": THROWAWAY.aes_key}):
            folder = tmp_path_factory.mktemp("bot")
            environ = ACCOUNT | more | {"LEDGER_SYNC": "normal"}
            environ |= {"DATABASE_URL": f"sqlite:///{folder}/bot.db", "MEDIA_STORE": f"{folder}/media"}
            made.append(create_app(Settings.from_env(environ, folder)))
        yield made
        for app in made:
            app.extensions["accounts"].of[""].database.close()


@pytest.fixture(autouse=True)
def _databases_are_closed():
    """Not after each test: the applications here are made once."""


def answers(bots, xml):
    """The reply's elements in plain, compat (with and without a key) and safe mode; each must be there."""
    plain, keyed = bots
    for app, (path, body) in (
        (plain, pushing.plain(xml)),
        (plain, pushing.safe(xml, compat=True)),
        (keyed, pushing.safe(xml, compat=True)),
        (keyed, pushing.safe(xml)),
    ):
        response = app.test_client().post(path, data=body)
        assert response.status_code == 200
        root = ET.fromstring(response.data)
        encrypt = root.findtext("Encrypt")
        if encrypt is not None:
            root = ET.fromstring(pushing.ENVELOPE.decrypt(encrypt))
        yield {child.tag: child.text for child in root}


@pytest.mark.parametrize("case", TYPED)
def test_what_was_typed_is_answered_in_every_mode(bots, case):
    given_bytes, read = TYPED[case]
    for reply in answers(bots, typed(given_bytes)):
        assert (reply["MsgType"], reply["Content"]) == ("text", read or "(nothing)")


@pytest.mark.parametrize("case", BARE)
def test_bare_text_is_answered_in_every_mode(bots, case):
    given_bytes, read = BARE[case]
    for reply in answers(bots, raw("text", b"<Content>%b</Content>" % given_bytes)):
        assert reply["Content"] == read


@pytest.mark.parametrize("create_time", [b"1760000000000", b"0", b"", b"soon"])
@pytest.mark.parametrize("msg_id", [b"", b"x", b"99999999999999999999", b"-1"])
def test_a_strange_time_or_id_is_no_reason_to_refuse(bots, create_time, msg_id):
    xml = raw(
        "text",
        b"<Content>%d</Content><MsgId>%b</MsgId>" % (next(MSG_IDS), msg_id),
        create_time=create_time,
        msg_id=False,
    )
    for reply in answers(bots, xml):
        assert reply["MsgType"] == "text"


TAGS = b"]]> <![CDATA[ </Content> <Content> <a> </a> &#0; & < <!-- <? <Encrypt> </Encrypt> </xml> <MsgType>"
PIECES = st.sampled_from([*TAGS.split(), b"\x00", b"\r", b" ", b"\xe4\xbd", b"\xed\xa0\x80", PANDA])
anything = st.binary(max_size=60) | st.lists(PIECES | st.binary(max_size=3), max_size=12).map(b"".join)


@given(anything)
def test_whatever_a_fan_types_is_answered_in_its_kind(bots, data):
    for reply in answers(bots, typed(data)):
        assert reply["MsgType"] == "text"
        if b"]]>" not in data:
            text = legal(data.decode(errors="replace"))
            assert reply["Content"] == (text if text.strip() else "(nothing)")


# -- finding Encrypt without a parser -----------------------------------------------------------------------------

BASE64 = st.text("ABCxyz019+/=", max_size=40)
NAMES = st.sampled_from(
    ["ToUserName", "FromUserName", "MsgType", "Content", "Label", "Encrypted", "MyEncrypt", "a"]
)
SPACE = st.sampled_from(["", " ", "\n", "\r\n\t "])
TEXTS = st.text("aé🐼<>&]['\"/ \n", max_size=20) | st.sampled_from(
    ["<Encrypt>x</Encrypt>", "]]]", "</Content>"]
)


def as_cdata(text):
    return f"<![CDATA[{text.replace(']]>', ']]]]><![CDATA[>')}]]>"


def bare(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def written(name, text, how, one, two, attribute):
    if not text and attribute:
        return f"{one}<{name} {attribute}/>{two}"
    return f"{one}<{name}{attribute and ' '}{attribute}>{how(text)}</{name}{two}>{one}"


LEAVES = st.builds(
    written, NAMES, TEXTS, st.sampled_from([as_cdata, bare]), SPACE, SPACE, st.sampled_from(["", "b='1'"])
)
ENVELOPES = st.builds(
    lambda text, how, one, two: written("Encrypt", f"{one}{text}{two}", how, one, two, ""),
    BASE64,
    st.sampled_from([as_cdata, bare]),
    SPACE,
    SPACE,
)
WRAPPED = st.builds(
    lambda inner, one: f"<List>{one}{''.join(inner)}</List>{one}", st.lists(LEAVES, max_size=3), SPACE
)
HEADS = st.sampled_from(["", "\ufeff", '<?xml version="1.0"?>\n', "<!-- ? -->"])


@given(HEADS, st.lists(LEAVES | WRAPPED | ENVELOPES, max_size=8), SPACE)
def test_the_scan_finds_what_a_parser_finds(head, parts, space):
    body = f"{head}{space if not head.startswith('<?') else ''}<xml>{''.join(parts)}</xml>{space}".encode()
    assert re.sub(rb"\s", b"", body).count(b"<xml>") == 1
    root = parse(body)
    # Of the names that people write the last closing tag counts: the platform sends each of them once.
    once = all(body.count(name) < 2 for name in (b"<Content", b"<Label"))
    expected = [(child.text or "").strip(" \t\r\n") for child in root if child.tag == "Encrypt"]
    assert texts(body, "Encrypt") == expected or not once


MEMORY = """
import resource, sys
from tests.vectors import ACCOUNT, NOW
from wechat.errors import PushError
from wechat.receiver import Receiver

def megabytes():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 1e6

receivers = [Receiver(appid=ACCOUNT.appid, token=ACCOUNT.token, aes_key=key) for key in (None, ACCOUNT.aes_key)]
query = {"signature": "x", "msg_signature": "x", "timestamp": str(NOW), "nonce": "1"}
def bodies(number):
    names = b"".join(b"<n%d_%d/>" % (number, n) for n in range(20_000))
    yield b"<xml>" + names + b"<Encrypt>x</Encrypt></xml>"
    yield b"<xml><Encrypt>" + names + b"</Encrypt></xml>"
    yield b"<a>" * 80_000
refused = 0
def push(number):
    global refused
    for body in bodies(number):
        for receiver in receivers:
            try:
                receiver.open(query, body, NOW)
            except PushError as refusal:
                refused += refusal.status == 403
push(0)
before = megabytes()
for number in range(1, 21):
    push(number)
print(refused, round(megabytes() - before))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_what_strangers_send_costs_no_memory_that_stays():
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    refused, grown = map(int, done.stdout.split())
    assert refused == 21 * 6
    assert grown < 5
