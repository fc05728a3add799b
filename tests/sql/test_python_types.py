"""Every type of ClickHouse, as it comes out of a result's rows, of its data frame and of the REST API's JSON."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterator
from decimal import Decimal
from ipaddress import IPv4Address, IPv6Address
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

import clipql
from clipql.engine.python_values import converter, python_columns
from clipql.serve.values import plain

BERLIN, NUMBER = ZoneInfo("Europe/Berlin"), "61f0c404-5cb3-11e7-907b-a6006ad3dba0"
# a ClickHouse expression: Python's value, and JSON's where it is another
VALUES: dict[str, tuple[Any, Any]] = {
    "toUInt8(200)": (200, 200),
    "toUInt16(60000)": (60000, 60000),
    "toUInt32(4000000000)": (4000000000, 4000000000),
    "toUInt64(18446744073709551615)": (2**64 - 1, str(2**64 - 1)),
    "toUInt128('340282366920938463463374607431768211455')": (2**128 - 1, str(2**128 - 1)),
    "toUInt256('12')": (12, 12),
    "toInt8(-100)": (-100, -100),
    "toInt16(-30000)": (-30000, -30000),
    "toInt32(-5)": (-5, -5),
    "toInt64(-5)": (-5, -5),
    "toInt128('-170141183460469231731687303715884105728')": (-(2**127), str(-(2**127))),
    "toInt256('-12')": (-12, -12),
    "toFloat32(1.5)": (1.5, 1.5),
    "toFloat64(0.1)": (0.1, 0.1),
    "toBFloat16(1.5)": (1.5, 1.5),
    "true": (True, True),
    "'text'": ("text", "text"),
    "toFixedString('ab', 4)": (b"ab\0\0", "ab\0\0"),
    "CAST('a' AS LowCardinality(String))": ("a", "a"),
    "CAST('a' AS LowCardinality(Nullable(String)))": ("a", "a"),
    "toDate('2024-01-02')": (dt.date(2024, 1, 2), "2024-01-02"),
    "toDate32('1950-01-02')": (dt.date(1950, 1, 2), "1950-01-02"),
    "toDateTime('2024-01-02 03:04:05', 'UTC')": (
        dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.UTC), "2024-01-02T03:04:05+00:00",
    ),
    "toDateTime('2024-07-02 03:04:05', 'Europe/Berlin')": (
        dt.datetime(2024, 7, 2, 3, 4, 5, tzinfo=BERLIN), "2024-07-02T03:04:05+02:00",
    ),
    "CAST(NULL AS Nullable(DateTime('UTC')))": (None, None),
    "toDateTime64('2024-01-02 03:04:05.123456', 6, 'UTC')": (
        dt.datetime(2024, 1, 2, 3, 4, 5, 123456, tzinfo=dt.UTC), "2024-01-02T03:04:05.123456+00:00",
    ),
    "CAST('03:04:05' AS Time)": (dt.time(3, 4, 5), "03:04:05"),
    "toIPv4('1.2.3.4')": (IPv4Address("1.2.3.4"), "1.2.3.4"),
    "CAST(NULL AS Nullable(IPv4))": (None, None),
    "toIPv6('2001:db8::1')": (IPv6Address("2001:db8::1"), "2001:db8::1"),
    f"toUUID('{NUMBER}')": (UUID(NUMBER), NUMBER),
    "toDecimal32('1.50', 2)": (Decimal("1.50"), "1.50"),
    "toDecimal64('-1.5', 3)": (Decimal("-1.500"), "-1.500"),
    "toDecimal128('1.5', 20)": (Decimal("1.5"), "1.50000000000000000000"),
    "toDecimal256('1.5', 40)": (Decimal("1.5"), f"1.5{'0' * 39}"),
    "CAST('b' AS Enum8('a' = 1, 'b' = -2))": ("b", "b"),
    r"CAST('it\'s, (DateTime)' AS Enum16('a' = 1, 'it\'s, (DateTime)' = 300))": (
        "it's, (DateTime)", "it's, (DateTime)",
    ),
    "tuple(1, 'a')": ((1, "a"), [1, "a"]),
    "tuple()": ((), []),
    "CAST((1, 'a') AS Tuple(x UInt8, `odd name` String))": ({"x": 1, "odd name": "a"}, {"x": 1, "odd name": "a"}),
    "(toIPv4('1.2.3.4'), (toDate('2024-01-02'), 2))": (
        (IPv4Address("1.2.3.4"), (dt.date(2024, 1, 2), 2)), ["1.2.3.4", ["2024-01-02", 2]],
    ),
    "map('a', 1, 'b', 2)": ({"a": 1, "b": 2}, {"a": 1, "b": 2}),
    "map('a', map(toIPv4('1.2.3.4'), toDateTime(0, 'UTC')))": (
        {"a": {IPv4Address("1.2.3.4"): dt.datetime(1970, 1, 1, tzinfo=dt.UTC)}},
        {"a": {"1.2.3.4": "1970-01-01T00:00:00+00:00"}},
    ),
    "[1, 2]::Array(UInt8)": ([1, 2], [1, 2]),
    "[toIPv4('1.2.3.4'), NULL]": ([IPv4Address("1.2.3.4"), None], ["1.2.3.4", None]),
    f"[toUUID('{NUMBER}')]": ([UUID(NUMBER)], [NUMBER]),
    "[CAST('b' AS Enum8('a' = 1, 'b' = 2))]": (["b"], ["b"]),
    "[(1, 'a')]": ([(1, "a")], [[1, "a"]]),
    "CAST([(1, 'a')] AS Nested(x UInt8, y String))": ([{"x": 1, "y": "a"}], [{"x": 1, "y": "a"}]),
    "CAST((1., 2.) AS Point)": ((1.0, 2.0), [1.0, 2.0]),
    "CAST([[(1., 2.)]] AS Polygon)": ([[(1.0, 2.0)]], [[[1.0, 2.0]]]),
    "CAST(42 AS Variant(UInt8, String))": (42, 42),
    "CAST(42 AS Dynamic)": (42, 42),
    """CAST('{"a": [1, {"b": null}]}' AS JSON)""": ({"a": [1, {}]}, {"a": [1, {}]}),
    "NULL": (None, None),
    "unhex('ff')": (b"\xff", "\ufffd"),
    "['a', unhex('ff')]": (["a", b"\xff"], ["a", "\ufffd"]),
    "map('k', unhex('ff'))": ({"k": b"\xff"}, {"k": "\ufffd"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    with clipql.connect(tmp_path_factory.mktemp("types") / "test.db") as opened:
        yield opened


def same(found: Any, expected: Any) -> bool:
    return type(found) is type(expected) and found == expected


@pytest.mark.parametrize("expression", VALUES)
def test_a_value_of_each_type_is_pythons_own_by_every_way_out(db: clipql.Database, expression: str) -> None:
    expected, as_json = VALUES[expression]
    result = db.sql(f"SELECT {expression} AS x, 1 AS n")
    assert same(result.rows[0][0], expected)
    assert next(iter(result))[0] == expected
    cell = result.df()["x"].iloc[0]
    if expected is None:
        assert cell is None or pd.isna(cell)
    elif isinstance(expected, dt.date) and not isinstance(expected, dt.datetime):
        assert cell == expected
    else:
        value = list(cell) if isinstance(expected, list) else cell
        assert value == expected
    [kind] = db.sql(f"SELECT toTypeName({expression})").rows[0]
    [[value]] = python_columns(result.arrow().select(["x"]), {"x": " ".join(kind.split())})
    assert json.loads(json.dumps(plain(value))) == as_json
    repr(result), result._repr_html_()


def test_the_types_of_a_tables_columns_come_out_of_a_search_too(db: clipql.Database) -> None:
    db.sql(
        "CREATE TABLE t (id UInt32, at DateTime('UTC'), ip IPv4, kind Enum8('a' = 1, 'b' = 2), v Array(Float32)) "
        "ENGINE = MergeTree ORDER BY id"
    )
    db.sql("INSERT INTO t VALUES (1, 0, '1.2.3.4', 'b', [1, 0]), (2, 60, '1.2.3.5', 'a', [0, 1])")
    near = "SELECT *, L2Distance(v, {q:Array(Float32)}) AS d FROM t ORDER BY d LIMIT 1 SETTINGS recall = 0.9"
    row = (dt.datetime(1970, 1, 1, 0, 1, tzinfo=dt.UTC), IPv4Address("1.2.3.5"), "a")
    for _ in range(3):  # read anew, and as it is remembered
        assert db.sql(near, q=[0.0, 1.0]).rows == [(2, *row, [0.0, 1.0], 0.0)]
    assert db.sql("SELECT at, ip, kind FROM t WHERE id = {i:UInt32}", i=2).rows == [row]
    assert db.sql("SELECT number::UInt32, 'DateTime' FROM numbers(1) FORMAT JSONEachRow").text.startswith("{")


def test_a_type_is_read_whatever_stands_in_quotes() -> None:
    convert = converter(r"Tuple(Enum8('a,b)' = 1, '\'c' = 2), Nullable(DateTime('UTC')), Map(String, Tuple(UInt8)))")
    assert convert is not None
    assert convert({"1": 2, "2": None, "3": [("k", {"1": 5})]}) == ("'c", None, {"k": (5,)})
