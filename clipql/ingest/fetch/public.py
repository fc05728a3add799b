"""Addresses that somebody else has named: they lead to machines of the public network, and nowhere else.

What must stay true: a connection goes to an address that was looked at, after each redirect too, so that a name cannot
mean another machine a moment later; no credentials, cookies or proxies go along.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection

import httpx2

from clipql.ingest.fetch.transport import Failure

_BY_IPV4 = ipaddress.ip_network("64:ff9b::/96")  # what NAT64 translates, RFC 6052
_OWN_BUSINESS = {"authorization", "cookie", "proxy-authorization"}


class OnlyPublic(httpx2.BaseTransport):
    """What connects. allowed: names of hosts that may be asked wherever they are, in small letters."""

    def __init__(self, allowed: Collection[str] = ()) -> None:
        # a connection that is kept might be of another name with the same address
        self._inner = httpx2.HTTPTransport(limits=httpx2.Limits(max_keepalive_connections=0))
        self._allowed = frozenset(allowed)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """One request. Raises Failure where it leads into a private network, and httpx2's errors."""
        host = request.url.host
        address = place_of(host, request.url.port or 443, anywhere=host.lower() in self._allowed)
        return self._inner.handle_request(
            httpx2.Request(
                request.method,
                request.url.copy_with(host=address),
                headers=[(k, v) for k, v in request.headers.multi_items() if k.lower() not in _OWN_BUSINESS],
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
        )

    def close(self) -> None:
        """Let go of connections."""
        self._inner.close()


def place_of(host: str, port: int, *, anywhere: bool = False) -> str:
    """The address of a host: all of its addresses are public, unless it may be anywhere. Raises Failure."""
    try:
        found = [each[4][0] for each in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise Failure(f"{host} has no address ({error})", again=True) from error
    addresses = [str(each) for each in found]
    if not anywhere and not all(map(is_public, addresses)):
        raise Failure(f"{host} is not in the public network, and nothing is fetched from elsewhere", again=False)
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an address of IPv4 or IPv6 is of the public network, also where one is written in the other."""
    found = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if inner is None and found in _BY_IPV4:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None and not is_public(str(inner)):
            return False
        if found.ipv4_mapped is not None:
            return True
    return found.is_global and not found.is_multicast
