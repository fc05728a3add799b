"""A query that is cancelled ends; another that comes after it on the same connection does not."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from patience import LAST_NET_SECONDS, until

import clipql
from clipql.engine.killing import Kills
from clipql.engine.users import Acting, Connection, EngineUser
from clipql.errors import QueryCancelled

SLOW = "SELECT sum(sleepEachRow(0.05)) FROM numbers({rows}) SETTINGS max_block_size = 1"


class LateKill:
    """clipql's own connection, on which a KILL goes out only once it is allowed to."""

    def __init__(self, raw: Any) -> None:
        self._raw, self.asked, self.allowed, self.sent = raw, threading.Event(), threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def query(self, sql: str, *rest: Any, **named: Any) -> Any:
        if not sql.startswith("KILL"):
            return self._raw.query(sql, *rest, **named)
        self.asked.set()
        assert self.allowed.wait(LAST_NET_SECONDS)
        try:
            return self._raw.query(sql, *rest, **named)
        finally:
            self.sent.set()


def running(db: clipql.Database, acting: Acting, rows: int) -> tuple[threading.Thread, list[Any]]:
    """A slow query of a user, begun; and what becomes of it."""
    found: list[Any] = []
    engine = db.registry.engine

    def run() -> None:
        try:
            with engine.act(acting):
                found.append(engine.arrow(SLOW.format(rows=rows), user=True).num_rows)
        except QueryCancelled as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: acting.running, "it runs")
    return thread, found


@pytest.mark.parametrize("same_user", [True, False])
def test_a_kill_that_comes_late_hits_no_other_query(db: clipql.Database, same_user: bool) -> None:
    engine = db.registry.engine
    user = EngineUser()
    first = Acting(user)
    thread, cancelled = running(db, first, 10)
    late = LateKill(engine._own.idle[-1].raw)
    engine._own.idle[-1].raw = late
    killer = threading.Thread(target=engine.cancel, args=(first,))
    killer.start()
    assert late.asked.wait(LAST_NET_SECONDS)
    thread.join()  # by itself, before the KILL goes out
    assert len(cancelled) == 1
    second = Acting(user if same_user else EngineUser())
    thread, found = running(db, second, 20)
    late.allowed.set()
    assert late.sent.wait(LAST_NET_SECONDS)
    killer.join()
    thread.join()
    assert found == [1]


def test_what_was_to_be_cancelled_and_has_ended_leaves_the_next_query_of_its_connection_alone(
    db: clipql.Database,
) -> None:
    engine, user = db.registry.engine, EngineUser()
    first = Acting(user)
    thread, found = running(db, first, 1)
    tags = set(first.running)
    thread.join()
    second = Acting(user)
    thread, other = running(db, second, 10)
    for tag in tags:  # as somebody does who had looked at them before
        engine.kill(tag, first)
    thread.join()
    assert found == other == [1]


def test_a_kill_that_comes_before_its_query_has_begun_is_sent_again(
    db: clipql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, acting, begin = db.registry.engine, Acting(EngineUser()), threading.Event()
    prepare = Connection.prepare

    def held(self: Connection, who: Acting) -> None:
        prepare(self, who)
        if who is acting:
            assert begin.wait(LAST_NET_SECONDS)

    monkeypatch.setattr(Connection, "prepare", held)
    thread, found = running(db, acting, 100_000)
    engine.cancel(acting)
    begin.set()
    thread.join(LAST_NET_SECONDS)
    assert [type(each) for each in found] == [QueryCancelled]
    until(lambda: engine._kills.over, "no more is sent")


def test_a_cancelled_query_ends_and_its_user_keeps_temporary_tables(db: clipql.Database) -> None:
    engine, user = db.registry.engine, EngineUser()
    with engine.act(Acting(user)):
        engine.run("CREATE TEMPORARY TABLE kept (n UInt8)", user=True)
        engine.run("INSERT INTO kept VALUES (7)", user=True)
    acting = Acting(user)
    thread, found = running(db, acting, 100_000)
    engine.cancel(acting)
    thread.join(LAST_NET_SECONDS)
    assert [type(each) for each in found] == [QueryCancelled]
    with engine.act(Acting(user)):
        assert engine.scalar("SELECT n FROM kept", user=True) == 7


def test_nothing_is_sent_once_the_engine_is_closed() -> None:
    sent: list[str] = []
    kills = Kills(sent.append)
    kills.began("a")
    kills.kill("a", lambda: True)
    until(lambda: len(sent) > 1, "it is sent again")
    kills.stop()
    told = len(sent)
    assert kills.over
    assert not kills.ended("a")
    assert len(sent) == told
    kills.began("b")
    kills.kill("b", lambda: True)
    assert set(sent[told:]) == {"b"}
    assert kills.ended("b")
