"""`clipql serve`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from clipql.cli.commands.common import command, database_options


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    folder = database_options(server=False, reads=False)
    made = command(commands, folder, "serve", "serve the database over HTTP: ClickHouse's protocol, REST, a page", run)
    made.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)"
    )
    made.add_argument("--port", type=int, default=8123, metavar="N", help="port; 0 takes a free one (default: 8123)")
    made.add_argument(
        "--tcp-port",
        type=int,
        metavar="N",
        help="port of ClickHouse's native protocol, often 9000; 0 takes a free one (default: not served)",
    )
    made.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate (PEM): HTTPS, and TLS on --tcp-port")
    made.add_argument("--tls-key", type=Path, metavar="FILE", help="its key (default: in the file of the certificate)")
    made.add_argument(
        "--token", metavar="TEXT", help="what clients must bring as token or password (default: $CLIPQL_TOKEN)"
    )
    made.add_argument("--model", metavar="NAME", help="of encode_text and encode_image (default: the columns' own)")
    made.add_argument("--write", action="store_true", help="allow INSERT, DELETE, CREATE, ALTER and DROP")
    made.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name that the server goes by"
    )
    made.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="a site whose pages may ask what clip-retrieval's front asks, as https://front.example",
    )
    made.add_argument(
        "--pictures",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="show small pictures of files in this folder only (default: of any that a row names; with --write none)",
    )
    made.add_argument(
        "--fetch-pictures",
        action="store_true",
        help="fetch the picture at an address of the public web that is searched by (default: nothing is fetched)",
    )
    made.add_argument(
        "--fetch-from",
        action="append",
        default=[],
        metavar="HOST",
        help="with --fetch-pictures: a host that may be asked though it is in a private network",
    )
    for name, default, unit, what in _LIMITS:
        made.add_argument(
            f"--{name}", type=_positive, default=default, metavar=unit, help=f"{what} (default: {default})"
        )
    made.add_argument(
        "--sandbox",
        choices=("auto", "require", "off"),
        default="auto",
        help="have the kernel close other files, programs and the network: as far as it can, wholly or not at all "
        "(default: auto)",
    )
    made.add_argument(
        "--workers",
        type=_workers,
        default=1,
        metavar="N",
        help="processes that answer what reads, beside one that writes; auto is one a core, up to 8 (default: 1, one "
        "process that does both)",
    )
    ray = made.add_argument_group("over many machines (pip install 'clipql[ray]')")
    ray.add_argument("--ray", metavar="ADDRESS", help="serve shards in the Ray at host:port; local starts one here")
    ray.add_argument(
        "--shards", type=_positive, metavar="N", help="shards to make, with --replicas (default: one a node)"
    )
    ray.add_argument(
        "--replicas", type=_positive, metavar="N", help="replicas of each shard; makes the shards where there are none"
    )
    ray.add_argument("--data", metavar="FOLDER", help="where each node keeps its replicas (default: in its home)")
    ray.add_argument(
        "--without", action="append", default=[], metavar="NODE", help="go on without a node that is lost for good"
    )
    ray.add_argument("--table", metavar="NAME", help="a table that must be there, or is made of --parts")
    ray.add_argument("--parts", type=Path, metavar="FOLDER", help="take these parts into --table first")
    made.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="(default: info)"
    )


# options with their units
_LIMITS = (
    ("max-seconds", 60, "SECONDS", "that one query may take"),
    ("max-memory", 4096, "MB", "that one query may take within ClickHouse"),
    ("max-rows", 10_000_000, "N", "rows of one result"),
    ("max-k", 1000, "N", "rows of one search through REST"),
    ("max-statement", 256, "KB", "of SQL in one statement, the data of an INSERT apart"),
    ("max-body", 256, "MB", "of one request, as it comes and unpacked"),
    ("max-bodies", 1024, "MB", "of all requests that are held at once; more are told to come back (429)"),
    ("max-running", 8, "N", "requests that run at once"),
    ("max-waiting", 64, "N", "requests that wait; more are told to come back (429)"),
    ("max-connections", 512, "N", "open at once; for one more, the one that is idle for longest is closed"),
    ("grace", 1, "SECONDS", "that what runs at SIGTERM may still take; a second SIGTERM ends at once"),
)


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


def _workers(text: str) -> int:
    if text == "auto":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(8, cores)
    return _positive(text)


def run(arguments: argparse.Namespace) -> int:
    """`clipql serve`."""
    from clipql.cli import serving  # loads the sandbox and TLS, which no other command waits for

    return serving.run(arguments)
