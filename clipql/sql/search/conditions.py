"""Plain conditions evaluated here, on the columns beside the row file, without asking ClickHouse.

Plain is what compares one stored column with constants: `width > 500 AND NSFW IN ('UNLIKELY', 'UNSURE') AND NOT n IS
NULL`. Anything else is not plain, and ClickHouse finds the rows. What must stay true: the mask is the one ClickHouse
would give, so numbers compare as numbers whatever their types, strings as bytes, and NULL is neither true nor false.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.engine.quoting import EscapedText
from clipql.index.cores import each_core
from clipql.syntax.lexer import Token
from clipql.syntax.reading import read
from clipql.tables.columnfile import StoredColumn

Mask = NDArray[np.bool_]
Value = int | float | bytes
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "=": operator.eq, "==": operator.eq, "!=": operator.ne, "<>": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_MIRRORED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_EXACT = 2**53  # whole numbers up to here are float64


class NotPlain(Exception):
    """The condition is one for ClickHouse."""


@dataclass(frozen=True)
class _Truth:
    """Where a condition is true and where it is false; the rest is NULL. false None: wherever it is not true."""

    true: Mask
    false: Mask | None = None

    def not_(self) -> _Truth:
        return _Truth(~self.true if self.false is None else self.false, None if self.false is None else self.true)

    def and_(self, other: _Truth) -> _Truth:
        known = self.false is None and other.false is None
        return _Truth(self.true & other.true, None if known else self._false() | other._false())

    def or_(self, other: _Truth) -> _Truth:
        known = self.false is None and other.false is None
        return _Truth(self.true | other.true, None if known else self._false() & other._false())

    def _false(self) -> Mask:
        return ~self.true if self.false is None else self.false


Part = slice | NDArray[np.int64]
Node = Callable[[Part], _Truth]  # of these rows
FEW = 256  # so many times fewer rows than a block has are looked up one by one, which takes 70 ns each
BLOCK = 65_536  # rows evaluated at once: what they need fits the second-level cache


def plain_mask(
    condition: str, column: Callable[[str], StoredColumn | None], rows: int, params: Mapping[str, Any]
) -> Mask | None:
    """Which rows satisfy a condition, bool (rows,), its own to change; None where it is not plain.

    column: a stored column by name, with at least `rows` values; None where there is none.
    """
    try:
        node = _Parser(read(condition).tokens, column, params).whole()
    except NotPlain:
        return None
    mask = np.empty(rows, np.bool_)

    def some(first: int, last: int) -> None:
        for a in range(first, last, BLOCK):
            part = slice(a, min(a + BLOCK, last))
            mask[part] = node(part).true

    if rows > 4 * BLOCK:
        each_core(rows, some)  # it waits for memory, which several cores read faster
    else:
        some(0, rows)
    return mask


class _Parser:
    """Reads a condition by ClickHouse's precedence: OR, AND, NOT, comparison."""

    def __init__(
        self, tokens: Sequence[Token], column: Callable[[str], StoredColumn | None], params: Mapping[str, Any]
    ) -> None:
        self._tokens, self._column, self._params = tokens, column, params
        self._at = 0

    def whole(self) -> Node:
        """All of it; nothing is computed before all of it is found to be plain."""
        node = self._or()
        if self._at < len(self._tokens):
            raise NotPlain
        return node

    def _next(self) -> str:
        return self._tokens[self._at].upper if self._at < len(self._tokens) else ""

    def _takes(self, *words: str) -> bool:
        for i, word in enumerate(words):
            if self._at + i >= len(self._tokens) or self._tokens[self._at + i].upper != word:
                return False
        self._at += len(words)
        return True

    def _must(self, word: str) -> None:
        if not self._takes(word):
            raise NotPlain

    def _or(self) -> Node:
        node = self._and()
        while self._takes("OR"):
            node = _either(node, self._and())
        return node

    def _and(self) -> Node:
        node = self._not()
        while self._takes("AND"):
            node = _both(node, self._not())
        return node

    def _not(self) -> Node:
        if self._takes("NOT"):
            node = self._not()
            return lambda part: node(part).not_()
        if self._takes("("):
            node = self._or()
            self._must(")")
            return node
        return self._comparison()

    def _comparison(self) -> Node:
        left = self._operand()
        if isinstance(left, StoredColumn):
            if self._takes("IS", "NULL"):
                return lambda part: _is_null(left, part)
            if self._takes("IS", "NOT", "NULL"):
                return lambda part: _is_null(left, part).not_()
            if self._takes("BETWEEN"):
                low = self._constant()
                self._must("AND")
                high = self._constant()
                return _both(self._compare(left, ">=", low), self._compare(left, "<=", high))
            if self._takes("IN"):
                return self._in(left)
            if self._takes("NOT", "IN"):
                found = self._in(left)
                return lambda part: found(part).not_()
        sign = self._next()
        if sign not in _OPERATORS:
            raise NotPlain
        self._at += 1
        right = self._operand()
        if isinstance(left, StoredColumn) and not isinstance(right, StoredColumn):
            return self._compare(left, sign, right)
        if isinstance(right, StoredColumn) and not isinstance(left, StoredColumn):
            return self._compare(right, _MIRRORED.get(sign, sign), left)
        if isinstance(left, StoredColumn) or isinstance(right, StoredColumn):
            raise NotPlain
        return self._constants(left, sign, right)

    def _in(self, column: StoredColumn) -> Node:
        """One of some constants. Floats are left to ClickHouse, which rounds the constants to the column's type."""
        self._must("(")
        values = [self._constant()]
        while self._takes(","):
            values.append(self._constant())
        self._must(")")
        if column.nulls is not None or column.values.dtype.kind == "f" or any(isinstance(v, float) for v in values):
            raise NotPlain
        nodes = [self._compare(column, "=", v) for v in values]
        if len(nodes) > 16 and column.words is None:
            bounds = np.iinfo(column.values.dtype)
            held = np.array([v for v in values if bounds.min <= int(v) <= bounds.max], column.values.dtype)
            return lambda part: _Truth(np.isin(column.values[part], held))
        node = nodes[0]
        for other in nodes[1:]:
            node = _either(node, other)
        return node

    # operands

    def _constant(self) -> Value:
        found = self._operand()
        if isinstance(found, StoredColumn):
            raise NotPlain
        return found

    def _operand(self) -> StoredColumn | Value:
        if self._at >= len(self._tokens):
            raise NotPlain
        token = self._tokens[self._at]
        self._at += 1
        if token.upper == "-" and self._at < len(self._tokens) and self._tokens[self._at].kind == "number":
            self._at += 1
            return _number("-" + self._tokens[self._at - 1].text)
        if token.kind == "number":
            return _number(token.text)
        if token.kind == "string":
            return _string(token)
        if token.text == "{" and token.kind == "symbol":
            return self._parameter()
        name = token.name
        column = self._column(name) if name and self._next() not in ("(", ".") else None
        if column is None:
            raise NotPlain
        return column

    def _parameter(self) -> Value:
        tokens = self._tokens[self._at : self._at + 4]
        if len(tokens) < 4 or [t.text for t in tokens[1::2]] != [":", "}"] or tokens[0].text not in self._params:
            raise NotPlain
        self._at += 4
        return _typed(self._params[tokens[0].text], tokens[2].text)

    # evaluation

    def _constants(self, left: Value, sign: str, right: Value) -> Node:
        if isinstance(left, bytes) != isinstance(right, bytes):
            raise NotPlain
        return lambda part: _Truth(np.full(_size(part), _OPERATORS[sign](left, right)))

    def _compare(self, column: StoredColumn, sign: str, value: Value) -> Node:
        if (column.words is not None) != isinstance(value, bytes):
            raise NotPlain
        if isinstance(value, int) and column.values.dtype.kind == "f" and abs(value) > _EXACT:
            raise NotPlain
        return lambda part: _compared(column, sign, value, part)


def _is_null(column: StoredColumn, part: Part) -> _Truth:
    if column.nulls is None:
        return _Truth(np.zeros(_size(part), np.bool_))
    return _Truth(column.nulls[part] != 0)


def _compared(column: StoredColumn, sign: str, value: Any, part: Part) -> _Truth:
    values, compare = column.values[part], _OPERATORS[sign]
    if column.words is not None:
        true = _coded(values, [code for code, word in enumerate(column.words) if compare(word, value)])
    elif values.dtype.kind == "f":
        true = compare(values, np.float64(value))
    elif isinstance(value, float) and not value.is_integer():
        if sign in ("=", "==", "!=", "<>"):
            true = np.full(len(values), sign in ("!=", "<>"))
        else:  # between two whole numbers
            true = _whole(values, ">" if sign[0] == ">" else "<=", math.floor(value))
    else:
        true = _whole(values, sign, int(value))
    if column.nulls is None:
        return _Truth(true)
    there = column.nulls[part] == 0
    return _Truth(true & there, ~true & there)


def _coded(values: NDArray[Any], codes: list[int]) -> Mask:
    """Where a value is one of these codes: one comparison of all for each is faster than a look-up for each value."""
    if len(codes) > 8:
        wanted = np.zeros(256, np.bool_)
        wanted[codes] = True
        return np.asarray(wanted[values])
    true = np.zeros(len(values), np.bool_)
    for code in codes:
        true |= values == np.uint8(code)
    return true


def _whole(values: NDArray[Any], sign: str, value: int) -> Mask:
    """Integers against an integer that their type may not hold."""
    bounds = np.iinfo(values.dtype)
    if bounds.min <= value <= bounds.max:
        return np.asarray(_OPERATORS[sign](values, values.dtype.type(value)))
    below = value < bounds.min
    return np.full(len(values), sign in ("!=", "<>") or ((sign[0] == ">") == below and sign not in ("=", "==")))


def _both(a: Node, b: Node) -> Node:
    """AND: where the first leaves few rows, the second is evaluated for those alone."""

    def both(part: Part) -> _Truth:
        left = a(part)
        left_in = left.true if left.false is None else ~left.false
        if np.count_nonzero(left_in) * FEW > len(left_in):
            return left.and_(b(part))
        at = np.flatnonzero(left_in)
        right = b(at + part.start if isinstance(part, slice) else part[at])
        found = _Truth(left.true[at], None if left.false is None else left.false[at]).and_(right)
        true = np.zeros(len(left_in), np.bool_)
        true[at] = found.true
        if found.false is None:
            return _Truth(true)
        false = np.ones(len(left_in), np.bool_)
        false[at] = found.false
        return _Truth(true, false)

    return both


def _size(part: Part) -> int:
    return part.stop - part.start if isinstance(part, slice) else len(part)


def _either(a: Node, b: Node) -> Node:
    return lambda part: a(part).or_(b(part))


def _number(text: str) -> int | float:
    """A literal as ClickHouse types it: a whole number of at most 64 bits, or a Float64."""
    if re.fullmatch(r"-?\d+", text):
        value = int(text)
        if -(2**63) <= value < 2**64:
            return value
        raise NotPlain
    if not re.fullmatch(r"-?\d+\.?\d*([eE][-+]?\d+)?", text) or not math.isfinite(float(text)):
        raise NotPlain
    return float(text)


def _string(token: Token) -> bytes:
    value = token.value
    if value is None:
        raise NotPlain
    return value


def _typed(value: Any, kind: str) -> Value:
    """A parameter's value, where it is of a plain type and fits it."""
    if kind == "String" and isinstance(value, str) and not isinstance(value, EscapedText):
        return value.encode()
    integer = re.fullmatch(r"(U?)Int(8|16|32|64)", kind)
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value):
        value = _number(value)
    if isinstance(value, np.generic):
        value = value.item()
    if integer and isinstance(value, int) and not isinstance(value, bool):
        bits = int(integer[2])
        low, high = (0, 2**bits) if integer[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        if low <= value < high:
            return value
    if kind in ("Float32", "Float64") and isinstance(value, int | float) and not isinstance(value, bool):
        exact = abs(value) <= _EXACT and float(np.float32(value)) == value if kind == "Float32" else True
        if math.isfinite(value) and abs(value) <= 1e300 and exact:
            return float(value)
    raise NotPlain
