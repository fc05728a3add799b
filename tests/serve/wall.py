"""A server's engine behind the kernel's wall and without the guard, for test_sandbox.py: `python -m tests.serve.wall`.

It puts the wall up as `clipql serve` does, then sends what comes on standard input straight to ClickHouse, and prints
what came of each as JSON, a line each. Arguments: the database, and `write` or `read`. Input: [[name, [statement, …],
params], …].
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from clipql.serve import sandbox, scratch
from clipql.storage import catalog

SECONDS = 40
SETTINGS = "max_execution_time = 2, http_max_tries = 1, http_connection_timeout = 1"
# what ends the process, or takes from later attempts what they are after
SLOW = ("odbc(", "jdbc(", "hdfs")  # look for a server or a program for half a minute or longer
LAST = ("DROP", "DETACH", "RENAME", "EXCHANGE", "TRUNCATE", "SYSTEM", "KILL", "UNDROP")
PRINTING = threading.Lock()
Attempt = tuple[str, list[str], dict[str, str]]


def tell(name: str, said: str) -> None:
    """A line of what came of an attempt."""
    with PRINTING:
        sys.stdout.write(json.dumps({"name": name, "said": said[:100_000]}) + "\n")
        sys.stdout.flush()


def sends(engine: Any, attempts: list[Attempt]) -> None:
    """Send some, one after the other, by a connection of their own."""
    raw = engine._connect().raw
    for name, statements, params in attempts:
        said = ""
        for sql in statements:
            try:
                raw.query(f"SET {SETTINGS}")
                said = bytes(raw.query(sql, "TSVRaw", params=params).bytes()).decode("utf-8", "replace")
            except Exception as error:  # noqa: BLE001 - whatever stops it
                said = f"{type(error).__name__}: {error}"
        tell(name, said)


def main() -> None:
    """Send all, eight side by side."""
    folder, write, attempts = Path(sys.argv[1]), sys.argv[2] == "write", json.load(sys.stdin)
    with scratch.opened(folder) as own:
        if not write:
            own.link_engine(folder / "engine")
        plan = sandbox.of_server(folder, own, catalog.load(folder), "clipql/emoji", write=write)
        tell("", sandbox.apply(plan, "require").sentence)
        from clipql.database import Database

        engine = Database(folder, model="clipql/emoji", engine=None if write else own.engine).registry.engine
        slow = [a for a in attempts if any(word in a[1][-1].lower() for word in SLOW)]
        last = [a for a in attempts if a not in slow and a[1][-1].lstrip(" (").upper().startswith(LAST)]
        first = [a for a in attempts if a not in slow and a not in last]
        waiting = [threading.Thread(target=sends, args=(engine, [each]), daemon=True) for each in slow]
        working = [threading.Thread(target=sends, args=(engine, first[at::8])) for at in range(8)]
        for thread in (*waiting, *working):
            thread.start()
        for thread in working:
            thread.join()
        until = time.monotonic() + SECONDS
        for thread in waiting:
            thread.join(max(0.0, until - time.monotonic()))
        sends(engine, sorted(last, key=lambda a: "SYSTEM" in a[1][-1]))
        with PRINTING:
            os._exit(0)  # some may wait still


if __name__ == "__main__":
    main()
