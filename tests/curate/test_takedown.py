"""A takedown removes the rows that were asked for, and no others, and its report is true."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

import clipql
from clipql.cli.entry import main
from clipql.curate.takedown import takedown
from clipql.errors import ClipqlError, VectorError


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    found = np.random.default_rng(1).standard_normal((60, 8)).astype(np.float32)
    found[50] = found[3]
    found[51] = found[3] + 1e-3
    return found


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, vectors: np.ndarray) -> Path:
    path = tmp_path_factory.mktemp("takedown") / "db"
    with clipql.connect(path) as db:
        db.sql(
            "CREATE TABLE t (id UInt32, url String, `v v` Array(Float32), w Array(Float32), INDEX i `v v` "
            "TYPE ivf('cosineDistance')) ENGINE = MergeTree ORDER BY id"
        )
        rows = (f"({i}, 'http://h/{i // 2}', {v.tolist()}, [{i % 50}, 1])" for i, v in enumerate(vectors))
        db.sql("INSERT INTO t VALUES " + ", ".join(rows))
        db.sql("DELETE FROM t WHERE id = 7")
    return path


def ids(db: clipql.Database) -> set[int]:
    return {i for (i,) in db.sql("SELECT id FROM t").rows}


def test_rows_go_by_ids_urls_and_likeness(path: Path, vectors: np.ndarray) -> None:
    all_ids = set(range(60)) - {7}
    with clipql.connect(path) as db:
        told = takedown(db, "t", vectors=vectors[[3, 9]], within=0.001, column="v v", dry=True)
        assert [set(a.ids) for a in told.asked] == [{"3", "50", "51"}, {"9"}]
        assert told.asked[0].distances[:2] == (0.0, 0.0)
        assert ids(db) == all_ids
        table = db.registry.catalog.tables[0]
        kept = path / "maps" / table.id / "column-0-0-pca.map"  # a map tells where the vectors of rows are
        kept.parent.mkdir(parents=True)
        kept.write_bytes(b"a map")
        files = {p for p in path.rglob("*") if p.suffix in (".npy", ".map")}
        done = takedown(db, "t", ids=[3, 4, 7, "x"], column="v v")
        assert done.missing == ("7", "x")
        assert (done.removed, done.left, done.erased, done.still) == (2, 57, True, ())
        assert done.copies == ("50",)
        assert done.files >= len(files) > 0
        assert not any(p.exists() for p in files)
        assert ids(db) == all_ids - {3, 4}
        done = takedown(db, "default.t", urls=["http://h/10", "http://h/2", "http://h/nowhere"], column="v v")
        assert [a.ids for a in done.asked] == [("20", "21"), ("5",), ()]
        done = takedown(db, "t", vectors=vectors[[3]], within=0.001, column="v v")
        assert (done.removed, done.copies) == (2, ())
        assert ids(db) == all_ids - {3, 4, 20, 21, 5, 50, 51}
        near = db.sql("SELECT id FROM t ORDER BY cosineDistance(`v v`, {q:Array(Float32)}) LIMIT 1", q=vectors[12])
        assert near.rows == [(12,)]


def test_the_command_reports_what_is_still_there(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted, report = path.parent / "wanted", path.parent / "report.json"
    wanted.write_text("30\n\n 31 \n9000\n")
    asked = ["--db", str(path), "takedown", "--table", "t", "--column", "v v", "--ids", str(wanted)]
    assert main([*asked, "--dry-run"]) == 0
    said = capsys.readouterr()
    assert said.out == "2 rows would go from default.t, 52 rows are there\n"
    assert "nothing is there of 9000" in said.err
    kept = next(path.glob("vectors/*/*/*.npy"))
    os.link(kept, path / "tmp-link.npy")  # as a snapshot of a reader has it
    assert main([*asked, "--report", str(report)]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("2 rows are gone from default.t, 50 rows are there\n")
    assert "1 files still have bytes of them" in said.out
    found = json.loads(report.read_text())
    assert (found["removed"], found["missing"], found["asked"][0]) == (
        2,
        ["9000"],
        {"what": "30", "ids": ["30"], "distances": []},
    )
    assert found["still"] == [str(path / "tmp-link.npy")]
    (path / "tmp-link.npy").unlink()


def test_what_is_not_one_question_is_refused(path: Path) -> None:
    with clipql.connect(path) as db:
        with pytest.raises(ClipqlError, match="give ids, urls or pictures"):
            takedown(db, "t", column="v v")
        with pytest.raises(ClipqlError, match="say how far"):
            takedown(db, "t", vectors=np.ones((1, 8)), column="v v")
        with pytest.raises(VectorError, match="no vector column u"):
            takedown(db, "t", ids=[1], column="u")
        assert takedown(db, "t", ids=[], column="v v").removed == 0
