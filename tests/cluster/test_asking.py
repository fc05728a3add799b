"""Which copies of shards are asked, and when a second one is, with copies and a clock of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from clipql.cluster import asking
from clipql.cluster.asking import FIRST_SECONDS, HEDGE_SECONDS, HEDGE_TIMES, LATE_SECONDS, Asker
from clipql.cluster.piece import Piece
from clipql.cluster.shards import ShardedTable, ShardMap
from clipql.errors import HolderGone

LOST = float("inf")
COUNT = Piece("default", "laion", "laion", "count()", where="width > 500")


class Copies:
    """The copies of one shard, each of which takes as long as `seconds` says, or is gone; and Ray's ways to them."""

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

    def first_of(self, references: Sequence[int], seconds: float) -> list[int]:
        soonest = min(self._replies[r][1] for r in references)
        self.now = min(max(soonest, self.now), self.now + seconds)
        return [r for r in references if self._replies[r][1] <= self.now][:1]

    def asked(self, reference: int) -> list[bytes]:
        if self._replies[reference][0] in self.gone:
            raise HolderGone("it does not answer")
        return [b"\x01\x01n\x05UInt8\x01"]


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> Copies:
    found = Copies("north", "south")
    monkeypatch.setattr(asking, "rays", found)
    return found


@pytest.fixture
def asker(copies: Copies) -> Asker:
    map = ShardMap((tuple(copies.seconds),))
    return Asker(map, lambda: map, clock=lambda: copies.now)


def ask(asker: Asker, copies: Copies, piece: Piece = COUNT, times: int = 1) -> list[str]:
    """The copies that were asked, in order."""
    copies.asked_of.clear()
    for _ in range(times):
        (answer,) = asker.ask(ShardedTable("default", "laion", ((),)), [piece])
        assert (answer.answered, answer.shards) == (1, 1)
    return list(copies.asked_of)


def warmed(asker: Asker, copies: Copies) -> None:
    """Have both copies answer the statement, and once more, so that it is known how long it takes."""
    assert ask(asker, copies, times=4) == ["north", "south"] * 2


def test_copies_take_turns(asker: Asker, copies: Copies) -> None:
    assert ask(asker, copies, times=4) == ["north", "south", "north", "south"]


def test_a_copy_has_time_to_compile_what_a_first_answer_needs(asker: Asker, copies: Copies) -> None:
    copies.seconds = dict.fromkeys(copies.seconds, FIRST_SECONDS - 0.1)

    assert ask(asker, copies, times=2) == ["north", "south"]


def test_a_first_answer_does_not_count_for_what_is_usual(asker: Asker, copies: Copies) -> None:
    copies.seconds = dict.fromkeys(copies.seconds, FIRST_SECONDS - 0.1)
    ask(asker, copies, times=2)
    copies.seconds = dict.fromkeys(copies.seconds, 0.01)
    ask(asker, copies, times=2)
    copies.seconds["north"] = LOST
    before = copies.now

    assert ask(asker, copies) == ["north", "south"]
    assert copies.now - before == pytest.approx(HEDGE_SECONDS + 0.01, abs=0.01)


def test_a_copy_that_takes_much_longer_than_usual_is_not_waited_for(asker: Asker, copies: Copies) -> None:
    copies.seconds = dict.fromkeys(copies.seconds, 1.0)
    warmed(asker, copies)
    copies.seconds["north"] = HEDGE_TIMES - 0.1
    assert ask(asker, copies, times=2) == ["north", "south"]
    copies.seconds["north"] = LOST
    before = copies.now

    assert ask(asker, copies) == ["north", "south"]
    assert HEDGE_TIMES < copies.now - before < FIRST_SECONDS + 2


def test_what_is_usual_is_known_for_each_kind_of_statement(asker: Asker, copies: Copies) -> None:
    warmed(asker, copies)
    copies.seconds = dict.fromkeys(copies.seconds, FIRST_SECONDS - 0.1)

    for other in (replace(COUNT, select="sum(width)"), replace(COUNT, tail="LIMIT 5"),
                  replace(COUNT, settings={"nprobe": "4"})):  # fmt: skip
        assert len(ask(asker, copies, other)) == 1


def test_another_number_in_a_condition_is_the_same_kind(asker: Asker, copies: Copies) -> None:
    warmed(asker, copies)
    copies.seconds["north"] = LOST

    assert ask(asker, copies, replace(COUNT, where="width > 1.5e3")) == ["north", "south"]
    assert copies.now < FIRST_SECONDS


def test_a_copy_that_hangs_in_a_first_answer_is_given_up_in_the_end_and_asked_last(
    asker: Asker, copies: Copies
) -> None:
    copies.seconds["north"] = LOST

    assert ask(asker, copies) == ["north", "south"]
    assert ask(asker, copies, times=3) == ["south"] * 3
    copies.now += LATE_SECONDS
    assert "north" in ask(asker, copies, times=2)


def test_a_copy_that_is_gone_is_passed_and_warms_up_anew_when_it_is_back(asker: Asker, copies: Copies) -> None:
    warmed(asker, copies)
    copies.gone.add("north")
    assert ask(asker, copies, times=2) == ["north", "south", "south"]
    copies.gone.clear()
    asker.forgive()
    copies.seconds["north"] = FIRST_SECONDS - 0.1

    assert ask(asker, copies, times=2) == ["north", "south"]


def test_a_shard_of_which_no_copy_answers_is_lost(asker: Asker, copies: Copies) -> None:
    copies.gone.update(copies.seconds)

    with pytest.raises(HolderGone, match=r"1 of 1 shards of default\.laion cannot be reached: shard 0 on north, south"):
        ask(asker, copies)
