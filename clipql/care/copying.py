"""Copies of folders: every file hashed on its way, and synced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import xxhash

from clipql.storage import files

_READ = 8 << 20
Tick = Callable[[str, int, int], None]


def walk(folder: Path) -> Iterator[Path]:
    """Files and symbolic links below a folder, which is none itself."""

    def stop(error: OSError) -> None:
        raise error

    for place, folders, names in os.walk(folder, onerror=stop):
        folders.sort()
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        yield from (Path(place, name) for name in sorted([*links, *names]))


def copy_tree(
    source: Path, target: Path, hard_links: bool, progress: Tick | None, *, ours: bool = False
) -> dict[str, tuple[int, str]]:
    """Copy a tree of files, hashed on the way. Links within ClickHouse's folders stay links.

    ours: other links are our own, to files on another disk, and become files.
    """
    paths = list(walk(source))
    total, done = sum(_size(p) for p in paths), 0
    listing: dict[str, tuple[int, str]] = {}
    for folder, _, _ in os.walk(source):
        (target / os.path.relpath(folder, source)).mkdir(parents=True, exist_ok=True)
    for path in paths:
        name = str(path.relative_to(source))
        place = target / name
        if path.is_symlink() and not os.path.isabs(os.readlink(path)):
            place.symlink_to(os.readlink(path))
            listing[name] = hashed(place)
            continue
        if hard_links and not path.is_symlink() and path.suffix not in (".sql", ".json"):
            with contextlib.suppress(OSError):
                os.link(path, place)
                listing[name] = hashed(place)
        if name not in listing:
            listing[name] = _copy(path, place, follow=ours)
        done += listing[name][0]
        if progress:
            progress(name, done, total)
    return listing


def _size(path: Path) -> int:
    return path.lstat().st_size if path.is_symlink() and not os.path.isabs(os.readlink(path)) else path.stat().st_size


def _copy(source: Path, target: Path, *, follow: bool) -> tuple[int, str]:
    digest, size = xxhash.xxh3_128(), 0
    with files.open_plain(source, follow=follow) as reading, open(target, "wb", buffering=0) as writing:
        while piece := reading.read(_READ):
            digest.update(piece)
            size += len(piece)
            view = memoryview(piece)
            while view:
                view = view[writing.write(view) :]
        os.fsync(writing.fileno())
        with contextlib.suppress(AttributeError, OSError):  # so that reading it back reads the disk
            os.posix_fadvise(writing.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return size, digest.hexdigest()


def hashed(path: Path) -> tuple[int, str]:
    """The size of a file and the hash of its bytes, of a symbolic link of what it names."""
    if path.is_symlink():
        target = os.readlink(path)
        return len(target), xxhash.xxh3_128_hexdigest(target.encode())
    digest, size = xxhash.xxh3_128(), 0
    with files.translated(path, "reading"), files.open_plain(path) as file:
        while piece := file.read(_READ):
            digest.update(piece)
            size += len(piece)
    return size, digest.hexdigest()


def sync_tree(folder: Path) -> None:
    """Sync all folders of a tree, the innermost first."""
    for place, _, _ in os.walk(folder, topdown=False):
        files.sync_folder(Path(place))
