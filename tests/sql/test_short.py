"""Short work: what the event loop of a server does itself gives what the long way gives."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

import clipql
from clipql.tables.read_write_lock import ReadWriteLock
from tests.parts import make_part

ROWS, DIMENSION = 3_000, 16
NEAREST = "SELECT url, caption, L2Distance(image_embedding, {q:Array(Float32)}) AS d FROM laion"


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    """A table with an ivf index."""
    folder = tmp_path_factory.mktemp("short")
    make_part(folder / "parts", ROWS, dimension=DIMENSION)
    with clipql.connect(folder / "test.db") as found:
        found.ingest(folder / "parts", table="laion")
        found.sql("ALTER TABLE laion ADD INDEX near image_embedding TYPE ivf('L2Distance')")
        found.sql("ALTER TABLE laion MATERIALIZE INDEX near")
        yield found


def queries(count: int) -> list[list[float]]:
    return np.random.default_rng(3).standard_normal((count, DIMENSION)).astype(np.float32).tolist()


@pytest.mark.parametrize("format", ["TabSeparated", "JSONEachRow", "Native", "RowBinary"])
def test_a_search_that_comes_again_is_answered_at_once_and_alike(db: clipql.Database, format: str) -> None:
    sql = f"{NEAREST} ORDER BY d LIMIT 10"
    session = db.session()
    assert session.at_once(sql, {"q": queries(1)[0]}, format=format) is None  # it is not known yet
    session.execute(sql, {"q": queries(1)[0]}, format=format)
    for query in queries(5):
        found = session.at_once(sql, {"q": query}, format=format)
        assert found is not None
        assert found.output.data == db.session().execute(sql, {"q": query}, format=format).output.data


@pytest.mark.parametrize(
    "rest",
    ["ORDER BY d LIMIT 101", "WHERE id > 5 ORDER BY d LIMIT 5", "ORDER BY d LIMIT 5 SETTINGS recall = 1",
     "ORDER BY d LIMIT {n:UInt32}", "ORDER BY d LIMIT 5 SETTINGS nprobe = 3", "WHERE d < 9",
     "ORDER BY d LIMIT 5 SETTINGS vector_index = 0"],
)  # fmt: skip
def test_what_may_take_longer_is_not(db: clipql.Database, rest: str) -> None:
    session, given = db.session(), {"q": queries(1)[0], "n": 3}
    for _ in range(2):
        session.execute(f"{NEAREST} {rest}", given, format="TabSeparated")
    assert session.at_once(f"{NEAREST} {rest}", given, format="TabSeparated") is None


def test_nobody_waits_while_rows_are_taken_away(db: clipql.Database) -> None:
    sql, session = f"{NEAREST} ORDER BY d LIMIT 3", db.session()
    session.execute(sql, {"q": queries(1)[0]}, format="TabSeparated")
    entered, leave = threading.Event(), threading.Event()

    def write() -> None:
        with db.registry.gate.writing():
            entered.set()
            leave.wait()

    thread = threading.Thread(target=write)
    thread.start()
    entered.wait()
    assert session.at_once(sql, {"q": queries(1)[0]}, format="TabSeparated") is None
    leave.set()
    thread.join()
    assert session.at_once(sql, {"q": queries(1)[0]}, format="TabSeparated") is not None


def test_a_writer_that_is_not_let_in_gives_up_and_lets_others_in() -> None:
    lock, said = ReadWriteLock(), []

    def write() -> None:
        try:
            with lock.writing(0.01):
                said.append("in")
        except TimeoutError:
            said.append("late")

    with lock.reading():
        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        with lock.reading_now() as held:
            assert held
    write()
    assert said == ["late", "in"]
