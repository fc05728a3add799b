"""Who may come in: host names, origins, tokens, and the headers that keep a page to itself.

What must stay true: a site that a user visits cannot reach the server through the browser. It would come under a name
of its own (DNS rebinding, refused by the Host header) or from an origin of its own (refused by Origin and
Sec-Fetch-Site). Addresses as hosts are always good: no name resolves to them.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response

from clipql.serve.json_response import JsonResponse, error_response
from clipql.serve.limits import Options

COOKIE = "clipql_token"
# clip-retrieval's routes, which its browser front asks from a site of its own
SHARED = ("/knn-service", "/metadata", "/indices-list")
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob: http: https:; "
        "connect-src 'self'; font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_MOST_SEEN, _LONGEST_SEEN = 64, 256
_RAW = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in HEADERS.items()]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class AccessControl:
    """ASGI middleware before everything else."""

    def __init__(self, app: Any, options: Options) -> None:
        self._app = app
        self._origins = frozenset(origin.rstrip("/").lower() for origin in options.origins)
        self._seen: set[str] = set()  # some of the hosts that are good
        self._names = {"localhost", socket.gethostname().lower(), *(h.lower() for h in options.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        request = Request(scope)
        origin = request.headers.get("origin", "")
        shared = self._shared(request, origin)

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                raw = message["headers"] = list(message["headers"])
                there = {name for name, _ in raw}
                raw += [pair for pair in _RAW if pair[0] not in there]
                if shared:
                    headers = MutableHeaders(scope=message)
                    headers["Access-Control-Allow-Origin"] = origin
                    headers["Vary"] = "Origin"
            await send(message)

        refused: Response | None = self._refused(request, shared=shared)
        if refused is None and shared and request.method == "OPTIONS":
            allowed = {"Methods": "GET, POST", "Headers": "content-type, authorization", "Max-Age": "600"}
            answer = {f"Access-Control-{'' if n == 'Max-Age' else 'Allow-'}{n}": value for n, value in allowed.items()}
            refused = Response(status_code=204, headers=answer)
        app = self._app if refused is None else refused
        await app(scope, receive, send_guarded)

    def _shared(self, request: Request, origin: str) -> bool:
        """Whether a site that the owner named asks for what such sites may ask for."""
        return origin.lower() in self._origins and request.url.path in SHARED

    def _refused(self, request: Request, *, shared: bool) -> JsonResponse | None:
        hosts = request.headers.getlist("host")
        host = hosts[0] if hosts else ""
        if len(hosts) > 1 or "@" in host:
            return error_response(400, "the header Host is there once, with a name or an address and a port")
        if not self._known(host):
            said = f"this server does not go by the name {host[:100]!r}: start it with --allow-host"
            return error_response(421, said)
        if shared:
            return None
        origin = request.headers.get("origin")
        try:
            site = urlsplit(origin or "").netloc.lower()
        except ValueError:
            return error_response(400, "the header Origin is no address")
        if origin is not None and site != host.lower():
            return error_response(403, f"requests from the site {origin[:100]!r} are refused")
        navigation = request.headers.get("sec-fetch-mode") == "navigate" and request.method == "GET"
        foreign = request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if foreign and not (navigation and "query" not in request.query_params):
            return error_response(403, "requests from other sites are refused")
        return None

    def _known(self, host: str) -> bool:
        if host in self._seen:
            return True
        known = self._is_known(host)
        if known and len(self._seen) < _MOST_SEEN and len(host) < _LONGEST_SEEN:
            self._seen.add(host)
        return known

    def _is_known(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in self._names or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True


def authorised(token: str | None, request: Request, params: Any = None) -> bool:
    """Whether a request brings the token, in any of the ways of ClickHouse's clients, as a bearer, or as a cookie."""
    if token is None:
        return True
    given = [*_from_headers(request.headers), request.cookies.get(COOKIE)]
    if params is not None:
        given.append(params.get("password"))
    return any(same(token, g) for g in given if g)


def same(token: str, given: str) -> bool:
    """Whether a token is the right one, in a time that tells nothing."""
    return hmac.compare_digest(token.encode(), given.encode("utf-8", "replace"))


def _from_headers(headers: Headers) -> list[str | None]:
    scheme, _, rest = headers.get("authorization", "").partition(" ")
    password = None
    if scheme.lower() == "basic":
        try:
            password = base64.b64decode(rest, validate=True).decode().partition(":")[2]
        except ValueError:  # no base64, no UTF-8
            password = None
    return [rest.strip() if scheme.lower() == "bearer" else None, password, headers.get("x-clickhouse-key")]
