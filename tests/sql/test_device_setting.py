"""SET vector_device: statements give the rows that they give on the processor, and EXPLAIN names the device."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipql
from clipql.curate.clusters import cluster_rows
from clipql.curate.dedup import dedup
from clipql.errors import DeviceError, QueryError
from clipql.index import within
from clipql.storage.vectors import devices
from clipql.tables import writer
from tests.numpy_device import NumpyDevice

ROWS, DIMENSION = 1_500, 12
ON = "vector_device = 'cuda:3'"


def vectors(seed: int, n: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Clustered, of many lengths, every tenth doubled, some of zeros."""
    rng = np.random.default_rng(seed)
    x = np.random.default_rng(0).standard_normal((30, DIMENSION))[rng.integers(0, 30, n)]
    x = (x + 0.3 * rng.standard_normal((n, DIMENSION))) * 2.0 ** rng.integers(-3, 4, (n, 1))
    x[1::10] = x[::10][: len(x[1::10])]
    x[50::400] = 0
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    with pytest.MonkeyPatch.context() as patch, clipql.connect(tmp_path_factory.mktemp("devices") / "db") as made:
        patch.setattr(writer, "LEAST_ROWS", 1)  # only answers of the row file are given to many vectors at once
        for name, n in (("t", ROWS), ("labels", 40)):
            made.sql(f"CREATE TABLE {name} (id UInt32, k UInt8, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
            values = ",".join(f"({i},{i % 100},{x.tolist()})" for i, x in enumerate(vectors(n, n)))
            made.sql(f"INSERT INTO {name} VALUES {values}")
        made.sql("DELETE FROM t WHERE id % 7 = 3")
        yield made


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> NumpyDevice:
    """What every name of a device stands for, for any work."""
    made = NumpyDevice()
    monkeypatch.setattr(devices, "opened", lambda name: made)
    monkeypatch.setattr(devices, "_open", {})
    monkeypatch.setattr(devices, "_installed", lambda: True)
    monkeypatch.setattr(within, "FOR_DEVICE", 0)
    return made


STATEMENTS = [
    "SELECT l.id, t.id, L2Distance(t.v, l.v) AS d FROM labels l, t ORDER BY d LIMIT 3 BY l.id",
    "SELECT l.id, t.id FROM labels l, t WHERE t.k > 30 ORDER BY dotProduct(t.v, l.v) DESC LIMIT 4 BY l.id",
    "SELECT t.id, argMin(l.id, cosineDistance(t.v, l.v)) FROM t, labels l GROUP BY t.id ORDER BY t.id",
    "SELECT q.n, t.id FROM (SELECT arrayJoin(arrayEnumerate({Q:Array(Array(Float32))})) AS n, "  # noqa: ISC004
    "{Q:Array(Array(Float32))}[n] AS v) AS q, t ORDER BY cosineDistance(t.v, q.v) LIMIT 2 BY q.n",
    "SELECT a.id, b.id, cosineDistance(a.v, b.v) FROM t a, t b WHERE a.id < b.id AND cosineDistance(a.v, b.v) < 0.02",
    "SELECT t.id, l.id FROM t JOIN labels AS l ON L2Distance(t.v, l.v) < 0.9 WHERE t.k < 60",
    "SELECT id FROM t WHERE nearAny(v, (SELECT v FROM labels WHERE k < 9), 'cosineDistance', 0.05)",
]


@pytest.mark.parametrize("statement", STATEMENTS)
def test_joins_give_the_same_rows_on_a_device(db: clipql.Database, device: NumpyDevice, statement: str) -> None:
    given = {"Q": vectors(5, 7)} if "{Q" in statement else {}
    expected = db.sql(statement, **given).rows
    assert device.asked == 0
    assert sorted(map(repr, db.sql(f"{statement} SETTINGS {ON}", **given).rows)) == sorted(map(repr, expected))
    assert device.asked > 0
    told = [row[0] for row in db.sql(f"EXPLAIN {statement} SETTINGS {ON}", **given).rows]
    assert "  device: numpy" in told
    assert not [row for row in db.sql(f"EXPLAIN {statement}", **given).rows if "device" in row[0]]


@pytest.mark.parametrize("distance", ["L2Distance", "cosineDistance", "dotProduct"])
def test_a_batch_of_query_vectors_gives_the_same_rows_on_a_device(
    db: clipql.Database, device: NumpyDevice, distance: str
) -> None:
    order = "d DESC" if distance == "dotProduct" else "d"
    call = f"{distance}(v, {{q:Array(Float32)}})"
    sql = f"SELECT id, {call} AS d FROM t ORDER BY {order} LIMIT 8 SETTINGS vector_index = 0"
    given = [{"q": q} for q in (*vectors(6, 60), np.full(DIMENSION, 1e30, np.float32))]
    expected = [r.rows for r in db.sql_many(sql, given)]
    assert repr([r.rows for r in db.sql_many(f"{sql}, {ON}", given[:60])]) == repr(expected[:60])
    assert device.asked > 0
    assert repr([r.rows for r in db.sql_many(f"{sql}, {ON}", given)]) == repr(expected)
    asked = device.asked
    db.sql(f"SET {ON}")  # the statement is known by now, as one of the processor's
    try:
        assert repr([r.rows for r in db.sql_many(sql, given[:60])]) == repr(expected[:60])
        assert device.asked > asked
    finally:
        db.sql("SET vector_device = 'cpu'")
    told = [row[0] for row in db.sql(f"EXPLAIN {sql}, {ON}", **given[0]).rows]
    assert "  device: cuda:3, where many query vectors are asked for at once" in told


def test_heads_give_the_same_numbers_on_a_device(db: clipql.Database, device: NumpyDevice) -> None:
    given = {"W": np.random.default_rng(1).standard_normal((5, DIMENSION)).astype(np.float32), "b": [0.5] * 5}
    head = "vectorRelu(vectorLinear(v, {W:Array(Array(Float32))}, {b:Array(Float32)}))"
    for sql in (f"SELECT id, {head} AS h FROM t ORDER BY id", f"SELECT k, avg({head}[2]) FROM t GROUP BY k ORDER BY k"):
        expected, asked = db.sql(sql, **given).rows, device.asked
        found = db.sql(f"{sql} SETTINGS {ON}", **given).rows
        assert [row[0] for row in found] == [row[0] for row in expected]
        np.testing.assert_allclose([row[1] for row in found], [row[1] for row in expected], rtol=1e-4, atol=1e-5)
        assert device.asked > asked
        lines = [row[0] for row in db.sql(f"EXPLAIN {sql} SETTINGS {ON}", **given).rows]
        assert "  why: a head of a vector column, computed on numpy" in lines
    db.sql(f"SET {ON}")
    try:
        asked = device.asked
        db.sql(f"DELETE FROM labels WHERE {head}[1] > 1e9", **given)
        assert device.asked > asked
        assert db.sql("SELECT count() FROM labels").rows == [(40,)]
    finally:
        db.sql("SET vector_device = 'cpu'")


def test_clusters_and_duplicates_are_the_same_on_a_device(db: clipql.Database, device: NumpyDevice) -> None:
    made = {}
    for on in ("cpu", "cuda"):
        cluster_rows(db, "t", column="v", k=20, into="clusters", device=on)
        dedup(db, "t", column="v", within=0.001, into="duplicates", device=on)
        made[on] = [db.sql(f"SELECT * FROM {name} ORDER BY id").rows for name in ("clusters", "duplicates")]
        db.sql("DROP TABLE clusters")
        db.sql("DROP TABLE duplicates")
        assert (device.asked > 0) == (on == "cuda")
    assert made["cpu"][1] == made["cuda"][1]
    assert len(made["cpu"][1]) > 200
    assert [row[:2] for row in made["cpu"][0]] == [row[:2] for row in made["cuda"][0]]


def test_auto_takes_a_device_where_there_is_enough_to_do(
    db: clipql.Database, device: NumpyDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    statement, auto = STATEMENTS[0], "SETTINGS vector_device = 'auto'"
    db.sql(f"{statement} {auto}")
    assert device.asked == 0
    told = [row[0] for row in db.sql(f"EXPLAIN {statement} {auto}").rows]
    assert "  device: none: for 720,000 products it takes longer to begin" in told
    monkeypatch.setattr(devices, "WORTH", 700_000)
    db.sql(f"{statement} {auto}")
    assert device.asked > 0
    monkeypatch.setattr(devices, "_installed", lambda: False)
    told = [row[0] for row in db.sql(f"EXPLAIN {statement} {auto}").rows]
    assert "  device: none: PyTorch sees no GPU here" in told


def test_a_device_that_is_not_there_is_told_of(db: clipql.Database) -> None:
    """Without PyTorch what to install, with it what it sees."""
    expected = (
        r"pip install clipql\[torch\], or SET|there is no device 'cuda:99': PyTorch \S+ sees .+ or SET vector_device"
    )
    with pytest.raises(DeviceError, match=expected):
        db.sql(f"{STATEMENTS[0]} SETTINGS vector_device = 'cuda:99'")
    with pytest.raises(DeviceError, match=expected):
        cluster_rows(db, "t", column="v", k=20, into="clusters", device="cuda:99")
    assert db.sql("EXISTS TABLE clusters").rows == [(0,)]
    assert len(db.sql(STATEMENTS[0])) == 120


@pytest.mark.parametrize("value", ["'gpu'", "1", "'cuda:x'", "''"])
def test_a_name_of_no_device_is_refused(db: clipql.Database, value: str) -> None:
    with pytest.raises(QueryError, match=r"vector_device = .*expected cpu, auto, cuda, or cuda:1"):
        db.sql(f"{STATEMENTS[0]} SETTINGS vector_device = {value}")
    with pytest.raises(QueryError, match=r"vector_device = .*expected cpu, auto, cuda, or cuda:1"):
        db.sql(f"SET vector_device = {value}")
    with pytest.raises(DeviceError, match="expected cpu, auto, cuda, or cuda:1"):
        dedup(db, "t", column="v", within=0.1, into="duplicates", device=value)


def test_pytorch_is_not_imported_for_what_needs_no_device(tmp_path: Path) -> None:
    """Neither by what is imported, nor by 'auto' where there is little to do. A stand-in says that it was."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise SystemExit('PyTorch was imported')")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import clipql\n"
        "with clipql.connect(sys.argv[1] + '/db') as db:\n"
        "    db.sql('CREATE TABLE t (id UInt8, v Array(Float32)) ENGINE = MergeTree ORDER BY id')\n"
        "    db.sql('INSERT INTO t VALUES (1, [1, 2]), (2, [3, 4])')\n"
        "    for value in ('cpu', 'auto'):\n"
        "        db.sql(f\"SET vector_device = '{value}'\")\n"
        "        print(db.sql('SELECT a.id FROM t a, t b WHERE L2Distance(a.v, b.v) < 1 ORDER BY 1').rows)\n"
        "    db.sql(\"SET vector_device = 'cuda'\")\n"
        "    print(db.sql('SELECT id FROM t ORDER BY L2Distance(v, [1, 2]) LIMIT 1').rows, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[(1,), (2,)]\n[(1,), (2,)]\n[(1,)] False\n"
