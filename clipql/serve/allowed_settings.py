"""Which settings a statement from the network may have: in SET, in its SETTINGS clauses, and given beside it.

Every setting that the engine has may be given, but for those that reach out of the process or make a promise of the
server void (`allowed.setting`), and limits above the server's. What must stay true: a setting has one number or string
as its value, however it is spelled; one whose value is text is taken by its name alone; a clause that is not understood
is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from clipql.engine.embedded import Engine
from clipql.errors import QueryError
from clipql.serve import allowed
from clipql.serve.limits import Limits
from clipql.serve.spelling import denied
from clipql.sql.recognition import settings as own_settings
from clipql.syntax.lexer import Token
from clipql.syntax.reading import read
from clipql.syntax.statements import Set

QUOTES = "'\""
# what ClickHouse prepares for each thread that a query asks for takes time, whether there are as many or not
MOST_THREADS = 64


class Settings:
    """The rules, with a server's limits. Thread-safe."""

    def __init__(self, engine: Engine, limits: Limits) -> None:
        self._limits = limits
        found = engine.arrow(
            "SELECT name, type, value FROM system.merge_tree_settings "
            "UNION ALL SELECT name, type, value FROM system.settings"
        )
        names, types, values = (column.to_pylist() for column in found.columns)
        self._known = dict(zip(names, types, strict=True))
        self._values = dict(zip(names, values, strict=True))

    def without_idle(self, given: Mapping[str, str], important: Collection[str]) -> dict[str, str]:
        """Settings that a client of the native protocol sends, but those that change nothing: which have the value that
        holds anyway, or which are not known, unless they are important to it."""
        return {
            name: value
            for name, value in given.items()
            if name in own_settings.OURS
            or (name in important if name not in self._known else value != self._values[name])
        }

    def check_set(self, statement: Set) -> None:
        """Raise QueryError for a SET of what may not be set."""
        for name, value in statement.assignments:
            if name.startswith("param_"):
                continue
            if not _is_value(read(value).tokens):
                raise denied(f"SET {name[:60]}: expected a number or a string")
            self.check(name, value, above=True)

    def check_clauses(self, tokens: Sequence[Token]) -> None:
        """Raise QueryError for a statement with a SETTINGS clause of what may not be set."""
        for at, token in enumerate(tokens):
            if token.upper in ("SETTINGS", "SETTING"):
                inside = at + 1 < len(tokens) and tokens[at + 1].text == "("  # as columns have them
                self._check_clause(tokens, at + 1 + inside)

    def _check_clause(self, tokens: Sequence[Token], at: int) -> None:
        first = at
        while at < len(tokens) and (name := tokens[at].name):
            following = tokens[at + 1].text if at + 1 < len(tokens) else ""
            if following == "=":
                end = self._check_assignment(tokens, at)
            elif at > first or name in self._known:
                self.check(name, "1")  # `SETTINGS name` alone turns it on
                end = at
            else:
                return  # a column or an alias that is called so
            if end + 1 >= len(tokens) or tokens[end + 1].text != ",":
                return
            at = end + 2
        if first < at < len(tokens):  # … SETTINGS a = 1, then something else
            raise denied("SETTINGS: expected name = value")

    def _check_assignment(self, tokens: Sequence[Token], at: int) -> int:
        """Check `name = value`, which begins at `at`; the place of its last token."""
        name = tokens[at].name or ""
        end = at + 2 + (at + 2 < len(tokens) and tokens[at + 2].upper in ("-", "+"))
        after = tokens[end + 1].text if end + 1 < len(tokens) else ""
        if not _is_value(tokens[at + 2 : end + 1]) or after in ("(", ".", "::", "[", "||", "+", "-"):
            raise denied(f"SETTINGS {name[:60]}: expected a number or a string")
        self.check(name, "".join(t.text for t in tokens[at + 2 : end + 1]))
        return end

    def check(self, name: str, value: str, *, above: bool = False) -> None:
        """Raise QueryError for a setting that may not be given, or not so large.

        above: a limit may be above the server's, as the server's will be put in its place.
        """
        if name == own_settings.DEVICE and value.strip(QUOTES).lower() != own_settings.CPU:
            raise _violation(f"Setting {name} should be cpu: a server's statements have its processors alone")
        if name in own_settings.OURS:
            return
        if name not in self._known:
            raise QueryError(f"Unknown setting {name[:60]!r}", code=115, name="UNKNOWN_SETTING")
        if not allowed.setting(name, self._known[name]):
            raise _violation(
                f"Setting {name[:60]} should not be changed: for the network it would reach out of the server, or make "
                "void what the server promises"
            )
        if name in allowed.CAPPED and self._capped(name, value) is not None and not above:
            raise _violation(
                f"Setting {name} shouldn't be greater than {self._most(name)}: it is {value.strip(QUOTES)[:60]}"
            )
        if (why := own_settings.broken(name, value.strip(QUOTES))) is not None:
            raise _violation(f"Setting {name} should not be {value[:20]}: clipql keeps it at {why}")

    def _most(self, name: str) -> int:
        limits = self._limits
        if name in allowed.THREADS:
            return MOST_THREADS
        return {
            "max_execution_time": limits.seconds,
            "max_memory_usage": limits.memory,
            "max_result_rows": limits.rows,
            "max_block_size": 65_536,
        }[name]

    def _capped(self, name: str, value: str) -> str | None:
        """The server's limit, where a value is above it. Raises QueryError for what is no limit."""
        most = self._most(name)
        said = value.strip(QUOTES)
        if name in allowed.THREADS and said.lower() in ("0", "auto", "default"):
            return None
        try:
            number = float(said)
        except ValueError:
            number = -1.0
        if not 0 < number < float("inf"):
            raise _violation(f"Setting {name} shouldn't be greater than {most}: it is {value[:60]}")
        return str(most) if number > most else None

    def within(self, statement: Set) -> str | None:
        """A SET of limits above the server's as one of the server's own; None where it stands as it is."""
        changed = dict(statement.assignments)
        for name, value in statement.assignments:
            if name in allowed.CAPPED and (most := self._capped(name, value)) is not None:
                changed[name] = most
        if changed == dict(statement.assignments):
            return None
        return "SET " + ", ".join(f"{name} = {value}" for name, value in changed.items())

    def given(self, beside: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """Settings given beside a statement, ClickHouse's and clipql's own; those that mean nothing here are left out.

        Raises QueryError for one that may not be given.
        """
        theirs: dict[str, str] = {}
        ours: dict[str, str] = {}
        for name, value in beside.items():
            if name in allowed.IGNORED:
                continue
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or any(ord(c) < 32 for c in value):
                raise QueryError(f"Unknown setting {name[:60]!r}", code=115, name="UNKNOWN_SETTING")
            if name in own_settings.OURS:
                self.check(name, value)
                ours[name] = own_settings.checked(name, value)
                continue
            if name in allowed.CAPPED and (most := self._capped(name, value)) is not None:
                value = most
            self.check(name, value)
            theirs[name] = value
        return theirs, ours

    def capped(self, beside: Mapping[str, str]) -> dict[str, str]:
        """Of limits that were given beside a statement above the server's own, those that hold instead."""
        asked = {name: value for name, value in beside.items() if name in allowed.CAPPED}
        return {name: most for name, value in asked.items() if (most := self._capped(name, value)) is not None}


def _violation(message: str) -> QueryError:
    return QueryError(message, code=452, name="SETTING_CONSTRAINT_VIOLATION")


def _is_value(tokens: Sequence[Token]) -> bool:
    """Whether tokens are one literal."""
    if len(tokens) == 2 and tokens[0].upper in ("-", "+"):
        tokens = tokens[1:]
    if len(tokens) != 1:
        return False
    return tokens[0].kind in ("number", "string", "vector") or tokens[0].upper in ("TRUE", "FALSE", "DEFAULT")
