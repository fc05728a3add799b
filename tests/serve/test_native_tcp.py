"""ClickHouse's native protocol, spoken by clickhouse-driver and by ClickHouse itself, against the answers of HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from clickhouse_driver import Client
from clickhouse_driver.dbapi import connect
from clickhouse_driver.errors import ServerException

from clipql.serve.connections import Connections
from clipql.serve.limits import Limits
from clipql.serve.tcp.blocks import read_block
from clipql.serve.tcp.connection import TcpConnection
from clipql.serve.tcp.wire import Incoming
from tests.patience import LAST_NET_SECONDS, until
from tests.serve.conftest import ROWS, TOKEN, Running


@contextlib.contextmanager
def client(port: int, **given: Any) -> Iterator[Client]:
    """A client of the native protocol."""
    made = Client("127.0.0.1", port, send_receive_timeout=LAST_NET_SECONDS, **given)
    try:
        yield made
    finally:
        made.disconnect()


@pytest.fixture(scope="module")
def native(server: Running) -> Iterator[Client]:
    """A client that writes and reads compressed blocks."""
    with client(server.native, compression="lz4") as made:
        yield made


def refusal(asked: Any) -> tuple[int, str]:
    """The code and the text of an error."""
    with pytest.raises(ServerException) as found:
        asked()
    return found.value.code, found.value.message


def test_rows_come_as_http_gives_them(server: Running, native: Client) -> None:
    sql = (
        "SELECT toUInt8(number) AS a, toString(number) AS b, toLowCardinality(toString(number % 3)) AS c, "
        "if(number % 2, NULL, number) AS d, [toFloat32(number), toFloat32(2)] AS e, map('k', number) AS f, "
        "tuple(1, 'x') AS g, "
        "toDateTime(number, 'Asia/Tokyo') AS h, toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0') AS i "
        "FROM numbers(2000) SETTINGS max_block_size = 700"
    )
    rows, columns = native.execute(sql, with_column_types=True)
    assert len(rows) == 2_000
    told = server.sql(f"DESCRIBE ({sql}) FORMAT JSONCompactColumns").json
    assert [list(each) for each in zip(*columns, strict=True)] == told[:2]
    digest = "SELECT sum(cityHash64(a, b, c, e[1])) FROM"
    data = [{"a": row[0], "b": row[1], "c": row[2], "e": row[4]} for row in rows]
    structure = [("a", "UInt8"), ("b", "String"), ("c", "LowCardinality(String)"), ("e", "Array(Float32)")]
    back = native.execute(f"{digest} back", external_tables=[{"name": "back", "structure": structure, "data": data}])
    assert back[0][0] == int(server.sql(f"{digest} ({sql})").text)


def test_a_search_and_an_answer_without_rows_name_their_columns(server: Running, native: Client) -> None:
    sql = "SELECT url, L2Distance(image_embedding, {q:Array(Float32)}) AS d FROM laion ORDER BY d LIMIT 3"
    vector = [0.25] * 16
    by_http = server.sql(sql + " FORMAT JSONCompact", param_q=str(vector)).json["data"]
    settings = {"server_side_params": True}
    with client(server.native, settings=settings) as with_values:
        found = with_values.execute(sql, {"q": vector})
    assert [list(row) for row in found] == [[url, pytest.approx(distance)] for url, distance in by_http]
    empty = native.execute("SELECT image_embedding, url FROM laion LIMIT 0", with_column_types=True)
    assert empty == ([], [("image_embedding", "Array(Float32)"), ("url", "Nullable(String)")])


def test_vectors_are_inserted_in_blocks_and_found(server: Running, native: Client) -> None:
    native.execute(
        "CREATE TABLE tcp_rows (id UInt32, v Array(Float32), s String DEFAULT 'none') ENGINE = MergeTree ORDER BY id"
    )
    vectors = np.random.default_rng(5).standard_normal((50, 8), np.float32)
    rows = [(at, vector.tolist()) for at, vector in enumerate(vectors)]
    assert native.execute("INSERT INTO tcp_rows (id, v) VALUES", rows, settings={"insert_block_size": 20}) == 50
    query = vectors[17] + np.float32(0.01)
    found = native.execute(f"SELECT id, s FROM tcp_rows ORDER BY L2Distance(v, {query.tolist()}) LIMIT 5")
    nearest = np.argsort(np.linalg.norm(vectors - query, axis=1))[:5]
    assert found == [(int(at), "none") for at in nearest]
    assert native.execute("INSERT INTO tcp_rows VALUES (90, [1,2,3,4,5,6,7,8], 'here')") == []
    before = native.execute("SELECT count() FROM tcp_rows")
    wrong = "INSERT INTO tcp_rows (id, v) VALUES"
    assert "3" in refusal(lambda: native.execute(wrong, [(1, [0.0] * 8), (2, [0.0] * 3)]))[1]
    assert refusal(lambda: native.execute("INSERT INTO tcp_rows (id, w) VALUES", [(1, [0.0])]))[0] == 16
    assert native.execute("SELECT count() FROM tcp_rows") == before == [(51,)]
    native.execute("DROP TABLE tcp_rows")


def test_input_takes_what_comes_by_both_protocols(server: Running, native: Client) -> None:
    server.sql("CREATE TABLE fed (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    fed = "INSERT INTO fed SELECT i + 1, arrayMap(x -> x / 2, w) FROM input('i UInt8, w Array(Float64)') FORMAT"
    assert native.execute(f"{fed} Native", [(1, [1.0, 2.0]), (2, [3.0, 4.0])]) == 2
    assert native.execute("INSERT INTO fed SELECT * FROM input() FORMAT Values", [(4, [1.5, 2.5])]) == 1
    reply = server.ask("/", b"4\t[5,6]\n5\t[7,8]\n", query=f"{fed} TSV")
    assert (reply.status, json.loads(reply.headers["x-clickhouse-summary"])["written_rows"]) == (200, "2")
    assert server.sql(f'{fed} CSV\n6,"[9,10]"').status == 200
    rows = native.execute("SELECT id, v FROM fed ORDER BY id")
    assert rows == [(i, [float(i) - 1.5, i - 1.0]) if i != 4 else (4, [1.5, 2.5]) for i in (2, 3, 4)] + [
        (5, [2.5, 3.0]), (6, [3.5, 4.0]), (7, [4.5, 5.0])
    ]  # fmt: skip
    assert "holds 2 numbers" in refusal(lambda: native.execute(f"{fed} Native", [(1, [1.0])]))[1]
    assert "input" in server.sql("SELECT * FROM input('a UInt8')").text
    assert native.execute("SELECT count() FROM fed") == [(6,)]


def test_a_connection_is_a_session(server: Running, native: Client) -> None:
    native.execute("SET max_threads = 3")
    native.execute("CREATE TEMPORARY TABLE mine (a UInt8)")
    assert native.execute("INSERT INTO mine VALUES", [(7,)]) == 1
    assert native.execute("SELECT a, getSetting('max_threads') FROM mine") == [(7, 3)]
    with client(server.native) as other:
        assert refusal(lambda: other.execute("SELECT a FROM mine"))[0] == 60
    native.disconnect()
    assert refusal(lambda: native.execute("SELECT a FROM mine"))[0] == 60


def test_errors_have_their_codes_and_the_connection_goes_on(server: Running, native: Client) -> None:
    assert refusal(lambda: native.execute("SELECT file('/etc/passwd')"))[0] == 497
    assert refusal(lambda: native.execute("SELEC 1"))[0] == 62
    assert refusal(lambda: native.execute("SELECT 1", settings={"dialect": "prql"}))[0] == 452
    assert native.execute("SELECT 1", settings={"nobody_knows_this": 1}) == [(1,)]
    with connect(host="127.0.0.1", port=server.native) as held, held.cursor() as cursor:
        cursor.execute("SELECT %(x)s, number FROM numbers(2)", {"x": "it's"})
        assert cursor.fetchall() == [("it's", 0), ("it's", 1)]


def test_the_token_is_the_password_and_a_reader_only_reads(reader: Running) -> None:
    with client(reader.native, password="wrong") as stranger:
        assert refusal(lambda: stranger.execute("SELECT 1"))[0] == 516
    with client(reader.native, password=TOKEN) as good:
        assert good.execute("SELECT count() FROM laion") == [(ROWS,)]
        assert refusal(lambda: good.execute("CREATE TABLE t (a Int8) ENGINE = Memory"))[0] == 164
        assert refusal(lambda: good.execute("INSERT INTO laion VALUES", [(1,)]))[0] == 164


def test_a_query_ends_with_its_client_and_where_it_is_cancelled(server: Running) -> None:
    endless = "SELECT count() FROM numbers(1000000000000) WHERE cityHash64(number) = 1"

    def runs(id: str) -> bool:
        return server.sql(f"SELECT count() FROM system.processes WHERE query_id = '{id}'").text == "1\n"

    for how in ("cancel", "leave"):
        with client(server.native) as leaving:
            asking = threading.Thread(target=_quietly, args=(leaving, endless, how), daemon=True)
            asking.start()
            until(partial(runs, how), "the query runs")
            if how == "cancel":
                leaving.connection.send_cancel()
            else:
                leaving.connection.socket.shutdown(socket.SHUT_RDWR)
            until(lambda: not runs(how), f"the query ends: {how}")  # noqa: B023
            asking.join(LAST_NET_SECONDS)


def _quietly(asking: Client, sql: str, id: str) -> None:
    try:
        asking.execute(sql, query_id=id)
    except (OSError, EOFError):
        assert id == "leave"


def test_what_is_read_is_told_while_a_query_runs(server: Running, native: Client) -> None:
    with client(server.native) as asking:
        endless = "FROM numbers(1000000000000) WHERE cityHash64(number) = 1 SETTINGS max_threads = 1"
        asking.execute("CREATE TABLE filled (n UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY n")
        for sql in (f"INSERT INTO filled SELECT number, [1., 2.] {endless}", f"SELECT count() {endless}"):
            told = asking.execute_with_progress(sql)
            (first, whole), (second, _) = next(iter(told)), next(iter(told))
            assert 0 < first < second < whole == 1_000_000_000_000, sql
            asking.disconnect()
    native.execute("DROP TABLE filled")  # which waits until nobody fills it
    native.execute("SELECT sum(number) FROM numbers(100000)")
    assert (native.last_query.progress.rows, native.last_query.progress.total_rows) == (100_000, 100_000)


def test_totals_and_extremes_are_blocks_of_their_own(server: Running, native: Client) -> None:
    values = (
        "toString(number % 3) || unhex('ff0a') AS s, NULL AS n, [nan, 1.5] AS a, toDateTime(k, 'Asia/Tokyo') AS d, "
        "sum(number) AS sum, any(toLowCardinality('x')) AS l, map(toFixedString('a', 2), toDecimal64(k, 3)) AS m"
    )
    grouped = f"SELECT number % 3 AS k, {values} FROM numbers(10) GROUP BY k, s WITH TOTALS ORDER BY k"
    by_http = server.sql(f"{grouped} FORMAT JSON", extremes="1").json
    both = native.execute(grouped, settings={"extremes": 1, "strings_as_bytes": True})
    assert [row[5] for row in both] == [18, 12, 15, 45, 12, 18]
    assert [row[0] for row in both] == [0, 1, 2, 0, 0, 2]
    parts = [*by_http["data"], by_http["totals"], by_http["extremes"]["min"], by_http["extremes"]["max"]]
    assert [each["sum"] for each in parts] == [row[5] for row in both]
    rows, types = native.execute(grouped, with_column_types=True, settings={"strings_as_bytes": True})
    assert types == [(each["name"], each["type"]) for each in by_http["meta"]]
    assert (rows[2][1], rows[2][2], rows[2][3][1], rows[3][1]) == (b"2\xff\n", None, 1.5, b"")
    assert str(rows[0][4]) == "1970-01-01 09:00:00+09:00"
    assert native.execute("SELECT '' AS e FROM numbers(3) SETTINGS extremes = 1") == [("",)] * 5
    assert native.execute("SELECT 5 FROM numbers(2) SETTINGS extremes = 1") == [(5,)] * 4  # called as it is
    nested = "SELECT [('a', 1)]::Nested(s String, n UInt8) AS t FROM numbers(1) SETTINGS extremes = 1"
    assert native.execute(nested)[0] == ([("a", 1)],)
    assert native.execute("SELECT number FROM numbers(3) FORMAT Null SETTINGS extremes = 1") == []
    untold = "SELECT '1'::Variant(UInt8, String) AS v SETTINGS extremes = 1"
    assert "CAST the column" in refusal(lambda: native.execute(untold))[1]
    none = "SELECT number FROM numbers(10) GROUP BY number WITH TOTALS HAVING number > 20"
    assert native.execute(none) == [(0,)]
    search = "SELECT url, L2Distance(image_embedding, {q:Array(Float32)}) AS d FROM laion ORDER BY d LIMIT 3"
    found = native.execute(search.replace("{q:Array(Float32)}", str([0.25] * 16)), settings={"extremes": 1})
    assert (len(found), found[3][1], found[4][1]) == (5, found[0][1], found[2][1])


def test_who_knocks_at_the_wrong_port_is_told_the_right_one(server: Running) -> None:
    with client(server.port) as mistaken:
        code, said = refusal(lambda: mistaken.execute("SELECT 1"))
    assert (code, f"the native protocol is at 127.0.0.1:{server.native}" in said) == (217, True)
    assert f"HTTP is at {server.url}".encode() in _answer(server, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _hello(revision: int = 54470) -> bytes:
    number = bytes([revision & 0x7F | 0x80, revision >> 7 & 0x7F | 0x80, revision >> 14])
    return b"\x00" + _text("raw") + b"\x18\x01" + number + _text("") + _text("default") + _text("")


def _answer(server: Running, data: bytes, *, ends: bool = False) -> bytes:
    """All that the server says before it closes. ends: whether the client says that it sends no more."""
    with socket.create_connection(("127.0.0.1", server.native), LAST_NET_SECONDS) as raw:
        raw.sendall(data)
        if ends:
            raw.shutdown(socket.SHUT_WR)
        found = b""
        while piece := raw.recv(1 << 16):
            found += piece
        return found


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"\x07", "begins with packet 7"),
        (b"\x00" + b"\xff" * 9, "a number is longer"),
        (b"\x00" + b"\xff\xff\xff\xff\x7f", "a string claims 34,359,738,367 bytes"),
        (_hello(54000), "54429, of 2019, is the oldest"),
        (_hello() + _text("") + _text("notchunked") + _text("notchunked") + b"\x63", "packet 99 is not expected"),
        (_hello(54400 + 29) + b"\x01" + b"\x00\x00\x00\x02\x01\xff\xff\xff\xff\x7f", "a string claims"),
    ],
)  # fmt: skip
def test_what_is_no_protocol_is_told_and_ends(server: Running, sent: bytes, said: str) -> None:
    assert said in _answer(server, sent).decode("utf-8", "replace")


def test_a_block_that_claims_too_much_is_refused_before_it_is_kept(server: Running) -> None:
    query = b"\x01" + _text("") + b"\x00" + b"\x00" + b"\x02\x00" + _text("SELECT 1")
    data = b"\x02" + _text("t") + b"\x00\x01" + b"\xff\xff\xff\xff\x0f" + _text("a") + _text("UInt64")
    assert "larger than 268,435,456 bytes" in _answer(server, _hello(54429) + query + data).decode("utf-8", "replace")


_ASKED = b"\x01" + _text("") + b"\x00" + b"\x00" + b"\x02%c" + _text("SELECT 1")
_TOO_MANY = b"the bodies of all requests together"
_FAR = b"\xff" * 8 + b"\x7f"  # 2 to the 63rd, less one


def _block(type: str, rows: bytes, data: bytes, name: str = "t") -> bytes:
    return b"\x02" + _text(name) + b"\x00\x01" + rows + _text("a") + _text(type) + data


@pytest.mark.parametrize(
    ("packed", "sent", "said"),
    [
        (0, _block("String", b"\x7f", _FAR + bytes(1000)), "larger than 268,435,456 bytes"),
        (0, _block("FixedString(-5)", b"\x01", b""), "expected a number in the brackets of FixedString(-5)"),
        (0, _block("Nullable", b"\x01", b""), "expected one type in Nullable"),
        (0, _block("Map(" * 21 + "Date" + ")" * 21, b"\x01", b""), "types deep"),
        (0, b"".join(_block("Date", b"\x00", b"", f"t{at}") for at in range(65)), "more than 64 external tables"),
        (1, b"\x02" + _text("t") + bytes(16) + b"\x02" + struct.pack("<II", 9, 0), "frame holds nothing"),
    ],
    ids=["a length near 2 to the 63rd", "less than no bytes", "no type", "deep", "many tables", "empty frames"],
)  # fmt: skip
def test_data_that_lie_about_themselves_are_told_so(server: Running, packed: int, sent: bytes, said: str) -> None:
    assert said in _answer(server, _hello(54429) + _ASKED % packed + sent).decode("utf-8", "replace")
    assert server.ask("/ping").status == 200


def test_what_is_on_its_way_counts_for_the_bodies_of_all(server: Running) -> None:
    text = b"\x01" + _text("") + b"\x00" + b"\x00" + b"\x02\x00" + b"\x80\x80\x80\x7d"  # 250 MB claimed
    frame = _ASKED % 1 + b"\x02" + _text("t") + bytes(16) + b"\x02" + struct.pack("<II", 250 << 20, 9)
    stray = _block("UInt8", b"\x80\x80\x80\x7d", b"")
    for held in (text, frame, stray):
        with contextlib.ExitStack() as opened:
            for _ in range(4):
                raw = opened.enter_context(socket.create_connection(("127.0.0.1", server.native), LAST_NET_SECONDS))
                raw.sendall(_hello(54429) + held)
            until(lambda: _TOO_MANY in _answer(server, _hello(54429) + held, ends=True), "the claims are counted")  # noqa: B023
        until(lambda: _TOO_MANY not in _answer(server, _hello(54429) + held, ends=True), "they are let go")  # noqa: B023


def test_packets_come_in_chunks_where_the_client_wants_them(server: Running) -> None:
    address = ("127.0.0.1", server.native)
    with socket.create_connection(address, LAST_NET_SECONDS) as raw, raw.makefile("rb") as stream:
        raw.sendall(_hello() + _text("") + _text("chunked") + _text("chunked"))
        raw.sendall(struct.pack("<I", 1) + b"\x04" + bytes(4))
        query = b"\x01" + _text("") + b"\x00" + b"\x00" + b"\x00" + b"\x02\x00" + _text("SELECT 7 AS seven") + b"\x00"
        data = b"\x02" + _text("") + b"\x00\x00\x00"
        for packet in (query[:5], query[5:]):  # a packet in two chunks
            raw.sendall(struct.pack("<I", len(packet)) + packet)
        raw.sendall(bytes(4) + struct.pack("<I", len(data)) + data + bytes(4))
        told = b""
        pong = struct.pack("<I", 1) + b"\x04" + bytes(4)
        while pong not in told:
            told += stream.read(1)
        packets = list(_packets(stream))
    progress = [packet for packet in packets if packet[0] == 3]
    packets = [packet for packet in packets if packet[0] != 3]
    assert ([packet[0] for packet in packets], len(progress) >= 2) == ([1, 1, 6, 5], True)
    assert b"seven\x05UInt8\x00\x07" in packets[1]


def _packets(stream: Any) -> Iterator[bytes]:
    """What comes in chunks, up to the end of an answer."""
    packet = b""
    while packet != b"\x05":
        packet = b""
        while size := struct.unpack("<I", stream.read(4))[0]:
            packet += stream.read(size)
        yield packet


def test_clickhouse_itself_reads_and_writes_through_it(server: Running, native: Client, alone: Any) -> None:
    native.execute("CREATE TABLE tcp_far (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    far = f"remote('127.0.0.1:{server.native}', default, tcp_far)"
    alone(f"INSERT INTO FUNCTION {far} SELECT number, [number, 1] FROM numbers(20)")
    nearest = f"SELECT id, L2Distance(v, [6.4, 1.]) AS d FROM {far} ORDER BY d LIMIT 2"
    assert alone(nearest) == server.sql(nearest.replace(far, "tcp_far")).body.decode()
    assert (
        alone(f"SELECT id % 2 AS a, count(), sum(v[1]) FROM {far} GROUP BY a ORDER BY a") == "0\t10\t90\n1\t10\t100\n"
    )
    native.execute("DROP TABLE tcp_far")


def test_json_variant_and_dynamic_go_both_ways(server: Running, native: Client, alone: Any) -> None:
    json, variant = "JSON(n UInt8, `a.b` String, SKIP x, max_dynamic_paths=1)", "Variant(Array(String), String, UInt64)"
    columns = f"id UInt32, j {json}, w {variant}, d Dynamic(max_types=1), m Map(String, Array(JSON)), z String"
    rows = (
        'SELECT number AS id, concat(\'{"n":\', toString(number % 9), \',"a":{"b":"q"},"x":1,"p\', '
        f"""toString(number % 3), '":[1,{{"k":null}}],"t":"s"}}')::{json} """
        f"AS j, multiIf(number % 3 = 0, NULL, number % 3 = 1, ['a']::{variant}, number::{variant}) AS w, "
        "multiIf(number % 3 = 0, 1::Dynamic(max_types=1), number % 3 = 1, [number]::Dynamic(max_types=1), NULL) AS d, "
        "map('k', ['{\"q\": 1.5}'::JSON]) AS m, 'end' AS z FROM numbers(20)"
    )
    far = f"remote('127.0.0.1:{server.native}', default, tcp_loose)"
    native.execute(f"CREATE TABLE tcp_loose ({columns}) ENGINE = MergeTree ORDER BY id")
    alone(f"INSERT INTO FUNCTION {far} {rows}")
    as_text = (
        "SELECT id, toJSONString(tuple(j, w, d, dynamicType(d), m, z)) FROM {} ORDER BY id SETTINGS max_block_size = 7"
    )
    expected = alone(as_text.format(f"({rows})"))
    assert server.sql(as_text.format("tcp_loose")).text == alone(as_text.format(far)) == expected
    native.execute("TRUNCATE TABLE tcp_loose")
    assert native.execute("INSERT INTO tcp_loose (id, m) VALUES", [(1, {"k": [{"a": [{"b": 1}]}, {}]}), (2, {})]) == 2
    assert native.execute("SELECT id, m FROM tcp_loose ORDER BY id") == [(1, {"k": [{"a": [{"b": 1}]}, {}]}), (2, {})]
    native.execute("DROP TABLE tcp_loose")


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """ClickHouse in this process, as a client: an answer as TabSeparated."""
    import clipql

    with clipql.connect(tmp_path_factory.mktemp("alone") / "db") as db:
        yield lambda sql: db.registry.engine.query(sql, "TabSeparated").data.decode()


def test_small_packets_are_read_many_in_a_turn_and_others_get_theirs() -> None:
    packets, turns = 20_000, 0
    block = b"\1\0\2\xff\xff\xff\xff\0" + b"\1\1" + b"\1a\5UInt8\0" + b"\7"

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def read() -> None:
        source = Incoming(lambda: None, lambda: None)
        source.feed(block * packets)
        beside = asyncio.ensure_future(others())
        for _ in range(packets):
            found = await read_block(source, 54460, 1 << 10, lambda size: None)
            assert (found.columns, found.rows) == ([("a", "UInt8")], 1)
        beside.cancel()

    asyncio.run(read())
    assert 3 < turns < packets // 10


def test_a_client_that_broke_off_before_it_is_told_why_is_let_go() -> None:
    aborted = []

    class Broken(asyncio.Transport):
        def resume_reading(self) -> None:
            pass

        def can_write_eof(self) -> bool:
            return True

        def write_eof(self) -> None:
            raise OSError(107, "Transport endpoint is not connected")

        def abort(self) -> None:
            aborted.append(self)

    async def refused() -> None:
        made = TcpConnection(Connections(Limits()), None, "")  # type: ignore[arg-type]
        made.transport = Broken()
        made._close_later()

    asyncio.run(refused())
    assert len(aborted) == 1
