"""What a notebook shows of a value: one line that a person can read, whatever vectors and texts the value holds."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encode.models import tiny
from parts import make_part

import clipql
from clipql.brief import LINE, short
from clipql.encode import EncodedPictures, open_encoder
from clipql.ingest.layout import check_part, find_parts

ROWS, DIMENSION = 1_500, 512


@pytest.fixture
def db(tmp_path: Path) -> Iterator[clipql.Database]:
    folder = tmp_path
    make_part(folder / "laion", rows=ROWS, dimension=DIMENSION)
    with clipql.connect(folder / "test.db") as db:
        db.ingest(folder / "laion")
        yield db


def steady(value: Any) -> str:
    """A repr with its seconds as 0 and without the folders of this run."""
    text = re.sub(r"/\S*/", "…/", repr(value))
    return re.sub(r"\d+\.\d{3} s", "0.000 s", re.sub(r"(seconds=)[\d.e-]+", r"\g<1>0", text))


def test_a_searchs_stats_and_steps(db: clipql.Database) -> None:
    vector = np.full(DIMENSION, 0.5, np.float32)
    literal = f"[{', '.join(['0.5'] * DIMENSION)}]"
    for query, params in (("{q:Array(Float32)}", {"q": vector}), (literal, {})):
        sql = f"SELECT url FROM laion ORDER BY L2Distance(image_embedding, {query}) LIMIT 3"
        found = db.sql(sql, **params)
        assert steady(found.stats) == (
            "Stats(0.000 s, 0 rows and 0 bytes read by ClickHouse; top-k of default.laion: image_embedding)"
            if found.stats.rows_read == 0
            else steady(found.stats)
        )
        (step,) = found.stats.searches
        assert repr(step) == (
            "Step('top-k', default.laion: image_embedding, 3 found, 1,500 compared, "
            "why='sorted by a distance, with a LIMIT')"
        )
        assert repr(step.plan) == (
            "Plan('top-k', default.laion: image_embedding, k=3, why='sorted by a distance, with a LIMIT')"
        )
        every_value_is_one_line(step.plan)
        every_value_is_one_line(db.execute(sql, params))
        every_value_is_one_line(db._session._planner.rewrite(sql, params))


def test_a_joins_stats(db: clipql.Database) -> None:
    found = db.sql(
        "SELECT a.id, b.id FROM laion AS a CROSS JOIN laion AS b WHERE a.id < 3 "
        "ORDER BY L2Distance(a.image_embedding, b.text_embedding) LIMIT 1 BY a.id"
    )
    (step,) = found.stats.searches
    assert repr(step.plan) == (
        f"JoinPlan({step.kind!r}, default.laion: image_embedding and default.laion: text_embedding, "
        "why='sorted by a distance of two columns, with LIMIT n BY')"
    )
    every_value_is_one_line(step)


def test_a_result_shows_its_first_rows_and_its_text_up_to_a_length(db: clipql.Database) -> None:
    shown = repr(db.sql("SELECT number, 'a\nb' AS s, range(20) AS r FROM numbers(3000)")).splitlines()
    assert (len(shown), shown[1].split()) == (52, ["0", "a", "b", "[0,", "1,", "2,", "3,", "…", "20", "in", "all]"])
    assert shown[-1].startswith("(3,000 rows, ")
    assert repr(db.sql("SELECT 1 AS a FORMAT CSVWithNames")) == '"a"\n1\n'
    text = repr(db.sql("SELECT number FROM numbers(100000) FORMAT CSV"))
    assert text.endswith("\n… 588,890 bytes in all")
    assert len(text) == 20_023
    every_value_is_one_line(db.execute("SELECT number FROM numbers(100000)").output)


def test_a_database_its_tables_and_its_reports(db: clipql.Database, tmp_path: Path) -> None:
    assert steady(db) == "Database('…/test.db')"
    made = repr(db.check())
    assert made.startswith(f"CheckReport(path={str(db.path)!r}"[:40])
    (table,) = db.registry.catalog.tables
    assert repr(table).startswith("Table(database='default', name='laion', id='laion-1', columns=")
    for number in range(1, 9):
        make_part(tmp_path / "more", rows=5, number=number, dimension=DIMENSION)
    report = db.ingest(tmp_path / "more")
    assert steady(report) == "IngestReport(rows=40, parts_taken=8, parts_skipped=0, seconds=0)"
    checked = [check_part(p) for p in find_parts([tmp_path / "more"], None)]
    for value in (db.registry.catalog, table, *table.columns, report, db.check(), checked[0]):
        every_value_is_one_line(value)
    db.close()
    assert steady(db) == "Database('…/test.db', closed)"


def test_encoders_and_what_they_give(tmp_path: Path) -> None:
    encoder = open_encoder(tiny(tmp_path / "tiny"))
    assert re.fullmatch(r"ClipEncoder\('\S+', \d+ numbers, OnnxTowers\('\S+', threads=\d+\)\)", repr(encoder))
    pictures = EncodedPictures(np.zeros((300, 512), np.float32), (None,) * 300, ((1, 2),) * 300)
    assert repr(pictures) == (
        "EncodedPictures(vectors=<float32 (300, 512)>, errors=<tuple of 300>, sizes=<tuple of 300>)"
    )
    every_value_is_one_line(encoder.folder)  # type: ignore[attr-defined]


def test_what_is_long_is_told_by_its_size() -> None:
    assert short(b"x" * 5000) == "<5,000 bytes>"
    assert short("x" * 5000) == f"'{'x' * 59}…'"
    assert short([1.25, None, "a", b"b", (1,)]) == "[1.25, None, 'a', <1 bytes>, (1,)]"
    assert short({"a": np.zeros(3), "b": {1, 2}}) == "{'a': <float64 (3,)>, 'b': {1, 2}}"
    assert short({str(i): i for i in range(1000)}) == "<dict of 1,000>"
    assert short(list(range(1000))) == "<list of 1,000>"


def every_value_is_one_line(value: Any, seen: set[int] | None = None) -> None:
    """Of a value and of all dataclasses that it is made of."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if dataclasses.is_dataclass(value):
        text = repr(value)
        assert "\n" not in text
        assert len(text) <= LINE + 60, text
        for field in dataclasses.fields(value):
            every_value_is_one_line(getattr(value, field.name), seen)
    elif isinstance(value, (list, tuple)):
        for each in value[:20]:
            every_value_is_one_line(each, seen)
