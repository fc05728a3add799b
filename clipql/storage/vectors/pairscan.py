"""Which rows of two sides have a product that reaches a limit: in tiles of a few rows by sixteen others whose sums stay
in registers, so that no score of a pair is ever written to memory.

Each row may have two forms, a short one and a longer one: the longer ones are multiplied only where the product of the
short ones reaches the limit. What must stay true: a pair is found where its float32 products reach the limit, in
whatever order they are added up; NaN never does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types, uint64
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from clipql.storage.vectors.bits import first_bit, kernel, widest_registers

# rows and columns of a tile: six by sixteen sums take twelve of the sixteen registers of AVX2, and leave four for what
# they are made of
TALL, WIDE = 6, 16
# rows that are compared with all columns before the next ones, so that they stay in the cache, and their bytes, about
_BLOCK, _BLOCK_BYTES = 85 * TALL, 1 << 20
Floats = NDArray[np.float32]
Places = NDArray[np.int64]
_LANES = ir.VectorType(ir.FloatType(), WIDE)


class Rows(NamedTuple):
    """The rows of one side, n of them. first: float32 (TALL * t, k), NaN after the last; second: float32 (n, m), m a
    multiple of WIDE: what is looked at where `first` reaches the limit, or (0, 0) for nothing.
    """

    first: Floats
    second: Floats


class Columns(NamedTuple):
    """The rows of the other side, n of them. first: float32 (p, k, WIDE), sixteen rows side by side, with NaN after the
    last; second: float32 (n, m), or (0, 0).
    """

    first: Floats
    second: Floats


class State(NamedTuple):
    """Where a scan goes on: the first row of a block, the panel, and the row of its next tile; and how many pairs it
    has written.
    """

    block: int
    panel: int
    row: int
    found: int


BEGIN = State(0, 0, 0, 0)


def side_by_side(rows: Floats) -> Floats:
    """Rows, float32 (n, k), as `Columns.first` has them."""
    n, k = rows.shape
    out, whole = np.empty((-(-n // WIDE), k, WIDE), np.float32), n // WIDE
    out[:whole] = rows[: whole * WIDE].reshape(whole, WIDE, k).transpose(0, 2, 1)
    if whole < len(out):
        out[whole] = np.nan
        out[whole, :, : n - whole * WIDE] = rows[whole * WIDE :].T
    return out


def padded(rows: Floats) -> Floats:
    """Rows, float32 (n, k), as `Rows.first` has them."""
    out = np.full((-(-len(rows) // TALL) * TALL, rows.shape[1]), np.nan, np.float32)
    out[: len(rows)] = rows
    return out


@intrinsic
def _reaching(typingctx: Any, rows: Any, panel: Any, k: Any, limit: Any) -> Any:
    """Which of the sums over j < k of rows[i][j] * panel[j] are at least a limit.

    rows, panel: addresses of TALL x k and of k x WIDE float32. Returns two int64: bit 16 i + c is set for row i and
    column c, of the first four rows and of the last two.
    """
    sig = types.UniTuple(types.int64, 2)(types.uint64, types.uint64, types.int64, types.float32)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        widest_registers(b)
        rows, panel, k, limit = args
        word, lane = ir.IntType(64), ir.IntType(32)

        def all_of(value: Any) -> Any:
            first = b.insert_element(ir.Constant(_LANES, ir.Undefined), value, ir.Constant(lane, 0))
            return b.shuffle_vector(first, first, ir.Constant(ir.VectorType(lane, WIDE), [0] * WIDE))

        sums = [cgutils.alloca_once_value(b, ir.Constant(_LANES, [0.0] * WIDE)) for _ in range(TALL)]
        step = b.mul(k, ir.Constant(word, 4))
        starts = [b.add(rows, b.mul(step, ir.Constant(word, i))) for i in range(TALL)]
        with cgutils.for_range(b, k) as loop:
            at = b.mul(loop.index, ir.Constant(word, 4))
            place = b.inttoptr(b.add(panel, b.mul(at, ir.Constant(word, WIDE))), _LANES.as_pointer())
            column = b.load(place)
            column.align = 4
            for start, total in zip(starts, sums, strict=True):
                number = b.load(b.inttoptr(b.add(start, at), ir.FloatType().as_pointer()))
                number.align = 4
                product = b.fmul(all_of(number), column, flags=("contract",))
                b.store(b.fadd(b.load(total), product, flags=("contract",)), total)
        least, masks = all_of(limit), []
        for total in sums:
            reached = b.fcmp_ordered(">=", b.load(total), least)
            masks.append(b.zext(b.bitcast(reached, ir.IntType(WIDE)), word))
        halves = []
        for some in (masks[:4], masks[4:]):
            whole = some[0]
            for i, mask in enumerate(some[1:], 1):
                whole = b.or_(whole, b.shl(mask, ir.Constant(word, WIDE * i)))
            halves.append(whole)
        return context.make_tuple(b, signature.return_type, halves)

    return sig, codegen


@intrinsic
def _product(typingctx: Any, x: Any, y: Any, k: Any) -> Any:
    """The product of two rows. x, y: addresses of k float32, k a multiple of WIDE."""
    sig = types.float32(types.uint64, types.uint64, types.int64)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        widest_registers(b)
        x, y, k = args
        word = ir.IntType(64)
        total = cgutils.alloca_once_value(b, ir.Constant(_LANES, [0.0] * WIDE))
        with cgutils.for_range(b, b.udiv(k, ir.Constant(word, WIDE))) as loop:
            at = b.mul(loop.index, ir.Constant(word, 4 * WIDE))
            some = [b.load(b.inttoptr(b.add(start, at), _LANES.as_pointer())) for start in (x, y)]
            for one in some:
                one.align = 4
            product = b.fmul(*some, flags=("contract",))
            b.store(b.fadd(b.load(total), product, flags=("contract",)), total)
        kind = ir.FunctionType(ir.FloatType(), [ir.FloatType(), _LANES])
        add_up = cgutils.get_or_insert_function(b.module, kind, f"llvm.vector.reduce.fadd.v{WIDE}f32")
        return b.call(add_up, [ir.Constant(ir.FloatType(), 0.0), b.load(total)], fastmath=("reassoc",))

    return sig, codegen


@kernel
def scan(rows: Rows, columns: Columns, limit: np.float32, state: State, i: Places, j: Places) -> State:
    """The places of the pairs that reach the limit, into i and j, from a state on, `BEGIN` first.

    It ends where there is no room for all of a tile; all is done where the state's block is the number of rows, those
    of NaN among them. `second` is of the real rows alone: the others never reach it.
    """
    n, k, more = 0, rows.first.shape[1], rows.second.shape[1]
    step, further = uint64(4 * k), uint64(4 * more)
    start, packed = uint64(rows.first.ctypes.data), uint64(columns.first.ctypes.data)
    x, y = uint64(rows.second.ctypes.data), uint64(columns.second.ctypes.data)
    block, panel, row = state.block, state.panel, state.row
    together = min(_BLOCK, max(1, _BLOCK_BYTES // (4 * k) // TALL) * TALL)
    while block < rows.first.shape[0]:
        end = min(block + together, rows.first.shape[0])
        while panel < columns.first.shape[0]:
            here = packed + uint64(panel * WIDE) * step
            while row < end:
                if n + TALL * WIDE > i.size:
                    return State(block, panel, row, n)
                halves = _reaching(start + uint64(row) * step, here, k, np.float32(limit))
                for half in range(2):
                    bits = halves[half]
                    while bits:
                        bit = first_bit(bits)
                        bits &= bits - 1
                        a, c = row + 4 * half + (bit >> 4), panel * WIDE + (bit & 15)
                        if more and not _product(x + uint64(a) * further, y + uint64(c) * further, more) >= limit:
                            continue
                        i[n], j[n] = a, c
                        n += 1
                row += TALL
            panel, row = panel + 1, block
        block, panel, row = end, 0, end
    return State(block, panel, row, n)


def warm() -> None:
    """Compile the scan."""
    rows = np.ones((TALL, WIDE), np.float32)
    places = np.empty((2, TALL * WIDE), np.int64)
    scan(Rows(rows, rows), Columns(side_by_side(rows), rows), np.float32(1), BEGIN, *places)
