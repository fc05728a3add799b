"""A search of REST is made ready once, whether the event loop answers it or a thread."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import clipql
from clipql.mcp.asking import Asking, of_folder
from clipql.serve import search_results
from tests.parts import make_part

DIMENSION = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with an index on one of its columns."""
    place = tmp_path_factory.mktemp("once")
    make_part(place / "parts", 2_000, dimension=DIMENSION)
    with clipql.connect(place / "test.db") as db:
        db.ingest(place / "parts", table="laion")
        db.sql("ALTER TABLE laion ADD INDEX near image_embedding TYPE ivf('cosineDistance')")
        db.sql("ALTER TABLE laion MATERIALIZE INDEX near")
    return place / "test.db"


@pytest.mark.parametrize(
    "more",
    [{}, {"where": "id % 3 = 0"}, {"safe": True}, {"column": "text_embedding"}, {"exact": True}, {"k": 200}],
    ids=lambda more: str(more or "short"),
)
def test_a_search_by_vectors_is_made_ready_once(folder: Path, more: dict[str, Any]) -> None:
    vectors = np.random.default_rng(4).standard_normal((4, DIMENSION)).astype(np.float32).tolist()
    made = search_results.statement

    async def ask(asking: Asking) -> list[tuple[int, list[str]]]:
        found = []
        for vector in vectors:  # the first ones are asked by nobody before
            body = {"table": "laion", "terms": [{"vector": vector}], "safe": False, **more}
            with mock.patch.object(search_results, "statement", side_effect=made) as counted:
                rows = (await asking.json("/api/search", body))["rows"]
            found.append((counted.call_count, [row["id"] for row in rows]))
        await asking.close()
        return found

    with of_folder(folder, None) as asking:
        found = asyncio.run(ask(asking))
    column, where, k = more.get("column", "image_embedding"), more.get("where", "1"), more.get("k", 40)
    nearest = (
        f"SELECT id FROM laion WHERE {where} ORDER BY cosineDistance({column}, {{q:Array(Float32)}}), id LIMIT {k}"
    )
    with clipql.connect(folder, read_only=True) as db:
        for vector, (count, ids) in zip(vectors, found, strict=True):
            assert count == 1
            own = {str(id) for (id,) in db.sql(f"{nearest} SETTINGS vector_index = 0", q=vector).rows}
            assert len(ids) == k
            assert more.get("safe") or len(own & set(ids)) >= 0.8 * k
