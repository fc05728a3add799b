"""`clipql evaluate retrieval`."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from clipql.cli.commands.common import command, open_database


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = command(commands, None, "evaluate", "measure the vectors of a table as papers do", run_help)
    made.set_defaults(made=made)
    under = made.add_subparsers(metavar="WHAT", title="what")
    one = command(under, shared, "retrieval", "R@K and median rank of captions to pictures, and back", run_retrieval)
    one.add_argument("--table", default="laion", metavar="NAME", help="(default: laion)")
    one.add_argument("--pictures", default="image_embedding", metavar="NAME", help="(default: image_embedding)")
    one.add_argument("--captions", default="text_embedding", metavar="NAME", help="(default: text_embedding)")
    one.add_argument("--where", metavar="CONDITION", help="these rows only, as a test split")
    one.add_argument(
        "--picture",
        metavar="EXPRESSION",
        help="what tells pictures apart, where each has several captions (default: each row is a picture)",
    )
    one.add_argument("--queries", type=int, metavar="N", help="so many at random of each kind (default: all)")
    one.add_argument("-k", type=int, nargs="+", default=[1, 5, 10], metavar="K", help="(default: 1 5 10)")


def run_help(arguments: argparse.Namespace) -> int:
    """`clipql evaluate`."""
    arguments.made.print_usage(sys.stderr)
    return 2


def run_retrieval(arguments: argparse.Namespace) -> int:
    """`clipql evaluate retrieval`."""
    from clipql.cli.console import Line
    from clipql.curate.retrieval import evaluate_retrieval

    line = Line(sys.stderr)
    with open_database(arguments) as db:
        found = evaluate_retrieval(
            db,
            arguments.table,
            pictures=arguments.pictures,
            captions=arguments.captions,
            where=arguments.where,
            picture=arguments.picture,
            queries=arguments.queries,
            ks=arguments.k,
            progress=lambda done, total: line.stage("comparing", done, total),
        )
    line.clear()
    heads = "".join(f" {'R@' + str(k):>7}" for k in found.ks)
    print(f"{'':20} {'by':24} {'queries':>9} {'among':>11}{heads} {'median':>7} {'seconds':>8}")
    for each in found.lines:
        shares = "".join(f" {100 * r:7.2f}" for r in each.recalls)
        middle = f"> {max(found.ks)}" if each.median_rank is None else f"{each.median_rank:g}"
        counts = f"{each.queries:9,} {each.candidates:11,}"
        print(f"{each.direction:20} {each.by:24} {counts}{shares} {middle:>7} {each.seconds:8.2f}")
    return 0
