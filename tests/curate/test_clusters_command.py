"""`clipql cluster-rows` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import clipql
from clipql.cli.entry import main


def test_the_command_makes_both_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "db")
    with clipql.connect(path) as made:
        made.sql("CREATE TABLE t (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        made.sql("INSERT INTO t VALUES (1, [0, 1]), (2, [0, 2]), (3, [1, 0]), (4, [3, 0])")
    asked = ["--db", path, "cluster-rows", "--table", "t", "--column", "v", "--k", "2"]
    asked += ["--into", "c", "--centroids", "m"]
    assert main(asked) == 0
    assert capsys.readouterr().out.startswith("4 rows in 2 clusters, mean squared distance 0; ")
    with clipql.connect(path) as made:
        members = "SELECT * FROM c ORDER BY id"
        found = made.sql(f"SELECT groupArray(id) AS ids FROM ({members}) GROUP BY cluster ORDER BY ids")
        assert found.rows == [([1, 2],), ([3, 4],)]
        nearest = "SELECT t.id, m.cluster FROM t CROSS JOIN m ORDER BY cosineDistance(t.v, m.centroid) LIMIT 1 BY t.id"
        assert sorted(made.sql(nearest).rows) == sorted(made.sql("SELECT id, cluster FROM c").rows)
