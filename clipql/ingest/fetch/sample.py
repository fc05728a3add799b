"""Whether a file or a part at a source is one that is here, from its size and its two ends.

The files of two parts often have one size, so that a size alone tells little. 64 KB of vectors, or of a Parquet file,
tell all that there is to tell, short of a digest.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipql.ingest.fetch.manners import Manners
from clipql.ingest.fetch.source import IMAGE, METADATA, TEXT, Source
from clipql.ingest.fetch.transport import Changed, Failure, RemoteFile, Transport
from clipql.ingest.layout import SAMPLE, fingerprint_of, sample_of


def same_ends(transport: Transport, remote: RemoteFile, path: Path) -> bool:
    """Whether a local file begins and ends as one at a source; only begins, where the source sends whole files only.

    Raises Failure or Changed, or IngestError where the local file cannot be read.
    """
    size, head, tail = sample_of(path)
    there = _ends(transport, remote)
    return remote.size in (None, size) and there[0] == head and there[1] in (None, tail)


def known_elsewhere(
    source: Source, number: int, kinds: Sequence[str], fingerprints: frozenset[str], manners: Manners
) -> bool:
    """Whether the files of a part have one of these fingerprints. A source that does not answer is not insisted on:
    the part is then fetched, and compared here."""
    samples: list[tuple[int, bytes, bytes] | None] = []
    try:
        for kind in (METADATA, IMAGE, TEXT):
            manners.pause()
            file = source.transport.stat(source.url(kind, number)) if kind in kinds else None
            head, tail = _ends(source.transport, file) if file else (b"", b"")
            if kind in kinds and (file is None or file.size is None or tail is None):
                return False
            samples.append((file.size, head, tail) if file and file.size is not None and tail is not None else None)
    except (Failure, Changed):
        return False
    return fingerprint_of(samples) in fingerprints


def fingerprint_at(transport: Transport, remote: RemoteFile) -> str | None:
    """The fingerprint of one file at a source, None where it cannot be told without all of it.

    Raises Failure or Changed.
    """
    head, tail = _ends(transport, remote)
    return None if remote.size is None or tail is None else fingerprint_of([(remote.size, head, tail), None])


def _ends(transport: Transport, file: RemoteFile) -> tuple[bytes, bytes | None]:
    """The first and the last bytes of a file; None for the last where they cannot be had by themselves."""
    head = _piece(transport, file, 0)
    if file.size is None or head is None:
        return head or b"", None
    if file.size <= SAMPLE:
        return head, head
    return head, _piece(transport, file, file.size - SAMPLE)


def _piece(transport: Transport, file: RemoteFile, start: int) -> bytes | None:
    content = b""
    with transport.read(file, start) as reply:
        if reply.start != start:
            return None
        for block in reply.blocks:
            content += block
            if len(content) >= SAMPLE:
                break
    return content[:SAMPLE]
