"""What a code stands for, and how far a score may be from what its code says.

A row x of length n is coded by its direction: x = n (m + y), m the mean direction, and y is turned by R into the axes
in which rows differ most, first those. There z = R y is coded to ẑ, in steps that fit each axis; axes in which rows
differ more have more bits. For a query q, with q' = R q:

    q.x / n = q.m + q.y,   |q.y - q'.ẑ| <= |q'| |z - ẑ| + |q| |y| ‖I - RᵀR‖

What must stay true: the residual that is kept of a row is no smaller than what all of this may be off, whatever is
rounded:

- R is float32, so RᵀR is not quite I: the Frobenius norm of the difference, in float64, bounds its norm (`skew`);
- z is a product in float32. A sum of d products, added up in whatever order, is off by at most γ |R_j| |y| by Cauchy
  and Schwarz, with γ = d u / (1 - d u), u = 2⁻²⁴ (Higham, Accuracy and Stability, 3.1), so z by at most γ ‖R‖_F |y|;
- x / n and the difference to m are each rounded once a number: by u |x| / n and u (|y| + what that is off) in length;
- |z - ẑ| is a sum of squares in float64, which `SLACK` covers, as it does n, rounded to float32, where n² stands for
  |x|².
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.index.bounded import kernels
from clipql.index.bounded.kernels import LANES

UNIT = 2.0**-24  # what rounding to float32 may change, relative
SLACK = 1e-6
# lengths between these have squares and products that float32 holds; rows of others are never ruled out
SHORTEST, LONGEST = 1e-15, 1e15
# bits: the step in standard deviations that makes the error of a normal variable least, or has room for its tails; that
# error, in shares of the variance (J. Max, Quantizing for minimum distortion, 1960)
STEPS = {1: 1.596, 2: 0.996, 4: 0.335, 8: 0.045}
ERRORS = {0: 1.0, 1: 0.363, 2: 0.119, 4: 0.0115, 8: 0.00017}
_NEXT = {0: 1, 1: 2, 2: 4, 4: 8}
SAMPLED, TRIED = 1 << 14, 1 << 13  # rows that axes are learnt from; that a choice of bits is tried with
QUERIES = 32  # synthetic queries that a choice of bits is tried with
NEAREST = 1 / 2048  # of the rows tried, so many are the nearest: measured, as far from the rest as ten of a million
# a row that is picked out takes as long as so many bytes in a row, and as so many times its own
PICKED, COMPARED = 3_000, 4


@dataclass(frozen=True)
class Coder:
    """mean: float32 (d,). turn: float32 (64 groups, d), R, and rows of zeros. skew: ‖I - RᵀR‖. bits: of each group of
    64 axes, uint8, descending, those without left out. step: float64 (64 fields,), of each axis.
    """

    mean: NDArray[np.float32]
    turn: NDArray[np.float32]
    skew: float
    bits: NDArray[np.uint8]
    step: NDArray[np.float64]

    @property
    def layout(self) -> NDArray[np.int16]:
        """Where each field lies: see `kernels.fields_dot`."""
        at = np.concatenate([[0], np.cumsum(self.bits.astype(np.int64))[:-1]])
        masks = ((1 << self.bits.astype(np.int64)) - 1) * 0x0101
        return np.stack([at // 8 * LANES, at % 8, masks], 1).astype(np.uint16).view(np.int16)

    @property
    def half(self) -> NDArray[np.float64]:
        """Half of the levels of each coded axis."""
        return np.repeat(2.0 ** (self.bits.astype(np.float64) - 1), LANES)

    @property
    def row_bytes(self) -> int:
        """Bytes of a code."""
        return LANES * -(-int(self.bits.sum()) // 8)

    def encode(self, x: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
        """Codes uint8 (n, row_bytes), residuals and lengths float32 (n,) of rows (n, d); zeros have no residual."""
        wide = x.astype(np.float32, copy=False)
        norm = np.sqrt(np.einsum("ij,ij->i", wide, wide, dtype=np.float64))
        odd = (norm < SHORTEST) & (norm > 0) | ~(norm < LONGEST)
        plain = np.where(odd | (norm == 0), 1.0, norm).astype(np.float32)
        with np.errstate(all="ignore"):
            y = wide / plain[:, None] - self.mean
            turned: Any = y @ self.turn.T
            length = np.linalg.norm(y.astype(np.float64), axis=1)
        turned[odd] = 0
        codes = np.zeros((len(x), self.row_bytes), np.uint8)
        off = np.empty(len(x))
        kernels.encode(turned, self.step, self.half, self.layout, codes, off)
        d = x.shape[1]
        gamma = d * UNIT / (1 - d * UNIT)
        lost = gamma * float(np.linalg.norm(self.turn.astype(np.float64)))
        residual = off * (1 + SLACK) + (lost * (1 + self.skew) + self.skew + SLACK) * length + 4 * SLACK
        residual = np.where(norm == 0, 0.0, np.where(odd, np.inf, residual))
        return codes, _up(residual), np.where(norm == 0, 0, plain).astype(np.float32)


def _up(values: NDArray[np.float64]) -> NDArray[np.float32]:
    """float32, never smaller."""
    short = values.astype(np.float32)
    return np.where(short < values, np.nextafter(short, np.float32(np.inf)), short)


def learn(
    sample: NDArray[np.floating], itemsize: int, seed: int = 0, tick: Callable[[], None] = lambda: None
) -> tuple[Coder, float] | None:
    """A coder for rows like these (n, d), and what a search by it reads, as a share of the rows' own bytes.

    itemsize: bytes of a number as it is stored. tick: called now and then; what it raises ends the work.

    None where too few rows have a direction.
    """
    wide = sample.astype(np.float64)
    norm = np.linalg.norm(wide, axis=1)
    wide = wide[(norm > SHORTEST) & (norm < LONGEST)]
    if len(wide) < 8:
        return None
    wide /= np.linalg.norm(wide, axis=1)[:, None]
    mean = wide.mean(0).astype(np.float32)
    y = wide - mean
    variance, axes = np.linalg.eigh(y.T @ y / len(y))
    variance, axes = np.maximum(variance[::-1], 0), axes[:, ::-1]
    groups = -(-len(mean) // LANES)
    turn = np.zeros((groups * LANES, len(mean)), np.float32)
    turn[: len(mean)] = axes.T
    spread = np.zeros(groups * LANES)
    spread[: len(mean)] = np.sqrt(variance)
    exact = turn.astype(np.float64)
    skew = float(np.linalg.norm(np.eye(len(mean)) - exact.T @ exact)) * (1 + SLACK) + 1e-12
    apart = min(2 * QUERIES, len(wide) // 2)  # rows that queries are made of, which are not looked for
    turned, asked = y[apart : apart + TRIED] @ exact.T, _synthetic_queries(wide[:apart], seed) @ exact.T
    alike = wide[: apart // 2] @ exact.T
    best: tuple[float, Coder] | None = None
    for words in range(1, groups + 1, max(1, groups // 16)):
        if best is not None and LANES * words >= best[0]:
            break  # reading these codes alone takes longer
        tick()
        bits = _bits(spread, words)
        step = np.repeat([STEPS[b] for b in bits.tolist()], LANES) * spread[: len(bits) * LANES]
        floor = max(float(spread.max()), 1e-6) * 1e-4  # an axis in which rows do not differ
        coder = Coder(mean, turn, skew, bits, np.maximum(step, floor))
        left = max(_left(coder, turned, queries) for queries in (asked, alike))
        cost = coder.row_bytes + 4 + (PICKED + COMPARED * len(mean) * itemsize) * left
        if best is None or cost < best[0]:
            best = cost, coder
    assert best is not None, "one word at least was tried"
    return best[1], best[0] / (len(mean) * itemsize)


def _bits(spread: NDArray[np.float64], words: int) -> NDArray[np.uint8]:
    """Bits of each group, so many words in all: each where it takes away most of the error."""
    energy = (spread.reshape(-1, LANES) ** 2).sum(1)
    bits, room = np.zeros(len(energy), np.int64), 8 * words
    while True:
        gains = [
            energy[g] * (ERRORS[b] - ERRORS[_NEXT[b]]) / (_NEXT[b] - b) if b < 8 and _NEXT[b] - b <= room else -1.0
            for g, b in enumerate(bits.tolist())
        ]
        at = int(np.argmax(gains))
        if gains[at] < 0:
            break
        room -= _NEXT[int(bits[at])] - int(bits[at])
        bits[at] = _NEXT[int(bits[at])]
    bits = -np.sort(-bits)
    return bits[bits > 0].astype(np.uint8)


def _synthetic_queries(rows: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Unit vectors that vary half as the rows do, and half in all directions alike.

    So their lengths by axis are those of CLIP's captions on axes of its pictures, 0.55 of the square on the first
    quarter and 0.86 on the first three, where captions have 0.45 and 0.84.
    """
    random = np.random.default_rng(seed)
    half = len(rows) // 2
    apart = rows[:half] - rows[half : 2 * half]
    noise = random.standard_normal(apart.shape)
    return _unit(_unit(apart) + _unit(noise))


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(rows, axis=1)[:, None]
    return rows / np.where(length > 0, length, 1.0)


def _left(coder: Coder, turned: NDArray[np.float64], asked: NDArray[np.float64]) -> float:
    """The share of the sample's rows that codes cannot tell from the nearest."""
    n = len(coder.step)
    half, step = coder.half, coder.step
    said = (np.clip(np.floor(turned[:, :n] / step), -half, half - 1) + 0.5) * step
    off = np.sqrt(((turned[:, :n] - said) ** 2).sum(1) + (turned[:, n:] ** 2).sum(1))
    scores = turned @ asked.T
    at = len(scores) - 1 - int(len(scores) * NEAREST)
    nearest = np.partition(scores, at, axis=0)[at]
    possible = said @ asked[:, :n].T + off[:, None] >= nearest
    return float(possible.mean())
