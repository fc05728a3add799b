from __future__ import annotations

import pytest

from clipql.sql.recognition.affine import Affine, Parser
from clipql.syntax.lexer import tokenize
from clipql.syntax.reading import read


def clauses(sql: str) -> list[dict[str, str]]:
    return [{c: s.body(c) for c in s.clauses} for s in read(sql).selects]


def test_each_clause_has_its_own_text() -> None:
    found = clauses(
        "WITH 1 AS x SELECT a, `from` AS b FROM t AS u PREWHERE p WHERE a = '; LIMIT 3' GROUP BY a HAVING a > 1 "
        "ORDER BY a DESC, b LIMIT 5 OFFSET 6 SETTINGS max_threads = 1 FORMAT JSON"
    )
    assert found == [
        {
            "WITH": "1 AS x",
            "SELECT": "a, `from` AS b",
            "FROM": "t AS u",
            "PREWHERE": "p",
            "WHERE": "a = '; LIMIT 3'",
            "GROUP": "a",
            "HAVING": "a > 1",
            "ORDER": "a DESC, b",
            "LIMIT": "5",
            "OFFSET": "6",
            "SETTINGS": "max_threads = 1",
            "FORMAT": "JSON",
        }
    ]


def test_nested_and_united_selects_are_scopes_of_their_own() -> None:
    found = clauses("SELECT (SELECT max(a) FROM t) FROM (SELECT b FROM u LIMIT 1) UNION ALL SELECT * EXCEPT (c) FROM v")
    assert [f["FROM"] for f in found] == ["(SELECT b FROM u LIMIT 1)", "t", "u", "v"]
    assert found[3]["SELECT"] == "* EXCEPT (c)"


def test_names_that_look_like_clauses_are_names() -> None:
    found = clauses("SELECT t.limit, format, settings AS offset FROM t WHERE window = 1")
    assert found == [{"SELECT": "t.limit, format, settings AS offset", "FROM": "t", "WHERE": "window = 1"}]


def test_a_scope_knows_the_with_clauses_around_it() -> None:
    sql = "WITH 1 AS x, y AS (SELECT 2) SELECT * FROM (WITH 3 AS z SELECT z FROM y)"
    outer, inner_y, inner = read(sql).selects
    assert outer.names == {"y"}
    assert inner.withs == ("1 AS x, y AS (SELECT 2)", "3 AS z")
    assert inner_y.nested
    assert inner.nested
    assert not outer.nested


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("D", Affine({0: 1.0})),
        ("1 - D", Affine({0: -1.0}, 1.0)),
        ("2 * (D - 0.5) / 4", Affine({0: 0.5}, -0.25)),
        ("D + E * 3", Affine({0: 1.0, 1: 3.0})),
        ("-(-D)", Affine({0: 1.0})),
        ("D - D", Affine({})),
        ("7", Affine({}, 7.0)),
        ("D * E", None),
        ("1 / D", None),
        ("D / 0", None),
        ("abs(D)", None),
        ("D + x", None),
        ("D D", None),
        ("", None),
        ("(D", None),
        ("D % 2", None),
    ],
)
def test_sums_of_weighted_distances_are_understood_and_nothing_else(text: str, form: Affine | None) -> None:
    tokens = tokenize(text)
    calls = {i: ("DE".index(t.text), i + 1) for i, t in enumerate(tokens) if t.text in ("D", "E")}
    assert Parser(tokens, calls, lambda token: None).parse(0, len(tokens)) == form
