"""From what the user names to rows: folders, globs, pictures, tars, Parquet files, text files.

What must stay true: the order is that of the names given, and within a folder that of its names sorted, so that it is
the same in every run; a folder of millions of files is listed folder by folder and never held whole.
"""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipql.encode.embed.captions import BadSidecar, read_lines, read_sidecars
from clipql.encode.embed.parquet import check_parquet, read_parquet
from clipql.encode.embed.rows import Row, Skip, Unused
from clipql.encode.embed.webdataset import PICTURES, read_tar
from clipql.errors import EncodeError

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_TEXTS = (".txt", ".text")
_GLOB = frozenset("*?[")


@dataclass(frozen=True)
class Sources:
    """The files and folders to read. pictures: or captions alone. column: of the captions. out: never read."""

    places: tuple[Path, ...]
    pictures: bool
    column: str | None
    out: Path

    def rows(self, skip: Skip, unused: Unused) -> Iterator[Row]:
        """Every row, in order; of those to be skipped only the keys. unused: is told of what makes no row."""
        for place in self.places:
            for found in self._files(place):
                if isinstance(found, Row):
                    yield found
                else:
                    yield from self._read(found, skip, unused)

    def count(self, stop: threading.Event) -> int | None:
        """How many rows there are, where that can be known without reading them: not for tars and text files."""
        total = 0
        for place in self.places:
            for found in self._files(place):
                if stop.is_set():
                    return None
                if isinstance(found, Row):
                    total += 1
                elif found.suffix.lower() == ".parquet":
                    try:
                        total += check_parquet(found, pictures=self.pictures, column=self.column)
                    except EncodeError:
                        total += 1
                elif self.pictures and not _is_tar(found):
                    total += 1
                else:
                    return None
        return total

    def _files(self, place: Path) -> Iterator[Path | Row]:
        """The files of a place to read, or a row that says why they cannot be listed."""
        if not place.is_dir():
            yield place
            return
        for found in _walk(place, self.out):
            if isinstance(found, Row) or _wanted(found, self.pictures):
                yield found

    def _read(self, path: Path, skip: Skip, unused: Unused) -> Iterable[Row]:
        if path.suffix.lower() == ".parquet":
            return read_parquet(path, skip, pictures=self.pictures, column=self.column)
        if not self.pictures:
            return read_lines(path, skip)
        if _is_tar(path):
            return read_tar(path, skip, self.column, unused)
        return [_picture(path, skip, self.column)]


def find_sources(
    given: Sequence[str | os.PathLike[str]], out: Path, *, pictures: bool, column: str | None = None
) -> Sources:
    """The sources by the names given. Raises EncodeError where one is not there or cannot be what it should be."""
    places: list[Path] = []
    for each in given:
        name = os.fspath(each)
        path = Path(os.path.abspath(os.path.expanduser(name)))
        if not path.exists():
            found = sorted(glob.glob(name, recursive=True)) if _GLOB & set(name) else []
            if not found:
                raise EncodeError(f"there is no {name}")
            matches = [Path(os.path.abspath(f)) for f in found]
            places += [m for m in matches if m.is_dir() or _wanted(m, pictures)]
            continue
        if path.suffix.lower() == ".parquet" and path.is_file():
            check_parquet(path, pictures=pictures, column=column)
        places.append(path)
    return Sources(tuple(places), pictures, column, out)


def _walk(folder: Path, out: Path) -> Iterator[Path | Row]:
    """The files below a folder, sorted by name folder by folder; hidden ones and our own output are left out."""
    try:
        with os.scandir(folder) as entries:
            # names only: a folder may hold millions
            kept = (e for e in entries if not e.name.startswith("."))
            # of what is neither a folder nor a file, such as a pipe, nothing would come
            names = sorted((e.name, e.is_dir(follow_symlinks=False)) for e in kept if e.is_dir() or e.is_file())
    except OSError as error:
        message = f"{folder} cannot be listed: {error.strerror or error}"
        yield Row(f"{folder}#!", path=str(folder), error=message)
        return
    for name, is_folder in names:
        path = folder / name
        if not is_folder:
            yield path
        elif path != out:
            yield from _walk(path, out)


def _wanted(path: Path, pictures: bool) -> bool:
    """Whether a file that was not named by itself is a source; what lies beside pictures is none."""
    name = path.name.lower()
    if name.endswith(".parquet"):
        # what img2dataset leaves beside a tar is about the pictures in it, and has none of its own
        return not (pictures and path.with_suffix(".tar").exists())
    return (_is_tar(path) or _is_picture(name)) if pictures else name.endswith(_TEXTS)


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith(_TARS)


def _is_picture(name: str) -> bool:
    return name.rpartition(".")[2] in PICTURES


def _picture(path: Path, skip: Skip, column: str | None) -> Row:
    key = os.fsencode(path).decode("utf-8", "replace")
    if skip:
        return Row(key)
    try:
        caption, extra = read_sidecars(path, column)
    except BadSidecar as bad:
        return Row(key, path=key, error=str(bad))
    return Row(key, path, key, caption, extra=extra)
