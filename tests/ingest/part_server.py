"""A server of LAION parts that can be made to fail as mirrors and networks do."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit

from serving import start

from clipql.ingest.fetch.manners import Patience

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# never waits long, so that tests are quick; bears little, so that they end
QUICK = Patience(attempts=4, first_wait=0.002, longest_wait=0.004, timeout_seconds=900.0)


@dataclass
class Request:
    """One that the server has had."""

    method: str
    path: str
    range: str | None
    if_range: str | None
    authorization: str | None
    port: int


@dataclass
class PartServer:
    """Use as a context manager. `files`: path → contents. Change the fields to change what the server does.

    By path, and used up by the next requests: cuts, bytes after which the connection breaks; answers, a status and
    headers in place of the file; lies, how much is added to Content-Length; flips, GETs that come with a damaged
    beginning; then, contents that take the place of the present ones after a GET.
    By path, for good: stalls, bytes after which nothing comes until `released`; redirects, to other paths on another
    port; sizes, what HEAD says; headers, besides the usual ones; trickles, which send a byte at a time; endless,
    which begin with some bytes, tell no size and go on with zeros, and note for each answer how many were sent.
    validators: which of ETag and Last-Modified are sent. ranges, heads: whether Range and HEAD are understood.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    answers: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)
    always: dict[str, int] = field(default_factory=dict)
    lies: dict[str, list[int]] = field(default_factory=dict)
    flips: dict[str, int] = field(default_factory=dict)
    then: dict[str, list[bytes]] = field(default_factory=dict)
    stalls: dict[str, int] = field(default_factory=dict)
    trickles: set[str] = field(default_factory=set)
    endless: dict[str, tuple[bytes, list[int]]] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    headers: dict[str, dict[str, str]] = field(default_factory=dict)
    validators: tuple[str, ...] = ("etag", "modified")
    ranges: bool = True
    heads: bool = True
    chunked: bool = False
    requests: list[Request] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    most_at_once: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        self._servers = [start(_handler(self)), start(_handler(self))]
        self.port, self.other_port = (server.server_address[1] for server in self._servers)
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def publish(self, folder: Path, under: str = "") -> None:
        """Serve all files below a folder."""
        for path in folder.rglob("*"):
            if path.is_file():
                self.files[f"{under}/{path.relative_to(folder).as_posix()}"] = path.read_bytes()

    def got(self, path: str) -> list[str | None]:
        """The Range of each GET of a file, in order; None for the whole, without the questions for a first byte."""
        with self._lock:
            found = [r for r in self.requests if r.path == path and r.method == "GET"]
        return [r.range for r in found if r.range != "bytes=0-0"]

    def fetched(self) -> set[str]:
        """The paths of all GETs that were answered with a file of a part."""
        with self._lock:
            return {r.path for r in self.requests if r.method == "GET" and r.path in self.files}

    def take(self, rules: dict[str, list[int]], path: str) -> int | None:
        """The next of some numbers for a path."""
        with self._lock:
            waiting = rules.get(path)
            return waiting.pop(0) if waiting else None


def etag(content: bytes) -> str:
    """As the server sends it."""
    return f'"{hashlib.sha1(content).hexdigest()[:20]}"'


def modified(content: bytes) -> str:
    """A time that another content does not have."""
    return f"Wed, 01 Sep 2021 00:{content[-1] % 60:02}:{hashlib.sha1(content).digest()[0] % 60:02} GMT"


def listing(name: str) -> bytes:
    """What the hub says of a data set."""
    return json.dumps({"id": name, "sha": COMMIT, "siblings": [], "tags": [], "private": False}).encode()


def tree(parts: PartServer, path: str) -> bytes:
    """What the hub says of the files of a data set."""
    of, _, folder = path.partition(f"/tree/{COMMIT}")
    root = f"{of}/resolve/{COMMIT}/"
    named = [p.removeprefix(root) for p in (*parts.files, *parts.redirects) if p.startswith(root)]
    found = [p for p in named if not folder or p.startswith(folder.strip("/") + "/")]
    return json.dumps([{"type": "file", "path": p, "size": 1, "oid": "0" * 40} for p in sorted(found)]).encode()


def keys(parts: PartServer, asked: str) -> bytes:
    """What S3 says of the keys of a bucket, two at a time."""
    url = urlsplit(asked)
    given = {name: values[0] for name, values in parse_qs(url.query).items()}
    root, at = url.path.rstrip("/") + "/", int(given.get("continuation-token", 0))
    found = sorted(p.removeprefix(root) for p in parts.files if p.startswith(root + given.get("prefix", "")))
    more = at + 2 < len(found)
    listed = "".join(f"<Contents><Key>{k}</Key><Size>1</Size></Contents>" for k in found[at : at + 2])
    rest = f"<NextContinuationToken>{at + 2}</NextContinuationToken>" if more else ""
    told = f"<IsTruncated>{str(more).lower()}</IsTruncated>{rest}{listed}"
    return f'<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{told}</ListBucketResult>'.encode()


def _handler(parts: PartServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_HEAD(self) -> None:
            self._answer(head=True)

        def do_GET(self) -> None:
            with parts._lock:
                parts._now += 1
                parts.most_at_once = max(parts.most_at_once, parts._now)
            try:
                self._answer(head=False)
            finally:
                with parts._lock:
                    parts._now -= 1

        def _answer(self, *, head: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            told, port = self.headers, self.server.server_address[1]
            with parts._lock:
                request = Request(self.command, path, told["Range"], told["If-Range"], told["Authorization"], int(port))
                parts.requests.append(request)
                answers = parts.answers.get(path)
                special = answers.pop(0) if answers else (parts.always.get(path, 0), {})
            if special[0]:
                self._send(special[0], b"", special[1], head=head)
            elif head and not parts.heads:
                self._send(405, b"", {}, head=True)
            elif path in parts.redirects and port == parts.port:
                place = f"http://127.0.0.1:{parts.other_port}{parts.redirects[path]}"
                self._send(302, b"", {"Location": place, **parts.headers.get(path, {})}, head=head)
            elif "/tree/" in path and path.startswith("/api/datasets/"):
                self._send(200, tree(parts, path.removeprefix("/api")), {}, head=head)
            elif "list-type=2" in self.path:
                self._send(200, keys(parts, self.path), {"Content-Type": "application/xml"}, head=head)
            elif path.startswith("/api/datasets/"):
                self._send(200, listing(path.split("/revision/")[0].removeprefix("/api/datasets/")), {}, head=head)
            elif path in parts.endless:
                self._endless(*parts.endless[path], head=head)
            elif path not in parts.files:
                self._send(404, b"<html>not here</html>", {}, head=head)
            else:
                self._file(path, head)

        def _file(self, path: str, head: bool) -> None:
            content = parts.files[path]
            headers = dict(parts.headers.get(path, {})) if path not in parts.redirects else {}
            if "etag" in parts.validators:
                headers.setdefault("ETag", etag(content))
            if "modified" in parts.validators:
                headers["Last-Modified"] = modified(content)
            if head:
                self._send(200, b"", headers, head=True, size=parts.sizes.get(path, len(content)))
                return
            status, begin, end = 200, 0, len(content)
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers["Range"] or "")
            same = self.headers["If-Range"] in (None, headers.get("ETag"), headers.get("Last-Modified"))
            if match and parts.ranges and same:
                begin, end = int(match[1]), min(int(match[2] or len(content)), len(content) - 1) + 1
                if begin >= len(content):
                    self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"}, head=False)
                    return
                status, headers["Content-Range"] = 206, f"bytes {begin}-{end - 1}/{len(content)}"
            body = content[begin:end]
            asks_for_one = match is not None and match[2] == "0"
            if not asks_for_one and parts.flips.get(path, 0):
                parts.flips[path] -= 1
                at = 9 if path.endswith(".npy") else 0  # behind what tells the kind of file, which is looked at first
                body = body[:at] + bytes([body[at] ^ 0xFF]) + body[at + 1 :]
            self._send(status, body, headers, head=False, path="" if asks_for_one else path)
            if not asks_for_one and parts.then.get(path):
                parts.files[path] = parts.then[path].pop(0)

        def _send(
            self, status: int, body: bytes, headers: dict[str, str], *, head: bool, size: int = 0, path: str = ""
        ) -> None:
            lie = parts.take(parts.lies, path)
            self.send_response_only(status)
            for key, value in headers.items():
                self.send_header(key, value)
            if parts.chunked and path:
                self.send_header("Transfer-Encoding", "chunked")
            elif not (parts.chunked and head):
                self.send_header("Content-Length", str((size if head else len(body)) + (lie or 0)))
            self.end_headers()
            if head:
                return
            cut = parts.take(parts.cuts, path)
            if cut is not None or lie is not None:
                self.wfile.write(body if cut is None else body[:cut])
                self.close_connection = True
            elif path in parts.stalls:
                self.wfile.write(body[: parts.stalls[path]])
                parts.released.wait()
                self.close_connection = True
            elif path in parts.trickles:
                self._trickle(body)
            elif parts.chunked and path:
                self._chunks(body)
            else:
                self.wfile.write(body)

        def _endless(self, first: bytes, sent: list[int], *, head: bool) -> None:
            self.send_response_only(200)
            self.end_headers()
            self.close_connection = True
            if head or self.headers["Range"] == "bytes=0-0":
                return
            total = 0
            try:
                total += self.wfile.write(first)
                while total < 1 << 30:
                    total += self.wfile.write(bytes(1 << 16))
            except OSError:
                pass
            sent.append(total)

        def _trickle(self, body: bytes) -> None:
            self.close_connection = True
            for at in range(len(body)):
                if parts.released.wait(0.02):
                    return
                self.wfile.write(body[at : at + 1])

        def _chunks(self, body: bytes) -> None:
            for piece in _pieces(body, 1000):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    return Handler


def _pieces(body: bytes, size: int) -> Iterable[bytes]:
    return (body[i : i + size] for i in range(0, len(body), size))
