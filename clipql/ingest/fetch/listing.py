"""Which files an address names: one file, or all of a folder or a pattern where the source can list them.

    https://host/file.parquet
    hf://datasets/OWNER/NAME/data/train-*.parquet      s3://bucket/folder/

What must stay true: files are in the order of their names, as in a folder of this machine; those of a data set on
Hugging Face are all of one commit.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlsplit

from clipql.errors import DownloadError
from clipql.ingest.fetch.http import Http, shown
from clipql.ingest.fetch.manners import Manners
from clipql.ingest.fetch.source import is_address
from clipql.ingest.fetch.transport import Failure, Transport
from clipql.ingest.layout import natural

_PATTERN = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class RemoteName:
    """A file at a source. said: its address as the user would write it, for messages and for what a table remembers."""

    transport: Transport
    url: str
    said: str

    @property
    def name(self) -> str:
        """Its own name, without folders."""
        return unquote(urlsplit(self.url).path if self.url.startswith("http") else self.url).rpartition("/")[2]


def files_at(address: str, manners: Manners, wanted: Callable[[str], bool]) -> list[RemoteName]:
    """The files that an address names. wanted: whether the name of a file in a folder, or of a pattern, is of a form
    that is read. Raises DownloadError where there are none.
    """
    if not is_address(address):
        raise DownloadError(f"{address} is no address: expected one such as https://…, hf://datasets/… or s3://…")
    if address.startswith("hf:"):
        found = _of_dataset(address, manners, wanted)
    elif address.startswith(("http:", "https:")):
        if _PATTERN.search(urlsplit(address).path) or not wanted(urlsplit(address).path):
            raise DownloadError(
                f"{shown(address)}: over HTTP files cannot be listed: give the address of each; of LAION parts, "
                "also which (--from and --parts)"
            )
        found = [RemoteName(Http(manners.patience, {}), address, shown(address))]
    elif address.startswith("s3:"):
        found = _of_bucket(address, manners, wanted)
    else:
        found = _of_file_system(address, wanted)
    if not found:
        raise DownloadError(f"{shown(address)} has no file of rows")
    return found


def _chosen(names: Sequence[str], asked: str, wanted: Callable[[str], bool]) -> list[str]:
    """Of the paths of a source those that are asked for: the path itself, those of a pattern, or those below it."""
    if asked in names:
        return [asked]
    below = asked.rstrip("/") + "/" if asked.rstrip("/") else ""
    if _PATTERN.search(asked):
        names = [n for n in names if fnmatch.fnmatchcase(n, asked)]
    else:
        names = [n for n in names if n.startswith(below)]
    shown_names = [n for n in names if not any(p.startswith((".", "_")) for p in n.removeprefix(below).split("/"))]
    return sorted(filter(wanted, shown_names), key=natural)


def _fixed(asked: str) -> str:
    """The folders of a pattern before its first sign, or of a path."""
    sign = _PATTERN.search(asked)
    return asked[: sign.start()].rpartition("/")[0] if sign else asked


def _of_dataset(address: str, manners: Manners, wanted: Callable[[str], bool]) -> list[RemoteName]:
    from clipql.ingest.fetch.datasets import paths_of, split, web_address

    head, asked = split(address)
    base, headers = web_address(head)
    single = wanted(asked) and not _PATTERN.search(asked)
    names = [asked] if single else _chosen(paths_of(head, base, _fixed(asked)), asked, wanted)
    transport = Http(manners.patience, headers)
    return [RemoteName(transport, f"{base}/{quote(n)}", f"{head}/{n}") for n in names]


def _of_bucket(address: str, manners: Manners, wanted: Callable[[str], bool]) -> list[RemoteName]:
    from clipql.ingest.fetch.s3 import S3

    bucket, _, asked = address.partition("://")[2].partition("/")
    client = S3(manners.patience)
    try:
        single = not _PATTERN.search(asked) and wanted(asked) and client.stat(address) is not None
        names = [asked] if single else manners.insist(lambda: client.keys(bucket, _fixed(asked)))
    except Failure as failure:
        client.close()
        raise DownloadError(str(failure)) from failure
    return [RemoteName(client, f"s3://{bucket}/{n}", f"s3://{bucket}/{n}") for n in _chosen(names, asked, wanted)]


def _of_file_system(address: str, wanted: Callable[[str], bool]) -> list[RemoteName]:
    from clipql.ingest.fetch.fsspec_files import AnyFileSystem

    found = AnyFileSystem(address)
    try:
        names = found.paths(_fixed(address))
    except Failure as failure:
        raise DownloadError(str(failure)) from failure
    return [RemoteName(found, n, n) for n in _chosen(names, found.path(address), wanted)]
