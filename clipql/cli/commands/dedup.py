"""`clipql dedup`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from clipql.cli.commands.common import DEVICE, command, open_database


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = command(
        commands,
        shared,
        "dedup",
        "group near duplicates into a table of (id, group, kept, distance)",
        run,
        others_first=True,
    )
    made.add_argument("--table", default="laion", metavar="NAME", help="(default: laion)")
    made.add_argument("--column", default="image_embedding", metavar="NAME", help="(default: image_embedding)")
    made.add_argument(
        "--within", required=True, type=float, metavar="DISTANCE", help="duplicates are nearer than this to each other"
    )
    made.add_argument("--metric", default="cosineDistance", metavar="NAME", help="(default: cosineDistance)")
    made.add_argument(
        "--keep",
        default="min(_row)",
        metavar="EXPRESSION",
        help='the row of a group that is kept, as "max(similarity)" (default: the first)',
    )
    made.add_argument("--id", default="id", metavar="EXPRESSION", help="what names a row (default: the column id)")
    made.add_argument("--where", metavar="CONDITION", help="look at these rows only")
    made.add_argument(
        "--recall", default=0.999, type=float, metavar="SHARE", help="of the pairs to find (default: 0.999; 1: all)"
    )
    made.add_argument("--device", default="cpu", metavar="NAME", help=DEVICE)
    made.add_argument("--into", metavar="TABLE", help="the table to make")
    made.add_argument("--forecast", action="store_true", help="say what it would take, and do nothing")
    made.add_argument("--rows", type=int, metavar="N", help="with --forecast: for a table of so many rows")


def run(arguments: argparse.Namespace) -> int:
    """`clipql dedup`."""
    from clipql.cli.console import Line
    from clipql.curate.dedup import dedup, forecast
    from clipql.errors import ClipqlError

    if not arguments.into and not arguments.forecast:
        raise ClipqlError("name the table to make: --into dups")

    line = Line(sys.stderr)
    with open_database(arguments) as db:
        if arguments.forecast:
            told = forecast(db, arguments.table, arguments.column, arguments.rows)
            print(f"{told.rows:,} rows: about {told.pairs:.2g} pairs to compare")
            print(f"{told.seconds / 3600:,.2f} hours on two cores, {told.bytes / 1e9:,.1f} GB of memory")
            return 0
        found = dedup(
            db,
            arguments.table,
            into=arguments.into,
            within=arguments.within,
            column=arguments.column,
            metric=arguments.metric,
            keep=arguments.keep,
            id=arguments.id,
            where=arguments.where,
            device=arguments.device,
            recall=arguments.recall,
            progress=line.stage,
        )
    line.clear()
    sure = (
        "all pairs were compared"
        if not found.checked
        else (f"{found.recall:.2%} of {found.checked:,} pairs of sample rows are found")
    )
    print(f"{found.rows:,} rows, {found.groups:,} groups, {found.duplicates:,} rows besides those kept")
    print(f"{sure}; {found.seconds:.1f} s")
    gone = f"(SELECT id FROM {arguments.into} WHERE NOT kept)"
    print(f"to take them out: DELETE FROM {arguments.table} WHERE {arguments.id} IN {gone}")
    return 0
