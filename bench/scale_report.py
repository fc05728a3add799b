"""Writes what `bench.scale` measured into docs/scale.md, between its markers, and draws cost against rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import data
from bench.report import DOCS, machine
from bench.scale_work import MILLIONS, TARGET

BEGIN, END = "<!-- written by make bench-scale: begin -->", "<!-- written by make bench-scale: end -->"


def write() -> Path:
    """Put the figures between the page's markers and draw the plots."""
    page, found = DOCS / "scale.md", _results()
    text = page.read_text()
    before, rest = text.split(BEGIN)
    page.write_text(before + "\n".join([BEGIN, "", *_lines(found), END]) + rest.split(END)[1])
    grown = [found[f"growth-{m}"] for m in MILLIONS if f"growth-{m}" in found]
    if len(grown) > 1:
        _draw(grown)
    return page


def _results() -> dict[str, Any]:
    return {p.stem: json.loads(p.read_text()) for p in (data.FOLDER / "scale").glob("*.json") if "truth" not in p.stem}


def cheapest(grown: dict[str, Any], target: float = TARGET) -> dict[str, Any]:
    """The fastest setting that reaches a recall, or the one of the highest recall."""
    enough = [p for p in grown["points"] if p["recall"] >= target]
    best: dict[str, Any] = (
        min(enough, key=lambda p: p["p50"]) if enough else max(grown["points"], key=lambda p: p["recall"])
    )
    return best


def _lines(found: dict[str, Any]) -> Iterator[str]:
    grown = [found[f"growth-{m}"] for m in MILLIONS if f"growth-{m}" in found]
    yield machine()
    if grown:
        last = grown[-1]
        yield from ("", f"Memory limited by {last['limit']}. Measured {last['when']}.", "")
        heads = ("rows", "ingest, linked", "index built in", "memory in use, peak", "index", "p50 · p90 of a statement",
                 "recall@10", "setting")  # fmt: skip
        yield from (f"| {' | '.join(heads)} |", "|---" * len(heads) + "|")
        for each in grown:
            best = cheapest(each)
            yield (
                f"| {each['millions']}M | {each['ingest_seconds']:.0f} s | {each['build_seconds'] / 60:.1f} min "
                f"| {each['build_memory'] / 1e9:.2f} GB | {each['index_bytes'] / 1e9:.2f} GB "
                f"| {best['p50']:.1f} · {best['p90']:.1f} ms | {best['recall']:.3f} | `{best['setting']}` |"
            )
        yield ""
        yield from _bars(grown)
        yield from ("", "![Cost against rows](img/scale.png)", "")
        yield from _settings(grown)
    if "ingest" in found:
        yield from ("", *_ingest(found["ingest"]))


def _bars(grown: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield from ("| bar | measured | |", "|---|---|---|")
    first, last = grown[0], grown[-1]
    a, b = cheapest(first), cheapest(last)
    rows = last["millions"]
    yield _bar(f"p50 at {rows}M at most 50 ms, recall at least {TARGET}", f"{b['p50']:.1f} ms at {b['recall']:.3f}",
               b["p50"] <= 50 and b["recall"] >= TARGET)  # fmt: skip
    yield _bar(f"time a query grows at most 4 times from {first['millions']}M to {rows}M",
               f"{b['p50'] / a['p50']:.1f} times", b["p50"] <= 4 * a["p50"])  # fmt: skip
    for each in grown[1:]:
        factor = each["build_seconds"] / first["build_seconds"] / (each["millions"] / first["millions"])
        yield _bar(f"build at most 1.2 times linear, {first['millions']}M to {each['millions']}M",
                   f"{factor:.2f} times", factor <= 1.2)  # fmt: skip
    yield _bar(f"build at {rows}M under 60 min, two cores", f"{last['build_seconds'] / 60:.1f} min",
               last["build_seconds"] < 3600)  # fmt: skip
    yield _bar("in under 4 GB", last["limit"], last["memory"] <= 4)


def _bar(bar: str, measured: str, met: bool) -> str:
    return f"| {bar} | {measured} | {'✓' if met else '✗ missed'} |"


def _settings(grown: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield "p50 of a whole statement and recall@10, by setting:"
    yield from (
        "",
        f"| setting | {' | '.join(str(g['millions']) + 'M' for g in grown)} |",
        "|---" * (len(grown) + 1) + "|",
    )
    for number, point in enumerate(grown[0]["points"]):
        cells = [f"{g['points'][number]['p50']:.1f} ms at {g['points'][number]['recall']:.3f}" for g in grown]
        yield f"| `{point['setting']}` | {' | '.join(cells)} |"


def _ingest(found: dict[str, Any]) -> Iterator[str]:
    rate = {name: found["rows"] / seconds for name, seconds in found["seconds"].items()}
    share = rate["clipql"] / rate["cp"]
    yield (
        f"Ingest of {found['rows']:,} rows with both vectors, copied and synced, in turns with `cp -r` and `sync` of "
        f"the same files, which were dropped from memory before each: clipql {rate['clipql']:,.0f} rows/s, `cp` "
        f"{rate['cp']:,.0f} rows/s, {100 * share:.0f} %. Measured {found['when']}."
    )
    yield ""
    yield from ("| bar | measured | |", "|---|---|---|")
    yield _bar("ingest at least 150,000 rows/s with both vectors, or 80 % of `cp`", f"{rate['clipql']:,.0f} rows/s",
               rate["clipql"] >= 150_000 or share >= 0.8)  # fmt: skip


def _draw(grown: Sequence[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [g["millions"] for g in grown]
    series = (
        ("a query, p50", "milliseconds", [cheapest(g)["p50"] for g in grown]),
        ("build of the index", "minutes", [g["build_seconds"] / 60 for g in grown]),
        ("memory in use, peak", "GB", [g["build_memory"] / 1e9 for g in grown]),
        ("index on disk", "GB", [g["index_bytes"] / 1e9 for g in grown]),
    )
    figure, axes = pyplot.subplots(1, 4, figsize=(13, 3.2), dpi=120, layout="constrained")
    for axis, (title, unit, values) in zip(axes, series, strict=True):
        axis.plot(rows, values, "o-", color="#2a6f97")
        axis.plot(rows, [values[0] * r / rows[0] for r in rows], "--", color="#c9d3da")
        axis.set(xscale="log", yscale="log", xlabel="million rows", ylabel=unit)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_xticks(rows, [str(r) for r in rows])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
        for row, value in zip(rows, values, strict=True):
            axis.annotate(f"{value:.3g}", (row, value), textcoords="offset points", xytext=(0, 6), fontsize=8)
    figure.suptitle("Cost against rows; dashed: in proportion to the rows", fontsize=10, x=0.01, ha="left")
    figure.savefig(DOCS / "img" / "scale.png")
    pyplot.close(figure)
