"""Servers of tests: on a port of 127.0.0.1, in a thread of their own."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class QuietServer(ThreadingHTTPServer):
    """One that does not complain when a client leaves in the middle."""

    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients of these tests break off on purpose."""


def start(handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    """Serve until `shutdown` is called."""
    server = QuietServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return server
