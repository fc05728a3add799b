"""`clipql cluster-rows`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from clipql.cli.commands.common import DEVICE, command, open_database


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = command(
        commands,
        shared,
        "cluster-rows",
        "group the rows of a column by k-means, into a table of (id, cluster, distance)",
        run,
        others_first=True,
    )
    made.add_argument("--table", default="laion", metavar="NAME", help="(default: laion)")
    made.add_argument("--column", default="image_embedding", metavar="NAME", help="(default: image_embedding)")
    made.add_argument("--k", required=True, type=int, metavar="K", help="how many clusters")
    made.add_argument(
        "--metric", default="cosineDistance", metavar="NAME", help="or L2Distance (default: cosineDistance)"
    )
    made.add_argument("--id", default="id", metavar="EXPRESSION", help="what names a row (default: the column id)")
    made.add_argument("--where", metavar="CONDITION", help="look at these rows only")
    made.add_argument("--iterations", default=10, type=int, metavar="N", help="of k-means (default: 10)")
    made.add_argument("--device", default="cpu", metavar="NAME", help=DEVICE)
    made.add_argument("--into", required=True, metavar="TABLE", help="the table to make")
    made.add_argument("--centroids", metavar="TABLE", help="a table to make of (cluster, rows, centroid)")


def run(arguments: argparse.Namespace) -> int:
    """`clipql cluster-rows`."""
    from clipql.cli.console import Line
    from clipql.curate.clusters import cluster_rows

    line = Line(sys.stderr)
    with open_database(arguments) as db:
        made = cluster_rows(
            db,
            arguments.table,
            into=arguments.into,
            k=arguments.k,
            column=arguments.column,
            metric=arguments.metric,
            centroids=arguments.centroids,
            id=arguments.id,
            where=arguments.where,
            device=arguments.device,
            iterations=arguments.iterations,
            progress=line.stage,
        )
    line.clear()
    print(f"{made.rows:,} rows in {made.k:,} clusters, mean squared distance {made.inertia:.4g}; {made.seconds:.1f} s")
    return 0
