"""What codes say of a query: sums of the ones that eight words of a code share with each of the query's four planes.

Written as LLVM IR, twice. Where the processor counts the ones of a vector of words by one instruction (AVX-512 with
VPOPCNTDQ, NEON), that is used. On other processors of x86 a look-up of half bytes counts them, and planes are put
together before their bytes are added up; both give the same numbers to the bit. Addresses are uint64, and nothing
checks them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from clipql.storage.vectors.bits import features, widest_registers

PLANES = 4
_WORD, _INT32 = ir.IntType(64), ir.IntType(32)
_WORDS = ir.VectorType(_WORD, 8)  # 512 bits
_HALF = ir.VectorType(_WORD, 4)
_BYTES, _SHORTS = ir.VectorType(ir.IntType(8), 32), ir.VectorType(ir.IntType(16), 16)
_FLOATS, _LANES = ir.VectorType(ir.FloatType(), 8), ir.VectorType(_INT32, 8)
_ONES = [value.bit_count() for value in range(16)]  # of a half byte
# What a half byte adds for each plane; the last counts -8, and 32 is added so that no byte is below 0.
_TABLES = [[ones << k for ones in _ONES] for k in range(PLANES - 1)] + [[32 - 8 * ones for ones in _ONES]]
_ADDED = 2 * 8 * 32  # of the 16 half bytes of a word


def _load(b: Any, address: Any, kind: Any, align: int) -> Any:
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = align
    return value


def _at(b: Any, address: Any, offset: int) -> Any:
    return b.add(address, ir.Constant(_WORD, offset))


def _called(b: Any, name: str, result: Any, *given: Any) -> Any:
    return b.call(
        cgutils.get_or_insert_function(b.module, ir.FunctionType(result, [x.type for x in given]), name), given
    )


def _counted(b: Any, codes: list[Any], planes: Any) -> list[Any]:
    """`_sums` by an instruction that counts the ones of words."""
    levels, sums = [_load(b, _at(b, planes, 64 * k), _WORDS, 8) for k in range(PLANES)], []
    for code in codes:
        bits, total = _load(b, code, _WORDS, 8), None
        for k in range(PLANES):
            ones = _called(b, "llvm.ctpop.v8i64", _WORDS, b.and_(bits, levels[k]))
            term = b.shl(ones, ir.Constant(_WORDS, [k] * 8))
            total = term if total is None else (b.sub(total, term) if k == PLANES - 1 else b.add(total, term))
        sums.append(b.sitofp(total, _FLOATS))
    return sums


def _looked_up(b: Any, codes: list[Any], planes: Any) -> list[Any]:
    """`_sums` by look-ups of half bytes, 32 at once."""
    low, nothing = ir.Constant(_BYTES, [15] * 32), ir.Constant(_BYTES, [0] * 32)
    tables = [ir.Constant(_BYTES, table * 2) for table in _TABLES]
    halves: list[list[Any]] = [[] for _ in codes]

    def upper(words: Any) -> Any:
        """The upper halves of bytes, with bits of their neighbours above."""
        return b.bitcast(b.lshr(b.bitcast(words, _SHORTS), ir.Constant(_SHORTS, [4] * 16)), _BYTES)

    for half in (
        0,
        32,
    ):  # bytes; one half of all codes after the other, as the planes of one fill half of the registers
        words = [_load(b, _at(b, planes, 64 * k + half), _HALF, 8) for k in range(PLANES)]
        masks = [(b.and_(b.bitcast(plane, _BYTES), low), b.and_(upper(plane), low)) for plane in words]
        for i, code in enumerate(codes):
            bits, total = _load(b, _at(b, code, half), _HALF, 8), None
            parts = (b.bitcast(bits, _BYTES), upper(bits))
            for table, mask in zip(tables, masks, strict=True):
                for part, kept in zip(parts, mask, strict=True):
                    term = _called(b, "llvm.x86.avx2.pshuf.b", _BYTES, table, b.and_(part, kept))
                    total = term if total is None else b.add(total, term)
            halves[i].append(_called(b, "llvm.x86.avx2.psad.bw", _HALF, total, nothing))
    sums = []
    for first, second in halves:
        lower = ir.Constant(_LANES, [0, 2, 4, 6, 8, 10, 12, 14])  # of each word, whose upper half is 0
        words = b.shuffle_vector(b.bitcast(first, _LANES), b.bitcast(second, _LANES), lower)
        sums.append(b.sitofp(b.sub(words, ir.Constant(_LANES, [_ADDED] * 8)), _FLOATS))
    return sums


def _sums(context: Any, b: Any, codes: list[Any], planes: Any) -> list[Any]:
    """For codes at these addresses, eight float32 each: for each word, sum_k ±2^k popcount(code & plane[k])."""
    has = features()
    look_up = "+avx2" in has and "+avx512vpopcntdq" not in has
    return (_looked_up if look_up else _counted)(b, codes, planes)


@intrinsic
def code_dot(typingctx: Any, code: Any, planes: Any, weights: Any) -> Any:
    """Eight words of code against a 4-bit query.

    The sum over words w of weight[w] * sum_k ±2^k popcount(code[w] & plane[k][w]).

    Arguments are addresses: of 8 uint64 (code), of 4 x 8 uint64 (planes, the last one is the sign of two's
    complement and counts -8), of 8 float32 (weights). Returns float32.
    """
    sig = types.float32(types.uint64, types.uint64, types.uint64)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        (sums,) = _sums(context, b, [args[0]], args[1])
        add_up = cgutils.get_or_insert_function(
            b.module, ir.FunctionType(ir.FloatType(), [ir.FloatType(), _FLOATS]), "llvm.vector.reduce.fadd.v8f32"
        )
        weighted = b.fmul(sums, _load(b, args[2], _FLOATS, 4))
        return b.call(add_up, [ir.Constant(ir.FloatType(), 0.0), weighted], fastmath=("reassoc", "contract", "nsz"))

    return sig, codegen


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

        def all_of(value: Any) -> Any:
            first = b.insert_element(ir.Constant(_FLOATS, ir.Undefined), value, ir.Constant(_INT32, 0))
            return b.shuffle_vector(first, first, ir.Constant(_LANES, [0] * 8))

        def picked(x: Any, y: Any, lanes: list[int]) -> Any:
            return b.shuffle_vector(x, y, ir.Constant(_LANES, lanes))

        weight = _load(b, weights, _FLOATS, 4)
        sums = [b.fmul(s, weight) for s in _sums(context, b, [_at(b, code, 64 * i) for i in range(8)], planes)]
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
        return b.zext(b.bitcast(above, ir.IntType(8)), _WORD)

    return sig, codegen
