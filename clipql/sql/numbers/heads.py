"""The rule for heads: `vectorLinear(v, W, b)`, `vectorRelu(x)` and `L2Normalize(x)`, nested, over a vector column.

    SELECT id FROM laion WHERE vectorLinear(image_embedding, {W:Array(Array(Float32))}, {b:Array(Float32)})[1] > 5
    SELECT id FROM laion WHERE ifNull(_clipql_vector_number('head:… laion-1/column-0', laion._row), nan) > 5

They are computed in blocks of rows, by products of matrices. What must stay true: `vectorLinear` and `vectorRelu`,
which ClickHouse does not have, are written out in its functions wherever they cannot be planned so; a head is held for
as long as its statement runs; of a row without a vector they give [], and NaN for one number of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.brief import short
from clipql.engine.quoting import quote_name, quote_string
from clipql.errors import QueryError
from clipql.sql.numbers.row_comparisons import RowCall
from clipql.sql.numbers.rowwise import RowDistances
from clipql.sql.recognition.calls import Source, column_named, find_sources, has_outer_join
from clipql.sql.recognition.constants import with_clause
from clipql.storage.catalog import Table
from clipql.storage.vectors import devices
from clipql.storage.vectors.heads import Head, Layer, head
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import Token
from clipql.syntax.names import FunctionCall, calls_in, lambda_arguments
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope
from clipql.tables.computed import BLOCK, HELD, name_of
from clipql.tables.registry import ARRAYS, NUMBERS, ROW, Registry

LINEAR, RELU, SCALED = "vectorLinear", "vectorRelu", "L2Normalize"
NAMES = (LINEAR, RELU)
_USE = "expected vectorLinear(vector, weights as Array(Array(Float32)), bias as Array(Float32))"
_PARAMETER = re.compile(r"\{\s*(\w+)\s*:\s*Array\(.*\)\s*\}\Z", re.DOTALL)
MOST_NAMED = 200  # characters of what an item of SELECT is called


@dataclass(frozen=True, repr=False)
class WithHeads:
    """A statement without such calls, its parameters, what was planned, and the heads, which must be held."""

    sql: str
    params: Mapping[str, Any]
    plans: tuple[RowDistances, ...] = ()
    heads: tuple[Head, ...] = ()


@dataclass(frozen=True, eq=False)
class _Found:
    call: RowCall
    head: Head


def with_heads(
    sql: str,
    registry: Registry,
    params: Mapping[str, Any],
    changed: Table | None = None,
    places: Sequence[tuple[int, int]] | None = None,
    *,
    plan: bool = True,
    device: str = devices.CPU,
) -> WithHeads:
    """Have heads looked up, and write out what is left of them. changed: the table of an UPDATE or DELETE; places: the
    tokens of it that are evaluated for rows that are there, where not all are. device: for products, by the setting.

    Raises QueryError where numbers of arguments or sizes are wrong, DeviceError where the device is not there.
    """
    if not any(name in sql for name in (*NAMES, SCALED)):
        return WithHeads(sql, params)
    tokens = read(sql).tokens
    calls = [c for c in calls_in(tokens, 0, len(tokens)) if c.name in (*NAMES, SCALED)]
    edits: list[Edit] = []
    found: list[_Found] = []
    done = 0
    for call in calls if plan else ():
        within = places is None or any(first <= call.at < last for first, last in places)
        if call.at < done or not call.closed or not within:
            continue
        one = _planned(sql, tokens, call, registry, params, changed, device)
        if one and (call.name in NAMES or _is_item(sql, one.call)):
            found.append(one)
            done = one.call.last
            edits.append((one.call.start, one.call.end, _looked_up(one, registry, changed)))
            edits += _name(sql, one.call)
    text = written_out(edited(sql, _once(edits)))
    used = {t.name for t in read(text).tokens}
    kept = {k: v for k, v in params.items() if k in used or k not in {t.name for t in tokens}} if found else params
    plans = (RowDistances(tuple(f.call for f in found), why=_why(found)),) if found else ()
    return WithHeads(text, kept, plans, tuple(f.head for f in found))


def _why(found: Sequence[_Found]) -> str:
    on = dict.fromkeys(f.head.device.name for f in found if f.head.device)
    return "a head of a vector column" + (f", computed on {' and '.join(on)}" if on else "")


def written_out(sql: str) -> str:
    """The statement with what ClickHouse does not have in its functions. Raises QueryError for a wrong call."""
    while any(name in sql for name in NAMES):
        tokens = read(sql).tokens
        calls = [c for c in calls_in(tokens, 0, len(tokens)) if c.name in NAMES]
        if not calls:
            return sql
        call = calls[-1]  # inner ones first
        _check(call)
        said = [sql[tokens[a].start : tokens[b - 1].end] for a, b in call.arguments]
        if call.name == RELU:
            text = f"arrayMap(clipql_x -> greatest(clipql_x, 0), {said[0]})"
        else:
            # of no vector there is no number
            weights, bias = (f"if(empty({said[0]}), [], {text})" for text in said[1:])
            text = f"arrayMap((clipql_w, clipql_b) -> dotProduct({said[0]}, clipql_w) + clipql_b, {weights}, {bias})"
        text, end = f"CAST({text}, 'Array(Float32)')", call.close
        chosen = _index(tokens, call.close + 1)
        if chosen:
            text, end = _indexed(text, chosen), call.close + 1
        sql = edited(sql, [(tokens[call.at].start, tokens[end].end, text)])
    return sql


def _index(tokens: Sequence[Token], at: int) -> int | None:
    """The place of the number that is taken, from 1, as in `[1]`, or from the end, as in `[-1]`."""
    text = tokens[at].text.strip("[] ") if at < len(tokens) and tokens[at].kind == "vector" else ""
    return int(text) if re.fullmatch(r"-?[1-9]\d{0,8}", text) else None


def _indexed(text: str, place: int) -> str:
    return f"if(empty({text}), toFloat32(nan), {text}[{place}])"


def _check(call: FunctionCall) -> None:
    if not call.closed or len(call.arguments) != (3 if call.name == LINEAR else 1):
        use = _USE if call.name == LINEAR else f"expected {call.name}(vector)"
        raise QueryError(f"{call.name} has {len(call.arguments)} arguments; {use}")


def _planned(
    sql: str,
    tokens: Sequence[Token],
    call: FunctionCall,
    registry: Registry,
    params: Mapping[str, Any],
    changed: Table | None,
    device: str,
) -> _Found | None:
    around = [s for s in read(sql).selects if s.whole.first <= call.at < s.whole.last]
    scope = around[-1] if around else None
    if scope:
        sources, joined = find_sources(scope, registry.find)
        hidden = frozenset(scope.aliases) | scope.lambda_arguments | scope.inner_names
        if has_outer_join(scope) or len({s.qualifier for s in sources}) < len(sources):
            return None
    else:
        sources, joined = ([Source(changed, changed.name)] if changed else []), False
        hidden = lambda_arguments(tokens, 0, len(tokens))
    layers: list[Layer] = []
    named, inner = None, call
    while named is None:  # from the outer call to the column
        if inner.name != SCALED:
            _check(inner)
        elif len(inner.arguments) != 1:
            return None
        layers.insert(0, Layer(inner.name))
        if inner.name == LINEAR:
            weights, bias = (_numbers(sql, tokens, a, scope, registry, params) for a in inner.arguments[1:])
            if weights is None or bias is None:
                return None
            if weights.ndim != 2 or bias.ndim != 1 or not weights.size:
                raise QueryError(f"{LINEAR}: weights of shape {weights.shape} and a bias of {bias.shape}; {_USE}")
            layers[0] = Layer(LINEAR, weights, bias)
        first, last = inner.arguments[0]
        named = column_named(tokens, first, last, sources, joined, hidden)
        if named is None:
            following = next(calls_in(tokens, first, last), None)
            if following is None or (following.at, following.close) != (first, last - 1):
                return None
            if following.name not in (*NAMES, SCALED):
                return None
            inner = following
    source = next(s for s in sources if s.qualifier == named[1])
    column = source.table.column(named[0])
    if column is None or not column.dimension:
        return None
    _check_sizes(layers, column.dimension, column.name)
    end = call.close + 1
    chosen = _index(tokens, end)
    whole = head(layers, column.dimension)
    if whole.width * BLOCK > HELD:  # ClickHouse keeps to its limits of memory
        return None
    if chosen and chosen < 0:
        chosen += whole.width + 1
    element = chosen - 1 if chosen and 1 <= chosen <= whole.width else None
    if chosen and element is None and layers[-1].function != SCALED:  # there is no such number
        return None
    on = devices.chosen(device, float(source.table.rows) * whole.work) if whole.on_device(element) else None
    known = registry.computed.keep(head(layers, column.dimension, element, on))
    end += element is not None
    place = (call.at, end, tokens[call.at].start, tokens[end - 1].end)
    return _Found(RowCall(_said(layers, column.dimension), source, (column,), *place), known)


def _said(layers: Sequence[Layer], dimension: int) -> str:
    """What a head does, in words, as EXPLAIN has them."""
    steps = (la.function.removeprefix("vector") if la.weights is None else str(len(la.weights)) for la in layers)
    return " → ".join((str(dimension), *steps)) + " "


def _check_sizes(layers: Sequence[Layer], dimension: int, column: str) -> None:
    size, of = dimension, column
    for layer in layers:
        if layer.weights is None or layer.bias is None:
            continue
        if layer.weights.shape[1] != size:
            found = layer.weights.shape[1]
            raise QueryError(f"{LINEAR}: the weights are of {found} numbers, {of} holds {size}; {_USE}")
        if len(layer.bias) != len(layer.weights):
            raise QueryError(f"{LINEAR}: {len(layer.weights)} weights and {len(layer.bias)} numbers of bias; {_USE}")
        size, of = len(layer.weights), "the layer before"


def _numbers(
    sql: str,
    tokens: Sequence[Token],
    place: tuple[int, int],
    scope: Scope | None,
    registry: Registry,
    params: Mapping[str, Any],
) -> NDArray[np.float32] | None:
    """Weights (m, d) or a bias (m,); None where they are not known beforehand."""
    text = sql[tokens[place[0]].start : tokens[place[1] - 1].end]
    match = _PARAMETER.fullmatch(text)
    value: Any = params.get(match[1]) if match else None
    if value is None or isinstance(value, str):
        aliases = {n: scope.text_of(*span) for n, span in scope.aliases.items()} if scope else {}
        try:
            prefix = with_clause(text, scope.withs if scope else (), aliases)
            found = registry.engine.arrow(
                f"{prefix}SELECT ({text}) AS clipql_value SETTINGS limit = 0, offset = 0", params=params, user=True
            )
        except QueryError:
            return None
        if found.num_rows != 1:
            return None
        value = found.column(0)[0].as_py()
    try:
        numbers = np.asarray(value, np.float32)
    except (ValueError, TypeError):  # rows of several lengths
        raise QueryError(f"{LINEAR}: {short(text)} is no list of numbers, or lists of one length; {_USE}") from None
    return np.ascontiguousarray(numbers)


def _looked_up(found: _Found, registry: Registry, changed: Table | None) -> str:
    call = found.call
    row = ROW if changed is call.source.table else f"{quote_name(call.source.qualifier)}.{ROW}"
    name = quote_string(name_of(found.head.name, [registry.handle(call.source.table, call.columns[0])]))
    if found.head.element is not None or (found.head.items == 1 and not call.columns[0].absent):
        number = f"ifNull({NUMBERS['Float32']}({name}, {row}), toFloat32(nan))"
        return number if found.head.element is not None else f"[{number}]"
    return f"reinterpret(assumeNotNull({ARRAYS}({name}, {row})), 'Array(Float32)')"


def _name(sql: str, call: RowCall) -> list[Edit]:
    """The edit that gives an item of SELECT without an alias the name that it is written by."""
    for scope in read(sql).selects:
        for first, last in scope.items("SELECT") if scope.whole.first <= call.first < scope.whole.last else []:
            if first <= call.first < last and scope.tokens[last - 1].name not in scope.aliases:
                said = scope.text_of(first, last)
                said = said if len(said) <= MOST_NAMED else said[: MOST_NAMED - 1] + "…"
                return [(scope.tokens[last - 1].end, scope.tokens[last - 1].end, f" AS {quote_name(said)}")]
    return []


def _is_item(sql: str, call: RowCall) -> bool:
    """Whether a call is all of an item of SELECT, which nothing is compared with."""
    for scope in read(sql).selects:
        for first, last in scope.items("SELECT") if scope.whole.first <= call.first < scope.whole.last else []:
            if first == call.first and (last == call.last or scope.tokens[last - 1].name in scope.aliases):
                return True
    return False


def _once(edits: Sequence[Edit]) -> list[Edit]:
    return [*dict.fromkeys(edits)]
