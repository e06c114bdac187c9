"""XML in and out: what the parser takes and refuses, and the one escaping function."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from wechat.elements import cdata, legal, mended, parse, texts
from wechat.errors import DoctypeError, UnreadablePushError

BOMB = (
    b'<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">'
    b'<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><xml><a>&c;</a></xml>'
)


@pytest.mark.parametrize(
    "xml",
    [
        BOMB,
        b"<!DOCTYPE xml><xml/>",
        b'<!DOCTYPE xml SYSTEM "file:///etc/passwd"><xml/>',
        b'<!DOCTYPE x [<!ENTITY a SYSTEM "http://127.0.0.1:1/">]><xml>&a;</xml>',
        b"\xef\xbb\xbf<!DOCTYPE xml><xml/>",
        b'<?xml version="1.0"?>\r\n<!-- a --><?b c?>\t<!DOCTYPE xml><xml/>',
        b"<!DOCTYPE",
    ],
)
def test_a_doctype_is_refused(xml):
    with pytest.raises(DoctypeError) as refused:
        parse(xml)
    assert (refused.value.status, refused.value.reason) == (400, "doctype")


@pytest.mark.parametrize(
    "xml",
    [
        b"",
        b"   ",
        b"success",
        b'{"ToUserName": "a"}',
        b"<xml>",
        b"<xml></xm>",
        b"<xml>&nosuch;</xml>",
        b"<xml>&#0;</xml>",
        b"<xml>\x00</xml>",
        b"<xml>\xff</xml>",
        b"<xml>\xed\xa0\x80</xml>",  # a surrogate
        b"<xml/><xml/>",
        b"<xml a='1' a='2'/>",
        b"<!doctype xml><xml/>",
        "<xml>你好</xml>".encode("gbk"),
        "<xml/>".encode("utf-16"),
        "<!DOCTYPE xml><xml/>".encode("utf-16"),
        "<xml/>".encode("utf-16-be"),
        b'<?xml version="1.0" encoding="UTF-7"?>+ADw-xml/+AD4-',
        b"<xml>" + b"<a>" * 3000 + b"</a>" * 3000 + b"</xml>",
    ],
)
def test_what_is_not_utf_8_xml_is_refused(xml):
    with pytest.raises(UnreadablePushError) as refused:
        parse(xml)
    assert (refused.value.status, refused.value.reason) == (200, "xml")
    assert refused.value.__context__ is None, "the parser's error may quote the body"


def test_a_doctype_inside_a_text_is_text():
    root = parse(b"<xml><Content><![CDATA[<!DOCTYPE xml>]]></Content></xml>")
    assert root.findtext("Content") == "<!DOCTYPE xml>"


@pytest.mark.parametrize(
    "xml",
    [
        "\ufeff<xml><a>你好 🚀</a></xml>",
        '<?xml version="1.0" encoding="UTF-16"?><xml><a>你好 🚀</a></xml>',
        '<?xml version="1.0" encoding="nonsense"?><xml><a>你好 🚀</a></xml>',
        "<xml>\n  <a>你好<!-- ? --> <?b?><![CDATA[🚀]]></a>\n</xml>\n",
    ],
)
def test_utf_8_is_read_whatever_is_declared(xml):
    assert parse(xml.encode()).findtext("a") == "你好 🚀"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "]]>",
        "]]]]>>",
        "]]",
        "<a>&amp;</a>",
        "&lt;",
        "🚀é\x7f\x85\u2028",
        "\n\t ",
        "a]]>b]]>c",
        "<![CDATA[x]]>",
    ],
)
def test_cdata_comes_back_as_it_was(text):
    assert (parse(f"<a>{cdata(text)}</a>".encode()).text or "") == text


def test_what_xml_cannot_carry_is_left_out():
    bad = [*range(9), 0xB, 0xC, *range(0xE, 0x20), 0xD800, 0xDFFF, 0xFFFE, 0xFFFF]
    assert legal("a" + "".join(map(chr, bad)) + "b") == "ab"
    assert parse(f"<a>{cdata('x' + chr(0) + ']' + chr(1) + ']>')}</a>".encode()).text == "x]]>"


def test_line_ends_become_newlines():
    assert legal("a\r\nb\rc\nd\r\r\n") == "a\nb\nc\nd\n\n"


def test_threads_do_not_disturb_each_other():
    def read(number):
        if number % 7 == 0:
            with pytest.raises(UnreadablePushError):
                parse(b"<xml><a>")
        return parse(f"<xml><a{number}>{number}</a{number}></xml>".encode())[0]

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(read, range(3000)))
    assert [(element.tag, element.text) for element in found] == [(f"a{n}", str(n)) for n in range(3000)]


@pytest.mark.parametrize(
    "unit",
    [
        b"<a><![CDATA[x</a>",
        b"<a><![CDATA[x</a>]]>",
        b"<a><![CDATA[]]></b></a>",
        b"<Content><![CDATA[</Content>",
        b"<b>]]></b>",
        b"<a>",
        b"a",
        b"<" + b" " * 100,
        b"]]>" + b" " * 50,
    ],
)
def test_a_scan_costs_no_more_than_the_bodys_length(unit):
    def seconds(size):
        body = b"<xml><x" + unit * (size // len(unit))
        began = time.process_time()
        texts(body, "Encrypt")
        mended(body)
        return time.process_time() - began

    # Eight times as long: a square would be 64 times as much.
    small = min(seconds(32 * 1024) for _ in range(3))
    assert min(seconds(256 * 1024) for _ in range(2)) < 24 * small + 0.1
