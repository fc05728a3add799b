"""The hot loops over stored vectors, compiled by Numba and cached on disk.

float16 rows come as their uint16 bits and are widened in registers, so a scan reads half the bytes. What must stay
true: every kernel releases the GIL, allocates nothing, and works on views of the mapped files; NaN is an answer (a
zero vector's cosine distance), so `nnan` is never among the fast-math flags. `parallel=True` is not used: its thread
layer must not be entered from two Python threads at once, so callers share the rows out to threads themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import float32, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from clipql.storage.vectors import chosen
from clipql.storage.vectors.compiled import compiled
from clipql.storage.vectors.metrics import Metric

F = TypeVar("F", bound=Callable[..., Any])
LARGEST_FLOAT = float(np.finfo(np.float32).max)
# squared lengths of which products and roots lose nothing in float32; others are left to float64
SHORTEST, LONGEST = np.float32(1e-30), np.float32(1e30)
FAST = {"reassoc", "contract", "nsz", "arcp"}


def _kernel(function: F) -> F:
    return compiled(function, fastmath=FAST, error_model="numpy", boundscheck=False)


@intrinsic
def half_to_float(typingctx, bits):  # type: ignore[no-untyped-def]
    """The float16 whose bits these are, as float32; compiles to the machine's own conversion."""

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), codegen


@_kernel
def _l2_half(x: Any, q: Any, out: Any) -> None:
    for i in range(x.shape[0]):
        s = float32(0)
        for j in range(x.shape[1]):
            d = half_to_float(x[i, j]) - q[j]
            s += d * d
        out[i] = s


@_kernel
def _l2_float(x: Any, q: Any, out: Any) -> None:
    for i in range(x.shape[0]):
        s = float32(0)
        for j in range(x.shape[1]):
            d = x[i, j] - q[j]
            s += d * d
        out[i] = s


@_kernel
def _dot_half(x: Any, q: Any, out: Any) -> None:
    for i in range(x.shape[0]):
        s = float32(0)
        for j in range(x.shape[1]):
            s += half_to_float(x[i, j]) * q[j]
        out[i] = s


@_kernel
def _dot_float(x: Any, q: Any, out: Any) -> None:
    for i in range(x.shape[0]):
        s = float32(0)
        for j in range(x.shape[1]):
            s += x[i, j] * q[j]
        out[i] = s


@_kernel
def _cosine(s: Any, r: Any, n: Any) -> Any:
    """The distance by a product and two squared lengths; NaN where float32 does not hold those."""
    if r >= SHORTEST and r <= LONGEST and n >= SHORTEST and n <= LONGEST:
        return float32(1) - s / (np.sqrt(r) * np.sqrt(n))
    return float32(np.nan)


@_kernel
def _cosine_half(x: Any, q: Any, out: Any) -> None:
    n = float32(0)
    for j in range(q.shape[0]):
        n += q[j] * q[j]
    for i in range(x.shape[0]):
        s, r = float32(0), float32(0)
        for j in range(x.shape[1]):
            v = half_to_float(x[i, j])
            s += v * q[j]
            r += v * v
        out[i] = _cosine(s, r, n)


@_kernel
def _cosine_float(x: Any, q: Any, out: Any) -> None:
    n = float32(0)
    for j in range(q.shape[0]):
        n += q[j] * q[j]
    for i in range(x.shape[0]):
        s, r = float32(0), float32(0)
        for j in range(x.shape[1]):
            v = x[i, j]
            s += v * q[j]
            r += v * v
        out[i] = _cosine(s, r, n)


@_kernel
def _check_half(x: Any) -> Any:
    worst = float32(0)
    for i in range(x.shape[0]):
        s, bad = float32(0), 0
        for j in range(x.shape[1]):
            bits = x[i, j]
            bad += (bits & 0x7C00) == 0x7C00
            v = half_to_float(bits)
            s += v * v
        if bad:
            return i, worst
        worst = max(worst, s)
    return -1, worst


@_kernel
def _check_float(x: Any) -> Any:
    worst = 0.0
    for i in range(x.shape[0]):
        s, bad = 0.0, 0
        for j in range(x.shape[1]):
            v = np.float64(x[i, j])
            bad += not (abs(v) <= LARGEST_FLOAT)  # false for NaN too
            s += v * v
        if bad:
            return i, worst
        worst = max(worst, s)
    return -1, worst


def as_float32(block: Any) -> Any:
    """A copy of a block (n, d) of float16 or float32 in float32. numpy computes what the processor has an instruction
    for, and takes several times as long for float16.
    """
    out = np.empty(block.shape, np.float32)
    if block.dtype == np.float16:
        widen(_bits(block).reshape(-1, block.shape[-1]), out.reshape(-1, block.shape[-1]))
    else:
        out[:] = block
    return out


def rows_as_float32(block: Any, rows: Any) -> Any:
    """The same of some rows of a block, int64 (n,), which are there."""
    out = np.empty((len(rows), block.shape[1]), np.float32)
    if block.dtype == np.float16 and block.flags.c_contiguous:
        wanted = np.ascontiguousarray(rows, np.int64).view()
        wanted.setflags(write=False)
        widen_rows(_bits(block), wanted, out)
    else:
        out[:] = block[rows]
    return out


def _bits(block: Any) -> Any:
    """The bits of float16, uint16 in C order: of one kind for all blocks, or loops are compiled for each."""
    bits = np.ascontiguousarray(block).view(np.uint16)
    bits.setflags(write=False)
    return bits


@_kernel
def widen(bits: Any, out: Any) -> None:
    """float16 (n, d), by their bits, as float32 into out."""
    for i in range(bits.shape[0]):
        for j in range(bits.shape[1]):
            out[i, j] = half_to_float(bits[i, j])


@_kernel
def widen_rows(bits: Any, rows: Any, out: Any) -> None:
    """The same of some rows, int64 (n,), which are there."""
    for i in range(rows.shape[0]):
        for j in range(bits.shape[1]):
            out[i, j] = half_to_float(bits[rows[i], j])


@_kernel
def collect(key: Any, first: int, limit: float, rows: Any, keys: Any, used: int) -> int:
    """Append the rows whose key is at most `limit` to rows/keys from position `used`; returns the new count.

    The caller leaves room for the whole block. NaN keys are never appended.
    """
    for i in range(key.shape[0]):
        if key[i] <= limit:
            rows[used] = first + i
            keys[used] = key[i]
            used += 1
    return used


_HALF = {Metric.L2: _l2_half, Metric.L2_SQUARED: _l2_half, Metric.COSINE: _cosine_half, Metric.DOT: _dot_half}
_FLOAT = {Metric.L2: _l2_float, Metric.L2_SQUARED: _l2_float, Metric.COSINE: _cosine_float, Metric.DOT: _dot_float}


def distances(
    metric: Metric, x: NDArray[Any], query: NDArray[np.floating[Any]], out: NDArray[np.float32], *, wide: bool = False
) -> None:
    """Distances of rows to one query, in float32.

    x: (n, d) float16 or float32, C order; query: (d,); out: float32 (n,), overwritten. wide: compute in float64, as
    for numbers whose squares leave float32; infinity is then what float32 does not hold. A cosine distance is right
    whatever the lengths; that of a row or a query of zero length is NaN.
    """
    if wide:
        with np.errstate(over="ignore"):
            out[:] = chosen.distances(metric, _unwritable(x), np.arange(len(x)), query.astype(np.float64))
        return
    with np.errstate(over="ignore"):
        narrow = query.astype(np.float32, copy=False)
    if x.dtype == np.float16:
        _HALF[metric](x.view(np.uint16), narrow, out)
    else:
        _FLOAT[metric](x, narrow, out)
    if metric is Metric.L2:
        np.sqrt(out, out=out)
    elif metric is Metric.COSINE:
        odd = np.flatnonzero(np.isnan(out))
        if len(odd):  # so short or long that float32 loses it; it has a direction all the same
            out[odd] = chosen.distances(metric, _unwritable(x), odd, query.astype(np.float64))


def _unwritable(x: NDArray[Any]) -> NDArray[Any]:
    """A view as mapped arrays are, for which the kernels are compiled."""
    x = x.view()
    x.setflags(write=False)
    return x


def check(x: NDArray[Any]) -> tuple[int, float]:
    """The index of the first row with NaN or infinity (-1 if there is none), and the largest Euclidean norm.

    x: (n, d) float16 or float32, C order.
    """
    bad, squared = _check_half(x.view(np.uint16)) if x.dtype == np.float16 else _check_float(x)
    return int(bad), float(np.sqrt(squared))


def warm() -> None:
    """Compile every kernel and leave it in the cache, so that no query pays for it."""
    query = np.ones(8, np.float32)
    for dtype in (np.float16, np.float32):
        x, out = np.ones((2, 8), dtype), np.empty(2, np.float32)
        check(x)
        as_float32(x)
        rows_as_float32(x, np.zeros(2, np.int64))
        for metric in Metric:
            distances(metric, x, query, out)
    collect(np.ones(2, np.float32), 0, 1.0, np.empty(2, np.int64), np.empty(2, np.float32), 0)
