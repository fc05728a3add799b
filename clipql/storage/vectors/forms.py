"""The forms in which files of vectors come: kinds of number, order in memory, `.npy` alone or in an `.npz`.

What is taken in keeps every digit that float32 holds: float16, float32, bfloat16 and integers of 8 or 16 bits whole,
float64 rounded. What is not is refused with what to do.
"""

from __future__ import annotations

import zipfile
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from clipql.errors import VectorError

# numpy knows no bfloat16: a file that ml_dtypes' is saved in says only that a number has two bytes
BFLOAT16 = np.dtype("V2")
ZIPPED = b"PK\x03\x04"
_LOCAL_HEADER = 30  # bytes of a zip's header before the name of a member
_TAKEN = "float16, float32, float64, bfloat16 or integers of 8 or 16 bits"


def refusal(dtype: np.dtype[Any]) -> str:
    """Why numbers of a kind are not taken in, in words that follow a file's name; empty where they are."""
    if dtype.hasobject:
        return "holds Python objects, which are never loaded; expected float16 or float32 numbers"
    taken = (dtype.kind == "f" and dtype.itemsize <= 8) or (dtype.kind in "iu" and dtype.itemsize <= 2)
    if taken or dtype == BFLOAT16:
        return ""
    if dtype == np.dtype("V1"):
        return (
            "holds numbers of one byte whose kind the file does not say, as numpy saves float8 and int4; "
            'save it with .astype("float16"), which loses nothing'
        )
    if dtype.kind in "iub":
        return f'holds {dtype}; expected {_TAKEN}; save it with .astype("float32")'
    return f"holds {dtype}; expected {_TAKEN}"


def name_of(dtype: np.dtype[Any]) -> str:
    """A kind of number as messages call it."""
    return "bfloat16" if dtype == BFLOAT16 else str(dtype)


def widened(block: NDArray[np.generic]) -> NDArray[np.float32]:
    """A block of numbers of any kind that is taken in, as float32."""
    if block.dtype == BFLOAT16:
        return (np.ascontiguousarray(block).view("<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore"):
        return block.astype(np.float32)


def zipped_array(file: BinaryIO) -> tuple[int, int]:
    """Where the one array of an `.npz` begins, and its bytes with its header.

    Raises VectorError, whose words follow a file's name, for what is no whole archive, for another number of arrays,
    and for a compressed one.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, EOFError) as error:
        raise VectorError(f"is not a .npy file of vectors, nor a whole .npz of one array ({error})") from error
    if len(members) != 1:
        names = ", ".join(m.filename for m in members[:10]) or "none"
        raise VectorError(f"holds {len(members)} arrays ({names}); save the vectors alone, with numpy.save")
    (member,) = members
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
        raise VectorError("holds a compressed array; save it with numpy.save, or numpy.savez without compression")
    file.seek(member.header_offset)
    local = file.read(_LOCAL_HEADER)
    if len(local) < _LOCAL_HEADER or local[:4] != ZIPPED:
        raise VectorError("is not a whole .npz: its directory names an array that is not there; fetch it again")
    lengths = int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")
    return member.header_offset + _LOCAL_HEADER + lengths, member.file_size
