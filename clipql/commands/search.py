"""`clipql search`."""

from __future__ import annotations

import argparse
from typing import Any

from clipql.commands.common import FORMATS, command, open_database, print_answer, read_vector, vector_file


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = command(commands, shared, "search", "print the rows of a table that are nearest to a vector", run)
    made.add_argument("--table", default="laion", metavar="NAME", help="(default: laion)")
    made.add_argument(
        "--vector", required=True, type=vector_file, metavar="@FILE.npy", help="the query vector, from a numpy file"
    )
    made.add_argument("-k", type=int, default=10, metavar="K", help="number of rows (default: 10)")
    made.add_argument("--where", metavar="SQL", help='a condition on the columns, such as "similarity > 0.3"')
    made.add_argument("--column", default="image_embedding", metavar="NAME", help="(default: image_embedding)")
    made.add_argument("--columns", metavar="LIST", help="columns to print (default: all but the vectors)")
    made.add_argument("--distance", default="cosineDistance", metavar="NAME", help="(default: cosineDistance)")
    made.add_argument("--format", metavar="NAME", help=FORMATS)


def run(arguments: argparse.Namespace) -> int:
    """`clipql search`."""
    vector = read_vector(arguments.vector)
    with open_database(arguments) as db:
        statement = db.search_sql(
            arguments.table,
            k=arguments.k,
            where=arguments.where,
            column=arguments.column,
            columns=[c.strip() for c in arguments.columns.split(",")] if arguments.columns else None,
            distance=arguments.distance,
        )
        print_answer(db, statement, {"query": vector}, arguments.format)
    return 0
