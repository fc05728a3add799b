"""What a database that was opened to be read refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

import clipql
from clipql.errors import QueryError, ReadOnly, VectorIndexError
from clipql.reader import ReadOnlyDatabase

CREATE = "CREATE TABLE t (id UInt64, name String, v Array(Float32)) ENGINE = MergeTree ORDER BY id"
INSERT = "INSERT INTO t SELECT number, 'n' || toString(number), [number, 1] FROM numbers(20)"
WRITES = [
    "INSERT INTO t VALUES (1, 'a', [1, 2])",
    "DELETE FROM t WHERE 1",
    "UPDATE t SET name = '' WHERE 1",
    "DROP TABLE t",
    "TRUNCATE TABLE t",
    "OPTIMIZE TABLE t FINAL",
    "ALTER TABLE t ADD COLUMN x Int8",
    "CREATE TABLE u (x Int8) ENGINE Log",
    "CREATE VIEW w AS SELECT 1",
    "RENAME TABLE t TO u",
    "DROP DATABASE default",
    "SYSTEM START MERGES",
    "ATTACH TABLE t",
    "INSERT INTO FUNCTION null('x Int8') VALUES (1)",
    "ALTER TABLE t MATERIALIZE INDEX x",
    "CREATE FUNCTION f AS x -> x",
    "(((DROP TABLE t)))",
    "/* SELECT */ EXCHANGE TABLES t AND u",
    "GRANT SELECT ON *.* TO u",
]


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReadOnlyDatabase]:
    path = tmp_path_factory.mktemp("read") / "t.db"
    with clipql.connect(path) as db:
        db.sql(CREATE)
        db.sql(INSERT)
    with clipql.connect(path, read_only=True) as reader:
        yield reader


@pytest.mark.parametrize("statement", WRITES)
def test_a_statement_that_writes_is_refused(read: ReadOnlyDatabase, statement: str) -> None:
    with pytest.raises(QueryError) as raised:
        read.sql(statement)
    assert isinstance(raised.value, ReadOnly) or raised.value.name == "SYNTAX_ERROR"
    if isinstance(raised.value, ReadOnly):
        assert (raised.value.code, raised.value.name) == (164, "READONLY")
        assert f"{read.path} was opened to be read: open it without read_only" in str(raised.value)
    assert read.sql("SELECT count() FROM t").rows == [(20,)]


@pytest.mark.parametrize(
    "call",
    [
        lambda db: db.ingest("nowhere"),
        lambda db: db.indexes.drop(db.registry.catalog.tables[0], "x"),
        lambda db: db.registry.save(db.registry.catalog),
    ],
)
def test_a_call_that_writes_is_refused(read: ReadOnlyDatabase, call: Callable[[ReadOnlyDatabase], None]) -> None:
    with pytest.raises((ReadOnly, VectorIndexError)):
        call(read)
