"""Numbers computed of the vectors of a row, for the SQL function that stands for them in a planned statement.

ClickHouse asks for one row at a time, and mostly for the next one. So a block of rows is computed at once, on all
cores when rows are read in a run, and kept for as long as there is room. What must stay true: a number depends on its
name and its row alone until other vectors are published, so the function is right wherever it stands, in a mutation
too; a row without a vector has what ClickHouse gives for an empty array, or NaN, never a number of zeros; memory is
bounded whatever the rows; a row that is asked for out of turn costs no more than its block.
"""

from __future__ import annotations

import base64
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.errors import ClipqlError
from clipql.index.cores import each_core, threads
from clipql.storage.vectors.device import Device, DeviceFull
from clipql.storage.vectors.heads import Head
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.store import ColumnStore

SHIFT = 10
BLOCK = 1 << SHIFT
# blocks computed at once where rows are read in a run, and numbers that are held in all, of at most 8 bytes
RUN, HELD = 64, 1 << 24
WHOLE = 256 * BLOCK  # rows that are computed at once where all are asked for
# rows of a group from which a core more adds them up
GROUP = 4_096
# rows of a head that are multiplied at once, and the multiplications a row from which a product has all cores
AT_ONCE, SMALL = 1_024, 32_768
# rows that are sent to a device at once, and how many times as many numbers are then computed in a run
ON_DEVICE, LONGER = 16_384, 16
# a block that had to go and was computed again so often is of a column that is read in no order: then row by row
AGAIN = 4
LENGTH = "numbers"  # of a row's vector: none where it has no vector
ELEMENT = "element:"  # before the place of a number in its vector, from 0
# functions of one vector by the type of their value
_FLOATS = "arrayMin arrayMax L1Norm normL1 L2Norm normL2 LinfNorm normLinf L2SquaredNorm normL2Squared"
SECOND_HASH = "secondHash64"  # of `row_numbers`, which loads the compiler
OF_ONE = {
    **dict.fromkeys(_FLOATS.split(), "Float32"),
    **dict.fromkeys(("arraySum", "arrayAvg"), "Float64"),
    **dict.fromkeys(("cityHash64", SECOND_HASH, LENGTH), "UInt64"),
}


# what ClickHouse gives for an empty array, where it is not 0
EMPTY = {"cityHash64": np.uint64(4761183170873013810)}


def name_of(function: str, handles: Sequence[str]) -> str:
    """The name of a distance of two columns, or of a function of one in `row_numbers.FUNCTIONS`.

    handles: `<table id>/<folder>` of each, as the stores have them.
    """
    return " ".join((function, *handles))


def _there(stores: Sequence[ColumnStore], first: int, last: int) -> NDArray[np.bool_] | None:
    """Which of the rows [first, last) have a vector in all of these columns; None for all of them."""
    if any(not store.dimension for store in stores):
        return np.zeros(last - first, np.bool_)
    masks = [store.there[first:last] for store in stores if store.there is not None]
    return np.logical_and.reduce(masks) if masks else None


class _Numbers:
    """Those of one name, in blocks by their number."""

    def __init__(self, function: str, handles: Sequence[str], head: Head | None) -> None:
        self.function, self.handles = function, handles
        self.head = weakref.ref(head) if head else None
        self.items = head.items if head else 1  # of a row
        self.blocks: dict[int, memoryview] = {}
        self.computed: dict[int, int] = {}
        self.runs: dict[int, int] = {}  # how many blocks were computed at once, by the block after them


class Computed:
    """Numbers by name and row. stores: mapped columns by handle, as they are published."""

    def __init__(self, stores: Mapping[str, ColumnStore]) -> None:
        self._stores = stores
        self._known: dict[str, _Numbers] = {}
        # what is at hand by name, block and place: whoever looks here first saves a call of Python for each row
        self.blocks: dict[str, Mapping[int, memoryview]] = {}
        self._heads: weakref.WeakValueDictionary[str, Head] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def number(self, name: str, row: int) -> Any:
        """One number. Raises ClipqlError where it has no such name, IndexError beyond the last row."""
        try:
            return self.blocks[name][row >> SHIFT][row & (BLOCK - 1)]
        except (KeyError, IndexError):
            return self._missing(name, row)

    def array(self, name: str, row: int) -> bytes:
        """All numbers that a head makes of a row, float32, as bytes; none of a row without a vector. Raises as `number`
        does.
        """
        try:
            numbers = self._known[name]
            there = self._stores[numbers.handles[0]].there
            if there is not None and not there[row]:
                return b""
            block, at, items = numbers.blocks[row >> SHIFT], (row & (BLOCK - 1)) * numbers.items, numbers.items
            if at < len(block):
                return block[at : at + items].tobytes()
        except KeyError:
            pass
        return bytes(self._missing(name, row, whole=True))

    def all(self, name: str, rows: int, check: Callable[[], None]) -> NDArray[Any]:
        """The numbers of the first rows, of which there is one at least. check: called between blocks, and raises what
        is to stop it.

        Raises ClipqlError where it has no such name, and IndexError beyond the last row.
        """
        pieces = list[NDArray[Any]]()
        for first in range(0, rows, WHOLE):
            check()
            last = min(first + WHOLE, rows)
            with self._lock:
                numbers = self._numbers(name)
                if last > self._rows(numbers):
                    raise IndexError(f"row {last - 1:,} of {self._rows(numbers):,}")
                piece = self._at_hand(numbers, first, last)
                if piece is None:
                    piece = self._between(numbers, first, last)
                    if rows <= HELD:
                        self._hold(numbers, first >> SHIFT, piece)
            pieces.append(piece)
        return np.concatenate(pieces)

    def keep(self, head: Head) -> Head:
        """Know a head by its name for as long as whoever asks holds what this returns."""
        with self._lock:
            for name in [n for n, known in self._known.items() if known.head and known.head() is None]:
                del self._known[name], self.blocks[name]
            return self._heads.setdefault(head.name, head)

    def grouped(self, name: str, rows: str) -> bytes:
        """What a group of rows is made to, as the bytes of its numbers. rows: their numbers, uint64 in base64."""
        from clipql.storage.vectors import row_numbers  # loads the compiler

        function, handle = name.split(" ")
        if handle not in self._stores:
            raise ClipqlError(f"there is no vector column for {name}: was its table dropped?")
        store = self._stores[handle]
        numbers = np.frombuffer(base64.b64decode(rows), np.uint64).astype(np.int64)
        if (numbers[1:] < numbers[:-1]).any():
            numbers.sort()
        if not store.rows or not len(numbers):  # as DDL tries a function out
            return b""
        shares = np.array_split(numbers, max(1, min(threads(), len(numbers) // GROUP)))
        parts: list[Any] = [None] * len(shares)

        def some(first: int, last: int) -> None:
            for at in range(first, last):
                pieces = store.pieces(shares[at])
                parts[at] = row_numbers.of_some(function, ((array, rows) for _, array, rows in pieces))

        if len(shares) > 1:
            each_core(len(shares), some)
        else:
            some(0, 1)
        return bytes(row_numbers.of_group(function, parts, len(numbers)).tobytes())

    def forget(self, id: str) -> None:
        """Let go of what was computed of a table."""
        with self._lock:
            for name in [n for n in self._known if f" {id}/" in n]:
                del self._known[name], self.blocks[name]

    def _missing(self, name: str, row: int, *, whole: bool = False) -> Any:
        with self._lock:
            numbers = self._numbers(name)
            rows = self._rows(numbers)
            if row == 0 == rows:  # as DDL tries a function out
                return b"" if whole else 0
            there = self._stores[numbers.handles[0]].there if whole else None
            if there is not None and 0 <= row < rows and not there[row]:
                return b""
            if not 0 <= row < rows:
                raise IndexError(f"row {row:,} of {rows:,}")
            at = row >> SHIFT
            place, held = (row & (BLOCK - 1)) * numbers.items, numbers.blocks.get(at)
            if held is None or len(held) <= place:  # else by another thread, meanwhile
                if numbers.computed.get(at, 0) >= AGAIN:
                    place, held = 0, self._between(numbers, row, row + 1).data
                else:
                    held = self._run(numbers, at, rows)
            return held[place : place + numbers.items].tobytes() if whole else held[place]

    def _numbers(self, name: str) -> _Numbers:
        """Those of a name, known from now on. Raises ClipqlError where there are none of it."""
        numbers = self._known.get(name)
        if numbers is None:
            function, *handles = name.split(" ")
            if any(h not in self._stores for h in handles):
                raise ClipqlError(f"there is no vector column for {name}: was its table dropped?")
            head = self._heads.get(function)
            if head is None and function.startswith("head:"):
                raise ClipqlError(f"{function} is of a statement that has ended")
            numbers = self._known[name] = _Numbers(function, handles, head)
            self.blocks[name] = numbers.blocks
        return numbers

    def _rows(self, numbers: _Numbers) -> int:
        """Of how many rows there are such numbers. Raises ClipqlError for vectors of several lengths."""
        rows = min(self._stores[h].rows for h in numbers.handles)
        # None where no row has a vector yet
        lengths = {d for h in numbers.handles if rows and (d := self._stores[h].dimension)}
        if len(lengths) > 1:
            raise ClipqlError(f"{numbers.function} of vectors of {' and '.join(map(str, sorted(lengths)))} numbers")
        return rows

    @staticmethod
    def _at_hand(numbers: _Numbers, first: int, last: int) -> NDArray[Any] | None:
        """The numbers of rows [first, last), if they were computed before; first is the first row of a block."""
        known: list[NDArray[Any]] = []
        for start in range(first, last, BLOCK):
            block, size = numbers.blocks.get(start >> SHIFT), min(BLOCK, last - start)
            if block is None or len(block) < size:  # one that was the last is short, once there are more rows
                return None
            known.append(np.asarray(block)[:size])
        return np.concatenate(known)

    def _hold(self, numbers: _Numbers, at: int, found: NDArray[Any]) -> None:
        """Have the numbers of some rows at hand, from the first row of a block on."""
        count = -(-len(found) // (BLOCK * numbers.items))
        self._make_room(count * numbers.items)
        for block in range(count):
            first = block * BLOCK * numbers.items
            numbers.blocks[at + block] = found.data[first : first + BLOCK * numbers.items]

    def _run(self, numbers: _Numbers, at: int, rows: int) -> memoryview:
        """Compute a block, and more and more of those after it where blocks are asked for one after the other."""
        head = numbers.head() if numbers.head else None
        run = RUN * LONGER if head and head.device is not None else RUN
        end, most = at + 1, min(2 * numbers.runs.pop(at, 0), max(1, run // numbers.items))
        while end < at + most and end << SHIFT < rows and end not in numbers.blocks:
            end += 1
        self._hold(numbers, at, self._between(numbers, at << SHIFT, min(end << SHIFT, rows)))
        for block in range(at, end):
            numbers.computed[block] = numbers.computed.get(block, 0) + 1
        numbers.runs[end] = end - at
        return numbers.blocks[at]

    def _make_room(self, blocks: int) -> None:
        """Let the oldest blocks go where there would be too many."""
        excess = sum(len(n.blocks) * n.items for n in self._known.values()) + blocks - (HELD >> SHIFT)
        for numbers in [*self._known.values()] if excess > 0 else []:
            for block in [*numbers.blocks][: max(0, -(-excess // numbers.items))]:
                del numbers.blocks[block]
                excess -= numbers.items

    def _between(self, numbers: _Numbers, first: int, last: int) -> NDArray[Any]:
        """The numbers of rows [first, last), one row after the other."""
        # which load the compiler
        from clipql.storage.vectors import row_numbers, rowwise

        if numbers.head:
            return self._of_head(numbers, first, last)
        stores, one = [self._stores[h] for h in numbers.handles], row_numbers.FUNCTIONS.get(numbers.function)
        if numbers.function == LENGTH:
            lengths = np.full(last - first, stores[0].dimension, np.uint64)
            return lengths if stores[0].there is None else lengths * stores[0].there[first:last]
        element = int(numbers.function.removeprefix(ELEMENT)) if numbers.function.startswith(ELEMENT) else None
        out = np.empty(last - first, one.dtype if one else np.float32)
        there = _there(stores, first, last)
        empty = EMPTY.get(numbers.function, 0 if one or element is not None else np.nan)
        if there is not None and not there.any():
            out[:] = empty
            return out

        def some(a: int, b: int) -> None:
            at = a
            while at < b:  # the segments of two columns need not end at the same rows
                blocks = [store.blocks(first + at, first + b)[0][1] for store in stores]
                n = min(map(len, blocks))
                if element is not None:
                    out[at : at + n] = blocks[0][:, element]
                elif one:
                    row_numbers.of_rows(numbers.function, blocks[0], out[at : at + n])
                else:
                    x, y = (block[:n] for block in blocks)
                    rowwise.distances_of_rows(Metric(numbers.function), x, y, out[at : at + n])
                at += n

        if len(out) > 4 * BLOCK:
            each_core(len(out), some)
        else:
            some(0, len(out))
        if there is not None:
            out[~there] = empty
        return out

    def _of_head(self, numbers: _Numbers, first: int, last: int) -> NDArray[np.float32]:
        """The numbers that a head makes of rows [first, last), one row after the other."""
        head = numbers.head() if numbers.head else None
        store = self._stores[numbers.handles[0]]
        if head is None:
            raise ClipqlError(f"{numbers.function} is of a statement that has ended")
        from clipql.storage.vectors import kernels  # loads the compiler

        out, one = np.empty((last - first, head.items), np.float32), head.one
        if head.device is not None and self._by_device(head, head.device, store, first, out):
            return self._filled(head, store, first, out)

        def some(a: int, b: int) -> None:
            for start, block in store.blocks(first + a, first + b):
                if one:  # at memory speed
                    products = out[start - first : start - first + len(block), 0]
                    kernels.distances(Metric.DOT, block, one[0], products)
                    products += one[1]
                    continue
                for at in range(0, len(block), AT_ONCE):
                    x = kernels.as_float32(block[at : at + AT_ONCE])
                    head.of(x, out[start - first + at : start - first + at + len(x)])

        # what is large has all cores for each product
        if len(out) > 4 * BLOCK and head.work < SMALL:
            each_core(len(out), some)
        else:
            some(0, len(out))
        return self._filled(head, store, first, out)

    @staticmethod
    def _by_device(head: Head, device: Device, store: ColumnStore, first: int, out: NDArray[np.float32]) -> bool:
        """Have a device compute a head; whether it has memory enough for that."""
        step = ON_DEVICE
        for start, block in store.blocks(first, first + len(out)):
            at = 0
            while at < len(block):
                x = block[at : at + step]
                try:
                    out[start - first + at : start - first + at + len(x)] = head.by(device, x)
                except DeviceFull:
                    if step <= AT_ONCE:
                        return False
                    step //= 2
                    continue
                at += step
        return True

    @staticmethod
    def _filled(head: Head, store: ColumnStore, first: int, out: NDArray[np.float32]) -> NDArray[np.float32]:
        """The numbers in a row, with those of rows that have no vector."""
        if store.there is not None:
            out[~store.there[first : first + len(out)]] = head.missing
        return out.reshape(-1)
