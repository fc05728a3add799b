"""What has come of a file so far: `NAME.partial`, and beside it which file of which source that is.

What must stay true: only bytes of that very file are in it, as far as the note beside it says that they are synced; so
a loss of power cannot leave a hole in what is continued.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from clipql.ingest.fetch.http import shown
from clipql.ingest.fetch.transport import RemoteFile
from clipql.storage import files

SUFFIX, NOTE = ".partial", ".partial.json"
# at most so much is fetched again after a kill
SYNC_BYTES = 64 << 20


class Partial:
    """A file on its way to its name. One thread uses it; another may `save` it where that one waits for a source."""

    def __init__(self, target: Path) -> None:
        self.target = target
        self.path, self._note = target.with_name(target.name + SUFFIX), target.with_name(target.name + NOTE)
        self.size = 0
        self._synced = 0
        self._file: BinaryIO | None = None
        self._remote: RemoteFile | None = None
        self._lock = threading.RLock()

    def left_from(self, remote: RemoteFile) -> int:
        """How many bytes an earlier run has left that can be continued."""
        try:
            note = json.loads(self._note.read_bytes())
            size = min(int(note["synced"]), self.path.stat().st_size)
            same = note["file"] == _identity(remote)
        except (OSError, ValueError, KeyError, TypeError):
            return 0
        return size if same and remote.resumable and (remote.size is None or size <= remote.size) else 0

    @contextlib.contextmanager
    def opened(self, remote: RemoteFile) -> Iterator[None]:
        """Have the file open to continue it; what has come is synced at the end, however that comes about."""
        with files.translated(self.path, "writing"):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            left = self.left_from(remote)
            with open(self.path, "ab", buffering=0) as file:
                with self._lock:
                    self._file, self._remote, self.size, self._synced = file, remote, left, left
                    file.truncate(left)
                    self._write_note()
                try:
                    yield
                finally:
                    self.save()
                    with self._lock:
                        self._file = None

    def cut(self, size: int) -> None:
        """Forget what came after so many bytes."""
        if size != self.size:
            with files.translated(self.path, "writing"), self._lock:
                self._open().truncate(size)
                self.size, self._synced = size, min(size, self._synced)
                self._write_note()

    def beginning(self, size: int) -> bytes:
        """The first bytes of what has come."""
        with files.translated(self.path, "reading"), open(self.path, "rb", buffering=0) as file:
            return file.read(min(size, self.size))

    def write(self, block: bytes) -> None:
        """Add bytes."""
        rest = memoryview(block)
        with files.translated(self.path, "writing"), self._lock:
            while rest:
                rest = rest[self._open().write(rest) :]
            self.size += len(block)
            if self.size - self._synced >= SYNC_BYTES:
                self.save()

    def save(self) -> None:
        """See to it that what has come is synced and can be continued; nothing where the file is not open."""
        with files.translated(self.path, "writing"), self._lock:
            if self._file is not None and self._synced != self.size:
                os.fsync(self._file.fileno())
                self._synced = self.size
                self._write_note()

    def finish(self) -> None:
        """Give the file its name; it is closed by now."""
        with files.translated(self.target, "writing"):
            os.replace(self.path, self.target)
            self._note.unlink(missing_ok=True)
        files.sync_folder(self.target.parent)

    def discard(self) -> None:
        """Remove what has come."""
        for path in (self._note, self.path):
            files.remove(path)

    def _open(self) -> BinaryIO:
        if self._file is None:
            raise ValueError(f"{self.path} is not open")
        return self._file

    def _write_note(self) -> None:
        temporary = self._note.with_name(self._note.name + ".tmp")
        temporary.write_text(json.dumps({"file": _identity(self._remote), "synced": self._synced}), encoding="utf-8")
        os.replace(temporary, self._note)


def _identity(remote: RemoteFile | None) -> dict[str, object]:
    if remote is None:
        return {}
    if remote.digests:  # the same contents, whichever mirror or revision has them
        return {"size": remote.size, "digests": sorted([d.algorithm, d.hex] for d in remote.digests)}
    return {"size": remote.size, "url": shown(remote.url), "etag": remote.etag, "modified": remote.modified}
