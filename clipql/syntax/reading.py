"""The one reading of a statement's text: its tokens, its kind and its SELECTs, each found once and kept.

Every rule takes a `Statement`, or asks `read` for that of a text, which gives the same value for the same text; so no
text is read twice, and no two rules can read it otherwise. What must stay true: a value never changes; what is edited
is another text, with a value of its own; tests/syntax/test_reading.py holds it to ClickHouse's own reading.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from weakref import WeakValueDictionary

from clipql.syntax import statements
from clipql.syntax.lexer import Token, tokenize
from clipql.syntax.once import once
from clipql.syntax.recent import Recent
from clipql.syntax.scopes import Scope, scopes

# texts that are remembered, and their characters in all, of which a token may be one and takes 200 bytes
_MOST, _ROOM = 1024, 1 << 20
# characters of a text; longer ones are data, and remembered as long as somebody works with them
_LONGEST = _ROOM // 4


@dataclass(frozen=True, eq=False)
class Statement:
    """A text as SQL. Thread-safe: what two threads find at the same time is the same."""

    text: str

    def __repr__(self) -> str:
        return f"Statement({self.text if len(self.text) <= 120 else self.text[:119] + '…'!r})"

    @once
    def tokens(self) -> tuple[Token, ...]:
        """All tokens, as ClickHouse tells them apart."""
        return tokenize(self.text)

    @once
    def words(self) -> tuple[Token, ...]:
        """The tokens without semicolons at the end."""
        last = len(self.tokens)
        while last and self.tokens[last - 1].text == ";" and self.tokens[last - 1].kind == "symbol":
            last -= 1
        return self.tokens[:last]

    @once
    def kind(self) -> statements.Kind:
        """What it does, and to which table."""
        return statements.kind_of(self.text, self.words)

    @once
    def selects(self) -> tuple[Scope, ...]:
        """Its SELECTs, outer ones before inner ones, with their clauses, sources, aliases and calls."""
        return tuple(scopes(self.text, self.tokens))

    @property
    def readable(self) -> bool:
        """Whether ClickHouse can tell all of its tokens apart."""
        return all(t.kind != "error" for t in self.tokens)

    def settings_in(self, select: Scope) -> str:
        """The SETTINGS that hold in one of its SELECTs: those of the SELECTs around it, then its own."""
        first, last = select.whole.first, select.whole.last
        around = (s for s in self.selects if s.whole.first <= first and last <= s.whole.last)
        return ", ".join(body for s in around if (body := s.body("SETTINGS")))


def read(text: str) -> Statement:
    """The reading of a text: the same value each time, as long as it is remembered."""
    found = _RECENT.find(text)
    if found is not None:
        return found
    if len(text) <= _LONGEST:
        return _RECENT.keep(text, Statement(text), len(text))
    with _LOCK:
        known = _WORKED_WITH.get(text)
        if known is None:
            known = _WORKED_WITH[text] = Statement(text)
        return known


_RECENT: Recent[str, Statement] = Recent(_MOST, _ROOM)
_WORKED_WITH: WeakValueDictionary[str, Statement] = WeakValueDictionary()
_LOCK = threading.Lock()


def select_of(sql: str) -> str:
    """The SELECT whose rows an INSERT or CREATE takes; the statement itself where it is one."""
    inner = read(sql).kind
    if isinstance(inner, statements.Insert):
        return sql[inner.body :] if inner.source == "SELECT" else ""
    if isinstance(inner, statements.CreateTable):
        return sql[inner.select :] if inner.select is not None else ""
    return sql
