"""The rows that an exact scan would find, found by a scan of codes: proven, as no row is left out whose bound lets it
in.

Keys are those of `flat.Scan`: the weighted distance, smallest first. Of each row its code tells the least that its key
may be. What must stay true: a row is passed over only where that is more than the k-th smallest of keys that were
computed in float64, or than the radius, with what rounding and ties take; what is left is compared and cut as the
scan's own rows are, so the same rows with the same distances come out. Whatever the codes cannot serve (several
distances added up, numbers that float32 does not hold, too few rows ruled out) is given back as None, for the scan.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from clipql.errors import DatabaseDamaged
from clipql.index.base import Candidates, Cost
from clipql.index.bounded import kernels
from clipql.index.bounded.coder import LONGEST, SHORTEST, SLACK
from clipql.index.bounded.file import STRETCH, CodeFile
from clipql.index.cores import each_core
from clipql.index.flat import Scan, Term, exact_here
from clipql.storage.vectors.metrics import Metric

FIRST = 1024  # rows that are looked at first, by each core: so that there is a k-th smallest soon
MOST_K = 4096
# of the rows that were looked at; where more are left, comparing them takes as long as the scan
MOST_LEFT, SEEN = 0.25, 4 * STRETCH
# a scan with a mask of fewer than one of so many rows picks those out, and reads less than all codes
SPARSE = 13
# relative, of keys: what Float32 and the order of a sum in float64 may change
ROUNDED = 3e-7
Found = TypeVar("Found")


class Asked(NamedTuple):
    """A query as codes are multiplied by it. levels: uint8 (fields, 128), as `kernels.arranged`. layout:
    `Coder.layout`.

    form: base, slope, slack, square, rounded, constant, float64: the key of a row is at least base + n (square n +
    constant + slope s - slack r) - rounded n², by its length n, its residual r and the integer sum s.
    """

    levels: NDArray[np.uint8]
    form: NDArray[np.float64]
    layout: NDArray[np.int16]


def asked(file: CodeFile, term: Term) -> Asked | None:
    """The query of a term; None where codes say nothing of it."""
    q, coder, w = term.query, file.coder, term.weight
    length = float(np.linalg.norm(q)) if np.isfinite(q).all() else math.inf
    if not (SHORTEST < length < LONGEST and SHORTEST < abs(w) < LONGEST) or q.shape != coder.mean.shape:
        return None
    n = len(coder.step)
    g = (coder.turn[:n].astype(np.float64) @ q) * coder.step
    most = 2 * coder.half - 1
    unit = max(float(np.abs(g).max(initial=0)) / 16190, float((most * np.abs(g)).sum()) / 2**30, 1e-300)
    levels = np.rint(g / unit)
    missed = float((np.abs(g - unit * levels) * (coder.half - 0.5)).sum())
    constant = float(coder.mean.astype(np.float64) @ q) + float(((0.5 - coder.half) * unit * levels).sum())
    # what is off beside the residual: the query's rounding, and sums in float64, of numbers of this size
    lost = missed + SLACK * length
    reach = length * (1 + coder.skew + SLACK)
    if term.metric is Metric.COSINE:
        by = abs(w) / length
        base = w - w / length * constant - by * lost - abs(w) * SLACK
        form = (base, -w / length * unit, by * reach, 0.0, 0.0, 0.0)
    elif term.metric is Metric.DOT:
        form = (0.0, w * unit, abs(w) * reach, 0.0, 0.0, w * constant - abs(w) * lost)
    else:  # of squares, whatever the weight: see `_squared`
        s = math.copysign(1.0, w)
        form = (
            s * length * length - 1e-9 * length * length,
            -2 * s * unit,
            2 * reach,
            s,
            SLACK,
            -2 * s * constant - 2 * lost,
        )
    out = np.empty((len(levels) // kernels.LANES, 2 * kernels.LANES), np.uint8)
    kernels.arranged(levels.astype(np.int16).reshape(-1, kernels.LANES), out)
    return Asked(out, np.array(form), coder.layout)


def _form_limit(term: Term, key: float) -> float:
    """A key in the form of `Asked.form`, and as much more as rounding may have taken from it."""
    if not math.isfinite(key):
        return key
    key += ROUNDED * abs(key)
    if term.metric is Metric.L2:
        distance = key / abs(term.weight)
        return math.copysign(distance * distance * (1 + ROUNDED), distance) if distance > 0 else -(distance * distance)
    return key / abs(term.weight) if term.metric is Metric.L2_SQUARED else key


@dataclass
class _Shared:
    """What the threads of one search have in common: the k smallest keys so far, and the limit that follows."""

    k: int
    limit: float
    best: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    guard: threading.Lock = field(default_factory=threading.Lock)
    seen: int = 0
    kept: int = 0
    stop: bool = False


def nearest(terms: Sequence[Term], rows: int, among: NDArray[np.bool_] | None, k: int) -> Candidates:
    """What `Scan.nearest` gives, by codes where the only term has some, and by the scan of newer rows or of all."""
    scan = Scan(terms, rows, among)
    file = usable(terms, rows, among)
    if file is None:
        return scan.nearest(k)
    found = _trusted(terms[0], lambda: BoundedScan(file, terms[0], _first(among, file.rows)).nearest(k))
    if not isinstance(found, Candidates):
        return scan.nearest(k)
    if file.rows == rows:
        return found
    return scan.cut(_joined(found, Scan(terms, rows, among, first=file.rows).nearest(k)), k)


def within(
    terms: Sequence[Term], rows: int, among: NDArray[np.bool_] | None, radius: float, most: int
) -> Candidates | int:
    """What `Scan.within` gives, likewise."""
    file = usable(terms, rows, among)
    if file is None:
        return Scan(terms, rows, among).within(radius, most)
    found = _trusted(terms[0], lambda: BoundedScan(file, terms[0], _first(among, file.rows)).within(radius, most))
    if found is None:
        return Scan(terms, rows, among).within(radius, most)
    if file.rows == rows:
        return found
    newer = Scan(terms, rows, among, first=file.rows).within(radius, most)
    if isinstance(found, Candidates) and isinstance(newer, Candidates) and len(found.rows) + len(newer.rows) <= most:
        return _joined(found, newer)
    return sum(f if isinstance(f, int) else len(f.rows) for f in (found, newer))


def usable(terms: Sequence[Term], rows: int, among: NDArray[np.bool_] | None) -> CodeFile | None:
    """The codes that a search can use."""
    if len(terms) != 1 or terms[0].codes is None or (among is not None and SPARSE * np.count_nonzero(among) < rows):
        return None
    file = terms[0].codes.file()
    return file if file is not None and file.useful and file.rows <= rows else None


def _trusted(term: Term, search: Callable[[], Found]) -> Found | None:
    """What a search by codes finds; None, and the codes are not used any more, where they are damaged."""
    try:
        return search()
    except DatabaseDamaged as error:
        assert term.codes is not None, "they were used"
        term.codes.distrust(error)
        return None


def _first(among: NDArray[np.bool_] | None, rows: int) -> NDArray[np.bool_] | None:
    return None if among is None else among[:rows]


def _joined(a: Candidates, b: Candidates) -> Candidates:
    rows, keys = np.concatenate([a.rows, b.rows]), np.concatenate([a.distances, b.distances])
    order = np.lexsort((rows, keys))
    return Candidates(rows[order], keys[order], a.cost.plus(b.cost, "tail "))


class BoundedScan:
    """A search by a term over the rows of a code file, among those that a mask allows."""

    def __init__(self, file: CodeFile, term: Term, among: NDArray[np.bool_] | None) -> None:
        self._file, self._term, self._among = file, term, among
        self._asked = asked(file, term) if file.useful else None
        self._scan = Scan([term], file.rows, among)

    def nearest(self, k: int) -> Candidates | None:
        """What `Scan.nearest` gives; None where the scan shall be asked. Raises DatabaseDamaged."""
        if self._asked is None or not 0 < k <= MOST_K:
            return None
        began = time.perf_counter()
        shared = _Shared(k, math.inf)
        found = self._possible(shared)
        if found is None or not math.isfinite(shared.limit):
            return None
        compared = self._compared(found[0][found[1] <= shared.limit], shared.seen, began)
        if len(compared.rows) < k:
            return None
        return self._scan.cut(compared, k)

    def within(self, radius: float, most: int) -> Candidates | int | None:
        """What `Scan.within` gives; None where the scan shall be asked. Raises DatabaseDamaged."""
        if self._asked is None or math.isnan(radius):
            return None
        began, edge = time.perf_counter(), self._scan.slack(radius)
        shared = _Shared(0, _form_limit(self._term, edge))
        found = self._possible(shared) if math.isfinite(shared.limit) else None
        if found is None:
            return None
        compared = self._compared(found[0], shared.seen, began)
        inside = compared.first(int(np.searchsorted(compared.distances, edge, side="right")))
        return inside if len(inside.rows) <= most else len(inside.rows)

    def _compared(self, rows: NDArray[np.int64], seen: int, began: float) -> Candidates:
        found = self._scan.decided(rows, began, 0)
        cost = Cost(codes_scanned=seen, rows_rescored=len(rows), seconds=found.cost.seconds, proven=1)
        return Candidates(found.rows, found.distances, cost)

    def _possible(self, shared: _Shared) -> tuple[NDArray[np.int64], NDArray[np.float64]] | None:
        """Rows that may be among those that are looked for, and the least that their keys may be."""
        found: list[tuple[NDArray[np.int64], NDArray[np.float64]]] = []
        stretches = -(-self._file.rows // STRETCH)

        def work(first: int, last: int) -> None:
            rows, keys = np.empty(STRETCH, np.int64), np.empty(STRETCH)
            for stretch in range(first, last):
                self._file.check(stretch)
                at, end = stretch * STRETCH, min(self._file.rows, (stretch + 1) * STRETCH)
                step = FIRST if stretch == first else STRETCH
                while at < end and not shared.stop:
                    to = min(end, at + step)
                    n = self._lowest(at, to, shared.limit, rows, keys)
                    pair = rows[:n] + at, keys[:n].copy()
                    if n and shared.k:
                        self._tighten(shared, *pair)
                    found.append(pair)
                    self._weigh(shared, to - at, n)
                    at, step = to, 4 * step

        try:
            each_core(stretches, work)
        except BaseException:  # Ctrl-C reaches this thread, what is damaged any: the others stop at their next stretch
            shared.stop = True
            raise
        if shared.stop:
            return None
        return np.concatenate([r for r, _ in found]), np.concatenate([k for _, k in found])

    def _lowest(self, first: int, last: int, limit: float, rows: NDArray[np.int64], keys: NDArray[np.float64]) -> int:
        file, query = self._file, self._asked
        assert query is not None, "looked at before"
        norm = file.norm[:0] if self._term.metric is Metric.COSINE else file.norm[first:last]
        among = np.empty(0, np.bool_) if self._among is None else self._among[first:last].view()
        among.setflags(write=False)  # as mapped arrays are: the kernel is compiled for one kind
        return kernels.lowest(
            file.codes[first:last],
            file.residual[first:last],
            norm,
            among,
            query.levels,
            query.layout,
            query.form,
            limit,
            rows,
            keys,
        )

    def _tighten(self, shared: _Shared, rows: NDArray[np.int64], keys: NDArray[np.float64]) -> None:
        """Compare the most promising of new rows, if they may bring the limit down by much."""
        k = shared.k
        if math.isfinite(shared.limit) and len(rows) < 2 * k:
            return
        chosen = rows if len(rows) <= k else rows[np.argpartition(keys, k - 1)[:k]]
        new = exact_here([self._term], chosen)
        with shared.guard:
            best = np.concatenate([shared.best, new[np.isfinite(new)]])
            shared.best = np.partition(best, k - 1)[:k] if len(best) > k else best
            if len(shared.best) == k:
                limit = _form_limit(self._term, self._scan.edge(float(shared.best.max())))
                shared.limit = min(shared.limit, limit)

    def _weigh(self, shared: _Shared, seen: int, kept: int) -> None:
        """Stop where codes rule out so little that a scan takes less."""
        with shared.guard:
            shared.seen += seen
            shared.kept += kept
            looked = shared.seen >= min(SEEN, self._file.rows // 2)
            shared.stop = shared.stop or (looked and shared.kept > MOST_LEFT * shared.seen + 2 * FIRST * 16)
