"""From what the user names to rows: folders, globs, pictures, tars, Parquet files, text files.

What must stay true: every file is a row or rows, lies beside one, or is noted as unused; the order is that of the names
given, and within a folder that of its names sorted, so that it is the same in every run; a folder of millions of files
is listed folder by folder and never held whole.
"""

from __future__ import annotations

import glob
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from clipql.encode import pictures as picture_files
from clipql.encode.embed.captions import SIDECARS, BadSidecar, read_lines, read_sidecars
from clipql.encode.embed.parquet import check_parquet, read_parquet
from clipql.encode.embed.rows import Row, Skip, Unused
from clipql.encode.embed.webdataset import read_tar
from clipql.errors import EncodeError

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_TEXTS = (".txt", ".text")
_GLOB = frozenset("*?[")
_FILE, _FOLDER, _OTHER = range(3)


@dataclass(frozen=True)
class Sources:
    """The files and folders to read. pictures: or captions alone. column: of the captions. out: never read.

    unwanted: what a glob matched and makes no row, with the reason.
    """

    places: tuple[Path, ...]
    pictures: bool
    column: str | None
    out: Path
    unwanted: tuple[tuple[Path, str], ...] = ()

    def rows(self, skip: Skip, unused: Unused) -> Iterator[Row]:
        """Every row, in order; of those to be skipped only the keys. unused: is told of what makes no row."""
        for path, reason in self.unwanted:
            unused.note(str(path), reason)
        for place in self.places:
            for found in self._files(place, unused):
                if isinstance(found, Row):
                    yield found
                else:
                    yield from self._read(found, skip, unused)

    def count(self, stop: threading.Event) -> int | None:
        """How many rows there are, where that can be known without reading them: not for tars and text files."""
        total, nothing = 0, Unused()
        for place in self.places:
            for found in self._files(place, nothing):
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

    def _files(self, place: Path, unused: Unused) -> Iterator[Path | Row]:
        """The files of a place to read, or a row that says why they cannot be listed."""
        if not place.is_dir():
            yield place
            return
        for found, reason in _walk(place, self.out, self.pictures):
            if isinstance(found, Row):
                yield found
            elif reason := reason or _why_unwanted(found, self.pictures):
                unused.note(str(found), reason)
            else:
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
    unwanted: list[tuple[Path, str]] = []
    for each in given:
        name = os.fspath(each)
        path = Path(os.path.abspath(os.path.expanduser(name)))
        if not path.exists():
            found = sorted(glob.glob(name, recursive=True)) if _GLOB & set(name) else []
            if not found:
                raise EncodeError(f"there is no {name}")
            names = sorted(os.path.abspath(f) for f in found)
            matches = [Path(n) for n in names]
            for match in matches:
                if pictures and not match.is_dir() and _beside(str(match), names):
                    continue
                reason = "" if match.is_dir() else _why_unwanted(match, pictures)
                if reason:
                    unwanted.append((match, reason))
                else:
                    places.append(match)
            continue
        if path.suffix.lower() == ".parquet" and path.is_file():
            check_parquet(path, pictures=pictures, column=column)
        places.append(path)
    return Sources(tuple(places), pictures, column, out, tuple(unwanted))


def _walk(folder: Path, out: Path, pictures: bool) -> Iterator[tuple[Path | Row, str]]:
    """What lies below a folder, sorted by name folder by folder; and why it is passed over, where its name says it.

    Our own output is left out, and so is what lies beside a picture.
    """
    try:
        with os.scandir(folder) as entries:
            # names only: a folder may hold millions
            names = sorted((e.name, _kind(e)) for e in entries)
    except OSError as error:
        message = f"{folder} cannot be listed: {error.strerror or error}"
        yield Row(f"{folder}#!", path=str(folder), error=message), ""
        return
    for name, kind in names:
        path = folder / name
        if path == out or (pictures and kind == _FILE and _beside(name, names, key=itemgetter(0))):
            continue
        if name.startswith("."):
            yield path, "its name begins with a dot"
        elif kind == _OTHER:  # of a pipe nothing would come
            yield path, "neither a file nor a folder"
        elif kind == _FOLDER:
            yield from _walk(path, out, pictures)
        else:
            yield path, ""


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_dir(follow_symlinks=False):
        return _FOLDER
    return _FILE if entry.is_dir() or entry.is_file() else _OTHER


def _why_unwanted(path: Path, pictures: bool) -> str:
    """Why a file that was not named by itself makes no row; '' where it does, or lies beside one that does."""
    name = path.name.lower()
    if name.endswith(".parquet"):
        # what img2dataset leaves beside a tar is about the pictures in it, and has none of its own
        beside = pictures and path.with_suffix(".tar").exists()
        return "it is about the pictures in the tar of its name" if beside else ""
    if not pictures:
        return "" if name.endswith(_TEXTS) else "neither a text file nor a Parquet file by its name"
    if _is_tar(path) or name.rpartition(".")[2] in picture_files.ENDINGS:
        return ""
    return "no picture has its name" if _is_sidecar(name) else picture_files.why_none(path)


def _is_sidecar(name: str) -> bool:
    return name.rpartition(".")[2] in SIDECARS


def _beside(name: str, names: Sequence[Any], key: Callable[[Any], str] | None = None) -> bool:
    """Whether a file is a caption of another of the names, which are sorted."""
    stem, dot, _ = name.rpartition(".")
    if not dot or not _is_sidecar(name):
        return False
    for at in range(bisect_left(names, stem, key=key), len(names)):
        other = key(names[at]) if key else names[at]
        if not other.startswith(stem) or other > f"{stem}/":  # "." comes right before "/"
            return False
        if other == stem or (other.rpartition(".")[0] == stem and not _is_sidecar(other)):
            return True
    return False


def _is_tar(path: Path) -> bool:
    return path.name.lower().endswith(_TARS)


def _picture(path: Path, skip: Skip, column: str | None) -> Row:
    key = os.fsencode(path).decode("utf-8", "replace")
    if skip:
        return Row(key)
    try:
        caption, extra = read_sidecars(path, column)
    except BadSidecar as bad:
        return Row(key, path=str(path), error=str(bad))
    return Row(key, path, str(path), caption, extra=extra)
