"""Where the columns of a result come from, as the header X-Clipql-Origins says: it is right, or it is not said.

A caption is its table's name and its row's number, so each row of a result tells whether what was said is true.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.serve.conftest import Running

ROWS = {"many": 12, "typed": 5, "few": 3}
VECTOR = "v Array(Float32)"


@pytest.fixture(scope="module")
def known(server: Running) -> Iterator[Running]:
    """Tables of captions that say which row of which table they are of, one without vectors, and views."""
    for name, rows in ROWS.items():
        server.sql(f"CREATE TABLE {name} (caption String, tags Array(String), {VECTOR}) ENGINE = MergeTree ORDER BY ()")
        values = ", ".join(f"('{name} {i}', ['x', 'y'], [{i}, 1])" for i in range(rows))
        assert server.sql(f"INSERT INTO {name} VALUES {values}").status == 200
    for sql in (
        "CREATE TABLE plain (_row UInt64, caption String) ENGINE = MergeTree ORDER BY _row",
        "INSERT INTO plain SELECT number, concat('plain ', toString(number)) FROM numbers(4)",
        "CREATE VIEW renamed AS SELECT _row AS id, caption AS text FROM typed WHERE _row > 0",
        "CREATE VIEW over_it AS SELECT text, id FROM renamed",
        "CREATE VIEW of_both AS SELECT _row, caption FROM typed UNION ALL SELECT _row, caption FROM many",
        "CREATE VIEW counted AS SELECT count() AS _row, caption FROM typed GROUP BY caption",
        "CREATE DATABASE elsewhere",
        f"CREATE TABLE elsewhere.many (caption String, {VECTOR}) ENGINE = MergeTree ORDER BY ()",
        "INSERT INTO elsewhere.many VALUES ('elsewhere.many 0', [0, 1]), ('elsewhere.many 1', [1, 1])",
    ):
        assert server.sql(sql).status == 200, sql
    yield server
    assert server.sql("DROP DATABASE elsewhere").status == 200


def asked(server: Running, sql: str, **query: str) -> tuple[list[str | None], list[list[Any]]]:
    """What is said of each column, as `table.column`, and the rows; what is said is held against the rows."""
    reply = server.ask("/", sql, headers={"X-Clipql-Tell": "origins"}, default_format="JSONCompact", **query)
    assert reply.status == 200, (sql, reply.text)
    told = json.loads(reply.headers.get("x-clipql-origins", '{"sources": [], "columns": []}'))
    names = [f"{s['database']}.{s['table']}".removeprefix("default.") for s in told["sources"]]
    rows = reply.json["data"]
    for source, name in enumerate(names):
        at = {tuple(c): i for i, c in enumerate(told["columns"]) if c and c[0] == source}
        number, caption = at.get((source, "_row")), at.get((source, "caption"))
        for row in rows:
            if number is not None and caption is not None:
                assert row[caption] == f"{name} {row[number]}", (sql, told, row)
            elif caption is not None:
                assert row[caption].startswith(f"{name} "), (sql, told, row)
    columns = [f"{names[c[0]]}.{c[1]}" if c else None for c in told["columns"]]
    return columns + [None] * (len(reply.json["meta"]) - len(columns)), rows


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        ("SELECT _row FROM typed", ["typed._row"]),
        ("SELECT t._row AS _row, t.caption FROM typed AS t WHERE t._row < 3 AND caption NOT IN (SELECT 'many')",
         ["typed._row", "typed.caption"]),
        ("SELECT typed._row, default.typed.caption FROM default.typed", ["typed._row", "typed.caption"]),
        ("SELECT _row r, caption c FROM typed t -- many", ["typed._row", "typed.caption"]),
        ("FROM typed SELECT _row, caption", ["typed._row", "typed.caption"]),
        ("SELECT DISTINCT _row AS r, caption FROM typed", ["typed._row", "typed.caption"]),
        ("SELECT _row, *, length(caption) FROM typed",
         ["typed._row", "typed.caption", "typed.tags", "typed.v", None]),
        ("SELECT _row, cosineDistance(v, [1, 2]) AS d FROM typed ORDER BY d LIMIT 3", ["typed._row", None]),
        ("SELECT _row, count() FROM typed GROUP BY _row", ["typed._row", None]),
        ("(SELECT _row, caption FROM typed)", ["typed._row", "typed.caption"]),
        ("SELECT _row, caption FROM typed UNION ALL SELECT _row, caption FROM typed", ["typed._row", "typed.caption"]),
        ("SELECT * FROM (SELECT _row AS a, caption FROM typed ORDER BY caption LIMIT 2)",
         ["typed._row", "typed.caption"]),
        ("WITH x AS (SELECT _row AS r, caption FROM typed) SELECT r, caption FROM x", ["typed._row", "typed.caption"]),
        ("WITH x AS (SELECT t._row AS _row, caption FROM typed t), y AS (SELECT * FROM x) SELECT _row, caption FROM y",
         ["typed._row", "typed.caption"]),
        ("SELECT id, text FROM renamed", ["typed._row", "typed.caption"]),
        ("SELECT * FROM over_it AS o", ["typed.caption", "typed._row"]),
        ("SELECT _row, caption FROM elsewhere.many", ["elsewhere.many._row", "elsewhere.many.caption"]),
        ("SELECT m._row, t._row, m.caption, t.caption FROM many AS m JOIN typed AS t ON m._row = t._row + 1",
         ["many._row", "typed._row", "many.caption", "typed.caption"]),
        ("SELECT m._row, t._row FROM many AS m LEFT JOIN typed AS t ON m._row = t._row", ["many._row", None]),
        ("SELECT m._row, t._row FROM many AS m RIGHT JOIN typed AS t ON m._row = t._row", [None, "typed._row"]),
        ("SELECT t._row, p.caption FROM typed AS t JOIN plain AS p ON p._row = t._row", ["typed._row", None]),
        ("SELECT a._row, a.caption, b._row, b.caption FROM typed AS a, typed AS b",
         ["typed._row", "typed.caption", "typed._row", "typed.caption"]),
        ("SELECT _row, caption, tag FROM typed ARRAY JOIN tags AS tag", ["typed._row", "typed.caption", None]),
    ],
)  # fmt: skip
def test_a_column_is_told_through_what_only_renames_it(known: Running, sql: str, said: list[str | None]) -> None:
    columns, rows = asked(known, sql)
    assert rows
    assert columns == said


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT _row + 1 AS _row FROM typed",
        "SELECT number AS _row FROM numbers(3)",
        "SELECT _row FROM plain",
        "SELECT toUInt64(7) AS _row, length(caption) AS n FROM typed",
        "WITH 5 AS _row SELECT _row FROM typed",
        "SELECT max(_row) AS _row FROM typed",
        "SELECT negate(_row + 1 AS _row) AS x, _row AS y FROM typed",
        "SELECT _row FROM typed WHERE (2 AS _row) = 2",
        "SELECT m._row FROM many AS m FULL JOIN typed AS t ON m._row = t._row + 100",
        "SELECT _row FROM typed UNION ALL SELECT _row FROM many",
        "SELECT _row FROM typed UNION ALL SELECT number FROM numbers(9)",
        "SELECT _row FROM typed WHERE _row IN (0, 4) ORDER BY _row WITH FILL",
        "SELECT _row, count() FROM typed GROUP BY _row WITH ROLLUP",
        "SELECT _row, count() FROM typed GROUP BY CUBE(_row)",
        "SELECT _row, caption, count() FROM typed GROUP BY GROUPING SETS ((_row), (caption))",
        "SELECT _row FROM of_both",
        "SELECT _row FROM counted",
        "WITH typed AS (SELECT number AS _row FROM numbers(3)) SELECT _row FROM typed",
        "SELECT _row FROM (SELECT _row FROM typed WHERE 0 UNION ALL SELECT 99)",
        "SELECT t._row FROM (SELECT 9 AS _row) AS t, typed",
        "SELECT typed._row FROM (SELECT 9 AS _row, 1 AS caption) AS typed, many",
        "SELECT _row FROM typed ARRAY JOIN [7, 8] AS _row",
        "SELECT x._row FROM (SELECT tuple(7)::Tuple(_row UInt8) AS x FROM typed)",
        "EXPLAIN SELECT _row FROM typed",
        "SHOW TABLES",
    ],
)
def test_what_is_not_a_column_of_one_table_is_not_told(known: Running, sql: str) -> None:
    columns, _rows = asked(known, sql)
    assert not [c for c in columns if c and c.endswith("._row")]


FROMS = [
    "typed AS t", "many AS t", "(SELECT * FROM typed) AS t", "(SELECT _row, caption FROM typed) AS t",
    "(SELECT _row + 1 AS _row, caption FROM typed) AS t", "(SELECT caption, _row FROM many LIMIT 3) AS t",
    "(SELECT a._row AS _row, b.caption AS caption FROM many AS a JOIN typed AS b ON a._row = b._row + 2) AS t",
    "(SELECT id AS _row, text AS caption FROM renamed) AS t", "of_both AS t", "plain AS t", "elsewhere.many AS t",
    "(SELECT _row, caption FROM few UNION ALL SELECT _row, caption FROM few) AS t",
    "(SELECT _row, caption FROM few UNION ALL SELECT number, 'none' FROM numbers(2)) AS t",
]  # fmt: skip
JOINS = [
    "", "JOIN many AS o ON t._row = o._row", "LEFT JOIN few AS o ON t._row = o._row",
    "RIGHT JOIN many AS o ON t._row = o._row",
    "FULL JOIN few AS o ON t._row = o._row", "JOIN few AS o USING (_row)", "LEFT JOIN few AS o USING (_row)",
    "RIGHT JOIN many AS o USING (_row)", "CROSS JOIN few AS o", ", (SELECT 1 AS _row, 'none' AS caption) AS o",
    "LEFT ANTI JOIN few AS o ON t._row = o._row", "LEFT SEMI JOIN many AS o ON t._row = o._row",
    "RIGHT ANTI JOIN many AS o ON t._row = o._row", "ANY JOIN few AS o ON t._row = o._row",
    "ARRAY JOIN [1, 2] AS _row", "LEFT ARRAY JOIN ['z'] AS caption",
]  # fmt: skip
ITEMS = [
    "t._row, t.caption", "_row, caption", "o._row, o.caption, t._row, t.caption",
    "t._row AS caption, t.caption AS _row",
    "t._row AS _row, _row AS again, caption", "o._row AS _row, _row AS again, t.caption", "*", "t.*, o.*",
    "DISTINCT t.caption AS c, t._row AS r",
]  # fmt: skip


@pytest.mark.parametrize("source", FROMS)
def test_what_is_told_of_siblings_is_true_of_their_rows(known: Running, source: str) -> None:
    told = 0
    for join, items in itertools.product(JOINS, ITEMS):
        sql = f"SELECT {items} FROM {source} {join}"
        if known.sql(f"{sql} FORMAT Null").status == 200:
            told += any(asked(known, sql)[0])
    assert told >= 9 or source in ("of_both AS t", "plain AS t") or "numbers" in source


def test_a_session_has_its_own_names(known: Running) -> None:
    sql = "SELECT _row, caption FROM many"
    assert asked(known, sql, database="elsewhere")[0] == ["elsewhere.many._row", "elsewhere.many.caption"]
    assert known.sql("USE elsewhere", session_id="uses").status == 200
    assert asked(known, sql, session_id="uses")[0] == ["elsewhere.many._row", "elsewhere.many.caption"]
    for name in ("many", "plain", "renamed"):
        hides = f"CREATE TEMPORARY TABLE {name} AS SELECT toUInt64(7) AS _row, 1 AS id, 'none' AS caption"
        assert known.sql(hides, session_id="hides").status == 200
    assert asked(known, sql, session_id="hides") == ([None, None], [[7, "none"]])
    assert asked(known, "SELECT id FROM renamed", session_id="hides")[0] == [None]
    joined = "SELECT _row FROM (SELECT caption FROM typed) AS t, plain"
    assert asked(known, joined, session_id="hides")[0] == [None]
    assert asked(known, sql)[0] == ["many._row", "many.caption"]


def test_it_is_told_of_long_results_and_by_a_name_in_a_parameter_and_to_nobody_else(known: Running) -> None:
    assert asked(known, "SELECT _row, caption FROM {t:Identifier}", param_t="typed")[0] == [
        "typed._row",
        "typed.caption",
    ]
    reply = known.ask("/", "SELECT _row, repeat('x', 1000000) AS x FROM many", headers={"X-Clipql-Tell": "origins"})
    assert json.loads(reply.headers["x-clipql-origins"])["columns"][0] == [0, "_row"]
    wide = ", ".join(f"caption AS c{i}" for i in range(500))
    assert asked(known, f"SELECT {wide}, _row FROM typed")[0] == [*[None] * 500, "typed._row"]
    assert "x-clipql-origins" not in known.sql("SELECT _row FROM typed").headers
    assert (
        "x-clipql-origins"
        not in known.ask("/", "SELECT _row FROM typed", headers={"X-Clipql-Tell": "progress"}).headers
    )
