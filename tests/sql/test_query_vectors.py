"""Query vectors of every type: planned, they give what ClickHouse alone gives, or an error that names the type."""

from __future__ import annotations

import array
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import clipql
from clipql.errors import ClipqlError, QueryError, VectorError
from tests.cases import crossed

DISTANCES = ("L2Distance", "L2SquaredDistance", "cosineDistance", "dotProduct")
STATEMENTS = {
    "top-k": "SELECT id, {d}(v, {q}) AS d FROM t ORDER BY d, id LIMIT 5",
    "range": "SELECT id, {d}(v, {q}) AS d FROM t WHERE {d}(v, {q}) < 3 ORDER BY id LIMIT 9",
    "distances": "SELECT id, {d}(v, {q}) AS d, toTypeName(d) FROM t ORDER BY id",
}
# what ClickHouse computes distances of Array(Float32) to; of the integers of 64 bits, dotProduct alone
TAKEN = ("Int8", "Int16", "Int32", "UInt8", "UInt16", "UInt32", "Float32", "Float64", "BFloat16", "Bool",
         "LowCardinality(Float32)")  # fmt: skip
LONG = ("Int64", "UInt64")
REFUSED = ("Int128", "Int256", "UInt128", "UInt256", "Decimal(9, 2)", "Decimal(18, 4)", "Decimal(38, 4)",
           "Decimal(76, 4)", "Nullable(Float32)", "Nullable(Int32)", "LowCardinality(Nullable(Float64))",
           "String", "Date", "Enum8('a' = 0, 'b' = 1)")  # fmt: skip
ALONE = " SETTINGS vector_plan = 0, allow_suspicious_low_cardinality_types = 1"


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    with clipql.connect(tmp_path_factory.mktemp("vectors") / "db") as db:
        db.sql("SET allow_suspicious_low_cardinality_types = 1")
        db.sql("CREATE TABLE t (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        db.sql("INSERT INTO t SELECT number, arrayMap(k -> intHash32(number * 3 + k) % 17 / 8 + 0.125, range(3)) "
               "FROM numbers(1500)")  # fmt: skip
        yield db


def forms(kind: str) -> Iterator[tuple[str, Any]]:
    """A vector of a type, as expressions and as a parameter, with the parameter's value."""
    numbers = [1, 0, 1]
    written = {"String": "['1', '0', '1']", "Date": "[1, 0, 1]::Array(UInt16)"}.get(kind, "[1, 0, 1]")
    if kind.startswith("Enum"):
        written = "['b', 'a', 'b']"
    name = kind.replace("'", "''")
    yield f"CAST({written}, 'Array({name})')", None
    yield f"(SELECT CAST({written}, 'Array({name})'))", None
    if "LowCardinality" not in kind:  # which arrayMap takes away
        yield f"arrayMap(x -> x, CAST({written}, 'Array({name})'))", None
    if kind not in ("String", "Date") and "Enum" not in kind:
        for value in (numbers, str(numbers), np.array(numbers, np.int16)):
            yield f"{{q:Array({kind})}}", value


def given(value: Any) -> dict[str, Any]:
    return {} if value is None else {"q": value}


def agree(ours: clipql.Result, theirs: clipql.Result) -> None:
    assert ours.arrow().schema == theirs.arrow().schema
    assert [(r[0], *r[2:]) for r in ours.rows] == [(r[0], *r[2:]) for r in theirs.rows]
    np.testing.assert_allclose([r[1] for r in ours.rows], [r[1] for r in theirs.rows], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("kind", "distance"), crossed(TAKEN + LONG, DISTANCES, every=3))
def test_what_clickhouse_takes_gives_what_it_gives(db: clipql.Database, kind: str, distance: str) -> None:
    for (vector, value), plan in crossed(list(forms(kind)), list(STATEMENTS), every=2):
        sql = STATEMENTS[plan].format(d=distance, q=vector)
        found = db.sql(sql, **given(value))
        assert [s.kind for s in found.stats.searches] == [plan]
        if kind in TAKEN or distance == "dotProduct":
            agree(found, db.sql(sql + ALONE, **given(value)))
        else:  # ClickHouse finds no type for the distance: here it is Float64
            with pytest.raises(QueryError, match=f"There is no supertype for types {kind}, Float32"):
                db.sql(sql + ALONE, **given(value))
            exact = STATEMENTS[plan].format(d=distance, q="[1, 0, 1]::Array(Float64)")
            agree(found, db.sql(exact + ALONE))


@pytest.mark.parametrize("distance", ["L2Distance", "dotProduct"])
@pytest.mark.parametrize("kind", REFUSED)
def test_what_clickhouse_refuses_is_refused_by_its_type(db: clipql.Database, kind: str, distance: str) -> None:
    for (vector, value), statement in crossed(list(forms(kind)), list(STATEMENTS.values()), every=2):
        sql = statement.format(d=distance, q=vector)
        with pytest.raises(QueryError):
            db.sql(sql + ALONE, **given(value))
        with pytest.raises(VectorError) as raised:
            db.sql(sql, **given(value))
        assert f"is Array({kind}); expected an array of Float32, Float64, BFloat16 or integers" in str(raised.value)


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ("[]", "v of default.t holds 3 numbers; the query vector [] has 0"),
        ("CAST([], 'Array(Float32)')", "the query vector CAST([], 'Array(Float32)') has 0"),
        ("CAST([], 'Array(Int64)')", "the query vector CAST([], 'Array(Int64)') has 0"),
        ("[1, 2]", "v of default.t holds 3 numbers; the query vector [1, 2] has 2"),
        ("[1, nan, 2]", "the query vector holds nan at position 1; it must be finite"),
        ("[1, 2, -inf]", "the query vector holds -inf at position 2; it must be finite"),
        ("CAST([nan, 0, 0], 'Array(BFloat16)')", "the query vector holds nan at position 0; it must be finite"),
        ("[1, NULL, 2]", "the query vector [1, NULL, 2] is Array(Nullable(UInt8)); expected an array of"),
        ("[NULL]", "the query vector [NULL] is Array(Nullable(Nothing)); expected an array of"),
    ],
)
def test_vectors_that_are_none_are_refused(db: clipql.Database, vector: str, message: str) -> None:
    for distance in DISTANCES:
        with pytest.raises(VectorError) as raised:
            db.sql(STATEMENTS["top-k"].format(d=distance, q=vector))
        assert message in str(raised.value)


VALUES: dict[str, Any] = {
    "a list of floats": [1.5, 0.0, 1.0],
    "a list of integers": [1, 0, 1],
    "a tuple": (1, 0, 1),
    "a range": range(3),
    "decimals": [Decimal("1.5"), Decimal(0), 1],
    "fractions": [Fraction(1, 2), 0, 1],
    "truth values": [True, False, True],
    "numpy scalars": [np.int8(0), np.float16(1.5), np.array(2)],
    "an array": array.array("f", [1, 0, 1]),
    "a view": memoryview(array.array("d", [1, 0, 1])),
    "a pandas Series": pd.Series([1, 0, 1]),
    "an Arrow array": pa.array([1.5, 0, 1]),
    "every other number": np.arange(6.0)[::2],
    "objects": np.array([1, 0.5, Decimal(2)], object),
    **{dtype: np.array([1, 0, 1]).astype(dtype)
       for dtype in ("f2", "f4", "f8", "g", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", ">f4", ">f8", ">i8")},
}  # fmt: skip


@pytest.mark.parametrize(("name", "kind"), crossed(list(VALUES), ["Float32", "Float64", "BFloat16"], every=2))
def test_python_values_that_hold_numbers_are_taken(db: clipql.Database, name: str, kind: str) -> None:
    value = VALUES[name]
    numbers = [float(x) for x in np.asarray(value).tolist()] if not isinstance(value, memoryview) else value.tolist()
    for statement in STATEMENTS.values():
        sql = statement.format(d="L2Distance", q=f"{{q:Array({kind})}}")
        expected = db.sql(sql.replace(f"{{q:Array({kind})}}", f"CAST({numbers}, 'Array({kind})')") + ALONE)
        agree(db.sql(sql, q=value), expected)
        agree(db.sql(sql + ALONE, q=value), expected)


def test_search_takes_them_too(db: clipql.Database) -> None:
    expected = db.search("t", vector=[1.0, 0.0, 1.0], column="v", k=4).rows
    for value in ((1, 0, 1), np.array([1, 0, 1], np.uint8), array.array("f", [1, 0, 1]), [Decimal(1), 0, True]):
        assert db.search("t", vector=value, column="v", k=4).rows == expected
    with pytest.raises(VectorError, match=r"got an array of shape \(1, 3\); expected numbers"):
        db.search("t", vector=np.ones((1, 3)), column="v")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([None, 0, 1], "got None at position 0"),
        (["1", "0", "1"], "got str '1' at position 0"),
        ([1j, 0, 1], "got complex 1j at position 0"),
        ([[1, 0, 1]], r"got list \[1, 0, 1\] at position 0"),
        ({1, 2}, r"got set {1, 2}"),
        (b"abc", "got bytes b'abc'"),
        (1, "got int 1"),
        (np.float32(1), r"got an array of shape \(\)"),
        (np.ones((1, 3)), r"got an array of shape \(1, 3\)"),
        (np.ones(3, complex), "got an array of complex128"),
        (np.array(["1", "0", "1"]), "got an array of <U1"),
        (np.array([1, 2, 3], "M8[s]"), r"got an array of datetime64\[s\]"),
        (np.ma.array([1, 2, 3], mask=[0, 1, 0]), "got a masked array, some of whose numbers are missing"),
        (pa.array([1.0, None, 2.0]), "got NULL among its numbers"),
        ((x for x in (1, 0, 1)), "got a generator"),
    ],
)
def test_python_values_that_hold_none_are_named(db: clipql.Database, value: Any, message: str) -> None:
    for tail in ("", ALONE):
        with pytest.raises(VectorError, match=message + "; expected numbers, as a list or an array of one dimension"):
            db.sql(STATEMENTS["top-k"].format(d="L2Distance", q="{q:Array(Float32)}") + tail, q=value)


@pytest.mark.parametrize("text", ["1, 0, 1", "[1,,1]", "hello", "[1, 0, 1", "", "['a']"])
def test_text_that_is_no_array_is_clickhouses_to_refuse(db: clipql.Database, text: str) -> None:
    sql = STATEMENTS["top-k"].format(d="L2Distance", q="{q:Array(Float32)}")
    errors = []
    for tail in ("", ALONE):
        with pytest.raises(ClipqlError) as raised:
            db.sql(sql + tail, q=text)
        errors.append(str(raised.value))
    assert errors[0] == errors[1]
