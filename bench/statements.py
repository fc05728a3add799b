"""What surrounds a search: whole statements beside the index call they rest on, on more threads, and `db.search`
beside rabitqlib's own call.

It builds an index of a million rows, so `make bench` leaves it out: make bench ARGS="--only statements".
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench import child, data
from bench.index import QUERIES, ROWS, K, call_rabitqlib, cheapest, queries_of, recall, true_of
from bench.results import Comparison, Line, Plot, at_least, at_most, median

ROUNDS, EACH = 5, 400
THREADS = (1, 2, 4, 8)
RECALL, ASKED = 0.95, [n / 200 for n in range(150, 191)]
BY = "cosineDistance(image_embedding, {q:Array(Float32)})"
QUERY = f"SELECT url, caption, {BY} AS d FROM laion ORDER BY d LIMIT {K} SETTINGS recall = "
HOW = f"""\
`{QUERY}…` over {ROWS:,} rows with an ivf index, {QUERIES} caption vectors that are in none of them, text in to rows
out. The recall asked for is the least that gives {RECALL} on these queries: what is promised holds for a caption's own
picture, too, which queries of strangers do not have, and which takes more lists. The last line asks for {RECALL}.
The index call alone and the whole statement take turns, query by query; what the statement adds is the median of the
differences. With more threads, all of them share the database in one process. First seen: another alias in each
statement. `db.search` and rabitqlib's call run on one core each, in turns, rabitqlib at its cheapest setting that
reaches the same recall, all queries in one call."""


def compare(rows: int) -> Comparison:
    """The statement, its threads, and `db.search` beside rabitqlib."""
    part = data.part(ROWS)
    places = [data.fresh(f"statements-{name}") for name in ("clipql", "rabitqlib")]
    true = child.run(true_of, part=str(part), kind="text")
    with child.Worker(serve, part=str(part), place=str(places[0])) as clipql:
        asked, got = clipql.ask(what="settle", true=true)
        found = [clipql.ask(what="statement") for _ in range(ROUNDS)]
        rates = {t: median([clipql.ask(what="threads", threads=t) for _ in range(3)]) for t in THREADS}
        first = clipql.ask(what="first")
        promised = clipql.ask(what="promised")
        search = clipql.ask(what="search", true=true)
    theirs = child.run(call_rabitqlib, part=str(part), kind="text", place=str(places[1]), true=true)
    search = max(
        search, child.run(again, place=str(places[0]), part=str(part), true=true, asked=asked), key=lambda s: s["rate"]
    )
    data.clear(*places, places[1].parent / "index-lists.npz")
    reached, seconds, setting = cheapest([(p[0], p[1], p[2]) for p in theirs], search["recall"])
    call, whole, added = (median([f[name] for f in found]) for name in ("call", "whole", "added"))
    work = f"top-10 in SQL, url and caption, recall {got:.3f} ({asked} asked)"
    beside = f"db.search {search['rate']:,.0f}/s at {search['recall']:.3f}, rabitqlib {1 / seconds:,.0f}/s at "
    return Comparison(
        "statements",
        "Statements around a search",
        HOW,
        (
            at_most(f"{work}: what it adds to the index call", f"{call:.3f} ms in {whole:.3f} ms: ", added, 0.2, "ms"),
            Line(f"{work}, one thread", f"{rates[1]:,.0f}/s", "at least 2,500/s", rates[1] >= 2500),
            Line("the same on 2 and 4 threads", f"{rates[2]:,.0f}/s, {rates[4]:,.0f}/s"),
            at_least("the same on 8 threads", f"{rates[8]:,.0f}/s", rates[8] / rates[1], 1.0),
            at_least("`db.search`, one core", f"{beside}{reached:.3f} ({setting})", search["rate"] * seconds, 2.5),
            Line("a statement that was never asked before", f"{first:.2f} ms"),
            Line(f"{RECALL} asked, and got for own pictures too: one thread", f"{promised:,.0f}/s"),
        ),
        Plot(
            "statements",
            f"Top-10 in SQL over {ROWS:,} × 512, queries/s",
            "queries/s",
            {f"{t} thread{'s' * (t > 1)}": rate for t, rate in rates.items()},
            (),
        ),
    )


def serve(part: str, place: str) -> Iterator[Any]:
    """In a child: clipql with the part taken in, and its index."""
    import clipql

    queries = queries_of(part, "text")
    with clipql.connect(place) as db:
        db.ingest(part, table="laion")
        db.sql("ALTER TABLE laion ADD INDEX near image_embedding TYPE ivf('cosineDistance')")
        db.sql("ALTER TABLE laion MATERIALIZE INDEX near")
        table = db.registry.find("default", "laion")
        assert table is not None
        index = db.indexes._open(table, table.indexes[0])

        asked = [RECALL]

        def settle(true: list[list[int]]) -> tuple[float, float]:
            numbers = row_numbers(db)
            for one in ASKED:
                found = [[numbers[r[0]] for r in db.sql(f"{QUERY}{one}", q=q).rows] for q in queries]
                asked[0], got = one, recall(found, np.array(true))
                if got >= RECALL:
                    break
            return asked[0], got

        def statement() -> dict[str, float]:
            calls, wholes = [], []
            for query in queries[:EACH]:
                began = time.perf_counter()
                index.search(query, K, knobs={"recall": asked[0]})
                calls.append(time.perf_counter() - began)
                began = time.perf_counter()
                db.sql(f"{QUERY}{asked[0]}", q=query)
                wholes.append(time.perf_counter() - began)
            added = np.array(wholes) - np.array(calls)
            return {
                name: 1000 * float(np.median(v)) for name, v in (("call", calls), ("whole", wholes), ("added", added))
            }

        def on_threads(threads: int) -> float:
            def work(first: int) -> None:
                for i in range(3000 // threads):
                    db.sql(f"{QUERY}{asked[0]}", q=queries[(first * 97 + i) % len(queries)])

            running = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
            began = time.perf_counter()
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
            return 3000 // threads * threads / (time.perf_counter() - began)

        def first() -> float:
            times = []
            for i, query in enumerate(queries[:EACH]):
                sql = f"{QUERY}{asked[0]}".replace(" AS d", f" AS d{i}").replace("ORDER BY d", f"ORDER BY d{i}")
                began = time.perf_counter()
                db.sql(sql, q=query)
                times.append(time.perf_counter() - began)
            return 1000 * median(times[EACH // 4 :])

        def promised() -> float:
            before, asked[0] = asked[0], RECALL
            rate = on_threads(1)
            asked[0] = before
            return rate

        for _ in range(2):
            statement()

        def ask(what: str, threads: int = 1, true: list[list[int]] | None = None) -> Any:
            if what == "settle":
                return settle(true or [])
            if what == "promised":
                return promised()
            if what == "search":
                return searched(db, queries, true or [], asked[0])
            return on_threads(threads) if what == "threads" else {"statement": statement, "first": first}[what]()

        yield ask


def again(place: str, part: str, true: list[list[int]], asked: float) -> dict[str, float]:
    """In a child: `db.search` once more, on the database that is there."""
    import clipql

    with clipql.connect(place) as db:
        return searched(db, queries_of(part, "text"), true, asked)


def row_numbers(db: Any) -> dict[str, int]:
    """The number of each row by its url."""
    urls = db.sql("SELECT url FROM laion ORDER BY _row").arrow()["url"].to_pylist()
    return {url: row for row, url in enumerate(urls)}


def searched(db: Any, queries: np.ndarray[Any, Any], true: list[list[int]], asked: float) -> dict[str, float]:
    """What `db.search` does on one core: queries/s, and the recall it gets."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    numbers = row_numbers(db)
    found = [db.search("laion", vector=q, k=K, columns=["url", "caption"], recall=asked) for q in queries]
    rates = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for query in queries:
            db.search("laion", vector=query, k=K, columns=["url", "caption"], recall=asked)
        rates.append(len(queries) / (time.perf_counter() - began))
    rows = [[numbers[r[0]] for r in f.rows] for f in found]
    return {"rate": median(rates), "recall": recall(rows, np.array(true))}
