"""chDB behind uvicorn as clipql's server runs it, without anything of clipql's: what the rest of a server is worth.

    python -m bench.plain_server FOLDER

Statements come by POST with a vector in `param_q`, as ClickHouse's protocol has it; nothing is checked.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs

import uvicorn


def make_app(place: str) -> Any:
    """The ASGI application over a chDB folder."""
    from chdb.session import Session

    session = Session(place)
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))

    def answer(sql: str, vector: str) -> bytes:
        # not as a parameter: those are a session's, and threads would take each other's away
        found: bytes = session.query(sql.replace("{q:Array(Float32)}", vector), "Native").bytes()
        return found

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        vector = parse_qs(scope["query_string"].decode())["param_q"][0]
        data = await asyncio.get_running_loop().run_in_executor(pool, answer, body.decode(), vector)
        headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"%d" % len(data))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": data})

    return app


def main() -> None:
    """Serve until SIGTERM; prints the address."""
    bound = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        make_app(sys.argv[1]), http="httptools", lifespan="off", access_log=False, log_level="warning"
    )
    print(f"http://127.0.0.1:{bound.getsockname()[1]}/", flush=True)
    uvicorn.Server(config).run(sockets=[bound])


if __name__ == "__main__":
    main()
