"""Compile every kernel once, so that no query waits for it: run by `python -m clipql.cli.kernels_ahead` (`make setup`,
and anyone after an installation) and by `clipql serve`.

Numba keeps what it compiled beside the source, or in the user's cache folder where that cannot be written.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

import clipql
from clipql.index import cut, ivf, of_few
from clipql.index.bounded import kernels as bounded
from clipql.index.rows import ArrayRows
from clipql.index.unite import components
from clipql.ingest.records import nesting
from clipql.serve.cityhash import cityhash128
from clipql.serve.tcp import blocks
from clipql.sql.inserts import native_columns
from clipql.sql.recognition import vector_text
from clipql.storage.vectors import chosen, kernels, pairscan, row_numbers, rowwise
from clipql.storage.vectors.metrics import Metric
from clipql.tables import rowgather

QUERY = "{q:Array(Float32)}"
SEARCHES = (
    f"ORDER BY cosineDistance(v, {QUERY}) LIMIT 10",
    f"ORDER BY L2Distance(v, {QUERY}) LIMIT 10",
    f"ORDER BY dotProduct(v, {QUERY}) DESC LIMIT 10",
    f"WHERE id % 3 = 0 ORDER BY cosineDistance(v, {QUERY}) LIMIT 10",
    f"WHERE id < 50 ORDER BY L2Distance(v, {QUERY}) LIMIT 10",
    f"WHERE L2Distance(v, {QUERY}) < 1",
)


def warm() -> None:
    """Compile the kernels of the scan and of the ivf index, as they are called by themselves and by statements."""
    kernels.warm()
    chosen.warm()
    bounded.warm()
    rowwise.warm()
    pairscan.warm()
    cut.warm()
    of_few.warm()
    row_numbers.warm()
    native_columns.warm()
    vector_text.warm()
    rowgather.warm()
    blocks.warm()
    cityhash128(b"a packet")
    components(2, np.array([0]), np.array([1]))
    nesting.check(b"[]")
    rng = np.random.default_rng(0)
    x, captions = rng.standard_normal((2, 2_000, 64)).astype(np.float16)
    with tempfile.TemporaryDirectory() as folder:
        for metric in (Metric.COSINE, Metric.L2, Metric.DOT):
            for queries in (None, ArrayRows(captions)):
                index = ivf.build(ArrayRows(x), metric, Path(folder) / "ivf", queries=queries)
                index.search(captions[0].astype(np.float32), 3, among=np.ones(2_000, np.bool_))
                index.search(captions[0].astype(np.float32), 3)
                index.within(captions[0].astype(np.float32), 1e-3)
        _search(Path(folder) / "db")


def _search(folder: Path) -> None:
    """Search a database as statements do, over files that are mapped: vectors in float16 and float32."""
    with clipql.connect(folder) as db:
        for name, value in (("half", "number % 97"), ("single", "number / 97")):
            db.sql(f"CREATE TABLE {name} (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
            numbers = ", ".join(f"({value} + {i}) % {i + 2}" for i in range(16))
            db.sql(f"INSERT INTO {name} SELECT number, [{numbers}] FROM numbers(3000)")
            for metric in (None, "L2Distance", "cosineDistance"):
                if metric:
                    db.sql(f"ALTER TABLE {name} ADD INDEX near_{metric} v TYPE ivf('{metric}')")
                    db.sql(f"ALTER TABLE {name} MATERIALIZE INDEX near_{metric}")
                for search in SEARCHES:
                    sql, query = f"SELECT id FROM {name} {search}", np.ones(16, np.float32)
                    db.sql_many(sql, [{"q": query + i} for i in range(5)])
            db.sql(f"INSERT INTO {name} SELECT number, [{numbers}] FROM numbers(9000)")  # indexes grow, and learn anew
            db.sql(f"ALTER TABLE {name} MATERIALIZE INDEX near_L2Distance")
            db.sql(f"INSERT INTO {name} SELECT number, [{numbers}] FROM numbers(10)")
            db.sql(f"SELECT id FROM {name} {SEARCHES[0]}", q=query)


if __name__ == "__main__":
    warm()
