"""Which IP addresses are public, and which are private, local or reserved.

Knows the registries of special addresses, from Python's `ipaddress` and beyond. Must not know host names.
https://www.iana.org/assignments/iana-ipv6-special-registry/
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

# NAT64, and IPv4-translated addresses (RFC 2765).
_TRANSLATED = tuple(map(ip_network, ("64:ff9b::/96", "::ffff:0:0:0/96")))
# Some or all versions of Python count these as public.
_INSIDE = tuple(map(ip_network, ("192.0.0.0/24", "64:ff9b:1::/48", "fec0::/10", "3fff::/20", "5f00::/16")))
_IPV4_COMPATIBLE = ip_network("::/96")


def is_public(address: str) -> bool:
    """Whether `address` (IPv4 or IPv6, with or without a zone) is public.

    Also False for addresses that carry a private one inside (::ffff:10.0.0.1, ::ffff:0:10.0.0.1, ::10.0.0.1,
    NAT64), and for 6to4 and Teredo. Raises ValueError for anything that is not an address.
    """
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if ip.sixtofour or ip.teredo or ip in _IPV4_COMPATIBLE:
            return False
        translated = any(ip in network for network in _TRANSLATED)
        ip = IPv4Address(int(ip) & 0xFFFFFFFF) if translated else ip.ipv4_mapped or ip
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _INSIDE)
