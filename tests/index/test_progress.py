"""The build of an index tells how far it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import clipql


def test_building_reports_its_stages(db: clipql.Database) -> None:
    told: list[Mapping[str, Any]] = []
    db.sql(
        "CREATE TABLE t (id UInt32, v Array(Float32), INDEX ix v TYPE ivf('L2Distance')) ENGINE = MergeTree ORDER BY id"
    )
    db.sql("INSERT INTO t SELECT number, [sin(number), cos(number), sin(number * 7), 1] FROM numbers(3000)")
    db.execute("ALTER TABLE t MATERIALIZE INDEX ix", progress=told.append)
    stages = [t["stage"] for t in told if "stage" in t]
    assert {"train", "assign", "encode"} <= set(stages)
    last = [t for t in told if t.get("stage") == "encode"][-1]
    assert last["read_rows"] == last["total_rows_to_read"] == 3000
