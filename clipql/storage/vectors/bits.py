"""A few instructions that Numba has no words for: popcounts over vectors of words, half floats, raw addresses.

Everything here is plain LLVM IR, so it compiles to AVX-512, AVX2 or NEON as the host allows. Addresses are uint64;
the caller keeps the memory alive and in bounds, nothing here checks.

`kernel` is the one way clipql compiles a hot loop: no GIL, cached on disk, and only those fast-math liberties that
leave NaN and infinity alone (`nnan` and `ninf` would let the compiler assume a zero norm away).
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from clipql.storage.vectors.compiled import compiled

_Function = TypeVar("_Function", bound=Callable[..., Any])
PAGE = mmap.PAGESIZE
_LIBERTIES = frozenset({"reassoc", "contract", "arcp", "nsz"})
_WORDS = ir.VectorType(ir.IntType(64), 8)  # 512 bits
_FLOATS = ir.VectorType(ir.FloatType(), 8)


def kernel(function: _Function) -> _Function:
    """Compile a loop with Numba: without the GIL, cached, with NaN intact."""
    return compiled(function, fastmath=set(_LIBERTIES), error_model="numpy")


def _load(builder: Any, address: Any, kind: Any, align: int) -> Any:
    value = builder.load(builder.inttoptr(address, kind.as_pointer()))
    value.align = align
    return value


@intrinsic
def code_dot(typingctx: Any, code: Any, planes: Any, weights: Any) -> Any:
    """Eight words of code against a 4-bit query.

    The sum over words w of weight[w] * sum_k ±2^k popcount(code[w] & plane[k][w]).

    Arguments are addresses: of 8 uint64 (code), of 4 x 8 uint64 (planes, the last one is the sign of two's
    complement and counts -8), of 8 float32 (weights). Returns float32.
    """
    sig = types.float32(types.uint64, types.uint64, types.uint64)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        popcount = cgutils.get_or_insert_function(b.module, ir.FunctionType(_WORDS, [_WORDS]), "llvm.ctpop.v8i64")
        add_up = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(ir.FloatType(), [ir.FloatType(), _FLOATS]), "llvm.vector.reduce.fadd.v8f32"
        )
        bits, total = _load(b, args[0], _WORDS, 8), None
        for k in range(4):
            plane = _load(b, b.add(args[1], ir.Constant(ir.IntType(64), 64 * k)), _WORDS, 8)
            term = b.shl(b.call(popcount, [b.and_(bits, plane)]), ir.Constant(_WORDS, [k] * 8))
            total = term if total is None else (b.sub(total, term) if k == 3 else b.add(total, term))
        weighted = b.fmul(b.sitofp(total, _FLOATS), _load(b, args[2], _FLOATS, 4))
        return b.call(add_up, [ir.Constant(ir.FloatType(), 0.0), weighted], fastmath=("reassoc", "contract", "nsz"))

    return sig, codegen


def widest_registers(builder: Any) -> None:
    """Let the function that is being written use registers of 512 bits, which LLVM would rather not on processors of
    Intel's: there a code would take two steps instead of one. It means nothing where there are no such registers.
    """
    set.add(builder.function.attributes, '"min-legal-vector-width"="512"')


@intrinsic
def code_estimates(
    typingctx: Any,
    code: Any,
    planes: Any,
    weights: Any,
    scale: Any,
    bias: Any,
    spread: Any,
    start: Any,
    total: Any,
    reach: Any,
    floor: Any,
    out: Any,
) -> Any:
    """What eight codes, which follow each other, say of their rows: start + scale * (`code_dot` - total) + bias
    + reach * spread.

    code, planes, weights: addresses as `code_dot` takes them. scale, bias, spread: addresses of eight float32 each.
    start, total, reach, floor: float32. out: address of eight float32, written. Returns int64: bit i is set where the
    i-th is more than floor.
    """
    number, address = types.float32, types.uint64
    sig = types.int64(*[address] * 6, *[number] * 4, address)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        widest_registers(b)
        code, planes, weights, scale, bias, spread, start, total, reach, floor, out = args
        word, lane = ir.IntType(64), ir.IntType(32)
        popcount = cgutils.get_or_insert_function(b.module, ir.FunctionType(_WORDS, [_WORDS]), "llvm.ctpop.v8i64")

        def at(address: Any, offset: int) -> Any:
            return b.add(address, ir.Constant(word, offset))

        def all_of(value: Any) -> Any:
            first = b.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, ir.Constant(lane, 0))
            return b.shuffle_vector(first, first, ir.Constant(ir.VectorType(lane, 8), [0] * 8))

        def picked(x: Any, y: Any, lanes: list[int]) -> Any:
            return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(lane, 8), lanes))

        levels = [_load(b, at(planes, 64 * k), _WORDS, 8) for k in range(4)]
        weight, sums = _load(b, weights, _FLOATS, 4), []
        for i in range(8):
            bits, summed = _load(b, at(code, 64 * i), _WORDS, 8), None
            for k in range(4):
                term = b.shl(b.call(popcount, [b.and_(bits, levels[k])]), ir.Constant(_WORDS, [k] * 8))
                summed = term if summed is None else (b.sub(summed, term) if k == 3 else b.add(summed, term))
            sums.append(b.fmul(b.sitofp(summed, _FLOATS), weight))
        # each step adds neighbours up and puts two vectors into one, until lane i holds the sum of the i-th
        for low, high in (
            ([0, 8, 2, 10, 4, 12, 6, 14], [1, 9, 3, 11, 5, 13, 7, 15]),
            ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
            ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
        ):
            pairs = zip(sums[::2], sums[1::2], strict=True)
            sums = [b.fadd(picked(x, y, low), picked(x, y, high)) for x, y in pairs]
        estimate = b.fmul(_load(b, scale, _FLOATS, 4), b.fsub(sums[0], all_of(total)))
        estimate = b.fadd(b.fadd(estimate, all_of(start)), _load(b, bias, _FLOATS, 4))
        estimate = b.fadd(estimate, b.fmul(_load(b, spread, _FLOATS, 4), all_of(reach)))
        store = b.store(estimate, b.inttoptr(out, _FLOATS.as_pointer()))
        store.align = 4
        above = b.fcmp_ordered(">", estimate, all_of(floor))
        return b.zext(b.bitcast(above, ir.IntType(8)), word)

    return sig, codegen


@intrinsic
def first_bit(typingctx: Any, word: Any) -> Any:
    """Number of zeros below the lowest one of an int64, which has one."""
    sig = types.int64(types.int64)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(64), [ir.IntType(64), ir.IntType(1)])
        count = cgutils.get_or_insert_function(b.module, kind, "llvm.cttz.i64")
        return b.call(count, [args[0], ir.Constant(ir.IntType(1), 1)])

    return sig, codegen


@intrinsic
def popcount(typingctx: Any, word: Any) -> Any:
    """Number of ones in a uint64, as int64."""
    sig = types.int64(types.uint64)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        word_type = ir.IntType(64)
        count = cgutils.get_or_insert_function(b.module, ir.FunctionType(word_type, [word_type]), "llvm.ctpop.i64")
        return b.call(count, [args[0]])

    return sig, codegen


@intrinsic
def half_to_float(typingctx: Any, bits: Any) -> Any:
    """The float32 whose float16 has these bits (a uint16)."""
    sig = types.float32(types.uint16)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.fpext(b.bitcast(args[0], ir.HalfType()), ir.FloatType())

    return sig, codegen


@intrinsic
def bfloat16_to_float(typingctx: Any, bits: Any) -> Any:
    """The float32 whose upper half are these bits (a uint16), a bfloat16."""
    sig = types.float32(types.uint16)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        whole = ir.IntType(32)
        return b.bitcast(b.shl(b.zext(args[0], whole), ir.Constant(whole, 16)), ir.FloatType())

    return sig, codegen


def as_bfloat16(numbers: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Finite float32 as bfloat16, rounded to the nearest, as uint16 of the same shape."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return np.asarray((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> np.uint32(16), np.uint16)


@intrinsic
def cycles(typingctx: Any) -> Any:
    """The processor's counter of cycles, as int64; 0 where it has none that programs may read."""
    sig = types.int64()

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.IntType(64), [])
        return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.readcyclecounter"), [])

    return sig, codegen


@intrinsic
def pointer(typingctx: Any, address: Any) -> Any:
    """An address as the pointer that `numba.carray` takes."""
    sig = types.voidptr(types.uint64)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.inttoptr(args[0], cgutils.voidptr_t)

    return sig, codegen


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at this address, for the second level of the cache, which waits for more lines at once
    than the first does; never faults.
    """
    sig = types.void(types.uint64)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(32)
        fetch = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, word, word, word]), "llvm.prefetch.p0"
        )
        b.call(fetch, [b.inttoptr(args[0], cgutils.voidptr_t), word(0), word(2), word(1)])
        return context.get_dummy_value()

    return sig, codegen


@intrinsic
def will_need(typingctx: Any, address: Any, size: Any) -> Any:
    """Have the operating system read these bytes of a mapped file meanwhile; does not wait, and never faults.

    Where many are asked for before the first is looked at, the disk reads them side by side.
    """
    sig = types.void(types.uint64, types.uint64)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        word, int32 = ir.IntType(64), ir.IntType(32)
        kind = ir.FunctionType(int32, [cgutils.voidptr_t, word, int32])
        advise = cgutils.get_or_insert_function(b.module, kind, "madvise")
        page = b.and_(args[0], ir.Constant(word, -PAGE))
        length = b.add(args[1], b.sub(args[0], page))
        b.call(advise, [b.inttoptr(page, cgutils.voidptr_t), length, ir.Constant(int32, mmap.MADV_WILLNEED)])
        return context.get_dummy_value()

    return sig, codegen


@kernel
def ask_disk(address: np.uint64, rows: NDArray[np.int64], stride: int, size: int) -> None:
    """`will_need` of `size` bytes at each of these rows of a mapped array that begins at an address."""
    for i in range(rows.size):
        will_need(address + np.uint64(rows[i] * stride), np.uint64(size))


def ask_whole(array: NDArray[Any]) -> None:
    """`will_need` of all of a mapped array."""
    ask_disk(np.uint64(array.ctypes.data), np.zeros(1, np.int64), 0, array.nbytes)
