"""`clipql ingest`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from clipql.cli.commands.common import command, open_database
from clipql.cli.commands.download import SOURCE, add_fetching, complain, fetching_options
from clipql.errors import IngestError

if TYPE_CHECKING:
    from clipql.cli.console import IngestDisplay
    from clipql.database import Database
    from clipql.ingest.pipeline import IngestReport


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = command(
        commands,
        shared,
        "ingest",
        "take LAION parts (img_emb_N.npy, text_emb_N.npy, metadata_N.parquet), or files whose rows hold their vectors "
        "(Parquet, Arrow, JSON lines, CSV), into a table; what is already there is skipped",
        run,
        others_first=True,
    )
    made.add_argument(
        "sources", nargs="*", metavar="SOURCE", help="folders of parts, files with vectors, or addresses of those"
    )
    made.add_argument("--table", default="laion", metavar="NAME", help="made if it is not there (default: laion)")
    made.add_argument("--parts", metavar="LIST", help="only these, such as 0-9,12")
    made.add_argument("--link", action="store_true", help="use the .npy files where they are instead of copying them")
    made.add_argument("--model", metavar="NAME", help="the model that made the vectors")
    group = made.add_argument_group(
        "files with vectors",
        "Parquet, Arrow and Feather, Lance, JSON lines, CSV; a .npy beside a file has its rows' vectors. What an "
        "address names is fetched file by file: hf://datasets/OWNER/NAME/data/*.parquet, s3://BUCKET/FOLDER/, https://…/a.parquet.",
    )
    group.add_argument(
        "--vector-column",
        action="append",
        default=[],
        metavar="NAME",
        help="a column that holds vectors; again for each (default: those of the table, or lists of one length)",
    )
    group.add_argument(
        "--skip-bad-rows", action="store_true", help="leave out, and count, rows that have no usable vector"
    )
    group.add_argument(
        "--add-column",
        metavar="NAME",
        help="add a vector column to a table that has rows, with one vector of the files for each, in their order",
    )
    group.add_argument(
        "--by", metavar="COLUMN", help="of --add-column: a column of both, which says which vector is whose"
    )
    group = made.add_argument_group(
        "parts from elsewhere", "Each is fetched, taken in and freed: all need the room of a few. --parts is needed."
    )
    group.add_argument("--from", dest="address", metavar="SOURCE", help=SOURCE)
    group.add_argument(
        "--ahead", type=int, default=2, metavar="N", help="parts fetched while one is taken in (default: 2)"
    )
    group.add_argument(
        "--room",
        metavar="FOLDER",
        help="where they lie meanwhile, in a folder `incoming` (default: in that of the database)",
    )
    add_fetching(group)


def run(arguments: argparse.Namespace) -> int:
    """`clipql ingest`."""
    from clipql.cli.console import IngestDisplay, counted, ingest_summary, printable
    from clipql.tables.watchers import watching

    take = _take if arguments.address is None else _take_from
    with open_database(arguments) as db, IngestDisplay(sys.stderr) as display, watching(display.building):
        report = take(arguments, db, display)
        lacking = _lacking(db, arguments) if arguments.add_column else (0, 0)
    complain(report.lost)
    print(ingest_summary(report.rows, report.parts_taken, report.parts_skipped, report.seconds, report.unit))
    for row in report.left_out:
        print(f"left out: {printable(row)}", file=sys.stderr)
    if more := report.rows_left_out - len(report.left_out) if report.left_out else 0:
        print(f"left out: {counted(more, 'more row')}", file=sys.stderr)
    if arguments.add_column:
        rest = (
            f"; {counted(report.rows_left_out, 'row')} of the files are not in the table"
            if report.rows_left_out
            else ""
        )
        print(f"{arguments.add_column} of {arguments.table} {_filled(lacking, report.rows)}{rest}")
        return 0
    if report.rows_left_out and not report.left_out:
        left = "1 row has" if report.rows_left_out == 1 else f"{report.rows_left_out:,} rows have"
        print(f"{left} an error in place of vectors and {'was' if report.rows_left_out == 1 else 'were'} left out")
    if report.rows_left_out or report.rows_skipped:
        there = report.rows + report.rows_left_out + report.rows_skipped
        print(
            f"{counted(there, 'row')} there: {report.rows:,} taken in, {report.rows_left_out:,} left out, "
            f"{report.rows_skipped:,} in {report.unit}s skipped"
        )
    return 1 if report.lost else 0


def _lacking(db: Database, arguments: argparse.Namespace) -> tuple[int, int]:
    """How many rows of the table that is filled have no vector in the column, and how many it has."""
    database, _, name = arguments.table.rpartition(".")
    known = db.registry.find(database or None, name)
    if known is None:
        return 0, 0
    alive = db.registry.alive(known)
    return db.registry.absent(known, arguments.add_column), known.rows if alive is None else int(alive.sum())


def _filled(lacking: tuple[int, int], rows: int) -> str:
    absent, there = lacking
    if not absent:
        return f"has a vector for each of its {there:,} rows"
    return f"got {rows:,} vectors; {absent:,} of {there:,} rows have no vector"


def _take(arguments: argparse.Namespace, db: Database, display: IngestDisplay) -> IngestReport:
    if not arguments.sources:
        raise IngestError("no parts are named: give a folder of parts, files with vectors, or --from and an address")
    given = {
        "parts": arguments.parts,
        "link": arguments.link,
        "vector_column": arguments.vector_column,
        "skip_bad": arguments.skip_bad_rows,
        "add_column": arguments.add_column,
        "by": arguments.by,
    }
    if any("://" in source for source in arguments.sources):
        options = fetching_options(arguments)
        given |= {"room": arguments.room, "rate": options["rate"], "patience": options["patience"]}
        given["fetching"] = display.fetching
    report: IngestReport = db.ingest(
        arguments.sources,
        table=arguments.table,
        model=arguments.model,
        progress=display.update,
        foretold=display.foretold,
        **{name: value for name, value in given.items() if value},
    )
    return report


def _take_from(arguments: argparse.Namespace, db: Database, display: IngestDisplay) -> IngestReport:
    from clipql.ingest.fetch.source import is_address

    if arguments.sources:
        raise IngestError(f"{arguments.sources[0]} and --from {arguments.address}: name the one or the other")
    if arguments.parts is None:
        raise IngestError(f"--from {arguments.address}: say which parts, such as --parts 0-409")
    try:
        address = arguments.address
        if not is_address(address):  # a folder, whose parts are to be copied and not only looked at
            address = "file:" + quote(str(Path(address).absolute()), safe="/{}:")
        report: IngestReport = db.ingest(
            address,
            table=arguments.table,
            parts=arguments.parts,
            link=arguments.link,
            model=arguments.model,
            ahead=arguments.ahead,
            room=arguments.room,
            progress=display.update,
            fetching=display.fetching,
            **fetching_options(arguments),
        )
        return report
    except KeyboardInterrupt:
        print("clipql: stopped; run the same command again to go on with the parts not taken in", file=sys.stderr)
        raise
