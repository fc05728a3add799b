"""What a comparison gives: rows for the table, series for the plot; kept as JSON so that parts can be run apart."""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import data


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
    """A part of the benchmark: how it was measured, its lines, its plot, and the seconds of every round by name."""

    name: str
    title: str
    how: str
    lines: tuple[Line, ...]
    plot: Plot | None = None
    raw: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    when: str = ""


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
    """Keep a comparison, in the place of an older one of its name."""
    path = _folder() / f"{found.name}.json"
    path.write_text(json.dumps(dataclasses.asdict(found), indent=1))


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
    folder = data.FOLDER / "results"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
