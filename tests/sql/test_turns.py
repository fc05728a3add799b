"""Short statements take turns: no more at once than there are cores, and none waits for ever."""

from __future__ import annotations

import os
import threading

from patience import LAST_NET_SECONDS

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
    assert not any(turn.locked() for turn in taking._turns)


def test_one_who_waits_is_woken_by_the_end_of_another() -> None:
    taking, entered = Turns(1), threading.Event()

    def wait() -> None:
        with taking:
            entered.set()

    with taking:
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        assert not entered.wait(0.05)
    assert entered.wait(LAST_NET_SECONDS)
    thread.join(LAST_NET_SECONDS)


def test_a_turn_that_is_free_is_taken_by_whoever_comes() -> None:
    """Not the one alone that a thread would wait for."""
    taking, within, go_on = Turns(3), threading.Semaphore(0), threading.Event()

    def stay() -> None:
        with taking:
            within.release()
            go_on.wait(LAST_NET_SECONDS)

    for _ in range(20):  # threads of all numbers
        go_on.clear()
        threads = [threading.Thread(target=stay, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert within.acquire(timeout=LAST_NET_SECONDS)
        with taking:
            go_on.set()
        for thread in threads:
            thread.join(LAST_NET_SECONDS)


def test_a_fork_waits_for_no_thread_that_is_not_there() -> None:
    taking, within, go_on = Turns(1), threading.Event(), threading.Event()

    def stay() -> None:
        with taking:
            within.set()
            go_on.wait(LAST_NET_SECONDS)

    thread = threading.Thread(target=stay, daemon=True)
    thread.start()
    assert within.wait(LAST_NET_SECONDS)
    child = os.fork()
    if not child:
        with taking:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    go_on.set()
    thread.join(LAST_NET_SECONDS)


def test_an_error_within_gives_the_turn_back() -> None:
    taking = Turns(1)
    for _ in range(3):
        try:
            with taking:
                raise KeyError("x")
        except KeyError:
            continue
    with taking:
        assert all(turn.locked() for turn in taking._turns)
