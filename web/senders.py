"""Who sent a request: under which address it is counted, and whether another site's page made the browser send it.

Knows the request's headers and what PROXY_HOPS has made of its address. Must not know what is done about it.
https://developer.mozilla.org/en-US/docs/Web/HTTP/Reference/Headers/Sec-Fetch-Site
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address, ip_network

from flask import request


def sender_address() -> str:
    """Under what the tries of an address are counted: one customer's IPv6 network is one address."""
    try:
        address = ip_address(request.remote_addr or "")
    except ValueError:
        return "unknown"
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or ip_network((address, 64), strict=False))
    return str(address)


def sent_by_another_site() -> bool:
    """Whether a page of another site sent this form. A browser says so, by one header or, without https, the other."""
    site = request.headers.get("Sec-Fetch-Site")
    if site is not None:
        return site not in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.host
