"""Measures, prints each line as it is known, and writes docs/benchmarks.md.

    python -m bench.run [--only exact,ingest] [--rows 300000]

Data are kept under bench/data and results in bench/measured; a comparison that is not run again keeps its last result,
date and machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable

from bench import (
    cluster,
    curation,
    dimensions,
    encode_speed,
    encode_sql,
    exact,
    index,
    ingest,
    ingest_parquet,
    kernel,
    native,
    page_speed,
    proven,
    readers,
    report,
    results,
    serve_load,
    serve_peers,
    serve_workers,
    start,
    statements,
    structures,
    tutorial,
)
from bench.results import Comparison

COMPARISONS: dict[str, Callable[[int], Comparison]] = {
    "exact": exact.compare,
    "kernel": kernel.compare,
    "ingest": ingest.compare,
    "ingest-parquet": ingest_parquet.compare,
    "tutorial": tutorial.compare,
    "memory": ingest.memory,
    "start": start.compare,
    "curation": curation.compare,
}
# an hour more, so only when they are named
LONG: dict[str, Callable[[int], Comparison]] = {
    "index": index.compare_call,
    "structures": structures.compare,
    "captions": structures.captions,
    "proven": proven.compare,
    "statements": statements.compare,
    "index-sql": index.compare_sql,
    "filters": index.compare_filters,
    "growth": index.compare_growth,
    "dimensions": dimensions.compare,
    "encode-text": encode_speed.text,
    "encode-pictures": encode_speed.pictures,
    "encode-sql": encode_sql.compare,
    "readers": readers.compare,
    "beside-ingest": readers.beside_ingest,
    "serve": serve_load.compare,
    "workers": serve_workers.compare,
    "serve-peers": serve_peers.compare,
    "native": native.compare,
    "page": page_speed.compare,
    "cluster": cluster.compare,
}


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--only",
        default=",".join(COMPARISONS),
        metavar="NAMES",
        help=f"of %(default)s and, an hour more, {','.join(LONG)}",
    )
    parser.add_argument("--rows", type=int, default=300_000, help="rows of the part (%(default)s)")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    every = {**COMPARISONS, **LONG}
    if unknown := sorted(set(names) - set(every)):
        parser.error(f"--only {', '.join(unknown)}: expected some of {', '.join(every)}")
    for name in names:
        began = time.perf_counter()
        found = every[name](arguments.rows)
        results.save(dataclasses.replace(found, when=time.strftime("%Y-%m-%d"), machine=report.machine()))
        for line in found.lines:
            print(line.work, line.measured, line.bar, {True: "met", False: "MISSED", None: ""}[line.met], sep=" | ")
        print(f"({name}: {time.perf_counter() - began:.0f} s)", flush=True)
    kept = results.load()
    print(report.write({name: kept[name] for name in every if name in kept}))


if __name__ == "__main__":
    main()
