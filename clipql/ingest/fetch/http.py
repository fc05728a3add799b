"""Files by HTTP and HTTPS.

What must stay true: a file is continued only where the server shows that it is the same one, by If-Range and by what
the answer says; what it announces for the whole must agree with what it announced before.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx2

from clipql.ingest.fetch.digests import from_headers
from clipql.ingest.fetch.manners import LONGEST_RETRY_AFTER, Patience, retry_after
from clipql.ingest.fetch.transport import Changed, Failure, RemoteFile, Reply
from clipql.version import __version__

_NOT_THERE = {404, 410}
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529}


def shown(url: str) -> str:
    """An address without what is nobody else's business: name, password, and a query, which may be a signature."""
    found = urlsplit(url)
    if not found.scheme or not found.netloc:
        return url
    return urlunsplit((found.scheme, found.netloc.rpartition("@")[2], found.path, "", ""))


class Http:
    """A client with connections that are kept. headers: sent with every request, such as a token. transport: what
    connects in the place of the library's own; then nothing of the environment, as a proxy or a netrc, is used."""

    def __init__(
        self,
        patience: Patience,
        headers: Mapping[str, str] | None = None,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        own = {"User-Agent": f"clipql/{__version__}", "Accept-Encoding": "identity", "Accept": "*/*"}
        self._timeout = patience.timeout_seconds
        # an "Authorization" is dropped by the library when a redirect leads to another host
        self._client = httpx2.Client(
            headers={**own, **(headers or {})},
            follow_redirects=True,
            timeout=httpx2.Timeout(self._timeout),
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=32),
            transport=transport,
            trust_env=transport is None,
        )
        self._lock = threading.Lock()
        self._no_head: set[str] = set()

    def close(self) -> None:
        """Let go of connections."""
        self._client.close()

    def stat(self, url: str, *, careful: bool = False) -> RemoteFile | None:
        """What HEAD says of a file; what GET of its first byte says, where a server has no proper HEAD."""
        host = urlsplit(url).netloc
        if not careful and host not in self._no_head:
            with self._answered("HEAD", url, {}) as response:
                if response.status_code in _NOT_THERE:
                    return None
                if response.status_code < 400:
                    found = _described(url, response, _length(response))
                    if found.size:
                        return found
                elif response.status_code not in (400, 403, 405, 501):
                    raise _refused(url, response)
            with self._lock:
                self._no_head.add(host)
        with self._answered("GET", url, {"Range": "bytes=0-0"}) as response:
            if response.status_code in _NOT_THERE:
                return None
            if response.status_code == 416:  # there is no first byte
                return RemoteFile(url, 0, response.headers.get("etag"), response.headers.get("last-modified"))
            if response.status_code >= 400:
                raise _refused(url, response)
            partly = response.status_code == 206
            return _described(url, response, _total(response) if partly else _length(response), partly=partly)

    @contextmanager
    def read(self, file: RemoteFile, start: int) -> Iterator[Reply]:
        """The bytes of a file from a place on."""
        headers = {}
        if start:
            headers["Range"] = f"bytes={start}-"
            strong = file.etag if file.etag and not file.etag.startswith("W/") else None
            if strong or file.modified:
                headers["If-Range"] = strong or file.modified or ""
        with self._answered("GET", file.url, headers) as response:
            status = response.status_code
            if status == 416 or status in _NOT_THERE:
                raise Changed(f"the server has nothing from byte {start:,} on (HTTP {status})")
            if status >= 400:
                raise _refused(file.url, response)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise Failure(
                    f"{shown(file.url)} comes compressed ({response.headers['content-encoding']}), which was not asked "
                    "for: its bytes would not be those of the file",
                    again=False,
                )
            yield Reply(_begin(file, start, response), self._blocks(file.url, response))

    def _blocks(self, url: str, response: httpx2.Response) -> Iterator[bytes]:
        with self._translated(url):
            # as they come: blocks of a fixed size would hold back what came before a connection broke off
            yield from response.iter_raw()

    @contextmanager
    def _answered(self, method: str, url: str, headers: dict[str, str]) -> Iterator[httpx2.Response]:
        with self._translated(url), self._client.stream(method, url, headers=headers) as response:
            yield response

    @contextmanager
    def _translated(self, url: str) -> Iterator[None]:
        try:
            yield
        except httpx2.TimeoutException as error:
            raise Failure(f"{shown(url)} was silent for {self._timeout:g} s", again=True) from error
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, httpx2.TooManyRedirects) as error:
            raise Failure(f"{shown(url)}: {error}", again=False) from error
        except (httpx2.HTTPError, httpx2.StreamError) as error:
            raise Failure(f"{shown(url)} cannot be reached or breaks off ({_why(error)})", again=True) from error


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__


def _described(url: str, response: httpx2.Response, size: int | None, *, partly: bool = False) -> RemoteFile:
    # Hugging Face tells what is behind a redirect in the answer that redirects
    told: dict[str, Any] = {}
    for each in (*response.history, response):
        told.update((k.lower(), v) for k, v in each.headers.items() if k.lower().startswith("x-linked-"))
    headers = {k.lower(): v for k, v in response.headers.items()} | told
    if partly:
        # these are of the bytes that were sent
        headers.pop("content-md5", None)
    linked = _number(told.get("x-linked-size"))
    return RemoteFile(
        url,
        size if linked is None else linked,
        response.headers.get("etag"),
        response.headers.get("last-modified"),
        from_headers(headers),
    )


def _length(response: httpx2.Response) -> int | None:
    return _number(response.headers.get("content-length"))


def _number(value: str | None) -> int | None:
    return int(value) if value and re.fullmatch(r"[0-9]{1,18}", value) else None


def _total(response: httpx2.Response) -> int | None:
    match = re.fullmatch(r"bytes [0-9]+-[0-9]+/([0-9]{1,18})", response.headers.get("content-range", "").strip())
    return int(match[1]) if match else None


def _begin(file: RemoteFile, start: int, response: httpx2.Response) -> int:
    """Where the bytes of an answer belong. Raises Changed where they are not those of the file."""
    headers = response.headers
    for name, before in (("etag", file.etag), ("last-modified", file.modified)):
        if before and headers.get(name) not in (None, before):
            raise Changed(f"its {name} was {before} and is {headers[name]}")
    if response.status_code != 206:
        length = _length(response)
        if None not in (length, file.size) and length != file.size:
            raise Changed(f"it was announced with {file.size:,} bytes and comes with {length:,}")
        return 0
    match = re.match(r"bytes ([0-9]{1,18})-[0-9]+/", headers.get("content-range", "").strip())
    if match is None or int(match[1]) != start:
        raise Changed(f"byte {start:,} was asked for and {headers.get('content-range', 'no Content-Range')!r} came")
    total = _total(response)
    if None not in (total, file.size) and total != file.size:
        raise Changed(f"it had {file.size:,} bytes and has {total:,}")
    return start


def _refused(url: str, response: httpx2.Response) -> Failure:
    status = response.status_code
    said = f"{shown(url)}: HTTP {status} {response.reason_phrase}".rstrip()
    if status in _TRY_AGAIN:
        wait = retry_after(response.headers.get("retry-after"))
        if wait is not None and wait > LONGEST_RETRY_AFTER:
            return Failure(f"{said}; it asks to come back in {wait:,.0f} s: run again then", again=False, status=status)
        return Failure(said, again=True, wait_seconds=wait, status=status)
    if status in (401, 403):
        said += ": it needs other rights; see whether the address is right, and whether it wants a token"
    return Failure(said, again=False, status=status)
