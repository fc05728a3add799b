"""The folder of an index: its files, plain .npy arrays where they can be, and a meta.json that vouches for them.

A folder is written whole under a temporary name beside its place, fsynced, and renamed, so it is there in full or not
at all. meta.json holds the size and xxh3 hash of every other file. Opening checks sizes, headers and the hashes of
the small files, and of the heads of the large; `verify` reads everything. What fails a check is reported as
DatabaseDamaged with the file's name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from clipql.errors import DatabaseDamaged, DatabaseVersion, VectorIndexError
from clipql.storage import files, strays
from clipql.storage.vectors.segments import UNREADABLE

VERSION = 2  # 2: the rows of an ivf index are scaled
META = "meta.json"
_HASHED_ON_OPEN = 16 << 20  # bytes; larger files are hashed by `verify` only
_READ = 8 << 20
_HEAD = 4096
_LARGEST_META = 64 << 20


class NewFolder:
    """A folder in the making. `commit` puts it in its place; leaving the `with` block without that removes it.

    work: where to make it, instead of a place of its own. What a process that died left there is kept for the build to
    go on from, and so is what Ctrl-C or a database that is closed leaves, or a full disk after a checkpoint (a .npz
    file) was written.
    """

    def __init__(self, place: Path, work: Path | None = None) -> None:
        self.place, self.resumed = place, work is not None
        self.path = work or place.parent / f".{place.name}.{os.getpid()}.new"

    def __enter__(self) -> NewFolder:
        if not self.resumed:
            self.clear()
        self.path.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *_: object) -> None:
        if self.resumed and error is not None and not isinstance(error, Exception):
            return
        if self.resumed and files.is_full(error) and any(self.path.glob("*.npz")):
            for array in self.path.glob("*.npy"):  # made anew from the checkpoint: give their room back
                array.unlink()
            return
        shutil.rmtree(self.path, ignore_errors=True)

    def clear(self) -> None:
        """Begin with nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True)

    def create(self, name: str, shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
        """A mapped array to fill, kept as `name`.npy. An empty one is written at once, as nothing can be mapped."""
        if 0 in shape:
            empty = np.empty(shape, kind)
            np.save(self.path / f"{name}.npy", empty)
            return empty
        path = self.path / f"{name}.npy"
        array = np.lib.format.open_memmap(path, "w+", kind, shape)
        _take_room(path)
        return array

    def save(self, name: str, array: NDArray[Any]) -> None:
        array = np.ascontiguousarray(array)
        with open(self.path / f"{name}.npy", "wb") as file:  # np.save loses the number of an error, such as ENOSPC
            np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
            file.write(array.data)

    def scratch(self, name: str, shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
        """A mapped array that is gone once committed."""
        if 0 in shape:
            return np.empty(shape, kind)
        path = self.path / f"{name}.scratch"
        array = np.memmap(path, kind, "w+", shape=shape)
        _take_room(path)
        return array

    def commit(self, meta: Mapping[str, object]) -> None:
        checkpoints, scratch = [*self.path.glob("*.npz")], [*self.path.glob("*.scratch")]
        kept = sorted({*self.path.iterdir()} - {*checkpoints, *scratch, self.path / META})
        files_told = {f.name: {"size": f.stat().st_size, "xxh3": _hash(f), "head": _head_hash(f)} for f in kept}
        write_meta(self.path, {**meta, "files": files_told})
        for file in [*kept, self.path / META]:
            _sync(file)
        # checkpoints first: one without its scratch files would be gone on from all the same
        for file in [*checkpoints, *scratch]:
            file.unlink()
        _sync(self.path)
        old = self.place.parent / f".{self.place.name}.{os.getpid()}.old"
        if self.place.exists():
            os.rename(self.place, old)
        os.rename(self.path, self.place)
        _sync(self.place.parent)
        shutil.rmtree(old, ignore_errors=True)


def add(folder: Path, name: str, array: NDArray[Any], more: Mapping[str, object]) -> None:
    """Add an array, as `name`.npy, and more of what meta.json says to a folder that nothing refers to yet."""
    meta, path = read_meta(folder), folder / f"{name}.npy"
    with open(path, "wb") as file:
        np.save(file, array)
    told = {"size": path.stat().st_size, "xxh3": _hash(path), "head": _head_hash(path)}
    write_meta(folder, {**meta, **more, "files": {**meta["files"], path.name: told}})
    for each in (path, folder / META, folder):
        _sync(each)


def write_meta(folder: Path, meta: Mapping[str, object]) -> None:
    (folder / META).write_text(json.dumps({**meta, "hash": _meta_hash(meta)}, indent=1) + "\n", "utf-8")


def _meta_hash(meta: Mapping[str, object]) -> str:
    plain = {name: value for name, value in meta.items() if name != "hash"}
    return xxhash.xxh3_64_hexdigest(json.dumps(plain, sort_keys=True).encode())


def read(folder: Path) -> dict[str, Any]:
    """meta.json, after checking the files it lists: sizes, headers, and hashes of the small ones."""
    meta = read_meta(folder)
    check_files(folder, meta, meta["files"])
    return meta


def check_files(folder: Path, meta: Mapping[str, Any], names: Iterable[str]) -> None:
    """Check these of the files that meta.json lists, as `read` does all. Raises DatabaseDamaged."""
    for name in names:
        known, file = meta["files"][name], folder / name
        _check_size(file, known)
        if known["size"] <= _HASHED_ON_OPEN:
            _check_hash(file, known)
        elif _head_hash(file) != known["head"]:
            raise DatabaseDamaged(f"{file} is not as it was written (its head differs); rebuild the index")
        try:
            if file.suffix == ".npy":
                np.load(file, mmap_mode="r", allow_pickle=False)
        except UNREADABLE as error:
            raise DatabaseDamaged(f"{file} does not open as an array ({error}); rebuild the index") from error


def read_meta(folder: Path) -> dict[str, Any]:
    file = folder / META
    try:
        meta = json.loads(files.read_plain(file, most=_LARGEST_META).decode("utf-8"))
        version = int(meta["version"])
    except FileNotFoundError as error:
        if not folder.is_dir():
            raise VectorIndexError(f"there is no index in {folder}") from error
        raise DatabaseDamaged(f"{file} is missing; rebuild the index") from error
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise DatabaseDamaged(f"{file} cannot be read ({error}); rebuild the index") from error
    if version > VERSION:
        raise DatabaseVersion(f"{file} is of version {version}; this clipql knows versions up to {VERSION}")
    if meta.get("hash") != _meta_hash(meta):
        raise DatabaseDamaged(f"{file} does not match its own hash; rebuild the index")
    listed = meta.get("files")
    if not isinstance(listed, dict) or not all(map(_is_told, listed.items())):
        raise DatabaseDamaged(f"{file} does not list its files; rebuild the index")
    return dict(meta)


def _is_told(listed: tuple[object, object]) -> bool:
    """Whether an entry names a file of the folder, its size and its hashes."""
    name, known = listed
    return (
        strays.is_name(name)
        and isinstance(known, dict)
        and type(known.get("size")) is int
        and all(isinstance(known.get(hash), str) for hash in ("xxh3", "head"))
    )


def verify(folder: Path) -> None:
    """Read every file of an index and compare its hash; DatabaseDamaged names the first that differs."""
    for name, known in read_meta(folder)["files"].items():
        _check_size(folder / name, known)
        _check_hash(folder / name, known)


def _check_size(file: Path, known: Mapping[str, Any]) -> None:
    try:
        size = file.lstat().st_size
    except FileNotFoundError as error:
        raise DatabaseDamaged(f"{file} is missing; rebuild the index") from error
    if size != known["size"]:
        raise DatabaseDamaged(f"{file} has {size} bytes, expected {known['size']}; rebuild the index")


def _check_hash(file: Path, known: Mapping[str, Any]) -> None:
    if _hash(file) != known["xxh3"]:
        raise DatabaseDamaged(f"{file} is not as it was written (its hash differs); rebuild the index")


def _hash(file: Path) -> str:
    state = xxhash.xxh3_64()
    with files.open_plain(file) as stream:
        while piece := stream.read(_READ):
            state.update(piece)
    return state.hexdigest()


def _head_hash(file: Path) -> str:
    """The hash of its beginning, which says what an array is."""
    with files.open_plain(file) as stream:
        return xxhash.xxh3_64_hexdigest(stream.read(_HEAD))


def _take_room(file: Path) -> None:
    with open(file, "rb+") as opened:
        files.take_room(opened.fileno(), file.stat().st_size)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
