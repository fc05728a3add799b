"""Short statements take turns: no more at once than there are cores, and none waits for ever."""

from __future__ import annotations

import threading

import pytest
from patience import LAST_NET_SECONDS, until

from clipql.sql.planning import turns
from clipql.sql.planning.turns import Turns


def test_no_more_are_within_than_may_be_and_all_come_to_their_turn() -> None:
    taking, lock = Turns(2), threading.Lock()
    within: list[int] = []
    most: list[int] = []
    done: list[int] = []

    def work(number: int) -> None:
        for _ in range(2_000):
            with taking:
                with lock:
                    within.append(number)
                    most.append(len(within))
                with lock:
                    within.remove(number)
        done.append(number)

    threads = [threading.Thread(target=work, args=(i,), daemon=True) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LAST_NET_SECONDS)
    assert sorted(done) == list(range(8))
    assert max(most) <= 2
    assert (taking._free, len(taking._waiting)) == (2, 0)


def test_one_who_waits_is_woken_by_the_end_of_another_and_goes_before_those_who_come_once_patience_is_over() -> None:
    taking, entered = Turns(1), threading.Event()

    def wait() -> None:
        with taking:
            entered.set()

    with taking:
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        until(lambda: taking._waiting, "the other waits")
        taking._waiting[0].since -= turns.PATIENCE * 2
    assert not taking._free or entered.is_set()  # it was handed over, and not put back for whoever comes first
    with taking:
        assert entered.is_set()
    thread.join(LAST_NET_SECONDS)


def test_an_error_within_gives_the_turn_back() -> None:
    taking = Turns(1)
    for _ in range(3):
        try:
            with taking:
                raise KeyError("x")
        except KeyError:
            continue
    assert taking._free == 1


def test_a_turn_left_by_one_who_always_came_back_is_found_by_those_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "AT_ONCE", 3600.0)
    taking = Turns(1)
    done: list[int] = []

    def wait(number: int) -> None:
        with taking:
            done.append(number)

    with taking:
        pass
    with taking:
        threads = [threading.Thread(target=wait, args=(i,), daemon=True) for i in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: len(taking._waiting) == 3, "all wait")
    for thread in threads:
        thread.join(LAST_NET_SECONDS)
    assert sorted(done) == [0, 1, 2]
    assert (taking._free, len(taking._waiting)) == (1, 0)
