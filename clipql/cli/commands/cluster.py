"""`clipql cluster`: how the replicas of a cluster are, and moving them."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from clipql.cli.commands.common import command

if TYPE_CHECKING:
    from clipql.cluster.database import ClusterDatabase


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = command(commands, None, "cluster", "look after the shards in a Ray", run)
    made.add_argument("address", metavar="ADDRESS", help="host:port of the Ray")
    made.add_argument("--data", metavar="FOLDER", help="where each node keeps its replicas (default: in its home)")
    verbs = made.add_subparsers(dest="verb", metavar="status|heal|rebalance|move|stop", title="verbs", required=True)
    verbs.add_parser("status", help="how each replica is, and where tables lie", allow_abbrev=False)
    verbs.add_parser("heal", help="bring replicas back now, and have them catch up", allow_abbrev=False)
    verbs.add_parser(
        "rebalance", help="make missing replicas, and move replicas to nodes that have fewer", allow_abbrev=False
    )
    move = verbs.add_parser("move", help="make a replica of a shard on another node", allow_abbrev=False)
    move.add_argument("shard", type=int, metavar="SHARD")
    move.add_argument("target", metavar="NODE", help="where to")
    move.add_argument("--instead-of", metavar="NODE", help="give this replica up once the new one is there")
    verbs.add_parser("stop", help="stop all shards; their folders stay", allow_abbrev=False)


def run(arguments: argparse.Namespace) -> int:
    """`clipql cluster`."""
    from clipql.cluster import ray_actors, ray_connection
    from clipql.cluster.database import ClusterDatabase

    verbs: dict[str, Callable[[ClusterDatabase, argparse.Namespace], None]] = {
        "status": lambda db, _: _show(db.status(), db),
        "heal": lambda db, _: _show(db.heal(), db),
        "rebalance": lambda db, _: _moved(db.rebalance()),
        "move": lambda db, a: _moved([_move(db, a)]),
    }
    if arguments.verb == "stop":  # whatever state the shards are in
        ray_connection.connect(arguments.address)
        try:
            ray_actors.stop_all()
        finally:
            ray_connection.disconnect()
        return 0
    with ClusterDatabase(arguments.address, data=arguments.data) as db:
        verbs[arguments.verb](db, arguments)
    return 0


def _show(found: Any, db: ClusterDatabase) -> None:
    for table in db.map.tables:
        rows = [table.snapshot(i).rows for i in range(len(table.shards))]
        print(f"{table.full_name}: {sum(rows):,} rows in {len(rows)} shards ({', '.join(f'{n:,}' for n in rows)})")
    for status in found:
        print(f"shard {status.shard} on {status.node}: {status.state}{f', {status.why}' if status.why else ''}")


def _move(db: ClusterDatabase, arguments: argparse.Namespace) -> tuple[int, str, str]:
    db.move(arguments.shard, arguments.instead_of, arguments.target)
    return arguments.shard, arguments.instead_of or "", arguments.target


def _moved(moves: Sequence[tuple[int, str | None, str]]) -> None:
    for shard, source, target in moves:
        print(f"shard {shard}: {f'from {source} ' if source else 'also '}to {target}")
    if not moves:
        print("nothing to move")
