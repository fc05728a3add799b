"""Short statements take turns, and those that wait are answered together: each once, and none waits for ever."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from patience import LAST_NET_SECONDS, until

import clipql
from clipql.errors import ClipqlError, QueryCancelled, QueryError, VectorError
from clipql.sql.planning import prepared
from clipql.sql.planning.together import MOST, Together
from clipql.tables import index_entries

ROWS, WIDE = 6_000, 32


def squared(number: int) -> int:
    return number * number


def each(numbers: Sequence[int]) -> list[int | None]:
    return [squared(number) for number in numbers]


def alone_only(numbers: Sequence[int]) -> None:
    return None


class Held:
    """A question that is being answered, until it may end."""

    def __init__(self, together: Together[int, int], number: int = 0, kind: str | None = "kind") -> None:
        self.within, self.go_on = threading.Event(), threading.Event()
        self.thread = asking(lambda: together.ask(kind, number, self._stay, each))
        assert self.within.wait(LAST_NET_SECONDS)

    def _stay(self, number: int) -> int:
        self.within.set()
        assert self.go_on.wait(LAST_NET_SECONDS)
        return squared(number)

    def end(self) -> None:
        self.go_on.set()
        self.thread.join(LAST_NET_SECONDS)
        assert not self.thread.is_alive()


def asking(ask: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    return thread


def wait_for(together: Together[int, int], number: int) -> None:
    until(lambda: len(together._waiting) == number, f"{number} wait")


def gathered(
    together: Together[int, int],
    numbers: Sequence[int],
    kinds: Sequence[str | None],
    alone: Callable[[int], int],
    all_of: Callable[[Sequence[int]], Sequence[int | None] | None],
) -> list[object]:
    """What each question gives that waits for a turn while others, asked before it, wait, too."""
    held, found = Held(together, kind=None), list[object]([None] * len(numbers))

    def ask(at: int) -> None:
        try:
            found[at] = together.ask(kinds[at], numbers[at], alone, all_of)
        except (ClipqlError, ZeroDivisionError) as error:
            found[at] = error

    threads = []
    for at in range(len(numbers)):
        threads.append(asking(lambda at=at: ask(at)))  # type: ignore[misc]
        wait_for(together, at + 1)
    held.end()
    for thread in threads:
        thread.join(LAST_NET_SECONDS)
        assert not thread.is_alive()
    assert together._free == 1
    assert not together._waiting
    return found


def test_no_more_are_at_work_than_may_be_and_each_is_answered_once_and_rightly() -> None:
    together, lock = Together[int, int](2), threading.Lock()
    within: list[int] = []
    most: list[int] = []
    answered: list[tuple[int, int]] = []
    given: list[int] = []

    def work(numbers: Sequence[int]) -> list[int | None]:
        with lock:
            within.append(numbers[0])
            most.append(len(within))
            given.extend(numbers)
        with lock:
            within.remove(numbers[0])
        return each(numbers)

    def ask(first: int) -> None:
        for number in range(first, first + 2_000):
            found = together.ask(number % 2, number, lambda n: work([n])[0] or 0, work)
            answered.append((number, found))

    threads = [asking(lambda first=first: ask(first)) for first in range(0, 80_000, 10_000)]  # type: ignore[misc]
    for thread in threads:
        thread.join(LAST_NET_SECONDS)
    asked = [number for first in range(0, 80_000, 10_000) for number in range(first, first + 2_000)]
    assert sorted(answered) == [(number, squared(number)) for number in asked]
    assert sorted(given) == asked
    assert max(most) <= 2
    assert together._free == 2


def test_those_of_one_kind_are_answered_by_the_first_of_them_in_one_call() -> None:
    calls: list[list[int]] = []

    def noted(numbers: Sequence[int]) -> list[int | None]:
        calls.append(list(numbers))
        return each(numbers)

    found = gathered(Together(1), [1, 2, 3, 4, 5], ["a", "b", "a", "b", "a"], squared, noted)
    assert found == [1, 4, 9, 16, 25]
    assert calls == [[1, 3, 5], [2, 4]]


def test_what_has_no_kind_is_answered_alone() -> None:
    def never(numbers: Sequence[int]) -> list[int | None]:
        raise AssertionError(numbers)

    assert gathered(Together(1), [1, 2, 3], [None, None, None], squared, never) == [1, 4, 9]


def test_what_one_call_does_not_answer_is_asked_alone() -> None:
    def some(numbers: Sequence[int]) -> list[int | None]:
        return [None if number % 2 else squared(number) for number in numbers]

    assert gathered(Together(1), [1, 2, 3, 4], ["a"] * 4, squared, some) == [1, 4, 9, 16]
    assert gathered(Together(1), [1, 2, 3, 4], ["a"] * 4, squared, alone_only) == [1, 4, 9, 16]


def test_an_error_is_told_to_whom_it_concerns_alone() -> None:
    def wrong(numbers: Sequence[int]) -> list[int | None]:
        raise VectorError("one of them")

    def alone(number: int) -> int:
        return squared(number) if number != 2 else squared(number // 0)

    found = gathered(Together(1), [1, 2, 3], ["a"] * 3, alone, wrong)
    assert found[::2] == [1, 9]
    assert isinstance(found[1], ZeroDivisionError)


def test_one_that_is_cancelled_cancels_no_other() -> None:
    def cancelled(numbers: Sequence[int]) -> list[int | None]:
        raise QueryCancelled("as it was asked")

    found = gathered(Together(1), [1, 2, 3], ["a"] * 3, squared, cancelled)
    assert isinstance(found[0], QueryCancelled)
    assert isinstance(found[1], QueryCancelled) or found[1] == 4  # the first of those that are left, or alone
    assert found[2] == 9


def test_no_more_than_so_many_wait_for_one_call() -> None:
    sizes: list[int] = []

    def noted(numbers: Sequence[int]) -> list[int | None]:
        sizes.append(len(numbers))
        return each(numbers)

    many = 2 * MOST + 3
    assert gathered(Together(1), range(1, many + 1), ["a"] * many, squared, noted) == [
        squared(number) for number in range(1, many + 1)
    ]
    assert sizes == [MOST, MOST, 3]


def test_ctrl_c_while_waiting_leaves_no_place_that_is_waited_for() -> None:
    together, stopped = Together[int, int](1), threading.Event()
    held = Held(together)

    class Interrupted:
        """A lock at which Ctrl-C comes."""

        def acquire(self) -> None:
            raise KeyboardInterrupt

    def interrupted() -> None:
        real = together._wait

        def wait(own: Any) -> None:
            own.woken = Interrupted()
            real(own)

        together._wait = wait  # type: ignore[method-assign]
        try:
            together.ask("kind", 2, squared, each)
        except KeyboardInterrupt:
            stopped.set()
        finally:
            del together._wait  # type: ignore[method-assign]

    thread = asking(interrupted)
    assert stopped.wait(LAST_NET_SECONDS)
    thread.join(LAST_NET_SECONDS)
    assert not together._waiting
    held.end()
    assert together.ask("kind", 3, squared, each) == 9


def test_a_fork_waits_for_no_thread_that_is_not_there() -> None:
    together = Together[int, int](1)
    held = Held(together)
    child = os.fork()
    if not child:
        os._exit(together.ask("kind", 3, squared, each))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    held.end()


def test_an_error_within_gives_the_turn_back() -> None:
    together = Together[int, int](1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            together.ask("kind", 1, lambda number: number // 0, each)
    assert together.ask("kind", 2, squared, each) == 4


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    """Rows with an index of their vectors."""
    vectors = np.random.default_rng(5).standard_normal((ROWS, WIDE))
    place = tmp_path_factory.mktemp("together") / "db"
    with pytest.MonkeyPatch.context() as patch, clipql.connect(place) as made:
        patch.setattr(index_entries, "UNCOVERED", 4_000)  # from so many rows on, an INSERT builds an index
        made.sql(
            "CREATE TABLE t (id UInt32, name String, v Array(Float32), INDEX i v TYPE ivf('cosineDistance')) "
            "ENGINE = MergeTree ORDER BY id"
        )
        made.sql(f"INSERT INTO t VALUES {rows_of(vectors)}")
        made.wait_for_indexes()
        assert made.sql("SELECT state FROM clipql.indexes").rows == [("in use",)]
        yield made


def rows_of(vectors: np.ndarray, first: int = 0) -> str:
    return ",".join(f"({first + i},'row {first + i}',{vector.tolist()})" for i, vector in enumerate(vectors))


@pytest.mark.parametrize(
    "select",
    [
        "SELECT id, name, cosineDistance(v, {q:Array(Float32)}) AS d FROM t ORDER BY d LIMIT 10",
        "SELECT id, name FROM t ORDER BY cosineDistance(v, {q:Array(Float64)}) LIMIT 3 OFFSET 2",
        "SELECT id, cosineDistance(v, {q:Array(Float32)}) AS d FROM t WHERE id < 5000 ORDER BY d LIMIT {k:UInt32}",
        "SELECT id, L2Distance(v, {q:Array(Float32)}) AS d FROM t ORDER BY d LIMIT 5",
    ],
)
def test_statements_of_many_threads_give_what_each_gives_alone(
    db: clipql.Database, select: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = np.random.default_rng(6).standard_normal((160, WIDE)).astype(np.float32)
    given = [{"q": q, **({"k": 4 + i % 3} if "{k:" in select else {})} for i, q in enumerate(asked)]
    alone = [db.sql(select, **one).rows for one in given]
    sizes, run_many = list[int](), prepared.Repeats.run_many

    def noted(self: Any, statement: Any, given: Sequence[Any], **options: Any) -> Any:
        sizes.append(len(given))
        return run_many(self, statement, given, **options)

    monkeypatch.setattr(prepared.Repeats, "run_many", noted)
    found: list[Any] = [None] * len(given)

    def ask(first: int) -> None:
        for at in range(first, len(given), 16):
            found[at] = db.sql(select, **given[at]).rows

    def ask_all() -> bool:
        threads = [asking(lambda first=first: ask(first)) for first in range(16)]  # type: ignore[misc]
        for thread in threads:
            thread.join(LAST_NET_SECONDS)
        assert found == alone
        return bool(sizes)

    until(ask_all, "some were asked together")


def test_one_that_is_wrong_among_many_is_told_alone(db: clipql.Database) -> None:
    select = "SELECT id FROM t ORDER BY cosineDistance(v, {q:Array(Float32)}) LIMIT 3"
    good = np.random.default_rng(7).standard_normal(WIDE).astype(np.float32)
    expected = db.sql(select, q=good).rows
    wrong: list[object] = [good[:5], np.full(WIDE, np.nan, np.float32), "no vector"]
    seen: list[str] = []

    def ask(value: object) -> None:
        for _ in range(30):
            try:
                assert db.sql(select, q=value).rows == expected
                seen.append("good")
            except (VectorError, QueryError) as error:
                seen.append(type(error).__name__ if value is not good else "a good one fails")

    threads = [asking(lambda value=value: ask(value)) for value in [*wrong, *[good] * 9]]  # type: ignore[misc]
    for thread in threads:
        thread.join(LAST_NET_SECONDS)
    assert seen.count("good") == 9 * 30
    assert len(seen) == 12 * 30
    assert "a good one fails" not in seen


def test_a_row_that_was_written_is_found_by_whoever_asks_after_it(db: clipql.Database) -> None:
    select = "SELECT id, cosineDistance(v, {q:Array(Float32)}) AS d FROM w ORDER BY d LIMIT 1"
    db.sql("CREATE TABLE w (id UInt32, name String, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    target = np.ones(WIDE)
    db.sql(f"INSERT INTO w VALUES {rows_of(np.random.default_rng(8).standard_normal((2_000, WIDE)) / 9 - target)}")
    written, stop, wrong = [0], threading.Event(), list[object]()

    def ask() -> None:
        while not stop.is_set():
            before = written[0]
            ((found, _),) = db.sql(select, q=target).rows
            if before and not 10_000 + before <= found <= 10_000 + written[0] + 1:
                wrong.append((before, found))

    threads = [asking(ask) for _ in range(8)]
    for number in range(1, 16):
        nearer = target + np.eye(1, WIDE) / number
        db.sql(f"INSERT INTO w VALUES {rows_of(nearer, 10_000 + number)}")
        written[0] = number
    stop.set()
    for thread in threads:
        thread.join(LAST_NET_SECONDS)
    db.sql("DROP TABLE w")
    assert not wrong
