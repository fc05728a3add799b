"""Segment files: `.npy` as numpy writes it, read by mapping and written once.

What must stay true: a segment is complete, synced and never changed after it has its name; its vectors are finite; it
is float16 only where that loses nothing. Pickled objects are never loaded.
"""

from __future__ import annotations

import io
import math
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from clipql.errors import DatabaseDamaged, StorageError, VectorError
from clipql.storage import files
from clipql.storage.catalog import Segment
from clipql.storage.vectors import forms, presence

HEADER = 128
# numbers of a vector: a header that says more is taken to be damaged
LONGEST = 1 << 16
_LONGEST_HEADER = 10_000
# what numpy lets out of its reader of headers, which evaluates their text as Python
UNREADABLE = (
    ArithmeticError, EOFError, LookupError, MemoryError, OSError, RecursionError, SyntaxError, TokenError, TypeError,
    ValueError,
)  # fmt: skip
# zeros that are mapped need no room
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0)
# what fits the second-level cache is checked, hashed and written two to four times faster than what does not
BLOCK_BYTES = 1 << 20
# columns are read in long pieces
COLUMN_BYTES = 16 << 20


@dataclass(frozen=True)
class ArrayFile:
    """The header of a 2-d `.npy` file of numbers: shape, dtype and the byte where the numbers begin.

    fortran: they come column after column. zipped: the file is an `.npz`, which has no other array.
    """

    path: Path
    rows: int
    dimension: int
    dtype: np.dtype[Any]
    offset: int
    fortran: bool = False
    zipped: bool = False

    @property
    def stored_as_is(self) -> bool:
        """Whether the bytes can serve as a segment unchanged: a `.npy` of little-endian float16 or float32 rows."""
        return self.dtype in (np.dtype("<f2"), np.dtype("<f4")) and not self.fortran and not self.zipped

    @property
    def form(self) -> str:
        """What it holds, in a word or two, as messages say it."""
        order = " in Fortran order" if self.fortran else " in an .npz" if self.zipped else ""
        return f"{forms.name_of(self.dtype)}{order}"


def read_header(path: Path, *, follow: bool = True) -> ArrayFile:
    """Read and check the header of a `.npy` file of vectors, or of the one in an `.npz`, without reading the vectors.

    follow: also where the path is a symbolic link, as that of a part may be and that of a segment is not. Raises
    VectorError, naming the file, where it is not a whole 2-d array of numbers that are taken in (see `forms`).
    """
    try:
        with files.translated(path, "reading"), files.open_plain(path, follow=follow) as file:
            begin, size = 0, os.fstat(file.fileno()).st_size
            zipped = file.read(4) == forms.ZIPPED
            if zipped:
                begin, size = forms.zipped_array(file)
            file.seek(begin)
            shape, fortran, dtype, offset = _parse_header(file)
    except StorageError as error:
        raise VectorError(str(error)) from error
    except VectorError as error:
        raise VectorError(f"{path} {error}") from error
    except UNREADABLE as error:
        if "'<f1'" in str(error) or "'f1'" in str(error):  # as ml_dtypes' float8_e5m2 is saved, which numpy cannot read
            raise VectorError(f'{path} holds float8; save it with .astype("float16"), which loses nothing') from error
        raise VectorError(f"{path} is not a .npy file of vectors ({error})") from error
    if refused := forms.refusal(dtype):
        raise VectorError(f"{path} {refused}")
    if len(shape) == 1:
        raise VectorError(
            f"{path} has shape {shape}; expected (rows, dimension), one vector a row: "
            "reshape(1, -1) makes it one vector"
        )
    if len(shape) != 2 or shape[0] < 0 or shape[1] < 1:
        raise VectorError(f"{path} has shape {shape}; expected (rows, dimension), one vector a row")
    if shape[1] > LONGEST:
        raise VectorError(f"{path} has vectors of {shape[1]:,} numbers; {LONGEST:,} are the most")
    expected = offset + shape[0] * shape[1] * dtype.itemsize
    if size != expected:
        state = "cut short" if size < expected else "too long"
        raise VectorError(
            f"{path} is {state}: its header announces {shape[0]:,} vectors of {shape[1]} {forms.name_of(dtype)} "
            f"numbers, {expected:,} bytes in all, and it has {size:,}; fetch it again"
        )
    return ArrayFile(path, shape[0], shape[1], dtype, begin + offset, fortran and min(shape) > 1, zipped)


def size_by_header(file: BinaryIO) -> int:
    """How many bytes a `.npy` file has in all by its header. Raises one of UNREADABLE."""
    shape, _, dtype, offset = _parse_header(file)
    return offset + math.prod(shape) * dtype.itemsize


def _parse_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Shape, whether in Fortran order, dtype, and where the numbers begin. Raises one of UNREADABLE."""
    begin = file.read(12)
    version = np.lib.format.read_magic(io.BytesIO(begin))
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"its format is {version[0]}.{version[1]}; known are 1.0, 2.0 and 3.0")
    digits = 2 if version == (1, 0) else 4
    length = int.from_bytes(begin[8 : 8 + digits], "little")
    if length > _LONGEST_HEADER:  # numpy would read it first, all of 4 GB
        raise ValueError(f"its header announces {length:,} bytes")
    offset = 8 + digits + length
    header = io.BytesIO(begin + file.read(offset - len(begin)))
    header.seek(8)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(header)
    if any(isinstance(n, bool) for n in shape):
        raise ValueError(f"its shape is {shape}")
    return shape, bool(fortran), dtype, offset


def read_blocks(array: ArrayFile) -> Iterator[tuple[int, NDArray[Any]]]:
    """The vectors of a file in blocks of about 1 MB, as pairs of first row and (n, d) array.

    Reads, and does not map, so that memory stays bounded. A block is only valid until the next one is asked for.
    Numbers that are not little-endian float16 or float32 come as float32.
    """
    if array.fortran:
        yield from _read_columns(array)
        return
    width = array.dimension * array.dtype.itemsize
    step = max(1, BLOCK_BYTES // width)
    buffer = bytearray(step * width)
    with files.translated(array.path, "reading"), files.open_plain(array.path, follow=True) as file:
        file.seek(array.offset)
        for first in range(0, array.rows, step):
            n = min(step, array.rows - first)
            view, got = memoryview(buffer)[: n * width], 0
            while got < len(view):
                read = file.readinto(view[got:])
                if not read:
                    raise VectorError(f"{array.path} ended at row {first + got // width:,} of {array.rows:,}")
                got += read
            block = np.frombuffer(view, array.dtype).reshape(n, array.dimension)
            yield first, _as_stored(block)


def _read_columns(array: ArrayFile) -> Iterator[tuple[int, NDArray[Any]]]:
    """The same of a file in Fortran order, of which a block is a piece of every column."""
    step = max(1, COLUMN_BYTES // (array.dimension * array.dtype.itemsize))
    with files.translated(array.path, "reading"), files.open_plain(array.path, follow=True) as file:
        for first in range(0, array.rows, step):
            n = min(step, array.rows - first)
            block = np.empty((n, array.dimension), array.dtype)
            for column in range(array.dimension):
                file.seek(array.offset + (column * array.rows + first) * array.dtype.itemsize)
                piece = file.read(n * array.dtype.itemsize)
                if len(piece) < n * array.dtype.itemsize:
                    raise VectorError(f"{array.path} ended at position {column:,} of {array.dimension:,}")
                block[:, column] = np.frombuffer(piece, array.dtype)
            yield first, _as_stored(block)


def _as_stored(block: NDArray[Any]) -> NDArray[Any]:
    return block if block.dtype in (np.dtype("<f2"), np.dtype("<f4")) else forms.widened(block)


def fits_float16(block: NDArray[Any]) -> bool:
    """Whether every number of a float32 block is exactly a float16."""
    with np.errstate(over="ignore"):
        return bool((block[:1].astype(np.float16) == block[:1]).all() and (block.astype(np.float16) == block).all())


def smallest_dtype(array: ArrayFile) -> str:
    """'float16' where that holds every number of the file exactly, and 'float32' otherwise. Stops at the first block
    that it does not hold.
    """
    whole = array.dtype.kind in "iu" and array.dtype.itemsize == 1  # float16 holds every integer up to 2,048
    if whole or array.dtype == np.dtype("<f2") or all(fits_float16(block) for _, block in read_blocks(array)):
        return "float16"
    return "float32"


def check_finite(block: NDArray[Any], first: int, where: str) -> float:
    """Refuse NaN and infinity, naming the row (`first` + its place in the block); return the largest norm."""
    from clipql.storage.vectors import kernels

    bad, largest = kernels.check(block)
    if bad >= 0:
        column = int(np.flatnonzero(~np.isfinite(block[bad]))[0])
        raise VectorError(
            f"{where}: row {first + bad:,} holds {block[bad, column]} at position {column}; vectors must be finite"
        )
    return largest


def _bytes(block: NDArray[Any]) -> memoryview:
    """The bytes of a C-ordered array, not copied."""
    view: Any = block
    return memoryview(view).cast("B") if block.size else memoryview(b"")


class SegmentWriter:
    """Writes one segment: header room, vectors as they come, then the true header; synced by `finish`.

    Use within `files.new_file`, which gives the file its name when all went well.
    """

    def __init__(self, file: BinaryIO, path: Path, first: int, dimension: int, dtype: str) -> None:
        self._file, self._path, self._first, self._dimension = file, path, first, dimension
        self._dtype, self._rows, self._largest, self._hash = np.dtype(dtype), 0, 0.0, xxhash.xxh3_64()
        self._write(b"\0" * HEADER)

    def _write(self, data: Any) -> None:
        view = memoryview(data)
        with files.translated(self._path, "writing"):
            while view:
                view = view[self._file.write(view) :]

    def reserve(self, rows: int) -> None:
        """Take the room for so many vectors now. Raises OSError where the disk is full."""
        files.take_room(self._file.fileno(), HEADER + rows * self._dimension * self._dtype.itemsize)

    def append(self, block: NDArray[Any], where: str, row: int) -> None:
        """Add (n, dimension) vectors, checked to be finite; `where` and `row` name them in an error."""
        self._largest = max(self._largest, check_finite(block, row, where))
        data = _bytes(np.ascontiguousarray(block, self._dtype))
        self._hash.update(data)
        self._write(data)
        self._rows += len(block)

    def finish(self) -> Segment:
        """Write the header and describe the segment."""
        os.lseek(self._file.fileno(), 0, os.SEEK_SET)
        self._write(header(self._rows, self._dimension, self._dtype))
        return Segment(
            file=self._path.name,
            first=self._first,
            rows=self._rows,
            dimension=self._dimension,
            dtype=self._dtype.name,
            offset=HEADER,
            largest=self._largest,
            hash=self._hash.hexdigest(),
        )


def header(rows: int, dimension: int, dtype: np.dtype[Any]) -> bytes:
    """A `.npy` header of exactly 128 bytes (format 1.0 of numpy.lib.format)."""
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({rows}, {dimension}), }}"
    return b"\x93NUMPY\x01\x00" + (HEADER - 10).to_bytes(2, "little") + text.ljust(HEADER - 11).encode() + b"\n"


def segment_of(array: ArrayFile, first: int, where: str) -> Segment:
    """Describe a file that is to serve as a segment where it lies (`--link`): reads and checks it, copies nothing."""
    digest, largest = xxhash.xxh3_64(), 0.0
    for row, block in read_blocks(array):
        largest = max(largest, check_finite(block, row, where))
        digest.update(_bytes(block))
    return Segment(
        file=str(array.path.resolve()),
        first=first,
        rows=array.rows,
        dimension=array.dimension,
        dtype=array.dtype.name,
        offset=array.offset,
        largest=largest,
        hash=digest.hexdigest(),
        linked=True,
    )


def map_segment(folder: Path, segment: Segment, dimension: int | None = None) -> NDArray[Any]:
    """The vectors of a segment, memory-mapped: read-only (rows, dimension).

    dimension: of the zeros that a segment without vectors has, which take no memory while they are only read. Raises
    DatabaseDamaged, naming the file, where it is missing, cut short or has another shape than the manifest says.
    """
    if segment.hollow:
        return _zeros(segment.rows, segment.dimension if dimension is None else dimension, np.dtype(segment.dtype))
    path = folder / segment.file
    try:
        found = read_header(path, follow=False)
    except VectorError as error:
        advice = "put the linked file back" if segment.linked else "restore it from a backup"
        raise DatabaseDamaged(f"a segment is damaged: {error}; {advice}") from error
    told = (segment.rows, segment.dimension, segment.dtype)
    if (found.rows, found.dimension, found.dtype.name) != told or not found.stored_as_is:
        raise DatabaseDamaged(
            f"segment {path} holds {found.rows:,} vectors of {found.dimension} {found.form}; the manifest says "
            f"{segment.rows:,} of {segment.dimension} {segment.dtype}: it was replaced, restore the original"
        )
    if not segment.rows:
        return np.empty((0, segment.dimension), segment.dtype)
    with files.translated(path, "mapping"), files.open_plain(path) as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    count = segment.rows * segment.dimension
    return np.frombuffer(mapped, found.dtype, count, found.offset).reshape(segment.rows, segment.dimension)


def _zeros(rows: int, dimension: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    size = rows * dimension * dtype.itemsize
    if not size:
        return np.empty((rows, dimension), dtype)
    mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE, prot=mmap.PROT_READ)
    return np.frombuffer(mapped, dtype, rows * dimension).reshape(rows, dimension)


def verify(folder: Path, segment: Segment) -> None:
    """Read a whole segment and compare its hash. Raises DatabaseDamaged, naming the file."""
    presence.read(folder, segment)
    if segment.hollow:
        return
    block = map_segment(folder, segment)
    found = xxhash.xxh3_64(_bytes(block)).hexdigest()
    if found != segment.hash:
        raise DatabaseDamaged(
            f"segment {folder / segment.file} has hash {found}, the manifest says {segment.hash}: it was altered"
        )
