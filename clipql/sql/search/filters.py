"""WHERE conditions as masks of rows, remembered as long as the rows stay what they are.

Asking ClickHouse which of a million rows satisfy a condition takes longer than the search itself, and people filter by
the same few conditions again and again. What must stay true: only a condition whose answer depends on nothing but the
stored columns of one table is remembered, and no change of that table is survived by what was remembered of it.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.engine.quoting import parameter_text
from clipql.storage.catalog import Table
from clipql.syntax.reading import read
from clipql.tables.registry import Registry

LARGEST = 256 << 20  # bytes of all that is remembered
_WORDS = {"AND", "OR", "NOT", "IN", "LIKE", "ILIKE", "BETWEEN", "IS", "NULL", "TRUE", "FALSE", "XOR", "DIV", "MOD"}
# functions of their arguments alone
_FUNCTIONS = {
    "abs", "ceil", "coalesce", "empty", "endswith", "equals", "floor", "greater", "has", "hasall", "hasany",
    "hastoken", "hastokencaseinsensitive", "ifnull", "isnotnull", "isnull", "least", "greatest", "length",
    "lengthutf8", "less", "like", "ilike", "notlike", "lower", "lowerutf8", "match", "max2", "min2", "modulo",
    "multisearchany", "multisearchanycaseinsensitive", "notempty", "position", "positioncaseinsensitive",
    "positionutf8", "round", "startswith", "substring", "todate", "todatetime", "tofloat32", "tofloat64", "toint8",
    "toint16", "toint32", "toint64", "tostring", "touint8", "touint16", "touint32", "touint64", "trim", "tuple",
    "array", "upper", "upperutf8", "domain", "domainwithoutwww", "path", "extract", "cityhash64",
}  # fmt: skip


@dataclass(frozen=True)
class _Remembered:
    """A mask and the number of rows in it. bits: instead of the mask, of `rows` rows, until it is asked for again.

    Most conditions come once, and a byte for each row of each would be new memory each time, which takes longer to get
    than the rows take to find.
    """

    mask: NDArray[np.bool_]
    bits: NDArray[np.uint8] | None
    count: int
    rows: int = 0

    @property
    def nbytes(self) -> int:
        return self.mask.nbytes if self.bits is None else self.bits.nbytes


class FilterMemory:
    """The masks of conditions asked for last. Thread-safe."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._masks: OrderedDict[Hashable, _Remembered] = OrderedDict()
        self._held = 0  # bytes of all masks
        self._lock = threading.Lock()

    def key(self, table: Table, condition: str, params: Mapping[str, Any], context: Hashable) -> Hashable | None:
        """What a condition is remembered by; None where it may not be. context: what else the answer depends on."""
        traits = self._registry.traits(table)
        if traits.expires:
            return None
        tokens = read(condition).tokens
        given: list[tuple[str, str]] = []
        at = 0
        while at < len(tokens):
            token = tokens[at]
            if token.text == "{" and token.kind == "symbol":
                name = tokens[at + 1].text
                given.append((name, parameter_text(params.get(name))))
                at = next((i for i in range(at, len(tokens)) if tokens[i].text == "}"), len(tokens)) + 1
                continue
            called = at + 1 < len(tokens) and tokens[at + 1].text == "("
            if token.kind == "word" and called and token.upper not in _WORDS:
                if token.text.lower() not in _FUNCTIONS:
                    return None
            elif token.name and (at > 0 and tokens[at - 1].upper == "IN"):
                return None  # the name of a table
            elif (
                token.name and token.name not in traits.stored and (token.kind == "quoted" or token.upper not in _WORDS)
            ):
                return None
            at += 1
        return (table.id, self._registry.version(table.id), table.rows, condition, tuple(given), context)

    def get(self, key: Hashable | None) -> tuple[NDArray[np.bool_], int] | None:
        """The mask, bool (rows,), not to be written to, and the number of rows in it."""
        with self._lock:
            found = self._masks.get(key) if key is not None else None
            if found is None:
                return None
            self._masks.move_to_end(key)
            if found.bits is None:
                return found.mask, found.count
        mask = np.unpackbits(found.bits, count=found.rows).view(np.bool_)
        self._keep(key, _Remembered(mask, None, found.count))
        return mask, found.count

    def put(self, key: Hashable | None, mask: NDArray[np.bool_], count: int) -> None:
        """Remember a mask, and forget those not asked for the longest."""
        if key is not None and mask.nbytes <= LARGEST // 4:
            self._keep(key, _Remembered(np.empty(0, np.bool_), np.packbits(mask), count, len(mask)))

    def _keep(self, key: Hashable, found: _Remembered) -> None:
        found.mask.setflags(write=False)
        with self._lock:
            before = self._masks.get(key)
            self._held += found.nbytes - (before.nbytes if before else 0)
            self._masks[key] = found
            while self._held > LARGEST:
                self._held -= self._masks.popitem(last=False)[1].nbytes
