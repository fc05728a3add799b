"""What a comparison gives: rows for the table, series for the plot.

Kept as JSON in bench/measured, which belongs to the project: so one part can be run anew, on any machine, and the page
keeps the others with the day and the machine that they are of.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import child, data


@dataclass(frozen=True)
class Line:
    """One line of the table. met: whether the bar is reached; None where there is no bar."""

    work: str
    measured: str
    bar: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Plot:
    """Bars by name, medians of their times. ours: those that are drawn strong."""

    name: str
    title: str
    unit: str
    bars: dict[str, float]
    ours: tuple[str, ...] = ("clipql",)


@dataclass(frozen=True)
class Comparison:
    """A part of the benchmark: how, when and on what machine it was measured, its lines, its plot, and the seconds of
    every round by name.
    """

    name: str
    title: str
    how: str
    lines: tuple[Line, ...]
    plot: Plot | None = None
    raw: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    when: str = ""
    machine: str = ""


def at_least(work: str, measured: str, ratio: float, bar: float) -> Line:
    """`measured` is `ratio` times as good as the peer; a bar for that."""
    shown = f"{ratio:.2f}" if ratio < 1 else f"{ratio:.1f}" if ratio < 10 else f"{ratio:.0f}"
    return Line(work, f"{measured}: {shown} times", f"at least {bar:g} times", ratio >= bar)


def at_most(work: str, measured: str, value: float, bar: float, unit: str) -> Line:
    """A value, which `measured` leads to, that must not exceed its bar."""
    return Line(work, f"{measured}{value:.3g} {unit}", f"at most {bar:g} {unit}", value <= bar)


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def save(found: Comparison) -> None:
    """Keep a comparison, in the place of an older one of its name; its rounds under bench/data."""
    path = _folder() / f"{found.name}.json"
    told = dataclasses.asdict(found)
    rounds = data.FOLDER / "rounds"
    rounds.mkdir(parents=True, exist_ok=True)
    (rounds / path.name).write_text(json.dumps(told.pop("raw"), indent=1))
    path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")


def load() -> dict[str, Comparison]:
    """The kept comparisons by name."""
    return {path.stem: _comparison(path) for path in sorted(_folder().glob("*.json"))}


def _comparison(path: Path) -> Comparison:
    found = json.loads(path.read_text())
    found["lines"] = tuple(Line(**line) for line in found["lines"])
    if found["plot"]:
        found["plot"] = Plot(**found["plot"])
    return Comparison(**found)


def _folder() -> Path:
    return child.ROOT / "bench" / "measured"
