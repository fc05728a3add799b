"""The loops over codes: rows are coded, and codes are multiplied by a query, in integers.

A code is some words of 64 bytes. A *field* is the same few bits (8, 4, 2 or 1) of all 64 bytes of a word: the levels of
64 numbers of a row. So one shift and one mask unpack 64 numbers as bytes. A query is int16. Where the processor
multiplies bytes and adds the products up in one instruction (VNNI), it is split into high and low bytes; elsewhere
levels are widened, and multiplied and added up in pairs (AVX-512, AVX2, SSE2).

What must stay true: the sum over a row is exact, as the query is scaled so that no sum leaves int32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import int64, types, uint64
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from clipql.storage.vectors.bits import kernel, prefetch

LANES = 64  # bytes of a word
HIGH = 128  # a query's number is HIGH times its high byte and its low one
TOGETHER = 8  # rows that are multiplied at once, so that a query is unpacked once for them
AHEAD_BYTES = 4096  # of codes that are fetched meanwhile
_SHORT, _INT, _LONG = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_BYTES, _SHORTS, _INTS = ir.VectorType(ir.IntType(8), 64), ir.VectorType(_SHORT, 32), ir.VectorType(_INT, 16)


def _load(builder: Any, address: Any, kind: Any, align: int) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = align
    return value


def _has(context: Any, feature: str) -> bool:
    """Whether the processor that is compiled for has something."""
    return f"+{feature}" in context.codegen().magic_tuple()[2].split(",")


@intrinsic
def multiplies_bytes(typingctx: Any) -> Any:
    """Whether there is an instruction that multiplies and adds up bytes, and queries are split into those."""
    sig = types.boolean()

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.IntType(1), int(_has(context, "avx512vnni")))

    return sig, codegen


def _added_bytes(b: Any, total: Any, levels: Any, asked: Any) -> Any:
    """16 int32 and, added to each, four products of an unsigned byte and a signed one."""
    kind = ir.FunctionType(_INTS, [_INTS, _INTS, _INTS])
    multiply = cgutils.get_or_insert_function(b.module, kind, "llvm.x86.avx512.vpdpbusd.512")
    return b.call(multiply, [total, b.bitcast(levels, _INTS), b.bitcast(asked, _INTS)])


def _added_shorts(context: Any, b: Any, total: Any, x: Any, y: Any) -> Any:
    """16 int32 and, added to each, two products of int16."""
    for feature, name, lanes in (
        ("avx512bw", "avx512.pmaddw.d.512", 32),
        ("avx2", "avx2.pmadd.wd", 16),
        ("sse2", "sse2.pmadd.wd", 8),
    ):
        if _has(context, feature):
            part, sums = ir.VectorType(_SHORT, lanes), ir.VectorType(_INT, lanes // 2)
            kind = ir.FunctionType(sums, [part, part])
            multiply = cgutils.get_or_insert_function(b.module, kind, f"llvm.x86.{name}")
            pieces = [
                b.call(multiply, [_part(b, x, first, lanes), _part(b, y, first, lanes)])
                for first in range(0, 32, lanes)
            ]
            while len(pieces) > 1:
                pieces = [_both(b, *pieces[i : i + 2]) for i in range(0, len(pieces), 2)]
            return b.add(total, pieces[0])
    wide = ir.VectorType(_INT, 32)
    product = b.mul(b.sext(x, wide), b.sext(y, wide))
    return b.add(total, b.add(_part(b, product, 0, 16), _part(b, product, 16, 16)))


def _part(b: Any, vector: Any, first: int, lanes: int) -> Any:
    chosen = ir.Constant(ir.VectorType(_INT, lanes), list(range(first, first + lanes)))
    return b.shuffle_vector(vector, ir.Constant(vector.type, ir.Undefined), chosen)


def _both(b: Any, one: Any, other: Any) -> Any:
    lanes = 2 * one.type.count
    return b.shuffle_vector(one, other, ir.Constant(ir.VectorType(_INT, lanes), list(range(lanes))))


@intrinsic
def fields_dot(typingctx: Any, code: Any, stride: Any, query: Any, layout: Any, fields: Any, out: Any) -> Any:
    """The sums of `TOGETHER` rows' levels times a query, as int32.

    Addresses: of the first row's words (`stride` bytes from one row to the next); of fields x 128 bytes of a query, as
    `arranged` gives them; of three int16 a field: the byte in the row where its word begins, the first of its bits in a
    byte, and their mask, in both bytes; of room for the sums.
    """
    sig = types.void(types.uint64, types.uint64, types.uint64, types.uint64, types.int64, types.uint64)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        code, stride, query, layout, count, out = args
        by_bytes = _has(context, "avx512vnni")
        none = ir.Constant(_INTS, [0] * 16)
        totals = [[cgutils.alloca_once_value(b, none) for _ in range(2)] for _ in range(TOGETHER)]
        rows = [b.add(code, b.mul(stride, _LONG(r))) for r in range(TOGETHER)]

        def splat(value: Any) -> Any:
            undefined = ir.Constant(_SHORTS, ir.Undefined)
            one = b.insert_element(undefined, value, _INT(0))
            return b.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(_INT, 32), [0] * 32))

        with cgutils.for_range(b, count) as loop:
            at = b.add(layout, b.mul(loop.index, _LONG(6)))
            start = b.zext(_load(b, at, _SHORT, 2), _LONG)
            shift = splat(_load(b, b.add(at, _LONG(2)), _SHORT, 2))
            mask = splat(_load(b, b.add(at, _LONG(4)), _SHORT, 2))
            place = b.add(query, b.mul(loop.index, _LONG(2 * LANES)))
            asked = [_load(b, b.add(place, _LONG(LANES * half)), _SHORTS, 1) for half in range(2)]
            for row, both in zip(rows, totals, strict=True):
                levels = b.and_(b.lshr(_load(b, b.add(row, start), _SHORTS, 1), shift), mask)
                if by_bytes:
                    for half, total in enumerate(both):
                        b.store(_added_bytes(b, b.load(total), levels, asked[half]), total)
                    continue
                even = b.and_(levels, ir.Constant(_SHORTS, [255] * 32))
                odd = b.lshr(levels, ir.Constant(_SHORTS, [8] * 32))
                total = _added_shorts(context, b, b.load(both[0]), even, asked[0])
                b.store(_added_shorts(context, b, total, odd, asked[1]), both[0])
        kind = ir.FunctionType(_INT, [_INTS])
        add_up = cgutils.get_or_insert_function(b.module, kind, "llvm.vector.reduce.add.v16i32")
        for r, (high, low) in enumerate(totals):
            place = b.inttoptr(b.add(out, _LONG(4 * r)), _INT.as_pointer())
            whole = b.load(high)
            if by_bytes:
                whole = b.add(b.mul(whole, ir.Constant(_INTS, [HIGH] * 16)), b.load(low))
            b.store(b.call(add_up, [whole]), place).align = 4
        return context.get_dummy_value()

    return sig, codegen


@kernel
def arranged(query: NDArray[np.int16], out: NDArray[np.uint8]) -> None:
    """A query, int16 (fields, 64), as the processor multiplies it: its high and low bytes, or every other number.

    out: uint8 (fields, 128).
    """
    for f in range(query.shape[0]):
        for j in range(LANES):
            q = int64(query[f, j])
            if multiplies_bytes():
                high = (q + HIGH // 2) // HIGH
                out[f, j], out[f, LANES + j] = np.uint8(high & 255), np.uint8((q - HIGH * high) & 255)
            else:
                at = (j & 1) * LANES + (j >> 1) * 2
                out[f, at], out[f, at + 1] = np.uint8(q & 255), np.uint8((q >> 8) & 255)


@kernel
def lowest(
    codes: NDArray[np.uint8],
    residual: NDArray[np.float32],
    norm: NDArray[np.float32],
    among: NDArray[np.bool_],
    query: NDArray[np.uint8],
    layout: NDArray[np.int16],
    form: NDArray[np.float64],
    limit: float,
    rows: NDArray[np.int64],
    keys: NDArray[np.float64],
) -> int:
    """Write the rows whose key may be at most `limit`, and the least that it may be; returns how many.

    codes: uint8 (n, bytes), residual and norm: (n,); norm is empty where the key does not depend on it. among: bool
    (n,) or empty. query: as `arranged`. form: see `search.Asked`. rows, keys: room for n.
    """
    base, slope, slack, square, rounded, constant = form[0], form[1], form[2], form[3], form[4], form[5]
    address, size, total = uint64(codes.ctypes.data), uint64(codes.shape[1]), codes.shape[0]
    q, f, fields = uint64(query.ctypes.data), uint64(layout.ctypes.data), int64(layout.shape[0])
    n, filtered, scaled = 0, among.size > 0, norm.size > 0
    sums = np.empty(TOGETHER, np.int32)
    room = uint64(sums.ctypes.data)
    last = np.zeros(TOGETHER * codes.shape[1], np.uint8)
    for i in range(0, total, TOGETHER):
        count = min(TOGETHER, total - i)
        if filtered:
            wanted = False
            for r in range(count):
                wanted |= among[i + r]
            if not wanted:
                continue
        for line in range(0, TOGETHER * codes.shape[1], 64):
            prefetch(address + uint64(i) * size + uint64(AHEAD_BYTES + line))
        if count == TOGETHER:
            fields_dot(address + uint64(i) * size, size, q, f, fields, room)
        else:  # nothing may be read behind the codes
            for r in range(count):
                for j in range(codes.shape[1]):
                    last[r * codes.shape[1] + j] = codes[i + r, j]
            fields_dot(uint64(last.ctypes.data), size, q, f, fields, room)
        for r in range(count):
            score = constant + slope * sums[r]
            if scaled:
                x = np.float64(norm[i + r])
                key = base + x * (square * x + score - slack * residual[i + r]) - rounded * x * x
            else:
                key = base + score - slack * residual[i + r]
            if key <= limit and (not filtered or among[i + r]):
                rows[n] = i + r
                keys[n] = key
                n += 1
    return n


@kernel
def encode(
    turned: NDArray[np.float32],
    step: NDArray[np.float64],
    half: NDArray[np.float64],
    layout: NDArray[np.int16],
    codes: NDArray[np.uint8],
    off: NDArray[np.float64],
) -> None:
    """Code rows (n, 64 groups), and measure by how much the codes are off, float64 (n,): the length of the difference.

    A number z is coded as the level l = floor(z / step) + half, kept within 0 and 2 half - 1, which stands for
    (l - half + 1/2) step. codes: zeros (n, 64 words); step of 0: a number that is not coded.
    """
    for i in range(turned.shape[0]):
        total = 0.0
        for g in range(layout.shape[0]):
            word, shift = int64(layout[g, 0]), int64(layout[g, 1])
            for lane in range(LANES):
                j = g * LANES + lane
                z = np.float64(turned[i, j])
                level = min(max(np.floor(z / step[j]) + half[j], 0.0), 2 * half[j] - 1)
                d = z - (level - half[j] + 0.5) * step[j]
                total += d * d
                codes[i, word + lane] |= np.uint8(int64(level) << shift)
        for j in range(layout.shape[0] * LANES, turned.shape[1]):
            total += np.float64(turned[i, j]) * np.float64(turned[i, j])
        off[i] = np.sqrt(total)


def warm() -> None:
    """Compile all, for arrays as they are mapped, and leave it in the cache."""
    codes, lengths = np.zeros((2, LANES), np.uint8), np.ones(2, np.float32)
    layout, query = np.array([[0, 0, 0x0F0F]], np.int16), np.zeros((1, 2 * LANES), np.uint8)
    arranged(np.zeros((1, LANES), np.int16), query)
    encode(np.zeros((2, LANES), np.float32), np.ones(LANES), np.full(LANES, 8.0), layout, codes, np.empty(2))
    among = np.ones(2, np.bool_)
    for array in (codes, lengths, among):
        array.setflags(write=False)
    lowest(codes, lengths, lengths, among, query, layout, np.ones(6), 0.0, np.empty(2, np.int64), np.empty(2))
