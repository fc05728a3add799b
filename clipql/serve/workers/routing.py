"""Which requests a worker answers itself: those that only read, and read what lies in files.

Everything else goes to the writer: what writes, what a session has that only its process knows, what another process's
memory holds. What must stay true: whatever is not understood goes to the writer, where it is answered as by a server of
one process.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes

from clipql.syntax.reading import read
from clipql.syntax.statements import Select

# bytes of a body in which the statement is looked for; what is longer has data behind it, as an INSERT's
HEAD = 1 << 16
_SELECT = re.compile(r"\s*SELECT\b", re.IGNORECASE)
_WITH = re.compile(r"\s*WITH\b", re.IGNORECASE)
_INSERT = re.compile(r"INSERT", re.IGNORECASE)  # WITH may stand before it as well
# words that tell of what differs from process to process, or may name a table that is not written out
_ELSEWHERE = re.compile(r"system|information_schema|clipql|identifier", re.IGNORECASE)
# how a statement may name a table other than by its name
_VEILED = re.compile(r"\\|merge|loop|joinget|dictget|_table", re.IGNORECASE)
# parameters of the protocol that only the writer understands, as `name=` in an address
_KEPT = (b"decompress=",)


@dataclass(frozen=True)
class Elsewhere:
    """The tables whose rows lie in the writer's memory, and the views, which may read them, where there are any."""

    names: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, tables: Iterable[Mapping[str, Any]]) -> Elsewhere:
        """Of all tables, by name and engine."""
        known = [(str(t["name"]), str(t["engine"]).lower()) for t in tables]
        memory = {name for name, engine in known if not (engine.endswith("mergetree") or engine in _IN_FILES)}
        views = {name for name, engine in known if engine.endswith("view")}
        return cls(frozenset(memory | views if memory else ()))

    def may_be_named(self, text: str) -> bool:
        """Whether a text may name one of them."""
        return bool(self.names) and (bool(_VEILED.search(text)) or any(name in text for name in self.names))


_IN_FILES = ("view", "materializedview", "null")


def statement(query_string: bytes, head: bytes) -> str | None:
    """The statement of a request of ClickHouse's protocol: `query` and the body, as far as they are at hand; None
    where it is no text."""
    given = b""
    for piece in query_string.split(b"&"):
        name, _, value = piece.partition(b"=")
        if name == b"query":
            given = unquote_to_bytes(value.replace(b"+", b" "))
        elif b"%" in name and unquote_to_bytes(name) in (b"query", b"session_id", b"decompress"):
            return None
    try:
        return (given + (b"\n" if given and head else b"") + head).decode()
    except UnicodeDecodeError:
        return None


def keeps_to_writer(query_string: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a request is for the writer, whatever its statement is."""
    if any(word in query_string for word in _KEPT):
        return True
    return any(
        (name == b"content-type" and value.lower().startswith(b"multipart/")) or name == b"content-encoding"
        for name, value in headers
    )


def only_reads(text: str, elsewhere: Elsewhere) -> bool:
    """Whether a statement is a SELECT over tables in files."""
    selects = _SELECT.match(text) or (
        _WITH.match(text) and not _INSERT.search(text) and isinstance(read(text).kind, Select)
    )
    return bool(selects) and not (_ELSEWHERE.search(text) or elsewhere.may_be_named(text))
