"""Where a request comes from: the address it is counted under, and whether a page of another site sent it.

Knows the request's headers, and its address as PROXY_HOPS has corrected it. Must not know what follows from that.
https://developer.mozilla.org/en-US/docs/Web/HTTP/Reference/Headers/Sec-Fetch-Site
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network
from urllib.parse import urlsplit

from flask import request


def sender_address() -> str:
    """The address under which tries are counted. An IPv6 /64 network, which one customer has, counts as one."""
    text = request.remote_addr or ""
    try:
        if text.startswith("[") or text.count(":") == 1:  # some proxies write the caller's port behind it
            text = urlsplit(f"//{text}").hostname or ""
        address = ip_address(text)
    except ValueError:
        return "unknown"
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or ip_network((address, 64), strict=False))
    return str(address)


def sent_by_another_site() -> bool:
    """Whether a page of another site sent this form: by Sec-Fetch-Site, or by Origin without https."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.host
