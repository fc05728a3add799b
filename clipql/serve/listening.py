"""The socket that a server listens on, made before the sandbox, in which none can be, and before anything heavy."""

from __future__ import annotations

import ipaddress
import socket

from clipql.errors import ServerError


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises ServerError."""
    if not 0 <= port <= 65535:
        raise ServerError(f"port {port}: expected 0 to 65535")
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, proto)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(512)
    except OSError as error:
        raise ServerError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; another server may have the port: "
            "give --port another, or 0 for a free one"
        ) from error
    return bound


def url_of(bound: socket.socket, host: str) -> str:
    """The address for people and clients."""
    port = bound.getsockname()[1]
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown}:{port}/"
