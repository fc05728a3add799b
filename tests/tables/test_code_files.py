"""The codes of a column are made when exact searches ask for them, follow its rows, and change no answer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import clipql
from clipql.index.bounded import file as code_file
from clipql.index.bounded import search
from clipql.sql.search import vector_search
from clipql.storage.catalog import Table
from clipql.tables import code_files

ROWS, DIMENSION = 1200, 40
NEAREST = "SELECT id, L2Distance(v, {q:Array(Float32)}) AS d FROM TABLE ORDER BY d, id LIMIT 12"
WITHIN = "SELECT id FROM TABLE WHERE L2Distance(v, {q:Array(Float32)}) < 5.5 ORDER BY id"
FILTERED = "SELECT id FROM TABLE WHERE id % 5 != 2 ORDER BY cosineDistance(v, {q:Array(Float32)}), id LIMIT 9"
FARTHEST = "SELECT id FROM TABLE ORDER BY dotProduct(v, {q:Array(Float32)}), id LIMIT 5"
ALL = (NEAREST, WITHIN, FILTERED, FARTHEST)
QUERY = np.random.default_rng(0).standard_normal(DIMENSION).astype(np.float32)


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    """A database in which codes are made, and used, for few rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_files, "FEWEST_ROWS", 500)
        patch.setattr(code_file, "WORTH", np.inf)
        patch.setattr(search, "MOST_LEFT", 2.0)
        patch.setattr(vector_search, "FEW", 100)
        with clipql.connect(tmp_path_factory.mktemp("codes") / "db") as db:
            yield db


@pytest.fixture
def t(db: clipql.Database) -> Iterator[str]:
    """A table of its own, without codes yet."""
    name = f"t{db.registry.catalog.serial}"
    db.sql(f"CREATE TABLE {name} (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    insert(db, name, 0, ROWS)
    yield name
    db.sql(f"DROP TABLE IF EXISTS {name}")


def insert(db: clipql.Database, t: str, first: int, last: int) -> None:
    numbers = ", ".join(f"sin(number * {j + 1} * 0.7) + (number % 7 = {j % 7})" for j in range(DIMENSION))
    db.sql(f"INSERT INTO {t} SELECT number, [{numbers}] FROM numbers({first}, {last - first})")


def proven(db: clipql.Database, t: str, statement: str = NEAREST) -> int:
    """How many searches codes answered; the rows are those that ClickHouse finds by itself."""
    text = statement.replace("TABLE", t)
    found, expected = db.sql(text, q=QUERY), db.sql(f"{text} SETTINGS vector_plan = 0", q=QUERY)
    assert [r[0] for r in found.rows] == [r[0] for r in expected.rows]
    return sum(s.cost.proven for s in found.stats.searches)


def table_of(db: clipql.Database, t: str) -> Table:
    found = db.registry.find(None, t)
    assert found is not None
    return found


def covered(db: clipql.Database, t: str) -> int:
    """The rows that codes cover."""
    table = table_of(db, t)
    file = db.registry.codes.ready(table, "v", db.registry.store(table, "v"))
    return file.rows if file else 0


def coded(db: clipql.Database, t: str) -> None:
    """Have the codes made, as the second search does."""
    for _ in range(code_files.SEARCHES):
        db.sql(NEAREST.replace("TABLE", t), q=QUERY)
    db.wait_for_indexes()


def names(db: clipql.Database, t: str) -> list[str]:
    """The code files of a table."""
    table = db.registry.find(None, t)
    return sorted(str(p.relative_to(db.path)) for p in db.path.glob(f"codes/{table.id if table else t}*/*"))


def told(db: clipql.Database, statement: str) -> str:
    return "\n".join(r[0] for r in db.sql(f"EXPLAIN {statement}", q=QUERY).rows)


def test_the_second_exact_search_has_codes_made_and_all_kinds_of_searches_use_them(db: clipql.Database, t: str) -> None:
    assert (proven(db, t), names(db, t)) == (0, [])
    coded(db, t)
    assert len(names(db, t)) == 1
    assert [proven(db, t, s) for s in ALL] == [1, 1, 1, 1]
    db.sql(f"DELETE FROM {t} WHERE id % 3 = 1")
    assert [proven(db, t, s) for s in ALL] == [1, 1, 1, 1]
    nearest = NEAREST.replace("TABLE", t)
    assert "proven by bounds" in told(db, nearest)
    off = db.sql(f"{nearest} SETTINGS vector_codes = 0", q=QUERY)
    assert (off.stats.searches[0].cost.proven, off.stats.rows_scanned > 0) == (0, True)
    assert off.rows == db.sql(nearest, q=QUERY).rows
    assert "proven" not in told(db, f"{nearest} SETTINGS vector_codes = 0")


def test_recall_1_and_a_condition_are_proven_by_codes_where_there_is_an_index(db: clipql.Database, t: str) -> None:
    db.sql(f"ALTER TABLE {t} ADD INDEX near v TYPE ivf('L2Distance')")
    db.sql(f"ALTER TABLE {t} MATERIALIZE INDEX near")
    asked = f"{NEAREST.replace('TABLE', t)} SETTINGS recall = 1"
    for _ in range(code_files.SEARCHES):
        db.sql(asked, q=QUERY)
    db.wait_for_indexes()
    assert sum(s.cost.proven for s in db.sql(asked, q=QUERY).stats.searches) == 1
    assert proven(db, t, WITHIN) == 1
    assert "proven by bounds" in told(db, asked)


def test_newer_rows_are_scanned_until_the_codes_are_grown(db: clipql.Database, t: str) -> None:
    coded(db, t)
    before = names(db, t)
    insert(db, t, ROWS, ROWS + 40)
    assert proven(db, t) == 1
    db.wait_for_indexes()
    assert names(db, t) == before  # few are scanned
    insert(db, t, ROWS + 40, 2 * ROWS)
    assert [proven(db, t, s) for s in ALL] == [1, 1, 1, 1]
    db.wait_for_indexes()
    assert len(names(db, t)) == 1
    assert names(db, t) != before
    assert covered(db, t) == 2 * ROWS
    assert proven(db, t) == 1


def test_a_flat_index_has_codes_made_by_materialize_and_removed_by_clear(db: clipql.Database, t: str) -> None:
    db.sql(f"ALTER TABLE {t} ADD INDEX exact v TYPE flat('L2Distance')")
    db.sql(f"ALTER TABLE {t} MATERIALIZE INDEX exact")
    assert (len(names(db, t)), proven(db, t)) == (1, 1)
    db.sql(f"ALTER TABLE {t} CLEAR INDEX exact")
    assert (names(db, t), proven(db, t)) == ([], 0)


def test_codes_of_other_vectors_are_not_used_and_go(db: clipql.Database, t: str) -> None:
    coded(db, t)
    [before] = names(db, t)
    db.sql(f"ALTER TABLE {t} UPDATE v = arrayMap(x -> x + 1, v) WHERE id % 4 = 0 SETTINGS mutations_sync = 2")
    assert (proven(db, t), before in names(db, t)) == (0, False)
    coded(db, t)
    assert proven(db, t) == 1
    db.sql(f"DELETE FROM {t} WHERE id < 100")
    db.sql(f"OPTIMIZE TABLE {t} FINAL")
    assert proven(db, t) == 0
    coded(db, t)
    assert proven(db, t) == 1
    folder = db.path / "codes" / table_of(db, t).id
    assert folder.is_dir()
    db.sql(f"DROP TABLE {t}")
    assert not folder.exists()


def test_an_opened_database_uses_codes_sweeps_what_a_kill_left_and_passes_over_damage(db: clipql.Database) -> None:
    for t in ("whole", "damaged"):
        db.sql(f"CREATE TABLE {t} (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        insert(db, t, 0, ROWS)
        coded(db, t)
    places = {t: db.path / names(db, t)[0] for t in ("whole", "damaged")}
    db.close()
    left = places["whole"].parent / f".{places['whole'].name}.1.new"
    left.mkdir()
    (db.path / "codes" / "gone-7" / "column-0-7").mkdir(parents=True)
    content = bytearray((places["damaged"] / "residual.npy").read_bytes())
    content[-300:] = bytes(300)
    (places["damaged"] / "residual.npy").write_bytes(content)
    with clipql.connect(db.path) as again:
        assert not left.exists()
        assert not (again.path / "codes" / "gone-7").exists()
        assert proven(again, "whole") == 1
        assert proven(again, "damaged") == 0
        assert not places["damaged"].exists()
        coded(again, "damaged")
        assert proven(again, "damaged") == 1
    with clipql.connect(db.path, read_only=True) as reader:
        assert proven(reader, "damaged") == 1
