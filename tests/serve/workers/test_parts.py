"""What the processes of a server share, and what a worker answers itself."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from functools import partial
from typing import Any

import pytest

from clipql.engine.users import Acting, EngineUser
from clipql.errors import ClipqlError
from clipql.serve.errors import error_headers, error_status
from clipql.serve.fellows import Fellows, session_kept, session_runs
from clipql.serve.limits import Limits
from clipql.serve.pool import Pool
from clipql.serve.server import Ending
from clipql.serve.workers import board as numbers
from clipql.serve.workers import channel as letters
from clipql.serve.workers.board import QUERIES, Board
from clipql.serve.workers.forwarding import ReplyHead
from clipql.serve.workers.member import Member
from clipql.serve.workers.routing import Elsewhere, keeps_to_writer, only_reads, statement
from clipql.serve.workers.stateless import Named, Stateless, named

NOWHERE = Elsewhere()
IN_MEMORY = Elsewhere.of(
    [{"name": "m", "engine": "Memory"}, {"name": "v", "engine": "View"}, {"name": "t", "engine": "MergeTree"}]
)


@pytest.mark.parametrize(
    "text",
    ["SELECT 1", " select\n2", "WITH 1 AS x SELECT x", "SELECT * FROM laion WHERE id IN (SELECT n FROM numbers(3))"],
)
def test_a_worker_answers_what_reads_files(text: str) -> None:
    assert only_reads(text, NOWHERE)


@pytest.mark.parametrize(
    "text",
    ["INSERT INTO t SELECT 1", "DROP TABLE t", "SET x = 1", "USE d", "SHOW TABLES", "KILL QUERY WHERE query_id = 'x'",
     "EXPLAIN SELECT 1", "SELECT * FROM System.parts", "SELECT 1 FROM {t:Identifier}", "SELECT * FROM clipql.indexes",
     "(SELECT 1)", "", "SELECTED", "WITH x AS (SELECT 1) INSERT INTO t SELECT * FROM x", "-- a\nSELECT 1"],
)  # fmt: skip
def test_the_writer_answers_everything_else(text: str) -> None:
    assert not only_reads(text, NOWHERE)


@pytest.mark.parametrize(
    ("text", "here"),
    [("SELECT 1", True), ("SELECT * FROM t", True), ("SELECT * FROM m", False), ("SELECT * FROM v", False),
     ("SELECT * FROM d.`m`", False), ('SELECT * FROM "\\x6d"', False), ("SELECT joinGet('t', 'a', 1)", False)],
)  # fmt: skip
def test_what_may_name_a_table_in_memory_is_for_the_writer(text: str, here: bool) -> None:
    found = Elsewhere(frozenset({"m", "v"}))
    assert found == IN_MEMORY
    # names of a letter are found in every word: others tell them apart
    longer = Elsewhere(frozenset({name * 9 for name in found.names}))
    for name in found.names:
        text = text.replace(f" {name}", f" {name * 9}").replace(f"`{name}`", f"`{name * 9}`")
    assert only_reads(text, longer) is here


def test_a_statement_is_put_together_from_the_address_and_the_body() -> None:
    assert statement(b"a=1&query=SELECT+1%2C2", b"") == "SELECT 1,2"
    assert statement(b"query=INSERT+INTO+t+FORMAT+CSV", b"1\n") == "INSERT INTO t FORMAT CSV\n1\n"
    assert statement(b"", b"SELECT 1") == "SELECT 1"
    assert statement(b"", b"\xff") is None
    assert statement(b"quer%79=DROP", b"") is None
    assert statement(b"%73ession_id=x", b"SELECT 1") is None


def test_what_is_packed_is_for_the_writer() -> None:
    assert keeps_to_writer(b"decompress=1", [])
    assert keeps_to_writer(b"", [(b"content-type", b"Multipart/form-data; boundary=x")])
    assert keeps_to_writer(b"", [(b"content-encoding", b"gzip")])
    assert not keeps_to_writer(b"query=SELECT+1", [(b"content-type", b"text/plain")])


def test_a_session_is_read_from_an_address() -> None:
    assert named(b"query=SELECT+1&session_id=a%20b&session_timeout=9") == Named("a b", 9, b"query=SELECT+1")
    assert named(b"session_id=x") == Named("x", 60, b"")
    assert named(b"session_id=x&session_check=0") == Named("x", 60, b"")
    for odd in (b"", b"session_timeout=5", b"session_id=x&session_check=1", b"session_id=x&session_timeout=3601",
                b"session_id=x&session_timeout=a", b"session_id=x&session_id=y"):  # fmt: skip
        assert named(odd) is None


def test_a_worker_runs_a_session_that_has_kept_nothing_and_runs_nothing_else() -> None:
    board, (writer, a, _) = members(3)
    ours, theirs = Stateless(board, 1), Stateless(board, 2)
    session = Named("x", 60, b"")

    def may(of: Stateless) -> bool:
        with of.running(session) as free:
            return free

    assert [may(ours), may(ours), may(theirs), may(theirs)] == [False, True, False, True]  # the writer is told first
    with ours.running(session) as free:
        assert free
        assert writer.runs(session_runs("x"))
        assert [may(ours), may(theirs)] == [False, False]
    writer.began(session_runs("x"))
    assert not may(ours)
    writer.ended(session_runs("x"))
    assert may(ours)
    writer.began(session_kept("x"))
    assert not may(ours)
    writer.ended(session_kept("x"))
    for n in range(QUERIES + 1):
        writer.began(str(n))  # there is no room to say what is kept
    assert not may(ours)
    assert not a.runs("none")


def members(count: int) -> tuple[Board, list[Member]]:
    """Processes that share a board, in one, whose supervisor is gone."""
    board, (ours, theirs) = Board(count), letters.pair()
    ours.close()
    theirs.close()
    return board, [Member(number, board, theirs, "") for number in range(count)]


def test_limits_hold_for_all_processes_and_one_that_died_holds_nothing() -> None:
    board, (a, b, c) = members(3)
    assert [a.start(3), b.start(3), c.start(3), a.start(3)] == [True, True, True, False]
    b.finish()
    assert a.start(3)
    board.clear(0)  # it was killed
    assert [b.start(3), b.start(3), b.start(3)] == [True, True, False]
    assert b.others_taken(5) == 0
    assert c.others_taken(2) == 5
    assert a.others_bodies(100) == 0
    assert c.others_bodies(0) == 100
    assert a.limits(Limits(connections=7)).connections == 4


def test_a_query_id_is_known_to_all_until_it_ends() -> None:
    board, (a, b) = members(2)
    a.began("same")
    assert (a.runs("same"), b.runs("same"), b.runs("other")) == (False, True, False)
    a.ended("same")
    assert not b.runs("same")
    for id in ("first", "second", "third"):
        b.began(id)
    b.ended("third")
    b.ended("first")
    assert a.runs("second")
    b.began("fourth")  # in the place of the first
    b.ended("second")
    assert [a.runs(id) for id in ("first", "second", "third", "fourth")] == [False, False, False, True]
    b.ended("fourth")
    assert board.get(1, numbers.TOP) == 0  # nothing is looked through where nothing runs
    for n in range(QUERIES + 1):
        a.began(str(n))
    assert b.runs(str(QUERIES - 1))
    board.clear(0)
    assert not b.runs("5")
    assert board.get(0, numbers.RUNNING) == 0


def test_a_channel_carries_messages_and_tells_of_the_end() -> None:
    ours, theirs = letters.pair()
    assert ours.send(letters.KILL, b"x")
    with socket.socket() as given:
        assert ours.send(letters.CLIENT, given=given)
    (one, two) = list(theirs.receive())
    assert one == (letters.KILL, b"x", None)
    assert two is not None
    assert two[2] is not None
    two[2].close()
    ours.close()
    assert list(theirs.receive()) == [None]
    assert not theirs.send(letters.READY)
    theirs.close()


def test_what_is_cut_off_at_the_end_of_the_server_is_told_to_come_again() -> None:
    sent: list[dict[str, Any]] = []

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def ended() -> None:
        task = asyncio.ensure_future(Ending(endless)({"type": "http"}, None, send))
        await asyncio.sleep(0)
        task.cancel()
        await task

    asyncio.run(ended())
    assert (sent[0]["status"], dict(sent[0]["headers"])[b"retry-after"]) == (503, b"1")
    assert b"whether a statement that writes was carried out is not known" in sent[1]["body"]


def test_progress_in_a_head_is_told_as_it_comes_and_the_rest_of_it_is_read_as_it_was_written() -> None:
    well = b"HTTP/1.1 200 OK\r\nX-ClickHouse-Progress: 1\r\nX-ClickHouse-Progress: 2\r\nX-ClickHouse-Summary: 3\r\n"
    body = b"\r\nX-ClickHouse-Progress: of the body\r\n\r\n"
    wrong = b"HTTP/1.1 500 Internal Server Error\r\nX-ClickHouse-Progress: 1\r\n"
    for size in range(1, len(well + body) + 1):
        told: list[tuple[str, str]] = []
        for data, kept in ((well, b"HTTP/1.1 200 OK\r\nX-ClickHouse-Summary: 3\r\n"), (wrong, wrong)):
            head = ReplyHead(lambda name, value: told.append((name, value)))  # noqa: B023
            whole = data + body
            pieces = [head.rest(whole[at : at + size]) for at in range(0, len(whole), size)]
            assert b"".join(pieces) == kept + body
        assert told == [("X-ClickHouse-Progress", "1"), ("X-ClickHouse-Progress", "2")]


def test_only_what_the_end_of_the_server_cuts_off_is_told_to_come_again() -> None:
    killed, cut_off, waiting = (Acting(EngineUser()) for _ in range(3))

    async def ended() -> list[tuple[int, dict[str, str]]]:
        pool = Pool(Limits(running=2, waiting=8), lambda acting: None, Fellows())
        begun = threading.Semaphore(0)

        def work(acting: Acting) -> None:
            begun.release()
            while not acting.cancelled:
                time.sleep(0.001)

        asked = [pool.submit(partial(work, each), each) for each in (killed, cut_off, waiting)]
        for _ in range(2):
            await asyncio.to_thread(begun.acquire)
        pool.stop(killed)
        pool.stop_all()
        errors = await asyncio.gather(*asked, return_exceptions=True)
        pool.close(10)
        return [(error_status(e), error_headers(e)) for e in errors if isinstance(e, ClipqlError)]

    come_again = (503, {"Retry-After": "1"})
    assert asyncio.run(ended()) == [(500, {}), come_again, come_again]
