"""The codes of a column in files: written once, opened by mapping, checked as they are first read.

A folder holds `codes.npy` (uint8, a row's code each), `residual.npy` and `norm.npy` (float32, of each row), the coder's
arrays, and `hashes.npy`: the xxh3 hash of each stretch of rows, which is compared before the stretch is used the first
time in a process. So what is damaged is noticed before it could hide a row. What must stay true: a code file is of the
rows that its name says (see `tables.code_files`), and is never the only copy of anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from clipql.errors import DatabaseDamaged
from clipql.index import folder as folders
from clipql.index.base import Vectors
from clipql.index.bounded import kernels
from clipql.index.bounded.coder import SAMPLED, Coder, learn

STRETCH = 1 << 15  # rows that are checked, and searched, at once
WORTH = 0.7  # a search that reads a larger share of the rows' bytes than this is no gain
LEARNED_FOR = 4  # times the rows that a coder was learnt from; more rows are coded by a new one
_CODED = 4096
VERSION = 1
_COLUMNS = ("codes", "residual", "norm")
Progress = Callable[[str, int, int], None]


class CodeFile:
    """An opened code file over rows [0, rows). Thread-safe. Raises DatabaseDamaged."""

    def __init__(self, folder: Path) -> None:
        meta = folders.read(folder)
        try:
            self.rows, self.learned, self.useful = int(meta["rows"]), int(meta["learned"]), bool(meta["useful"])
            if int(meta["codes"]) != VERSION:
                raise DatabaseDamaged(f"{folder} is of version {meta['codes']}; {VERSION} is read")
            arrays = {name: _mapped(folder, name) for name in ("mean", "turn", "bits", "step", *_COLUMNS, "hashes")}
            skew = float(meta["skew"])
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise DatabaseDamaged(f"{folder} cannot be read: {error}") from error
        self.folder = folder
        self.coder = Coder(arrays["mean"], arrays["turn"], skew, arrays["bits"], np.array(arrays["step"]))
        self.codes, self.residual, self.norm = (arrays[name] for name in _COLUMNS)
        self._hashes = arrays["hashes"]
        if self.useful and (
            self.codes.shape != (self.rows, self.coder.row_bytes)
            or self.residual.shape != (self.rows,)
            or self.norm.shape != (self.rows,)
            or len(self._hashes) != -(-self.rows // STRETCH)
        ):
            raise DatabaseDamaged(f"{folder} has {len(self.codes):,} codes; expected {self.rows:,}")
        self._checked = np.zeros(len(self._hashes), np.bool_)
        self._guard = threading.Lock()

    @property
    def bytes(self) -> int:
        """What it takes on disk, about."""
        return int(self.codes.nbytes + self.residual.nbytes + self.norm.nbytes)

    def check(self, stretch: int) -> None:
        """Read a stretch of rows and compare its hash, once. Raises DatabaseDamaged."""
        if self._checked[stretch]:
            return
        if _hash(self.codes, self.residual, self.norm, stretch) != int(self._hashes[stretch]):
            raise DatabaseDamaged(f"{self.folder} is damaged in rows {stretch * STRETCH:,} and after; it is made anew")
        self._checked[stretch] = True

    def verify(self) -> None:
        """Read everything and compare all hashes. Raises DatabaseDamaged, naming the first file that differs."""
        folders.verify(self.folder)


def _mapped(folder: Path, name: str) -> NDArray[Any]:
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))


def _hash(codes: NDArray[Any], residual: NDArray[Any], norm: NDArray[Any], stretch: int) -> int:
    state, first = xxhash.xxh3_64(), stretch * STRETCH
    for array in (codes, residual, norm):
        piece: Any = np.ascontiguousarray(array[first : first + STRETCH])
        state.update(memoryview(piece).cast("B"))
    return state.intdigest()


def write(
    place: Path, vectors: Vectors, *, older: CodeFile | None = None, progress: Progress | None = None, seed: int = 0
) -> None:
    """Write the code file of all rows of a column into a new folder.

    older: one of its first rows, whose coder and codes are kept, unless there are many times the rows by now. progress:
    told of stage, done, total; what it raises ends the work and leaves nothing. Where codes would rule out too little,
    the file says so and holds none. Raises OSError.
    """
    rows = vectors.rows
    kept = older if older is not None and older.useful and rows <= LEARNED_FOR * older.learned else None
    coder = kept.coder if kept else _learned(vectors, seed, lambda: progress("learning", 0, rows) if progress else None)
    learned, first = (kept.learned, kept.rows // STRETCH * STRETCH) if kept else (rows, 0)
    kernels.warm()  # so that no search has to
    with folders.NewFolder(place) as new:
        coded = rows if coder else 0
        empty = Coder(*(np.empty(0, np.float32),) * 2, 0.0, np.empty(0, np.uint8), np.empty(0))
        made = coder or empty
        arrays = {
            "codes": new.create("codes", (coded, made.row_bytes), np.uint8),
            "residual": new.create("residual", (coded,), np.float32),
            "norm": new.create("norm", (coded,), np.float32),
        }
        if kept:
            for name, array in arrays.items():
                array[:first] = getattr(kept, name)[:first]
        if coder:
            for start in range(first, rows, _CODED):
                if progress:
                    progress("bounds", start, rows)
                for at, block in vectors.blocks(start, min(rows, start + _CODED)):
                    end = at + len(block)
                    arrays["codes"][at:end], arrays["residual"][at:end], arrays["norm"][at:end] = coder.encode(block)
        stretches = range(-(-coded // STRETCH))
        hashes = [_hash(arrays["codes"], arrays["residual"], arrays["norm"], s) for s in stretches]
        for array in arrays.values():
            if isinstance(array, np.memmap):
                array.flush()
        for name in ("mean", "turn", "bits", "step"):
            new.save(name, getattr(made, name))
        new.save("hashes", np.array(hashes, np.uint64))
        meta = {"version": folders.VERSION, "codes": VERSION, "kind": "codes", "rows": rows, "learned": learned}
        new.commit({**meta, "useful": coder is not None, "skew": made.skew})


def _learned(vectors: Vectors, seed: int, tick: Callable[[], None]) -> Coder | None:
    """A coder for the rows of a column; None where codes rule out too little."""
    chosen = np.arange(vectors.rows)
    if len(chosen) > SAMPLED:
        chosen = np.sort(np.random.default_rng(seed).choice(len(chosen), SAMPLED, replace=False))
    [(_, block)] = vectors.blocks(0, 1)
    found = learn(vectors.take(chosen), block.dtype.itemsize, seed, tick)
    return found[0] if found and found[1] <= WORTH else None
