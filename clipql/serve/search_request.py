"""A search as the REST API asks for it, checked: `Search.read` takes its JSON; `search_statement` makes SQL of it.

What must stay true: a key that is not known is refused by name, and a condition is one condition.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import orjson
from numpy.typing import NDArray

from clipql.errors import ModelError, PictureError, QueryError
from clipql.serve.allowed import words
from clipql.serve.limits import Limits
from clipql.sql.search_text import one_condition

FORMATS = {"CSV": "CSVWithNames", "Parquet": "Parquet", "Arrow": "Arrow", "JSON": "JSON"}
MOST_TERMS, MOST_NUMBERS, MOST_FLOAT = 32, 65_536, float(np.finfo(np.float32).max)
MOST_WEIGHT = 1e9  # of a score
KEYS = words(
    "table database column model k offset where safe recall exact fold hybrid words score terms queries columns format"
)
TERM_KEYS = words("weight text image upload url id vector")
MOST_ADDRESSES, LONGEST_ADDRESS = 4, 4096  # of one search; letters


@dataclass(frozen=True)
class Term:
    """One of: words, a picture's bytes, the address of one, a row's number, a vector (d,); with its weight.

    field: of an uploaded picture.
    """

    weight: float
    text: str | None = None
    picture: bytes | None = None
    url: str | None = None
    row: int | None = None
    vector: NDArray[np.float32] | None = None
    field: str | None = None

    @property
    def encodes(self) -> bool:
        """Whether it needs a model."""
        return self.row is None and self.vector is None


@dataclass(frozen=True)
class Score:
    """A column of numbers mixed into the order, and what it weighs: the key is the distance less their product."""

    column: str
    weight: float


class UnreadablePicture(PictureError):
    """A picture that came with a search is none. field: of the form that it came in, None where it was base64."""

    def __init__(self, message: str, field: str | None) -> None:
        super().__init__(message)
        self.field = field


class NoModel(ModelError):
    """Words or a picture came with a search, and the model that they need is not at hand. model: its name."""

    def __init__(self, message: str, model: str | None) -> None:
        super().__init__(message)
        self.model = model


@dataclass(frozen=True)
class Search:
    """A request, checked."""

    table: str
    database: str | None
    column: str | None
    model: str | None
    k: int
    offset: int
    where: tuple[str, ...]
    safe: bool
    recall: float | None
    exact: bool
    fold: float | None
    hybrid: bool
    words: str | None
    score: Score | None
    terms: tuple[Term, ...]
    columns: tuple[str, ...] | None
    format: str

    @property
    def encodes(self) -> bool:
        """Whether it needs a model."""
        return any(t.encodes for t in self.terms)

    @classmethod
    def read(cls, given: Any, uploads: Mapping[str, bytes], limits: Limits) -> Search:
        """The request in parsed JSON. uploads: files by their field. Raises QueryError with what is wrong."""
        check_keys(given, KEYS)
        if given.get("queries") is not None:
            raise wrong("queries: only /api/search takes many searches at once")
        columns = given.get("columns")
        if columns is not None and not (isinstance(columns, list) and all(isinstance(c, str) for c in columns)):
            raise wrong("columns: expected a list of names")
        format = text(given, "format") or "JSON"
        if format not in FORMATS:
            raise wrong(f"format: {format[:40]!r} is none of {', '.join(FORMATS)}")
        # a file of results is no larger than what SQL may give; folding compares every two rows
        most = limits.k if format == "JSON" or given.get("fold") is not None else limits.rows
        table = text(given, "table")
        if not table:
            raise wrong("table: expected the name of a table")
        told = terms_of(given.get("terms") or [], uploads, "", least=0)
        hybrid = flag(given, "hybrid", False)
        if hybrid and (len(told) != 1 or told[0].text is None or told[0].weight != 1):
            raise wrong("hybrid: a search by words as well as by meaning has one term, a text, of weight 1")
        if hybrid and given.get("fold") is not None:
            raise wrong("hybrid: what is ranked by words, too, is not folded: leave one of hybrid and fold out")
        if hybrid and given.get("score") is not None:
            raise wrong("hybrid: what is ranked by words, too, has no one distance: leave one of hybrid and score out")
        return cls(
            table=table,
            database=text(given, "database"),
            column=text(given, "column"),
            model=text(given, "model"),
            k=int(_number(given, "k", 40, 1, most, whole=True) or 40),
            offset=int(_number(given, "offset", 0, 0, 100_000, whole=True) or 0),
            where=conditions(given),
            safe=flag(given, "safe", True),
            recall=_number(given, "recall", None, 0.01, 1),
            exact=flag(given, "exact", False),
            fold=_number(given, "fold", None, 0, 1),
            hybrid=hybrid,
            words=text(given, "words"),
            score=_score(given.get("score")),
            terms=told,
            columns=tuple(columns) if columns is not None else None,
            format=format,
        )


def parsed(data: bytes | str) -> Any:
    """JSON in UTF-8. Raises QueryError."""
    try:
        given = json.loads(data if isinstance(data, str) else data.decode())
        if "\\u" in data if isinstance(data, str) else b"\\u" in data:
            json.dumps(given, ensure_ascii=False).encode()  # half of a pair, as "\\ud800", is no character
    except UnicodeEncodeError as error:
        raise wrong(f"the request is not Unicode: \\u{ord(error.object[error.start]):04x} stands alone") from None
    except (ValueError, RecursionError) as error:
        raise wrong(f"the request is not JSON: {error}") from None
    return given


def parsed_search(data: bytes) -> Any:
    """The JSON of a search, as `parsed` reads it, in a fifth of the time. Raises QueryError.

    Whole numbers of more than 64 bits become floats, which are as far beyond what any key of a search takes.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:  # which tells less of what is wrong, and knows no NaN
        return parsed(data)


def check_keys(given: Any, known: Collection[str], place: str = "") -> None:
    """Raise QueryError for what is no JSON object, or has keys that are not known."""
    if not isinstance(given, Mapping):
        raise wrong(f"{place}expected a JSON object")
    for key in given:
        if key not in known:
            hint = f"; {key} is one of a term's, in terms" if key in TERM_KEYS and known is KEYS else ""
            raise wrong(f"{place}the key {key[:60]!r} is not known; known are {', '.join(sorted(known))}{hint}")


def wrong(message: str) -> QueryError:
    """The error of a request that is not as the API takes it."""
    return QueryError(message, code=36, name="BAD_ARGUMENTS")


def text(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise wrong(f"{name}: expected text")
    return value or None


def conditions(given: Mapping[str, Any]) -> tuple[str, ...]:
    """The key `where`: a condition, or several, each of which is one condition. Raises QueryError."""
    value = given.get("where")
    several = [value] if isinstance(value, str) else value or []
    if not isinstance(several, list) or len(several) > MOST_TERMS or not all(isinstance(c, str) for c in several):
        raise wrong(f"where: expected a condition, or a list of at most {MOST_TERMS}")
    return tuple(one_condition(c) for c in several if c.strip())


def where_sql(conditions: Sequence[str], *others: str | None) -> str:
    """` WHERE …` of conditions as they were given, each in brackets, and of others; empty without any."""
    # a line of its own for the bracket, so that a comment at the end takes nothing with it
    every = [f"({c}\n)" for c in conditions] + [c for c in others if c]
    return f" WHERE {' AND '.join(every)}" if every else ""


def _number(
    given: Mapping[str, Any], name: str, default: float | None, least: float, most: float, *, whole: bool = False
) -> float | None:
    value = given.get(name)
    if value is None:
        return default
    # compared as it is: a whole number of 400 digits is no float
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
    if not good or (whole and value != int(value)):
        raise wrong(f"{name}: expected a {'whole ' if whole else ''}number from {least:g} to {most:g}")
    return float(value)


def _score(given: Any) -> Score | None:
    if given is None:
        return None
    check_keys(given, {"column", "weight"}, "score: ")
    column, weight = text(given, "column"), _number(given, "weight", None, -MOST_WEIGHT, MOST_WEIGHT)
    if column is None or weight is None:
        raise wrong('score: expected a column of numbers and what it weighs: {"column": "aesthetic", "weight": 0.1}')
    return Score(column, weight)


def flag(given: Mapping[str, Any], name: str, default: bool) -> bool:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise wrong(f"{name}: expected true or false")
    return default if value is None else value


def _vector(value: Any) -> NDArray[np.float32]:
    if not isinstance(value, list) or not value or len(value) > MOST_NUMBERS:
        raise wrong(f"vector: expected a list of 1 to {MOST_NUMBERS:,} numbers")
    try:
        if not {*map(type, value)} <= {int, float}:
            raise OverflowError
        numbers = np.array(value, np.float64)  # raises OverflowError for a whole number of 400 digits
        if not np.all(np.abs(numbers) <= MOST_FLOAT):  # NaN is not either
            raise OverflowError
    except OverflowError:
        raise wrong("vector: expected finite numbers, as Float32 holds them") from None
    return numbers.astype(np.float32)


def terms_of(given: Any, uploads: Mapping[str, bytes], place: str, *, least: int = 1) -> tuple[Term, ...]:
    """The terms of one search. place: of the search among others. Raises QueryError."""
    if not isinstance(given, list) or not least <= len(given) <= MOST_TERMS:
        raise wrong(f"{place}terms: expected a list of at most {MOST_TERMS}" + (", not empty" if least else ""))
    try:
        terms = tuple(_term(each, uploads) for each in given)
        if sum(t.url is not None for t in terms) > MOST_ADDRESSES:
            raise wrong(f"terms: at most {MOST_ADDRESSES} of them are addresses of pictures")
        return terms
    except QueryError as error:
        raise wrong(f"{place}{error}") if place else error from None


def _term(given: Any, uploads: Mapping[str, bytes]) -> Term:
    check_keys(given, TERM_KEYS, "terms: ")
    weight = _number(given, "weight", 1.0, -100, 100)
    assert weight is not None
    kinds = [k for k in ("text", "image", "upload", "url", "id", "vector") if given.get(k) is not None]
    if len(kinds) != 1:
        raise wrong("a term has one of text, image, upload, url, id and vector")
    value = given[kinds[0]]
    if kinds[0] == "vector":
        return Term(weight, vector=_vector(value))
    if not isinstance(value, str):
        raise wrong(f"{kinds[0]}: expected text")
    if kinds[0] == "text":
        return Term(weight, text=value)
    if kinds[0] == "url":
        return Term(weight, url=_web_address(value))
    if kinds[0] == "id":
        return Term(weight, row=row_number(value))
    if kinds[0] == "upload":
        if value not in uploads:
            raise wrong(f"upload: the request has no file in a field {value[:60]!r}")
        return Term(weight, picture=uploads[value], field=value)
    try:
        return Term(weight, picture=base64.b64decode(value.partition("base64,")[2] or value, validate=True))
    except (binascii.Error, ValueError):
        raise wrong("image: expected the bytes of a picture in base64") from None


def _web_address(text: str) -> str:
    try:
        found = urlsplit(text)
        good = found.scheme in ("http", "https") and bool(found.hostname) and found.port != 0
    except ValueError:
        good = False
    if not good or "@" in found.netloc or not text.isprintable() or " " in text or len(text) > LONGEST_ADDRESS:
        raise wrong("url: expected an address of the web, as https://…, without a name and a password in it")
    return text


def row_number(text: str) -> int:
    """A row's number from its id. Raises QueryError."""
    if not text.isascii() or not text.isdigit() or len(text) > 19:
        raise wrong(f"id {text[:40]!r}: expected a row's number")
    return int(text)
