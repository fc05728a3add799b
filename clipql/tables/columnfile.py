"""Columns of a row file as arrays by row number, by which a plain condition over a million rows takes a millisecond.

Numbers lie as they are, strings of few distinct values as codes of one byte; other columns are left out. Rows that
were deleted when they were written are zeros. What must stay true: a value here is the one ClickHouse has; a file is
hashed when it is first used, and one that is not what was written is not used.

columns-N.bin holds values, columns-N-null.bin ones where a value is NULL; both are appended to. The listing of the row
file has an entry for each, with a hash for each 4 MB.
"""

from __future__ import annotations

import contextlib
import mmap
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.engine.arrow import arrow_numbers, numpy_numbers
from clipql.errors import DatabaseDamaged
from clipql.storage.files import GrownFile, open_plain
from clipql.storage.places import only_snapshots

MOST_WORDS = 250  # distinct strings of a column kept as codes
HASHED = 4 << 20  # bytes of a column that have a hash of their own
_PROBED = 2_048  # rows in which a column of too many words mostly shows itself
PLAIN = re.compile(r"(?P<null>Nullable\()?(?P<base>U?Int(?:8|16|32|64)|Float(?:32|64)|Bool|String)\)?\Z")
Entry = Mapping[str, Any]


def plain_type(kind: str) -> re.Match[str] | None:
    """ClickHouse's type taken apart, with `null` and `base`, where it is a plain one; LowCardinality is no matter."""
    return PLAIN.match(re.sub(r"^LowCardinality\((.*)\)$", r"\1", kind))


@dataclass(frozen=True, repr=False)
class StoredColumn(Brief):
    """A column by row number. values: a number or a code each, (rows,); words: the string of each code, where values
    are codes; nulls: uint8 (rows,), 1 where NULL, None for a type that has none.
    """

    values: NDArray[Any]
    nulls: NDArray[np.uint8] | None
    words: tuple[bytes, ...] | None


class ColumnWriter:
    """Writes the columns of one row file, or more rows of them, batch by batch in row order.

    types: of ClickHouse, by column. entries: those of the rows before `first`, where there are any.
    Raises StorageError, and DatabaseDamaged where what is there is not what was written.
    """

    def __init__(self, folder: Path, types: Mapping[str, str], first: int, entries: Sequence[Entry]) -> None:
        self._next = first
        self._columns: list[_Column] = []
        known = {e["name"]: e for e in entries}
        with contextlib.ExitStack() as opened:
            opened.callback(self.close)
            for number, (name, kind) in enumerate(types.items()):
                match = plain_type(kind)
                if match and (name in known or not first):
                    place = folder / f"columns-{number}.bin"
                    self._columns.append(_Column(name, match["base"], place, bool(match["null"]), known.get(name)))
            opened.pop_all()

    def add(self, numbers: NDArray[np.uint64], batch: pa.RecordBatch) -> None:
        """Rows with ascending row numbers, and their values by column name."""
        last = int(numbers[-1]) + 1
        at = (numbers - np.uint64(self._next)).astype(np.int64)
        for column in self._columns:
            column.add(batch.column(column.name), at, last - self._next)
        self._next = last

    def finish(self, rows: int) -> list[Entry]:
        """Fill up to the number of rows; return what the listing shall say of each column that is kept."""
        for column in self._columns:
            column.fill(rows - self._next)
        self._next = rows
        return [column.entry() for column in self._columns if column.kept]

    def files(self) -> Iterator[GrownFile]:
        """The files, to be synced."""
        for column in self._columns:
            yield from column.files()

    def close(self) -> None:
        """Close the files."""
        for file in self.files():
            file.close()


class _Column:
    """One column being written."""

    def __init__(self, name: str, base: str, place: Path, nullable: bool, entry: Entry | None) -> None:
        self.name, self.kept = name, True
        self._words: dict[bytes, int] | None = {} if base == "String" else None
        if entry and entry["words"] is not None:
            self._words = {bytes.fromhex(word): code for code, word in enumerate(entry["words"])}
        self._type = np.dtype(np.uint8 if base in ("String", "Bool") else base.lower())
        self._values = _Array(place, self._type, entry["values"] if entry else None)
        self._nulls = None
        if nullable:
            null_place = place.with_name(place.stem + "-null.bin")
            self._nulls = _Array(null_place, np.dtype(np.uint8), entry["nulls"] if entry else None)

    def add(self, column: pa.Array, at: NDArray[np.int64], rows: int) -> None:
        if not self.kept:
            return
        nulls = numpy_numbers(column.is_null()).view(np.uint8) if column.null_count else None
        codes = self._coded(column)
        if codes is None:
            self.kept = False
            return
        self._values.put(codes, at, rows)
        if self._nulls:
            self._nulls.put(np.zeros(len(at), np.uint8) if nulls is None else nulls, at, rows)

    def _coded(self, column: pa.Array) -> NDArray[Any] | None:
        if self._words is None:
            return np.asarray(numpy_numbers(column, null=0), self._type)
        if not pa.types.is_dictionary(column.type):
            if len(column) > _PROBED and len(pc.unique(column.slice(0, _PROBED))) > MOST_WORDS + 1:
                return None
            column = pc.dictionary_encode(column)
        if len(column.dictionary) > 65_536:
            return None
        indices = numpy_numbers(column.indices, null=0) if len(column) else np.empty(0, int)
        used = np.flatnonzero(np.bincount(indices))  # a dictionary may hold more than these rows have
        if len(used) > MOST_WORDS or not len(column.dictionary):
            return np.zeros(len(indices), np.uint8) if not len(column.dictionary) else None
        codes = np.zeros(len(column.dictionary), np.uint8)
        words = column.dictionary.take(arrow_numbers(used)).cast(pa.binary()).to_pylist()
        for index, word in zip(used.tolist(), words, strict=True):
            code = self._words.setdefault(word or b"", len(self._words))
            if code >= MOST_WORDS:
                return None
            codes[index] = code
        return np.asarray(codes[indices])

    def fill(self, rows: int) -> None:
        nothing = np.empty(0, np.int64)
        for array in filter(None, (self._values, self._nulls)):
            array.put(nothing, nothing, rows if self.kept else 0)

    def entry(self) -> Entry:
        words = None if self._words is None else [word.hex() for word in self._words]
        nulls = self._nulls.entry() if self._nulls else None
        return {"name": self.name, "words": words, "values": self._values.entry(), "nulls": nulls}

    def files(self) -> Iterator[GrownFile]:
        yield self._values.file
        if self._nulls:
            yield self._nulls.file


class _Array:
    """Values one after the other, with a hash for each HASHED bytes."""

    def __init__(self, place: Path, kind: np.dtype[Any], entry: Entry | None) -> None:
        size = entry["bytes"] if entry else 0
        self.file, self._kind = GrownFile(place, size, shared=only_snapshots), kind
        self._hashes: list[str] = list(entry["hashes"]) if entry else []
        self._last = xxhash.xxh3_64()
        self._room = HASHED
        if size % HASHED:
            rest = self.file.read(size - size % HASHED)
            self._last.update(rest)
            if self._last.hexdigest() != self._hashes.pop():
                self.file.close()
                raise DatabaseDamaged(f"{place} does not match its hash, so it was altered")
            self._room -= len(rest)

    def put(self, values: NDArray[Any], at: NDArray[np.int64], rows: int) -> None:
        """Values at these places of the next `rows` rows; zeros elsewhere."""
        dense = values if len(values) == rows else np.zeros(rows, self._kind)
        if dense is not values:
            dense[at] = values
        data = np.ascontiguousarray(dense).view(np.uint8).data
        self.file.write(data)
        while data:
            piece, data = data[: self._room], data[self._room :]
            self._last.update(piece)
            self._room -= len(piece)
            if not self._room:
                self._hashes.append(self._last.hexdigest())
                self._last, self._room = xxhash.xxh3_64(), HASHED

    def entry(self) -> Entry:
        hashes = [*self._hashes, self._last.hexdigest()] if self._room < HASHED else self._hashes
        return {"file": self.file.path.name, "type": self._kind.str, "bytes": self.file.size, "hashes": hashes}


def _whole(path: Path) -> pa.Buffer:
    with open_plain(path) as file:
        return pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class ColumnReader:
    """The columns of one row file. entries: of its listing, checked already. older: a reader of fewer rows of it."""

    def __init__(self, folder: Path, entries: Iterable[Entry], older: ColumnReader | None = None) -> None:
        self._folder = folder
        self._entries = {e["name"]: e for e in entries}
        self._columns: dict[str, StoredColumn] = {}
        self._checked: set[tuple[str, int, str]] = older._checked if older else set()

    def column(self, name: str) -> StoredColumn | None:
        """A column, None where it is not kept so. Raises DatabaseDamaged where its file is not what was written."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        if name not in self._columns:
            words = None if entry["words"] is None else tuple(bytes.fromhex(w) for w in entry["words"])
            nulls = self._mapped(entry["nulls"]) if entry["nulls"] else None
            self._columns[name] = StoredColumn(self._mapped(entry["values"]), nulls, words)
        return self._columns[name]

    def verify(self) -> None:
        """Read every column. Raises DatabaseDamaged where a file is not what was written."""
        self._columns.clear()
        self._checked.clear()
        for name in self._entries:
            self.column(name)

    def _mapped(self, entry: Entry) -> NDArray[Any]:
        path, size = self._folder / entry["file"], entry["bytes"]
        try:
            data = _whole(path) if size else pa.py_buffer(b"")
        except (OSError, ValueError, pa.ArrowInvalid) as error:
            raise DatabaseDamaged(f"{path} cannot be read: {error}") from error
        if len(data) < size:
            raise DatabaseDamaged(f"{path} holds {len(data):,} bytes; expected {size:,}")
        for at, known in enumerate(entry["hashes"]):
            piece = (entry["file"], at, known)
            if piece not in self._checked:
                if xxhash.xxh3_64_hexdigest(data.slice(at * HASHED, min(HASHED, size - at * HASHED))) != known:
                    raise DatabaseDamaged(f"{path} does not match its hash, so it was altered")
                self._checked.add(piece)
        return np.frombuffer(data, entry["type"], size // np.dtype(entry["type"]).itemsize)
