"""Readers of one database in processes of their own: how they add up, batches, and what an ingest beside them costs.

make bench ARGS="--only readers,beside-ingest --rows 1000000"
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from bench import child, data, served
from bench.results import Comparison, Line, Plot, at_least, at_most, median
from bench.served import QUERY

ROUNDS, SECONDS, PROCESSES = 3, 8.0, 4
BATCH = 10_000
PACED, EACH = 2, 100  # readers beside an ingest, and what each asks a second
FOLLOWING: dict[str, dict[str, Any]] = {
    "held": {},
    "behind": {"follow": True, "behind_seconds": 1.0},
    "followed": {"follow": True},
}
PART = 300_000  # rows that are taken in again and again
HOW = f"""\
Ten nearest of {{rows:,}} × 512 with url and caption, caption vectors, recall {{got:.3f}} ({{asked}} asked), embedded,
{{cores}} cores, {ROUNDS} rounds in turns, medians. Each process has a reader (`read_only=True`) and one thread. The
batch is `db.search_many` of {BATCH:,} caption vectors that differ."""
HOW_BESIDE = f"""\
The same searches by {PACED} readers in processes of their own, {EACH} a second each, timed from when they were due.
Another process takes a part of {{part:,}} rows with both vectors into a second table, again and again, and drops it,
at the priority that `clipql ingest` has.
{{cores}} cores, {ROUNDS} rounds of {SECONDS:g} s in turns: readers alone, the ingest alone, both. Held: readers keep
their moment; behind: they may be a second behind (`follow=True, behind_seconds=1`); followed: they take each new
commit before they answer (`follow=True`). Flat out: those that hold ask without a pause."""


@served.pinned()
def compare(rows: int) -> Comparison:
    """One reader beside several, and a batch."""
    cores, part, place = served.cores(), str(data.part(rows)), str(served.database(rows))
    asked, got = served.settled(rows, served.truth(rows))
    one, many, batches = list[float](), list[float](), list[float]()
    with ExitStack() as stack:
        readers = [
            stack.enter_context(child.Worker(read, part=part, place=place, asked=asked)) for _ in range(PROCESSES)
        ]
        for _ in range(ROUNDS):
            one += rates(readers[:1])
            many.append(sum(rates(readers)))
            batches.append(BATCH / readers[0].ask(what="batch"))
    alone, beside, batch = median(one), median(many), median(batches)
    shown = f"{beside:,.0f}/s, one process {alone:,.0f}/s"
    return Comparison(
        "readers",
        "Readers",
        " ".join(HOW.format(rows=rows, got=got, asked=asked, cores=cores).split()),
        (
            Line("one process, one thread", f"{alone:,.0f}/s", "at least 2,500/s", alone >= 2500),
            at_least(f"{PROCESSES} reader processes on {cores} cores", shown, beside / alone, 1.9),
            Line(f"a batch of {BATCH:,} on {cores} cores", f"{batch:,.0f}/s", "at least 9,000/s", batch >= 9000),
        ),
        Plot(
            "readers",
            f"Ten nearest of {rows:,} × 512, embedded, two cores",
            "searches/s",
            {"one process": alone, f"{PROCESSES} processes": beside, "one process, a batch": batch},
            (),
        ),
        {"one": one, "many": many, "batch": batches},
    )


@served.pinned()
def beside_ingest(rows: int) -> Comparison:
    """Readers beside an ingest at full speed, and it beside them."""
    cores, part, place = served.cores(), str(data.part(rows)), str(served.database(rows))
    more = data.part(min(rows, PART))
    asked, _ = served.settled(rows, served.truth(rows))
    idle: dict[str, list[float]] = {"held": [], "behind": [], "followed": [], "flat out": []}
    busy: dict[str, list[float]] = {name: [] for name in idle}
    alone, ingests = list[float](), {name: list[float]() for name in idle}
    with ExitStack() as stack:
        writer = stack.enter_context(child.Worker(take_in, part=str(more), place=place))
        kinds = {
            name: [
                stack.enter_context(child.Worker(read, part=part, place=place, asked=asked, **given))
                for _ in range(PACED)
            ]
            for name, given in FOLLOWING.items()
        }
        writer.ask(seconds=1.0)
        for _ in range(ROUNDS):
            alone.append(writer.ask(seconds=SECONDS))
            for name in idle:
                readers = kinds.get(name, kinds["held"])
                what = {"what": "rate" if name == "flat out" else "paced"}
                idle[name] += together(readers, what)[0]
                found, rate = together(readers, what, writer)
                busy[name] += found
                ingests[name].append(rate)
    lines = []
    for name in FOLLOWING:
        p = {q: tuple(1000 * float(np.quantile(t[name], q)) for t in (idle, busy)) for q in (0.5, 0.99)}
        shown = "; ".join(f"p{100 * q:.0f} {a:.2f} ms alone, {b:.2f} ms beside" for q, (a, b) in p.items())
        ratio = p[0.99][1] / p[0.99][0]
        title = f"readers beside an ingest, {name}"
        if name == "followed":  # each commit costs a refresh
            lines.append(Line(title, f"{shown}: p99 {ratio:.1f} times"))
        else:
            lines.append(at_most(title, f"{shown}: p99 ", ratio, 3, "times"))
        rate = median(ingests[name])
        lines.append(
            at_least(
                f"the ingest beside them, {name}",
                f"{rate:,.0f} rows/s, alone {median(alone):,.0f} rows/s",
                rate / median(alone),
                0.7,
            )
        )
    told = f"{sum(busy['flat out']) / ROUNDS:,.0f}/s, alone {sum(idle['flat out']) / ROUNDS:,.0f}/s; the ingest "
    told += f"{median(ingests['flat out']):,.0f} rows/s"
    lines.append(Line(f"{PACED} readers flat out beside the ingest", told))
    how = " ".join(HOW_BESIDE.format(part=min(rows, PART), cores=cores).split())
    return Comparison("beside-ingest", "Readers beside an ingest", how, tuple(lines))


def rates(readers: Sequence[child.Worker]) -> list[float]:
    """Searches a second of each, all at once."""
    return together(readers, {"what": "rate"})[0]


def together(
    readers: Sequence[child.Worker], what: dict[str, Any], writer: child.Worker | None = None
) -> tuple[list[float], float]:
    """What readers give that do the same at once, and rows a second that a writer takes in meanwhile."""
    found: list[list[float]] = [[] for _ in readers]
    taken = [0.0]

    def work(number: int) -> None:
        found[number] = readers[number].ask(seconds=SECONDS, **what)

    def write(writer: child.Worker) -> None:
        taken[0] = writer.ask(seconds=SECONDS + 0.5)

    running = [threading.Thread(target=work, args=(number,)) for number in range(len(readers))]
    running += [threading.Thread(target=write, args=(writer,))] if writer is not None else []
    for thread in reversed(running):
        thread.start()
    for thread in running:
        thread.join()
    return [each for own in found for each in own], taken[0]


def read(
    part: str, place: str, asked: float, follow: bool = False, behind_seconds: float | None = None
) -> Iterator[Any]:
    """In a child: a reader. It gives rates of searches, seconds of each, or seconds of a batch."""
    import clipql
    from bench.index import queries_of
    from clipql import synthetic

    queries, sql = queries_of(part, "text"), f"{QUERY}{asked}"
    with clipql.connect(place, read_only=True, follow=follow, behind_seconds=behind_seconds) as db:
        for query in queries[:50]:
            db.sql(sql, q=query)

        def rate(seconds: float) -> list[float]:
            count, began = 0, time.perf_counter()
            while (took := time.perf_counter() - began) < seconds:
                db.sql(sql, q=queries[count % len(queries)])
                count += 1
            return [count / took]

        def paced(seconds: float) -> list[float]:
            db.sql(sql, q=queries[0])  # takes what was committed before
            took, began = [], time.perf_counter()
            for count in range(int(seconds * EACH)):
                due = began + count / EACH
                time.sleep(max(0.0, due - time.perf_counter()))
                db.sql(sql, q=queries[count % len(queries)])
                took.append(time.perf_counter() - due)
            return took

        def batch(seconds: float) -> float:
            many = np.asarray(synthetic.world().draw(np.random.default_rng((2, 0, 0, 9)), BATCH).text, np.float32)
            began = time.perf_counter()
            found = db.search_many("laion", vectors=many, k=10, columns=["url", "caption"], recall=asked)
            took = time.perf_counter() - began
            if len(found) != BATCH:
                raise RuntimeError(f"{len(found)} answers")
            return took

        known = {"rate": rate, "paced": paced, "batch": batch}

        def ask(what: str, seconds: float = 0.0) -> Any:
            return known[what](seconds)

        yield ask


def take_in(part: str, place: str) -> Iterator[Any]:
    """In a child: a writer that takes a part in again and again, as `clipql ingest` does. It gives rows a second."""
    import clipql
    from clipql.engine.priority import lower_priority_of_process

    lower_priority_of_process()

    with clipql.connect(place) as db:
        db.sql("DROP TABLE IF EXISTS more")

        def ask(seconds: float) -> float:
            rows, began = 0, time.perf_counter()
            while time.perf_counter() - began < seconds:
                db.ingest(part, table="more")
                rows += int(db.sql("SELECT count() FROM more").rows[0][0])
                db.sql("DROP TABLE more")
            return rows / (time.perf_counter() - began)

        yield ask
