"""Writes docs/benchmarks.md and its pictures from the kept results. All of the page is written here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench import child
from bench.results import Comparison, Plot

DOCS = child.ROOT / "docs"
BEGIN, END = "<!-- written by make bench: begin -->", "<!-- written by make bench: end -->"
_LIBRARIES = (
    "chdb-core", "numpy", "numba", "pyarrow", "pandas", "lancedb", "faiss-cpu", "rabitqlib", "onnxruntime", "pillow",
    "tokenizers", "uvicorn",
)  # fmt: skip
_STRONG, _WEAK, _TEXT = "#2a6f97", "#c9d3da", "#333333"


def write(found: Mapping[str, Comparison]) -> Path:
    """Put the results between the page's markers and draw the plots."""
    page = DOCS / "benchmarks.md"
    before, after = _around(page)
    page.write_text(before + "\n".join([BEGIN, "", *_lines(list(found.values())), END]) + after)
    (DOCS / "img").mkdir(parents=True, exist_ok=True)
    for each in found.values():
        if each.plot and each.plot.bars:  # none where the figures are of another machine, and its picture is kept
            draw(each.plot, DOCS / "img" / f"bench-{each.plot.name}.png")
    return page


def _around(page: Path) -> tuple[str, str]:
    text = page.read_text() if page.exists() else f"# Benchmarks\n\n{BEGIN}\n{END}\n"
    before, found, rest = text.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise RuntimeError(f"{page} lacks the lines {BEGIN} and {END}, between which the results go")
    return before, after


def _lines(found: list[Comparison]) -> Iterable[str]:
    yield from (*textwrap.wrap(f"By {versions()}.", 120), "", "| work | measured | bar | |", "|---|---|---|---|")
    for each in found:
        for line in each.lines:
            mark = {True: "✓", False: "✗ missed", None: ""}[line.met]
            yield f"| {line.work} | {line.measured} | {line.bar} | {mark} |"
    yield ""
    for each in found:
        yield from (f"## {each.title}", "", *textwrap.wrap(each.how, 120), "")
        yield from (f"Measured {each.when} on {each.machine}.", "")
        if each.plot:
            yield from (f"![{each.plot.title}](img/bench-{each.plot.name}.png)", "")


def versions() -> str:
    """The libraries that are measured, and Python."""
    named = (f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
    return ", ".join([f"Python {platform.python_version()}", *named])


def machine() -> str:
    """The machine in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory, {platform.system()}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def draw(plot: Plot, path: Path) -> None:
    """Draw bars with their values, ours in a strong colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names, values = list(plot.bars), list(plot.bars.values())
    colours = [_STRONG if name in plot.ours else _WEAK for name in names]
    figure, axes = pyplot.subplots(figsize=(7.2, 0.9 + 0.5 * len(names)), dpi=120, layout="constrained")
    bars = axes.barh(names, values, color=colours, height=0.62)
    axes.bar_label(bars, [f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in values], padding=5, color=_TEXT)
    axes.set_title(plot.title, loc="left", fontsize=11, color=_TEXT)
    axes.set_xlabel(plot.unit, color=_TEXT)
    axes.set_xlim(0, max(values) * 1.15)
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    figure.savefig(path)
    pyplot.close(figure)
