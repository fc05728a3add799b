"""What SQL from the network may do, by allow-list: chDB is no sandbox, and reads files and addresses by their names.

In depth, each layer enough on its own for what it sees:
1. characters: no controls, and nothing but ASCII outside strings and quoted names, so that our lexer and ClickHouse's
   see the same tokens; comments are taken out, so that nothing hides in them;
2. the kind of statement; then ClickHouse writes it out (`canonical.py`), with every name decoded;
3. the tokens of that (`token_rules.py`): settings, formats, names with a slash, calls of functions that ClickHouse
   knows and the network may not call, clauses that the tree does not show;
4. ClickHouse's own syntax tree of it (EXPLAIN AST, which runs nothing): every function, table function, table and
   engine.

What must stay true: what runs is the text that was checked last, and what is not understood is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from clipql.encode.names import DEFAULT_MODEL
from clipql.encode.service import IMAGE, TEXT, Encoders
from clipql.engine import formatting
from clipql.engine.users import Acting, EngineUser
from clipql.errors import QueryError
from clipql.serve import allowed, error_position, structures, syntax_tree, visible
from clipql.serve.allowed import words
from clipql.serve.allowed_settings import Settings
from clipql.serve.canonical import Canonical, held_out, whole
from clipql.serve.foreign import Foreign
from clipql.serve.limits import Options
from clipql.serve.models_at_hand import models
from clipql.serve.spelling import check_bytes, check_name, check_size, check_table_name, cleaned, denied
from clipql.serve.token_rules import TokenRules, check_create, check_table, killed
from clipql.sql.recognition import settings as own_settings
from clipql.sql.recognition.words import BM25
from clipql.syntax import statements
from clipql.syntax.lexer import Token
from clipql.syntax.reading import read
from clipql.syntax.recent import Recent
from clipql.syntax.skeleton import skeleton
from clipql.syntax.statements import Insert, Set
from clipql.tables.registry import INTERNAL, Registry

REMEMBERED, LONGEST = 1_000, 1 << 16
# of these, some of the text runs as it was sent; of all others only what ClickHouse writes
_AS_SENT = words("INSERT SET USE KILL")
_READS = words("SELECT WITH FROM ( EXPLAIN SHOW DESCRIBE DESC EXISTS SET USE KILL")
_WRITES = words("INSERT DELETE UPDATE ALTER CREATE REPLACE DROP TRUNCATE RENAME EXCHANGE OPTIMIZE")
_SHOWN = words("TABLES DATABASES COLUMNS FULL CREATE INDEX INDEXES INDICES KEYS FUNCTIONS SETTINGS FIELDS")
_CREATED = words("TABLE VIEW INDEX DATABASE TEMPORARY OR")
# what the first word of a statement is followed by, where that tells kinds of things apart
_FOLLOWED = {
    "SHOW": _SHOWN,
    "ALTER": words("TABLE"),
    "RENAME": words("TABLE TABLES DATABASE"),
    "EXCHANGE": words("TABLES"),
    "OPTIMIZE": words("TABLE"),
    "DELETE": words("FROM"),
    "TRUNCATE": words("TABLE DATABASE TEMPORARY IF"),
    "DROP": words("TABLE VIEW INDEX DATABASE TEMPORARY"),
}
# what may begin a SELECT, and an INSERT too; what its syntax tree begins with; what of EXPLAIN only looks at the syntax
_SELECTING = words("SELECT WITH FROM (")
_SELECTS = words("SelectWithUnionQuery SelectIntersectExceptQuery SelectQuery")
_LOOK = "EXPLAIN AST "
_PARSING = ("EXPLAIN AST", "EXPLAIN SYNTAX")
_CLICKHOUSES = words("system information_schema")
# functions that take a table, and beginnings of those that take a function, by its name alone
_MEMBERSHIP = words("in notin globalin globalnotin nullin notnullin globalnullin globalnotnullin")
_CALLERS = ("array", "map", "group")


@dataclass(frozen=True)
class Checked:
    """A statement that may run. sql: its text without comments. sets: SET or USE. writes: changes data.
    slow: calls what gets small blocks. kills: the query's id that KILL QUERY names; tests:
    which is not stopped. capped: a SET of limits above the
    server's, which hold instead."""

    sql: str
    word: str
    sets: bool = False
    writes: bool = False
    temporary: bool = False
    slow: bool = False
    kills: str | None = None
    tests: bool = False
    capped: bool = False


class Guard:
    """Checks statements and settings. Thread-safe."""

    def __init__(self, registry: Registry, encoders: Encoders, options: Options) -> None:
        self._registry, self._engine, self._encoders = registry, registry.engine, encoders
        self._limits = options.limits
        self._known: Recent[tuple[tuple[str, int], bool], tuple[Checked, Canonical]] = Recent(REMEMBERED)
        names = self._engine.arrow(
            "SELECT lower(name) AS name, origin != 'System' AS made FROM system.functions "
            "UNION ALL SELECT lower(name), false FROM system.table_functions"
        ).to_pylist()
        # a function that was made in this database may bear a name that looks allowed
        refused = {n["name"] for n in names if n["made"] or not allowed.function(n["name"])} - {TEXT, IMAGE, BM25}
        self._tokens = TokenRules(refused - allowed.TABLE_FUNCTIONS - {TEXT, IMAGE, BM25})
        self._refused_values = refused | {TEXT, IMAGE}
        self._settings = Settings(self._engine, options.limits)
        # a few lines are not worth threads of their own, which take longer than the lines
        self._reader = EngineUser(["SET output_format_parallel_formatting = 0"])

    def leave_out(self, found: Iterable[Foreign]) -> None:
        """Refuse every statement that names one of these from now on, and list them no more."""
        self._tokens.left_out = {each.name.lower(): each for each in found}
        self._known.clear()  # what was looked at before may name one

    def limits_sql(self) -> str:
        """The statement that puts the limits on a connection."""
        limits = self._limits
        return (
            f"SET max_execution_time = {limits.seconds}, max_memory_usage = {limits.memory}, "
            f"max_result_rows = {limits.rows}, result_overflow_mode = 'throw', allow_introspection_functions = 0, "
            # expressions in the data of an INSERT would be evaluated without having been looked at
            "input_format_values_interpret_expressions = 0, input_format_values_deduce_templates_of_expressions = 0, "
            f"additional_table_filters = {visible.filters(self._tokens.left_out.values())}"
        )

    def remembered(self, sql: str, *, write: bool) -> Checked | None:
        """As `check`, of a statement that was passed before; None where it was not. Nothing is run for it."""
        shape = skeleton(sql)
        known = self._known.find((shape.key, write))
        if known is None:
            return None
        check_bytes(sql, self._limits)
        return replace(known[0], sql=known[1].filled(shape.literals))

    def check(self, sql: str, *, write: bool) -> Checked:
        """What a statement is, and its text to run. Raises QueryError (ACCESS_DENIED, READONLY, a syntax error)."""
        shape = skeleton(sql)
        key = (shape.key, write)
        known = self._known.find(key)
        if known is not None:
            check_bytes(sql, self._limits)
            return replace(known[0], sql=known[1].filled(shape.literals))
        check_size(sql, self._limits)
        held = held_out(sql, shape) if shape.literals else None
        if held is not None:
            with contextlib.suppress(QueryError):  # said below, with the places of the statement as it was sent
                found, text = self._check(held, write)
                if text is not None and whole(text, shape.literals):
                    if len(shape.text) <= LONGEST:
                        self._known.keep(key, (found, text))
                    return replace(found, sql=text.filled(shape.literals))
        found, text = self._check(sql, write)
        if text is None:
            return found
        if not shape.literals and len(sql) <= LONGEST:
            self._known.keep(key, (found, text))
        return replace(found, sql=text.text)

    def _check(self, sql: str, write: bool) -> tuple[Checked, Canonical | None]:
        """What a statement is, and its text as ClickHouse writes it; None where the text of the first stands."""
        text = cleaned(sql)
        reading = read(text)
        statement, tokens = reading.kind, reading.words
        if not tokens:
            raise QueryError("Empty query", code=62, name="SYNTAX_ERROR")
        text = text[: tokens[-1].end] if not _has_data(statement) else text
        word = tokens[0].upper
        if word == "WITH" and write and any(t.upper == "INSERT" for t in tokens):
            whole = formatting.written(self._query, text)
            if read(whole).kind != statement and isinstance(read(whole).kind, Insert):
                return self._check(whole, write)  # ClickHouse writes WITH … INSERT as INSERT … WITH
        if word in _AS_SENT:
            self._tokens.check(tokens)
            self._settings.check_clauses(tokens)
        if word in _WRITES:
            if not write:
                raise QueryError("Cannot execute query in readonly mode", code=164, name="READONLY")
        elif word not in _READS:
            self._tree(text, tokens)  # what is no statement at all is a syntax error
            raise denied(f"{word or tokens[0].text[:30]} statements are not run for the network")
        writes = word in _WRITES
        if word == "KILL":
            id, tests = killed(tokens)
            return Checked(text, word, kills=id, tests=tests), None
        if word in ("SET", "USE"):
            limited = self._check_set(statement)
            return Checked(limited or text, word, sets=True, capped=limited is not None), None
        temporary = word == "CREATE" and any(t.upper in ("TEMPORARY", "TEMP") for t in tokens[:4])
        if word == "CREATE":
            check_create(tokens)
        if [t.upper for t in tokens[:2]] == ["SHOW", "CREATE"] and (
            len(tokens) > 3
            and tokens[2].upper not in ("TABLE", "VIEW", "DATABASE", "TEMPORARY")
            and tokens[3].text != "."
        ):
            raise denied(f"SHOW CREATE {tokens[2].text[:30]} is not run for the network")
        following = tokens[min(1, len(tokens) - 1)].upper
        if following not in _FOLLOWED.get(word, (following,)):
            raise denied(f"{word} {following[:30]} is not run for the network")
        if (word, following) == ("DROP", "DATABASE") and any(t.name == "default" for t in tokens[2:]):
            raise denied("the database default stays, as every session begins in it: drop its tables")
        head = text
        if word == "INSERT":
            if not isinstance(statement, Insert) or statement.source not in ("SELECT", "VALUES", "FORMAT"):
                raise denied("INSERT is run for the network as INSERT INTO table [(columns)] SELECT, VALUES or FORMAT")
            if statement.source != "SELECT":
                head = text[: statement.body] + " VALUES"
        written = Canonical(formatting.written(self._query, head))
        self._check_again(written.text, word)
        try:
            nodes = syntax_tree.read(self._tree(written.text, read(written.text).tokens))
        except ValueError as error:
            raise denied(f"ClickHouse's syntax tree of it is not understood: {error}") from error
        self._check_nodes(nodes, word)
        slow = any(node.kind == "Function" and allowed.slow(node.name) for node in nodes)
        found = Checked(text, word, writes=writes, temporary=temporary, slow=slow)
        if isinstance(statement, Insert) and statement.source != "SELECT":
            begun = written.text.removesuffix("FORMAT Values")
            return replace(found, sql=f"{begun}{text[statement.body :]}"), None
        return found, written

    def _check_again(self, text: str, word: str) -> None:
        """The checks of tokens, on the text as ClickHouse writes it, which is what runs."""
        tokens = read(text).tokens
        self._tokens.check(tokens)
        self._settings.check_clauses(tokens)
        if word == "CREATE":
            check_create(tokens)
        # ClickHouse takes what is no statement for the expression of a SELECT
        if any(t.kind == "error" for t in tokens) or (word not in _SELECTING and tokens[0].upper == "SELECT"):
            raise denied("ClickHouse writes this statement in a way that is not understood")

    def _check_set(self, statement: statements.Kind) -> str | None:
        """The statement to run instead, where it asks for more than the server's limits."""
        if not isinstance(statement, Set):
            raise denied("SET is run as SET name = value")
        if statement.database is not None:
            self.check_database(statement.database)
        self._settings.check_set(statement)
        return self._settings.within(statement)

    def capped(self, given: Mapping[str, str]) -> dict[str, str]:
        """Limits that hold instead of those given beside a statement, as `Settings.capped`."""
        return self._settings.capped(given)

    def settings(self, given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
        """Settings given beside a statement, as `Settings.given`."""
        return self._settings.given(given)

    def without_idle(self, given: Mapping[str, str], important: Collection[str]) -> dict[str, str]:
        """Settings that a client of the native protocol sends, as `Settings.without_idle`."""
        return self._settings.without_idle(given, important)

    def check_database(self, name: str) -> None:
        """Raise QueryError for a database that nobody from the network works in."""
        check_name(name)
        if name.lower() in ("system", INTERNAL):
            raise denied(f"the database {name} is not worked in: name its tables with it")
        each = self._tokens.left_out.get(name.lower())
        if each is not None and not each.table:
            raise denied(f"{each} is not for the network: {each.why}")

    def check_named(self, name: str) -> None:
        """Raise QueryError for a name of what is left out, as statements that have it are refused."""
        each = self._tokens.left_out.get(name.lower())
        if each is not None:
            raise denied(f"{each} is not for the network: {each.why}")

    # the syntax tree

    def _tree(self, head: str, tokens: Sequence[Token]) -> str:
        """The syntax tree of the statement; parameters stand for a constant of about their kind."""
        tokens = [t for t in tokens if t.end <= len(head)]
        for at in reversed(range(len(tokens) - 3)):
            if tokens[at].text == "{" and tokens[at + 1].kind == "word" and tokens[at + 2].text == ":":
                end = next((i for i in range(at + 3, len(tokens)) if tokens[i].text == "}"), None)
                if end is None:
                    continue
                neutral = "'1'" if tokens[at + 3].text in ("String", "FixedString") else "1"
                # as long as what it stands for, so that errors keep their place
                length = len(head[tokens[at].start : tokens[end].end].encode()) - 1
                head = f"{head[: tokens[at].start]} {neutral.ljust(length)}{head[tokens[end].end :]}"
        if "SETTINGS" in head.upper():
            head = own_settings.taken_from(head)[0]
        try:
            return self._query(f"{_LOOK}{head}", "TSVRaw").decode("utf-8", "replace")
        except QueryError as error:
            raise error_position.without_prefix(error, _LOOK) from error.__cause__

    def _query(self, sql: str, format: str) -> bytes:
        with self._engine.act(Acting(self._reader)):
            return self._engine.query(sql, format, user=True).data

    def _check_nodes(self, nodes: list[syntax_tree.Node], word: str) -> None:
        if word in _SELECTING and nodes[0].kind not in _SELECTS:
            raise denied(f"{word} before a statement that is no SELECT is not run for the network")
        for node in nodes:
            if node.kind == "Explain" and node.name not in _PARSING:
                for child in node.children:
                    if child.kind not in (*_SELECTS, "Explain", "Set", "Identifier"):  # options, the format
                        raise denied(f"{node.name} of what is no SELECT is not run for the network")
            if node.kind == "Function":
                self._check_function(node)
            elif node.kind == "TableIdentifier":
                check_table(node.name)
                if word in _WRITES and _under(node, nodes[0]) and node.name.lower().split(".")[0] in _CLICKHOUSES:
                    raise denied(f"{node.name[:60]} is ClickHouse's own")
            elif node.kind == "Identifier":
                self._check_identifier(node)
                if word in _WRITES and node.parent is nodes[0] and node.name.lower() in _CLICKHOUSES:
                    raise denied(f"{node.name} is ClickHouse's own")
            elif node.kind == "Subquery" and _is_defined(node):
                raise denied("a projection or a constraint with a SELECT is not made for the network")
            elif node.kind == "AlterCommand" and node.name not in allowed.ALTERATIONS:
                raise denied(f"ALTER … {node.name.replace('_', ' ')} is not run for the network")
            elif node.kind in ("ViewTargets", "Dictionary", "FunctionWithKeyValueArguments", "ParallelWithQuery"):
                raise denied(f"{node.kind} is not made for the network")

    def _check_function(self, node: syntax_tree.Node) -> None:
        name = node.name
        place = node.parent.kind if node.parent else ""
        if place == "TableExpression":
            if name.lower() not in allowed.TABLE_FUNCTIONS and not (name == "input" and _is_inserted(node)):
                raise denied(f"the table function {name[:60]} is not run for the network")
            if name.lower() in structures.TAKE:
                structures.check(node)
        elif place == "Storage":
            if name.lower() not in allowed.ENGINES and not allowed.function(name):
                raise denied(f"the engine {name[:60]} is not made for the network")
        elif place == "Index":
            if name.lower() not in allowed.INDEX_KINDS and not allowed.function(name):
                raise denied(f"the index type {name[:60]} is not made for the network")
        elif _in_codec(node):
            if name.lower() not in allowed.CODECS:
                raise denied(f"the codec {name[:60]} is not used for the network")
        elif name == "CODEC" and place == "ColumnDeclaration":
            return
        elif name in (TEXT, IMAGE):
            self._check_encoding(node)
        elif not allowed.function(name) and name != BM25:
            raise denied(f"{name[:60]}() is not called for the network")

    def _check_encoding(self, node: syntax_tree.Node) -> None:
        """A model may be named where it is one that this database or the cache knows: a name can be a folder here."""
        arguments = node.children[0].children if node.children else []
        if len(arguments) < 2:
            return
        known = {c.model for t in self._registry.catalog.tables for c in t.columns if c.model}
        known |= {m for m in (self._encoders.default, DEFAULT_MODEL) if m}
        given = arguments[1]
        named = given.name[1:-1] if len(arguments) == 2 and given.kind == "Literal" else None
        if named not in known and named not in {m["name"] for m in models(self._encoders)}:
            raise denied(f"{node.name}: the model must be one of {', '.join(sorted(known)) or 'none'}")

    def _check_identifier(self, node: syntax_tree.Node) -> None:
        name = node.name
        check_name(name)
        database, dot, _ = name.partition(".")
        if dot and database.lower() in ("system", INTERNAL):
            check_table(name, column=True)
        caller = node.parent.parent if node.parent and node.parent.kind == "ExpressionList" else None
        if caller is None or caller.kind != "Function":
            return
        if caller.name.lower() in _MEMBERSHIP:
            check_table_name(name)
        # arrayMap(f, …) calls f; a column of such a name can be written as table.f
        if caller.name.lower().startswith(_CALLERS) and name.lower() in self._refused_values:
            raise denied(f"{name[:60]}() is not called for the network")


def _under(node: syntax_tree.Node, root: syntax_tree.Node) -> bool:
    """Whether a table is one of those that a statement is about: DROP TABLE a, b lists them."""
    return node.parent is root or (node.parent is not None and node.parent.parent is root)


def _is_defined(node: syntax_tree.Node) -> bool:
    """Whether it is part of a projection or a constraint, which rows are held to later, whoever asks then."""
    around: syntax_tree.Node | None = node
    while around is not None and around.kind not in ("Projection", "Constraint"):
        around = around.parent
    return around is not None


def _is_inserted(node: syntax_tree.Node) -> bool:
    """Whether it is part of an INSERT."""
    around: syntax_tree.Node | None = node
    while around is not None and around.kind != "InsertQuery":
        around = around.parent
    return around is not None


def _in_codec(node: syntax_tree.Node) -> bool:
    """Whether it is one of the codecs in CODEC(…)."""
    around = node.parent.parent if node.parent is not None and node.parent.kind == "ExpressionList" else None
    return around is not None and (around.kind, around.name) == ("Function", "CODEC")


def _has_data(statement: statements.Kind) -> bool:
    return isinstance(statement, Insert) and statement.source in ("FORMAT", "VALUES")
