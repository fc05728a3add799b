"""`clipql takedown`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from clipql.cli.commands.common import command, open_database, read_array, vector_file


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = command(
        commands,
        shared,
        "takedown",
        "delete rows by ids, urls or pictures, have their bytes go, and report it",
        run,
    )
    by = made.add_mutually_exclusive_group(required=True)
    by.add_argument("--ids", type=Path, metavar="FILE", help="rows with these ids, one a line (- for standard input)")
    by.add_argument("--urls", type=Path, metavar="FILE", help="rows with these urls, one a line (- for standard input)")
    by.add_argument("--pictures", nargs="+", metavar="FILE", help="rows that look like these pictures")
    by.add_argument("--vectors", type=vector_file, metavar="@FILE.npy", help="rows near these vectors, (n, d)")
    made.add_argument(
        "--within", type=float, metavar="DISTANCE", help="of pictures and vectors: the largest cosine distance"
    )
    made.add_argument("--table", default="laion", metavar="NAME", help="(default: laion)")
    made.add_argument("--column", default="image_embedding", metavar="NAME", help="(default: image_embedding)")
    made.add_argument("--id", default="id", metavar="EXPRESSION", help="what names a row (default: the column id)")
    made.add_argument("--url-column", default="url", metavar="EXPRESSION", help="of --urls (default: the column url)")
    made.add_argument("--report", type=Path, metavar="FILE.json", help="what was asked, found, removed and looked for")
    made.add_argument("--dry-run", action="store_true", help="say which rows would go, and change nothing")
    made.add_argument("--keep-bytes", action="store_true", help="leave OPTIMIZE, which rewrites the table, for later")


def run(arguments: argparse.Namespace) -> int:
    """`clipql takedown`."""
    from clipql.cli.console import Line, printable
    from clipql.curate.takedown import takedown

    line = Line(sys.stderr)
    with open_database(arguments) as db:
        done = takedown(
            db,
            arguments.table,
            ids=_lines(arguments.ids),
            urls=_lines(arguments.urls),
            pictures=arguments.pictures,
            vectors=None if arguments.vectors is None else read_array(arguments.vectors),
            within=arguments.within,
            column=arguments.column,
            id=arguments.id,
            url=arguments.url_column,
            erase=not arguments.keep_bytes,
            dry=arguments.dry_run,
            progress=line.stage,
        )
    line.clear()
    if arguments.report:
        done.write(arguments.report)
    for what in done.missing:
        print(f"clipql: nothing is there of {printable(what)}", file=sys.stderr)
    verb = "would go" if arguments.dry_run else "are gone"
    print(f"{done.removed:,} rows {verb} from {done.table}, {done.left:,} rows are there")
    if done.erased:
        print(f"{done.files:,} files with {done.bytes:,} bytes were looked for afterwards, and are gone")
    elif done.removed and not arguments.dry_run:
        print(f"their bytes go with OPTIMIZE TABLE {done.table} FINAL")
    if done.still:
        print(f"{len(done.still):,} files still have bytes of them, as {printable(done.still[0])}")
    if done.copies:
        print(f"{len(done.copies):,} rows that are left have the same vectors, as id {printable(done.copies[0])}")
    return 1 if done.still else 0


def _lines(path: Path | None) -> list[str] | None:
    """The lines of a file that are not empty."""
    if path is None:
        return None
    text = sys.stdin.read() if str(path) == "-" else path.read_text("utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]
