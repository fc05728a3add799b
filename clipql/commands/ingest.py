"""`clipql ingest`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from clipql.commands.common import command, open_database


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = command(
        commands,
        shared,
        "ingest",
        "take LAION parts (img_emb_N.npy, text_emb_N.npy, metadata_N.parquet) "
        "into a table; a part already there is skipped",
        run,
    )
    made.add_argument("sources", nargs="+", metavar="SOURCE", help="a folder of parts")
    made.add_argument("--table", default="laion", metavar="NAME", help="made if it is not there (default: laion)")
    made.add_argument("--parts", metavar="LIST", help="only these, such as 0-9,12")
    made.add_argument("--link", action="store_true", help="use the .npy files where they are instead of copying them")
    made.add_argument("--model", metavar="NAME", help="the model that made the vectors")


def run(arguments: argparse.Namespace) -> int:
    """`clipql ingest`."""
    from clipql.console import IngestDisplay, ingest_summary
    from clipql.tables.indexes import watching

    with open_database(arguments) as db, IngestDisplay(sys.stderr) as display, watching(display.building):
        report = db.ingest(
            arguments.sources,
            table=arguments.table,
            parts=arguments.parts,
            link=arguments.link,
            model=arguments.model,
            progress=display.update,
        )
    print(ingest_summary(report.rows, report.parts_taken, report.parts_skipped, report.seconds))
    if report.rows_left_out:
        left = "1 row has" if report.rows_left_out == 1 else f"{report.rows_left_out:,} rows have"
        print(f"{left} an error in place of vectors and {'was' if report.rows_left_out == 1 else 'were'} left out")
    return 0
