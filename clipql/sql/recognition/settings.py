"""clipql's own settings in SETTINGS and SET, which ClickHouse would refuse, and FORMAT clauses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from clipql.errors import DeviceError, QueryError
from clipql.index.base import Route
from clipql.storage.vectors import devices
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import Token, matching, split_list, string_value
from clipql.syntax.reading import read

# name: what it does, as `clipql` documents it
OURS: Mapping[str, str] = {
    "vector_plan": "1: plan vector searches (the default); 0: leave every query to ClickHouse as it stands",
    "vector_index": "1: search by an index where one fits (the default); 0: scan exactly",
    "vector_codes": "1: let an exact scan rule rows out by codes that bound them (the default); 0: compare all rows",
    "vector_device": "where matrices are multiplied: cpu (the default), a GPU as cuda or cuda:1, or auto",
    "recall": "the share of the true nearest rows that an index must find, 0.95 unless set",
    "nprobe": "lists that an ivf index looks into, instead of what recall asks for",
    "rescore": "rows that an ivf index compares exactly, instead of what recall asks for",
    "annoy_index_search_k_nodes": "nodes that an annoy index looks at",
    "hnsw_candidate_list_size_for_search": "breadth of the search in an hnsw index (ef)",
    "shards_partial": "1: answer without the shards that are lost, and say how many answered; 0: that is an error",
}
# what clipql relies on, and so keeps at one of the values that come first: what it is kept at, and why
KEPT: Mapping[str, tuple[tuple[str, ...], str]] = {
    "mutations_sync": (("1", "2", "3"), "1, so that a DELETE that has returned is done"),
    "lightweight_deletes_sync": (("2", "1", "3"), "2, so that a DELETE that has returned is done"),
    "asterisk_include_alias_columns": (("1", "true"), "1, so that * gives vector columns"),
    "insert_allow_materialized_columns": (("1", "true"), "1, so that rows get their numbers"),
    "enable_analyzer": (("1", "true"), "1, as clipql reads statements as the analyzer does"),
    "allow_experimental_analyzer": (("1", "true"), "1, as clipql reads statements as the analyzer does"),
}
DEVICE, CPU = "vector_device", devices.CPU
_SWITCHES = ("vector_plan", "vector_index", "vector_codes", "shards_partial")


@dataclass(frozen=True)
class SearchOptions:
    """How a statement's vector searches shall be done. knobs: the settings of indexes that are in force.

    routes: lists of ivf indexes that were ranked elsewhere, for queries that the statement may ask. device: see
    `storage.vectors.devices`.
    """

    plan: bool = True
    index: bool = True
    codes: bool = True
    knobs: Mapping[str, str] = field(default_factory=dict)
    routes: Sequence[Route] = ()
    device: str = CPU


def broken(name: str, value: str) -> str | None:
    """What clipql keeps a setting at, and why, where it has another value; None where all is well."""
    values, kept = KEPT.get(name, ((), ""))
    return kept if values and value.strip("'\"").lower() not in values else None


def options(given: Mapping[str, str], routes: Sequence[Route] = ()) -> SearchOptions:
    """The options that settings make. Raises QueryError for a value that one cannot have."""
    values = {name: checked(name, value) for name, value in given.items()}
    knobs = {name: value for name, value in values.items() if name not in (*_SWITCHES, DEVICE)}
    on = {name: values.get(name, "1") in ("1", "true") for name in _SWITCHES}
    device = values.get(DEVICE, CPU)
    return SearchOptions(on["vector_plan"], on["vector_index"], on["vector_codes"], knobs, routes, device)


def taken_from(sql: str) -> tuple[str, dict[str, str]]:
    """The statement without clipql's settings in its SETTINGS clauses, and those settings."""
    found: dict[str, str] = {}
    tokens = read(sql).tokens
    edits: list[Edit] = []
    for at in reversed(range(len(tokens) - 2)):
        if tokens[at].upper != "SETTINGS" or tokens[at + 2].text != "=" or not tokens[at + 1].name:
            continue
        end = _end(tokens, at + 1)
        kept: list[str] = []
        for first, last in split_list(tokens, at + 1, end):
            name = tokens[first].name or ""
            text = sql[tokens[first].start : tokens[last - 1].end]
            if name in OURS:
                found.setdefault(name, sql[tokens[first + 2].start : tokens[last - 1].end])
            else:
                kept.append(text)
        clause = f"SETTINGS {', '.join(kept)}" if kept else ""
        edits.append((tokens[at].start, tokens[end - 1].end, clause))
    return edited(sql, edits), found


def _end(tokens: Sequence[Token], at: int) -> int:
    """The place after the last assignment of a SETTINGS clause."""
    while at < len(tokens):
        if tokens[at].kind == "symbol" and tokens[at].text in "([{":
            at = matching(tokens, at) + 1
            continue
        if tokens[at].text in (")", ";") or tokens[at].upper in (
            "FORMAT",
            "UNION",
            "INTO",
            "VALUES",
            "SELECT",
            "COMMENT",
        ):
            break
        at += 1
    return at


def checked(name: str, value: str) -> str:
    """The value of a setting of ours, as text. Raises QueryError for one that it cannot have."""
    literal = string_value(value)
    text = (value.strip('"') if literal is None else literal.decode("utf-8", "replace")).lower()
    if name in _SWITCHES:
        if text not in ("0", "1", "true", "false"):
            raise QueryError(f"{name} = {value}: expected 0 or 1")
        return text
    if name == DEVICE:
        try:
            return devices.checked(text)
        except DeviceError as error:
            raise QueryError(f"{name} = {value}: {error}") from error
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if name == "recall" and not 0 < number <= 1:
        raise QueryError(f"recall = {value}: expected more than 0 and at most 1")
    if name != "recall" and not (number >= 1 and number == int(number)):
        raise QueryError(f"{name} = {value}: expected a whole number of at least 1")
    return text


def take_format(sql: str) -> tuple[str, str | None]:
    """The statement without a FORMAT clause at its end, and the format; as it is where there is none."""
    tokens = read(sql).words
    for i in range(len(tokens) - 3):  # FORMAT name SETTINGS …
        if tokens[i].upper == "FORMAT" and tokens[i + 1].kind == "word" and tokens[i + 2].upper == "SETTINGS":
            return sql[: tokens[i].start] + sql[tokens[i + 2].start :], tokens[i + 1].text
    if (
        len(tokens) > 3
        and tokens[-2].upper == "FORMAT"
        and tokens[-1].kind == "word"
        and tokens[-3].text not in (",", ".")
        and tokens[-1].upper not in ("ASC", "DESC")
    ) and tokens[0].upper in ("SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXISTS", "EXPLAIN", "("):
        return sql[: tokens[-2].start].rstrip(), tokens[-1].text
    return sql, None


def parameter(text: str) -> str:
    """The value of SET param_x = …: a string without its quotes, anything else as it is written."""
    value = string_value(text)
    return text if value is None else value.decode("utf-8", "surrogateescape")
