"""`download.json` in the folder of a download: what is there, by what it was checked, and what is missing.

What must stay true: a file is in the record only after it was checked under its name; one that has another size or time
by now is not taken at the record's word.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clipql.errors import DownloadError
from clipql.ingest.fetch.http import shown
from clipql.ingest.fetch.onefile import Whole
from clipql.ingest.fetch.parts import Lost
from clipql.ingest.fetch.transport import RemoteFile
from clipql.storage import files

NAME, LOCK = "download.json", ".download.lock"
_VERSION = 1


class Record:
    """The record of one folder. One thread writes; several may ask."""

    def __init__(self, folder: Path, source: str) -> None:
        self.path, self._folder, self._source = folder / NAME, folder, source
        self._files: dict[str, dict[str, Any]] = {}
        self._same_source = False
        try:
            found = json.loads(self.path.read_bytes())
            if found["version"] == _VERSION:
                self._files = {str(k): dict(v) for k, v in found["files"].items()}
                self._same_source = found["source"] == source
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass  # it only saves work: without it the files themselves are looked at

    def trusted(self, name: str, by: str = "") -> Whole | None:
        """A file that an earlier run from this source has checked, by a list of that name, and nobody touched since."""
        entry, path = self._files.get(name), self._folder / name
        if entry is None or not self._same_source:
            return None
        try:
            now = path.stat()
            if (now.st_size, now.st_mtime_ns) != (entry["size"], entry["mtime_ns"]):
                return None
            if by not in str(entry["checked_by"]):
                return None
            remote = RemoteFile(str(entry["url"]), now.st_size, entry["etag"], entry["modified"])
            return Whole(path, remote, now.st_size, 0, str(entry["checked_by"]))
        except (OSError, KeyError):
            return None

    def add(self, name: str, whole: Whole) -> None:
        """Take note of a file that was checked."""
        self._files[name] = {
            "size": whole.size,
            "mtime_ns": whole.path.stat().st_mtime_ns,
            "url": shown(whole.remote.url),
            "etag": whole.remote.etag,
            "modified": whole.remote.modified,
            "digests": {d.algorithm: d.hex for d in whole.remote.digests},
            "checked_by": whole.checked_by,
        }

    def save(self, parts: str, lost: Sequence[Lost], *, finished: bool) -> None:
        """Write the record. finished: the run has looked at all that it was asked for."""
        content = {
            "version": _VERSION,
            "source": self._source,
            "parts": parts,
            "finished": finished,
            "missing": [
                {"part": m.part, "file": m.file, "url": m.url, "status": m.status, "reason": m.reason} for m in lost
            ],
            "files": dict(sorted(self._files.items())),
        }
        files.replace(self.path, json.dumps(content, indent=1).encode())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a folder to oneself: two who continue one file would garble it. Raises DownloadError."""
    with files.translated(folder, "making"):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise DownloadError(
                f"another process is downloading into {folder}: wait until it has finished, or name another folder"
            ) from error
        yield
    finally:
        os.close(handle)
