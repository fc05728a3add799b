"""Whether HTTP/2 would serve the page and scripts: sixty tiles at once near and far, and processor time a request.

    PYTHONPATH=SITE python -m bench.http2        where SITE has hypercorn and granian; h2load is Debian's nghttp2-client

uvicorn, which clipql's server is made of, speaks HTTP/1.1 only; hypercorn and granian speak both. All serve the same
small application, which answers with as many bytes as a tile has. Browsers open six connections with HTTP/1.1, and one
with HTTP/2. Distance is a proxy that holds all bytes back for half of a round trip, new connections for a whole one.
"""

from __future__ import annotations

import asyncio
import importlib.util
import re
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bench import child, served

TILE, TILES, ROUNDS, MANY = b"x" * 12_000, 60, 5, 900  # hypercorn closes a connection after 1,000
TRIPS = (0.0, 0.02, 0.1)
APP = "bench.http2:app"
SERVERS = {
    "uvicorn": "uvicorn --port {port} --no-access-log --http httptools --loop asyncio --log-level error " + APP,
    "hypercorn": "hypercorn -b 127.0.0.1:{port} --log-level ERROR " + APP,
    "granian": "granian --interface asgi --port {port} --no-access-log --no-ws --log-level error " + APP,
}


async def app(scope: Any, receive: Any, send: Any) -> None:
    """A tile for whoever asks."""
    if scope["type"] != "http":
        return
    headers = [(b"content-type", b"image/webp"), (b"content-length", b"%d" % len(TILE))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": TILE})


def distant(port: int, trip: float) -> int:
    """The port of a proxy, to the end of this process, that is so many seconds there and back away from a server."""
    loop, begun, ports = asyncio.new_event_loop(), threading.Event(), list[int]()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting: deque[tuple[float, bytes]] = deque()
        there = asyncio.Event()

        async def deliver() -> None:
            while True:
                while not waiting:
                    there.clear()
                    await there.wait()
                at, data = waiting.popleft()
                await asyncio.sleep(max(0.0, at - loop.time()))
                if not data:
                    writer.close()
                    return
                writer.write(data)

        delivering = asyncio.ensure_future(deliver())
        data = b"x"
        while data:
            data = await reader.read(1 << 16)
            waiting.append((loop.time() + trip / 2, data))
            there.set()
        await delivering

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(trip)
        theirs = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, theirs[1]), carry(theirs[0], writer), return_exceptions=True)

    def run() -> None:
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(asyncio.start_server(accepted, "127.0.0.1", 0))
        ports.append(server.sockets[0].getsockname()[1])
        begun.set()
        loop.run_forever()

    threading.Thread(target=run, daemon=True).start()
    begun.wait()
    return ports[0]


@contextmanager
def serving(name: str) -> Iterator[served.Server]:
    """One of the servers, once it answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", *SERVERS[name].format(port=port).split()]
    process = subprocess.Popen(command, env=child.environment(), cwd=child.ROOT)
    try:
        for _ in range(600):
            with socket.socket() as tried:
                if tried.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                raise RuntimeError(f"{name} has ended with {process.returncode}")
            threading.Event().wait(0.1)
        yield served.Server(port, process.pid)
    finally:
        process.terminate()
        process.wait(30)


def load(port: int, count: int, connections: int, streams: int, *, second: bool) -> float:
    """Seconds that h2load takes for so many requests. second: by HTTP/2, so many at once on each connection."""
    kind = ["-m", str(streams)] if second else ["--h1", "-m", "1"]
    command = ["h2load", "-n", str(count), "-c", str(connections), *kind, f"http://127.0.0.1:{port}/"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if f" {count} done" not in told or " 0 errored, 0 timeout" not in told:
        raise RuntimeError(told)
    found = re.search(r"finished in ([\d.]+)(us|ms|s)", told)
    if found is None:
        raise RuntimeError(told)
    return float(found[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[found[2]]


def main() -> None:
    """Print what is measured; the least of some rounds."""
    there = [name for name in SERVERS if importlib.util.find_spec(name)]
    for name in there:
        with serving(name) as server:
            ways = [("HTTP/1.1, 6 connections", 6, False)]
            ways += [("HTTP/2, one connection", 1, True)] if name != "uvicorn" else []
            for way, connections, second in ways:
                tiles = []
                for trip in TRIPS:
                    port = distant(server.port, trip)
                    times = [load(port, TILES, connections, TILES, second=second) for _ in range(ROUNDS)]
                    tiles.append(f"{1000 * min(times):.0f} ms at {1000 * trip:g} ms")
                work = []
                for _ in range(ROUNDS):
                    before = server.work()
                    load(server.port, MANY, connections, 6, second=second)
                    work.append((server.work() - before) / MANY)
                print(f"{name}, {way}: {TILES} tiles {', '.join(tiles)}; {1e6 * min(work):.0f} us of processors each")


if __name__ == "__main__":
    main()
