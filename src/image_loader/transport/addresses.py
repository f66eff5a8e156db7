"""IP addresses: which ones belong to the public internet, and in which order they are tried."""

# No annotation is a string here: see ``model``.
import ipaddress
import socket
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What IANA has given out so far, less what Python 3.11 does not yet know to be reserved (RFC 9637).
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
_DOCUMENTATION = ipaddress.ip_network("3fff::/20")


class Address(NamedTuple):
    """One address of a host: its family, and the rest of what ``socket.connect`` takes, but for the port."""

    family: int
    ip: str
    scope: tuple[int, ...]

    def at(self, port: int) -> tuple[Any, ...]:
        """Return what ``socket.connect`` takes."""
        return (self.ip, port, *self.scope)


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet, whatever its spelling.

    >>> [is_public(text) for text in ("8.8.8.8", "10.0.0.1", "::ffff:127.0.0.1", "64:ff9b::a00:1", "fe80::1%eth0")]
    [True, False, False, False, False]
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast
    if ip in _NAT64:
        return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
    inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
    if inner is not None:
        return is_public(str(inner))
    return ip in _GLOBAL_UNICAST and ip not in _DOCUMENTATION and ip.is_global


def interleaved(addresses: Sequence[Address]) -> list[Address]:
    """Return the addresses with both families in turns, IPv6 first (RFC 8305, 4); otherwise in the resolver's order.

    >>> [each.ip for each in interleaved([Address(socket.AF_INET, ip, ()) for ip in ("192.0.2.1", "192.0.2.2")]
    ...     + [Address(socket.AF_INET6, "2001:db8::1", (0, 0))])]
    ['2001:db8::1', '192.0.2.1', '192.0.2.2']
    """
    if len(addresses) == 1:
        return list(addresses)
    newer = [each for each in addresses if each.family == socket.AF_INET6]
    older = [each for each in addresses if each.family != socket.AF_INET6]
    return [each for each in chain.from_iterable(zip_longest(newer, older)) if each is not None]
