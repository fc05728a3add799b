"""Conditions are remembered until something changes that their rows depend on."""

from __future__ import annotations

import pytest

import clipql
from clipql.sql.search import filters


@pytest.fixture
def table(db: clipql.Database) -> clipql.Database:
    columns = "id UInt32, w Int64, s String, n Nullable(Int32), v Array(Float32)"
    db.sql(f"CREATE TABLE t ({columns}) ENGINE = MergeTree ORDER BY id")
    db.sql(
        "INSERT INTO t SELECT number, number % 50, if(number < 300, '2023-11-15 00:30:00', '2023-11-14 20:00:00'), "
        "if(number % 3 = 0, NULL, number % 10), [number, 1] FROM numbers(600)"
    )
    return db


def ask(db: clipql.Database, where: str, rest: str = "", **params: object) -> list[int]:
    sql = f"SELECT id FROM t WHERE {where} ORDER BY L2Distance(v, [300.2, 1.]) LIMIT 5 {rest}"
    return [r[0] for r in db.sql(sql, **params).rows]


def remembered(db: clipql.Database) -> int:
    return len(db._session._planner._memory._masks)


def test_a_condition_is_remembered_and_gives_the_same_again(table: clipql.Database) -> None:
    first = ask(table, "w > 40")
    assert remembered(table) == 1
    assert ask(table, "w > 40") == first
    assert remembered(table) == 1


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO t SELECT 1000, 45, '', 1, [300.2, 1]",
        "DELETE FROM t WHERE id BETWEEN 290 AND 299",
        "ALTER TABLE t UPDATE w = 45 WHERE id = 300",
        "ALTER TABLE t DELETE WHERE id BETWEEN 290 AND 299",
        "OPTIMIZE TABLE t FINAL",
        "TRUNCATE TABLE t",
    ],
)
def test_after_a_change_the_condition_is_asked_again(table: clipql.Database, change: str) -> None:
    table.sql("DELETE FROM t WHERE id = 5")
    ask(table, "w > 40")
    table.sql(change)
    assert ask(table, "w > 40") == ask(table, "w > 40", "SETTINGS vector_plan = 0")


def test_parameters_settings_and_time_zones_tell_conditions_apart(table: clipql.Database) -> None:
    assert ask(table, "w = {w:Int64}", w=1) == [301, 251, 351, 201, 401]
    assert ask(table, "w = {w:Int64}", w=2) == [302, 252, 352, 202, 402]
    night = "toDateTime(s) < toDateTime(1700006400)"
    for rest in ("SETTINGS session_timezone = 'Asia/Tokyo'", "SETTINGS session_timezone = 'UTC'"):
        assert ask(table, night, rest) == ask(table, night, rest + ", vector_plan = 0")


@pytest.mark.parametrize(
    ("inner", "setting"),
    [
        ("toDateTime(s) < toDateTime(1700006400)", "session_timezone = 'Asia/Tokyo'"),
        ("n IN (NULL, 4)", "transform_null_in = 1"),
    ],
)
def test_settings_of_the_whole_statement_reach_a_condition_inside(
    table: clipql.Database, inner: str, setting: str
) -> None:
    sql = (
        f"SELECT * FROM (SELECT id FROM t WHERE {inner} ORDER BY L2Distance(v, [300.2, 1.]) LIMIT 5) ORDER BY id "
        f"SETTINGS {setting}"
    )
    assert table.sql(sql).rows == table.sql(sql + ", vector_plan = 0").rows
    assert len(table.sql(sql)) == 5


@pytest.mark.parametrize(
    "where",
    ["id IN (SELECT number FROM numbers(400))", "now() > toDateTime(0)", "rand() % 2 < 5", "t.w > 40", "id IN other"],
)
def test_what_depends_on_more_than_the_columns_is_not_remembered(table: clipql.Database, where: str) -> None:
    table.sql("CREATE TABLE other (id UInt32) ENGINE = Memory")
    table.sql("INSERT INTO other SELECT number FROM numbers(320)")
    assert len(ask(table, where)) == 5
    assert remembered(table) == 0


def test_masks_are_not_kept_without_bound(table: clipql.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipql.sql.search.filters.LARGEST", 3_000)
    for w in range(20):
        ask(table, f"w = {w}")
        ask(table, f"w = {w}")  # as it is used: a byte a row
    assert remembered(table) == 5
    assert ask(table, "w = 3") == [303, 253, 353, 203, 403]


def test_a_condition_that_comes_once_is_kept_in_bits_and_again_as_it_is_used(
    table: clipql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = table._session._planner._memory
    monkeypatch.setattr(filters, "LARGEST", 3000)
    first = ask(table, "w > 40")
    (once,) = memory._masks.values()
    assert ask(table, "w > 40") == first
    (again,) = memory._masks.values()
    assert (once.nbytes, again.nbytes, once.count, again.count) == (75, 600, 108, 108)

    for w in range(40):  # more than 3,000 bytes hold
        expected = ask(table, f"w > {w}", "SETTINGS vector_plan = 0")
        assert ask(table, f"w > {w}") == ask(table, f"w > {w}") == ask(table, f"w > {w}") == expected
    assert sum(m.nbytes for m in memory._masks.values()) == memory._held <= 3000
