"""Writes what `bench.scale` measured into docs/scale.md, between its markers, and draws cost against rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench import data
from bench.report import DOCS, machine
from bench.scale_work import FILTERS

BEGIN, END = "<!-- written by make bench-scale: begin -->", "<!-- written by make bench-scale: end -->"


def write() -> Path:
    """Put the figures between the page's markers and draw the plots."""
    page, found = DOCS / "scale.md", _results()
    text = page.read_text()
    before, rest = text.split(BEGIN)
    page.write_text(before + "\n".join([BEGIN, "", *_lines(found), END]) + rest.split(END)[1])
    grown = _by_size(found, "growth")
    searched = [found[f"searches-{g['millions']}"] for g in grown if f"searches-{g['millions']}" in found]
    if len(searched) == len(grown) > 1:
        _draw(grown, searched)
    return page


def _results() -> dict[str, Any]:
    return {p.stem: json.loads(p.read_text()) for p in (data.FOLDER / "scale").glob("*.json") if "truth" not in p.stem}


def _by_size(found: dict[str, Any], what: str) -> list[dict[str, Any]]:
    return sorted((each for name, each in found.items() if name.startswith(what)), key=lambda each: each["millions"])


def _lines(found: dict[str, Any]) -> Iterator[str]:
    grown = _by_size(found, "growth")
    searched = _by_size(found, "searches")
    yield machine()
    if grown:
        yield from ("", f"Builds within {grown[-1]['limit']}. Measured {grown[-1]['when']}.", "")
        heads = ("rows", "ingest, linked", "index built in", "of processor time", "memory in use, peak", "index")
        yield from (f"| {' | '.join(heads)} |", "|---" * len(heads) + "|")
        for each in grown:
            yield (
                f"| {each['millions']}M | {each['ingest_seconds']:.0f} s | {each['build_seconds'] / 60:.1f} min "
                f"| {each['build_processor_seconds'] / 60:.1f} min "
                f"| {each['build_memory'] / 1e9:.2f} GB | {each['index_bytes'] / 1e9:.2f} GB |"
            )
    if searched:
        yield from ("", *_searches(searched))
    if grown and searched:
        yield from ("", *_bars(grown, searched), "", "![Cost against rows](img/scale.png)")
    if "ingest" in found:
        yield from ("", *_ingest(found["ingest"]))


def _searches(searched: Sequence[dict[str, Any]]) -> Iterator[str]:
    last = searched[-1]
    yield f"Each setting in a process of its own, the last size within {last['limit']}. Measured {last['when']}."
    yield ""
    heads = ("rows", "memory", "setting", "filter leaves", "recall@10", "cold: p50 · p90 · p99", "read a query",
             "warm: p50 · p90 · p99", "read a query", "processor time")  # fmt: skip
    yield from (f"| {' | '.join(heads)} |", "|---" * len(heads) + "|")
    for each in searched:
        for p in each["points"]:
            yield (
                f"| {each['millions']}M | {each['bytes'] / 1e9:.2f} GB | `{p['setting']}` | {p['filter']} "
                f"| {p['recall']:.3f} | {_times(p['cold'])} | {p['cold']['read'] / 1e6:.1f} MB "
                f"| {_times(p['warm'])} | {p['warm']['read'] / 1e6:.1f} MB | {p['warm']['processor']:.1f} ms |"
            )
    yield from ("", "| rows | clients | queries/s | p50 · p90 · p99 | read a query |", "|---|---|---|---|---|")
    for each in searched:
        c = each["clients"]
        yield (
            f"| {each['millions']}M | {c['clients']} | {c['per_second']:.0f} | {_times(c)} | {c['read'] / 1e6:.1f} MB |"
        )


def _times(p: dict[str, float]) -> str:
    return f"{p['p50']:.1f} · {p['p90']:.1f} · {p['p99']:.1f} ms"


def point(searched: dict[str, Any], setting: str, filtered: str = "all") -> dict[str, Any]:
    """What was measured at a setting."""
    found: dict[str, Any] = next(p for p in searched["points"] if (p["setting"], p["filter"]) == (setting, filtered))
    return found


# at most so many: p50 and p99 in ms at recall 0.95; p50 at 0.98; MB read
BARS = {10: (12.0, 40.0, 25.0, 2.0), 30: (15.0, 45.0, None, None)}


def _bars(grown: Sequence[dict[str, Any]], searched: Sequence[dict[str, Any]]) -> Iterator[str]:
    yield from ("| bar | measured | |", "|---|---|---|")
    for each in searched:
        rows, base = f"{each['millions']}M", point(each, "recall = 0.95")
        high, warm = point(each, "recall = 0.98"), base["warm"]
        for name, asked, p in (("0.95", 0.95, base), ("0.98", 0.98, high)):
            over = p["recall"] - asked
            yield _bar(f"{rows}: recall asked {name}, got, and not 0.03 more", f"{p['recall']:.3f}", 0 <= over < 0.03)
        for name, unit, value, most in zip(
            ("p50", "p99", "p50 at recall 0.98", "read a query"), ("ms", "ms", "ms", "MB"),
            (warm["p50"], warm["p99"], high["warm"]["p50"], warm["read"] / 1e6), BARS.get(each["millions"], ()),
            strict=False,
        ):  # fmt: skip
            if most:
                yield _bar(f"{rows}: {name} at most {most:g} {unit}", f"{value:.1f} {unit}", value <= most)
        times = high["warm"]["p50"] / warm["p50"]
        yield _bar(f"{rows}: from 0.95 to 0.98 at most 3 times", f"{times:.1f} times", times <= 3)
        for filtered in FILTERS:
            if filtered != "all":
                times = point(each, "recall = 0.95", filtered)["warm"]["p50"] / warm["p50"]
                yield _bar(f"{rows}: a filter that leaves {filtered} at most 3 times", f"{times:.1f} times", times <= 3)
        rate = each["clients"]["per_second"]
        yield _bar(f"{rows}: {each['clients']['clients']} clients, at least 150 queries/s", f"{rate:.0f}", rate >= 150)
    first = grown[0]
    for each in grown[1:]:
        factor = each["build_seconds"] / first["build_seconds"] / (each["millions"] / first["millions"])
        yield _bar(f"build at most 1.2 times linear, {first['millions']}M to {each['millions']}M",
                   f"{factor:.2f} times", factor <= 1.2)  # fmt: skip
    for each in grown:
        if each["millions"] == 10:
            seconds = each["build_seconds"]
            yield _bar("10M: build at most 240 s, two cores", f"{seconds:.0f} s", seconds <= 240)


def _bar(bar: str, measured: str, met: bool) -> str:
    return f"| {bar} | {measured} | {'✓' if met else '✗ missed'} |"


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


def _draw(grown: Sequence[dict[str, Any]], searched: Sequence[dict[str, Any]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [g["millions"] for g in grown]
    series = (
        ("a query, p50, warm", "milliseconds", [point(s, "recall = 0.95")["warm"]["p50"] for s in searched]),
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
