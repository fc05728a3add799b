"""Views, subqueries and CTEs that only pick, rename and filter are merged, and give what they gave."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import test_oracle
from test_oracle import agree, parameters

import clipql
from clipql.errors import ClipqlError
from clipql.sql.recognition.inline import inline
from clipql.sql.recognition.views import finder
from clipql.syntax.lexer import split_statements, tokenize
from clipql.syntax.reading import read
from tests.cases import some

table = test_oracle.table  # its fixture
TEXTS = split_statements((Path(__file__).parent / "fixtures" / "inlined.sql").read_text())
PAIRS = list(zip(TEXTS[::2], TEXTS[1::2], strict=True))


@pytest.fixture(scope="module")
def db(table: clipql.Database) -> clipql.Database:
    table.sql("CREATE VIEW v AS SELECT * FROM t WHERE width > 500")
    table.sql("CREATE VIEW w AS SELECT id AS nr, image_embedding AS e FROM (SELECT id, image_embedding FROM v) "
              "WHERE id % 2 = 0")  # fmt: skip
    return table


def merged(db: clipql.Database, text: str) -> str:
    scope = read(text).selects[0]
    for start, end, new in sorted(inline(scope, finder(db.registry, parameters())), reverse=True):
        text = text[:start] + new + text[end:]
    return text


def plain(text: str) -> list[str]:
    """The tokens, quotes and all brackets that change nothing aside."""
    return [text[t.start : t.end].strip("`") for t in tokenize(text) if text[t.start : t.end] not in "()"]


@pytest.mark.parametrize(("written", "expected"), PAIRS)
def test_a_simple_source_is_merged_into_the_select_over_it(db: clipql.Database, written: str, expected: str) -> None:
    assert plain(merged(db, written)) == plain(expected)


@pytest.mark.parametrize(("written", "expected"), PAIRS)
def test_a_merged_select_gives_what_clickhouse_gives(db: clipql.Database, written: str, expected: str) -> None:
    kinds = agree(db, written)
    assert (kinds == ["as it is"]) == (written.strip() == expected.strip())
    if written.strip() != expected.strip():
        explained = [row[0] for row in db.sql("EXPLAIN " + written, **parameters()).rows]
        assert "  table: default.t (2,000 rows)" in explained


def test_a_view_made_anew_is_read_anew(db: clipql.Database) -> None:
    query = "SELECT id FROM anew ORDER BY L2Distance(image_embedding, {q:Array(Float32)}) LIMIT 5"
    for condition in ("id < 50", "id > 1900"):
        db.sql(f"CREATE OR REPLACE VIEW anew AS SELECT id, image_embedding FROM t WHERE {condition}")
        assert agree(db, query) == ["top-k"]
    db.sql("DROP VIEW anew")


NAMES = ["id", "url", "width", "image_embedding", "e", "d", "x", "t", "nr"]


def nested(seed: int) -> str:
    """A SELECT over one to three layers of renaming and filtering, its names taken from few, so that they meet."""
    luck = random.Random(seed)
    known = {"id": "number", "url": "text", "width": "number", "image_embedding": "vector"}
    text = luck.choice(["t", "default.t", "t AS x"])
    for _ in range(luck.randint(1, 3)):
        chosen = luck.sample(sorted(known), luck.randint(2, len(known)))
        vector = next(n for n, kind in known.items() if kind == "vector")
        chosen = list(dict.fromkeys([*chosen, vector]))
        names = luck.sample(NAMES, len(chosen)) if luck.random() < 0.5 else chosen
        items = ", ".join(c if c == n else f"{c} AS {n}" for c, n in zip(chosen, names, strict=True))
        numbers = [n for n, kind in known.items() if kind == "number"]
        where = (
            f" WHERE {luck.choice(numbers)} {luck.choice(['>', '<', '!='])} 400"
            if numbers and luck.random() < 0.6
            else ""
        )
        text = f"(SELECT {items} FROM {text}{where}) {luck.choice(['', 'AS x', 'AS e', 'y'])}"
        known = {n: known[c] for c, n in zip(chosen, names, strict=True)}
    vector = next(n for n, kind in known.items() if kind == "vector")
    others = [n for n, kind in known.items() if kind != "vector"] or ["1"]
    item = luck.choice(others)
    alias = luck.choice(["", "", f" AS {luck.choice(NAMES)}"])
    where = f" WHERE {luck.choice(others)} != '7'" if luck.random() < 0.4 else ""
    order = f"L2Distance({vector}, {{q:Array(Float32)}})"
    item = luck.choice([item, "*", f"toString({item})"])
    return f"SELECT {item}{alias}, 1 AS one FROM {text}{where} ORDER BY {order} LIMIT 6"


@pytest.mark.parametrize("seed", some(range(150), 3))
def test_layers_of_names_give_what_clickhouse_gives(db: clipql.Database, seed: int) -> None:
    statement = nested(seed)
    db.sql("SET vector_plan = 0")
    try:
        db.sql(statement, **parameters())
    except ClipqlError:
        db.sql("SET vector_plan = 1")
        with pytest.raises(ClipqlError):
            db.sql(statement, **parameters())
        return
    agree(db, statement)
