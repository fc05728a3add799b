"""Python values and names as ClickHouse reads them: parameters, literals, identifiers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np


def parameter_texts(sql: str, params: Mapping[str, Any] | None) -> dict[str, str]:
    """The parameters that a statement names; a query vector that it no longer needs would cost a millisecond."""
    if not params:
        return {}
    named = set(re.findall(r"\{\s*([\w$]+)\s*:", sql))
    return {name: parameter_text(value) for name, value in params.items() if name in named}


class EscapedText(str):
    """A parameter's text as ClickHouse itself parses it, which is not to be escaped once more."""


def parameter_text(value: Any) -> str:
    """A Python value as the text that ClickHouse parses for a query parameter (`{name:Type}`).

    Strings are taken as they are; lists, tuples and numpy arrays of any float type become arrays; None is NULL.
    """
    if value is None:
        return "\\N"
    if isinstance(value, EscapedText):
        return str(value)
    return _escaped(value) if isinstance(value, str) else _literal(value)


# a byte that is no UTF-8, as Python's surrogateescape writes it
_NO_UTF8 = re.compile("[\udc80-\udcff]")


def with_bytes(text: str) -> str:
    """A text for ClickHouse, with each byte that is no UTF-8 as the escape that it has in strings and quoted names."""
    return text if text.isascii() else _NO_UTF8.sub(lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", text)


def _escaped(text: str) -> str:
    for raw, escape in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"), ("\0", "\\0")):
        text = text.replace(raw, escape)
    return with_bytes(text)


# what a list of is written by Python as by ClickHouse
_PLAIN = {int, float}


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, np.ndarray):
        if value.ndim >= 1 and value.dtype.kind in "fiu":
            return str(value.tolist())
        return _literal(value.tolist())
    if isinstance(value, np.generic):
        return _literal(value.item())
    if isinstance(value, list) and {*map(type, value)} <= _PLAIN:
        return str(value)
    if isinstance(value, (list, tuple)):
        left, right = ("[", "]") if isinstance(value, list) else ("(", ")")
        return left + ",".join(_nested(v) for v in value) + right
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value)


def _nested(value: Any) -> str:
    return "'" + _escaped(value).replace("'", "\\'") + "'" if isinstance(value, str) else _literal(value)


def quote_string(text: str) -> str:
    """A ClickHouse string literal."""
    return "'" + with_bytes(text.replace("\\", "\\\\").replace("'", "\\'")) + "'"


def quote_name(name: str) -> str:
    """A ClickHouse identifier in backticks."""
    return "`" + with_bytes(name.replace("\\", "\\\\").replace("`", "\\`")) + "`"
