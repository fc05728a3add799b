"""Statements are read as ClickHouse reads them: names, strings, SELECTs, clauses, sources, aliases, calls, stars.

CLIPQL_STATEMENTS=20000 compares as many; docs/differential.md says what that found.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from chdb.session import Session

from clipql.syntax import lexer, reading
from clipql.syntax.edits import edited
from clipql.syntax.reading import read
from clipql.syntax.select_first import select_first

sys.path.insert(0, str(Path(__file__).parent))
import tree
from spelled import statements

STATEMENTS, SEED = int(os.environ.get("CLIPQL_STATEMENTS", "1000")), 1


@pytest.fixture(scope="module")
def engine() -> Iterator[Session]:
    """ClickHouse, with nothing in it."""
    session = Session()
    yield session
    session.close()


def asked(engine: Session, sql: str) -> bytes:
    return bytes(engine.query(sql, "TabSeparatedRaw").bytes())


def written(engine: Session, sql: str) -> bytes | None:
    """A statement as ClickHouse writes it; None where it does not."""
    quoted = sql.replace("\\", "\\\\").replace("'", "\\'").replace("\0", "\\0")
    try:
        return asked(engine, f"SELECT formatQuerySingleLine('{quoted}')")
    except (RuntimeError, UnicodeDecodeError):  # the latter of an error that tells of bytes
        return None


def compared(engine: Session, sql: str, counts: Counter[str]) -> list[str]:
    """In what our reading differs from ClickHouse's; what ClickHouse refuses may be read in any way."""
    try:
        ast, text = asked(engine, f"EXPLAIN AST {sql}").decode("utf-8", "surrogateescape"), written(engine, sql)
    except (RuntimeError, UnicodeDecodeError):  # the latter of an error that tells of bytes
        text = None
    if text is None:
        counts["refused"] += 1
        return []
    counts["read"] += 1
    turned = select_first(sql)
    statement = read(turned)
    found = [] if turned == sql or written(engine, turned) == text else ["SELECT and FROM were turned round otherwise"]
    found += [] if statement.readable else [f"unreadable: {[t for t in statement.tokens if t.kind == 'error']}"]
    mine, their = tree.our_names(statement), tree.their_names(text)
    found += [] if mine == their else [f"names: ours {mine - their}, ClickHouse's {their - mine}"]
    try:
        queries = tree.comparable(ast, statement)
    except tree.Broken:
        counts["names break the tree"] += 1
        return found
    if tree.left(statement):
        counts["left to ClickHouse"] += 1
        return found
    if len(queries) > len(statement.selects):
        counts["repeated by ClickHouse"] += 1  # it writes some expressions twice
        return found
    if len(queries) < len(statement.selects):
        return [*found, f"{len(statement.selects)} SELECTs where ClickHouse has {len(queries)}"]
    counts["compared"] += 1
    for select, query in zip(statement.selects, queries, strict=True):
        found += [f"{d} in {select}" for d in tree.differences(select, query)]
    return found


def test_random_statements_are_read_as_clickhouse_reads_them(engine: Session) -> None:
    counts: Counter[str] = Counter()
    found: list[str] = []
    for sql in statements(SEED):
        found += [f"{sql!r}:\n  {d}" for d in compared(engine, sql, counts)]
        if counts["read"] >= STATEMENTS:
            break
    assert not found, f"{len(found)} of {dict(counts)}\n" + "\n".join(found[:10])
    assert counts["left to ClickHouse"] < STATEMENTS / 50, dict(counts)
    assert counts["compared"] > STATEMENTS * 0.9, dict(counts)


def aliases(sql: str) -> list[set[str]]:
    return [set(s.aliases) for s in read(sql).selects]


@pytest.mark.parametrize(
    ("sql", "names"),
    [
        ("SELECT INTERVAL 1 DAY, INTERVAL '2 days' day, INTERVAL x MONTH m", {"day", "m"}),
        ("SELECT CASE WHEN a THEN CASE WHEN b THEN 1 END ELSE 2 END, CASE a WHEN 1 THEN 2 END c", {"c"}),
        ("SELECT TOP 3 a, b", set()),
        ("SELECT a IS DISTINCT FROM b, c IS NOT DISTINCT FROM d e FROM t", {"e"}),
        ("SELECT sum(a) OVER w, any(a) IGNORE NULLS, any(a) RESPECT NULLS b FROM t", {"b"}),
        ("SELECT a AS limit, b AS from, c over, d in FROM t", {"limit", "from", "over"}),
    ],
)
def test_an_alias_is_told_from_the_end_of_an_expression(sql: str, names: set[str]) -> None:
    found = aliases(sql)
    assert found in ([names], [])  # where it could be read in two ways, it is not read


@pytest.mark.parametrize(
    ("sql", "clauses"),
    [
        ("SELECT limit, a AND offset > 1 FROM t WHERE limit ORDER BY format LIMIT 1", "SELECT FROM WHERE ORDER LIMIT"),
        ("SELECT a, FROM t", "SELECT FROM"),
        ("SELECT a, from, b FROM t", "SELECT FROM"),
        ("SELECT a IS NOT DISTINCT FROM b FROM t", "SELECT FROM"),
        ("SELECT a FROM t SAMPLE 1 / 10 OFFSET 1 / 2 WHERE a", "SELECT FROM WHERE"),
        ("SELECT a FROM t LIMIT 3 OFFSET 2 BY b LIMIT 5", "SELECT FROM LIMIT LIMIT 2"),
        ("SELECT a FROM t ORDER BY a WITH FILL FROM 1 TO 10 LIMIT 5", "SELECT FROM ORDER LIMIT"),
        ("SELECT * FROM t AS limit LIMIT 1", "SELECT FROM LIMIT"),
        ("SELECT a AS select FROM t", "SELECT FROM"),
    ],
)
def test_a_keyword_opens_a_clause_only_after_an_operand(sql: str, clauses: str) -> None:
    (select,) = read(sql).selects
    assert " ".join(select.clauses) == clauses


def test_what_could_be_read_in_two_ways_is_not_read() -> None:
    for sql in ("SELECT a, FROM (b, c)", "SELECT 0 IN FROM t WHERE a", "SELECT a DIV WHERE 1"):
        assert read(sql).selects == ()


def test_the_with_of_the_first_of_united_selects_holds_in_the_others() -> None:
    sql = "WITH c AS (SELECT 5 AS x), 7 AS y SELECT 1 UNION ALL SELECT x FROM c UNION ALL WITH 1 AS z SELECT x FROM c"
    first, _, second, third = read(sql).selects
    assert first.names == second.names == {"c"}
    assert second.withs == first.withs
    assert third.names == frozenset()
    assert third.withs == ("7 AS y", "1 AS z")


def test_a_text_is_read_once() -> None:
    text = "SELECT a, f(b) AS c FROM t WHERE a > 1"
    statement = read(text)
    assert read("SELECT a, f(b) AS c FROM t" + " WHERE a > 1") is statement
    assert statement.tokens is read(text).tokens
    assert statement.selects[0].sources is read(text).selects[0].sources
    assert repr(statement) == f"Statement({text!r})"


def test_a_long_text_that_one_thread_reads_keeps_no_other_from_reading_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def tokenize(text: str) -> tuple[lexer.Token, ...]:
        if text == "SELECT 'long'":
            begun.set()
            assert go_on.wait(60)
        return lexer.tokenize(text)

    monkeypatch.setattr(reading, "tokenize", tokenize)
    found: list[tuple[lexer.Token, ...]] = []
    threads = [threading.Thread(target=lambda text=text: found.append(read(text).words), daemon=True)  # type: ignore[misc]
               for text in ("SELECT 'long'", "SELECT 'short'")]  # fmt: skip
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    threads[1].join(60)
    assert [tokens[1].value for tokens in found] == [b"short"]
    go_on.set()
    threads[0].join(60)
    assert [tokens[1].value for tokens in found] == [b"short", b"long"]


def test_a_very_long_text_is_forgotten_when_nobody_works_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_LONGEST", 10)
    text = "SELECT 1, 2, 3, 'of a length'"
    held = read(text)
    assert read(text) is held
    number = id(held.tokens)
    del held
    assert number is not None
    assert text not in reading._WORKED_WITH


def test_edits_are_applied_at_once_and_none_is_lost() -> None:
    text = "SELECT a FROM t"
    edits = [(14, 15, "u"), (7, 8, "b"), (7, 7, "x."), (15, 15, " LIMIT 1")]
    assert edited(text, edits) == "SELECT x.b FROM u LIMIT 1"
    assert edited(text, edits, 7, 8) == "x.b"
    with pytest.raises(ValueError, match=r"two edits at 7: 'a FROM' would become 'c' too"):
        edited(text, [(7, 13, "c"), (7, 8, "b")])
