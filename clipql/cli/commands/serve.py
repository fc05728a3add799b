"""`clipql serve`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipql.cli.commands.common import command, database_options
from clipql.errors import ServerError

if TYPE_CHECKING:
    from clipql.database import Database


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    folder = database_options(server=False)
    made = command(commands, folder, "serve", "serve the database over HTTP: ClickHouse's protocol, REST, a page", run)
    made.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="address to listen on (default: 127.0.0.1)"
    )
    made.add_argument("--port", type=int, default=8123, metavar="N", help="port; 0 takes a free one (default: 8123)")
    made.add_argument(
        "--token", metavar="TEXT", help="what clients must bring as token or password (default: $CLIPQL_TOKEN)"
    )
    made.add_argument("--model", metavar="NAME", help="of encode_text and encode_image (default: the columns' own)")
    made.add_argument("--write", action="store_true", help="allow INSERT, DELETE, CREATE, ALTER and DROP")
    made.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME", help="a name that the server goes by"
    )
    made.add_argument(
        "--pictures",
        action="append",
        default=[],
        type=Path,
        metavar="FOLDER",
        help="show small pictures of files in this folder only (default: of any that a row names; with --write none)",
    )
    for name, default, unit, what in _LIMITS:
        made.add_argument(
            f"--{name}", type=_positive, default=default, metavar=unit, help=f"{what} (default: {default})"
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


def _absolute(model: str | None) -> str | None:
    """A model that is a folder by its whole path."""
    from clipql.encode.models import BUNDLED

    model = model or os.environ.get("CLIPQL_MODEL") or None
    return os.path.abspath(model) if model and model != BUNDLED and os.path.isdir(model) else model


def _cluster(arguments: argparse.Namespace) -> Database:
    """The shards in a Ray, with their table."""
    from clipql.cluster.database import ClusterDatabase

    if getattr(arguments, "db", None):
        raise ServerError("--db is a folder of this machine and --ray serves shards: give one of them")
    if arguments.parts and not arguments.table:
        raise ServerError("--parts: give --table too, the table that they go into")
    database = ClusterDatabase(
        arguments.ray,
        data=arguments.data,
        shards=arguments.shards,
        replicas=arguments.replicas or 0,
        without=arguments.without,
        model=arguments.model,
    )
    try:
        if arguments.parts:
            database.ingest(arguments.parts, table=arguments.table)
        if arguments.table:
            database.require(arguments.table)
    except BaseException:
        database.close()
        raise
    return database


def run(arguments: argparse.Namespace) -> int:
    """`clipql serve`."""
    from clipql.connection import connect, place
    from clipql.serve import server
    from clipql.serve.limits import Limits, Options

    if getattr(arguments, "url", None):
        raise ServerError("--url names a server that runs already: give --db, the folder to serve")
    token = arguments.token or os.environ.get("CLIPQL_TOKEN") or None
    if token is None and not server.is_loopback(arguments.host):
        raise ServerError(
            f"--host {arguments.host} lets other machines in: give --token (or $CLIPQL_TOKEN), which they must bring"
        )
    limits = Limits(
        seconds=arguments.max_seconds,
        memory=arguments.max_memory << 20,
        rows=arguments.max_rows,
        k=arguments.max_k,
        statement=arguments.max_statement << 10,
        body=arguments.max_body << 20,
        bodies=arguments.max_bodies << 20,
        running=arguments.max_running,
        waiting=arguments.max_waiting,
        connections=arguments.max_connections,
        grace=arguments.grace,
    )
    pictures = tuple(p.absolute() for p in arguments.pictures) or None
    options = Options(token, arguments.write, tuple(arguments.allow_host), pictures, limits)
    bound = server.bind(arguments.host, arguments.port)
    server.log_to_stderr(arguments.log_level)
    url = server.url_of(bound, arguments.host)
    if arguments.ray:
        database = _cluster(arguments)
        try:
            server.serve(database, bound, options, lambda: print(f"clipql serves {database.path} at {url}", flush=True))
        finally:
            database.close()
        return 0
    folder, model = Path(place(getattr(arguments, "db", None))).absolute(), _absolute(arguments.model)
    with server.empty_folder():
        database = connect(folder, model=model)
        try:
            server.serve(database, bound, options, lambda: print(f"clipql serves {folder} at {url}", flush=True))
        finally:
            database.close()
    sys.stdout.flush()
    return 0
