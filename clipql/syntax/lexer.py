"""SQL text as tokens with their places: enough of ClickHouse's lexis to find clauses and to edit the text in place.

What must stay true: joining the tokens and the gaps between them gives the text back; strings, quoted names, comments
and heredocs are one token each, so nothing inside them is ever taken for SQL. A literal array of numbers is one token
too: a query vector would otherwise be a thousand.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

# a text of fewer letters is remembered with many others, one of more is data
_LONG, _VERY_LONG = 32_768, 1 << 20
_TOKEN = re.compile(
    r"""
    (?P<space>\s+|--[^\n]*|\#[! ][^\n]*|/\*.*?\*/)
  | (?P<string>'(?:[^'\\]|\\.|'')*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$)
  | (?P<quoted>`(?:[^`\\]|\\.|``)*`|"(?:[^"\\]|\\.|"")*")
  | (?P<vector>\[\s*[-+]?[0-9.][-+0-9.eE\s]*(?:,\s*[-+]?[0-9.][-+0-9.eE\s]*)*\])
  | (?P<number>(?:0[xX][0-9a-fA-F]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)(?![A-Za-z_]))
  | (?P<word>[A-Za-z_$@][\w$]*|[^\W\d]\w*|[0-9]+\w+)
  | (?P<symbol>::|->|\|\||<=>|<=|>=|<>|!=|==|.)
    """,
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """kind: 'word', 'quoted', 'string', 'number', 'vector' or 'symbol'; start and end are places in the text."""

    kind: str
    text: str
    start: int
    end: int

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= 60 else self.text[:59] + "…"
        return f"Token({self.kind!r}, {text!r}, {self.start}, {self.end})"

    @property
    def upper(self) -> str:
        """The text in capitals for a word or a symbol; empty for the rest, which are never keywords."""
        return self.text.upper() if self.kind in ("word", "symbol") else ""

    @property
    def name(self) -> str | None:
        """The identifier it stands for, unquoted; None where it is none."""
        if self.kind == "word":
            return self.text
        if self.kind == "quoted":
            mark = self.text[0]
            return re.sub(r"\\(.)", r"\1", self.text[1:-1].replace(mark * 2, mark), flags=re.DOTALL)
        return None


def tokenize(sql: str) -> list[Token]:
    """The tokens of a statement, without space and comments, and without the data that follows INSERT … FORMAT name."""
    # a statement is looked at several times on its way; a very long one is data
    if len(sql) < _LONG:
        return list(_remembered(sql))
    return list(_remembered_long(sql)) if len(sql) < _VERY_LONG else _tokens(sql)


@lru_cache(64)
def _remembered(sql: str) -> tuple[Token, ...]:
    return tuple(_tokens(sql))


@lru_cache(2)
def _remembered_long(sql: str) -> tuple[Token, ...]:
    return tuple(_tokens(sql))


def _tokens(sql: str) -> list[Token]:
    found: list[Token] = []
    begin = 0
    for match in _TOKEN.finditer(sql):
        kind = match.lastgroup
        if kind == "tag":
            kind = "string"
        if not kind or kind == "space":
            continue
        found.append(Token(kind, match.group(), match.start(), match.end()))
        if found[-1].text == ";":
            begin = len(found)
        elif kind == "word" and len(found) - begin > 3 and _data_follows(found, begin):
            break
    return found


def _data_follows(tokens: list[Token], begin: int) -> bool:
    """Whether the last token is the format's name in INSERT INTO table FORMAT name, which begins at `begin`."""
    if tokens[-2].upper != "FORMAT" or tokens[begin].upper != "INSERT" or tokens[-1].upper == "VALUES":
        return False
    return not any(t.upper in ("SELECT", "WITH", "INFILE", "VALUES") for t in tokens[begin:-2])


def matching(tokens: list[Token], at: int) -> int:
    """The place of the bracket that closes the one at `at`; the last token's where none does."""
    depth = 0
    for i in range(at, len(tokens)):
        if tokens[i].kind == "symbol":
            if tokens[i].text in "([{":
                depth += 1
            elif tokens[i].text in ")]}":
                depth -= 1
                if depth == 0:
                    return i
    return len(tokens) - 1


def split_statements(text: str) -> list[str]:
    """A script as its statements, without their semicolons.

    `INSERT … FORMAT name` takes all that follows as data, up to the end of the text, as clickhouse-client does; data
    after VALUES ends at the semicolon.
    """
    statements: list[str] = []
    begin = first = 0
    tokens = tokenize(text)
    for i, token in enumerate(tokens):
        if token.text == ";" and token.kind == "symbol":
            if i > first:
                statements.append(text[begin : token.start].strip())
            begin, first = token.end, i + 1
    if first < len(tokens):
        data_follows = len(tokens) - first > 3 and _data_follows(tokens, first)
        after = text[tokens[-1].end :].lstrip() if data_follows else ""
        if after.startswith(";"):  # no data, but perhaps more statements
            rest = text[tokens[-1].end :]
            return [*statements, text[begin : tokens[-1].end].strip(), *split_statements(rest)]
        statements.append(text[begin:].strip())
    return statements
