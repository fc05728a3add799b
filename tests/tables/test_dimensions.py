"""Vectors of any length, and columns of several lengths in one table: the nearest rows are those that numpy says."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import clipql
from clipql.errors import VectorError, VectorIndexError
from tests.cases import some

ROWS = {2: 3000, 96: 3000, 384: 2000, 768: 1500, 1024: 1500, 1536: 1200, 3072: 1100, 65_536: 40}


def vectors(dimension: int, rows: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((20, dimension))
    return (centres[rng.integers(0, 20, rows)] + 0.5 * rng.standard_normal((rows, dimension))).astype(np.float32)


def insert(db: clipql.Database, columns: str, **arrays: NDArray[np.float32]) -> None:
    rows = len(next(iter(arrays.values())))
    given = {"id": pa.array(np.arange(rows), pa.uint32())}
    for name, x in arrays.items():
        given[name] = pa.FixedSizeListArray.from_arrays(x.ravel(), x.shape[1]).cast(pa.list_(pa.float32()))
    db.sql(f"CREATE TABLE t (id UInt32, {columns}) ENGINE = MergeTree ORDER BY id")
    file = db.path / "rows.parquet"
    pq.write_table(pa.table(given), file)
    db.sql(f"INSERT INTO t SELECT * FROM file('{file}')")
    file.unlink()


def expected(rows: NDArray[np.float32], query: NDArray[np.float32], k: int = 10) -> list[int]:
    d = ((rows.astype(np.longdouble) - query) ** 2).sum(1)
    return [int(i) for i in np.argsort(d, kind="stable")[:k]]


def found(db: clipql.Database, column: str, query: NDArray[np.float32], more: str = "") -> list[int]:
    sql = f"SELECT id FROM t ORDER BY L2Distance({column}, {{q:Array(Float32)}}) LIMIT 10 {more}"
    return [i for (i,) in db.sql(sql, q=query).rows]


@pytest.mark.parametrize("dimension", some(reversed(ROWS), 3))
def test_vectors_of_any_length_are_found_with_and_without_an_index(db: clipql.Database, dimension: int) -> None:
    rows = vectors(dimension, ROWS[dimension])
    insert(db, "v Array(Float32)", v=rows)
    db.sql("ALTER TABLE t ADD INDEX near v TYPE ivf('L2Distance')")
    db.sql("ALTER TABLE t MATERIALIZE INDEX near")
    (state,) = db.sql("SELECT state FROM clipql.indexes").rows[0]
    assert state == ("too few rows, exact scan" if dimension == 65_536 else "in use")
    hits, queries = 0, vectors(dimension, 10, 1)
    for q in queries:
        nearest = expected(rows, q)
        assert found(db, "v", q, "SETTINGS vector_index = 0") == nearest
        assert found(db, "v", q, "SETTINGS recall = 1") == nearest
        hits += len(set(found(db, "v", q)) & set(nearest))
    assert hits >= 85
    with pytest.raises(VectorError, match=f"holds {dimension} numbers; the query vector.* has {dimension - 1}"):
        found(db, "v", queries[0][1:])


def test_columns_of_several_lengths_in_one_table_are_each_searched_by_their_own_index(db: clipql.Database) -> None:
    lengths = (2, 96, 768)
    rows = {f"v{d}": vectors(d, 1500, d) for d in lengths}
    insert(db, ", ".join(f"{name} Array(Float32)" for name in rows), **rows)
    for d in lengths:
        db.sql(f"ALTER TABLE t ADD INDEX near{d} v{d} TYPE ivf('L2Distance')")
        db.sql(f"ALTER TABLE t MATERIALIZE INDEX near{d}")
    assert db.sql("SELECT DISTINCT state FROM clipql.indexes").rows == [("in use",)]
    for d in lengths:
        hits = 0
        for q in vectors(d, 10, 1):
            nearest = expected(rows[f"v{d}"], q)
            assert found(db, f"v{d}", q, "SETTINGS recall = 1") == nearest
            hits += len(set(found(db, f"v{d}", q)) & set(nearest))
        assert hits >= 85
    two = "L2Distance(v2, {a:Array(Float32)}) + L2Distance(v96, {b:Array(Float32)})"
    a, b = vectors(2, 1, 1)[0], vectors(96, 1, 1)[0]
    both = sum(np.sqrt(((rows[n].astype(np.longdouble) - q) ** 2).sum(1)) for n, q in (("v2", a), ("v96", b)))
    got = db.sql(f"SELECT id FROM t ORDER BY {two} LIMIT 10", a=a, b=b).rows
    assert [i for (i,) in got] == np.argsort(both, kind="stable")[:10].tolist()


def test_an_index_over_vectors_too_long_for_it_is_refused_and_they_are_scanned(db: clipql.Database) -> None:
    rows = vectors(8193, 1000)
    insert(db, "v Array(Float32)", v=rows)
    db.sql("ALTER TABLE t ADD INDEX near v TYPE ivf('L2Distance')")
    with pytest.raises(VectorIndexError, match=r"at most 8,192 numbers, .* have 8,193: they are scanned"):
        db.sql("ALTER TABLE t MATERIALIZE INDEX near")
    assert found(db, "v", rows[3]) == expected(rows, rows[3])
