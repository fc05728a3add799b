"""Rows that are written without ClickHouse are written as ClickHouse writes them, to the byte."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Iterator
from typing import Any

import chdb
import numpy as np
import pyarrow as pa
import pytest

from clipql.engine.row_writer import written

ROWS = 600
FORMATS = ["TabSeparated", "TSVWithNames", "TabSeparatedWithNamesAndTypes", "CSV", "CSVWithNames", "JSONEachRow",
           "JSON", "JSONCompact", "Native"]  # fmt: skip
LETTERS = "abc'\"\\/\n\t\r\b\f\0\x01\x1f\x7f\u2028\u2029\u00e9\u20ac\U0001f600,; "
ODD = (0.0, -0.0, 1.0, 100.0, 1e20, 1e21, 1.5e21, 123456789.0, 1e-5, 1e-6, 1e-7, 1.25e-7, 0.1, 5e-324, 1 / 3)
ODDER = (float("inf"), float("-inf"), float("nan"))
ARROW = {"String": pa.string(), "Float64": pa.float64(), "Float32": pa.float32(), "UInt8": pa.uint8(),
         "UInt64": pa.uint64(), "Int64": pa.int64(), "Int16": pa.int16(), "Bool": pa.bool_()}  # fmt: skip


def value(rng: random.Random, kind: str) -> Any:
    """A value of a ClickHouse type, of the difficult ones more often than chance would have it."""
    if kind == "String":
        return "".join(rng.choice(LETTERS) for _ in range(rng.randrange(12)))
    if kind == "Bool":
        return rng.random() < 0.5
    if kind.startswith("Float"):
        width = int(kind.removeprefix("Float"))
        drawn = struct.unpack({32: "<f", 64: "<d"}[width], rng.randbytes(width // 8))[0]
        picked = rng.choice((drawn, rng.uniform(0, 3), rng.choice(ODD), rng.choice(ODDER)))
        with np.errstate(over="ignore"):
            return float(np.float32(picked)) if width == 32 else picked
    bits = int(re.sub(r"\D", "", kind))
    low = 0 if kind.startswith("U") else -(2 ** (bits - 1))
    return rng.choice((low, low + 2**bits - 1, 0, rng.randrange(low, low + 2**bits)))


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    with chdb.connect(":memory:") as made:
        yield made


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("rows", [ROWS, 1, 0])
def test_the_bytes_are_those_of_clickhouse(engine: Any, format: str, rows: int) -> None:
    rng = random.Random(7)
    types = [t for kind in ARROW for t in (kind, f"Nullable({kind})")]
    names = [f"na'me\t\"/ {at} é" for at in range(len(types))]
    columns = []
    for of in types:
        kind = re.sub(r"Nullable\((.*)\)", r"\1", of)
        empty = 0.3 if of != kind else 0.0
        drawn = [None if rng.random() < empty else value(rng, kind) for _ in range(ROWS)]
        columns.append(pa.array(drawn, ARROW[kind]))
    found = pa.table(columns, names=names).slice(0, rows)
    quoted = ["`" + n.replace("\t", "\\t") + "`" for n in names]
    sql = ", ".join(f"CAST({n}, '{t}') AS {n}" for n, t in zip(quoted, types, strict=True))
    expected = engine.query(f"SELECT {sql} FROM Python(found)", format).bytes()
    given = written(found, types, format, 0.5)
    assert given is not None
    if format in ("JSON", "JSONCompact"):  # the seconds differ
        head, _, statistics = given.partition(b'"statistics":')
        assert b'"elapsed": 0.5,' in statistics
        assert [line.partition(b":")[0] for line in statistics.split(b"\n")] == [
            line.partition(b":")[0] for line in expected.partition(b'"statistics":')[2].split(b"\n")
        ]
        given, expected = head, expected.partition(b'"statistics":')[0]
    assert given == expected


def test_what_is_not_certain_is_left_to_clickhouse() -> None:
    plain = pa.table({"a": pa.array([1], pa.uint8())})
    assert written(plain, ["UInt8"], "JSONEachRow") == b'{"a":1}\n'
    assert written(plain, ["UInt8"], "Parquet") is None
    assert written(plain, ["Date"], "JSONEachRow") is None
    assert written(pa.table({"a": [b"\xff"]}), ["String"], "JSONEachRow") is None
