"""What a disk may hold after the power went, from a log of the changes made to it (`shim.c` writes it).

Each state follows from the log up to one change, and from what a file system owes: a file's content is there once it
was synced, a name once its folder was. Where `ordered`, as on ext4, XFS and btrfs, any sync also makes all names before
it durable; where not, only POSIX's promise holds.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

HEAD = struct.Struct("<cIIQQ")


@dataclass(frozen=True)
class Change:
    """One change. kind: one letter, see `Disk.apply`; name, other: paths below the root; data: what was written."""

    kind: str
    name: str
    other: str
    offset: int
    data: bytes


def read(log: Path) -> list[Change]:
    """The changes of a log, in order."""
    data, at, found = log.read_bytes(), 0, []
    while at < len(data):
        kind, a, b, offset, size = HEAD.unpack_from(data, at)
        at += HEAD.size
        name, other = data[at : at + a].decode(), data[at + a : at + a + b].decode()
        at += a + b
        found.append(Change(kind.decode(), name, other, offset, data[at : at + size]))
        at += size
    return found


@dataclass(eq=False)
class File:
    """now: its content; synced: as it was at its last sync, None where it never was."""

    now: bytearray = field(default_factory=bytearray)
    synced: bytes | None = None


@dataclass(eq=False)
class Link:
    target: str


@dataclass(eq=False)
class Folder:
    """now: what it holds; synced: what it held at its last sync."""

    now: dict[str, Node] = field(default_factory=dict)
    synced: dict[str, Node] = field(default_factory=dict)


Node = File | Link | Folder


class Disk:
    """A folder as it was, all of it synced, and what became of it."""

    def __init__(self, source: Path, *, ordered: bool) -> None:
        self._ordered = ordered
        self.root = _taken(source)
        self._changed = {id(f): f for f in _folders(self.root)}

    def _at(self, name: str) -> tuple[Folder, str]:
        *above, last = name.split("/")
        folder = self.root
        for part in above:
            found = folder.now[part]
            assert isinstance(found, Folder), name
            folder = found
        return folder, last

    def apply(self, change: Change) -> None:
        """Carry one change out."""
        if not change.name and change.kind == "d":
            folder, last, node = self.root, "", self.root
        else:
            folder, last = self._at(change.name)
            node = folder.now.get(last)  # type: ignore[assignment]
        kind = change.kind
        if kind == "c":
            folder.now[last] = File()
        elif kind == "m":
            made = folder.now[last] = Folder()
            self._changed[id(made)] = made
        elif kind == "y":
            folder.now[last] = Link(change.other)
        elif kind in "uR":
            folder.now.pop(last, None)
        elif kind in "rlx":
            target, new = self._at(change.other)
            if kind == "x":
                folder.now[last], target.now[new] = target.now[new], folder.now[last]
            else:
                assert node is not None, change
                target.now[new] = node
                if kind == "r":
                    folder.now.pop(last)
        elif kind == "d":
            self._settle([folder if not last else node])  # type: ignore[list-item]
        elif isinstance(node, File):  # one that is open may have no name any more
            self._write(node, change)

    def _write(self, file: File, change: Change) -> None:
        if change.kind == "w":
            end = change.offset + len(change.data)
            file.now.extend(b"\0" * (end - len(file.now)))
            file.now[change.offset : end] = change.data
        elif change.kind in "ta":
            size = max(change.offset, len(file.now)) if change.kind == "a" else change.offset
            del file.now[size:]
            file.now.extend(b"\0" * (size - len(file.now)))
        elif change.kind == "s":
            file.now[:] = change.data
            file.synced = change.data
            self._settle([])

    def _settle(self, folders: list[Folder]) -> None:
        for folder in self._changed.values() if self._ordered else folders:
            folder.synced = dict(folder.now)

    def after_kill(self) -> Iterator[tuple[str, bytes | str | None]]:
        """What is there after the process was killed: everything, as it was written."""
        yield from _listed(self.root, "", lambda f: f.now, lambda file: bytes(file.now))

    def after_power_loss(self, torn: str, *, names: bool) -> Iterator[tuple[str, bytes | str | None]]:
        """What is there after the power went. torn: 'empty', 'zeros' or 'half', for files written since their last
        sync. names: whether the names that were not synced are there.
        """

        def content(file: File) -> bytes:
            if file.synced == file.now:
                return file.synced
            if torn == "half":
                return bytes(file.now[: len(file.now) // 2])
            return file.synced or (b"" if torn == "empty" else bytes(len(file.now)))

        yield from _listed(self.root, "", lambda f: f.now if names else f.synced, content)


def _taken(path: Path) -> Folder:
    folder = Folder()
    for entry in os.scandir(path):
        node: Node
        if entry.is_symlink():
            node = Link(os.readlink(entry.path))
        elif entry.is_dir():
            node = _taken(Path(entry.path))
        else:
            data = Path(entry.path).read_bytes()
            node = File(bytearray(data), data)
        folder.now[entry.name] = node
    folder.synced = dict(folder.now)
    return folder


def _folders(folder: Folder) -> Iterator[Folder]:
    yield folder
    for node in folder.now.values():
        if isinstance(node, Folder):
            yield from _folders(node)


def _listed(folder, path, children, content):  # type: ignore[no-untyped-def]
    for name, node in sorted(children(folder).items()):
        place = f"{path}{name}"
        if isinstance(node, Folder):
            yield place, None
            yield from _listed(node, place + "/", children, content)
        else:
            yield place, node.target if isinstance(node, Link) else content(node)


def states(
    source: Path, changes: list[Change], *, ordered: bool, torn: str | None, names: bool = False
) -> Iterator[tuple[int, dict[str, bytes | str | None]]]:
    """The folder after each change, without what equals the one before: how many changes, and what each path holds.

    torn None: the process was killed; otherwise the power went.
    """
    disk, last = Disk(source, ordered=ordered), b""
    for n in range(len(changes) + 1):
        if n:
            disk.apply(changes[n - 1])
        listed = disk.after_kill() if torn is None else disk.after_power_loss(torn, names=names)
        found = dict(listed)
        digest = hashlib.blake2b(repr(found).encode()).digest()
        if digest != last:
            last = digest
            yield n, found


def lay_out(found: dict[str, bytes | str | None], target: Path) -> None:
    """Write such a state into a new folder."""
    target.mkdir(parents=True)
    for name, content in found.items():
        place = target / name
        if content is None:
            place.mkdir()
        elif isinstance(content, str):
            place.symlink_to(content)
        else:
            place.write_bytes(content)
