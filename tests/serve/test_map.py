"""Maps: which rows have a point and where, what colours them, how they are kept, and laying out apart."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipql.projection import fitting, stored
from clipql.projection.labels import labels
from clipql.storage.catalog import Table, VectorColumn
from tests.parts import vectors
from tests.patience import until
from tests.serve.conftest import Running

ROWS, WIDTH = 60, 8
WORDS = ("cat", "dog", "fish")
VECTORS = vectors(ROWS, WIDTH, 3, np.float32) * 3  # longer than 1: a map goes by directions
TYPES = {"u4": np.uint32, "u2": np.uint16, "u1": np.uint8, "f4": np.float32}


@pytest.fixture(scope="module")
def mapped(server: Running) -> Iterator[Running]:
    """The session's server, with a table `mapped`."""
    columns = "caption String, NSFW String, width Nullable(UInt32), day Date, kind LowCardinality(String)"
    made = f"CREATE TABLE mapped ({columns}, `my v` Array(Float32)) ENGINE = MergeTree ORDER BY tuple()"
    assert server.sql(made).status == 200
    insert(server, VECTORS, 0)
    yield server
    server.sql("DROP TABLE IF EXISTS mapped")


def insert(server: Running, given: np.ndarray, first: int) -> None:
    rows = [
        {
            "caption": f"a {WORDS[i % 3]} number {i}",
            "NSFW": "NSFW" if i % 10 == 9 else "UNLIKELY",
            "width": None if i % 7 == 0 else i * 10,
            "day": f"2024-01-{i % 28 + 1:02}",
            "kind": "it's \\" if i % 2 else "b",
            "my v": vector.tolist(),
        }
        for i, vector in enumerate(given, first)
    ]
    reply = server.sql("INSERT INTO mapped FORMAT JSONEachRow " + "\n".join(map(json.dumps, rows)))
    assert reply.status == 200, reply.text


def ask(server: Running, **asked: Any) -> dict[str, Any]:
    """What the server answers when it has a map: the header, its arrays, and `ids`."""

    replies = []

    def answered() -> bool:
        replies.append(server.post("/api/projection", {"table": "mapped", **asked}))
        return bool(replies[-1].status != 202)

    until(answered, "there is a map")
    assert replies[-1].status == 200, replies[-1].text
    body = replies[-1].body
    length = int.from_bytes(body[:4], "little")
    found: dict[str, Any] = json.loads(body[4 : 4 + length])
    at = 4 + length
    for array in found["arrays"]:
        numbers = found["count"] * (2 if array["name"] == "places" else 1)
        found[array["name"]] = np.frombuffer(body, TYPES[array["type"]], numbers, at)
        at += -(-found[array["name"]].nbytes // 4) * 4
    found["ids"] = (int(found["first"]) + np.cumsum(found["rows"], dtype=np.int64)).tolist()
    return found


def numbers(server: Running, what: str, rest: str = "") -> list[Any]:
    """A column of rows, by SQL that knows no maps."""
    reply = server.sql(f"SELECT {what} FROM mapped {rest} ORDER BY _row SETTINGS vector_plan = 0 FORMAT JSONCompact")
    assert reply.status == 200, reply.text
    return [row[0] for row in reply.json["data"]]


def places(found: dict[str, Any]) -> np.ndarray:
    return found["places"].reshape(-1, 2) / 65535 * 2 - 1


def test_places_are_those_of_the_two_directions_in_which_unit_vectors_differ_most(mapped: Running) -> None:
    found = ask(mapped, safe=False)
    unit = VECTORS.astype(np.float64) / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    centred = unit - unit.mean(axis=0)
    expected = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
    expected *= np.sign(expected[np.abs(expected).argmax(axis=0), [0, 1]])
    assert (found["method"], found["step"], found["ids"]) == ("pca", 1, list(range(ROWS)))
    assert places(found) == pytest.approx(expected / np.abs(expected).max(), abs=1e-3)


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("where", [None, "width > 200 AND caption LIKE '%cat%'", "cosineDistance(`my v`, {}) < 0.8"])
def test_points_are_the_rows_that_a_search_goes_through(mapped: Running, safe: bool, where: str | None) -> None:
    condition = (where or "1").format(VECTORS[0].tolist())
    rest = f"WHERE ({condition})" + (" AND NSFW = 'UNLIKELY'" if safe else "")
    wanted = [int(i) for i in numbers(mapped, "_row", rest)]
    assert ask(mapped, where=where and condition, safe=safe)["ids"] == wanted
    coloured = ask(mapped, where=where and condition, safe=safe, by="width")
    assert coloured["ids"] == wanted
    assert coloured["values"].tolist() == pytest.approx(
        [float(w or "nan") for w in numbers(mapped, "toString(width)", rest)], nan_ok=True
    )


def test_words_colour_by_their_commonest_and_similarity_is_that_of_sql(mapped: Running) -> None:
    found = ask(mapped, by="kind", safe=False)
    assert (found["names"], found["counts"], found["others"]) == (["b", "it's \\"], [30, 30], 0)
    assert [found["names"][code - 1] for code in found["codes"]] == numbers(mapped, "kind")
    captions = ask(mapped, by="caption", safe=False)
    assert (len(captions["names"]), captions["others"]) == (12, ROWS - 12)
    days = ask(mapped, by="day", safe=False)["values"]
    assert days.tolist() == [float(n) for n in numbers(mapped, "toInt32(day)")]
    near = ask(
        mapped, by_similarity=True, safe=False, terms=[{"id": "4"}, {"vector": VECTORS[9].tolist(), "weight": 0.5}]
    )
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    query = (unit[4] + 0.5 * unit[9]).tolist()
    assert near["values"] == pytest.approx(np.array(numbers(mapped, f"1 - cosineDistance(`my v`, {query})")), abs=1e-5)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"by": "nosuch"}, "no column of numbers, dates or text; caption, NSFW, width, day, kind are"),
        ({"by": "my v"}, "no column of numbers"),
        ({"by": "_row"}, "no column of numbers"),
        ({"by_similarity": True}, "nothing to be similar to"),
        ({"by_similarity": True, "terms": [{"vector": [1.0]}]}, "holds 8 numbers; what is searched for has 1"),
        ({"where": "1) OR (1"}, "condition"),
        ({"more": 1}, "'more' is not known"),
    ],
)
def test_what_cannot_be_asked_of_a_map_is_said(mapped: Running, asked: dict[str, Any], said: str) -> None:
    ask(mapped)
    reply = mapped.post("/api/projection", {"table": "mapped", **asked})
    assert reply.status == 400
    assert said in reply.json["error"]


def test_a_map_follows_what_is_inserted_updated_and_deleted_and_goes_with_its_table(mapped: Running) -> None:
    before = places(ask(mapped, safe=False))
    insert(mapped, VECTORS[:5], ROWS)
    found = ask(mapped, safe=False)
    assert found["ids"] == list(range(ROWS + 5))
    assert np.array_equal(places(found)[:ROWS], before)
    assert np.array_equal(places(found)[ROWS:], before[:5])  # the same vectors have the same places
    mapped.sql("DELETE FROM mapped WHERE _row IN (3, 61)")
    assert ask(mapped, safe=False)["ids"] == [i for i in range(ROWS + 5) if i not in (3, 61)]
    changed = (-VECTORS[1]).tolist()
    assert mapped.sql(f"ALTER TABLE mapped UPDATE `my v` = {changed} WHERE _row = 0", mutations_sync="2").status == 200
    after = places(ask(mapped, safe=False))
    assert not np.allclose(after[0], before[0], atol=1e-3)

    folder = mapped.folder / "test.db" / stored.FOLDER
    until(lambda: [*folder.rglob("*.map")], "the map is kept")
    assert mapped.sql("DROP TABLE mapped SYNC").status == 200
    assert [*folder.rglob("*.map")] == []
    assert mapped.post("/api/projection", {"table": "mapped"}).status == 404


def test_a_map_that_was_kept_is_the_same_or_is_none(tmp_path: Path) -> None:
    table, column = Table("default", "t", "id", (), 3), VectorColumn("v", "column-0", 2)
    axes = np.arange(6, dtype=np.float32).reshape(3, 2)
    some = fitting.Projection(
        "pca", np.array([0, 2, 1 << 40]), np.eye(3, 2, dtype=np.float32), 3, 1 << 41, 2, "w", axes
    )
    some = dataclasses.replace(some, labels=labels(np.zeros((60, 2), np.float32), ["fish", "fish", "a cat"] * 20))
    stored.keep(tmp_path, table, column, some)
    found = stored.read(tmp_path, table, column, "pca")
    assert found is not None
    assert [label.text for label in found.labels] == ["cat"]  # nearly every caption has the other word
    for name in ("rows", "places", "axes"):
        assert np.array_equal(getattr(found, name), getattr(some, name))
    for wrong in (
        {"looked": 9},
        {"step": 0},
        {"rows": np.array([2, 1, 3])},
        {"places": np.full((3, 2), 2, np.float32)},
    ):
        stored.keep(tmp_path, table, column, dataclasses.replace(some, **wrong))
        assert stored.read(tmp_path, table, column, "pca") is None
    stored.keep(tmp_path, table, column, some)
    path = stored.place(tmp_path, table, column, "pca")
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert stored.read(tmp_path, table, column, "pca") is None
    path.write_bytes(data[:7])
    assert stored.read(tmp_path, table, column, "pca") is None
    stored.forget(tmp_path, table)
    assert stored.read(tmp_path, table, column, "pca") is None


LAYING_OUT = """
import time
import numpy as np
from clipql.errors import ClipqlError
from clipql.serve.layout import Helper

def fit(values, tell):
    tell("laying out", 1, 4)
    if values[0, 0] == 7:
        raise ValueError("no")
    while values[0, 0] == 8:
        time.sleep(0.01)
    return values[:, :2] * 2

class Enough(Exception): pass

helper, told = Helper("auto", fit), []
values = np.arange(12, dtype=np.float32).reshape(4, 3)
assert np.array_equal(helper.lay_out(values, lambda *stage: None), values[:, :2] * 2)
def enough(*stage):
    told.append(stage)
    if stage[0] == "laying out":
        raise Enough
try: helper.lay_out(np.full((4, 3), 8, np.float32), enough)
except Enough: assert told[-1] == ("laying out", 1, 4)
try: helper.lay_out(np.full((4, 3), 7, np.float32), lambda *stage: None)
except ClipqlError as error: print(error)
assert np.array_equal(helper.lay_out(values, lambda *stage: None), values[:, :2] * 2)
helper.close()
"""


def test_a_word_that_only_joins_others_names_no_region() -> None:
    captions = ["the one with a zebra", "fish", "star"] * 10
    assert [label.text for label in labels(np.zeros((30, 2), np.float32), captions)] == ["one zebra"]


def test_two_regions_of_one_level_have_two_names_though_their_captions_are_alike() -> None:
    random = np.random.default_rng(0)
    middles = np.concatenate([random.normal(size=(6, 1, 2)), 10 + random.normal(size=(8, 1, 2))]) * 100
    points = (middles + random.normal(size=(14, 50, 2))).reshape(-1, 2).astype(np.float32)
    # no word is in four tenths of them
    captions = [
        *(["zebra"] * 100),
        *(["zebra", "zebra grass"] * 50),
        *(["zebra"] * 50),
        *(["fish"] * 225),
        *(["tree"] * 225),
    ]
    found = labels(points, captions)
    for level in {label.level for label in found}:
        names = [label.text for label in found if label.level == level]
        assert len(names) > 3
        assert len({frozenset(name.split()) for name in names}) == len(names)
        assert all({"zebra", "grass", "fish", "tree"} & set(name.split()) for name in names)


def test_points_are_laid_out_by_a_process_that_can_be_stopped_and_may_fail() -> None:
    done = subprocess.run([sys.executable, "-c", LAYING_OUT], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("UMAP gave no map of 4 points: failed\n", "")


def test_text_that_is_not_utf_8_colours_points_as_any_other(server: Running) -> None:
    columns = "caption String, label String, v Array(Float32)"
    server.sql(f"CREATE TABLE bytes_by_label ({columns}) ENGINE = MergeTree ORDER BY tuple()")
    label = "multiIf(number % 3 = 0, unhex('ff61'), number % 3 = 1, unhex('fe61'), 'plain')"
    server.sql(f"INSERT INTO bytes_by_label SELECT {label}, {label}, [number, 1] FROM numbers(90)")
    found = ask(server, table="bytes_by_label", by="label", safe=False)
    assert (sorted(found["names"]), found["counts"], found["others"]) == (["plain", "\ufffda", "\ufffda"], [30] * 3, 0)
