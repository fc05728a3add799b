"""What kind of statement a text is, and which table it is about. Only the beginning of a statement is read.

What is not recognised is `Other`, and goes to ClickHouse as it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clipql.syntax.lexer import Token, matching, split_list


@dataclass(frozen=True)
class TableName:
    """A table as a statement names it, and the place of the name in the text. database None: the current one."""

    database: str | None
    name: str
    start: int
    end: int


@dataclass(frozen=True)
class Select:
    """SELECT, or WITH … SELECT."""


@dataclass(frozen=True)
class Explain:
    """EXPLAIN of a SELECT, or a statement that changes a table, without further options; `query` is that statement."""

    query: str


@dataclass(frozen=True)
class Set:
    """SET or USE."""

    assignments: tuple[tuple[str, str], ...] = ()
    database: str | None = None


@dataclass(frozen=True)
class Insert:
    """INSERT INTO a table.

    columns: the names in brackets, None where there are none. source: 'SELECT', 'VALUES', 'FORMAT', 'INFILE' or
    'PYTHON'. body: place in the text where the source begins (the SELECT, VALUES, FORMAT or FROM INFILE).
    """

    table: TableName
    columns: tuple[str, ...] | None
    source: str
    body: int
    settings: str


@dataclass(frozen=True)
class CreateTable:
    """CREATE TABLE; `select` is the place of the SELECT after AS, `like` the table after AS."""

    table: TableName
    if_not_exists: bool
    or_replace: bool
    select: int | None
    like: TableName | None
    rest: int
    empty: bool = False


@dataclass(frozen=True)
class OnTable:
    """A statement on one or more tables: 'ALTER', 'DROP', 'DROP IF EMPTY', 'TRUNCATE', 'DELETE', 'UPDATE',
    'OPTIMIZE', 'RENAME', 'EXCHANGE', 'SHOW CREATE', 'SHOW DATABASES', 'DESCRIBE', 'DETACH', 'ATTACH'."""

    verb: str
    tables: tuple[TableName, ...]
    rest: int


@dataclass(frozen=True)
class Other:
    """Anything else; `word` is its first keyword."""

    word: str


@dataclass(frozen=True)
class OnDatabase:
    """'DROP', 'DETACH' or 'RENAME' of a whole database."""

    verb: str
    database: str


Kind = Select | Explain | Set | Insert | CreateTable | OnTable | OnDatabase | Other


_EXPLAINED = ("SELECT", "WITH", "(", "ALTER", "INSERT", "CREATE", "DELETE", "UPDATE")


def kind_of(sql: str, tokens: Sequence[Token]) -> Kind:
    """The kind of one statement. tokens: without semicolons at its end."""
    if not tokens:
        return Other("")
    word = tokens[0].upper
    reader = _Reader(sql, tokens)
    if word in ("SELECT", "WITH", "FROM", "("):
        return Select()
    if word == "EXPLAIN" and len(tokens) > 1 and tokens[1].upper in _EXPLAINED:
        return Explain(sql[tokens[1].start :])
    found = {
        "SET": reader.set,
        "USE": reader.use,
        "INSERT": reader.insert,
        "CREATE": reader.create,
        "REPLACE": reader.create,
        "ALTER": reader.alter,
        "DROP": reader.drop,
        "TRUNCATE": reader.drop,
        "DETACH": reader.drop,
        "ATTACH": reader.drop,
        "DELETE": reader.delete,
        "UPDATE": reader.update,
        "OPTIMIZE": reader.drop,
        "RENAME": reader.rename,
        "EXCHANGE": reader.rename,
        "SHOW": reader.show,
        "DESCRIBE": reader.describe,
        "DESC": reader.describe,
    }.get(word)
    return (found() if found else None) or Other(word)


class _Reader:
    """Reads the beginning of a statement; every method gives None where it is not of the known shape."""

    def __init__(self, sql: str, tokens: Sequence[Token]) -> None:
        self.sql, self.tokens, self.at = sql, tokens, 1

    def word(self, *words: str) -> bool:
        """Step over these words if they are next."""
        found = [t.upper for t in self.tokens[self.at : self.at + len(words)]]
        if found != list(words):
            return False
        self.at += len(words)
        return True

    def name(self) -> TableName | None:
        tokens, at = self.tokens, self.at
        if at >= len(tokens) or not tokens[at].name:
            return None
        if at + 2 < len(tokens) and tokens[at + 1].text == "." and tokens[at + 2].name:
            self.at += 3
            return TableName(tokens[at].name, tokens[at + 2].name or "", tokens[at].start, tokens[at + 2].end)
        self.at += 1
        return TableName(None, tokens[at].name or "", tokens[at].start, tokens[at].end)

    def place(self) -> int:
        return self.tokens[self.at].start if self.at < len(self.tokens) else len(self.sql)

    def set(self) -> Kind | None:
        assignments: list[tuple[str, str]] = []
        for first, last in split_list(self.tokens, 1, len(self.tokens)):
            if last - first < 3 or self.tokens[first + 1].text != "=" or not self.tokens[first].name:
                return None
            text = self.sql[self.tokens[first + 2].start : self.tokens[last - 1].end]
            assignments.append((self.tokens[first].name or "", text))
        return Set(tuple(assignments)) if assignments else None

    def use(self) -> Kind | None:
        return Set(database=self.tokens[1].name) if len(self.tokens) == 2 else None

    def insert(self) -> Kind | None:
        self.word("INTO")
        self.word("TABLE")
        if self.tokens[min(self.at, len(self.tokens) - 1)].upper == "FUNCTION":
            return None
        table = self.name()
        if table is None:
            return None
        columns: tuple[str, ...] | None = None
        if self.at < len(self.tokens) and self.tokens[self.at].text == "(":
            close = matching(self.tokens, self.at)
            inside = self.tokens[self.at + 1 : close]
            if inside and inside[0].upper not in ("SELECT", "WITH"):
                if not all(t.name or t.text == "," for t in inside):
                    return None  # (* EXCEPT …) and the like
                columns = tuple(t.name for t in inside if t.name)
                self.at = close + 1
        begin = self.at
        settings = ""
        if self.word("SETTINGS"):
            while self.at < len(self.tokens) and self.tokens[self.at].upper not in (
                "VALUES",
                "FORMAT",
                "SELECT",
                "WITH",
            ):
                self.at += 1
            settings = self.sql[self.tokens[begin].start : self.tokens[self.at - 1].end]
        word = self.tokens[self.at].upper if self.at < len(self.tokens) else ""
        source = {"SELECT": "SELECT", "WITH": "SELECT", "(": "SELECT", "VALUES": "VALUES", "FORMAT": "FORMAT"}.get(word)
        if word == "FROM" and self.at + 1 < len(self.tokens) and self.tokens[self.at + 1].upper == "INFILE":
            source = "INFILE"
        return Insert(table, columns, source, self.place(), settings) if source else None

    def create(self) -> Kind | None:
        or_replace = self.word("OR", "REPLACE") or self.tokens[0].upper == "REPLACE"
        if not self.word("TABLE"):
            return None
        if_not_exists = self.word("IF", "NOT", "EXISTS")
        table = self.name()
        if table is None:
            return None
        rest = self.place()
        select, like = None, None
        at = self.at
        while at < len(self.tokens):
            token = self.tokens[at]
            if token.kind == "symbol" and token.text in "([{":
                at = matching(self.tokens, at) + 1
                continue
            if token.upper == "AS" and at + 1 < len(self.tokens):
                following = self.tokens[at + 1]
                inner = self.tokens[at + 2].upper if following.text == "(" and at + 2 < len(self.tokens) else ""
                if following.upper in ("SELECT", "WITH") or inner in ("SELECT", "WITH"):
                    select = following.start
                    break
                if following.name and not (at + 2 < len(self.tokens) and self.tokens[at + 2].text == "("):
                    self.at = at + 1
                    like = self.name()
                    break
            at += 1
        empty = select is not None and self.tokens[at - 1].upper == "EMPTY"
        return CreateTable(table, if_not_exists, or_replace, select, like, rest, empty)

    def alter(self) -> Kind | None:
        if not self.word("TABLE"):
            return None
        name = self.name()
        return OnTable("ALTER", (name,), self.place()) if name else None

    def drop(self) -> Kind | None:
        verb = self.tokens[0].upper
        if self.word("TEMPORARY"):
            return None
        if self.word("DATABASE"):
            self.word("IF", "EXISTS")
            database = self.name()
            return OnDatabase(verb, database.name) if database else None
        if not self.word("TABLE") and verb != "TRUNCATE":
            return None
        self.word("IF", "EXISTS")
        if verb == "DROP" and self.word("IF", "EMPTY"):
            verb = "DROP IF EMPTY"
        names: list[TableName] = []
        while name := self.name():
            names.append(name)
            if not self.word(","):
                break
        return OnTable(verb, tuple(names), self.place()) if names else None

    def delete(self) -> Kind | None:
        if not self.word("FROM"):
            return None
        name = self.name()
        return OnTable("DELETE", (name,), self.place()) if name else None

    def update(self) -> Kind | None:
        name = self.name()
        return OnTable("UPDATE", (name,), self.place()) if name else None

    def rename(self) -> Kind | None:
        verb = self.tokens[0].upper
        if self.word("DATABASE"):
            database = self.name()
            return OnDatabase(verb, database.name) if database else None
        if not self.word("TABLE") and not self.word("TABLES"):
            return None
        self.word("IF", "EXISTS")
        names: list[TableName] = []
        while name := self.name():
            if not (self.word("TO") or self.word("AND")):
                return None
            other = self.name()
            if other is None:
                return None
            names += [name, other]
            if not self.word(","):
                break
        return OnTable(verb, tuple(names), self.place()) if names and self.at == len(self.tokens) else None

    def show(self) -> Kind | None:
        if self.word("CREATE"):
            self.word("TABLE")
            name = self.name()
            return OnTable("SHOW CREATE", (name,), self.place()) if name else None
        if self.word("DATABASES"):
            return OnTable("SHOW DATABASES", (), self.place()) if self.at == len(self.tokens) else None
        return None

    def describe(self) -> Kind | None:
        self.word("TABLE")
        name = self.name()
        ends = self.at == len(self.tokens) or self.tokens[self.at].upper in ("FORMAT", "SETTINGS")
        return OnTable("DESCRIBE", (name,), self.place()) if name and ends else None
