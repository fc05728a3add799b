"""`clipql serve`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipql.cli.commands.common import command, database_options
from clipql.cli.kernels_ahead import compile_ahead
from clipql.connection import place
from clipql.errors import NotADatabase, ServerError
from clipql.serve import layout, listening, sandbox, scratch
from clipql.serve.limits import Limits, Options
from clipql.serve.listening import Doors
from clipql.serve.picture_files import Helper
from clipql.storage import catalog

if TYPE_CHECKING:
    from clipql.database import Database


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
    for name, default, unit, what in _LIMITS:
        made.add_argument(
            f"--{name}", type=_positive, default=default, metavar=unit, help=f"{what} (default: {default})"
        )
    made.add_argument(
        "--sandbox",
        choices=sandbox.MODES,
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


def _in_folder(arguments: argparse.Namespace, doors: Doors, options: Options, model: str | None) -> int:
    """Serve a folder, behind the kernel's wall: it goes up before the engine and all that has threads is loaded."""
    folder = Path(place(getattr(arguments, "db", None))).absolute()
    mode, write = arguments.sandbox, options.write
    if not write and not (folder / catalog.NAME).exists():
        raise NotADatabase(
            f"there is no database at {folder}, and a server that only reads makes none: name another with --db, make "
            "one with `clipql ingest`, or give --write"
        )
    if arguments.workers > 1:
        if not write and not scratch.is_settled(folder):
            with scratch.opened(folder) as own:
                scratch.in_child(lambda: _settle(folder, own, model, mode))
        from clipql.serve.workers.fleet import Fleet

        fleet = Fleet(folder, arguments.workers, options, model, mode, arguments.log_level)
        return fleet.serve(doors, _ready(folder, doors))
    with scratch.opened(folder) as own, ExitStack() as held:
        if not write and not scratch.is_settled(folder):
            scratch.in_child(lambda: _settle(folder, own, model, mode))
        apart = not write and mode != "off" and (folder / "engine").is_dir()
        if apart:
            own.link_engine(folder / "engine")
        known = catalog.load(folder) if (folder / catalog.NAME).exists() else catalog.Catalog()
        helper = None
        if mode != "off" and (options.pictures or not write):
            helper = Helper(options.picture_folders(folder), mode)
            held.callback(helper.close)
        points = layout.Helper(mode) if layout.is_there() else None
        if points is not None:
            held.callback(points.close)
        plan = sandbox.of_server(folder, own, known, model, write=write)
        options = replace(options, opener=helper, layout=points, sandbox=sandbox.apply(plan, mode))
        from clipql.database import Database
        from clipql.serve import server
        from clipql.serve.logs import log_to_stderr

        log_to_stderr(arguments.log_level)
        with Database(folder, model=model, engine=own.engine if apart else None) as database:
            if apart:
                database.registry.engine.run("SYSTEM STOP MERGES")  # they could not write
            else:
                database.indexes.resume()
            server.serve(database, doors, options, _ready(folder, doors))
    return 0


def _settle(folder: Path, own: scratch.Scratch, model: str | None, mode: str) -> None:
    """Open a database that was not closed in order, which mends it, and close it."""
    sandbox.apply(sandbox.of_server(folder, own, catalog.load(folder), model, write=True), mode)
    from clipql.database import Database

    Database(folder, model=model).close()


def _over_shards(arguments: argparse.Namespace, doors: Doors, options: Options) -> int:
    if arguments.workers > 1:
        raise ServerError("--workers: with --ray, the processes are Ray's; leave it out")
    if arguments.sandbox == "require":
        raise ServerError("--sandbox require: Ray's connections and processes lie outside of it; leave it out")
    from clipql.serve import server
    from clipql.serve.logs import log_to_stderr

    log_to_stderr(arguments.log_level)
    database = _cluster(arguments)
    try:
        server.serve(database, doors, options, _ready(database.path, doors))
    finally:
        database.close()
    return 0


def _ready(served: Path, doors: Doors) -> Callable[[], None]:
    native = f", and by the native protocol at {doors.native}" if doors.tcp else ""
    return lambda: print(f"clipql serves {served} at {doors.url}{native}", flush=True)


def run(arguments: argparse.Namespace) -> int:
    """`clipql serve`."""
    if getattr(arguments, "url", None):
        raise ServerError("--url names a server that runs already: give --db, the folder to serve")
    token = arguments.token or os.environ.get("CLIPQL_TOKEN") or None
    if token is None and not listening.is_loopback(arguments.host):
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
    options = Options(
        token, arguments.write, tuple(arguments.allow_host), pictures, limits, origins=tuple(arguments.allow_origin)
    )
    if arguments.sandbox != "off" and not arguments.ray:
        compile_ahead()
    tls = listening.tls(arguments.tls_cert, arguments.tls_key)
    with ExitStack() as held:
        http = held.enter_context(listening.bind(arguments.host, arguments.port))
        tcp = None
        if arguments.tcp_port is not None:
            tcp = held.enter_context(listening.bind(arguments.host, arguments.tcp_port, "--tcp-port"))
        doors = Doors.of(http, arguments.host, tcp, tls)
        if arguments.ray:
            status = _over_shards(arguments, doors, options)
        else:
            status = _in_folder(arguments, doors, options, _absolute(arguments.model))
    sys.stdout.flush()
    return status
