"""How far a row may lie from what its code says: what lets a condition rule rows out without comparing them.

A code estimates r.v, r the residual of a row and v a query, from w = T v (T is the coder's `query`). With V an
orthonormal basis of what T sees, and P the pseudo-inverse of Tᵀ, r = Tᵀ z + r', z = P r, and r' is orthogonal to V. A
code says z ~ b s ẑ: s is its scale, ẑ what its bits stand for, b the share that makes the error small. So

    r.v = b s ẑ.w + e.w + r'.v'     e = z - b s ẑ,  v' = v - V Vᵀ v
    |r.v - b s ẑ.w| <= |e| |w| + |r'| |v'|

|e| and |r'| are kept of each row. What must stay true: they are never smaller than they are, whatever float32 rounds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.index.ivf.codes import BLOCK, LEFT, Coder, Words
from clipql.index.ivf.geometry import Floats, Number, Workers
from clipql.storage.vectors.bits import kernel

SMALLEST = 1e-5  # singular values below this share of the largest are none
MARGIN = 1e-4  # relative, for the sums of float32


def share(shape: Floats, word_block: NDArray[np.int32]) -> float:
    """b: the share of a residual that its code keeps, about, by the bits that each block has."""
    bits = np.bincount(word_block, minlength=len(shape))
    return float(1 - (shape * np.array(LEFT)[bits]).sum() / shape.sum())


def spanned(coder: Coder) -> tuple[Floats, Floats]:
    """Vᵀ (k, d) and P (m, d). A rotation sees everything: V is none then, as nothing is outside it."""
    turn = coder.query
    if (coder.word_weight == 1).all():
        return np.empty((0, turn.shape[1]), np.float32), turn
    u, s, v = np.linalg.svd(turn.astype(np.float64), full_matrices=False)
    kept = s > SMALLEST * s[0]
    inverse = (u[:, kept] / s[kept]) @ v[kept]
    return np.asarray(v[kept], np.float32), np.asarray(inverse, np.float32)


class Bounds:
    """Measures |e| and |r'| of rows that a coder has coded."""

    def __init__(self, coder: Coder) -> None:
        self.span, self._inverse = spanned(coder)
        self._block, self._weight = coder.word_block, coder.word_weight
        self._share = share(coder.shape, coder.word_block)

    def of(self, residuals: Floats, codes: Words, scale: Floats, workers: Workers) -> NDArray[np.float16]:
        """|e| and |r'| of residuals (n, d), (n, 2), rounded up."""
        z, out = residuals @ self._inverse.T, np.zeros((len(residuals), 2), np.float32)
        workers.each(
            len(z),
            lambda a, b: _error(z[a:b], codes[a:b], scale[a:b], self._share, self._block, self._weight, out[a:b]),
        )
        square = np.einsum("ij,ij->i", residuals, residuals)
        if len(self.span):
            seen = residuals @ self.span.T
            left = square - np.einsum("ij,ij->i", seen, seen)
            out[:, 1] = np.sqrt(np.maximum(left, 0) + 1e-6 * square)
        out = out * np.float32(1 + MARGIN) + np.sqrt(square)[:, None] * np.float32(1e-6)
        with np.errstate(over="ignore"):
            short = out.astype(np.float16)
        return np.asarray(np.where(short < out, np.nextafter(short, np.float16(np.inf)), short), np.float16)


@kernel
def _error(
    z: Floats, codes: Words, scale: Floats, kept: float, block: NDArray[np.int32], weight: Floats, out: Floats
) -> None:
    said = np.empty(z.shape[1], np.float32)
    for i in range(z.shape[0]):
        _decode(codes[i], block, weight, said)
        total, s = np.float32(0), np.float32(kept) * scale[i]
        for j in range(said.size):
            x = z[i, j] - s * said[j]
            total += x * x
        out[i, 0] = np.sqrt(total)


@kernel
def _decode(code: NDArray[np.uint64], block: NDArray[np.int32], weight: Floats, out: Floats) -> None:
    """What a code stands for, ẑ."""
    out[:] = 0
    for word in range(block.size):
        first = block[word] * BLOCK
        for j in range(BLOCK):
            bit = (code[word] >> np.uint64(j)) & np.uint64(1)
            out[first + j] += weight[word] if bit else -weight[word]


@kernel
def longest(codes: Words, block: NDArray[np.int32], weight: Floats, numbers: int) -> Number:
    """The largest |ẑ| of codes (n, w) of so many numbers each."""
    said, most = np.empty(numbers, np.float32), np.float32(0)
    for i in range(codes.shape[0]):
        _decode(codes[i], block, weight, said)
        total = np.float32(0)
        for j in range(numbers):
            total += said[j] * said[j]
        most = max(most, total)
    return np.float64(np.sqrt(most)) * (1 + MARGIN)


def decoded_query(planes: NDArray[Any], weights: Floats, coder_weight: Floats, block: NDArray[np.int32]) -> Floats:
    """The query that `quantise_query` wrote, (64 b,): what sums over codes are made with, exactly."""
    out = np.zeros((int(block.max()) + 1, BLOCK), np.float32)
    places = np.arange(BLOCK, dtype=np.uint64)
    for word in range(len(block)):
        chunk, lane = word >> 3, word & 7
        bits = [(planes[chunk, p, lane] >> places & np.uint64(1)).astype(np.float32) for p in range(4)]
        level = bits[0] + 2 * bits[1] + 4 * bits[2] - 8 * bits[3]
        out[block[word]] = level * (weights[chunk, lane] / (2 * coder_weight[word]))
    return out.reshape(-1)
