"""Numbers of a vector by itself, for many rows at once, as ClickHouse's functions give them: sums, norms, hashes.

What must stay true: a function gives the type and, but for the rounding of sums, the value that ClickHouse gives for an
Array(Float32); a hash is the same to the last bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numba import float64, uint64
from numpy.typing import NDArray

from clipql.storage.vectors.bits import kernel
from clipql.storage.vectors.kernels import as_float32, half_to_float

# rows widened at once, which stay in the cache
AT_ONCE = 512
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class RowNumber:
    """A function of a vector: the type of its value, and what gives it for float32 (n, d) rows."""

    dtype: type[np.generic]
    of: Callable[[Floats], NDArray[Any]]


def _wide(x: Floats) -> NDArray[np.float64]:
    return x.astype(np.float64)


def _city(x: Floats) -> NDArray[np.uint64]:
    out = np.empty(len(x), np.uint64)
    _hash(np.ascontiguousarray(x).view(np.uint32), np.uint64(0x4CF2D2BAAE6DA887), out)
    return out


def _other(x: Floats) -> NDArray[np.uint64]:
    """Another hash, which together with the first makes 128 bits."""
    out = np.empty(len(x), np.uint64)
    _second(np.ascontiguousarray(x).view(np.uint32), out)
    return out


_L2 = RowNumber(np.float32, lambda x: np.sqrt((_wide(x) ** 2).sum(1)))
_L1 = RowNumber(np.float32, lambda x: np.abs(_wide(x)).sum(1))
_LINF = RowNumber(np.float32, lambda x: np.abs(x).max(1))
_SQUARED = RowNumber(np.float32, lambda x: (_wide(x) ** 2).sum(1))
SECOND_HASH = "secondHash64"
FUNCTIONS: Mapping[str, RowNumber] = MappingProxyType(
    {
        "arraySum": RowNumber(np.float64, lambda x: _wide(x).sum(1)),
        "arrayAvg": RowNumber(np.float64, lambda x: _wide(x).mean(1)),
        "arrayMin": RowNumber(np.float32, lambda x: x.min(1)),
        "arrayMax": RowNumber(np.float32, lambda x: x.max(1)),
        "L1Norm": _L1,
        "normL1": _L1,
        "L2Norm": _L2,
        "normL2": _L2,
        "LinfNorm": _LINF,
        "normLinf": _LINF,
        "L2SquaredNorm": _SQUARED,
        "normL2Squared": _SQUARED,
        "cityHash64": RowNumber(np.uint64, _city),
        SECOND_HASH: RowNumber(np.uint64, _other),
    }
)


# what a group of vectors is made to, number by number: the type of the numbers, and how parts of it are put together
GROUPED: Mapping[str, tuple[type[np.generic], Callable[..., NDArray[Any]]]] = MappingProxyType(
    {
        "sumForEach": (np.float64, np.add),
        "avgForEach": (np.float64, np.add),
        "minForEach": (np.float32, np.minimum),
        "maxForEach": (np.float32, np.maximum),
    }
)


def of_some(function: str, pieces: Iterable[tuple[NDArray[Any], NDArray[np.int64]]]) -> NDArray[Any] | None:
    """What some vectors are added up or compared to, (d,); None for none.

    pieces: float16 or float32 (n, d) arrays, C order, and which of their rows, int64.
    """
    dtype, join = GROUPED[function]
    found = None
    for x, rows in pieces:
        one = np.asarray(_sum(x, rows) if join is np.add else _extreme(join, x, rows), dtype)
        found = one if found is None else join(found, one)
    return found


def of_group(function: str, parts: Sequence[NDArray[Any]], rows: int) -> NDArray[Any]:
    """The sum, mean, minimum or maximum of a group of so many rows, of what `of_some` gives for its parts."""
    dtype, join = GROUPED[function]
    total = np.asarray(join.reduce(parts, axis=0), dtype)  # type: ignore[attr-defined]
    return np.asarray(total.astype(np.float64) / rows) if function == "avgForEach" else total


def _sum(x: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    total = np.zeros(x.shape[1])
    if x.dtype == np.float16:
        _add_halves(x.view(np.uint16), rows, total)
    else:
        _add_floats(x, rows, total)
    return total


def _extreme(join: Any, x: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    some = (x[rows[at : at + AT_ONCE]] for at in range(0, len(rows), AT_ONCE))
    return functools.reduce(join, (join.reduce(part, axis=0) for part in some))


@kernel
def _add_halves(x: NDArray[np.uint16], rows: NDArray[np.int64], total: NDArray[np.float64]) -> None:
    whole = len(rows) - len(rows) % 4  # four rows at a time, so that the total is read and written less often
    for i in range(0, whole, 4):
        a, b, c, d = x[rows[i]], x[rows[i + 1]], x[rows[i + 2]], x[rows[i + 3]]
        for j in range(len(total)):
            total[j] += (float64(half_to_float(a[j])) + float64(half_to_float(b[j]))) + (
                float64(half_to_float(c[j])) + float64(half_to_float(d[j]))
            )
    for i in range(whole, len(rows)):
        for j in range(len(total)):
            total[j] += half_to_float(x[rows[i], j])


@kernel
def _add_floats(x: NDArray[np.float32], rows: NDArray[np.int64], total: NDArray[np.float64]) -> None:
    whole = len(rows) - len(rows) % 4
    for i in range(0, whole, 4):
        a, b, c, d = x[rows[i]], x[rows[i + 1]], x[rows[i + 2]], x[rows[i + 3]]
        for j in range(len(total)):
            total[j] += (float64(a[j]) + float64(b[j])) + (float64(c[j]) + float64(d[j]))
    for i in range(whole, len(rows)):
        for j in range(len(total)):
            total[j] += x[rows[i], j]


def of_rows(function: str, x: NDArray[Any], out: NDArray[Any]) -> None:
    """The number of each row into out, (n,) of the function's dtype. x: (n, d) float16 or float32."""
    number = FUNCTIONS[function]
    for at in range(0, len(x), AT_ONCE):
        part = as_float32(x[at : at + AT_ONCE])
        with np.errstate(over="ignore"):
            out[at : at + len(part)] = number.of(part)


@kernel
def _mixed(x: Any, salt: Any) -> Any:
    """ClickHouse's intHash64: the finaliser of MurmurHash3, salted."""
    x ^= salt
    x ^= x >> uint64(33)
    x *= uint64(0xFF51AFD7ED558CCD)
    x ^= x >> uint64(33)
    x *= uint64(0xC4CEB9FE1A85EC53)
    return x ^ (x >> uint64(33))


@kernel
def _joined(low: Any, high: Any) -> Any:
    """Hash128to64 of CityHash 1.0.2."""
    k = uint64(0x9DDFEA08EB382D69)
    a = (low ^ high) * k
    a ^= a >> uint64(47)
    b = (high ^ a) * k
    b ^= b >> uint64(47)
    return b * k


@kernel
def _hash(bits: NDArray[np.uint32], salt: Any, out: NDArray[np.uint64]) -> None:
    """The hash of an array of float32, by their bits: as ClickHouse's cityHash64 has it, with its salt.

    Four rows side by side, as each step of a row waits for the one before.
    """
    whole = bits.shape[0] - bits.shape[0] % 4
    for i in range(0, whole, 4):
        a = _mixed(uint64(bits.shape[1]), salt)
        b, c, d = a, a, a
        for j in range(bits.shape[1]):
            a = _joined(a, _mixed(uint64(bits[i, j]), salt))
            b = _joined(b, _mixed(uint64(bits[i + 1, j]), salt))
            c = _joined(c, _mixed(uint64(bits[i + 2, j]), salt))
            d = _joined(d, _mixed(uint64(bits[i + 3, j]), salt))
        out[i], out[i + 1], out[i + 2], out[i + 3] = a, b, c, d
    for i in range(whole, bits.shape[0]):
        a = _mixed(uint64(bits.shape[1]), salt)
        for j in range(bits.shape[1]):
            a = _joined(a, _mixed(uint64(bits[i, j]), salt))
        out[i] = a


@kernel
def _second(bits: NDArray[np.uint32], out: NDArray[np.uint64]) -> None:
    """Another hash of the same, by one product a number; nobody sees it."""
    k = uint64(0x9E3779B97F4A7C15)
    for i in range(bits.shape[0]):
        a, b = uint64(0x243F6A8885A308D3), uint64(0x13198A2E03707344)
        for j in range(0, bits.shape[1] - 1, 2):
            a = (a ^ uint64(bits[i, j])) * k
            a ^= a >> uint64(29)
            b = (b ^ uint64(bits[i, j + 1])) * k
            b ^= b >> uint64(31)
        if bits.shape[1] % 2:
            a = (a ^ uint64(bits[i, bits.shape[1] - 1])) * k
        out[i] = _joined(a, b)


def warm() -> None:
    """Compile the hashes and the sums, for arrays as they are mapped."""
    for function in ("cityHash64", SECOND_HASH):
        of_rows(function, np.ones((2, 8), np.float32), np.empty(2, np.uint64))
    for dtype in (np.float16, np.float32):
        x = np.ones((2, 8), dtype)
        x.setflags(write=False)
        of_some("sumForEach", [(x, np.arange(2))])
