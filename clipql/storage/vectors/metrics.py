"""The distances clipql plans, under ClickHouse's names.

A metric here is a pure description: how ClickHouse spells it, which way is nearer, and the plain numpy
formula that the kernels and indexes must agree with.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray


class Metric(enum.Enum):
    """A distance function of ClickHouse, by its canonical name.

    Formulas: https://clickhouse.com/docs/sql-reference/functions/distance-functions
    """

    L2 = "L2Distance"
    L2_SQUARED = "L2SquaredDistance"
    COSINE = "cosineDistance"
    DOT = "dotProduct"

    @property
    def larger_is_nearer(self) -> bool:
        """True for dotProduct, whose nearest rows have the largest value (ORDER BY … DESC)."""
        return self is Metric.DOT


# ClickHouse takes its aliases without regard to case, and the names themselves only as they are
_ALIASES: Mapping[str, Metric] = MappingProxyType(
    {
        "distancel2": Metric.L2,
        "distancel2squared": Metric.L2_SQUARED,
        "distancecosine": Metric.COSINE,
        "scalarproduct": Metric.DOT,
    }
)
_NAMES: Mapping[str, Metric] = MappingProxyType({m.value: m for m in Metric})
_ANY_CASE: Mapping[str, Metric] = MappingProxyType({m.value.lower(): m for m in Metric} | dict(_ALIASES))


def metric_named(name: str) -> Metric | None:
    """The metric that ClickHouse knows under a function name; None for any other function."""
    return _NAMES.get(name) or _ALIASES.get(name.lower())


def metric_spelled(name: str) -> Metric | None:
    """The metric of a name in any letter case, as arguments and indexes may give it; None for no such metric."""
    return _ANY_CASE.get(name.lower())


def distances(metric: Metric, rows: NDArray[np.floating], query: NDArray[np.floating]) -> NDArray[np.float64]:
    """The distance of each row to the query, in float64: the reference that kernels are tested against.

    rows: (n, d) of any float type; query: (d,). Returns float64 (n,). A zero vector has cosine distance NaN, as
    in ClickHouse. A row has the same distance whatever rows it is computed with, so that equal vectors tie.
    """
    x, q = np.asarray(rows, np.float64), np.asarray(query, np.float64)
    if metric is Metric.DOT:
        found = _products(x, q)
    elif metric is Metric.COSINE:
        with np.errstate(divide="ignore", invalid="ignore"):
            # the maximum takes rounding away: equal vectors are at distance 0, as in ClickHouse; NaN stays
            found = np.maximum(1.0 - _products(x, q) / (np.sqrt((x * x).sum(1)) * np.sqrt(q @ q)), 0.0)
    else:
        found = ((x - q) ** 2).sum(1)
        if metric is Metric.L2:
            found = np.sqrt(found)
    return np.asarray(found, np.float64)


def _products(x: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    # BLAS, behind `x @ q`, rounds a row by its place among the others; this is as fast
    return np.asarray(np.einsum("ij,j->i", x, q))
