"""`clipql search`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clipql.cli.commands.common import FORMATS, command, open_database, print_answer, read_vector, vector_file


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = command(
        commands, shared, "search", "print the rows of a table that are nearest to words, a picture or a vector", run
    )
    by = made.add_mutually_exclusive_group(required=True)
    by.add_argument("text", nargs="?", metavar="TEXT", help="words to look for")
    by.add_argument("--image", type=Path, metavar="FILE", help="a picture to look for others like it")
    by.add_argument("--vector", type=vector_file, metavar="@FILE.npy", help="a query vector, from a numpy file")
    made.add_argument("--table", default="laion", metavar="NAME", help="(default: laion)")
    made.add_argument("-k", type=int, default=10, metavar="K", help="number of rows (default: 10)")
    made.add_argument("--where", metavar="SQL", help='a condition on the columns, such as "similarity > 0.3"')
    made.add_argument("--column", default="image_embedding", metavar="NAME", help="(default: image_embedding)")
    made.add_argument("--columns", metavar="LIST", help="columns to print (default: all but the vectors)")
    made.add_argument("--distance", default="cosineDistance", metavar="NAME", help="(default: cosineDistance)")
    made.add_argument("--recall", type=float, metavar="R", help="what an index must reach (default: 0.95)")
    made.add_argument("--hybrid", action="store_true", help="look for the words themselves, too, and rank by both")
    made.add_argument(
        "--words", metavar="NAME", help="of --hybrid: the column (default: the one with a text index, or caption)"
    )
    made.add_argument("--model", metavar="NAME", help="model of the words or the picture (default: the column's own)")
    made.add_argument("--format", metavar="NAME", help=FORMATS)


def run(arguments: argparse.Namespace) -> int:
    """`clipql search`."""
    query: Any
    if arguments.vector is not None:
        by, query = "vector", read_vector(arguments.vector)
    elif arguments.image is not None:
        by, query = "image", str(arguments.image)
    else:
        by, query = "text", arguments.text
    with open_database(arguments) as db:
        if arguments.model:
            db.encoders.default = arguments.model
        statement = db.search_sql(
            arguments.table,
            by=by,
            k=arguments.k,
            where=arguments.where,
            column=arguments.column,
            columns=[c.strip() for c in arguments.columns.split(",")] if arguments.columns else None,
            distance=arguments.distance,
            recall=arguments.recall,
            **({"hybrid": arguments.hybrid, "words": arguments.words} if arguments.hybrid or arguments.words else {}),
        )
        print_answer(db, statement, {"query": query}, arguments.format)
    return 0
