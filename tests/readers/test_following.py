"""A reader that may be a little behind: no statement waits for a commit that is newer, and none is older."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import pytest
from writing import Writer

import clipql
from clipql.errors import QueryError, StorageError
from clipql.storage import announced, catalog, snapshot
from clipql.storage.catalog import Pending, Stamp
from clipql.storage.snapshot import Snapshot
from clipql.tables.catch_up import catch_up
from clipql.tables.following import REST, Following
from tests.patience import LAST_NET_SECONDS, until

COUNT = "SELECT count() FROM t"
MORE = "INSERT INTO t SELECT number, [number, 1] FROM numbers(3)"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "t.db"


@pytest.fixture
def writer(folder: Path) -> Iterator[Writer]:
    with Writer(folder) as process:
        process.run("CREATE TABLE t (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id", MORE)
        yield process


@contextmanager
def held_back() -> Iterator[tuple[threading.Semaphore, threading.Event]]:
    """Snapshots that begin, which say so, and wait until they may go on."""
    begun, go_on, take = threading.Semaphore(0), threading.Event(), snapshot.take

    def waiting(*given: object, **named: object) -> Snapshot:
        begun.release()
        assert go_on.wait(LAST_NET_SECONDS)
        return take(*given, **named)  # type: ignore[arg-type]

    with mock.patch("clipql.reader.snapshot.take", waiting):
        try:
            yield begun, go_on
        finally:
            go_on.set()


def test_a_statement_that_may_be_behind_does_not_wait_for_a_commit(folder: Path, writer: Writer) -> None:
    with clipql.connect(folder, read_only=True, follow=True, behind_seconds=1e6) as db:
        assert db.sql(COUNT).rows == [(3,)]
        writer.run(MORE)
        with held_back() as (begun, go_on):
            assert db.sql(COUNT).rows == [(3,)]
            begun.acquire()
            for _ in range(20):
                assert db.sql(COUNT).rows == [(3,)]
            assert not begun.acquire(blocking=False)
            go_on.set()
            until(lambda: db.sql(COUNT).rows == [(6,)], "the commit is seen")
        writer.run(MORE)
        assert db.refresh() is True
        assert db.sql(COUNT).rows == [(9,)]
        with db.snapshot():
            writer.run(MORE)
            assert db.sql(COUNT).rows == [(9,)]


def test_a_statement_that_may_be_behind_by_nothing_sees_each_commit(folder: Path, writer: Writer) -> None:
    with clipql.connect(folder, read_only=True, follow=True, behind_seconds=0) as db:
        for rows in (6, 9, 12):
            writer.run(MORE)
            assert db.sql(COUNT).rows == [(rows,)]


def test_a_change_that_has_only_begun_is_not_waited_for(folder: Path, writer: Writer) -> None:
    """The manifest says it before the first row is there, and again after the last."""
    with clipql.connect(folder, read_only=True, follow=True) as db:
        assert db.sql(COUNT).rows == [(3,)]
        table = catalog.load(folder).tables[0]
        begun = catalog.load(folder).with_pending(Pending("insert", table, table))
        found = announced.look(folder)[1]
        assert found is not None
        catalog.save(folder, begun, Stamp(found, time.time_ns()))
        with mock.patch("clipql.reader.snapshot.take", side_effect=AssertionError("nothing was acknowledged")):
            for _ in range(3):
                assert db.sql(COUNT).rows == [(3,)]
            assert db.refresh() is False
        catalog.save(folder, begun.with_pending(None), Stamp(found, time.time_ns()))
        writer.run(MORE)
        assert db.sql(COUNT).rows == [(6,)]


def test_clickhouse_is_caught_up_with_the_first_statement_that_needs_it(folder: Path, writer: Writer) -> None:
    rows = "INSERT INTO t SELECT number, [number, 1] FROM numbers({}, {})"
    writer.run(rows.format(3, 5_997), "ALTER TABLE t ADD INDEX near v TYPE ivf('L2Distance')")
    writer.run("ALTER TABLE t MATERIALIZE INDEX near")
    with clipql.connect(folder, read_only=True, follow=True) as db:
        nearest = "SELECT id FROM t ORDER BY L2Distance(v, {q:Array(Float32)}) LIMIT 1"
        assert db.sql("SELECT uniqExact(id) FROM t").rows == [(6_000,)]
        assert db.sql(nearest, q=[7_500, 1]).rows == [(5_999,)]
        with mock.patch("clipql.reader.catch_up", side_effect=catch_up) as caught:
            for first in (6_000, 7_000, 8_000):
                writer.run(rows.format(first, 1_000))
                assert db.sql(nearest, q=[3_000, 1]).rows == [(3_000,)]  # of the index and the row file
                assert db.commit == catalog.load(folder).serial
            assert not caught.called
            assert db.sql("SELECT uniqExact(id) FROM t").rows == [(9_000,)]
            assert caught.call_count == 1
        until(lambda: len(list(folder.glob("tmp/reader-*"))) == 2, "what nobody needs is removed")
    assert list(folder.glob("tmp/*")) == []


def test_statements_of_many_threads_wait_while_clickhouse_catches_up(folder: Path, writer: Writer) -> None:
    with clipql.connect(folder, read_only=True) as db, ThreadPoolExecutor(8) as threads:
        db.sql(COUNT)
        for rows in (6, 9, 12):
            writer.run(MORE)
            db.refresh()
            found = list(threads.map(lambda _: db.sql(f"{COUNT} SETTINGS vector_plan = 0").rows, range(32)))
            assert found == [[(rows,)]] * 32


def test_clickhouse_that_cannot_catch_up_is_opened_anew_and_forgets_nothing_that_was_set(
    folder: Path, writer: Writer
) -> None:
    with clipql.connect(folder, read_only=True, follow=True) as db:
        db.sql("SET max_block_size = 123")
        for failing, rows in ((mock.Mock(return_value=False), 6), (mock.Mock(side_effect=QueryError("no")), 9)):
            writer.run(MORE)
            with mock.patch("clipql.reader.catch_up", failing):
                assert db.sql("SELECT count(), getSetting('max_block_size') FROM t").rows == [(rows, 123)]
            assert failing.called
        writer.run(MORE)
        assert db.sql(COUNT).rows == [(12,)]
    assert list(folder.glob("tmp/*")) == []


def test_clickhouse_is_not_left_behind_for_long(folder: Path, writer: Writer) -> None:
    """It keeps the files of the moment that it is at."""
    with clipql.connect(folder, read_only=True) as db, mock.patch("clipql.reader.LONGEST_BEHIND", 0.0):
        db.sql(COUNT)
        writer.run(MORE)
        with mock.patch("clipql.reader.catch_up", side_effect=catch_up) as caught:
            db.refresh()
            assert caught.call_count == 1
        assert db.sql(COUNT).rows == [(6,)]


def test_a_fork_does_not_wait_for_a_thread_that_had_clickhouse_catch_up(folder: Path, writer: Writer) -> None:
    with clipql.connect(folder, read_only=True, follow=True) as db:
        writer.run(MORE)
        with db._engine._alone():  # as a thread has it, which is not there in the fork
            child = os.fork()
            if not child:
                moved = db.refresh()
                os._exit(0 if moved and sum(len(b.rows) for b in db.vectors("t", "v")) == 6 else 1)
            assert os.waitpid(child, 0)[1] == 0
        assert db.sql(COUNT).rows == [(6,)]


def test_a_reader_is_closed_and_forked_while_it_takes_a_commit(folder: Path, writer: Writer) -> None:
    """It waits for it: a lock that is held then would stay so in the fork for good."""
    with clipql.connect(folder, read_only=True, follow=True, behind_seconds=1e6) as db:
        assert db.search("t", vector=[0, 1], column="v", k=1).rows
        writer.run(MORE)
        with held_back() as (begun, go_on):
            db.search("t", vector=[0, 1], column="v", k=1)
            begun.acquire()
            threading.Timer(0.05, go_on.set).start()
            child = os.fork()
            if not child:
                moved = db.commit
                os._exit(0 if db.refresh() is False and db.commit == moved else 1)
            assert os.waitpid(child, 0)[1] == 0
        writer.run(MORE)
        with held_back() as (begun, go_on):
            until(lambda: db.search("t", vector=[0, 1], column="v", k=1) and begun.acquire(blocking=False), "its turn")
            closing = threading.Thread(target=db.close)
            closing.start()
            go_on.set()
            closing.join()
    assert list(folder.glob("tmp/*")) == []


def test_behind_seconds_goes_with_follow(folder: Path, writer: Writer) -> None:
    for given in ({"read_only": True}, {"read_only": True, "follow": True, "seconds": -1}):
        seconds = given.pop("seconds", 1)
        with pytest.raises(QueryError, match="goes with follow=True, and is 0 or more"):
            clipql.connect(folder, behind_seconds=seconds, **given)  # type: ignore[call-overload]


class Moments:
    """A database by a clock of its own, and a reader of it."""

    def __init__(self, seconds: float, takes: float = 0.0) -> None:
        self.now, self.there, self.seen, self.takes = 0.0, 0, 0, takes
        self.refreshes: list[float] = []
        self.following = Following(seconds, lambda: self.seen == self.there, self.refresh, clock=lambda: self.now)

    def refresh(self) -> None:
        with self.following.refreshed():
            self.refreshes.append(self.now)
            if self.takes < 0:
                raise StorageError("it cannot be")
            there = self.there
            self.now += self.takes
            self.seen = there

    def asked(self) -> bool:
        """A statement, after which what it had begun in the background is done."""
        found = self.following.may_go_on()
        thread = self.following._thread
        if thread is not None:
            thread.join()
        if not found:
            self.refresh()
        return found


def test_a_statement_waits_where_what_is_there_is_older_than_it_may_be() -> None:
    moments = Moments(seconds=2)
    for now, there, goes_on in ((1, 0, True), (2.9, 1, True), (50, 1, True), (53, 2, False), (53.1, 3, True)):
        moments.now, moments.there = now, there
        assert moments.asked() is goes_on, now
        assert moments.seen == there


def test_refreshes_take_at_most_a_fifth_of_the_time_beside_commits_without_a_pause() -> None:
    moments = Moments(seconds=20, takes=0.5)
    while moments.now < 500:
        moments.there += 1
        moments.now += 0.01
        assert moments.asked()
    assert len(moments.refreshes) == pytest.approx(500 / (0.5 + REST * 0.5), rel=0.05)


def test_what_fails_in_the_background_is_tried_at_a_pace_and_told_to_who_may_not_go_on() -> None:
    moments = Moments(seconds=2, takes=-1)
    moments.there = 1
    assert moments.asked()
    assert moments.asked()
    moments.now = 3
    with pytest.raises(StorageError, match="it cannot be"):
        moments.asked()
