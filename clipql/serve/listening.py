"""The sockets that a server listens on, made before the sandbox, in which none can be, and before anything heavy."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from clipql.errors import ServerError


@dataclass(frozen=True)
class Doors:
    """What a server listens on. http: for HTTP. tcp: for ClickHouse's native protocol. tls: what both are wrapped in.
    url: the address for people and clients. native: that of the native protocol, as host:port; empty without one."""

    http: socket.socket
    tcp: socket.socket | None
    tls: ssl.SSLContext | None
    url: str
    native: str

    @classmethod
    def of(cls, http: socket.socket, host: str, tcp: socket.socket | None, tls: ssl.SSLContext | None) -> Doors:
        """Those of bound sockets. host: as it was asked for."""
        url = f"{'https' if tls else 'http'}://{_shown(host)}:{http.getsockname()[1]}/"
        return cls(http, tcp, tls, url, f"{_shown(host)}:{tcp.getsockname()[1]}" if tcp else "")

    def close(self) -> None:
        """Listen no more."""
        self.http.close()
        if self.tcp:
            self.tcp.close()


def tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """What connections are wrapped in, by a certificate with its chain, and its key; both are PEM files.

    Read before the sandbox, in which they cannot be. Raises ServerError.
    """
    if certificate is None:
        if key is not None:
            raise ServerError("--tls-key: give --tls-cert too, the certificate that the key is of")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ServerError(
            f"--tls-cert {certificate}, --tls-key {key or 'not given, so in the same file'}: {error}; "
            "expected PEM files of a certificate and its key"
        ) from error
    return context


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int, option: str = "--port") -> socket.socket:
    """A socket that listens; port 0 takes a free one. option: by which it was asked for. Raises ServerError."""
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
            f"give {option} another, or 0 for a free one"
        ) from error
    return bound


def _shown(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
