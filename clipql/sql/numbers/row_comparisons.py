"""What compares numbers of a row's vectors, and sees to it that ClickHouse decides what float32 could.

    … WHERE cosineDistance(a, b) < 0.3 OR id = 7
    … WHERE if(abs(number - 0.3) <= slack, cosineDistance(a, b) < 0.3, number < 0.3) OR id = 7

What must stay true: a comparison gives what it gives with ClickHouse's own numbers, wherever it stands; where that
cannot be made so, the numbers are ClickHouse's own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from clipql.index.flat import ROUNDING
from clipql.sql.recognition.affine import Affine, Parser
from clipql.sql.recognition.calls import Source
from clipql.sql.recognition.comparisons import SIGNS, comparisons
from clipql.storage.catalog import VectorColumn
from clipql.storage.vectors.metrics import Metric, metric_named
from clipql.syntax.edits import Edit, edited
from clipql.syntax.lexer import Token
from clipql.syntax.reading import read
from clipql.syntax.scopes import Scope
from clipql.tables.computed import ELEMENT, OF_ONE
from clipql.tables.registry import Registry

# those that give their value to the last bit
_EXACT = {"arrayMin", "arrayMax", "LinfNorm", "normLinf", "cityHash64", "uniqExact", "length", "notEmpty", "empty"}
# aggregates that give one of the numbers, and those whose rounding is any order's
_PICKS = re.compile(r"(min|max|any|first|last|arg|quantile|median|group|topK|lead|lag|nth)", re.IGNORECASE)
_SUMS = 2.0**-22  # of a constant that is added, in float32, once by us and once by ClickHouse
_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_BLURS = re.compile(r"(avg|sum|count|var|std|corr|covar|skew|kurt)", re.IGNORECASE)


@dataclass(frozen=True, eq=False)
class RowCall:
    """A distance of two columns of `source`, or another function of one, by its places in tokens and in the text.

    function: as `computed.name_of` takes it; 'uniqExact' for what only tells vectors from each other.
    """

    function: str
    source: Source
    columns: tuple[VectorColumn, ...]
    first: int
    last: int
    start: int
    end: int


@dataclass(frozen=True)
class Compared:
    """A weighted sum of numbers, compared with constants, by tokens.

    numbers: the weights and the calls; sign: of a comparison whose left side the sum is, or BETWEEN; bounds: the
    constants, as they are written; own: the comparison as ClickHouse computes it, which decides within the slack.
    """

    constant: float
    numbers: tuple[tuple[float, RowCall], ...]
    sign: str
    bounds: tuple[str, ...]
    slack: float
    own: str


# gives the text for a comparison of numbers that are at hand; None where it has to be made of their own texts
Decide = Callable[[Compared], "str | None"]


def conditions(
    scope: Scope,
    calls: Sequence[RowCall],
    texts: Mapping[RowCall, str],
    registry: Registry,
    decide: Decide | None = None,
) -> list[Edit]:
    """The edits of conditions that compare a distance: where float32 could decide, ClickHouse computes it."""
    found: list[Edit] = []
    places = {c.first: (i, c.last) for i, c in enumerate(calls)}
    parser = Parser(scope.tokens, places, lambda token: scope.aliases.get(token.name or ""))
    for first, last in _compared(scope):
        sides = _sides(scope, first, last)
        forms = [parser.parse(*side) for side in sides]
        weighted = [form for form in forms if form and form.weights]
        held = [side for side in sides for c in calls if side[0] <= c.first < side[1]]
        if not sides or len(weighted) != 1 or any(side != sides[forms.index(weighted[0])] for side in held):
            continue
        form = weighted[0]
        slack = _slack(form, calls, registry)
        if not slack:
            continue  # the same as ClickHouse's to the last bit
        others = [side for side, of in zip(sides, forms, strict=True) if of is not form]
        left = forms.index(form) == 0
        compared = _with_constants(scope, (first, last), others, form, calls, slack, left=left) if decide else None
        text = decide(compared) if decide and compared else None
        if text is not None:
            found.append((scope.tokens[first].start, scope.tokens[last - 1].end, text))
        else:
            found.append(_decided(scope, (first, last), (sides[forms.index(form)], *others), calls, texts, slack))
    return found


def _with_constants(
    scope: Scope,
    place: tuple[int, int],
    others: Sequence[tuple[int, int]],
    form: Affine,
    calls: Sequence[RowCall],
    slack: float,
    *,
    left: bool,
) -> Compared | None:
    """A comparison of a sum by its first and last token, where all it is compared with are constants."""
    tokens = scope.tokens
    sign = next((t.text for t in tokens[slice(*place)] if t.text in _TURNED), "BETWEEN" if len(others) == 2 else "")
    if not sign or not all(_is_constant(tokens[a:b]) for a, b in others) or (sign == "BETWEEN" and not left):
        return None
    start, end = tokens[place[0]].start, tokens[place[1] - 1].end
    return Compared(
        form.constant,
        tuple((weight, calls[i]) for i, weight in form.weights.items()),
        sign if left else _TURNED[sign],
        tuple(scope.text_of(*side) for side in others),
        slack,
        edited(scope.text, spelled_out(scope, *place, calls), start, end),
    )


def _compared(scope: Scope) -> list[tuple[int, int]]:
    """The comparisons of a SELECT itself."""
    inner = [(s.whole.first, s.whole.last) for s in read(scope.text).selects if is_inside(s, scope)]
    return [*comparisons(scope, inner)]


@dataclass(frozen=True)
class Bounded:
    """What is made of a number is compared where another than the comparison itself must see to it: in HAVING, or in an
    outer SELECT. place: of the sum that the number is in; bounds: what it is compared with, where those are constants.
    """

    place: tuple[int, int]
    bounds: tuple[str, ...]


def bounded(scope: Scope, calls: Sequence[RowCall], registry: Registry) -> dict[RowCall, Bounded | None]:
    """Such calls; None for one of which that cannot be told, whose numbers must be ClickHouse's own."""
    rough = [c for c in calls if _off(c, registry)]
    found: dict[RowCall, Bounded | None] = {}
    compared = [(scope, place) for place in _compared(scope)] if rough else []
    outer = [s for s in read(scope.text).selects if is_inside(scope, s)] if rough else []
    elsewhere = [(s, place) for s in outer for place in _compared(s)]
    for call in rough:
        around = [c for c in scope.calls if c.at < call.first and call.last <= c.close and not metric_named(c.name)]
        if any(_BLURS.match(c.name) for c in around):
            continue  # what is summed is not the same to the last bit in ClickHouse either
        pick = next((c for c in around if _PICKS.match(c.name)), None)
        spans = [span for span in scope.aliases.values() if span[0] <= call.first < span[1]]
        names = {n for n, span in scope.aliases.items() if span in spans}
        places = [(s, p) for s, p in elsewhere if names & {t.name for t in s.tokens[slice(*p)]}]
        if pick:
            places += [
                (s, p) for s, p in compared if pick.at in range(*p) or names & {t.name for t in s.tokens[slice(*p)]}
            ]
        if not places:
            continue
        whole = (pick.at, pick.close + 1) if pick else spans[0] if spans else (call.first, call.last)
        inside = pick.arguments[0] if pick and len(pick.arguments) == 1 else whole
        parser = Parser(scope.tokens, {call.first: (0, call.last)}, lambda token: None)
        form = parser.parse(*inside)
        bounds = [_bounds(s, p, names, whole) for s, p in places]
        plain = form is not None and len(spans) < 2 and (not spans or spans[0] == whole)
        if plain and all(bounds):
            found[call] = Bounded(inside, tuple(dict.fromkeys(b for each in bounds for b in each)))
        else:
            found[call] = None
    return found


def _bounds(scope: Scope, place: tuple[int, int], names: set[str], whole: tuple[int, int]) -> list[str]:
    """The constants that a name, or an expression by its place, is compared with; none where it is not just that."""
    sides = _sides(scope, *place)
    own = [side for side in sides if side == whole or _is_name(scope.tokens, side, names)]
    others = [side for side in sides if side not in own]
    constant = all(_is_constant(scope.tokens[a:b]) for a, b in others)
    return [scope.text_of(*side) for side in others] if len(own) == 1 and constant else []


def _is_name(tokens: Sequence[Token], side: tuple[int, int], names: set[str]) -> bool:
    first, last = side
    return tokens[last - 1].name in names and (
        last - first == 1 or (last - first == 3 and tokens[first + 1].text == "." and tokens[first].name is not None)
    )


def _is_constant(tokens: Sequence[Token]) -> bool:
    """Whether it is a number or a parameter."""
    given = [t for t in tokens if t.text not in ("-", "+")]
    return (len(given) == 1 and given[0].kind == "number") or (
        bool(given) and given[0].text == "{" and given[-1].text == "}"
    )


def is_inside(other: Scope, scope: Scope) -> bool:
    return scope.whole.first < other.whole.first < scope.whole.last


def _sides(scope: Scope, first: int, last: int) -> list[tuple[int, int]]:
    """What a comparison compares, or BETWEEN; nothing where it is another condition."""
    words = [t.upper or t.text for t in scope.tokens[first:last]]
    signs = [i for i, t in enumerate(scope.tokens[first:last], first) if t.text in SIGNS]
    if len(signs) == 1 and "BETWEEN" not in words:
        return [(first, signs[0]), (signs[0] + 1, last)]
    if signs or words.count("BETWEEN") != 1 or words.count("AND") != 1 or "NOT" in words:
        return []
    between, joined = first + words.index("BETWEEN"), first + words.index("AND")
    return [(first, between), (between + 1, joined), (joined + 1, last)] if first < between < joined else []


def _decided(
    scope: Scope,
    place: tuple[int, int],
    sides: Sequence[tuple[int, int]],
    calls: Sequence[RowCall],
    texts: Mapping[RowCall, str],
    slack: float,
) -> Edit:
    """A comparison, by the numbers where they differ by more than the slack.

    place: its first and last token. sides: the numbers, then what they are compared with.
    """
    tokens, looked_up = scope.tokens, [(c.start, c.end, texts[c]) for c in calls]
    whole = tokens[place[0]].start, tokens[place[1] - 1].end
    number, *others = (edited(scope.text, looked_up, tokens[a].start, tokens[b - 1].end) for a, b in sides)
    near = " OR ".join(f"abs(({number}) - ({other})) <= {slack!r}" for other in others)
    own, other = spelled_out(scope, *place, calls), looked_up
    return (*whole, f"if({near}, {edited(scope.text, own, *whole)}, {edited(scope.text, other, *whole)})")


def own_near(scope: Scope, call: RowCall, bound: Bounded, number: str, registry: Registry) -> str:
    """The number of a call, which is ClickHouse's own where what is made of it is near to a bound."""
    parser = Parser(scope.tokens, {call.first: (0, call.last)}, lambda token: None)
    form = parser.parse(*bound.place)
    assert form is not None, "it was parsed before"
    slack, tokens = _slack(form, [call], registry), scope.tokens
    first, last = tokens[bound.place[0]].start, tokens[bound.place[1] - 1].end
    made = edited(scope.text, [(call.start, call.end, number)], first, last)
    near = " OR ".join(f"abs(({made}) - ({other})) <= {slack!r}" for other in bound.bounds)
    return f"if({near}, {scope.text[call.start : call.end]}, {number})"


class Placed(Protocol):
    """A call by its first and last token."""

    @property
    def first(self) -> int:
        """Its first token."""

    @property
    def last(self) -> int:
        """The token after its last."""


def spelled_out(scope: Scope, first: int, last: int, calls: Sequence[Placed]) -> list[Edit]:
    """The edits that put expressions in the place of their names in [first, last), where they hold one of the calls."""
    return [
        (t.start, t.end, f"({scope.text_of(*span)})")
        for i, t in enumerate(scope.tokens[first:last], first)
        if (span := scope.aliases.get(t.name or ""))
        and any(span[0] <= c.first < span[1] for c in calls)
        and not any(c.first <= i < c.last for c in calls)
    ]


def _slack(form: Affine, calls: Sequence[RowCall], registry: Registry) -> float:
    """How far a sum of distances may be off by the rounding of float32, in ours or ClickHouse's."""
    off = sum(abs(weight) * _off(calls[i], registry) for i, weight in form.weights.items())
    return off + abs(form.constant) * _SUMS if off else 0.0


def _off(call: RowCall, registry: Registry) -> float:
    """How far one of them may be off."""
    if call.function in _EXACT or call.function.startswith(ELEMENT):
        return 0.0
    if call.function == Metric.COSINE.value:
        return ROUNDING
    largest = [registry.store(call.source.table, c.name).largest for c in call.columns]
    total = sum(largest)
    if call.function in OF_ONE:  # of d numbers, whose sum is at most the root of d times their length
        size = total**2 if "Squared" in call.function else total * math.sqrt(call.columns[0].dimension or 1)
        return (1e-12 if OF_ONE[call.function] == "Float64" else ROUNDING) * size
    return ROUNDING * {Metric.DOT.value: math.prod(largest), Metric.L2.value: total}.get(call.function, total**2)
