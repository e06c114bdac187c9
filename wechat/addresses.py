"""Which IP addresses are anybody's on the internet, and which lie inside: private, local, reserved.

Knows the registries of special addresses, by Python's `ipaddress` and beyond. Must not know who asks, nor names.
https://www.iana.org/assignments/iana-ipv6-special-registry/
"""

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

_NAT64 = ip_network("64:ff9b::/96")
# Python counts these as public, in some or all of its versions.
_INSIDE = tuple(map(ip_network, ("192.0.0.0/24", "64:ff9b:1::/48", "fec0::/10")))
_IPV4_COMPATIBLE = ip_network("::/96")


def is_public(address: str) -> bool:
    """Whether the whole internet reaches `address` (IPv4 or IPv6, with a zone or without).

    False too for addresses that carry a private one inside (::ffff:10.0.0.1, ::10.0.0.1, NAT64), and for 6to4 and
    Teredo. Raises ValueError for anything else than an address.
    """
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        if ip.sixtofour or ip.teredo or ip in _IPV4_COMPATIBLE:
            return False
        ip = IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip.ipv4_mapped or ip
    return ip.is_global and not ip.is_multicast and not any(ip in network for network in _INSIDE)
