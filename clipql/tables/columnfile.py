"""Columns of a row file as arrays by row number, by which a plain condition over a million rows takes a millisecond.

Numbers lie as they are, strings of few distinct values as codes of one byte; other columns are left out. Rows that
were deleted when the file was written are zeros. What must stay true: a value here is the one ClickHouse has; a file
is hashed when it is first used, and one that is not what was written is not used.

columns.json lists the files with their hashes; columns-N.npy holds values, columns-N-null.npy ones where a value is
NULL.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from clipql.errors import DatabaseDamaged
from clipql.storage import files

LISTING = "columns.json"
MOST_WORDS = 250  # distinct strings of a column kept as codes
_KIND = re.compile(r"(?P<null>Nullable\()?(?P<base>U?Int(?:8|16|32|64)|Float(?:32|64)|Bool|String)\)?\Z")


@dataclass(frozen=True)
class StoredColumn:
    """A column by row number. values: a number or a code each, (rows,); words: the string of each code, where values
    are codes; nulls: uint8 (rows,), 1 where NULL, None for a type that has none.
    """

    values: NDArray[Any]
    nulls: NDArray[np.uint8] | None
    words: tuple[bytes, ...] | None


class ColumnWriter:
    """Writes the columns of one row file, batch by batch in row order. A context manager."""

    def __init__(self, folder: Path, types: Mapping[str, str], rows: int) -> None:
        self._folder, self._rows, self._next = folder, rows, 0
        self._open = contextlib.ExitStack()
        self._columns: list[_Column] = []
        for number, (name, kind) in enumerate(types.items()):
            match = _KIND.match(re.sub(r"^LowCardinality\((.*)\)$", r"\1", kind))
            if match:
                place = folder / f"columns-{number}.npy"
                self._columns.append(_Column(name, match["base"], place, bool(match["null"]), rows, self._open))

    def __enter__(self) -> ColumnWriter:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def add(self, numbers: NDArray[np.uint64], batch: pa.RecordBatch) -> None:
        """Rows with ascending row numbers, and their values by column name."""
        last = int(numbers[-1]) + 1
        at = (numbers - np.uint64(self._next)).astype(np.int64)
        for column in self._columns:
            column.add(batch.column(column.name), at, last - self._next)
        self._next = last

    def finish(self) -> None:
        """Fill up to the number of rows, sync, and write the listing."""
        for column in self._columns:
            column.fill(self._rows - self._next)
        self._open.close()
        listing = [column.entry() for column in self._columns if column.kept]
        for column in self._columns:
            if not column.kept:
                files.remove(column.place)
                files.remove(column.null_place)
        with files.new_file(self._folder / LISTING) as file:
            file.write(json.dumps(listing).encode())


class _Column:
    """One column being written."""

    def __init__(
        self, name: str, base: str, place: Path, nullable: bool, rows: int, stack: contextlib.ExitStack
    ) -> None:
        self.name, self.place, self.kept = name, place, True
        self.null_place = place.with_name(place.stem + "-null.npy")
        self._words: dict[bytes, int] | None = {} if base == "String" else None
        small = base in ("String", "Bool")
        self._type = np.dtype(np.uint8 if small else base.lower())
        self._values = _Array(stack.enter_context(files.new_file(place)), self._type, rows)
        self._nulls = (
            _Array(stack.enter_context(files.new_file(self.null_place)), np.dtype(np.uint8), rows) if nullable else None
        )

    def add(self, column: pa.Array, at: NDArray[np.int64], rows: int) -> None:
        if not self.kept:
            return
        nulls = np.asarray(column.is_null().to_numpy(zero_copy_only=False), np.uint8) if column.null_count else None
        codes = self._coded(column)
        if codes is None:
            self.kept = False
            return
        self._values.put(codes, at, rows)
        if self._nulls:
            self._nulls.put(np.zeros(len(at), np.uint8) if nulls is None else nulls, at, rows)

    def _coded(self, column: pa.Array) -> NDArray[Any] | None:
        if self._words is None:
            whole = column.cast(pa.uint8()) if pa.types.is_boolean(column.type) else column
            whole = pc.fill_null(whole, 0) if whole.null_count else whole
            return np.asarray(whole.to_numpy(zero_copy_only=False), self._type)
        if not pa.types.is_dictionary(column.type):
            column = pc.dictionary_encode(column)
        if len(column.dictionary) > 65_536:
            return None
        indices = pc.fill_null(column.indices, 0).to_numpy(zero_copy_only=False) if len(column) else np.empty(0, int)
        used = np.unique(indices)  # a dictionary may hold more than these rows have
        if len(used) > MOST_WORDS or not len(column.dictionary):
            return np.zeros(len(indices), np.uint8) if not len(column.dictionary) else None
        codes = np.zeros(len(column.dictionary), np.uint8)
        words = column.dictionary.take(pa.array(used)).cast(pa.binary()).to_pylist()
        for index, word in zip(used.tolist(), words, strict=True):
            code = self._words.setdefault(word or b"", len(self._words))
            if code >= MOST_WORDS:
                return None
            codes[index] = code
        return np.asarray(codes[indices])

    def fill(self, rows: int) -> None:
        nothing = np.empty(0, np.int64)
        self._values.put(nothing, nothing, rows)
        if self._nulls:
            self._nulls.put(nothing, nothing, rows)

    def entry(self) -> dict[str, Any]:
        words = None if self._words is None else [word.hex() for word in self._words]
        found = {"name": self.name, "file": self.place.name, "hash": self._values.hash(), "words": words}
        return found | ({"nulls": self.null_place.name, "nulls_hash": self._nulls.hash()} if self._nulls else {})


class _Array:
    """A .npy file written from front to back."""

    def __init__(self, file: BinaryIO, kind: np.dtype[Any], rows: int) -> None:
        self._file, self._kind, self._hash = file, kind, xxhash.xxh3_64()
        head = io.BytesIO()
        about = {"descr": kind.str, "fortran_order": False, "shape": (rows,)}
        np.lib.format.write_array_header_1_0(head, about)
        self._write(head.getvalue())

    def put(self, values: NDArray[Any], at: NDArray[np.int64], rows: int) -> None:
        """Values at these places of the next `rows` rows; zeros elsewhere."""
        dense = values if len(values) == rows else np.zeros(rows, self._kind)
        if dense is not values:
            dense[at] = values
        self._write(dense.tobytes())

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self._hash.update(data)

    def hash(self) -> str:
        return self._hash.hexdigest()


class ColumnReader:
    """The columns of one row file. listing: the content of columns.json, checked already; empty where there is none."""

    def __init__(self, folder: Path, listing: bytes) -> None:
        self._folder = folder
        entries: Sequence[dict[str, Any]] = json.loads(listing) if listing else []
        self._entries = {e["name"]: e for e in entries}
        self._columns: dict[str, StoredColumn] = {}

    def column(self, name: str) -> StoredColumn | None:
        """A column, None where it is not kept so. Raises DatabaseDamaged where its file is not what was written."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        if name not in self._columns:
            words = None if entry["words"] is None else tuple(bytes.fromhex(w) for w in entry["words"])
            nulls = self._mapped(entry["nulls"], entry["nulls_hash"]) if "nulls" in entry else None
            self._columns[name] = StoredColumn(self._mapped(entry["file"], entry["hash"]), nulls, words)
        return self._columns[name]

    def verify(self) -> None:
        """Read every column. Raises DatabaseDamaged where a file is not what was written."""
        for name in self._entries:
            self.column(name)

    def _mapped(self, name: str, hash: str) -> NDArray[Any]:
        path = self._folder / name
        try:
            if xxhash.xxh3_64_hexdigest(pa.memory_map(str(path)).read_buffer()) != hash:
                raise DatabaseDamaged(f"{path} does not match its hash, so it was altered")
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, pa.ArrowInvalid) as error:
            raise DatabaseDamaged(f"{path} cannot be read: {error}") from error
