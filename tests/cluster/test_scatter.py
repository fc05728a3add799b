"""Which replicas of shards are asked, and when a second one is, with replicas and a clock of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from clipql.cluster import scatter as scattering
from clipql.cluster.partial_query import PartialQuery
from clipql.cluster.scatter import FIRST_SECONDS, HEDGE_SECONDS, HEDGE_TIMES, SLOW_SECONDS, Scatter
from clipql.cluster.shard_map import ShardedTable, ShardMap
from clipql.errors import ReplicaUnavailable

LOST = float("inf")
COUNT = PartialQuery("default", "laion", "laion", "count()", where="width > 500")


class Replicas:
    """The replicas of one shard, each of which takes as long as `seconds` says, or is gone; and Ray's ways to them."""

    def __init__(self, *names: str) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(names, 0.01)
        self.now, self.asked_of, self.gone = 0.0, list[str](), set[str]()
        self._replies: list[tuple[str, float]] = []

    def actor_name(self, shard: int, node: str) -> str:
        return node

    def actor(self, name: str) -> Any:
        def remote(method: str, asked: Any) -> int:
            self.asked_of.append(name)
            self._replies.append((name, self.now + (0.0 if name in self.gone else self.seconds[name])))
            return len(self._replies) - 1

        return SimpleNamespace(do=SimpleNamespace(remote=remote))

    def wait_any(self, references: Sequence[int], seconds: float) -> list[int]:
        soonest = min(self._replies[r][1] for r in references)
        self.now = min(max(soonest, self.now), self.now + seconds)
        return [r for r in references if self._replies[r][1] <= self.now][:1]

    def result(self, reference: int) -> list[bytes]:
        if self._replies[reference][0] in self.gone:
            raise ReplicaUnavailable("it does not answer")
        return [b"\x01\x01n\x05UInt8\x01"]


@pytest.fixture
def replicas(monkeypatch: pytest.MonkeyPatch) -> Replicas:
    found = Replicas("north", "south")
    monkeypatch.setattr(scattering, "ray_actors", found)
    return found


@pytest.fixture
def scatter(replicas: Replicas) -> Scatter:
    map = ShardMap((tuple(replicas.seconds),))
    return Scatter(map, lambda: map, clock=lambda: replicas.now)


def asked(scatter: Scatter, replicas: Replicas, query: PartialQuery = COUNT, times: int = 1) -> list[str]:
    """The replicas that were asked, in order."""
    replicas.asked_of.clear()
    for _ in range(times):
        (answer,) = scatter.run(ShardedTable("default", "laion", ((),)), [query])
        assert (answer.answered, answer.shards) == (1, 1)
    return list(replicas.asked_of)


def warmed(scatter: Scatter, replicas: Replicas) -> None:
    """Have both replicas answer the statement, and once more, so that it is known how long it takes."""
    assert asked(scatter, replicas, times=4) == ["north", "south"] * 2


def test_replicas_take_turns(scatter: Scatter, replicas: Replicas) -> None:
    assert asked(scatter, replicas, times=4) == ["north", "south", "north", "south"]


def test_a_replica_has_time_to_compile_what_a_first_answer_needs(scatter: Scatter, replicas: Replicas) -> None:
    replicas.seconds = dict.fromkeys(replicas.seconds, FIRST_SECONDS - 0.1)

    assert asked(scatter, replicas, times=2) == ["north", "south"]


def test_a_first_answer_does_not_count_for_what_is_usual(scatter: Scatter, replicas: Replicas) -> None:
    replicas.seconds = dict.fromkeys(replicas.seconds, FIRST_SECONDS - 0.1)
    asked(scatter, replicas, times=2)
    replicas.seconds = dict.fromkeys(replicas.seconds, 0.01)
    asked(scatter, replicas, times=2)
    replicas.seconds["north"] = LOST
    before = replicas.now

    assert asked(scatter, replicas) == ["north", "south"]
    assert replicas.now - before == pytest.approx(HEDGE_SECONDS + 0.01, abs=0.01)


def test_a_replica_that_takes_much_longer_than_usual_is_not_waited_for(scatter: Scatter, replicas: Replicas) -> None:
    replicas.seconds = dict.fromkeys(replicas.seconds, 1.0)
    warmed(scatter, replicas)
    replicas.seconds["north"] = HEDGE_TIMES - 0.1
    assert asked(scatter, replicas, times=2) == ["north", "south"]
    replicas.seconds["north"] = LOST
    before = replicas.now

    assert asked(scatter, replicas) == ["north", "south"]
    assert HEDGE_TIMES < replicas.now - before < FIRST_SECONDS + 2


def test_what_is_usual_is_known_for_each_kind_of_statement(scatter: Scatter, replicas: Replicas) -> None:
    warmed(scatter, replicas)
    replicas.seconds = dict.fromkeys(replicas.seconds, FIRST_SECONDS - 0.1)

    for other in (replace(COUNT, select="sum(width)"), replace(COUNT, tail="LIMIT 5"),
                  replace(COUNT, settings={"nprobe": "4"})):  # fmt: skip
        assert len(asked(scatter, replicas, other)) == 1


def test_another_number_in_a_condition_is_the_same_kind(scatter: Scatter, replicas: Replicas) -> None:
    warmed(scatter, replicas)
    replicas.seconds["north"] = LOST

    assert asked(scatter, replicas, replace(COUNT, where="width > 1.5e3")) == ["north", "south"]
    assert replicas.now < FIRST_SECONDS


def test_a_replica_that_hangs_in_a_first_answer_is_given_up_in_the_end_and_asked_last(
    scatter: Scatter, replicas: Replicas
) -> None:
    replicas.seconds["north"] = LOST

    assert asked(scatter, replicas) == ["north", "south"]
    assert asked(scatter, replicas, times=3) == ["south"] * 3
    replicas.now += SLOW_SECONDS
    assert "north" in asked(scatter, replicas, times=2)


def test_a_replica_that_is_gone_is_passed_and_warms_up_anew_when_it_is_back(
    scatter: Scatter, replicas: Replicas
) -> None:
    warmed(scatter, replicas)
    replicas.gone.add("north")
    assert asked(scatter, replicas, times=2) == ["north", "south", "south"]
    replicas.gone.clear()
    scatter.forget_failures()
    replicas.seconds["north"] = FIRST_SECONDS - 0.1

    assert asked(scatter, replicas, times=2) == ["north", "south"]


def test_a_shard_of_which_no_replica_answers_is_lost(scatter: Scatter, replicas: Replicas) -> None:
    replicas.gone.update(replicas.seconds)

    with pytest.raises(
        ReplicaUnavailable, match=r"1 of 1 shards of default\.laion cannot be reached: shard 0 on north, south"
    ):
        asked(scatter, replicas)
