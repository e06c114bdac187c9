"""XML as the platform uses it: read strictly, then leniently; and the one function that escapes.

A push is read strictly first: UTF-8 only (a byte order mark is tolerated, another declared encoding is ignored),
no DOCTYPE, no entities, no network, bounded depth. The platform puts what people type into CDATA as it is, so a body
that is not well-formed is read a second time, by `mended`. `texts` finds an element without any parser, for bodies
whose signature is not checked yet. It must not know messages, replies or envelopes.

https://www.w3.org/TR/xml/
"""

from __future__ import annotations

import re
import threading
from bisect import bisect_left
from collections.abc import Iterator

from lxml import etree

from wechat.errors import DoctypeError, UnreadablePushError


class _Parsers(threading.local):
    """One parser for each thread: a shared one is locked while it parses, twice as slow at 8 threads."""

    def __init__(self) -> None:
        self.parser = etree.XMLParser(
            encoding="utf-8",
            resolve_entities=False,
            no_network=True,
            load_dtd=False,
            huge_tree=False,
            recover=False,
            remove_comments=True,
            remove_pis=True,
            collect_ids=False,
        )


_PARSERS = _Parsers()

# A DOCTYPE can only stand before the root element: in a message's CDATA the same characters are just text.
# The quantifiers are possessive, so that a long prolog costs one pass.
_DOCTYPE = re.compile(rb"(?:\xef\xbb\xbf)?(?:\s++|<\?.*?\?>|<!--.*?-->)*+<!DOCTYPE", re.DOTALL)


def parse(xml: bytes) -> etree._Element:
    """The root element of well-formed XML. Comments and processing instructions are left out, CDATA is text.

    Raises DoctypeError if there is a DOCTYPE, UnreadablePushError if it is not well-formed UTF-8 XML.
    """
    refuse_doctype(xml)
    return _needed(_strict(xml))


def read(xml: bytes) -> etree._Element:
    """The root element, read strictly, and if that fails again after `mended`. Raises as `parse` does.

    Only for pushes known to be the platform's: the parser keeps the names of elements for as long as its thread runs.
    """
    refuse_doctype(xml)
    root = _strict(xml)
    if root is None:
        if is_json(xml):
            raise UnreadablePushError(JSON_PUSH)
        root = _needed(_strict(mended(xml)))
    return root


def refuse_doctype(xml: bytes) -> None:
    """Raises DoctypeError if a DOCTYPE stands before the root element."""
    # This plain search is all that a usual push costs.
    if b"<!DOCTYPE" in xml and _DOCTYPE.match(xml):
        raise DoctypeError("the XML has a DOCTYPE")


def _strict(xml: bytes) -> etree._Element | None:
    try:
        return etree.fromstring(xml, _PARSERS.parser)
    except etree.XMLSyntaxError:
        return None  # the error may quote the body, and is not kept


def _needed(root: etree._Element | None) -> etree._Element:
    if root is None:
        raise UnreadablePushError("the body is not well-formed UTF-8 XML")
    return root


JSON_PUSH = "the push is JSON: choose XML as the data format (数据格式) in the console"


def is_json(body: bytes) -> bool:
    """Whether this begins like a JSON object."""
    return body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{")


# -- the lenient reading ------------------------------------------------------------------------------------------

# The quantifiers are possessive: a mismatch costs one pass.
_OPENING = re.compile(rb"<([A-Za-z_][A-Za-z0-9_.:-]*+)([^<>]*+)>")
_CLOSING = re.compile(rb"</([A-Za-z_][A-Za-z0-9_.:-]*+)\s*+>")
_CDATA = b"<![CDATA["
_CDATA_OPENING = re.compile(rb"\s*+<!\[CDATA\[")
_CDATA_CLOSING = re.compile(rb"\]\]>\s*+</([A-Za-z_][A-Za-z0-9_.:-]*+)\s*+>")
_CDATA_BORDER = re.compile(rb"<!\[CDATA\[|\]\]>")

# Elements that people write. Their CDATA may hold their own closing tag, so the last one counts: nothing that a fan
# types can begin another element. Other elements may repeat: their first closing tag counts.
_WRITTEN = frozenset(
    b"Content Title Description Url Label Poiname EventKey ScanResult Recognition Nickname".split()
)
_REFERENCE = re.compile("&(?:#([0-9]{1,7})|#x([0-9A-Fa-f]{1,6})|(lt|gt|amp|quot|apos));")
_NAMED = {"lt": "<", "gt": ">", "amp": "&", "quot": '"', "apos": "'"}
_MAX_CODE_POINT = 0x10FFFF
_MAX_DEPTH = 8  # the platform nests five deep


def mended(xml: bytes) -> bytes:
    """The push rewritten as well-formed XML, with the meaning that it most likely has.

    Undecodable bytes become U+FFFD. What XML cannot carry is left out, character references to it too. CDATA ends
    before its own element's closing tag, so that `]]>` and tags that a fan typed are text. Takes one pass for
    each level; raises DoctypeError if the DOCTYPE was hidden behind such characters.
    """
    clean = legal(xml.decode("utf-8", "replace")).encode()
    refuse_doctype(clean)
    root = _OPENING.search(clean)
    return b"<xml>%b</xml>" % (b"" if root is None else _rewritten(clean[root.end() :], 1))


def texts(body: bytes, name: str) -> list[str]:
    """The text of each element of that name directly under the root, white space around it trimmed.

    A scan of the bytes in one pass, which keeps nothing: for a body that may be a stranger's.
    """
    root = _OPENING.search(body)
    if root is None:
        return []
    tag = name.encode()
    return [
        _text(content, is_cdata).strip(" \t\r\n")
        for found, content, is_cdata in _children(body, root.end())
        if found == tag
    ]


def _children(xml: bytes, start: int) -> Iterator[tuple[bytes, bytes, bool]]:
    """Name, content, and whether that is CDATA, of each element from `start` on, until one is not closed."""
    closings, cdata_closings = _Closings(_CLOSING, xml), _Closings(_CDATA_CLOSING, xml)
    while (opening := _OPENING.search(xml, start)) is not None:
        name, start = opening[1], opening.end()
        if opening[2].endswith(b"/"):
            yield name, b"", False
            continue
        is_cdata = _CDATA_OPENING.match(xml, start) is not None
        closing = None
        if is_cdata:
            closing = cdata_closings.find(name, start, last=name in _WRITTEN)
        if closing is None:
            closing = closings.find(name, start)
        if closing is None:
            return
        content = xml[start : closing[0]]
        yield name, content.lstrip()[len(_CDATA) :] if is_cdata else content, is_cdata
        start = closing[1]


class _Closings:
    """The closing tags in `xml`, by name. Each is looked up once, however often its name is asked for: a
    stranger's body must not cost the square of its length."""

    def __init__(self, tags: re.Pattern[bytes], xml: bytes) -> None:
        self._tags, self._xml = tags, xml
        self._found: dict[bytes, list[tuple[int, int]]] | None = None

    def find(self, name: bytes, start: int, *, last: bool = False) -> tuple[int, int] | None:
        """Start and end of a closing tag of that name after `start`: the first one, or the last one."""
        if self._found is None:
            next_one = self._tags.search(self._xml, start)
            # In a usual push it is the next one.
            if next_one is not None and next_one[1] == name and not last:
                return next_one.span()
            self._found = {}
            for tag in self._tags.finditer(self._xml, start):
                self._found.setdefault(tag[1], []).append(tag.span())
        places = self._found.get(name, [])
        place = len(places) - 1 if last else bisect_left(places, (start, 0))
        return places[place] if 0 <= place < len(places) and places[place][0] >= start else None


def _rewritten(content: bytes, depth: int) -> bytes:
    """The elements inside `content`, well-formed."""
    parts = []
    for name, value, is_cdata in _children(content, 0):
        if b":" in name:  # a prefix, which would need a declaration
            continue
        nested = b""
        if not is_cdata and depth < _MAX_DEPTH and value.lstrip().startswith(b"<"):
            nested = _rewritten(value, depth + 1)
        parts.append(b"<%b>%b</%b>" % (name, nested or cdata(_text(value, is_cdata)).encode(), name))
    return b"".join(parts)


def _text(content: bytes, is_cdata: bool) -> str:
    if is_cdata:
        # Two adjacent sections are one text, as in XML.
        return content.replace(b"]]>" + _CDATA, b"").decode("utf-8", "replace")
    return _REFERENCE.sub(_referred, _CDATA_BORDER.sub(b"", content).decode("utf-8", "replace"))


def _referred(reference: re.Match[str]) -> str:
    if reference[3]:
        return _NAMED[reference[3]]
    code = int(reference[1]) if reference[1] else int(reference[2], 16)
    return chr(code) if code <= _MAX_CODE_POINT else ""


# -- characters ---------------------------------------------------------------------------------------------------

# What XML 1.0 cannot carry, not even escaped.
_ILLEGAL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def legal(text: str) -> str:
    """The text without the characters that XML cannot carry, its line ends as \\n.

    A carriage return becomes \\n because every XML parser would read it so.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _ILLEGAL.sub("", text)


def cdata(text: str) -> str:
    """The text as CDATA, whatever it holds: illegal characters are left out, `]]>` is split over two sections."""
    return f"<![CDATA[{legal(text).replace(']]>', ']]]]><![CDATA[>')}]]>"
