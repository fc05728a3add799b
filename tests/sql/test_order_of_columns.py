"""Every form of `*` gives the columns that ClickHouse gives, in its order, and so does what is made with it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from plain import plain

import clipql
from clipql.errors import ClipqlError, UnsupportedStatement
from tests.cases import some

OTHERS = ("s String", "n Nullable(Int32)", "w UInt16 DEFAULT 7")
COMPUTED = ("m UInt64 MATERIALIZED id * 2", "l UInt64 ALIAS id + 1")
STARS = (
    "*", "t.*", "DISTINCT *", "*, id + 1 AS k", "id AS first, *", "* EXCEPT (a)", "* EXCEPT a", "t.* EXCEPT (s)",
    "* EXCEPT ('^[as]')", "* REPLACE (id + 1 AS id)", "* REPLACE (b AS a, a AS b)", "t.* REPLACE id + 1 AS id",
    "* APPLY(toString)", "* EXCEPT (id) APPLY(toString)", "* APPLY(x -> toString(x))", "COLUMNS('.*')",
    "COLUMNS('^a|s')", "t.COLUMNS('.*')", "COLUMNS('.*') EXCEPT (b)", "COLUMNS(b, id, a)", "t.COLUMNS(b, id, a)",
    "tuple(*)", "toString(tuple(t.*))", "(*, 1)", "*, toString(id) AS id", "* EXCEPT id, id * 2", "* LIKE '%a%'",
    "*, *", "t.*, t.id * 3", "id * 2, *", "id * (2), t.*", "DISTINCT ON (id) *", "* EXCEPT STRICT a",
)  # fmt: skip
SOURCES = (
    "z AS t", "z t", "default.z AS t", "(SELECT * FROM z) AS t", "(SELECT q.* FROM z AS q) AS t", "(FROM z) AS t",
    "(SELECT * FROM z WHERE id > 1 UNION ALL SELECT * FROM z AS u WHERE u.id < 2) AS t", "v AS t", "c AS t",
    "z AS t JOIN o ON t.id = o.k", "z AS t JOIN o AS p ON t.id = p.k", "o JOIN z AS t ON t.id = o.k",
    "z AS t JOIN y ON t.id = y.id", "z AS t JOIN y USING (id)", "o AS p JOIN z AS t ON t.id = p.k JOIN y ON y.id = p.k",
    "z AS t LEFT JOIN y ON t.id = y.id AND y.id > 2", "z AS t, o", "z AS t CROSS JOIN y", "(z AS t JOIN y USING id)",
    "z AS t JOIN (SELECT * FROM y) AS r ON r.id = t.id", "z AS t JOIN (SELECT * FROM y) AS r USING id",
    "z AS t NATURAL JOIN y", "z AS t ARRAY JOIN a AS x", "z AS t ARRAY JOIN a", "z AS t LEFT ARRAY JOIN a AS x, b AS q",
    "z AS t JOIN o ON t.id = o.k ARRAY JOIN a AS x", "z AS t PASTE JOIN (SELECT k FROM o ORDER BY k) AS r",
)  # fmt: skip
WHOLES = (
    "WITH 5 AS id SELECT * FROM z",
    "WITH 5 AS id SELECT z.* FROM z ORDER BY s",
    "FROM z ORDER BY id",
    "FROM z WHERE id > 1 ORDER BY id",
    "FROM z SELECT * WHERE id > 1 ORDER BY id",
    "WITH c AS (FROM z) FROM c SELECT * ORDER BY id",
    "FROM z UNION ALL FROM z ORDER BY ALL",
    "SELECT * FROM (SELECT * FROM z UNION DISTINCT SELECT * FROM z) ORDER BY ALL",
    "SELECT * FROM z INTERSECT SELECT * FROM z ORDER BY ALL",
    "SELECT * FROM z EXCEPT SELECT * FROM z WHERE id = 2 ORDER BY ALL",
    "SELECT id FROM z WHERE tuple(*) IN (SELECT tuple(*) FROM z AS u WHERE id = 1) ORDER BY id",
    "SELECT id FROM z WHERE (*) IN z ORDER BY id",
    "SELECT count() FROM z WHERE (*) IN default.z",
    "SELECT 2 IN z FROM (SELECT 2 AS z)",
    "SELECT count(*), count(DISTINCT *) FROM z",
    "SELECT sipHash64(*), id * 2 * id FROM z ORDER BY id",
    "SELECT count() FROM z GROUP BY *",
    "SELECT * FROM z ORDER BY id LIMIT 1 BY *",
    "SELECT * FROM z ORDER BY L2Distance(a, [1, 2]), id LIMIT 2",
    "SELECT t.* EXCEPT a FROM z AS t WHERE id < 9 ORDER BY L2Distance(t.a, [1, 2]), id LIMIT 2",
    "SELECT t.*, o.* FROM z AS t JOIN o ON o.k = t.id ORDER BY L2Distance(t.b, [1, 2]), t.id LIMIT 2",
    "SELECT * FROM z AS t JOIN o ON o.k = t.id ORDER BY L2Distance(t.b, [1, 2]), t.id LIMIT 2",
    "SELECT x.*, y.* EXCEPT id FROM z AS x JOIN z AS y ON x.id = y.id ORDER BY ALL",
    "SELECT * FROM z WHERE id = (SELECT max(id) FROM (SELECT * FROM y)) ORDER BY ALL",
    "SELECT (SELECT tuple(*) FROM z WHERE id = 1) AS x, arrayMap(x -> x * 2, a) FROM z ORDER BY id",
    "SELECT * FROM view(SELECT * FROM z) ORDER BY ALL",
    "SELECT `*` FROM (SELECT id AS `*` FROM z) ORDER BY ALL",
    "SELECT * FROM o ORDER BY ALL",
    "SELECT *, k + 1 FROM (SELECT o.* FROM o) ORDER BY ALL",
    "SELECT * EXCEPT s FROM o AS a JOIN o AS b USING (k) ORDER BY ALL",
    "SELECT count() FROM o WHERE (*) IN o",
    "DESCRIBE (SELECT * FROM system.databases)",
    "SELECT COLUMNS('nothing') FROM z",
    "SELECT z.COLUMNS('nothing'), id FROM z ORDER BY id",
    "DESCRIBE (SELECT * FROM z)",
    "SELECT * FROM z ORDER BY id SETTINGS asterisk_include_materialized_columns = 1",
    "SELECT t.* FROM z AS t ORDER BY id SETTINGS asterisk_include_alias_columns = 1",
    "SELECT * FROM y ORDER BY id SETTINGS asterisk_include_alias_columns = 0, max_threads = 1",
    "SELECT * FROM (SELECT x.*, y.id AS k FROM z AS x, y ORDER BY L2Distance(x.a, y.a) LIMIT 2 BY y.id) ORDER BY ALL",
    "SELECT * FROM (SELECT * FROM z AS x CROSS JOIN y ORDER BY L2Distance(x.b, y.a) LIMIT 1 BY y.id) ORDER BY ALL",
    "SELECT * FROM (SELECT y.id, x.* EXCEPT s FROM z AS x, y ORDER BY L2Distance(x.a, y.b) LIMIT 1 BY y.id) ORDER BY 1",
)
MAKERS = (
    ("INSERT INTO z2 SELECT * FROM z", "SELECT * FROM z2 ORDER BY ALL"),
    ("INSERT INTO z2 SELECT t.* FROM z AS t", "SELECT * FROM z2 ORDER BY ALL"),
    ("INSERT INTO z2 SELECT DISTINCT * FROM z", "SELECT * FROM z2 ORDER BY ALL"),
    ("INSERT INTO z2 SELECT * REPLACE (id + 10 AS id) FROM z", "SELECT * FROM z2 ORDER BY ALL"),
    ("INSERT INTO z2 SELECT * FROM (SELECT * FROM z)", "SELECT * FROM z2 ORDER BY ALL"),
    ("INSERT INTO z2 SELECT * FROM z UNION ALL SELECT t.* FROM z AS t", "SELECT * FROM z2 ORDER BY ALL"),
    ("INSERT INTO z2 WITH c AS (SELECT * FROM z) SELECT * FROM c", "SELECT * FROM z2 ORDER BY ALL"),
    ("INSERT INTO z2 FROM z", "SELECT * FROM z2 ORDER BY ALL"),
    ("INSERT INTO z2 SELECT * FROM v", "SELECT * FROM z2 ORDER BY ALL"),
    ("INSERT INTO z2 (* EXCEPT (s)) SELECT * EXCEPT (s) FROM z", "SELECT * FROM z2 ORDER BY ALL"),
    ("INSERT INTO z2 (COLUMNS('^(id|a|b)$')) SELECT COLUMNS('^(id|a|b)$') FROM z", "SELECT * FROM z2 ORDER BY ALL"),
    ("INSERT INTO z2 SELECT 1 AS id, * EXCEPT id FROM z", "SELECT count() FROM z2"),
    ("CREATE VIEW n AS SELECT * FROM o", "SELECT * FROM n ORDER BY ALL"),
    ("CREATE TABLE n ENGINE = Memory AS SELECT * FROM o", "SELECT * FROM n ORDER BY ALL"),
    ("INSERT INTO heap SELECT t.* FROM z AS t", "SELECT * FROM heap ORDER BY ALL"),
    ("CREATE TABLE n ENGINE = MergeTree ORDER BY id AS SELECT t.* FROM z AS t", "SELECT * FROM n ORDER BY ALL"),
    ("CREATE TABLE n ENGINE = MergeTree ORDER BY id AS SELECT * EXCEPT (a) FROM z", "SELECT * FROM n ORDER BY ALL"),
    ("CREATE TABLE n ENGINE = MergeTree ORDER BY id EMPTY AS SELECT DISTINCT * FROM z", "DESCRIBE TABLE n"),
    ("CREATE TABLE n ENGINE = Memory AS SELECT *, id AS k FROM z", "SELECT * FROM n ORDER BY ALL"),
    ("CREATE VIEW n AS SELECT * FROM z", "SELECT * FROM n ORDER BY ALL"),
    ("CREATE VIEW n AS SELECT t.*, o.* FROM z AS t JOIN o ON t.id = o.k", "SELECT * FROM n ORDER BY ALL"),
    ("CREATE VIEW n AS SELECT * FROM z AS t JOIN y USING (id)", "SELECT * FROM n ORDER BY ALL"),
    ("CREATE OR REPLACE VIEW n AS (SELECT * FROM v)", "SELECT n.* FROM n ORDER BY ALL"),
    ("CREATE VIEW n AS SELECT COLUMNS('.*') FROM z", "SELECT * FROM n ORDER BY ALL"),
    ("CREATE VIEW n AS SELECT * FROM z WHERE id > {low:UInt32}", "SELECT * FROM n(low = 1) ORDER BY ALL"),
    ("CREATE TEMPORARY TABLE n AS SELECT * FROM z", "SELECT * FROM n ORDER BY ALL"),
)


def definition(rng: random.Random, computed: bool) -> str:
    columns = ["id UInt32", *rng.sample(OTHERS, rng.randint(1, 3))]
    columns += rng.sample(COMPUTED, rng.randint(1, 2)) if computed else []
    columns = [*columns, "s String"] if "s String" not in columns else columns
    for vector in ("a", "b"):
        columns.insert(rng.randint(0, len(columns)), f"{vector} Array(Float32)")
    return f"({', '.join(columns)}) ENGINE = MergeTree ORDER BY id"


def names(definition: str) -> list[str]:
    return [c.split()[0] for c in definition[1:].split(") ENGINE")[0].split(", ") if c not in COMPUTED]


def filling(table: str, definition: str, rng: random.Random) -> str:
    def value(column: str, i: int) -> str:
        number = i * 3 + rng.randint(0, 2)
        written = {"id": str(i), "s": f"'s{number}'", "n": "NULL" if i == 2 else str(-number), "w": str(number)}
        return written.get(column, f"[{rng.randint(0, 90)}.5, {rng.randint(0, 90)}.25]")

    columns = names(definition)
    rows = ", ".join("(" + ", ".join(value(c, i) for c in columns) + ")" for i in (1, 2, 3))
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES {rows}"


def set_up(seed: int) -> list[str]:
    rng = random.Random(seed)
    z, y = definition(rng, seed % 2 == 1), definition(rng, False)
    more = ", twice Float64 ALIAS e * 2" if seed % 2 == 1 else ""
    return [
        f"CREATE TABLE z {z}",
        f"CREATE TABLE y {y}",
        f"CREATE TABLE o (k UInt32, s String, e Float64{more}) ENGINE = MergeTree ORDER BY k",
        f"CREATE TABLE z2 {z}",
        "CREATE TABLE heap (" + ", ".join(c for c in z[1:].split(") ENGINE")[0].split(", ") if c not in COMPUTED)
        + ") ENGINE = Memory",
        filling("z", z, rng),
        filling("y", y, rng),
        "INSERT INTO o VALUES (1, 'one', 0.5), (3, 'three', 1.5)",
        "CREATE VIEW v AS SELECT * FROM z",
    ]  # fmt: skip


def reads(seed: int) -> list[str]:
    rng = random.Random(seed)
    made = []
    for source in SOURCES:
        for star in rng.sample(STARS, 12):
            known = "WITH c AS (SELECT * FROM z) " if source == "c AS t" else ""
            made.append(f"{known}SELECT {star} FROM {source} ORDER BY ALL")
    return [*made, *WHOLES]


def ours(db: clipql.Database, statement: str) -> Any:
    try:
        data = db.execute(statement, format="JSONCompactEachRowWithNames").output.data
    except UnsupportedStatement as error:
        return error
    except ClipqlError as error:
        return str(error)
    return [json.loads(line) for line in bytes(data).splitlines()]


def same(mine: Any, theirs: Any) -> bool:
    return mine == theirs or (isinstance(mine, str) and isinstance(theirs, str))


@pytest.mark.parametrize("seed", some(range(4), 4))
def test_every_star_is_what_it_is_in_clickhouse(tmp_path: Path, seed: int) -> None:
    before, statements = set_up(seed), reads(seed)
    expected = plain([*before, *statements])[len(before) :]
    with clipql.connect(tmp_path / "db") as db:
        for statement in before:
            db.sql(statement)
        found = [ours(db, s) for s in statements]
    wrong = [
        (s, mine, theirs)
        for s, mine, theirs in zip(statements, found, expected, strict=True)
        if not same(mine, theirs) and not isinstance(mine, UnsupportedStatement)
    ]
    assert wrong == []
    refused = [s for s, mine in zip(statements, found, strict=True) if isinstance(mine, UnsupportedStatement)]
    assert len(refused) < len(statements) // 20, refused


@pytest.mark.parametrize("seed", some(range(4), 4))
def test_what_is_made_with_a_star_has_its_columns(tmp_path: Path, seed: int) -> None:
    before = set_up(seed)
    each = [
        s
        for make, read in MAKERS
        for s in (make, read, "DROP TABLE IF EXISTS n", "TRUNCATE TABLE z2", "TRUNCATE TABLE heap")
    ]
    expected = plain([*before, *each])[len(before) :]
    with clipql.connect(tmp_path / "db") as db:
        for statement in before:
            db.sql(statement)
        found = [ours(db, s) for s in each]
    assert [
        (s, mine, theirs)
        for s, mine, theirs in zip(each, found, expected, strict=True)
        if not same(mine, theirs) and not isinstance(mine, UnsupportedStatement)
    ] == []


def test_a_view_of_an_older_database_gets_its_columns_in_order(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "db") as db:
        db.sql("CREATE TABLE z (id UInt32, a Array(Float32), s String) ENGINE = MergeTree ORDER BY id")
        db.sql("INSERT INTO z VALUES (1, [1, 2], 'one')")
        for view in ("old AS SELECT * FROM z", "older AS SELECT * FROM old", "other AS SELECT id * 2 AS k FROM z"):
            db._engine.run(f"CREATE VIEW {view}")
        assert db.sql("SELECT * FROM old").columns == ("id", "s", "a")
    with clipql.connect(tmp_path / "db") as db:
        for view in ("old", "older"):
            found = db.sql(f"SELECT * FROM {view}")
            assert (found.columns, found.rows) == (("id", "a", "s"), [(1, [1.0, 2.0], "one")])
        assert db.sql("SELECT * FROM other").rows == [(2,)]


@pytest.mark.parametrize("star", ["* FROM merge('default', '^z')", "* FROM loop(z) LIMIT 1"])
def test_a_star_that_cannot_be_spelled_out_is_refused(db: clipql.Database, star: str) -> None:
    db.sql("CREATE TABLE z (id UInt32, a Array(Float32), s String) ENGINE = MergeTree ORDER BY id")
    with pytest.raises(UnsupportedStatement, match="name the columns"):
        db.sql(f"SELECT {star}")
    assert db.sql("SELECT id FROM merge('default', '^z')").rows == []


def test_vectors_are_passed_on_without_being_read_one_by_one(db: clipql.Database) -> None:
    db.sql("CREATE TABLE z (id UInt32, a Array(Float32), s String, b Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql("CREATE TABLE y (id UInt32, s String, a Array(Float32), b Array(Float32)) ENGINE = MergeTree ORDER BY id")
    db.sql("INSERT INTO z VALUES (1, [1, 2], 'one', [3, 4]), (2, [5, 6], 'two', [7, 8])")
    asked: list[str] = []
    vector = db._registry.vector
    db._registry.vector = lambda handle, row: asked.append(handle) or vector(handle, row)  # type: ignore[method-assign]
    db.sql("CREATE TABLE n AS z; INSERT INTO n SELECT * FROM z; INSERT INTO n SELECT t.* FROM z AS t")
    db.sql("INSERT INTO y SELECT id, s, t.a, b FROM z AS t; INSERT INTO y SELECT * FROM y")
    assert asked == []
    db.sql("INSERT INTO y SELECT 9 AS k, s, [9, 9] AS a, a AS b FROM z WHERE s = 'one'")
    assert db.sql("SELECT * FROM n ORDER BY id LIMIT 1").rows == [(1, [1.0, 2.0], "one", [3.0, 4.0])]
    assert db.sql("SELECT * FROM y WHERE id != 1 ORDER BY id").rows == [
        (2, "two", [5.0, 6.0], [7.0, 8.0]),
        (2, "two", [5.0, 6.0], [7.0, 8.0]),
        (9, "one", [9.0, 9.0], [9.0, 9.0]),
    ]
