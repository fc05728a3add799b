"""Lines of a reply's head that are sent before the rest of it is known, as ClickHouse sends its progress.

What must stay true: the status that goes with them is 200, so a reply that fails after that says so by its headers and
its body, as ClickHouse's does; the head is ended by uvicorn, which knows nothing of this.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from starlette.requests import Request

_EXTENSION = "clipql.head"
# a header of requests whose reply shall have its head at once, as another process reads it whole
HEAD_AT_ONCE = "x-clipql-head-at-once"


class EarlyHead:
    """What a cycle of uvicorn writes to, in the place of its transport, once a line was sent early."""

    def __init__(self, cycle: Any) -> None:
        self._cycle, self._transport = cycle, cycle.transport
        self._ended = False

    def write(self, data: bytes) -> None:
        """What uvicorn writes, without the status, which was sent."""
        if not self._ended and self._cycle.response_started:
            self._ended = True
            data = data[data.index(b"\r\n") + 2 :]
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def offer(cycle: Any) -> None:
    """Let those who answer a cycle send lines of its head early."""
    # weakly, as the cycle has its scope: else both would stay until somebody looks for garbage
    cycle.scope.setdefault("extensions", {})[_EXTENSION] = partial(_send_line, weakref.ref(cycle))


def _send_line(known: weakref.ref[Any], name: str, value: str) -> None:
    cycle = known()
    if cycle is None or cycle.response_started or cycle.disconnected or cycle.transport.is_closing():
        return
    begin = b"" if begun(cycle) else b"HTTP/1.1 200 OK\r\n"
    cycle.transport.write(begin + f"{name}: {value}\r\n".encode("ascii"))
    if begin:
        cycle.transport = EarlyHead(cycle)


def begun(cycle: Any) -> bool:
    """Whether lines of its head were sent."""
    return isinstance(cycle.transport, EarlyHead)


def sender(request: Request) -> Callable[[str, str], None] | None:
    """What sends a line of the head of a request's reply, of printable ASCII, unless the head has been sent; None where
    the connection cannot."""
    return None if HEAD_AT_ONCE in request.headers else line_sender(request.scope)


def line_sender(scope: Mapping[str, Any]) -> Callable[[str, str], None] | None:
    """The same, by what the connection can do alone."""
    found: Callable[[str, str], None] | None = scope.get("extensions", {}).get(_EXTENSION)
    return found
