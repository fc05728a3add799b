"""Values in one line that a person can read: a notebook shows them, and a vector of 512 numbers is not to be read."""

from __future__ import annotations

import dataclasses
import enum
import itertools
from collections.abc import Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any

LINE = 200
_FIELD, _TEXT = 100, 60


class Brief:
    """The repr of a dataclass made with repr=False: its fields, but for those that have their defaults, each short."""

    def __repr__(self) -> str:
        name = type(self).__name__
        shown = [
            f"{f.name}={short(getattr(self, f.name))}"
            for f in dataclasses.fields(self)  # type: ignore[arg-type]
            if f.repr and not _is_default(f, getattr(self, f.name))
        ]
        for count in range(len(shown), -1, -1):
            line = f"{name}({', '.join(shown[:count] + ['…'] * (count < len(shown)))})"
            if len(line) <= LINE:
                return line
        return f"{name}(…)"


def _is_default(field: dataclasses.Field[Any], value: Any) -> bool:
    made = field.default_factory
    default = made() if made is not dataclasses.MISSING else field.default
    return type(value) is type(default) and bool(value == default)


def short(value: Any, most: int = _FIELD) -> str:
    """A value in a few words, without a line's end: the sizes of what is long in place of its content."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, enum.Enum):
        return short(value.value)
    if isinstance(value, str):
        return repr(value if len(value) <= _TEXT else value[: _TEXT - 1] + "…")
    if isinstance(value, PurePath):
        return repr(str(value))
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value):,} bytes>"
    if hasattr(value, "num_rows") and hasattr(value, "num_columns"):  # of Arrow
        return f"<{value.num_rows:,} rows × {value.num_columns} columns>"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"<{value.dtype} {tuple(value.shape)}>"
    text = _inside(value, most)
    return text if len(text) <= most and "\n" not in text else _outside(value)


def _inside(value: Any, most: int) -> str:
    """What a value holds; no more of it is looked at than can be shown."""
    if isinstance(value, Mapping):
        pairs = (f"{short(k)}: {short(v)}" for k, v in itertools.islice(value.items(), most))
        return "{" + ", ".join(pairs) + "}" if len(value) <= most else " " * (most + 1)
    if isinstance(value, (Sequence, Set)) and not dataclasses.is_dataclass(value):
        if len(value) > most:
            return " " * (most + 1)
        items = ", ".join(map(short, value))
        left, right = ("[", "]") if isinstance(value, list) else ("{", "}") if isinstance(value, Set) else ("(", ")")
        return left + items + ("," if isinstance(value, tuple) and len(value) == 1 else "") + right
    return repr(value)


def _outside(value: Any) -> str:
    name = type(value).__name__
    if isinstance(value, (Mapping, Sequence, Set)):
        return f"<{name} of {len(value):,}>"
    return f"{name}(…)" if dataclasses.is_dataclass(value) else f"<{name}>"
