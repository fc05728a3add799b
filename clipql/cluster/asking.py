"""Asking the shards: one copy of each, another where it is gone or slow.

What must stay true: each shard counts once, whichever of its copies answered; all see the rows of one map; a shard that
no copy answers for is an error, unless a partial answer was asked for.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from clipql.cluster import rays
from clipql.cluster.office import UNFIT
from clipql.cluster.piece import Piece, Snapshot, rows_of
from clipql.cluster.reading import Asked
from clipql.cluster.shards import ShardedTable, ShardMap
from clipql.errors import HolderGone

# a copy is given up on after so long; another is asked as well once it takes so many times what is usual, or longer
SECONDS = 600.0
HEDGE_TIMES, HEDGE_SECONDS = 4.0, 0.2


@dataclass
class _Open:
    """A shard that has not answered: which of its copies are still to be asked, and what was asked when."""

    shard: int
    left: list[str]
    running: dict[Any, str] = field(default_factory=dict)
    asked: float = 0.0
    why: str = ""


class Asker:
    """Runs pieces on the shards of tables. Thread-safe. latest: the map in force, asked for anew."""

    def __init__(self, map: ShardMap, latest: Callable[[], ShardMap]) -> None:
        self.map, self._latest = map, latest
        self._turn = itertools.count()
        self._lock = threading.Lock()
        self._actors: dict[str, Any] = {}
        self._usual = 0.0
        # copies that did not answer are asked last
        self._gone: set[str] = set()

    def forgive(self) -> None:
        """Ask copies that were gone like any other again."""
        self._gone.clear()

    def ask(self, table: ShardedTable, pieces: Sequence[Piece], *, partial: bool = False) -> list[Asked]:
        """What each piece gives on every shard of a table. Raises HolderGone for a shard that is lost, and QueryErrors.

        partial: leave out the shards that are lost.
        """
        snapshots = [table.snapshot(shard) for shard in range(len(table.shards))]
        answers: dict[int, list[bytes]] = {}
        lost = self._round(table, pieces, snapshots, list(range(len(snapshots))), answers)
        if lost:  # they may have moved
            self.map = self._latest()
            lost = self._round(table, pieces, snapshots, [s for s, _ in lost], answers)
        if lost and not (partial and answers):
            shard, why = lost[0]
            raise HolderGone(
                f"{len(lost)} of {len(snapshots)} shards of {table.full_name} cannot be reached: shard {shard} on "
                f"{', '.join(self.map.nodes[shard])} ({why}); bring a node of it back, or ask for what the others have "
                "with SETTINGS shards_partial = 1"
            )
        ordered = [answers[s] for s in sorted(answers)]
        return [Asked([rows_of(a[i]) for a in ordered], len(ordered), len(snapshots)) for i in range(len(pieces))]

    def _round(
        self, table: ShardedTable, pieces: Sequence[Piece], snapshots: Sequence[Snapshot], shards: Sequence[int],
        answers: dict[int, list[bytes]],
    ) -> list[tuple[int, str]]:  # fmt: skip
        """Ask these shards; those that are lost, and why."""
        turn, began = next(self._turn), time.monotonic()
        waiting = [_Open(s, self._in_turn(s, turn)) for s in shards]
        lost: list[tuple[int, str]] = []
        for one in waiting:
            self._send(one, pieces, snapshots[one.shard])
        while waiting:
            for one in [w for w in waiting if not w.running]:
                waiting.remove(one)
                lost.append((one.shard, one.why))
            running = {ref: one for one in waiting for ref in one.running}
            for reference in rays.first_of(list(running), self._patience(waiting)) if running else ():
                one = running[reference]
                if one not in waiting:  # another copy of the shard answered in the same moment
                    continue
                if self._take(one, reference, answers):
                    waiting.remove(one)
                    self._learn(time.monotonic() - began)
                elif not one.running:
                    self._send(one, pieces, snapshots[one.shard])
            for one in waiting:
                if one.running and one.left and time.monotonic() - one.asked > self._slow():
                    self._send(one, pieces, snapshots[one.shard])
                elif time.monotonic() - began > SECONDS:
                    one.running.clear()
                    one.why = f"no answer in {SECONDS:.0f} s"
        return lost

    def _in_turn(self, shard: int, turn: int) -> list[str]:
        nodes = self.map.nodes[shard]
        turned = [nodes[(turn + i) % len(nodes)] for i in range(len(nodes))]
        return sorted(turned, key=lambda n: rays.actor_name(shard, n) in self._gone)

    def _send(self, one: _Open, pieces: Sequence[Piece], snapshot: Snapshot) -> None:
        while one.left:
            node = one.left.pop(0)
            name = rays.actor_name(one.shard, node)
            try:
                actor = self._actors.get(name) or self._actors.setdefault(name, rays.actor(name))
            except HolderGone as error:
                one.why = str(error)
                self._gone.add(name)
                continue
            one.running[actor.do.remote("query", [(p, snapshot) for p in pieces])] = name
            one.asked = time.monotonic()
            return

    def _take(self, one: _Open, reference: Any, answers: dict[int, list[bytes]]) -> bool:
        name = one.running.pop(reference)
        try:
            answers[one.shard] = rays.asked(reference)
        except UNFIT as error:
            one.why = str(error)
            self._gone.add(name)
            self._actors.pop(name, None)
            return False
        self._gone.discard(name)
        return True

    def _learn(self, seconds: float) -> None:
        with self._lock:
            self._usual = seconds if not self._usual else 0.9 * self._usual + 0.1 * seconds

    def _slow(self) -> float:
        return max(HEDGE_SECONDS, HEDGE_TIMES * self._usual)

    def _patience(self, waiting: Sequence[_Open]) -> float:
        """Until when to wait before something is to be done."""
        if not any(w.left for w in waiting):
            return SECONDS
        return max(0.001, self._slow() - (time.monotonic() - min(w.asked for w in waiting if w.left)))
