"""`clipql export` and `clipql ddl`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from clipql.cli.commands.common import command, open_database


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = command(
        commands,
        shared,
        "export",
        "send a table with its vectors to a ClickHouse server, or write it as parts; goes on where it stopped",
        run,
    )
    made.add_argument(
        "target",
        metavar="TARGET",
        help="clickhouse://user:password@host:port/database.table (or $CLICKHOUSE_PASSWORD); with --as, a folder",
    )
    made.add_argument(
        "--as",
        dest="form",
        choices=["laion", "parquet", "npy", "webdataset", "faiss", "hf", "lance"],
        help="files instead of a server, row i of each the same row: LAION parts (.npy and Parquet), Parquet alone, "
        ".npy, tars for WebDataset, flat FAISS indexes, a Hugging Face data set, or a Lance one",
    )
    made.add_argument("--where", metavar="CONDITION", help="with --as: these rows only")
    made.add_argument("--rows-per-part", type=int, default=1_000_000, metavar="N", help="(default: 1,000,000)")
    made.add_argument("--table", default="laion", metavar="NAME", help="(default: laion)")
    made.add_argument(
        "--indexes", action="store_true", help="make the table there with vector_similarity indexes (slower to fill)"
    )
    shown = command(commands, shared, "ddl", "print CREATE TABLE for ClickHouse servers", run_ddl)
    shown.add_argument("--table", default="laion", metavar="NAME", help="(default: laion)")
    shown.add_argument("--cluster", metavar="NAME", help="replicated and distributed over this cluster of servers")


def run(arguments: argparse.Namespace) -> int:
    """`clipql export`."""
    from clipql.cluster.export import export

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done:,} of {total:,} rows", end="" if done < total else "\n", file=sys.stderr, flush=True)

    if arguments.form:
        return _parts(arguments, progress)
    with open_database(arguments) as db:
        report = export(db, arguments.table, arguments.target, indexes=arguments.indexes, progress=progress)
    print(f"{report.rows:,} rows are there, {report.sent:,} of them sent now; count and hash agree")
    return 0


def _parts(arguments: argparse.Namespace, progress: Callable[[int, int], None]) -> int:
    from clipql.curate.parts import export_parts

    with open_database(arguments) as db:
        made = export_parts(
            db,
            arguments.table,
            arguments.target,
            where=arguments.where,
            rows_per_part=arguments.rows_per_part,
            form=arguments.form,
            progress=progress,
        )
    print(
        f"{made.rows:,} rows are in {arguments.target}, in {made.parts:,} parts, {made.written:,} of them written now"
    )
    return 0


def run_ddl(arguments: argparse.Namespace) -> int:
    """`clipql ddl`."""
    from clipql.cluster.ddl import create_cluster, create_local, described
    from clipql.engine.quoting import quote_name

    database, _, name = arguments.table.rpartition(".")
    database = database or "default"
    with open_database(arguments) as db:
        shape = described(db, arguments.table)
    if arguments.cluster:
        statements = create_cluster(shape, database, name, arguments.cluster)
    else:
        statements = [create_local(shape, f"{quote_name(database)}.{quote_name(name)}")]
    print("\n\n".join(f"{s};" for s in statements))
    return 0
