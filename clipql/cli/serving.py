"""What `clipql serve` runs: the sockets, the kernel's wall, the database behind it, and the server.

What must stay true: the wall goes up before the engine and all that has threads is loaded.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipql.cli.kernels_ahead import compile_ahead
from clipql.connection import place
from clipql.errors import NotADatabase, ServerError
from clipql.serve import layout, listening, picture_addresses, sandbox, scratch
from clipql.serve.limits import Limits, Options
from clipql.serve.listening import Doors
from clipql.serve.picture_files import Helper
from clipql.storage import catalog

if TYPE_CHECKING:
    from clipql.database import Database


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
        fetcher = None
        if options.fetch_from is not None:
            fetcher = picture_addresses.Helper(options.fetch_from, mode)
            held.callback(fetcher.close)
        models = sandbox.models_to_choose(mode)
        plan = sandbox.of_server(folder, own, known, model, write=write, choice=models or ())
        options = replace(
            options, models=models, opener=helper, layout=points, fetcher=fetcher, sandbox=sandbox.apply(plan, mode)
        )
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
    if arguments.fetch_from and not arguments.fetch_pictures:
        raise ServerError(
            "--fetch-from names hosts of a private network: give --fetch-pictures too, which fetches at all"
        )
    if arguments.fetch_pictures and arguments.ray:
        raise ServerError("--fetch-pictures: with --ray there are no searches by pictures through REST; leave it out")
    options = Options(
        token,
        arguments.write,
        tuple(arguments.allow_host),
        pictures,
        limits,
        origins=tuple(arguments.allow_origin),
        fetch_from=tuple(h.lower() for h in arguments.fetch_from) if arguments.fetch_pictures else None,
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
