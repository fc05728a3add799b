"""A few instructions that Numba has no words for: counts of ones, half floats, raw addresses.

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
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numpy.typing import NDArray

from clipql.storage.vectors.compiled import compiled

_Function = TypeVar("_Function", bound=Callable[..., Any])
PAGE = mmap.PAGESIZE
LANES = 16  # float32 in a vector of 512 bits
_LIBERTIES = frozenset({"reassoc", "contract", "arcp", "nsz"})


def kernel(function: _Function) -> _Function:
    """Compile a loop with Numba: without the GIL, cached, with NaN intact."""
    return compiled(function, fastmath=set(_LIBERTIES), error_model="numpy")


def features() -> frozenset[str]:
    """What the processor that loops are compiled for can do, as LLVM names it: '+avx2' and the like."""
    return frozenset(cpu_target.target_context.codegen()._tm_features.split(","))


def widest_registers(builder: Any) -> None:
    """Let the function that is being written use registers of 512 bits, which LLVM would rather not on processors of
    Intel's: there a code would take two steps instead of one. It means nothing where there are no such registers.
    """
    set.add(builder.function.attributes, '"min-legal-vector-width"="512"')


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
def above(typingctx: Any, address: Any, floor: Any) -> Any:
    """Which of the LANES float32 at this address are more than a float32: int64, bit i for the i-th."""
    sig = types.int64(types.uint64, types.float32)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        widest_registers(b)
        some, number = ir.VectorType(ir.FloatType(), LANES), ir.IntType(32)
        values = b.load(b.inttoptr(args[0], some.as_pointer()))
        values.align = 4
        first = b.insert_element(ir.Constant(some, ir.Undefined), args[1], ir.Constant(number, 0))
        floors = b.shuffle_vector(first, first, ir.Constant(ir.VectorType(number, LANES), [0] * LANES))
        return b.zext(b.bitcast(b.fcmp_ordered(">", values, floors), ir.IntType(LANES)), ir.IntType(64))

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
