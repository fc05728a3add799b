"""ClickHouse's HTTP protocol as curl speaks it, the doors before it, and the life of the server."""

from __future__ import annotations

import bz2
import gzip
import http.client
import json
import lzma
import socket
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qsl

import lz4.frame
import numpy as np
import pyarrow as pa
import pytest
import zstandard

import clipql
from clipql.serve import compression, unpacking
from clipql.serve.cityhash import cityhash128
from tests.patience import LAST_NET_SECONDS, until
from tests.serve.conftest import TOKEN, Reply, Running, fill, start, stop

FOREVER = "SELECT count() FROM numbers(100000000000) WHERE sipHash64(number) % 7 = 9"


def wait_until_busy(server: Running, requests: int = 1) -> None:
    """Wait until so many requests run."""
    until(lambda: f"clipql_requests_taken {requests}.0" in server.ask("/metrics").text, f"{requests} requests run")


def test_ping_and_an_empty_address_answer_ok(server: Running) -> None:
    assert server.ask("/ping").text == "Ok.\n"
    assert server.ask("/replicas_status").text == "Ok.\n"
    assert server.ask("/").text == "Ok.\n"
    assert [server.ask(path, method="HEAD").status for path in ("/", "/ping")] == [200, 200]
    assert server.ask("/nowhere").status == 404


def test_a_statement_comes_in_the_address_or_the_body_or_both(server: Running) -> None:
    assert server.ask(query="SELECT 1, 'a'").text == "1\ta\n"
    assert server.sql("SELECT 2").text == "2\n"
    assert server.ask("/", "1 + 2", query="SELECT").text == "3\n"
    reply = server.ask(query="SELECT 1 AS a", default_format="JSONCompact")
    assert (reply.json["data"], reply.headers["content-type"]) == ([[1]], "application/json; charset=UTF-8")
    assert server.ask("/", "SELECT 1 AS a", headers={"X-ClickHouse-Format": "CSVWithNames"}).text == '"a"\n1\n'
    assert server.ask(query="SELECT 1 FORMAT JSONEachRow", default_format="CSV").text == '{"1":1}\n'


def test_headers_tell_about_the_query(server: Running) -> None:
    reply = server.sql("SELECT number FROM numbers(10)", query_id="my-own")
    summary = json.loads(reply.headers["x-clickhouse-summary"])
    assert reply.headers["x-clickhouse-query-id"] == "my-own"
    assert reply.headers["x-clickhouse-format"] == "TabSeparated"
    assert reply.headers["x-clickhouse-server-display-name"] == "clipql"
    assert reply.headers["x-clickhouse-timezone"] in ("UTC", "Etc/UTC")
    assert summary["result_rows"] == "10"


def test_parameters_settings_and_the_database(server: Running) -> None:
    vector = ",".join(map(str, np.eye(16)[0]))
    sql = "SELECT url FROM laion ORDER BY L2Distance(image_embedding, {q:Array(Float32)}) LIMIT 2"
    assert server.sql(sql, param_q=f"[{vector}]").text.count("\n") == 2
    assert server.sql("SELECT {s:String}", param_s="tab\\tquote'").text == "tab\\tquote\\'\n"
    assert server.sql("SELECT {n:Nullable(Int8)}", param_n="\\N").text == "\\N\n"
    assert server.sql("SELECT getSetting('max_threads')", max_threads="1").text == "1\n"
    assert server.sql("SELECT currentDatabase()", database="default").text == "default\n"
    assert server.ask("/", "SELECT name FROM tables WHERE name = 'tables' AND database = 'information_schema' LIMIT 1",
                      headers={"X-ClickHouse-Database": "information_schema"}).status in (200, 404)  # fmt: skip
    assert server.sql(sql, param_q="[1,2]").status == 400
    assert "holds 16 numbers" in server.sql(sql, param_q="[1,2]").text


def test_a_distance_is_known_in_every_letter_case(server: Running) -> None:
    def near(name: str, tail: str = "") -> str:
        vector = ",".join(map(str, np.eye(16)[0]))
        sql = f"SELECT url FROM laion ORDER BY {name}(image_embedding, {{q:Array(Float32)}}), url LIMIT 3{tail}"
        return server.sql(sql, param_q=f"[{vector}]").text

    expected = near("L2Distance", " SETTINGS vector_plan = 0")
    assert expected.count("\n") == 3
    assert [near(name) for name in ("l2Distance", "L2DISTANCE", "distancel2")] == [expected] * 3
    assert near("l2distance", " SETTINGS vector_plan = 0") == expected
    assert server.sql("SELECT cosinedistance([1, 0], [0, 1]), LINFDISTANCE([3], [1]), DotProduct([2], [3])").text == (
        "1\t2\t6\n"
    )


def test_errors_have_clickhouses_shape_and_status(server: Running) -> None:
    for sql, status, code in (
        ("SELECT * FROM nosuch", 404, "60"),
        ("SELECT nosuch FROM laion", 404, "47"),
        ("SELEC", 400, "62"),
        ("", 400, "62"),
        ("SELECT * FROM file('x')", 403, "497"),
        ("SELECT throwIf(1, 'boo')", 500, "395"),
        ("SELECT 1 FORMAT Nosuch", 400, "73"),
    ):
        reply = server.sql(sql)
        assert (reply.status, reply.headers["x-clickhouse-exception-code"]) == (status, code), sql
        assert reply.text.startswith(f"Code: {code}. DB::Exception: ")
    assert (
        server.sql("SELECT * FROM nosuch")
        .text.rstrip()
        .endswith("(UNKNOWN_TABLE) (version " + server.sql("SELECT version()").text.strip() + ")")
    )


def test_what_drivers_ask_when_they_look_around_is_answered(reader: Running) -> None:
    wrong = []
    lines = (Path(__file__).parent / "drivers.txt").read_text(encoding="utf-8").splitlines()
    for parameters, sql in (line.split("\t") for line in lines if not line.startswith("#")):
        given = dict(parse_qsl(parameters, keep_blank_values=True))
        reply = reader.ask("/", sql, headers={"X-ClickHouse-Key": TOKEN}, **given)
        if reply.status != 200:
            wrong.append(f"{sql[:100]}: {reply.status} {reply.text[:200]}")
    assert wrong == [], "\n".join(wrong)


def test_get_reads_only(server: Running) -> None:
    reply = server.ask(query="CREATE TABLE got (a Int8) ENGINE = Memory")
    assert (reply.status, reply.headers["x-clickhouse-exception-code"]) == (403, "164")


def test_data_is_inserted_from_the_body(server: Running) -> None:
    server.sql("CREATE TABLE bodies (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    assert server.sql("INSERT INTO bodies VALUES (1, [1, 0]), (2, [0, 1]);").status == 200
    assert server.ask("/", "(3, [1, 1])", query="INSERT INTO bodies VALUES").status == 200
    assert server.ask("/", '4,"[2, 2]"\n5,"[3, 3]"\n', query="INSERT INTO bodies FORMAT CSV").status == 200
    assert server.sql('INSERT INTO bodies FORMAT JSONEachRow\n{"id": 6, "v": [4, 4]}').status == 200
    native = server.sql("SELECT toUInt32(7) AS id, [5::Float32, 5::Float32] AS v FORMAT Native").body
    assert server.ask("/", native, query="INSERT INTO bodies FORMAT Native").status == 200
    assert server.ask("/", b"INSERT INTO bodies FORMAT Native\n" + native.replace(b"\x07", b"\x07")).status == 200
    assert server.sql("INSERT INTO bodies SELECT id + 10, v FROM bodies WHERE id = 1").status == 200
    assert server.sql("SELECT groupArray(id) FROM (SELECT id FROM bodies ORDER BY id)").text == "[1,2,3,4,5,6,7,7,11]\n"
    bad = server.ask("/", '8,"[2]"\n', query="INSERT INTO bodies FORMAT CSV")
    assert (bad.status, "v of default.bodies holds 2 numbers" in bad.text) == (400, True)
    assert server.ask("/", "x,y\n", query="INSERT INTO bodies FORMAT CSV").status == 400
    server.sql("DROP TABLE bodies")


@pytest.mark.parametrize(
    ("encoding", "pack", "unpack"),
    [("gzip", gzip.compress, gzip.decompress), ("deflate", zlib.compress, zlib.decompress),
     ("lz4", lz4.frame.compress, lz4.frame.decompress),
     ("zstd", zstandard.ZstdCompressor().compress, lambda d: zstandard.ZstdDecompressor().stream_reader(d).read()),
     ("xz", lzma.compress, lzma.decompress), ("bz2", bz2.compress, bz2.decompress)],
)  # fmt: skip
def test_bodies_and_results_are_packed(
    server: Running, encoding: str, pack: Callable[[bytes], bytes], unpack: Callable[[bytes], bytes]
) -> None:
    reply = server.ask("/", pack(b"SELECT number FROM numbers(1000)"), headers={"Content-Encoding": encoding})
    assert reply.text == "".join(f"{i}\n" for i in range(1000))
    packed = server.ask("/", "SELECT 1", headers={"Accept-Encoding": encoding}, enable_http_compression="1")
    assert (packed.headers["content-encoding"], unpack(packed.body)) == (encoding, b"1\n")
    assert "content-encoding" not in server.ask("/", "SELECT 1", headers={"Accept-Encoding": encoding}).headers
    assert server.ask("/", b"not packed", headers={"Content-Encoding": encoding}).status in (400, 500)


def test_what_clickhouse_packs_is_read_and_what_is_packed_here_clickhouse_reads(
    server: Running, tmp_path: Path
) -> None:
    written, received = tmp_path / "written", tmp_path / "received"
    rows = "SELECT number AS n, toString(sipHash64(number)) AS s FROM numbers(20000)"
    digest = "SELECT count(), sum(cityHash64(n, s)) FROM"
    server.sql("CREATE TABLE packed (n UInt64, s String) ENGINE = MergeTree ORDER BY n")
    with clipql.connect(tmp_path / "db") as db:
        engine = db.registry.engine
        for encoding in ("br", "xz", "snappy"):
            engine.run(f"INSERT INTO FUNCTION file('{written}.{encoding}', 'TSV', 'n UInt64, s String', 'auto') {rows}")
            body = Path(f"{written}.{encoding}").read_bytes()
            assert server.sql("TRUNCATE TABLE packed").status == 200
            insert = {"query": "INSERT INTO packed FORMAT TSV", "headers": {"Content-Encoding": encoding}}
            assert server.ask("/", body, **insert).status == 200
            asked = {"headers": {"Accept-Encoding": encoding}, "enable_http_compression": "1"}
            reply = server.ask("/", "SELECT * FROM packed ORDER BY n", **asked)
            assert reply.headers["content-encoding"] == encoding
            received.write_bytes(reply.body)
            back = engine.query(f"{digest} file('{received}', 'TSV', 'n UInt64, s String', '{encoding}')", "TSV").data
            assert back == server.sql(f"{digest} packed").body == engine.query(f"{digest} ({rows})", "TSV").data
    server.sql("DROP TABLE packed")


def test_a_result_is_waited_for_where_the_client_asks(server: Running) -> None:
    fails = "SELECT number, throwIf(number = 900000) FROM numbers(1000000)"
    assert server.sql(fails).status == 200  # rows went before the error
    whole = server.sql(fails, wait_end_of_query="1")
    assert (whole.status, whole.headers["x-clickhouse-exception-code"], "\n0\t" in whole.text) == (500, "395", False)
    long = "SELECT number FROM numbers(400000)"
    reply = server.sql(long, wait_end_of_query="1", buffer_size="10", send_progress_in_http_headers="1")
    assert reply.body == server.sql(long, buffer_size="100000000").body
    for name in ("x-clickhouse-summary", "x-clickhouse-progress"):
        assert json.loads(reply.headers[name])["result_rows"] == "400000"
    assert "x-clickhouse-progress" not in server.sql("SELECT 1").headers


def test_the_servers_name_and_its_columns_are_told(server: Running) -> None:
    told = server.sql("SELECT hostName(), upper(hostname()) AS h WHERE hostName() = 'clipql' FORMAT TSVWithNames").text
    assert told == "hostName()\th\nclipql\tCLIPQL\n"
    has = "hasColumnInTable('default', 'laion', '{}')"
    asked = f"SELECT {has.format('url')}, {has.format('image_embedding')}, {has.format('_row')}, {has.format('nix')}"
    assert server.sql(asked).text == "1\t1\t0\t0\n"
    assert "Table default.nix does not exist" in server.sql("SELECT hasColumnInTable('default', 'nix', 'a')").text
    assert server.sql("SELECT hasColumnInTable('127.0.0.2:9', 'default', 'laion', 'url')").status == 400
    assert server.sql("SELECT 'hostName()', t.hostName FROM (SELECT 1 AS hostName) AS t").text == "hostName()\t1\n"


def test_clickhouses_own_blocks_go_both_ways(server: Running) -> None:
    # CityHash128 1.0.2 of so many bytes, as the reference implementation gives it
    for length, expected in (
        (0, "2b9ac064fc9df03d291ee592c340b53c"),
        (13, "3f3b87712aedf375b7850c7f21cf0780"),
        (100, "50c580ec698da15064e3d1c5b848c0c8"),
        (300, "e568eb20911251db0d6614322eb714b9"),
    ):
        data = bytes(i * 7 % 256 for i in range(length))
        assert cityhash128(data).hex() == expected
    reply = server.sql("SELECT number FROM numbers(300000)", compress="1")
    assert unpacking.unpack_blocks(reply.body, 1 << 30) == "".join(f"{i}\n" for i in range(300_000)).encode()
    assert len(reply.body) < 1_900_000
    body = compression.pack_block(b"SELECT 1 +") + compression.pack_block(b" 2")
    assert server.ask("/", body, decompress="1").text == "3\n"
    broken = bytes([body[0] ^ 1]) + body[1:]
    assert "Checksum" in server.ask("/", broken, decompress="1").text
    for wrong in (body[:-1], b"SELECT 1", body + b"x"):
        assert server.ask("/", wrong, decompress="1").headers["x-clickhouse-exception-code"] == "271"


def test_a_session_is_kept_locked_and_found(server: Running) -> None:
    given = {"session_id": "one", "session_timeout": "100"}
    assert server.sql("SELECT 1", session_id="none", session_check="1").headers["x-clickhouse-exception-code"] == "372"
    assert server.sql("SET max_threads = 1, recall = 0.5, param_x = 'kept'", **given).status == 200
    assert server.sql("SELECT getSetting('max_threads'), {x:String}", session_check="1", **given).text == "1\tkept\n"
    assert server.sql("CREATE TEMPORARY TABLE own (a Int8)", **given).status == 200
    assert server.sql("INSERT INTO own VALUES (5)", **given).status == 200
    assert server.sql("SELECT a FROM own", **given).text == "5\n"
    assert server.sql("SELECT a FROM own").status == 404
    assert server.sql("CREATE TEMPORARY TABLE own (a Int8)").status == 404
    assert server.sql("SELECT 1", session_id="one", session_timeout="99999").status >= 400
    slow = threading.Thread(target=lambda: server.sql(FOREVER, query_id="slow", **given))
    slow.start()
    wait_until_busy(server)
    assert server.sql("SELECT 1", query_id="slow").headers["x-clickhouse-exception-code"] == "216"
    assert server.sql("SELECT 1", **given).headers["x-clickhouse-exception-code"] == "373"
    until(lambda: "waiting" in server.sql("KILL QUERY WHERE query_id = 'slow'").text, "the query is there")
    slow.join(LAST_NET_SECONDS)
    until(lambda: server.sql("SELECT 1", **given).status == 200, "what was killed has ended, a while after its reply")
    assert server.sql("SELECT getSetting('max_threads')", **given).text == "1\n"


def test_a_query_is_killed_and_its_client_told(server: Running) -> None:
    replies = []
    thread = threading.Thread(target=lambda: replies.append(server.sql(FOREVER, query_id="long")))
    thread.start()
    until(lambda: "long" in server.sql("KILL QUERY WHERE query_id = 'long'").text, "the query is there")
    thread.join(LAST_NET_SECONDS)
    assert replies[0].headers["x-clickhouse-exception-code"] == "394"


def test_progress_comes_while_a_query_runs_and_an_error_after_it_is_told(server: Running) -> None:
    asks = "/?query_id=seen&send_progress_in_http_headers=1&http_headers_progress_interval_ms=200"
    forever = f"{FOREVER} SETTINGS max_threads = 1"
    with socket.create_connection(("127.0.0.1", server.port), LAST_NET_SECONDS) as line, line.makefile("rb") as come:
        line.sendall(f"POST {asks} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(forever)}\r\n\r\n".encode())
        line.sendall(forever.encode())
        assert come.readline() == b"HTTP/1.1 200 OK\r\n"
        told = [json.loads(come.readline().removeprefix(b"X-ClickHouse-Progress: ")) for _ in range(2)]
        read = [int(each["read_rows"]) for each in told]
        assert 0 < read[0] < read[1] < int(told[0]["total_rows_to_read"]) == 100_000_000_000
        server.sql("KILL QUERY WHERE query_id = 'seen'")
        headers = http.client.parse_headers(come)
        assert headers["X-ClickHouse-Exception-Code"] == "394"
        assert come.read(int(headers["Content-Length"])).startswith(b"Code: 394")
        line.sendall(b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert come.readline() == b"HTTP/1.1 200 OK\r\n"


def test_what_a_statement_has_read_is_told_to_who_asks_while_it_runs(server: Running) -> None:
    asks = {"X-Clipql-Tell": "progress, origins"}
    sql = f"{FOREVER} SETTINGS max_threads = 1"
    thread = threading.Thread(target=lambda: server.ask("/", sql, headers=asks, query_id="a%2Fb"))
    thread.start()

    def told() -> dict[str, int | None]:
        found: dict[str, int | None] = server.ask("/api/progress/a%252Fb").json
        return found

    until(lambda: told()["read_rows"], "rows are told")
    first = told()
    until(lambda: (told()["read_rows"] or 0) > (first["read_rows"] or 0), "more are told")
    assert first["total_rows"] == 100_000_000_000
    sql = "SELECT read_rows, total_rows_approx FROM system.processes WHERE query_id = 'a%2Fb' FORMAT JSONCompact"
    read, total = server.sql(sql).json["data"][0]
    assert (int(read) >= (first["read_rows"] or 0), int(total)) == (True, 100_000_000_000)
    server.sql("KILL QUERY WHERE query_id = 'a%2Fb'")
    thread.join(LAST_NET_SECONDS)
    assert told() == {"read_rows": None, "total_rows": None}
    replies = [server.ask("/", "SELECT nothing", headers=asks), server.ask("/", "SELECT 1", headers=asks)]
    assert [reply.status for reply in replies] == [404, 200]  # an error keeps its status
    assert "x-clickhouse-progress" not in replies[1].headers


def test_totals_and_extremes_come_behind_the_rows_as_clickhouse_writes_them(server: Running, tmp_path: Path) -> None:
    grouped = "SELECT number % 2 AS k, count() FROM numbers(10) GROUP BY k WITH TOTALS ORDER BY k"
    statements = [
        *(f"{grouped} FORMAT {format}" for format in ("TSV", "CSVWithNames", "TSVRaw", "JSONEachRow")),
        f"SELECT k FROM ({grouped})",
        "SELECT '' AS e FROM numbers(3) SETTINGS extremes = 1",
        "SELECT * FROM totalled",
        "SELECT * FROM over_totalled",
    ]
    views = [f"CREATE VIEW totalled AS {grouped}", "CREATE VIEW over_totalled AS SELECT k + 1 FROM totalled"]
    with clipql.connect(tmp_path / "alone") as db:
        for view in views:
            assert server.sql(view).status == 200
            db.registry.engine.run(view)
        for each in statements:
            assert server.sql(each).body == db.registry.engine.query(each, "TabSeparated").data, each
    assert server.sql("SELECT 1", extremes="1").text == "1\n\n1\n1\n"
    for name in ("over_totalled", "totalled"):
        server.sql(f"DROP VIEW {name}")


def test_a_client_that_goes_takes_its_query_with_it(server: Running) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("POST", "/?query_id=left", FOREVER)
    wait_until_busy(server)
    assert connection.sock is not None
    connection.sock.close()
    wait_until_busy(server, 0)  # it would run for the server's minute
    assert server.sql("SELECT 1", query_id="left").status == 200


def test_other_hosts_and_origins_are_refused_and_headers_shut_the_page_in(server: Running) -> None:
    assert server.ask("/ping", headers={"Host": "evil.example"}).status == 421
    assert server.ask("/", "SELECT 1", headers={"Origin": "http://evil.example"}).status == 403
    assert server.ask("/", "SELECT 1", headers={"Origin": server.url.rstrip("/")}).status == 200
    twice = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LAST_NET_SECONDS)
    twice.putrequest("GET", "/ping")
    twice.putheader("Host", "evil.example")
    twice.endheaders()
    assert twice.getresponse().status == 400
    twice.close()
    reply = server.ask("/ping")
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert "access-control-allow-origin" not in server.ask("/", "SELECT 1", add_http_cors_header="1").headers


def test_the_page_is_for_browsers_only(server: Running) -> None:
    page = server.ask("/", headers={"Accept": "text/html"})
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert server.ask(query="SELECT 1", headers={"Accept": "text/html"}).text == "1\n"


def test_a_token_is_asked_for_in_every_way(reader: Running) -> None:
    assert reader.ask("/ping").status == 200
    assert reader.ask("/healthz").status == 200
    for path in ("/?query=SELECT+1", "/api/tables", "/metrics", "/api/openapi.json"):
        assert reader.ask(path).status == 401, path
    basic = "Basic " + __import__("base64").b64encode(f"me:{TOKEN}".encode()).decode()
    for headers in ({"X-ClickHouse-Key": TOKEN}, {"Authorization": basic}, {"Authorization": f"Bearer {TOKEN}"}):
        assert reader.ask(query="SELECT 1", headers=headers).text == "1\n"
    assert reader.ask(query="SELECT 1", user="anyone", password=TOKEN).text == "1\n"
    refused = reader.ask(query="SELECT 1", headers={"X-ClickHouse-Key": "wrong"})
    assert (refused.status, refused.headers["x-clickhouse-exception-code"]) == (401, "516")


def test_limits_hold_and_the_crowd_is_told_to_come_back(tmp_path: Path) -> None:
    fill(tmp_path)
    server = start(tmp_path, "--max-running", "2", "--max-waiting", "2", "--max-body", "1", "--max-rows", "1000")
    try:
        assert server.ask("/", b"x" * (2 << 20)).status == 413
        bomb = gzip.compress(b" " * (64 << 20))
        assert server.ask("/", bomb, headers={"Content-Encoding": "gzip"}).status == 413
        assert server.sql("SELECT number FROM numbers(2000)").headers["x-clickhouse-exception-code"] == "396"
        assert server.sql("SELECT number FROM numbers(900)").status == 200
        taken = [http.client.HTTPConnection("127.0.0.1", server.port) for _ in range(4)]
        for number, connection in enumerate(taken):
            connection.request("POST", f"/?query_id=crowd{number}", FOREVER)
        wait_until_busy(server, 4)
        refused = [server.sql("SELECT 1") for _ in range(6)]
        assert {(r.status, r.headers.get("retry-after")) for r in refused} == {(429, "1")}
        killed = server.sql("KILL QUERY WHERE query_id = 'crowd0'")  # what makes room is done at once
        assert (killed.status, killed.text) == (200, "waiting\tcrowd0\tdefault\n")
        assert taken[0].getresponse().status == 500
        wait_until_busy(server, 3)
        for connection in taken:
            connection.close()
        wait_until_busy(server, 0)
        assert server.sql("SELECT 1").text == "1\n"
    finally:
        stop(server)


def test_what_takes_too_long_is_stopped(tmp_path: Path) -> None:
    fill(tmp_path)
    server = start(tmp_path, "--max-seconds", "1")
    try:
        late = server.sql(FOREVER)
        assert (late.status, late.headers["x-clickhouse-exception-code"]) == (408, "159")
    finally:
        stop(server)


def test_every_request_is_a_line_of_json_in_the_log(tmp_path: Path) -> None:
    fill(tmp_path)
    server = start(tmp_path)
    many = "SELECT number, throwIf(number = 2900000, 'boo') FROM numbers(3000000) SETTINGS max_threads = 1"
    server.sql("SELECT 1", query_id="short")
    server.sql("SELECT * FROM nosuch", query_id="wrong")
    server.sql(many, query_id="broken")
    server.ask("/api/tables")
    server.ask("/api/rows/default/laion/999999")
    stop(server)
    log = [json.loads(line) for line in (tmp_path / "server.log").read_text().splitlines()]
    log = [entry for entry in log if entry["event"] != "compiling"]  # once after an installation
    assert [entry["event"] for entry in log] == ["started", *["query"] * 3, *["request"] * 2, "stopping", "stopped"]
    short, wrong, broken = log[1:4]
    assert (short["query_id"], short["status"], short["sql"], "code" in short) == ("short", 200, "SELECT 1", False)
    assert (wrong["query_id"], wrong["status"], wrong["code"]) == ("wrong", 404, 60)
    assert (broken["query_id"], broken["status"], broken["code"]) == ("broken", 200, 395)  # told behind the rows
    assert [(e["method"], e["path"], e["status"]) for e in log[4:6]] == [
        ("GET", "/api/tables", 200),
        ("GET", "/api/rows/default/laion/999999", 404),
    ]


def test_it_stops_cleanly_and_the_database_opens_again(tmp_path: Path) -> None:
    fill(tmp_path)
    server = start(tmp_path, "--write", "--max-seconds", str(LAST_NET_SECONDS), "--grace", str(LAST_NET_SECONDS))
    rows, replies = 50_000_000, list[Reply]()

    def ask() -> None:
        sql = f"SELECT count() FROM numbers({rows}) WHERE sipHash64(number) % 7 = 9"
        replies.append(server.sql(sql, query_id="last"))

    def runs() -> bool:
        return "clipql_requests_taken 1.0" in server.ask("/metrics").text

    while True:  # until one takes long enough to be seen, however fast the machine is
        replies.clear()
        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: runs() or replies, "a query runs")
        if not replies:
            break
        thread.join(LAST_NET_SECONDS)
        rows *= 4
    assert stop(server) == 0
    thread.join(LAST_NET_SECONDS)
    assert [r.text for r in replies] == ["0\n"]
    log = [json.loads(line) for line in (tmp_path / "server.log").read_text().splitlines()]
    assert log[-1]["event"] == "stopped"
    assert {"time", "level", "event"} <= set(log[0])
    again = start(tmp_path)
    assert again.sql("SELECT count() FROM laion").text == "300\n"
    stop(again)


def test_a_start_that_cannot_be_is_told_in_a_line(tmp_path: Path) -> None:
    def fails(*arguments: str) -> str:
        command = [sys.executable, "-m", "clipql", "--db", str(tmp_path / "x.db"), "serve", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LAST_NET_SECONDS, check=False)
        assert done.returncode == 1
        return done.stderr

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"cannot listen on 127.0.0.1:{port}" in fails("--port", port)
    assert "give --token" in fails("--host", "0.0.0.0", "--port", "0")
    assert not (tmp_path / "x.db").exists()


def test_a_streamed_result_has_its_header_once(server: Running) -> None:
    sql = 'SELECT number AS `a"b`, toString(number) AS s FROM numbers(200000)'
    rows = range(200_000)
    for format, expected in (
        ("CSVWithNamesAndTypes", '"a""b","s"\n"UInt64","String"\n' + "".join(f'{i},"{i}"\n' for i in rows)),
        ("TSVWithNames", 'a"b\ts\n' + "".join(f"{i}\t{i}\n" for i in rows)),
        ("JSONCompactEachRowWithNames", '["a\\"b", "s"]\n' + "".join(f'[{i}, "{i}"]\n' for i in rows)),
    ):
        found = server.sql(sql, default_format=format).text
        assert found.replace('", "', '","').replace(", ", ",") == expected.replace(", ", ","), format
    empty = server.sql("SELECT 1 AS a WHERE 0", default_format="CSVWithNames")
    assert empty.text == '"a"\n'
    batches = pa.ipc.open_stream(server.sql(sql, default_format="ArrowStream").body).read_all()
    assert (batches.num_rows, batches.column("s")[199_999].as_py()) == (200_000, "199999")
