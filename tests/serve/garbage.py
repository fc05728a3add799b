"""A server that tells what requests of each kind leave behind until somebody looks for garbage, and ends: as JSON.

Argument: the database. A request's own memory goes with it only where nothing of it refers to itself.
"""

from __future__ import annotations

import collections
import gc
import http.client
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

from clipql.cli.entry import main
from clipql.serve import server

EACH = 20
VECTOR = [1.0] * 16
NEAREST = f"SELECT url FROM laion ORDER BY cosineDistance(image_embedding, {VECTOR}) LIMIT 3"
REST = {"table": "laion", "k": 3, "safe": False}
KINDS: dict[str, tuple[str, str | dict[str, Any]]] = {
    "a search that comes again": ("/", NEAREST),
    "a search by REST": ("/api/search", {**REST, "terms": [{"vector": VECTOR}]}),
    "a search with a condition": ("/api/search", {**REST, "where": "id < 200", "terms": [{"vector": VECTOR}]}),
    "an aggregate": ("/", "SELECT count() FROM laion WHERE id % 3 = 0"),
    "a star": ("/?default_format=JSONEachRow", "SELECT * FROM laion LIMIT 2"),
    "a long answer": ("/", "SELECT number FROM numbers(300000)"),
    "an error": ("/", "SELECT nonsense"),
    "an error of REST": ("/api/search", {**REST, "where": "nonsense = 1", "terms": [{"vector": VECTOR}]}),
}


def left_by(port: int, path: str, body: str | dict[str, Any]) -> dict[str, int]:
    """The objects that some requests on one connection leave, by type."""
    kind = "application/json" if isinstance(body, dict) else "text/plain"
    data = json.dumps(body) if isinstance(body, dict) else body
    connection = http.client.HTTPConnection("127.0.0.1", port)

    def ask(times: int) -> None:
        for _ in range(times):
            connection.request("POST", path, data, {"Content-Type": kind})
            connection.getresponse().read()

    ask(3)  # after which nothing is there for the first time
    gc.collect()
    gc.disable()
    ask(EACH)
    gc.set_debug(gc.DEBUG_SAVEALL)
    gc.collect()
    gc.set_debug(0)
    found = collections.Counter(type(each).__qualname__ for each in gc.garbage)
    gc.garbage.clear()
    gc.enable()
    connection.close()
    return dict(found)


def tell(port: int) -> None:
    """In a thread of the server."""
    found = {name: left_by(port, *asked) for name, asked in KINDS.items()}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGTERM)


def served(folder: str) -> int:
    """Serve, and tell once requests are taken."""
    serve = server.serve

    def serve_and_tell(database: Any, doors: Any, options: Any, ready: Callable[[], None], *more: Any) -> None:
        def taken() -> None:
            ready()
            threading.Thread(target=tell, args=(doors.http.getsockname()[1],), daemon=True).start()

        serve(database, doors, options, taken, *more)

    server.serve = serve_and_tell
    return main(["--db", folder, "serve", "--port", "0", "--sandbox", "off", "--log-level", "error"])


if __name__ == "__main__":
    sys.exit(served(sys.argv[1]))
