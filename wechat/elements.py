"""XML as the platform uses it: the one parser configuration that reads, the one function that escapes.

Read: UTF-8 only (a byte order mark is tolerated, another declared encoding is not believed), no DOCTYPE, no
entities, no network, bounded depth. Written: CDATA sections. It must not know messages, replies or envelopes.

https://www.w3.org/TR/xml/
"""

import re
import threading
from typing import Final

from lxml import etree

from wechat.errors import DoctypeError, MessageError

__all__ = ["cdata", "legal", "parse"]


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


_PARSERS: Final = _Parsers()

# A DOCTYPE stands before the root element or nowhere: in a message's CDATA the same characters are just text.
# The quantifiers are possessive, so that a long prolog costs one pass.
_DOCTYPE: Final = re.compile(rb"(?:\xef\xbb\xbf)?(?:\s++|<\?.*?\?>|<!--.*?-->)*+<!DOCTYPE", re.DOTALL)


def parse(xml: bytes) -> etree._Element:
    """The root element. Comments and processing instructions are left out, CDATA is text.

    Raises DoctypeError if there is a DOCTYPE, MessageError if it is not well-formed UTF-8 XML.
    """
    # The plain search is all that a usual push pays.
    if b"<!DOCTYPE" in xml and _DOCTYPE.match(xml):
        raise DoctypeError("the XML has a DOCTYPE")
    try:
        return etree.fromstring(xml, _PARSERS.parser)
    except etree.XMLSyntaxError:
        pass
    # Raised here, so that the parser's error, which may quote the body, is not chained to it.
    raise MessageError("the body is not well-formed UTF-8 XML")


# What XML 1.0 cannot carry, not even escaped.
_ILLEGAL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


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
