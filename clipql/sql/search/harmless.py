"""Which settings leave an answer from the row file what ClickHouse would give: they change neither rows nor values, nor
how Arrow shows them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache

from clipql.syntax.lexer import Token
from clipql.syntax.reading import read

# rows of an answer from the row file
MOST_ROWS = 256
_HARMLESS = re.compile(
    r"(output_format_(?!arrow|.*native)\w+|input_format_values_\w+|allow_introspection_functions|max_threads"
    r"|max_block_size|max_execution_time|max_memory_usage|log_queries|http_\w+|use_concurrency_control"
    r"|wait_end_of_query|send_progress_in_http_headers|enable_http_compression|readonly)\Z"
)

# what ends without an error where a limit is reached; a result's own limit ends it as any other
_CUTTING = frozenset(f"{each}_overflow_mode" for each in ("set", "join", "transfer", "read", "distinct", "sort"))
_CUTTING |= {"read_overflow_mode_leaf"}


def settings_allow(statements: Iterable[str], settings: Mapping[str, str]) -> bool:
    """Whether what a user has SET leaves such an answer what it is. statements: SET and USE, as they were given."""
    given = [pair for statement in statements for pair in _assignments(read(statement).tokens)]
    given += [(name, read(value).tokens) for name, value in settings.items()]
    # what happens beyond max_result_rows does not matter where an answer has fewer rows
    bounded = [value for name, value in given if name == "max_result_rows"]
    enough = all(_is_at_least(value, MOST_ROWS) for value in bounded)
    return enough and all(_is_harmless(name, value) for name, value in given)


def cuts_short(sql: str, statements: Iterable[str], settings: Mapping[str, str]) -> bool:
    """Whether a limit may end what a statement reads, joins or collects without an error: what takes its place would be
    cut elsewhere. statements: SET and USE, as they were given.
    """
    before = dict(pair for text in statements for pair in _overflow_modes(text))
    before |= {name: value.strip("'\"").lower() for name, value in settings.items() if name in _CUTTING}
    return "break" in before.values() or any(value == "break" for _, value in _overflow_modes(sql))


def _overflow_modes(text: str) -> tuple[tuple[str, str], ...]:
    return _read_overflow_modes(text) if "_overflow_mode" in text else ()


@lru_cache(maxsize=256)
def _read_overflow_modes(text: str) -> tuple[tuple[str, str], ...]:
    tokens = read(text).tokens
    triples = zip(tokens, tokens[1:], tokens[2:], strict=False)
    return tuple((a.name, (c.said or c.text).lower()) for a, b, c in triples if a.name in _CUTTING and b.text == "=")


def written_by_default(statements: Iterable[str], settings: Mapping[str, str]) -> bool:
    """Whether nothing says how a result is to look. statements: SET and USE, as they were given."""
    names = itertools.chain(settings, *map(_set_names, statements))
    return not any(name.startswith("output_format_") for name in names)


@lru_cache(maxsize=256)
def _set_names(statement: str) -> frozenset[str]:
    return frozenset(name for name, _ in _assignments(read(statement).tokens))


def _is_harmless(name: str, value: tuple[Token, ...]) -> bool:
    if name == "additional_table_filters":  # of ClickHouse's own tables, which no vector table is
        keys = [key for key, following in itertools.pairwise(value) if following.text == ":"]
        return all(key.said.startswith("system.") for key in keys)
    return name in ("max_result_rows", "result_overflow_mode") or _HARMLESS.match(name) is not None


def _is_at_least(value: tuple[Token, ...], least: int) -> bool:
    text = "".join(t.said or t.text for t in value)
    return text.isdecimal() and (int(text) == 0 or int(text) >= least)


def _assignments(tokens: tuple[Token, ...]) -> Iterator[tuple[str, tuple[Token, ...]]]:
    """Each `name = value`, up to the next comma that stands in no brackets."""
    starts: list[int] = []
    depth = 0
    for at, token in enumerate(tokens):
        if token.kind != "symbol":
            continue
        depth += (token.text in "([{") - (token.text in ")]}")
        if token.text == "=" and depth == 0:
            starts.append(at)
    for at, end in zip(starts, [*(s - 2 for s in starts[1:]), len(tokens)], strict=False):
        yield tokens[at - 1].name or tokens[at - 1].text, tokens[at + 1 : end]
