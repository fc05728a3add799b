"""Scatter: partial queries go to one replica of each shard, and to another one where it is gone or slow (hedged).

What must stay true: each shard counts once, whichever of its replicas answered; all see the rows of one map; a shard
for which no replica answers is an error, unless a partial answer was asked for.
"""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipql.cluster import ray_actors
from clipql.cluster.partial_query import PartialQuery, Snapshot, rows_of
from clipql.cluster.quorum import UNFIT
from clipql.cluster.scatter_gather import Gathered
from clipql.cluster.shard_map import ShardedTable, ShardMap
from clipql.errors import ReplicaUnavailable

# a replica has so long in all; a hedged request goes to another once it takes so many times what is usual, and so long
SECONDS = 600.0
HEDGE_TIMES, HEDGE_SECONDS = 4.0, 0.2
# what is usual is not known of a replica's first answer to a kind of statement, for which it loads and compiles
FIRST_SECONDS = 5.0
# a replica that another was quicker than is asked last for so long
SLOW_SECONDS = 30.0
MOST_KINDS = 1000
_LITERAL = re.compile(r"'(?:[^'\\]|\\.)*'|\b\d[\w.]*")

Kind = tuple[object, ...]


def kind_of(queries: Sequence[PartialQuery]) -> Kind:
    """What takes about the same time again: the statements, but for parameters and for literals in their conditions."""
    return tuple(
        (p.database, p.table, p.select, *(_LITERAL.sub("?", w) for w in (p.prewhere, p.where)), p.tail,
         tuple(sorted(p.settings.items())), p.statements, tuple(r.model for r in p.routes))
        for p in queries
    )  # fmt: skip


class Latencies:
    """How long replicas take for kinds of statements, and how long they are waited for before another is asked as well.

    What must stay true: a replica's first answer to a kind of statement has time to load and compile what that needs,
    which another replica would have to do just the same, and does not count for what is usual. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._usual: dict[Kind, float] = {}
        self._warm: dict[Kind, set[str]] = {}

    def hedge_delay(self, kind: Kind, replica: str) -> float:
        """How many seconds a replica may take."""
        with self._lock:
            usual = self._usual.get(kind, 0.0) if replica in self._warm.get(kind, ()) else 0.0
        return max(HEDGE_SECONDS, HEDGE_TIMES * usual) if usual else FIRST_SECONDS

    def learn(self, kind: Kind, replica: str, seconds: float) -> None:
        """A replica took so long."""
        with self._lock:
            self._warm[kind] = warm = self._warm.pop(kind, set())
            if replica in warm:
                usual = self._usual.get(kind)
                self._usual[kind] = seconds if usual is None else 0.9 * usual + 0.1 * seconds
            warm.add(replica)
            while len(self._warm) > MOST_KINDS:
                oldest = next(iter(self._warm))
                del self._warm[oldest]
                self._usual.pop(oldest, None)

    def forget(self, replica: str) -> None:
        """A replica is gone: what comes back under its name begins again."""
        with self._lock:
            for warm in self._warm.values():
                warm.discard(replica)


@dataclass
class _PendingShard:
    """A shard without an answer: replicas still to be asked, those asked and when, and when the next one is asked."""

    shard: int
    left: list[str]
    running: dict[Any, tuple[str, float]] = field(default_factory=dict)
    until: float = 0.0
    why: str = ""


class Scatter:
    """Runs partial queries on the shards of tables. Thread-safe.

    latest: the map in force, asked for again. clock: in seconds.
    """

    def __init__(
        self, map: ShardMap, latest: Callable[[], ShardMap], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.map, self._latest, self._clock = map, latest, clock
        self._turn = itertools.count()
        self._actors: dict[str, Any] = {}
        self._latencies = Latencies()
        # replicas that did not answer are asked last, and those that were late, until when
        self._unreachable: set[str] = set()
        self._slow: dict[str, float] = {}

    def forget_failures(self) -> None:
        """Ask replicas that were gone like any other again."""
        self._unreachable.clear()

    def run(self, table: ShardedTable, queries: Sequence[PartialQuery], *, partial: bool = False) -> list[Gathered]:
        """What each partial query gives on every shard of a table.

        partial: leave out the shards that are lost. Raises ReplicaUnavailable for a shard that is lost, QueryError.
        """
        snapshots = [table.snapshot(shard) for shard in range(len(table.shards))]
        answers: dict[int, list[bytes]] = {}
        lost = self._round(table, queries, snapshots, list(range(len(snapshots))), answers)
        if lost:  # they may have moved
            self.map = self._latest()
            lost = self._round(table, queries, snapshots, [s for s, _ in lost], answers)
        if lost and not (partial and answers):
            shard, why = lost[0]
            raise ReplicaUnavailable(
                f"{len(lost)} of {len(snapshots)} shards of {table.full_name} cannot be reached: shard {shard} on "
                f"{', '.join(self.map.nodes[shard])} ({why}); bring a node of it back, or ask for what the others have "
                "with SETTINGS shards_partial = 1"
            )
        ordered = [answers[s] for s in sorted(answers)]
        return [Gathered([rows_of(a[i]) for a in ordered], len(ordered), len(snapshots)) for i in range(len(queries))]

    def _round(
        self, table: ShardedTable, queries: Sequence[PartialQuery], snapshots: Sequence[Snapshot],
        shards: Sequence[int], answers: dict[int, list[bytes]],
    ) -> list[tuple[int, str]]:  # fmt: skip
        """Ask these shards; those that are lost, and why."""
        turn, began, kind = next(self._turn), self._clock(), kind_of(queries)
        waiting = [_PendingShard(s, self._in_turn(s, turn)) for s in shards]
        lost: list[tuple[int, str]] = []
        for one in waiting:
            self._send(one, queries, snapshots[one.shard], kind)
        while waiting:
            for one in [w for w in waiting if not w.running]:
                waiting.remove(one)
                lost.append((one.shard, one.why))
            running = {ref: one for one in waiting for ref in one.running}
            for reference in ray_actors.wait_any(list(running), self._wait_seconds(waiting)) if running else ():
                one = running[reference]
                if one not in waiting:  # another replica of the shard answered in the same moment
                    continue
                if self._take(one, reference, answers, kind):
                    waiting.remove(one)
                elif not one.running:
                    self._send(one, queries, snapshots[one.shard], kind)
            for one in waiting:
                if one.running and one.left and self._clock() > one.until:
                    self._send(one, queries, snapshots[one.shard], kind)
                elif self._clock() - began > SECONDS:
                    one.running.clear()
                    one.why = f"no answer in {SECONDS:.0f} s"
        return lost

    def _in_turn(self, shard: int, turn: int) -> list[str]:
        nodes = self.map.nodes[shard]
        turned = [nodes[(turn + i) % len(nodes)] for i in range(len(nodes))]
        names, now = {n: ray_actors.actor_name(shard, n) for n in nodes}, self._clock()
        return sorted(turned, key=lambda n: (names[n] in self._unreachable, self._slow.get(names[n], now) > now))

    def _send(self, one: _PendingShard, queries: Sequence[PartialQuery], snapshot: Snapshot, kind: Kind) -> None:
        while one.left:
            node = one.left.pop(0)
            name = ray_actors.actor_name(one.shard, node)
            try:
                actor = self._actors.get(name) or self._actors.setdefault(name, ray_actors.actor(name))
            except ReplicaUnavailable as error:
                one.why = str(error)
                self._lose(name)
                continue
            now = self._clock()
            one.running[actor.do.remote("query", [(p, snapshot) for p in queries])] = name, now
            one.until = now + self._latencies.hedge_delay(kind, name)
            return

    def _lose(self, name: str) -> None:
        self._unreachable.add(name)
        self._latencies.forget(name)

    def _take(self, one: _PendingShard, reference: Any, answers: dict[int, list[bytes]], kind: Kind) -> bool:
        name, asked = one.running.pop(reference)
        try:
            answers[one.shard] = ray_actors.result(reference)
        except UNFIT as error:
            one.why = str(error)
            self._lose(name)
            self._actors.pop(name, None)
            return False
        now = self._clock()
        self._latencies.learn(kind, name, now - asked)
        self._unreachable.discard(name)
        self._slow.pop(name, None)
        self._slow.update({late: now + SLOW_SECONDS for late, before in one.running.values() if before < asked})
        return True

    def _wait_seconds(self, waiting: Sequence[_PendingShard]) -> float:
        """Until when to wait before something is to be done."""
        if not any(w.left for w in waiting):
            return SECONDS
        return max(0.001, min(w.until for w in waiting if w.left) - self._clock())
