"""encode_text('…') and encode_image('…') in a statement: constants become query vectors, columns go in batches.

A constant call is replaced by a parameter with its vector, which the planner then knows. A call over rows is left to
ClickHouse, which asks for one row at a time; so the values that it will ask for are read first and encoded in batches.
What must stay true: a batch only ever saves time; a value that it lacks is encoded when it is asked for.
"""

from __future__ import annotations

import base64
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipql.encode.service import IMAGE, TEXT, Batch, Encoders, call_sql
from clipql.engine.embedded import Engine
from clipql.engine.quoting import quote_name
from clipql.errors import QueryCancelled, QueryError
from clipql.sql.recognition.calls import FindTable, find_sources
from clipql.sql.recognition.clauses import conjuncts
from clipql.sql.recognition.constants import with_clause
from clipql.storage.catalog import Table
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import Token, matching, split_list, string_value
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope

# so few that their encoding takes about a second at most, as a query is cancelled between batches
BATCH = 256
# functions of their arguments alone, so that text made with them is a constant; of any other that is not certain
_FUNCTIONS = {
    "base64decode", "char", "coalesce", "concat", "concatwithseparator", "format", "if", "ifnull", "left", "lower",
    "lowerutf8", "repeat", "replace", "replaceall", "replaceone", "reverse", "right", "substring", "substringutf8",
    "tostring", "trim", "trimboth", "trimleft", "trimright", "unhex", "upper", "upperutf8",
}  # fmt: skip
_TEXT = re.compile(r"(LowCardinality\()?(Nullable\()?(String|FixedString|Nothing)")
# clauses with which the rows of a SELECT are not the rows that its expressions see
_GROUPING = {"GROUP", "HAVING", "WINDOW", "QUALIFY", "LIMIT 2", "FETCH"}
# how a parameter that holds an encoded constant is called
PARAMETER = "clipql_encoded_"


@dataclass(frozen=True)
class Encoded:
    """A statement without calls that the planner does not know.

    models: the model of each parameter that holds the vector of a constant. sources: the function, the String parameter
    that was its argument (None: a literal) and the model; None where the argument was something else. calls: what each
    parameter stands for. batches: held as long as the statement may run, so that its rows find their vectors.
    """

    sql: str
    params: Mapping[str, Any]
    models: Mapping[str, str] = field(default_factory=dict)
    batches: tuple[Batch, ...] = ()
    sources: Mapping[str, tuple[str, str | None, str] | None] = field(default_factory=dict)
    calls: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Call:
    """A call in the tokens of a statement: [first, last) with its name and brackets, its arguments as token runs."""

    function: str
    first: int
    last: int
    value: tuple[int, int]
    model: tuple[int, int] | None

    def alone(self, literal: bytes | None) -> TypeGuard[bytes]:
        """Whether it is of a literal text, by the model of its statement."""
        return literal is not None and self.function == TEXT and self.model is None


class Encoding:
    """Replaces the calls in statements over the tables that `find` knows."""

    def __init__(
        self, engine: Engine, encoders: Encoders, find: FindTable, tables: Callable[[], Sequence[Table]]
    ) -> None:
        self._engine, self._encoders, self._find, self._tables = engine, encoders, find, tables

    def replace(self, sql: str, params: Mapping[str, Any], *, rows: bool = True) -> Encoded:
        """The statement with each call replaced. rows: whether rows shall be encoded in batches beforehand.

        Raises ModelError, PictureError, or QueryError for a call with other than one or two arguments.
        """
        if TEXT not in sql and IMAGE not in sql:
            return Encoded(sql, params)
        work = _Replacement(self._engine, self._encoders, dict(params), rows)
        model = self.model_of(sql)
        while (found := _last_call(tokens := read(sql).tokens)) is not None:  # inner SELECTs stand behind outer ones
            self._engine.check_cancelled()
            sql = edited(sql, work.edits(sql, tokens, found, model))
        return Encoded(sql, work.params, work.models, tuple(work.batches), work.sources, work.calls)

    def written_out(self, text: str, params: Mapping[str, Any]) -> str:
        """Text with VALUES, its constant calls replaced by the numbers, since ClickHouse takes no functions there."""
        if TEXT not in text and IMAGE not in text:
            return text
        work = _Replacement(self._engine, self._encoders, dict(params), False)
        model, tokens = self.model_of(text), read(text).tokens
        calls = list(_calls(tokens))
        literals = [_literal(_text(text, tokens, c.value), params) for c in calls]
        together = [v.decode("utf-8", "replace") for c, v in zip(calls, literals, strict=True) if c.alone(v)]
        for at in range(0, len(together), BATCH):  # they are remembered, or at worst encoded again one by one
            self._encoders.texts(together[at : at + BATCH], model)
        edits: list[Edit] = []
        for call in reversed(calls):
            vector = work.constant(text, tokens, call, model)
            if vector is None:
                argument = _text(text, tokens, call.value)
                raise QueryError(f"{call.function}({argument}): expected a constant among VALUES")
            numbers = "[" + ",".join(map(repr, vector.tolist())) + "]"
            edits.append((tokens[call.first].start, tokens[call.last - 1].end, numbers))
        return edited(text, edits)

    def model_of(self, sql: str) -> str | None:
        """The model of calls that name none: the default, else the one that filled the columns a statement reads."""
        tables = [s.table for scope in read(sql).selects for s in find_sources(scope, self._find)[0]]
        return self._encoders.usual(tables) or self._encoders.usual(self._tables())


class _Replacement:
    """One statement's replacements, and what they leave behind: parameters, their models, batches."""

    def __init__(self, engine: Engine, encoders: Encoders, params: dict[str, Any], rows: bool) -> None:
        self._engine, self._encoders, self._rows = engine, encoders, rows
        self.params, self.models, self.batches = params, dict[str, str](), list[Batch]()
        self.sources: dict[str, tuple[str, str | None, str] | None] = {}
        self.calls: dict[str, str] = {}
        self._known: dict[tuple[str, str, str], str] = {}

    def edits(self, sql: str, tokens: Sequence[Token], call: _Call, model: str | None) -> list[Edit]:
        """The edits that replace one call, and name the column that it would have named."""
        scope = next((s for s in reversed(read(sql).selects) if s.whole.first <= call.first < s.whole.last), None)
        start, end = tokens[call.first].start, tokens[call.last - 1].end
        edits = naming(sql, tokens, scope, call.first, call.last)
        vector = self.constant(sql, tokens, call, model, scope)
        if vector is not None:
            name = self._parameter(sql, tokens, call, vector, model)
            self.calls[name] = sql[start:end]
            self._note(name, call.function, _text(sql, tokens, call.value))
            return [(start, end, f"{{{name}:Array(Float32)}}"), *edits]
        name = self._encoders.encoder(self._model(sql, tokens, call) or model).model
        argument = _text(sql, tokens, call.value)
        if scope and self._rows:
            self._fill(scope, call, argument, name)
        return [(start, end, call_sql(call.function, name, argument)), *edits]

    def constant(
        self, sql: str, tokens: Sequence[Token], call: _Call, model: str | None, scope: Scope | None = None
    ) -> NDArray[np.float32] | None:
        """The vector of a call whose argument names no column, or None."""
        aliases = {} if scope is None else _aliases(scope)
        if not _is_constant(tokens[slice(*call.value)], aliases):
            return None
        argument = _text(sql, tokens, call.value)
        value = _literal(argument, self.params)
        if value is None:
            value = self._evaluated(call.function, argument, aliases)
        if value is None:
            return np.empty(0, np.float32)
        named = self._model(sql, tokens, call) or model
        if call.function == TEXT:
            (vector,) = self._encoders.texts([value.decode("utf-8", "replace")], named)
            return np.asarray(vector, np.float32)
        return self._encoders.picture(self._encoders.as_picture(value), named)

    def _evaluated(self, function: str, argument: str, aliases: Mapping[str, str]) -> bytes | None:
        """The text that an expression without columns gives; None for NULL. Raises QueryError where it is no text."""
        prefix = with_clause(argument, (), aliases)
        row = self._engine.arrow(
            f"{prefix}SELECT toTypeName({argument}), isNull({argument}), "
            f"base64Encode(ifNull(CAST({argument} AS Nullable(String)), '')) SETTINGS limit = 0, offset = 0",
            params=self.params,
            user=True,
        ).to_pylist()[0]
        kind, null, value = row.values()
        if not _TEXT.match(kind):
            raise QueryError(f"{function}({argument}) got {kind}; expected text")
        return None if null else base64.b64decode(value)

    def _model(self, sql: str, tokens: Sequence[Token], call: _Call) -> str | None:
        if call.model is None:
            return None
        text = _text(sql, tokens, call.model)
        try:
            return str(self._engine.scalar(f"SELECT toString({text})", params=self.params, user=True))
        except QueryError as error:
            raise QueryError(f"{call.function}(…, {text}): expected the name of a model as text") from error

    def _parameter(
        self, sql: str, tokens: Sequence[Token], call: _Call, vector: NDArray[np.float32], model: str | None
    ) -> str:
        name = self._encoders.encoder(self._model(sql, tokens, call) or model).model
        key = (call.function, name, vector.tobytes().hex())
        if key not in self._known:
            self._known[key] = f"{PARAMETER}{len(self._known)}"
            self.params[self._known[key]] = vector
            self.models[self._known[key]] = name
        return self._known[key]

    def _note(self, name: str, function: str, argument: str) -> None:
        """Remember what the vector in a parameter was made of."""
        named = re.fullmatch(r"\{\s*(\w+)\s*:\s*String\s*\}", argument)
        known = named or _literal(argument, {}) is not None
        source = (function, named[1] if named else None, self.models[name]) if known else None
        self.sources[name] = source if self.sources.get(name, source) == source else None

    def _fill(self, scope: Scope, call: _Call, argument: str, model: str) -> None:
        """Encode what a SELECT will ask for, in batches, as far as that can be told."""
        source = _rows_of(scope, call)
        if source is None:
            return
        prefix = with_clause(argument, scope.withs, _aliases(scope))
        self._check_rows(call, argument, f"{prefix}SELECT ({argument}) AS clipql_value {source}")
        batch = self._encoders.batch()
        with _left_to_the_statement():
            stream = self._engine.stream(
                f"{prefix}SELECT CAST(assumeNotNull({argument}) AS String) AS clipql_value {source}",
                params=self.params,
                user=True,
            )
            waiting: dict[bytes, None] = {}
            for block in stream:
                waiting |= dict.fromkeys(block.column(0).cast(pa.binary()).to_pylist())
                while len(waiting) >= BATCH:
                    self._engine.check_cancelled()
                    self._encoders.fill(batch, call.function, [waiting.popitem()[0] for _ in range(BATCH)], model)
            if waiting:
                self._encoders.fill(batch, call.function, list(waiting), model)
        self.batches.append(batch)

    def _check_rows(self, call: _Call, argument: str, values: str) -> None:
        """Raise QueryError where the values that a SELECT gives are no texts, before any is encoded."""
        try:
            kind = self._engine.arrow(f"DESCRIBE TABLE ({values})", params=self.params, user=True).column(1)[0].as_py()
        except QueryError:  # what is wrong, the statement itself will say
            return
        if not _TEXT.match(kind):
            raise QueryError(f"{call.function}({argument}) got {kind}; expected text")


@contextlib.contextmanager
def _left_to_the_statement() -> Iterator[None]:
    """What is wrong, the statement itself will say; unless it is that nobody waits for it any more."""
    try:
        yield
    except QueryCancelled:
        raise
    except QueryError:
        pass


def _rows_of(scope: Scope, call: _Call) -> str | None:
    """FROM and what limits the rows that a call in a SELECT is computed for; None where that cannot be told."""
    if "FROM" not in scope.clauses or any(t.upper == "SELECT" for t in scope.tokens[slice(*call.value)]):
        return None
    select = scope.clauses["SELECT"]
    whole = f"FROM {scope.body('FROM')}"
    conditions = [c for clause in ("PREWHERE", "WHERE") for c in _plain_conditions(scope, clause)]
    if conditions:
        whole += " WHERE " + " AND ".join(f"({c})" for c in conditions)
    in_select = select.first <= call.first < select.last and _count_calls(scope) == _count_calls(scope, "SELECT")
    modified = any(t.upper in ("DISTINCT", "OVER", "ARRAYJOIN", "TOP") for t in scope.within("SELECT"))
    if in_select and not modified and not _GROUPING & scope.clauses.keys():
        whole += "".join(
            f" {words} {scope.body(clause)}"
            for clause, words in (("ORDER", "ORDER BY"), ("LIMIT", "LIMIT"), ("OFFSET", "OFFSET"))
            if clause in scope.clauses
        )
    return whole


def _count_calls(scope: Scope, clause: str | None = None) -> int:
    tokens = scope.within(clause) if clause else scope.tokens[scope.whole.first : scope.whole.last]
    return sum(t.text in (TEXT, IMAGE) or t.text.startswith("_clipql_encode") for t in tokens)


def _plain_conditions(scope: Scope, clause: str) -> list[str]:
    """The conditions of a clause that encode nothing."""
    span = scope.clauses.get(clause)
    found = conjuncts(scope.tokens, span.first, span.last) if span else []
    return [
        scope.text[scope.tokens[a].start : scope.tokens[b - 1].end]
        for a, b in found
        if not any(t.text in (TEXT, IMAGE) or t.text.startswith("_clipql_encode") for t in scope.tokens[a:b])
    ]


def _last_call(tokens: Sequence[Token]) -> _Call | None:
    for at in reversed(range(len(tokens) - 1)):
        if tokens[at].text in (TEXT, IMAGE) and (found := _call_at(tokens, at)):
            return found
    return None


def _calls(tokens: Sequence[Token]) -> Iterator[_Call]:
    """All calls, from the front; none of them is within another."""
    at = 0
    while at < len(tokens) - 1:
        found = _call_at(tokens, at) if tokens[at].text in (TEXT, IMAGE) else None
        if found:
            yield found
        at = found.last if found else at + 1


def _call_at(tokens: Sequence[Token], at: int) -> _Call | None:
    token = tokens[at]
    if token.kind != "word" or tokens[at + 1].text != "(":
        return None
    close = matching(tokens, at + 1)
    arguments = split_list(tokens, at + 2, close)
    if tokens[close].text != ")" or not 1 <= len(arguments) <= 2:
        usage = f"{token.text}(value) or {token.text}(value, 'model')"
        raise QueryError(f"{token.text} got {len(arguments)} arguments; expected {usage}")
    return _Call(token.text, at, close + 1, arguments[0], arguments[1] if len(arguments) == 2 else None)


def _is_constant(tokens: Sequence[Token], aliases: Mapping[str, str], depth: int = 0) -> bool:
    """Whether an expression names no column: literals, parameters, functions of those, and names of such."""
    at = 0
    while at < len(tokens):
        token = tokens[at]
        if token.text == "{" and token.kind == "symbol":
            at = matching(list(tokens), at) + 1
            continue
        if token.kind in ("word", "quoted"):
            called = at + 1 < len(tokens) and tokens[at + 1].text == "(" and token.kind == "word"
            known = aliases.get(token.name or "") if not called else None
            if (
                token.upper == "SELECT"
                or (called and token.text.lower() not in _FUNCTIONS)
                or not (called or known is not None or token.upper == "NULL")
            ):
                return False
            if known is not None and (depth > 8 or not _is_constant(read(known).tokens, aliases, depth + 1)):
                return False
        at += 1
    return True


def _aliases(scope: Scope) -> dict[str, str]:
    return {n: _text(scope.text, scope.tokens, span) for n, span in scope.aliases.items()}


def naming(sql: str, tokens: Sequence[Token], scope: Scope | None, begin: int, end: int) -> list[Edit]:
    """The edit that gives an item of SELECT without a name the one it would have; begin, end: of a call in it."""
    span = scope.clauses.get("SELECT") if scope else None
    if scope is None or span is None or not span.first <= begin < span.last:
        return []
    for first, last in split_list(tokens, span.first, span.last):
        if not first <= begin < last:
            continue
        if tokens[first].upper in ("DISTINCT", "ALL") and first + 1 < last:
            first += 1
        if tokens[last - 1].name in _aliases(scope) and end < last:
            return []
        return [(tokens[last - 1].end, tokens[last - 1].end, f" AS {quote_name(_text(sql, tokens, (first, last)))}")]
    return []


def _text(sql: str, tokens: Sequence[Token], run: tuple[int, int]) -> str:
    return sql[tokens[run[0]].start : tokens[run[1] - 1].end]


def _literal(text: str, params: Mapping[str, Any]) -> bytes | None:
    """The value of a plain string literal or of a String parameter; None for anything else."""
    named = re.fullmatch(r"\{\s*(\w+)\s*:\s*String\s*\}", text)
    if named and isinstance(params.get(named[1]), str):
        return str(params[named[1]]).encode("utf-8", "replace")
    return string_value(text)
