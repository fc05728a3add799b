"""Digests: what sources say of a file's contents, lists of them, and whether a file has them.

What must stay true: only what is a digest of the whole file, in an algorithm that is computed here, counts; a list that
the user names goes before what a source says.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from clipql.errors import DownloadError

_BLOCK = 1 << 20
# by the length of the hexadecimal digits, as the lists of md5sum, sha1sum and so on tell them apart
_BY_LENGTH = {32: "md5", 40: "sha1", 64: "sha256", 96: "sha384", 128: "sha512"}
# strongest first: one of them is computed
_RANK = ("sha512", "sha384", "sha256", "sha1", "md5", "crc32")
_GNU = re.compile(r"\\?(?P<hex>[0-9a-fA-F]{32,128})[ \t]+\*?(?P<name>.+)")
_BSD = re.compile(r"(?P<kind>[A-Z0-9-]+) ?\((?P<name>.+)\) ?= ?(?P<hex>[0-9a-fA-F]+)")


@dataclass(frozen=True)
class Digest:
    """A digest of a whole file. told_by: where it comes from, for messages."""

    algorithm: str
    hex: str
    told_by: str


def strongest(digests: Iterable[Digest]) -> Digest | None:
    """The one to compare."""
    known = [d for d in digests if d.algorithm in _RANK]
    return min(known, key=lambda d: _RANK.index(d.algorithm), default=None)


def mismatch(path: Path, digest: Digest) -> str | None:
    """What is wrong where a file has another digest, else None. Raises OSError."""
    seen = _compute(path, digest.algorithm)
    if seen == digest.hex.lower():
        return None
    return f"its {digest.algorithm} is {seen}, and {digest.told_by} says {digest.hex.lower()}"


def _compute(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        if algorithm == "crc32":
            value = 0
            while block := file.read(_BLOCK):
                value = zlib.crc32(block, value)
            return f"{value:08x}"
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def from_headers(headers: Mapping[str, str]) -> tuple[Digest, ...]:
    """Digests in the headers of an answer to HEAD, or to GET of the whole file; names in lower case.

    Content-MD5, Digest (RFC 3230), Repr-Digest (RFC 9530), x-goog-hash, x-amz-checksum-*, the ETag of S3 where it is
    the MD5 of the file, and Hugging Face's X-Linked-ETag.
    """
    found = [_base64("md5", headers.get("content-md5", ""), "Content-MD5")]
    for name in ("digest", "x-goog-hash"):
        for piece in headers.get(name, "").split(","):
            algorithm, _, value = piece.strip().partition("=")
            found.append(_base64(_plain(algorithm), value, name.capitalize()))
    for algorithm, value in re.findall(r"([\w-]+)=:([A-Za-z0-9+/=]*):", headers.get("repr-digest", "")):
        found.append(_base64(_plain(algorithm), value, "Repr-Digest"))
    if headers.get("x-amz-checksum-type", "").upper() != "COMPOSITE":
        names = {a: f"x-amz-checksum-{a}" for a in ("sha256", "sha1", "crc32")}
        found += [_base64(a, headers.get(name, ""), f"S3's {name}") for a, name in names.items()]
    found.append(s3_etag(headers))
    linked = headers.get("x-linked-etag", "").strip('"')
    if re.fullmatch(r"[0-9a-f]{64}", linked):
        found.append(Digest("sha256", linked, "Hugging Face"))
    return tuple(d for d in found if d is not None)


def s3_etag(headers: Mapping[str, str]) -> Digest | None:
    """The MD5 in the ETag of S3: not of an upload in several parts, and not of what its key service encrypts."""
    etag = headers.get("etag", "").strip('"')
    s3 = "x-amz-request-id" in headers or headers.get("server", "") == "AmazonS3"
    encrypted = headers.get("x-amz-server-side-encryption", "").startswith("aws:kms") or (
        "x-amz-server-side-encryption-customer-algorithm" in headers
    )
    plain = s3 and not encrypted and re.fullmatch(r"[0-9a-f]{32}", etag)
    return Digest("md5", etag, "the ETag of S3") if plain else None


def _plain(algorithm: str) -> str:
    return {"sha": "sha1"}.get(algorithm.lower(), algorithm.lower().replace("sha-", "sha"))


def _base64(algorithm: str, value: str, told_by: str) -> Digest | None:
    length = {"md5": 16, "sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64, "crc32": 4}.get(algorithm)
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return None
    return Digest(algorithm, content.hex(), told_by) if length and len(content) == length else None


class ChecksumList:
    """Digests by the name of a file, from a list as sha256sum or md5sum writes it."""

    def __init__(self, text: str, where: str) -> None:
        self.where = where
        self._by_path: dict[str, Digest] = {}
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            match = _GNU.fullmatch(line.strip()) or _BSD.fullmatch(line.strip())
            algorithm = _BY_LENGTH.get(len(match["hex"])) if match else None
            if match is None or algorithm is None:
                raise DownloadError(
                    f"{where}, line {number}: {line[:80]!r}; expected a digest and a name, as sha256sum or md5sum "
                    "writes them"
                )
            name = match["name"].strip().removeprefix("./")
            self._by_path[name] = Digest(algorithm, match["hex"].lower(), where)

    def of(self, url: str) -> Digest | None:
        """The digest of the file at an address: of the longest end of it that the list has."""
        path = PurePosixPath(url.partition("?")[0].partition("#")[0])
        for length in range(min(len(path.parts), 8), 0, -1):
            found = self._by_path.get("/".join(path.parts[-length:]))
            if found:
                return found
        # a list made elsewhere, with other folders above the file
        ends = {d.hex: d for name, d in self._by_path.items() if PurePosixPath(name).name == path.name}
        return next(iter(ends.values())) if len(ends) == 1 else None
