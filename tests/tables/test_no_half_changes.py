"""No statement leaves a table with vectors half changed: it is carried out on both halves, or refused and nothing is
different, now and after the database is opened again.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import clipql
from clipql.errors import ClipqlError, UnsupportedStatement
from clipql.storage.catalog import Pending
from tests.cases import some

SET_UP = (
    "CREATE TABLE laion (id UInt32, v Array(Float32), s String) ENGINE = MergeTree PARTITION BY id % 2 ORDER BY id",
    "INSERT INTO laion VALUES (1, [1, 2], 'one'), (2, [3, 4], 'two'), (3, [5, 6], 'three')",
    "CREATE TABLE twin (id UInt32, v Array(Float32), s String) ENGINE = MergeTree PARTITION BY id % 2 ORDER BY id",
    "INSERT INTO twin VALUES (9, [9, 9], 'nine')",
    "CREATE TABLE p (id UInt32, v Array(Float64), s String) ENGINE = MergeTree PARTITION BY id % 2 ORDER BY id",
    "INSERT INTO p VALUES (7, [7, 7], 'seven')",
    "CREATE DATABASE o",
    "CREATE TABLE o.laion (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id",
    "INSERT INTO o.laion VALUES (4, [8, 8])",
    "CREATE TABLE j (k UInt32, s String) ENGINE = Join(ANY, LEFT, k)",
    "INSERT INTO j VALUES (1, 'joined')",
)
ROWS = [(1, [1.0, 2.0], "one"), (2, [3.0, 4.0], "two"), (3, [5.0, 6.0], "three")]
NINE = (9, [9.0, 9.0], "nine")
ALL = {"default.laion": ROWS, "default.twin": [NINE], "o.laion": [(4, [8.0, 8.0])]}
LAION, BOTH = "default.laion", {"default.laion": None, "default.twin": None}

# refused, each with all rows there afterwards
REFUSED = """
CREATE OR REPLACE DICTIONARY laion (id UInt64) PRIMARY KEY id SOURCE(CLICKHOUSE(TABLE 'p')) LAYOUT(FLAT()) LIFETIME(0)
REPLACE DICTIONARY laion (id UInt64) PRIMARY KEY id SOURCE(CLICKHOUSE(TABLE 'p')) LAYOUT(FLAT()) LIFETIME(0)
CREATE OR REPLACE TABLE p AS laion
CREATE OR REPLACE TABLE p CLONE AS laion
CREATE MATERIALIZED VIEW n TO laion AS SELECT id, s FROM p
CREATE MATERIALIZED VIEW n TO default.laion (id UInt32) AS SELECT id FROM p
CREATE MATERIALIZED VIEW n REFRESH EVERY 1 SECOND APPEND TO laion AS SELECT id, s FROM p
CREATE MATERIALIZED VIEW n ENGINE = Memory AS SELECT id FROM laion
CREATE TABLE n (id UInt32, s String) ENGINE = Buffer(default, laion, 1, 0, 0, 1, 1, 1, 1)
CREATE TABLE n ENGINE = Alias('default', 'laion')
CREATE TABLE n ENGINE = Alias(laion)
ATTACH TABLE laion
ATTACH TABLE laion (x UInt8) ENGINE = Memory
ATTACH TABLE laion FROM '/tmp/x' (x UInt8) ENGINE = MergeTree ORDER BY x
DETACH TABLE laion
DETACH TABLE IF EXISTS laion PERMANENTLY
DETACH DATABASE o
DETACH DATABASE IF EXISTS o PERMANENTLY
TRUNCATE DATABASE o
EXCHANGE TABLES p AND j, laion AND twin
RENAME TABLE laion TO moved, moved TO n
RENAME TABLE laion TO moved, twin TO laion
RENAME TABLE laion TO clipql_internal.x
RENAME DATABASE o TO q
RENAME DATABASE IF EXISTS o TO q
DROP TABLE laion ON CLUSTER c
TRUNCATE TABLE laion ON CLUSTER c
ALTER TABLE laion ON CLUSTER c DROP COLUMN s
DELETE FROM laion ON CLUSTER c WHERE 1
DROP TABLE p PARALLEL WITH DROP TABLE laion
TRUNCATE TABLE laion PARALLEL WITH DROP TABLE p
EXECUTE AS default DROP TABLE laion
DROP INDEX i ON laion
CREATE INDEX i ON laion (s) TYPE minmax
ALTER TEMPORARY TABLE laion DROP COLUMN v
ALTER TABLE laion DETACH PARTITION 1
ALTER TABLE laion DETACH PART 'x'
ALTER TABLE laion (DETACH PARTITION ALL)
ALTER TABLE laion ATTACH PARTITION 1
ALTER TABLE laion ATTACH PARTITION 1 FROM twin
ALTER TABLE laion REPLACE PARTITION 1 FROM twin
ALTER TABLE laion MOVE PARTITION 1 TO TABLE twin
ALTER TABLE twin MOVE PARTITION 1 TO TABLE laion
ALTER TABLE laion FETCH PARTITION 1 FROM '/x'
ALTER TABLE laion FREEZE
ALTER TABLE laion UNFREEZE WITH NAME 'b'
ALTER TABLE laion EXPORT PART 'x' TO TABLE p
ALTER TABLE laion CLEAR COLUMN v IN PARTITION 1
ALTER TABLE laion UPDATE s = 'x', v = [1] WHERE 1
ALTER TABLE laion DROP COLUMN v
ALTER TABLE laion (DROP COLUMN v)
ALTER TABLE laion (MODIFY COLUMN v Array(Float64))
ALTER TABLE laion MODIFY COLUMN v String
ALTER TABLE laion ALTER COLUMN v TYPE Array(Float64)
ALTER TABLE laion MODIFY COLUMN v REMOVE ALIAS
ALTER TABLE laion ADD PROJECTION pr (SELECT v ORDER BY s)
BACKUP TABLE laion TO Disk('b', 'x')
CREATE DATABASE clipql_internal
DROP DATABASE clipql_internal
TRUNCATE ALL TABLES FROM clipql_internal
CREATE TABLE clipql_internal.n (x UInt8) ENGINE = Memory
CREATE VIEW clipql_internal.n AS SELECT 1
RENAME TABLE p TO clipql_internal.p
USE clipql_internal
CREATE FUNCTION _clipql_vector AS (a, b) -> ''
CREATE OR REPLACE FUNCTION _clipql_vector AS (a, b) -> ''
DROP FUNCTION _clipql_vector
CREATE TEMPORARY TABLE laion (x UInt8) ;; RENAME TABLE laion TO moved
CREATE TEMPORARY TABLE laion (x UInt8) ;; EXCHANGE TABLES laion AND p
CREATE TEMPORARY TABLE laion (x UInt8) ENGINE = MergeTree ORDER BY x ;; DELETE FROM laion WHERE 1
CREATE TEMPORARY TABLE laion (x UInt8) ;; CREATE OR REPLACE TABLE laion (x UInt8) ENGINE = Memory
CREATE TEMPORARY TABLE laion (x UInt8) ;; CREATE OR REPLACE VIEW laion AS SELECT 1
"""
# no statement of ClickHouse's, or one that ClickHouse itself refuses, with all rows there afterwards
WRONG = """
REPLACE VIEW laion AS SELECT 1 AS x
CREATE MATERIALIZED VIEW laion ENGINE = Memory AS SELECT id FROM p
ATTACH VIEW laion AS SELECT 1
EXCHANGE DICTIONARIES laion AND p
RENAME DICTIONARY laion TO moved
RENAME TABLE laion TO p
RENAME TABLE laion TO missing.moved
RENAME DATABASE default TO q, o TO r
DETACH VIEW laion
DETACH DICTIONARY laion
UNDROP TABLE laion
DROP VIEW laion
DROP DICTIONARY IF EXISTS laion
DROP TEMPORARY TABLE laion
DROP TABLE IF EMPTY laion
DROP TABLE laion PERMANENTLY
DROP TABLE missing, laion
DROP DATABASE o, default
DROP DATABASE IF EMPTY o
DROP SCHEMA o
TRUNCATE TEMPORARY TABLE laion
TRUNCATE ALL TABLES IN o
OPTIMIZE TABLE laion DEDUPLICATE BY id
ALTER TABLE p ATTACH PARTITION 1 FROM laion
ALTER TABLE p MOVE PARTITION 1 TO TABLE laion
ALTER TABLE laion DROP COLUMN _row
ALTER TABLE laion CLEAR COLUMN _row
ALTER TABLE laion RENAME COLUMN s TO _row
ALTER TABLE laion RENAME COLUMN v TO ``
ALTER TABLE laion ADD COLUMN `` UInt8
ALTER TABLE laion UPDATE _row = 5 WHERE 1
ALTER TABLE laion UPDATE s = joinGet('missing', 's', id) WHERE id = 1
ALTER TABLE laion UPDATE s = joinGet('j', 's', id) WHERE id = 1
UPDATE laion SET v = [1] WHERE id = 1
ALTER TABLE laion UPDATE v = [1] WHERE 1
ALTER TABLE laion (UPDATE v = [] WHERE 1)
INSERT INTO laion (_row, id, s) VALUES (3, 5, 'x')
INSERT INTO laion (_row, id, v, s) SELECT 9, 5, [1, 2], 'x'
INSERT INTO laion (id, s) VALUES (5, 'x')
INSERT INTO FUNCTION remote('127.0.0.1', 'default', 'laion') (id, s) VALUES (1, 'x')
"""
JOINED = [(1, [1.0, 2.0], "joined"), *ROWS[1:]]
ONE, TWO = ROWS[:1], ROWS[1:2]
# carried out: what the tables hold afterwards, None where they are gone
DONE: list[tuple[str, dict[str, Any]]] = [
    ("ALTER TABLE laion CLEAR COLUMN v", {LAION: [(id, [], s) for id, _, s in ROWS]}),
    ("ALTER TABLE laion (UPDATE v = [7, id] WHERE id = 2)", {LAION: [ROWS[0], (2, [7.0, 2.0], "two"), ROWS[2]]}),
    ("EXCHANGE TABLES laion AND twin", {LAION: [NINE], "default.twin": ROWS}),
    ("EXCHANGE TABLES p AND laion", {LAION: [(7, [7.0, 7.0], "seven")]}),
    ("CREATE OR REPLACE VIEW laion AS SELECT 1 AS x", {LAION: [(1,)]}),
    ("CREATE OR REPLACE VIEW `l\\x61ion` AS SELECT 1 AS x", {LAION: [(1,)]}),
    ("USE o ;; CREATE OR REPLACE VIEW laion AS SELECT 1 AS x", {"o.laion": [(1,)]}),
    ("CREATE OR REPLACE VIEW laion AS SELECT id, v FROM laion LIMIT 0 SETTINGS max_threads = 1", {LAION: "an error"}),
    ("CREATE OR REPLACE MATERIALIZED VIEW laion ENGINE = Memory AS SELECT 1 AS x", {LAION: []}),
    ("REPLACE TABLE laion (x UInt8) ENGINE = Memory", {LAION: []}),
    ("REPLACE TABLE laion (u Array(Float32), x UInt8) ENGINE = MergeTree ORDER BY x", {LAION: []}),
    ("CREATE OR REPLACE TABLE laion (x UInt8) ENGINE = Memory", {LAION: []}),
    ("CREATE OR REPLACE TABLE laion ENGINE = MergeTree ORDER BY x AS SELECT sum(id) AS x FROM laion", {LAION: [(6,)]}),
    ("CREATE OR REPLACE TABLE laion AS p", {LAION: []}),
    ("CREATE OR REPLACE TABLE laion CLONE AS p", {LAION: [(7, [7.0, 7.0], "seven")]}),
    ("CREATE OR REPLACE TABLE laion AS twin", {LAION: []}),
    ("CREATE OR REPLACE TABLE laion ENGINE = MergeTree ORDER BY id AS SELECT * FROM laion WHERE id = 1", {LAION: ONE}),
    ("CREATE VIEW IF NOT EXISTS laion AS SELECT 1", {}),
    ("CREATE TABLE IF NOT EXISTS laion (x UInt8) ENGINE = Memory", {}),
    ("RENAME TABLE laion TO moved", {LAION: None, "default.moved": ROWS}),
    ("RENAME laion TO o.moved", {LAION: None, "o.moved": ROWS}),
    ("RENAME TABLE IF EXISTS `\\x6caion` TO `mo\\x76ed`", {LAION: None, "default.moved": ROWS}),
    ("RENAME TABLE laion TO moved, p TO laion", {LAION: [(7, [7.0, 7.0], "seven")], "default.moved": ROWS}),
    ("DROP TABLE laion", {LAION: None}),
    ("DROP TABLE laion SYNC ;; CREATE TABLE laion (x UInt8) ENGINE = MergeTree ORDER BY x", {LAION: []}),
    ("DROP TABLE `l\\x61ion`", {LAION: None}),
    ('DROP TABLE /* no */ "default" . "laion" -- yes', {LAION: None}),
    ("DROP TABLE IF EXISTS laion, twin", BOTH),
    ("DROP TABLE p, laion", {LAION: None}),
    ("DROP DATABASE o", {"o.laion": None}),
    ("DROP DATABASE IF EXISTS `\\x6f` SYNC", {"o.laion": None}),
    ("TRUNCATE laion", {LAION: []}),
    ("TRUNCATE TABLE IF EXISTS `lai\\x6fn` SYNC", {LAION: []}),
    ("TRUNCATE ALL TABLES FROM o", {"o.laion": []}),
    ("TRUNCATE TABLES FROM default", {LAION: [], "default.twin": []}),
    ("TRUNCATE ALL TABLES FROM IF EXISTS default LIKE 'lai%'", {LAION: []}),
    ("TRUNCATE ALL TABLES FROM default NOT LIKE 'lai%'", {"default.twin": []}),
    ("OPTIMIZE TABLE laion PARTITION 1 FINAL", {}),
    ("OPTIMIZE TABLE laion FINAL DEDUPLICATE", {}),
    ("ALTER TABLE laion DROP PARTITION 1", {LAION: TWO}),
    ("ALTER TABLE laion DROP PARTITION 1, DROP PARTITION 0", {LAION: []}),
    ("ALTER TABLE laion DELETE WHERE id = 1 SETTINGS mutations_sync = 2", {LAION: ROWS[1:]}),
    ("ALTER TABLE laion (DELETE WHERE id = 1), (ADD COLUMN k UInt8), (DROP COLUMN k)", {LAION: ROWS[1:]}),
    ("ALTER TABLE laion DELETE WHERE v[1] = 1", {LAION: ROWS[1:]}),
    (
        "ALTER TABLE laion ADD COLUMN k UInt8 ;; ALTER TABLE laion UPDATE s = 'x', k = 2 WHERE id = 1",
        {LAION: [(1, [1.0, 2.0], "x", 2), (2, [3.0, 4.0], "two", 0), (3, [5.0, 6.0], "three", 0)]},
    ),
    ("ALTER TABLE laion UPDATE s = joinGet('default.j', 's', id) WHERE id = 1", {LAION: JOINED}),
    ("ALTER TABLE laion MODIFY SETTING merge_max_block_size = 5, max_parts_to_merge_at_once = 7", {}),
    ("ALTER TABLE laion ADD COLUMN k UInt8 DEFAULT 3 FIRST", {LAION: [(3, *row) for row in ROWS]}),
    ("ALTER TABLE laion RENAME COLUMN v TO w", {}),
    ("DELETE FROM laion WHERE id > 1", {LAION: ONE}),
    ("DELETE FROM `l\\x61ion` IN PARTITION 1 WHERE 1", {LAION: TWO}),
    ("INSERT INTO laion FROM twin", {LAION: [*ROWS, NINE]}),
    ("WITH x AS (SELECT 9, [9, 9], 'nine') INSERT INTO laion SELECT * FROM x", {LAION: [*ROWS, NINE]}),
    ("INSERT INTO laion (v, * EXCEPT v) SELECT v, id, s FROM twin", {LAION: [*ROWS, NINE]}),
    ("SYSTEM STOP MERGES laion ;; SYSTEM START MERGES laion", {}),
    ("KILL MUTATION WHERE 1", {}),
    ("CREATE TEMPORARY TABLE laion (x UInt8) ;; DROP TABLE laion", {}),
    ("CREATE TEMPORARY TABLE laion (x UInt8) ;; TRUNCATE TABLE laion", {}),
    ("CREATE TEMPORARY TABLE laion (x UInt8) ;; DROP TABLE laion ;; DROP TABLE laion", {LAION: None}),
    ("CREATE TEMPORARY TABLE laion (x UInt8) ;; DROP TEMPORARY TABLE laion ;; TRUNCATE TABLE laion", {LAION: []}),
    ("CREATE TEMPORARY TABLE laion (x UInt8) ;; DROP TABLE default.laion", {LAION: None}),
    ("CREATE TEMPORARY VIEW laion AS SELECT 1 AS x ;; DROP VIEW laion ;; DELETE FROM laion WHERE id > 1", {LAION: ONE}),
]  # fmt: skip


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database to copy."""
    path = tmp_path_factory.mktemp("halves") / "db"
    with clipql.connect(path) as db:
        for statement in SET_UP:
            db.sql(statement)
    return path


def state(db: clipql.Database) -> dict[str, Any]:
    """The rows of all tables with vectors, and of those that came in their place."""
    found: dict[str, Any] = {}
    for name in ("default.laion", "default.twin", "o.laion", "default.moved", "o.moved"):
        try:
            found[name] = sorted(db.sql(f"SELECT * FROM {name}").rows)
        except clipql.errors.UnknownTable:
            continue
        except ClipqlError:
            found[name] = "an error"
    return found


def carry_out(db: clipql.Database, script: str) -> None:
    for statement in script.split(" ;; "):
        db.sql(statement)


def after(made: Path, path: Path, script: str) -> dict[str, Any]:
    """What there is after a script and a new start."""
    shutil.copytree(made, path, symlinks=True)
    with clipql.connect(path) as db:
        carry_out(db, script)
        before = None if "TEMPORARY" in script else state(db)
    with clipql.connect(path) as db:
        found = state(db)
        assert before is None or before == found
        vectors = {p.name for p in (path / "vectors").iterdir()}
        assert len(vectors) <= len(found) + 1
    return found


@pytest.mark.parametrize(
    ("scripts", "error"), [(some(lines(REFUSED), 8), UnsupportedStatement), (some(lines(WRONG), 8), ClipqlError)]
)
def test_what_is_refused_and_what_clickhouse_would_not_do_changes_nothing(
    made: Path, tmp_path: Path, scripts: list[str], error: type[ClipqlError]
) -> None:
    shutil.copytree(made, tmp_path / "db", symlinks=True)
    for script in [*scripts, "SELECT no_such_column"]:  # the next one sees the last one's database opened again
        with clipql.connect(tmp_path / "db") as db:
            assert state(db) == ALL, f"opened again, before {script}"
            with pytest.raises(error if script in scripts else ClipqlError):
                carry_out(db, script)
            assert "TEMPORARY" in script or state(db) == ALL, script
            assert len(list((tmp_path / "db" / "vectors").iterdir())) <= len(ALL) + 1, script


@pytest.mark.parametrize(("script", "changed"), some(DONE, 8))
def test_it_is_carried_out_on_both_halves(made: Path, tmp_path: Path, script: str, changed: dict[str, Any]) -> None:
    expected = {name: rows for name, rows in {**ALL, **changed}.items() if rows is not None}
    assert after(made, tmp_path / "db", script) == expected


def test_a_name_may_come_as_a_parameter(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "db", symlinks=True)
    with clipql.connect(tmp_path / "db") as db:
        db.sql("TRUNCATE TABLE {d:Identifier}.{t:Identifier}", d="o", t="laion")
        db.sql("DROP TABLE {t:Identifier}", t="laion")
        assert db.sql("SELECT * FROM {t:Identifier}", t="twin").rows == ALL["default.twin"]
    with clipql.connect(tmp_path / "db") as db:
        assert state(db) == {"default.twin": ALL["default.twin"], "o.laion": []}


@pytest.mark.parametrize("has_come", [False, True])
def test_a_replacement_that_was_cut_off_has_come_or_not(made: Path, tmp_path: Path, has_come: bool) -> None:
    shutil.copytree(made, tmp_path / "db", symlinks=True)
    with clipql.connect(tmp_path / "db") as db:
        registry = db._registry
        table = registry.find("default", "laion")
        registry.save(registry.catalog.with_pending(Pending("replace", table, None)))
        if has_come:
            db._engine.run("CREATE OR REPLACE VIEW default.laion AS SELECT 1 AS x")
    with clipql.connect(tmp_path / "db") as db:
        assert state(db) == {**ALL, LAION: [(1,)] if has_come else ROWS}
        assert db._registry.catalog.pending is None
