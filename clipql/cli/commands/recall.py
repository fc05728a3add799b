"""`clipql recall`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clipql.cli.commands.common import command, open_database, read_array, vector_file


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = command(
        commands,
        shared,
        "recall",
        "measure the indexes of a column against the exact scan on one's own queries",
        run,
    )
    made.add_argument("--table", default="laion", metavar="NAME", help="(default: laion)")
    made.add_argument("--column", default="image_embedding", metavar="NAME", help="(default: image_embedding)")
    made.add_argument(
        "--queries",
        required=True,
        type=vector_file,
        metavar="@FILE.npy",
        help="query vectors, (n, d), from a numpy file",
    )
    made.add_argument("-k", type=int, default=10, metavar="K", help="rows a query (default: 10)")
    made.add_argument("--index", metavar="NAME", help="only this index (default: all of the column)")
    made.add_argument("--plot", type=Path, metavar="FILE.png", help="draw recall against latency")


def run(arguments: argparse.Namespace) -> int:
    """`clipql recall`."""
    from clipql.curate.evaluate import evaluate

    queries = read_array(arguments.queries)
    with open_database(arguments) as db:
        measured = evaluate(db, arguments.table, queries, column=arguments.column, k=arguments.k, index=arguments.index)
    if arguments.plot:
        measured.plot(arguments.plot)
    print(f"{measured.table}.{measured.column}, {measured.queries} queries, one at a time")
    heads = f"{'recall@' + str(measured.k):>10} {'median ms':>10} {'p95 ms':>10} {'rescored':>9}"
    print(f"{'index':28} {'setting':18} {heads}")
    for p in measured.points:
        times = f"{p.median_seconds * 1e3:10.3f} {p.p95_seconds * 1e3:10.3f}"
        print(f"{p.index:28} {p.setting:18} {p.recall:10.3f} {times} {p.rescored:9.0f}")
    return 0
