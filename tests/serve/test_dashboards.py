"""Statements of dashboards, as recorded of them, about a table with vectors: answered as ClickHouse answers them."""

from __future__ import annotations

from pathlib import Path

import clipql
from clipql.errors import ClipqlError
from tests.serve.conftest import Running

EVENTS = (
    "CREATE TABLE events (id UInt64, happened DateTime('UTC'), ms DateTime64(3, 'UTC'), day Date, "
    "level LowCardinality(String), body String, labels Map(String, String), value Nullable(Float64), "
    "embedding Array(Float32)) ENGINE = MergeTree ORDER BY id COMMENT 'what happened'"
)
ROWS = (
    "INSERT INTO events SELECT number, toDateTime('2024-01-01', 'UTC') + number * 1234, "
    "toDateTime64('2024-01-01', 3, 'UTC') + number * 0.3, toDate('2024-01-01') + number, "
    "['info', 'warn', 'error'][number % 3 + 1], concat('line ', toString(number)), "
    "map('host', concat('h', toString(number % 4)), concat('k', toString(number % 2)), ''), "
    "if(number % 9 = 0, NULL, number / 4), [number, number * 2, 30] FROM numbers(60)"
)


def test_dashboards_are_answered_as_by_clickhouse(server: Running, tmp_path: Path) -> None:
    lines = (Path(__file__).parent / "dashboards.txt").read_text(encoding="utf-8").splitlines()
    statements = [line.split("\t") for line in lines if not line.startswith("#")]
    # a database of its own, where the only table is theirs
    assert server.sql("CREATE DATABASE boards").status == 200
    for statement in (EVENTS, ROWS):
        assert server.sql(statement, database="boards").status == 200, statement
    wrong = []
    with clipql.connect(tmp_path / "alone") as db:
        alone = db.registry.engine
        for statement in ("CREATE DATABASE boards", "USE boards", EVENTS, ROWS):
            alone.query(statement, "Null", user=True)
        for kind, asked in statements:
            reply = server.sql(asked, database="boards", default_format="TabSeparatedWithNamesAndTypes")
            if reply.status != 200:
                wrong.append(f"{asked[:300]}: {reply.text[:300]}")
            elif kind == "same":
                try:
                    expected = alone.query(asked, "TabSeparatedWithNamesAndTypes", user=True).data.decode()
                except ClipqlError as error:
                    expected = str(error)
                if reply.text != expected:
                    wrong.append(f"{asked[:300]}:\n  {reply.text[:600]!r}\n  {expected[:600]!r}")
    server.sql("DROP TABLE boards.events")
    server.sql("DROP DATABASE boards")
    assert wrong == [], "\n".join(wrong)
