"""Plain conditions are evaluated on mapped columns, and give just the rows that ClickHouse gives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import clipql
from clipql.sql.search.conditions import plain_mask
from tests.cases import examples

ROWS = 1_500
COLUMNS = {
    "u8": "UInt8", "i16": "Int16", "i64": "Int64", "u64": "UInt64", "f32": "Float32", "f64": "Float64",
    "n": "Nullable(Int32)", "nf": "Nullable(Float64)", "kind": "String", "lc": "LowCardinality(String)",
    "ns": "LowCardinality(Nullable(String))", "b": "Bool",
}  # fmt: skip
VALUES = {
    "u8": "number % 256", "i16": "toInt16(number % 301) - 150", "i64": "toInt64(number) * 9000000000000001 - 4",
    "u64": "18446744073709551615 - number * 7", "f32": "if(number % 97 = 0, nan, toFloat32(number % 11) / 10)",
    "f64": "if(number % 89 = 0, inf, number / 7 - 20)", "n": "if(number % 5 = 0, NULL, toInt32(number % 20) - 10)",
    "nf": "if(number % 4 = 0, NULL, number / 10)",
    "kind": "['UNLIKELY', 'UNSURE', 'NSFW', '', 'it''s', 'é'][number % 6 + 1]",
    "lc": "['a', 'b', 'ab'][number % 3 + 1]", "ns": "if(number % 7 = 0, NULL, ['x', 'y'][number % 2 + 1])",
    "b": "number % 3 = 0",
}  # fmt: skip
OPERATORS = ["=", "==", "!=", "<>", "<", "<=", ">", ">="]
NUMBERS = ["u8", "i16", "i64", "u64", "f32", "f64", "n", "nf"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    with clipql.connect(tmp_path_factory.mktemp("conditions") / "db") as db:
        columns = ", ".join(f"{n} {k}" for n, k in COLUMNS.items())
        db.sql(f"CREATE TABLE t (id UInt64, url String, {columns}, v Array(Float32), INDEX ix v TYPE flat) "
               "ENGINE = MergeTree ORDER BY id")  # fmt: skip
        values = ", ".join(VALUES.values())
        insert = f"INSERT INTO t SELECT number, toString(number), {values}, [number, 1] FROM numbers({{}}, {{}})"
        db.sql(insert.format(0, ROWS - 100))
        db.sql("DELETE FROM t WHERE id % 50 = 3")
        db.sql("OPTIMIZE TABLE t")
        db.sql(insert.format(ROWS - 100, 100))  # newer than the row file
        db.sql("DELETE FROM t WHERE id % 50 = 4")
        yield db


def ours(db: clipql.Database, where: str, **params: object) -> list[int] | None:
    """The ids by the mask, where the condition is plain, of the rows that the row file has."""
    table = db.registry.catalog.tables[0]
    reader = db._session._planner._indexes.rows.reader(table)
    assert reader is not None
    assert reader.rows == ROWS - 100
    mask = plain_mask(where, reader.columns.column, reader.rows, params)
    return None if mask is None else np.flatnonzero(mask & db.registry.alive(table)[: reader.rows]).tolist()


def theirs(db: clipql.Database, where: str, **params: object) -> list[int]:
    return [r[0] for r in db.sql(f"SELECT id FROM t WHERE ({where}) AND id < {ROWS - 100} ORDER BY id", **params).rows]


def literals() -> st.SearchStrategy[str]:
    whole = st.one_of(st.integers(-300, 300), st.integers(-(2**63), 2**64 - 1), st.sampled_from([2**53, -(2**53)]))
    near = st.integers(-40, 300).map(lambda i: repr(i / 10))
    floats = st.floats(-1e6, 1e6, allow_nan=False).map(repr)
    return st.one_of(whole.map(str), near, floats, st.sampled_from(["0.3", "1e2", "3.", "-0.0"]))


def words() -> st.SearchStrategy[str]:
    return st.sampled_from(
        [
            "'UNLIKELY'",
            "'UNSURE'",
            "''",
            "'a'",
            "'b'",
            "'it''s'",
            "'é'",
            "'zz'",
            "'x'",
            r"'\x61'",
            r"'it\'s'",
            r"'\a'",
            "x'61'",
            "$q$it's$q$",
            "‘b’",
        ]
    )


def comparisons() -> st.SearchStrategy[str]:
    signs = st.sampled_from(OPERATORS)
    strings = st.sampled_from(["kind", "lc", "ns"])
    return st.one_of(
        st.builds("{} {} {}".format, st.sampled_from(NUMBERS), signs, literals()),
        st.builds("{} {} {}".format, literals(), signs, st.sampled_from(NUMBERS)),
        st.builds("{} {} {}".format, strings, signs, words()),
        st.builds("{} BETWEEN {} AND {}".format, st.sampled_from(NUMBERS), literals(), literals()),
        st.builds("{} IS {}NULL".format, st.sampled_from([*NUMBERS, "kind", "ns"]), st.sampled_from(["", "NOT "])),
        st.builds("{} {}IN ({}, {})".format, st.just("u8"), st.sampled_from(["", "NOT "]),
                  st.integers(0, 255), st.integers(0, 255)),
        st.builds("{} {}IN ({}, {})".format, st.sampled_from(["kind", "lc"]), st.sampled_from(["", "not "]),
                  words(), words()),
    )  # fmt: skip


def conditions() -> st.SearchStrategy[str]:
    return st.recursive(
        comparisons(),
        lambda inner: st.one_of(
            st.builds("{} AND {}".format, inner, inner),
            st.builds("{} or {}".format, inner, inner),
            st.builds("NOT {}".format, inner),
            st.builds("({})".format, inner),
        ),
        max_leaves=5,
    )


@settings(max_examples=examples(250))
@given(conditions())
@example("f32 >= 0.3 AND f32 < 0.7")
@example("NOT n > 3 OR nf IS NULL")
@example("u64 > -1 AND i64 <= 18446744073709551615")
@example("u8 = 3 AND nf > 2 AND NOT (u8 = 3 AND n > 2 AND kind = 'UNSURE')")
@example("NOT (i16 = 7 AND (n > 3 OR nf < 90) AND ns = 'x')")
@example("i16 < 2.5 AND i16 >= -2.5 AND u8 != 2.5")
def test_a_plain_condition_gives_the_rows_that_clickhouse_gives(table: clipql.Database, where: str) -> None:
    found = ours(table, where)
    if found is not None:  # hypothesis makes few that are not plain, counted below
        assert found == theirs(table, where)


@pytest.mark.parametrize(
    "where",
    ["u8 > 3", "f32 > 0.3", "kind = 'UNSURE'", "n IS NOT NULL AND NOT (n = 3 OR nf >= 2.5)", "5 < u8", "1 = 1",
     "lc IN ('a', 'b')", "u8 NOT IN (1, 2)", "ns = 'x'", "b = 1", "`u8` = 3", "kind = 'a\\'b'", "kind = x'4141'",
     "u8 between 1 and 2",
     "u8 IN (" + ", ".join(map(str, range(40))) + ")",
     "u8 IN (-1, 256, " + ", ".join(map(str, range(40))) + ")",
     "i64 NOT IN (18446744073709551615, " + "5, " * 20 + "6)",
     "u8 = 300 OR u8 > -5", "f64 > 1e3", "u8 = 3 AND n > 2 AND kind = 'UNSURE' AND 1 = 1 AND nf IS NOT NULL",
     "NOT (u8 = 300 AND nf > 1)", "u8 = 7 AND lc IN ('a', 'b') AND u8 IN (" + ", ".join(map(str, range(40))) + ")"],
)  # fmt: skip
def test_what_people_filter_by_is_plain(table: clipql.Database, where: str) -> None:
    assert ours(table, where) == theirs(table, where)


@pytest.mark.parametrize(
    "where",
    ["u8 + 1 > 3", "lower(kind) = 'unsure'", "kind LIKE 'U%'", "u8 = '3'", "kind = 3", "u8 > u64", "t.u8 = 3",
     "f32 IN (0.3)", "n IN (1, 2)", "kind = f('a')", "id = 3 ? 1 : 0", "u8 = 1::Int8", "url = '5'", "u8",
     "(u8, i16) = (1, 2)",
     "f64 > 9007199254740993", "u8 = 99999999999999999999999", "v = [1, 2]", "u8 NOT BETWEEN 1 AND 2", "nothing = 1",
     "u8 = 0x10", "f64 > .5", "u8 IN (SELECT 1)", "f64 = inf"],
)  # fmt: skip
def test_anything_else_is_left_to_clickhouse(table: clipql.Database, where: str) -> None:
    assert ours(table, where) is None


@pytest.mark.parametrize(
    ("where", "params"),
    [
        ("u8 = {x:UInt8}", {"x": 7}),
        ("u8 = {x:UInt8}", {"x": "7"}),
        ("f32 > {x:Float64}", {"x": 0.3}),
        ("f32 > {x:Float32}", {"x": 0.25}),
        ("kind = {x:String}", {"x": "it's"}),
        ("i16 >= {x:Int16} AND i16 < {y:Float64}", {"x": -3, "y": 4}),
    ],
)
def test_parameters_are_constants_too(table: clipql.Database, where: str, params: dict[str, object]) -> None:
    assert ours(table, where, **params) == theirs(table, where, **params)


@pytest.mark.parametrize(
    ("where", "params"),
    [("u8 = {x:UInt8}", {"x": 256}), ("u8 = {x:UInt8}", {"x": None}), ("f32 > {x:Float32}", {"x": 0.3}),
     ("kind = {x:String}", {}), ("u8 > {x:Decimal(3, 1)}", {"x": 1}), ("u8 = {x:UInt8}", {"x": True})],
)  # fmt: skip
def test_a_parameter_that_does_not_fit_its_type_is_left_to_clickhouse(
    table: clipql.Database, where: str, params: dict[str, object]
) -> None:
    assert ours(table, where, **params) is None


@pytest.mark.parametrize(
    "where", ["u8 < 100 AND kind != 'NSFW'", "n < 0", "f32 = 0.5 OR i16 > 140", "u8 = 3 AND u8 = 4"]
)
def test_a_filtered_search_sees_newer_rows_and_no_deleted_ones(table: clipql.Database, where: str) -> None:
    sql = f"SELECT id FROM t WHERE {where} ORDER BY L2Distance(v, [1412.3, 1]) LIMIT 40"
    planned = table.sql(sql)
    table.sql("SET vector_plan = 0")
    try:
        assert planned.rows == table.sql(sql).rows
    finally:
        table.sql("SET vector_plan = 1")
