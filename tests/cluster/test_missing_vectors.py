"""Replicas whose rows lack vectors, without Ray: one after the other, as a process has one database at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipql
from clipql.cluster.replica import Replica
from clipql.cluster.shard_map import ShardedTable, ShardMap, ShardPart, decoded, encoded
from clipql.cluster.training import Draw
from clipql.errors import IngestError
from clipql.index.kinds import FEWEST_ROWS
from clipql.ingest.layout import check_part, find_parts
from tests.parts import make_part

QUERY = [float(x) for x in np.linspace(-1, 1, 16, dtype=np.float32)]
ADD = "ALTER TABLE default.laion ADD COLUMN text_embedding Array(Float32)"
INDEX = "ALTER TABLE default.laion ADD INDEX near text_embedding TYPE ivf('L2Distance')"
# parts, and whether their rows have captions' vectors: the column comes before the second
PARTS = ((0, 600, False), (1, FEWEST_ROWS + 200, True), (2, 50, False), (3, 40, True))
DRAW = Draw(0, ("north",), 300, sum(rows for _, rows, _ in PARTS[:3]))
STATEMENTS = [
    "SELECT * FROM laion ORDER BY id",
    f"SELECT id, L2Distance(text_embedding, {QUERY}) AS d FROM laion ORDER BY d LIMIT 20 SETTINGS recall = 1",
    f"SELECT id FROM laion WHERE cosineDistance(text_embedding, {QUERY}) < 0.9 ORDER BY id",
    "SELECT count(), countIf(notEmpty(text_embedding)), sum(length(text_embedding)) FROM laion",
    f"SELECT id FROM laion ORDER BY L2Distance(image_embedding, {QUERY}) LIMIT 9",
]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("parts")
    for number, rows, text in PARTS:
        make_part(folder / str(number), rows=rows, number=number, text=text)
    return [folder / str(number) for number, _, _ in PARTS]


def shard_parts(parts: Sequence[Path]) -> list[ShardPart]:
    found, first = [], 0
    for folder in parts:
        part = check_part(find_parts([folder])[0])
        files = (part.files.metadata, part.files.image, part.files.text)
        found.append(ShardPart(part.fingerprint, first, part.rows, tuple(str(f) for f in files if f), part.model))
        first += part.rows
    return found


def take(replica: Replica, parts: Sequence[ShardPart], first: int, last: int) -> None:
    for i in range(first, last):
        replica.take("default", "laion", parts[i], [p.fingerprint for p in parts[:i]])


def answers(replica: Replica) -> list[list[tuple[Any, ...]]]:
    return [replica._db.sql(s).rows for s in STATEMENTS]


def test_a_replica_and_one_that_is_made_of_it_answer_as_one_table(parts: list[Path], tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "one") as one:
        one.ingest(parts[0], table="laion")
        one.sql(ADD)
        for part in parts[1:]:
            one.ingest(part, table="laion")
        expected = [one.sql(s).rows for s in STATEMENTS]
    dealt = shard_parts(parts)
    with closing(Replica(str(tmp_path / "first"), 0, "north")) as first:
        take(first, dealt, 0, 1)
        with pytest.raises(IngestError, match="has no vector column text_embedding"):
            take(first, dealt, 1, 2)
        for _ in range(2):  # any step may be done again
            first.add_column(ADD, "default", "laion", "text_embedding", True)
        take(first, dealt, 1, 4)
        assert answers(first) == expected
        info = first.info()
        assert (info.optional, info.vectors) == ({"default.laion": ("text_embedding",)}, {"default.laion": {}})
        first.alter(INDEX, "default", "laion", "near", True)
        first.build_index("default", "laion", "near", sum(p.rows for p in dealt))
        have = FEWEST_ROWS + 240
        assert first.info().vectors == {"default.laion": {"near": (have, have)}}
        assert answers(first) == expected
        drawn = first.sample("default", "laion", "near", DRAW, 0, 300).vectors
        definition = first.definition("default", "laion")
        table = ShardedTable("default", "laion", (tuple(dealt),), definition, optional=info.optional["default.laion"])
    table = decoded(encoded(ShardMap((("north",),), (table,))), "the map").tables[0]
    assert len(np.unique(drawn, axis=0)) == 300
    assert np.all(np.linalg.norm(drawn.astype(np.float64), axis=1) > 0.9)  # no zeros, of rows that have none
    with closing(Replica(str(tmp_path / "second"), 0, "south")) as second:
        for _ in range(2):
            second.define(table.definition, "default", "laion", table.optional)
        take(second, dealt, 0, 3)  # the last part has not come
        again = second.sample("default", "laion", "near", DRAW, 0, 300).vectors
        assert np.array_equal(again, drawn)
        take(second, dealt, 3, 4)
        assert answers(second) == expected


def test_lists_are_learnt_and_built_where_rows_lack_vectors(parts: list[Path], tmp_path: Path) -> None:
    dealt = shard_parts(parts)
    with closing(Replica(str(tmp_path / "shard"), 0, "north")) as replica:
        take(replica, dealt, 0, 1)
        replica.add_column(ADD, "default", "laion", "text_embedding", True)
        take(replica, dealt, 1, 4)
        expected = answers(replica)
        replica.alter(INDEX, "default", "laion", "near", True)
        rows = sum(p.rows for p in dealt)
        draw = Draw(0, ("north",), 1_000, rows)
        named = "default", "laion", "near"
        identity = replica.train(*named, 8, [draw], lambda one, a, b: replica.sample(*named, one, a, b))
        replica.build_with(*named, rows, identity, (), lambda *a: b"")
        info = replica.info()
        assert (info.models["default.laion"], info.indexes["default.laion"][0].rows) == ({"near": identity}, rows)
        assert answers(replica) == expected
