"""A server of one process that writes and two that answer what reads: it answers as one process does."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from clickhouse_driver import Client

from tests.patience import LAST_NET_SECONDS, until
from tests.serve.conftest import DIMENSION, Reply, Running, fill, start, stop
from tests.serve.workers.processes import all_of, children, lives, resident, workers, writer

ENDLESS = "SELECT count() FROM numbers(1000000000000) WHERE number % 3 = 7"
VECTOR = "[" + ",".join(["0.25"] * DIMENSION) + "]"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that may write, inside the kernel's wall where there is one."""
    folder = tmp_path_factory.mktemp("many")
    fill(folder)
    running = start(folder, "--write", "--workers", "2", "--max-running", "6", "--tcp-port", "0")
    assert running.sql("CREATE TABLE seen (who UInt32, n UInt32) ENGINE = MergeTree ORDER BY n").status == 200
    assert running.sql("CREATE TABLE kept (n UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY n").status == 200
    yield running
    for pid in all_of(running):
        os.kill(pid, signal.SIGCONT)
    stop(running)


def patiently(server: Running, sql: str, **query: str) -> Reply:
    """A statement that may be sent twice, again until it is answered with anything but 503 or a closed connection."""
    last: list[Reply] = []

    def answered() -> bool:
        try:
            last[:] = [server.sql(sql, **query)]
        except (OSError, http.client.HTTPException):
            return False
        assert last[0].status != 503 or last[0].headers["retry-after"] == "1"
        return last[0].status != 503

    until(answered, sql)
    return last[0]


class Endless:
    """A query without an end, in a thread. It begins when no other of its session or id runs."""

    def __init__(self, server: Running, id: str, **query: str) -> None:
        self._server, self._id, self._query = server, id, query
        self.said = ""
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        until(self._runs, "a query that runs")

    def _run(self) -> None:
        while not self.said or "ALREADY_RUNNING" in self.said or "SESSION_IS_LOCKED" in self.said:
            self.said = self._server.sql(ENDLESS, query_id=self._id, **self._query).text

    def _runs(self) -> bool:
        return "ALREADY_RUNNING" in self._server.sql("SELECT 1", query_id=self._id).text

    def killed(self) -> str:
        """What it said when it was killed."""
        killing = self._server.sql(f"KILL QUERY WHERE query_id = '{self._id}'")
        assert killing.text == f"waiting\t{self._id}\tdefault\n"
        self._thread.join()
        return self.said


def figure(server: Running, name: str) -> float:
    """One of the figures for Prometheus."""
    lines = server.ask("/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[1])


def complete(server: Running) -> bool:
    """Whether all processes are there and have joined in."""
    first = writer(server)
    return first is not None and len(workers(server)) == 2


def test_what_was_acknowledged_is_seen_by_the_next_request_of_whoever_asks(many: Running) -> None:
    wrong: list[str] = []

    def client(who: int) -> None:
        for n in range(1, 8):
            assert many.sql(f"INSERT INTO seen VALUES ({who}, {n})").status == 200
            for _ in range(2):  # each by a connection of its own, to whichever worker
                found = many.sql(f"SELECT max(n), count() FROM seen WHERE who = {who}").text
                if found != f"{n}\t{n}\n":
                    wrong.append(found)

    threads = [threading.Thread(target=client, args=(who,)) for who in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_vectors_deletes_and_definitions_are_seen_at_once(many: Running) -> None:
    nearest = f"SELECT n FROM kept ORDER BY L2Distance(v, {VECTOR}) LIMIT 1"
    for n in (11, 12):
        assert many.sql(f"INSERT INTO kept VALUES ({n}, {VECTOR})").status == 200
        assert many.sql("SELECT max(n) FROM kept").text == f"{n}\n"
        assert many.sql(nearest).text == "11\n"
    assert many.sql("DELETE FROM kept WHERE n = 11").status == 200
    assert many.sql(nearest).text == "12\n"
    found = many.post("/api/search", {"table": "kept", "terms": [{"vector": [0.25] * DIMENSION}]}).json
    assert [row["values"]["n"] for row in found["rows"]] == [12]
    assert many.sql("ALTER TABLE kept ADD COLUMN more String DEFAULT 'new'").status == 200
    assert many.sql("SELECT n, more FROM kept").text == "12\tnew\n"
    assert many.sql("CREATE VIEW half AS SELECT n / 2 AS h FROM kept").status == 200
    assert many.sql("SELECT h FROM half").text == "6\n"
    assert many.sql("DROP VIEW half").status == 200
    assert many.sql("SELECT h FROM half").status == 404


def test_the_native_protocol_is_spoken_by_the_writer_and_workers_see_what_it_wrote(many: Running) -> None:
    rows = [(at, [float(at), 1.0]) for at in range(9)]
    with Client("127.0.0.1", many.native, send_receive_timeout=LAST_NET_SECONDS) as client:
        client.execute("CREATE TABLE by_tcp (n UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY n")
        client.execute("INSERT INTO by_tcp VALUES", rows)
        for _ in range(4):
            asked = many.sql("SELECT groupArray(n) FROM (SELECT n FROM by_tcp ORDER BY L2Distance(v, [8, 1]) LIMIT 2)")
            assert asked.text == "[8,7]\n"
        assert client.execute("SELECT count() FROM by_tcp") == [(9,)]
        client.execute("DROP TABLE by_tcp")
    with socket.create_connection(("127.0.0.1", many.native), LAST_NET_SECONDS) as wrong:
        wrong.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert many.url.encode() in wrong.recv(4096)


def test_tables_that_are_in_memory_only_are_whole_whoever_is_asked(many: Running) -> None:
    assert many.sql("CREATE TABLE short (n UInt32) ENGINE = Memory").status == 200
    assert many.sql("INSERT INTO short VALUES (1), (2)").status == 200
    assert many.sql("CREATE VIEW of_short AS SELECT sum(n) AS s FROM short").status == 200
    for _ in range(3):
        assert many.sql("SELECT count() FROM short").text == "2\n"
        assert many.sql('SELECT count() FROM "sh\\x6frt"').text == "2\n"
        assert many.sql("SELECT s FROM of_short").text == "3\n"
        assert many.sql("SELECT count() FROM laion WHERE id % 300 IN short").text == "2\n"
        counted = many.post(
            "/api/count", {"table": "laion", "where": "id % 300 IN (SELECT n FROM short)", "safe": False}
        )
        assert counted.json["matching"] == 2
    for what in ("VIEW of_short", "TABLE short"):
        assert many.sql(f"DROP {what}").status == 200


def test_workers_answer_what_reads_and_the_writer_the_rest(many: Running) -> None:
    def answered(reply: Reply) -> str | None:
        assert reply.status == 200
        return reply.headers.get("x-clipql-worker")

    names: set[str | None] = set()

    def all_answer() -> bool:
        names.add(answered(many.sql("SELECT count() FROM laion")))
        return names >= {"1", "2"}

    until(all_answer, "an answer of each worker")
    until(lambda: None not in [answered(many.sql("SELECT 1")) for _ in range(4)], "workers that have all")
    assert answered(many.post("/api/search", {"table": "laion", "k": 1, "terms": [{"id": "3"}]})) in {"1", "2"}
    assert answered(many.sql("WITH 1 AS x SELECT x")) in {"1", "2"}
    assert answered(many.ask("/ping")) in {"1", "2"}
    assert answered(many.sql("SET param_x = 1", session_id="s")) is None
    for _ in range(4):
        assert answered(many.sql("SELECT {x:Int32}", session_id="s")) is None
    names.clear()

    def sessions_too() -> bool:
        names.add(answered(many.sql("SELECT 1", session_id="of one that SETs nothing")))
        return names >= {"1", "2", None}

    until(sessions_too, "an answer of each process")
    assert answered(many.sql("SELECT count() FROM system.parts")) is None
    assert answered(many.sql("SHOW TABLES")) is None
    assert answered(many.sql("INSERT INTO seen VALUES (99, 1)")) is None
    assert many.sql("SELECT count() FROM seen WHERE who = 99").text == "1\n"


def test_a_session_is_one_whichever_worker_is_asked(many: Running) -> None:
    def sql(text: str, **query: str) -> Reply:
        return many.sql(text, session_id="one", **query)

    assert sql("SET param_x = 5").status == 200
    assert sql("CREATE TEMPORARY TABLE mine (n UInt32)").status == 200
    for n in range(1, 4):
        assert sql(f"INSERT INTO mine VALUES ({n})").status == 200
        assert sql("SELECT count(), {x:UInt32} FROM mine").text == f"{n}\t5\n"
    assert many.sql("SELECT count() FROM mine").status == 404
    slow = Endless(many, "slow", session_id="one")
    assert sql("SELECT 1").status == 423
    assert "QUERY_WAS_CANCELLED" in slow.killed()
    assert sql("SELECT count(), {x:UInt32} FROM mine").text == "3\t5\n"


def test_a_query_is_killed_wherever_it_runs(many: Running) -> None:
    for number in range(3):
        query = Endless(many, f"endless-{number}")
        assert "QUERY_WAS_CANCELLED" in query.killed()
        assert many.sql("SELECT 1", query_id=f"endless-{number}").text == "1\n"


def test_bodies_and_results_stream_through_a_worker(many: Running) -> None:
    assert many.sql("CREATE TABLE wide (n UInt64, t String) ENGINE = Memory").status == 200
    rows = 40_000
    data = b"".join(b'{"n": %d, "t": "%s"}\n' % (n, b"x" * 100) for n in range(rows))
    connection = http.client.HTTPConnection("127.0.0.1", many.port, timeout=LAST_NET_SECONDS)
    pieces = [data[at : at + 100_000] for at in range(0, len(data), 100_000)]
    connection.request("POST", "/?query=INSERT+INTO+wide+FORMAT+JSONEachRow", iter(pieces), encode_chunked=True,
                       headers={"Transfer-Encoding": "chunked"})  # fmt: skip
    assert connection.getresponse().read() == b""
    connection.request("POST", "/", "SELECT n FROM wide ORDER BY n FORMAT TSV")
    assert connection.getresponse().read() == b"".join(b"%d\n" % n for n in range(rows))
    connection.request("POST", "/", "SELECT throwIf(n = 39999), t FROM wide")  # an error behind rows
    reply = connection.getresponse()
    assert b"FUNCTION_THROW_IF_VALUE_IS_NON_ZERO" in reply.read()
    connection.request("HEAD", "/?query=SELECT+1+FROM+wide+LIMIT+1")
    assert connection.getresponse().read() == b""
    connection.request("GET", "/?query=SELECT+count()+FROM+wide")
    assert connection.getresponse().read() == b"%d\n" % rows
    connection.close()
    assert many.sql("DROP TABLE wide").status == 200


def test_a_client_that_goes_takes_its_query_from_the_writer(many: Running) -> None:
    def taken() -> float:
        return figure(many, "clipql_requests_taken")

    until(lambda: taken() == 0, "a server at rest")
    connection = http.client.HTTPConnection("127.0.0.1", many.port, timeout=LAST_NET_SECONDS)
    connection.request("POST", "/?session_id=left", ENDLESS)
    until(lambda: taken() == 1, "a query that runs")
    connection.close()
    until(lambda: taken() == 0, "the query's end")
    assert many.sql("SELECT 1", session_id="left").status == 200


def test_progress_of_what_a_worker_passes_on_comes_while_it_runs(many: Running) -> None:
    until(lambda: complete(many), "all processes")
    assert many.sql("CREATE TABLE filled (n UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY n").status == 200
    asks = "/?query_id=told&session_id=told&send_progress_in_http_headers=1"
    searched = "FROM numbers(1000000000000) WHERE cityHash64(number) = 1 SETTINGS max_threads = 1"
    for sql, code in ((f"INSERT INTO filled SELECT number, [1., 2.] {searched}", 394), (f"SELECT 1 {searched}", 210)):
        with socket.create_connection(("127.0.0.1", many.port), LAST_NET_SECONDS) as line, line.makefile("rb") as come:
            head = f"POST {asks} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(sql)}\r\n\r\n"
            line.sendall(head.encode() + sql.encode())
            assert come.readline() == b"HTTP/1.1 200 OK\r\n"
            told = [json.loads(come.readline().removeprefix(b"X-ClickHouse-Progress: ")) for _ in range(2)]
            read = [int(each["read_rows"]) for each in told]
            assert 0 < read[0] < read[1] < int(told[0]["total_rows_to_read"]) == 1_000_000_000_000, sql
            if code == 394:
                many.sql("KILL QUERY WHERE query_id = 'told'")
            else:
                os.kill(writer(many) or 0, signal.SIGKILL)
            headers = http.client.parse_headers(come)
            assert (headers["X-ClickHouse-Exception-Code"], sql) == (str(code), sql)
            body = come.read(int(headers["Content-Length"]))
            assert body.startswith(b"Code: 394" if code == 394 else b"the process that writes is being restarted")
    assert patiently(many, "DROP TABLE IF EXISTS filled").status == 200  # by a new writer


def test_figures_are_of_all_processes_and_outlive_one(many: Running) -> None:
    def answered() -> float:
        return figure(many, 'clipql_requests_total{face="clickhouse",status="200"}')

    until(lambda: complete(many), "all processes")
    before = answered()
    for _ in range(10):
        assert many.sql("SELECT 1").status == 200
    assert many.sql("SELECT 1", session_id="of the writer").status == 200
    assert answered() == before + 11
    killed = workers(many)[0]
    os.kill(killed, signal.SIGKILL)
    until(lambda: complete(many) and killed not in workers(many), "another one")
    assert many.sql("SELECT 1").status == 200
    assert answered() == before + 12


def test_a_worker_that_is_killed_is_replaced_and_others_answer_meanwhile(many: Running) -> None:
    until(lambda: complete(many), "all processes")
    killed = workers(many)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
        assert patiently(many, "SELECT count() FROM laion").text == "300\n"
    until(lambda: complete(many) and not set(workers(many)) & set(killed), "two others")
    assert patiently(many, "SELECT count() FROM laion").text == "300\n"


def test_no_acknowledged_row_is_lost_with_the_writer_and_reads_go_on(many: Running) -> None:
    assert many.sql("CREATE TABLE rows_kept (n UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY n").status == 200
    acknowledged = []
    for n in range(12):
        if n in (3, 8):
            until(lambda: complete(many), "all processes")
            first = writer(many)
            assert first is not None
            os.kill(first, signal.SIGKILL)
        try:
            if many.sql(f"INSERT INTO rows_kept VALUES ({n}, {VECTOR})").status == 200:
                acknowledged.append(n)
        except (OSError, http.client.HTTPException):
            continue
        found = patiently(many, "SELECT groupArray(n) FROM (SELECT n FROM rows_kept ORDER BY n)").text
        assert set(acknowledged) <= set(map(int, found.strip("[]\n").split(",")))
    assert len(acknowledged) >= 3
    until(lambda: complete(many), "all processes")
    assert patiently(many, "INSERT INTO rows_kept SELECT 100, v FROM rows_kept LIMIT 1").status == 200
    assert patiently(many, "SELECT max(n) FROM rows_kept").text == "100\n"
    with Client("127.0.0.1", many.native, send_receive_timeout=LAST_NET_SECONDS) as client:
        assert client.execute("SELECT max(n) FROM rows_kept") == [(100,)]


def test_a_worker_that_follows_holds_no_more_than_at_first(many: Running) -> None:
    until(lambda: complete(many), "all processes")

    def held() -> list[tuple[int, int]]:
        return [(len(os.listdir(f"/proc/{pid}/fd")), resident(pid)) for pid in workers(many)]

    def written(n: int) -> None:
        assert many.sql(f"INSERT INTO seen VALUES (7, {n})").status == 200
        assert many.sql("SELECT max(n) FROM seen WHERE who = 7").text == f"{n}\n"
        snapshots = {p.name for p in (many.folder / "test.db/tmp").glob("reader-*")}
        until(lambda: {p.name for p in (many.folder / "test.db/tmp").glob("reader-*")} != snapshots, "a refresh")

    for n in range(1, 4):
        written(n)
    before = held()
    for n in range(4, 12):
        written(n)
    for (files, memory), (more_files, more_memory) in zip(before, held(), strict=True):
        assert more_files < files + 25  # each opening of ClickHouse anew would leave fourteen
        assert more_memory < memory + (200 << 20)
    assert len(list((many.folder / "test.db/tmp").glob("reader-*"))) <= 2 * len(workers(many)) + 2


def test_all_processes_are_inside_the_wall_and_end_with_the_first(tmp_path: Path) -> None:
    fill(tmp_path)
    server = start(tmp_path, "--workers", "2", environment={"CLIPQL_TOKEN": "open"})  # reads only
    key = {"X-ClickHouse-Key": "open"}
    assert server.ask("/", "SELECT 1").status == 401
    for _ in range(3):
        assert server.ask("/", "SELECT count() FROM laion", headers=key).text == "300\n"
        assert server.ask("/", "DROP TABLE laion", headers=key).status == 403
        status = server.ask("/api/status", headers={"Authorization": "Bearer open"}).json
        if status["sandbox"]["network"]:
            for pid in children(server.process.pid):
                assert "\nSeccomp:\t2\n" in Path(f"/proc/{pid}/status").read_text()
    assert server.ask("/api/thumbnail/default/pictures/0", headers={"Authorization": "Bearer open"}).status == 200
    everybody = all_of(server)
    assert len(everybody) >= 4
    server.process.kill()
    until(lambda: not any(lives(pid) for pid in everybody), "the end of all processes")
    stop(server)
    again = start(tmp_path, "--workers", "2")
    everybody = all_of(again)
    assert stop(again) == 0
    assert not any(lives(pid) for pid in everybody)
    assert list((tmp_path / "test.db/tmp").iterdir()) == []
