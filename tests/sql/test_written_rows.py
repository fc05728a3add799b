"""Answers of the row file look as ClickHouse's do, whatever a user has set about how they look."""

from __future__ import annotations

from pathlib import Path

import pytest

import clipql

ASKED = "SELECT id, name, L2Distance(v, [3, 1]) AS d FROM {table} ORDER BY d LIMIT 3{tail}"
SETS = (
    "SET output_format_json_quote_64bit_integers = 1",
    "SET `output_format_json_quote_64bit_integers` = 1",
    "SET `output\\x5fformat_json_quote_64bit_integers` = 1",
    "SET output_format_json_escape_forward_slashes = 0, max_threads = 1",
    "SET max_threads = 1",
)


@pytest.mark.parametrize("given", SETS)
@pytest.mark.parametrize("format", ["JSONEachRow", "TSVWithNames", "CSVWithNames"])
def test_what_is_set_about_results_holds_for_them(tmp_path: Path, given: str, format: str) -> None:
    rows = "SELECT number, concat('a/', toString(number), '\\t'), [number, 1] FROM numbers(2000)"
    with clipql.connect(tmp_path / "db") as db:
        for name, kind in (("t", "MergeTree ORDER BY id"), ("plain", "Memory")):
            db.sql(f"CREATE TABLE {name} (id UInt64, name String, v Array(Float32)) ENGINE = {kind}")
            db.sql(f"INSERT INTO {name} {rows}")
        table = db.registry.catalog.table("default", "t")
        assert table is not None
        db.indexes.rows.build(table)
        db.sql(given)
        for tail in ("", " SETTINGS output_format_json_quote_64bit_integers = 1"):
            asked = [ASKED.format(table=each, tail=tail) for each in ("t", "t", "plain")]
            first, again, expected = (db.execute(sql, format=format).output.data for sql in asked)
            assert first == again == expected
