"""Retrieval as the papers measure it: how often a caption finds its picture among the first K, and a picture a caption.

R@K is the share of queries that find a match among the K nearest; the median rank is that of the nearest match, from 1
(Karpathy and Fei-Fei, 2015; Radford et al., 2021). What must stay true: the rank of a match is one more than the number
of other candidates that are nearer, so equal candidates do not count against it; a picture with several captions is one
candidate, and is found by any of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.curate.tables import chosen_rows, known_column
from clipql.errors import VectorError
from clipql.storage.vectors.metrics import Metric
from clipql.tables.registry import ROW

if TYPE_CHECKING:
    from clipql.database import Database
    from clipql.storage.catalog import Table
    from clipql.storage.vectors.store import ColumnStore

# queries, and candidates, that are multiplied at once
QUERIES, CANDIDATES = 1_024, 8_192
# what float32 may be off by: nearer by less than this is as near
_TIE = np.float32(1e-6)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Recalled:
    """One line of the table. direction: 'captions → pictures' or back; by: 'exact', or an index; recalls: R@K for each
    K; median_rank: None where it lies beyond the largest K, which is as far as an index looks.
    """

    direction: str
    by: str
    queries: int
    candidates: int
    recalls: tuple[float, ...]
    median_rank: float | None
    seconds: float


@dataclass(frozen=True, repr=False)
class Retrieval(Brief):
    """The lines for each direction, exact first."""

    table: str
    ks: tuple[int, ...]
    lines: tuple[Recalled, ...]


def evaluate_retrieval(
    db: Database,
    table: str,
    *,
    pictures: str = "image_embedding",
    captions: str = "text_embedding",
    where: str | None = None,
    picture: str | None = None,
    queries: int | None = None,
    seed: int = 0,
    ks: Sequence[int] = (1, 5, 10),
    progress: Progress = lambda done, total: None,
) -> Retrieval:
    """R@K of the captions of a table to its pictures, and back, by cosine, exactly and by each column's index.

    where: rows that are looked at, as a test split. picture: a SQL expression that tells pictures apart, where each has
    several captions, a row each; by default each row is a picture. queries: as many at random of each kind, by `seed`;
    None for all. Raises UnknownTable, VectorError or QueryError.
    """
    known, image = known_column(db, table, pictures)
    _, text = known_column(db, table, captions)
    if image.dimension != text.dimension:
        raise VectorError(f"{pictures} holds {image.dimension} numbers and {captions} {text.dimension}: not one space")
    if not ks or min(ks) < 1:
        raise VectorError(f"R@K of K = {', '.join(map(str, ks))}; expected numbers from 1")
    chosen = chosen_rows(db, known, where)
    rows = np.arange(known.rows, dtype=np.int64) if chosen is None else chosen
    if not len(rows):
        raise VectorError(f"{known.full_name} has no row to look at")
    groups = _groups(db, known, rows, picture)
    firsts = np.unique(groups, return_index=True)[1]
    rng, lines = np.random.default_rng(seed), []
    kinds = (
        ("captions → pictures", text, np.arange(len(rows)), image, firsts, pictures),
        ("pictures → captions", image, firsts, text, np.arange(len(rows)), captions),
    )
    for direction, of, asked, among, candidates, column in kinds:
        if queries is not None and queries < len(asked):
            asked = np.sort(rng.choice(asked, queries, replace=False))
        began = time.perf_counter()
        ranks = _ranks(db, of, rows[asked], groups[asked], among, rows[candidates], groups[candidates], progress)
        seconds = time.perf_counter() - began
        recalls = tuple(float(np.mean(ranks <= k)) for k in ks)
        shape = len(asked), len(candidates)
        lines.append(Recalled(direction, "exact", *shape, recalls, float(np.median(ranks)), seconds))
        entry = db.indexes.choose(known, column, Metric.COSINE)
        if entry.index is None or entry.entry is None:
            continue
        mask = np.zeros(known.rows, np.bool_)
        mask[rows[candidates]] = True
        group_of = np.full(known.rows, -1, np.int64)
        group_of[rows] = groups
        found = np.full(len(asked), max(ks) + 1, np.int64)
        began = time.perf_counter()
        for at, (row, group) in enumerate(zip(rows[asked], groups[asked], strict=True)):
            db.registry.engine.check_cancelled()
            hits = entry.index.search(of.take(row[None])[0], max(ks), among=mask).rows
            places = np.flatnonzero(group_of[hits] == group)
            if len(places):
                found[at] = places[0] + 1
        seconds, middle = time.perf_counter() - began, float(np.median(found))
        recalls = tuple(float(np.mean(found <= k)) for k in ks)
        by = f"{entry.entry.name} ({entry.entry.kind})"
        lines.append(Recalled(direction, by, *shape, recalls, middle if middle <= max(ks) else None, seconds))
    return Retrieval(known.full_name, tuple(ks), tuple(lines))


def _groups(db: Database, table: Table, rows: NDArray[np.int64], picture: str | None) -> NDArray[np.int64]:
    """A number for each row, the same for rows of one picture."""
    if picture is None:
        return np.arange(len(rows), dtype=np.int64)
    groups_of_all = f"SELECT {ROW} AS r, dense_rank() OVER (ORDER BY ({picture})) AS g"
    found = db.registry.engine.query(
        f"{groups_of_all} FROM {db.registry.physical(table)} ORDER BY r", "ArrowStream", user=True
    ).arrow()
    numbers, groups = (found.column(i).to_numpy().astype(np.int64) for i in (0, 1))
    return np.asarray(groups[np.searchsorted(numbers, rows)], np.int64)


def _ranks(
    db: Database,
    of: ColumnStore,
    asked: NDArray[np.int64],
    asked_groups: NDArray[np.int64],
    among: ColumnStore,
    candidates: NDArray[np.int64],
    groups: NDArray[np.int64],
    progress: Progress,
) -> NDArray[np.int64]:
    """The rank of the nearest match of each query, from 1."""
    ranks = np.empty(len(asked), np.int64)
    order = np.argsort(groups, kind="stable")
    starts, ends = (np.searchsorted(groups[order], asked_groups, side) for side in ("left", "right"))
    for at in range(0, len(asked), QUERIES):
        progress(at, len(asked))
        query, own = _unit(of.take(asked[at : at + QUERIES])), asked_groups[at : at + QUERIES]
        best = np.empty(len(query), np.float32)
        for i, (start, end) in enumerate(zip(starts[at : at + QUERIES], ends[at : at + QUERIES], strict=True)):
            best[i] = (_unit(among.take(candidates[order[start:end]])) @ query[i]).max()
        nearer = np.zeros(len(query), np.int64)
        for first in range(0, len(candidates), CANDIDATES):
            db.registry.engine.check_cancelled()
            some = query @ _unit(among.take(candidates[first : first + CANDIDATES])).T
            match = own[:, None] == groups[None, first : first + CANDIDATES]
            nearer += ((some > best[:, None] + _TIE) & ~match).sum(1)
        ranks[at : at + QUERIES] = nearer + 1
    return ranks


def _unit(x: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(lengths > 0, lengths, 1), np.float32)
