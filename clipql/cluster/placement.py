"""Placement: which shard a part goes to, which nodes a replica goes to; and which of the maps found is in force."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from clipql.cluster import shard_map
from clipql.cluster.shard_map import PartRecord, ShardedTable, ShardMap, ShardPart
from clipql.errors import ClusterError


@dataclass(frozen=True)
class PartSpec:
    """A part to take in: what its headers say."""

    fingerprint: str
    rows: int
    sources: tuple[str, ...]
    model: str | None = None


def assigned(table: ShardedTable, specs: Sequence[PartSpec]) -> ShardedTable:
    """The table with new parts, each assigned to the shard with the fewest rows; rows are numbered in this order."""
    for spec in specs:
        if table.place(spec.fingerprint) is not None:
            continue
        held = [sum(p.rows for p in parts) for parts in table.shards]
        shard = held.index(min(held))
        part = ShardPart(spec.fingerprint, table.next_row, spec.rows, spec.sources, spec.model)
        table = replace(table.with_parts(shard, (*table.shards[shard], part)), next_row=table.next_row + spec.rows)
    return table


def next_move(map: ShardMap, there: Sequence[str]) -> tuple[int, str, str] | None:
    """A move that evens the nodes out, from the one with the most replicas to one with the fewest."""
    held: Mapping[str, list[int]] = {n: [s for s, m in map.replicas() if m == n] for n in there}
    most = max(held, key=lambda n: len(held[n]), default=None)
    least = min(held, key=lambda n: len(held[n]), default=None)
    if most is None or least is None or len(held[most]) < len(held[least]) + 2:
        return None
    shard = next((s for s in held[most] if s not in held[least]), None)
    return None if shard is None else (shard, most, least)


def next_copy(map: ShardMap, there: Sequence[str]) -> tuple[int, str] | None:
    """A shard with fewer replicas than another has, and a node for one more: that with the fewest replicas."""
    most = max(len(nodes) for nodes in map.nodes)
    for shard, nodes in enumerate(map.nodes):
        free = [n for n in there if n not in nodes]
        if len(nodes) < most and free:
            return shard, min(free, key=lambda n: sum(m == n for _, m in map.replicas()))
    return None


def placed(shard_count: int, replicas: int, nodes: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Which nodes get the replicas of each shard. Raises ClusterError where there are too few nodes."""
    if not 1 <= replicas <= len(nodes):
        raise ClusterError(
            f"{replicas} replicas of each shard on {len(nodes)} nodes ({', '.join(nodes)}): each must lie on a node of "
            "its own; start more nodes or ask for fewer replicas"
        )
    if shard_count < 1:
        raise ClusterError(f"{shard_count} shards: expected at least one")
    return tuple(tuple(nodes[(s + r) % len(nodes)] for r in range(replicas)) for s in range(shard_count))


def in_force(found: Sequence[tuple[str, bytes]], there: Sequence[str], without: Sequence[str] = ()) -> ShardMap | None:
    """The map in force among the copies on nodes. Raises ClusterError where too few of its nodes are there.

    found: node and content of each copy. there: the nodes that were looked at. without: those that are lost for good.
    """
    maps = []
    for node, content in found:
        with contextlib.suppress(ClusterError):  # a damaged copy: another counts, or it is made again from the shards
            maps.append(shard_map.decoded(content, f"the shard map on node {node}"))
    map = shard_map.newest(maps)
    if map is None:
        return None
    if unknown := set(without) - {n for pair in map.nodes for n in pair}:
        names = ", ".join(sorted({n for pair in map.nodes for n in pair}))
        raise ClusterError(
            f"the shards have no node {', '.join(sorted(unknown))} to go on without; they lie on {names}"
        )
    nodes, seen = {n for pair in map.nodes for n in pair} - set(without), set(there)
    if len(nodes & seen) <= len(nodes) // 2:
        raise ClusterError(
            f"the shards lie on the nodes {', '.join(sorted(nodes))}, and {', '.join(sorted(seen)) or 'none'} are "
            "here: a newer shard map may be on another; start those too, or give --without for each that is lost"
        )
    if not without:
        return map
    left = tuple(tuple(n for n in pair if n not in without) for pair in map.nodes)
    if () in left:
        shard = left.index(())
        raise ClusterError(
            f"shard {shard} lay on {', '.join(map.nodes[shard])} alone, so it cannot be done without: bring one back"
        )
    return replace(map, nodes=left)


def recovered_map(found: Sequence[PartRecord]) -> ShardMap | None:
    """The map as the parts on the nodes tell of it, where no copy of it is left; None where there are no parts.

    Raises ClusterError where a shard is on none of the nodes.
    """
    if not found:
        return None
    count = max(r.shards for r in found)
    nodes = [tuple(sorted({r.node for r in found if r.shard == shard})) for shard in range(count)]
    if () in nodes:
        raise ClusterError(
            f"no copy of the shard map is left, and shard {nodes.index(())} of {count} is on none of the nodes that "
            "are here: start the node that has it"
        )
    tables = []
    for database, name in sorted({(r.database, r.name) for r in found}):
        own = [r for r in found if (r.database, r.name) == (database, name)]
        shards_of = range(max(r.shards for r in own))
        parts = [{r.part.fingerprint: r.part for r in own if r.shard == shard} for shard in shards_of]
        ordered = tuple(tuple(sorted(p.values(), key=lambda part: part.first)) for p in parts)
        after = max(r.part.first + r.part.rows for r in own)
        tables.append(ShardedTable(database, name, ordered, next_row=after))
    return ShardMap(tuple(nodes), tuple(tables))
