"""The guard alone refuses what the network must not reach, however its names are spelled and wherever they stand."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from spellings import GROUPS, NAMED_FILES, attempts, sample

import clipql
from clipql.engine.quoting import quote_string
from clipql.engine.users import Acting, EngineUser
from clipql.errors import ClipqlError, QueryError
from clipql.serve.foreign import detach, foreign
from clipql.serve.guard import Guard
from clipql.serve.limits import Options
from clipql.serve.service import Service

SAMPLE = int(os.environ.get("CLIPQL_ATTEMPTS", "3000"))  # 0: all


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[clipql.Database, Guard]]:
    with clipql.connect(tmp_path_factory.mktemp("spellings") / "db") as db:
        db.sql("CREATE TABLE plain (a String) ENGINE = MergeTree ORDER BY a")
        db.sql("CREATE TABLE laion (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        yield db, Guard(db.registry, db.encoders, Options(write=True))


def test_every_spelling_in_every_place_is_refused(guarded: tuple[clipql.Database, Guard]) -> None:
    every = list(attempts())
    assert len(every) > 3_000
    passed = []
    for sql in every if SAMPLE == 0 else sample(SAMPLE, seed=13):
        try:
            checked = guarded[1].check(sql, write=True)
        except ClipqlError:
            continue
        passed.append(f"{sql!r} as {checked.sql!r}")
    assert passed == [], f"{len(passed)} of {len(every)}:\n" + "\n".join(passed[:60])


def test_every_place_is_one_that_clickhouse_knows(guarded: tuple[clipql.Database, Guard]) -> None:
    for places, _ in GROUPS:
        for place in places:
            sql = place.replace("{}", "`/x`" if places is NAMED_FILES else "x")
            assert guarded[0].registry.engine.scalar(f"SELECT formatQuerySingleLine({quote_string(sql)})"), place


def test_what_runs_is_the_text_as_clickhouse_writes_it(guarded: tuple[clipql.Database, Guard]) -> None:
    check = guarded[1].check
    assert check("select  `\\x61` from /* here */ pl\u0061in -- and\n limit 1;", write=False).sql == (
        "SELECT a FROM plain LIMIT 1"
    )
    assert check("INSERT INTO `pl\\x61in` VALUES ('\\x61')", write=True).sql == "INSERT INTO plain VALUES ('\\x61')"
    first = check("SELECT id FROM laion ORDER BY L2Distance(v, [1.50, 2]) LIMIT 3", write=False).sql
    again = check("SELECT id FROM laion ORDER BY L2Distance(v, [-1e-3,2.5]) LIMIT 3", write=False).sql
    assert first == "SELECT id FROM laion ORDER BY L2Distance(v, [1.50, 2]) ASC LIMIT 3"
    assert again == "SELECT id FROM laion ORDER BY L2Distance(v, [-1e-3,2.5]) ASC LIMIT 3"


def test_bytes_that_are_no_utf_8_stay_what_they_are(guarded: tuple[clipql.Database, Guard]) -> None:
    assert guarded[1].check(r"SELECT '\xff', `\xe9`", write=False).sql == r"SELECT '\xff', `\xe9`"


def test_a_syntax_error_names_the_place_in_the_text_that_was_sent(guarded: tuple[clipql.Database, Guard]) -> None:
    with pytest.raises(QueryError, match=r"failed at position 19 "):
        guarded[1].check("SELECT 1 FROM x y z", write=False)


FOREIGN = (
    "CREATE FUNCTION absArray AS (x) -> file(x)",  # a name that looks like the array form of an allowed one
    "CREATE DATABASE folder ENGINE = Filesystem('/etc')",
    "CREATE TABLE told (a String, b String DEFAULT hostName()) ENGINE = Memory",
    "CREATE TABLE elsewhere (a String) ENGINE = MergeTree ORDER BY a SETTINGS disk = 'default'",
    "CREATE VIEW bad AS SELECT * FROM file('/etc/passwd', 'LineAsString', 'a String')",
    "CREATE VIEW worse AS SELECT * FROM bad",
    "CREATE TABLE filed (a String) ENGINE = File(CSV)",
    "CREATE TABLE buffered AS plain ENGINE = Buffer(default, plain, 1, 1, 1, 1, 1, 1, 1)",
    "CREATE DICTIONARY words (a UInt64) PRIMARY KEY a SOURCE(FILE(path '/x' format 'CSV')) LAYOUT(FLAT()) LIFETIME(0)",
    "CREATE MATERIALIZED VIEW triggered TO plain AS SELECT file('/etc/passwd') AS a FROM fine_plain",
    "CREATE MATERIALIZED VIEW refreshed REFRESH EVERY 1 HOUR APPEND TO plain AS SELECT 'x' AS a",
)
OWNED = (
    "CREATE TABLE fine_plain (a String CODEC(NONE)) ENGINE = MergeTree ORDER BY a SETTINGS min_bytes_for_wide_part = 0",
    "CREATE VIEW fine AS SELECT * FROM laion",
    "CREATE MATERIALIZED VIEW fine_view ENGINE = MergeTree ORDER BY a AS SELECT upper(a) AS a FROM fine_plain",
)


def test_what_a_folder_from_somebody_else_defines_is_left_out_and_so_is_what_reads_it(
    guarded: tuple[clipql.Database, Guard],
) -> None:
    db, _ = guarded
    engine = db.registry.engine
    for sql in (*OWNED, *FOREIGN):
        engine.run(sql)
    db.sql(
        "CREATE TABLE vectors (id UInt32, c String DEFAULT hostName(), v Array(Float32)) ENGINE = MergeTree ORDER BY id"
    )
    guard = Guard(db.registry, db.encoders, Options(write=True))
    vectors = {(t.database, t.name): t.id for t in db.registry.catalog.tables}
    found = foreign(engine, vectors, lambda s: guard.check(s, write=True))
    assert sorted(f.name for f in found) == [
        "bad", "buffered", "elsewhere", "filed", "folder", "refreshed", "told", "triggered", "vectors", "words",
        "worse",
    ]  # fmt: skip
    guard.leave_out(found)
    for name in ("bad", "worse", "`fil\\x65d`", "told", "vectors", "words"):
        for sql in ("SELECT * FROM {}", "DESCRIBE {}", "EXISTS {}", "SELECT 1 WHERE 1 IN {}", "SHOW CREATE TABLE {}"):
            with pytest.raises(QueryError, match="is not for the network"):
                guard.check(sql.format(name), write=True)
    for sql in (
        "SELECT * FROM folder.passwd",
        "USE folder",
        "SHOW TABLES FROM folder",
        "SELECT absArray('/etc/passwd')",
    ):
        with pytest.raises(QueryError, match="the network"):
            guard.check(sql, write=True)
    with pytest.raises(QueryError, match="the network"):
        guard.check_database("folder")
    for name in ("vectors", "Vectors"):  # REST, which names tables without a statement
        with pytest.raises(QueryError, match="is not for the network"):
            Service.table(cast(Any, SimpleNamespace(guard=guard, registry=db.registry)), None, name)
    # what was passed when its turn came, as it names another, is not remembered as good
    with pytest.raises(QueryError, match="is not for the network"):
        guard.check("CREATE VIEW x AS SELECT * FROM default.bad", write=True)
    assert guard.check("SELECT * FROM fine", write=False).sql == "SELECT * FROM fine"
    detach(engine, [f for f in found if f.table], vectors)
    engine.run("INSERT INTO fine_plain VALUES ('x')")
    assert engine.scalar("SELECT count() FROM plain WHERE a LIKE '%root%'") == 0  # no view was set off
    assert engine.scalar("SELECT a FROM fine_view") == "X"
    user = EngineUser([guard.limits_sql()])
    with engine.act(Acting(user)):
        shown = {sql: db.session().execute(sql, format="TSV").output.data.decode() for sql in LISTS}
    engine.forget(user)
    for sql, text in shown.items():
        for name in ("clipql_internal", "worse", "filed", "told", "query_log", "processes", "folder"):
            assert name not in text, (sql, name)
    assert "fine" in shown["SHOW TABLES"]
    assert "laion" in shown["SELECT * FROM system.tables"]


LISTS = (
    "SHOW DATABASES", "SHOW DATABASES LIKE '%'", "SHOW TABLES", "SHOW TABLES FROM system", "SHOW FULL TABLES LIKE '%'",
    "SELECT name FROM system.databases", "SELECT * FROM system.tables", "SELECT database, table FROM system.columns",
    "SELECT * FROM information_schema.schemata", "SELECT * FROM information_schema.tables",
    "SELECT database, table FROM system.parts", "SELECT database, table FROM system.data_skipping_indices",
    "SELECT database, table FROM system.projections", "SELECT database, table FROM system.mutations",
    "SELECT word FROM system.completions WHERE word ILIKE '%clipql%' OR word IN ('worse', 'filed')",
    "SELECT name FROM system.dictionaries",
)  # fmt: skip
