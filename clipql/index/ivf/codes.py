"""The codes: how a residual becomes a few machine words, and a query becomes what those words are compared with.

A residual r = y - centroid is turned into z = r A, a query v into w = v B with A Bᵀ = identity on what is kept, so
that z.w is r.v. Within each block of 64 numbers of z a random rotation has spread the content evenly; a block is
kept at 0 to 4 bits a number, each bit being one word of the code. One bit everywhere and A = B = a random rotation
is RaBitQ (Gao & Long, SIGMOD 2024). Here A, B and the bits are fitted to the column instead, which costs nothing at
search time and as many words:

  * With S the covariance of residuals and M the second moment of queries, the error of a code of z.w grows with
    tr(Aᵀ S A) tr(Bᵀ M B). That is least where both sides have the same spectrum: A = S^-½ V E^¼, B = S^½ V E^-¼,
    where V E Vᵀ = S^½ M S^½. A direction in which every query lies (captions have one) no longer drowns the rest.
  * Directions come in the order of E, and each next word goes to the block where it removes the most error.

The estimate is RaBitQ's: z.w ~ |z|² / <z, ẑ> * ẑ.w, with ẑ what the bits say. What must stay true: the same words,
weights and order of planes are written by `encode` and read by `quantise_query`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clipql.index.ivf.geometry import Floats, Workers
from clipql.storage.vectors.bits import kernel

Words = NDArray[np.uint64]
BLOCK = 64
MOST_BITS = 4
UNIFORM_DIMENSIONS = 512  # beyond it, a uniform random rotation takes longer than all else of a small build
FITTED_DIMENSIONS = 2048  # beyond it, eigenvectors take minutes and the plain rotation is used
# Mean squared error left in a unit Gaussian by the best uniform quantiser of 0 to 4 bits, and that quantiser's step.
LEFT = (1.0, 0.3634, 0.1188, 0.0374, 0.0115)
_STEP = (0.0, 0.7979, 0.4978, 0.2930, 0.1676)


@dataclass(frozen=True)
class Coder:
    """How residuals and queries meet. With b blocks and w words:

    rows: float32 (d, 64 b), A. query: float32 (64 b, d), Bᵀ, one row a number of the query's.
    bits: int32 (b,). step: float32 (b,), half the distance between levels, in units of a residual of norm 1.
    shape: float32 (b,), the share of a residual's squared norm in one number of each block.
    word_block: int32 (w,) and word_weight: float32 (w,): what each word of a code stands for.
    """

    rows: Floats
    query: Floats
    bits: NDArray[np.int32]
    step: Floats
    shape: Floats
    word_block: NDArray[np.int32]
    word_weight: Floats

    @property
    def words(self) -> int:
        return len(self.word_block)

    def encode(self, residuals: Floats, workers: Workers) -> tuple[Words, Floats, Floats]:
        """Codes (n, words), scales (n,) and squared norms |z|² (n,) of residuals (n, d)."""
        z = residuals @ self.rows
        n = len(z)
        codes, scale, norm = np.zeros((n, self.words), np.uint64), np.empty(n, np.float32), np.empty(n, np.float32)
        workers.each(n, lambda a, b: _encode(z[a:b], self.bits, self.step, codes[a:b], scale[a:b], norm[a:b]))
        return codes, scale, norm


def words_for(dimension: int) -> int:
    """Machine words in a code: one for each 64 dimensions begun."""
    return -(-dimension // BLOCK)


def rotation(dimension: int, rng: np.random.Generator) -> Floats:
    """A random orthogonal matrix, uniform over rotations."""
    q, r = np.linalg.qr(rng.standard_normal((dimension, dimension)))
    return np.asarray(q * np.sign(np.diag(r)), np.float32)


def quick_rotation(dimension: int, rng: np.random.Generator) -> Floats:
    """A random orthogonal matrix, float32 (d, d), d a multiple of BLOCK, that spreads any vector evenly over blocks.

    Random signs, a cosine transform in random order, and a uniform rotation in each block. A uniform rotation of all
    numbers takes d³ steps, which at 3,072 numbers is most of an index's build; this takes 64 d² of them.
    """
    signs, order = rng.choice((-1.0, 1.0), (dimension, 1)), rng.permutation(dimension)
    angles = np.arange(4 * dimension) * (np.pi / (2 * dimension))
    cosines = np.cos(angles) * np.sqrt(2 / dimension)
    out = np.empty((dimension, dimension), np.float32)
    at = 2 * np.arange(dimension)[:, None] + 1
    for first in range(0, dimension, BLOCK):
        frequencies = order[first : first + BLOCK]
        part = cosines[at * frequencies % (4 * dimension)]
        part[:, frequencies == 0] = np.sqrt(1 / dimension)
        out[:, first : first + BLOCK] = (signs * part) @ rotation(BLOCK, rng)
    return out


def plain_coder(dimension: int, rng: np.random.Generator) -> Coder:
    """RaBitQ as published: a random rotation (of zero-padded vectors), one bit a dimension."""
    words = words_for(dimension)
    turn = (quick_rotation if words * BLOCK > UNIFORM_DIMENSIONS else rotation)(words * BLOCK, rng)[:dimension]
    ones, weight = np.ones(words, np.int32), np.ones(words, np.float32)
    even = np.full(words, 1 / (words * BLOCK), np.float32)
    return Coder(turn, np.ascontiguousarray(turn.T), ones, weight, even, np.arange(words, dtype=np.int32), weight)


def fitted_coder(residuals: Floats, queries: Floats, rng: np.random.Generator) -> Coder:
    """A coder for these sampled residuals (n, d) and query vectors (m, d); see the top of the file."""
    dimension = residuals.shape[1]
    if dimension > FITTED_DIMENSIONS or dimension <= BLOCK or min(len(residuals), len(queries)) < 4 * dimension:
        return plain_coder(dimension, rng)
    root, inverse = _roots(_moment(residuals))
    energy, v = np.linalg.eigh(root @ _moment(queries) @ root)
    energy, v = np.maximum(energy[::-1], 0), v[:, ::-1]
    if not energy[0] > 0:  # equal rows, or no query
        return plain_coder(dimension, rng)
    energy = np.maximum(energy, energy[0] * 1e-9)
    words = words_for(dimension)
    padded = np.zeros(words * BLOCK)
    padded[:dimension] = energy
    bits = _share_out(padded.reshape(words, BLOCK).sum(1), words)
    kept = int(bits.astype(bool).sum())
    a, b = np.zeros((dimension, kept * BLOCK)), np.zeros((dimension, kept * BLOCK))
    size = min(dimension, kept * BLOCK)
    a[:, :size], b[:, :size] = (inverse @ v * energy**0.25)[:, :size], (root @ v * energy**-0.25)[:, :size]
    for first in range(0, kept * BLOCK, BLOCK):
        turn = rotation(BLOCK, rng)
        a[:, first : first + BLOCK] = a[:, first : first + BLOCK] @ turn
        b[:, first : first + BLOCK] = b[:, first : first + BLOCK] @ turn
    return _with_bits(a.astype(np.float32), np.ascontiguousarray(b.T, np.float32), bits[:kept], residuals)


def _with_bits(a: Floats, query: Floats, bits: NDArray[np.int32], residuals: Floats) -> Coder:
    z = residuals @ a
    z /= np.maximum(np.sqrt((z * z).sum(1, keepdims=True)), 1e-20)
    spread = np.sqrt((z * z).mean(0).reshape(len(bits), BLOCK).mean(1))
    step = (spread * np.array(_STEP)[bits]).astype(np.float32)
    block = np.repeat(np.arange(len(bits), dtype=np.int32), bits)
    level = np.concatenate([np.arange(k) for k in bits])
    shape = np.square(spread).astype(np.float32)
    return Coder(a, query, bits, step, shape, block, (step[block] * 2.0**level).astype(np.float32))


def _moment(x: Floats) -> NDArray[np.float64]:
    return np.asarray(x.T @ x, np.float64) / len(x)


def _roots(s: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """S^½ and S^-½, with the smallest directions lifted a little so that the inverse stays tame."""
    value, v = np.linalg.eigh(s)
    value = np.maximum(value, 0) + 1e-3 * max(float(value.mean()), 1e-30)
    return (v * value**0.5) @ v.T, (v * value**-0.5) @ v.T


def _share_out(energy: NDArray[np.float64], words: int) -> NDArray[np.int32]:
    """Bits of each block: every word to where it takes away the most error. Blocks that get any come first."""
    bits = np.zeros(len(energy), np.int32)
    for _ in range(words):
        gain = [e * (LEFT[k] - LEFT[k + 1]) if k < MOST_BITS else -1.0 for e, k in zip(energy, bits, strict=True)]
        bits[int(np.argmax(gain))] += 1
    return bits


@kernel
def _encode(z: Floats, bits: NDArray[np.int32], step: Floats, codes: Words, scale: Floats, norm: Floats) -> None:
    for i in range(z.shape[0]):
        total = np.float32(0)
        for j in range(z.shape[1]):
            total += z[i, j] * z[i, j]
        norm[i] = total
        scale[i] = 0
        if total <= 0:
            continue
        length = np.sqrt(total)
        agree, word = np.float32(0), 0
        for b in range(bits.size):
            top = (1 << bits[b]) - 1
            unit = step[b] * length
            for j in range(64):
                x = z[i, b * 64 + j]
                level = int(np.floor((x / unit + top) * np.float32(0.5) + np.float32(0.5)))
                level = min(max(level, 0), top)
                if bits[b] == 1:
                    level = 1 if x > 0 else 0
                agree += x * step[b] * np.float32(2 * level - top)
                for k in range(bits[b]):
                    codes[i, word + k] |= np.uint64((level >> k) & 1) << np.uint64(j)
            word += bits[b]
        scale[i] = total / agree if agree > 0 else 0


@kernel
def quantise_query(
    w: Floats, word_block: NDArray[np.int32], word_weight: Floats, planes: Words, weights: Floats, totals: Floats
) -> None:
    """Write a rotated query (64 b,) as 4-bit planes: planes (chunks, 4, 8), weights and totals (chunks, 8).

    The estimate of a code is its scale times sum over words of 2 weight * (dot of bits and levels) - total; the
    factor 2 is in weights, and the sum of totals is subtracted once by the caller. Levels are -7 to 7.
    """
    planes[:] = 0
    weights[:] = 0
    totals[:] = 0
    for word in range(word_block.size):
        first = word_block[word] * 64
        top = np.float32(0)
        for j in range(64):
            top = max(top, abs(w[first + j]))
        if top <= 0:
            continue
        chunk, lane, total, step = word >> 3, word & 7, 0, top / np.float32(7)
        p0, p1, p2, p3 = np.uint64(0), np.uint64(0), np.uint64(0), np.uint64(0)
        for j in range(64):
            level = int(np.floor(w[first + j] / step + np.float32(0.5)))
            total += level
            u, at = np.uint64(level & 15), np.uint64(j)
            p0 |= (u & np.uint64(1)) << at
            p1 |= ((u >> np.uint64(1)) & np.uint64(1)) << at
            p2 |= ((u >> np.uint64(2)) & np.uint64(1)) << at
            p3 |= ((u >> np.uint64(3)) & np.uint64(1)) << at
        planes[chunk, 0, lane], planes[chunk, 1, lane] = p0, p1
        planes[chunk, 2, lane], planes[chunk, 3, lane] = p2, p3
        weights[chunk, lane] = 2 * word_weight[word] * step
        totals[chunk, lane] = word_weight[word] * step * np.float32(total)
