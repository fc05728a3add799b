"""The statements of docs/curation.md run on synthetic parts, and give what ClickHouse gives alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipql
from clipql import synthetic
from clipql.curate.clusters import cluster_rows
from clipql.curate.dedup import dedup

PAGE = (Path(__file__).parents[2] / "docs" / "curation.md").read_text("utf-8")
STATEMENTS = re.findall(r"^```sql\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
ROWS = 600
PLANNED = {"numbers of rows", "range join", "nearest join"}
TOLD = ("Numbers of", "Range join", "Nearest-neighbour join")


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    folder = tmp_path_factory.mktemp("curation")
    synthetic.write_parts(folder / "parts", rows=ROWS, parts=1, seed=1)
    path = folder / "parts" / "img_emb" / "img_emb_0.npy"
    image = np.load(path)
    image[-40:] = image[:40]  # duplicates
    np.save(path, image)
    with clipql.connect(folder / "db") as opened:
        opened.ingest(folder / "parts", table="laion")
        opened.sql("CREATE TABLE evals AS SELECT * FROM laion WHERE id % 97 = 3")
        yield opened


def rounded(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return sorted(tuple(round(v, 3) if isinstance(v, float) else v for v in row) for row in rows)


def test_the_statements_run_from_top_to_bottom(db: clipql.Database) -> None:
    alone = " SETTINGS vector_plan = 0"
    for statement in STATEMENTS:
        if "clusters" in statement and not db.sql("EXISTS TABLE clusters").rows[0][0]:
            cluster_rows(db, "laion", k=50, into="clusters", centroids="centroids")
        if "dups" in statement:
            dedup(db, "laion", within=0.05, keep="max(similarity)", into="dups")
        before = db.sql("SELECT count() FROM laion").rows[0][0]
        found = db.sql(statement)
        if statement.startswith("DELETE"):
            assert db.sql("SELECT count() FROM laion").rows[0][0] < before
        elif not statement.startswith("ALTER"):
            if "connectedComponents" not in statement:  # the engine alone compares every pair in it
                assert rounded(found.rows) == rounded(db.sql(statement + alone).rows), statement
            if "embedding" in statement:
                assert {s.kind for s in found.stats.searches} & PLANNED, statement
                assert any(row[0].startswith(TOLD) for row in db.sql("EXPLAIN " + statement).rows), statement
    wrong = "countIf(abs(clip_score - 1 + cosineDistance(image_embedding, text_embedding)) > 1e-5)"
    assert db.sql(f"SELECT count() > 0, {wrong} FROM laion{alone}").rows == [(1, 0)]
    assert not db.sql("SELECT id FROM laion AS l JOIN evals AS e ON l.id = e.id").rows
    assert db.sql("SELECT count() - uniqExact(image_embedding) FROM laion").rows == [(0,)]
