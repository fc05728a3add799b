"""clipql's own settings in SETTINGS and SET, which ClickHouse would refuse, and FORMAT clauses."""

from __future__ import annotations

from collections.abc import Mapping

from clipql.errors import QueryError
from clipql.query.lexer import Token, matching, tokenize
from clipql.query.scopes import split_list

# name: what it does, as `clipql` documents it
OURS: Mapping[str, str] = {
    "vector_plan": "1: plan vector searches (the default); 0: leave every query to ClickHouse as it stands",
}


def taken_from(sql: str) -> tuple[str, dict[str, str]]:
    """The statement without clipql's settings in its SETTINGS clauses, and those settings."""
    found: dict[str, str] = {}
    tokens = tokenize(sql)
    for at in reversed(range(len(tokens) - 2)):
        if tokens[at].upper != "SETTINGS" or tokens[at + 2].text != "=" or not tokens[at + 1].name:
            continue
        end = _end(tokens, at + 1)
        kept: list[str] = []
        for first, last in split_list(tokens, at + 1, end):
            name = tokens[first].name or ""
            text = sql[tokens[first].start : tokens[last - 1].end]
            if name in OURS:
                found.setdefault(name, sql[tokens[first + 2].start : tokens[last - 1].end])
            else:
                kept.append(text)
        clause = f"SETTINGS {', '.join(kept)}" if kept else ""
        sql = sql[: tokens[at].start] + clause + sql[tokens[end - 1].end :]
    return sql, found


def _end(tokens: list[Token], at: int) -> int:
    """The place after the last assignment of a SETTINGS clause."""
    while at < len(tokens):
        if tokens[at].kind == "symbol" and tokens[at].text in "([{":
            at = matching(tokens, at) + 1
            continue
        if tokens[at].text in (")", ";") or tokens[at].upper in (
            "FORMAT",
            "UNION",
            "INTO",
            "VALUES",
            "SELECT",
            "COMMENT",
        ):
            break
        at += 1
    return at


def checked(name: str, value: str) -> str:
    """A setting of ours, checked. Raises QueryError for a value that it cannot have."""
    text = value.strip("'\"").lower()
    if name == "vector_plan" and text not in ("0", "1", "true", "false"):
        raise QueryError(f"vector_plan = {value}: expected 0 or 1")
    return text


def take_format(sql: str) -> tuple[str, str | None]:
    """The statement without a FORMAT clause at its end, and the format; as it is where there is none."""
    tokens = tokenize(sql)
    while tokens and tokens[-1].text == ";" and tokens[-1].kind == "symbol":
        tokens.pop()
    if (
        len(tokens) > 3
        and tokens[-2].upper == "FORMAT"
        and tokens[-1].kind == "word"
        and tokens[-3].text not in (",", ".")
    ) and tokens[0].upper in ("SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXISTS", "EXPLAIN", "("):
        return sql[: tokens[-2].start].rstrip(), tokens[-1].text
    return sql, None
