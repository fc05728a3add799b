"""ClickHouse's own Python client, unchanged, against the server."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from typing import Any

import clickhouse_connect
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from clickhouse_connect.driver.client import Client
from clickhouse_connect.driver.exceptions import DatabaseError, StreamFailureError
from clickhouse_connect.driver.external import ExternalData

from tests.serve.conftest import TOKEN, Running

DAY = datetime.datetime(2024, 1, 1)  # noqa: DTZ001 (ClickHouse gives them so)
COLUMNS = ["id", "name", "n", "t", "v"]


@pytest.fixture
def client(server: Running) -> Iterator[Client]:
    """A client without a session."""
    made = clickhouse_connect.get_client(host="127.0.0.1", port=server.port, autogenerate_session_id=False)
    yield made
    made.close()


@pytest.fixture
def goods(client: Client) -> Iterator[str]:
    """An empty table with vectors."""
    client.command(
        "CREATE TABLE goods (id UInt64, name LowCardinality(String), n Nullable(Float64), t DateTime, "
        "v Array(Float32)) ENGINE = MergeTree ORDER BY id"
    )
    yield "goods"
    client.command("DROP TABLE goods")


def failure(client: Client, sql: str) -> DatabaseError:
    with pytest.raises(DatabaseError) as caught:
        client.query(sql).result_rows  # noqa: B018 (they are read as they are asked for)
    return caught.value


def test_it_connects_and_asks_for_what_clients_ask_for(client: Client) -> None:
    assert client.ping()
    assert client.server_version.startswith("26.")
    assert str(client.server_tz) in ("UTC", "Etc/UTC")
    assert client.command("SELECT 5") == 5
    assert client.query("SELECT count() FROM laion").result_rows == [(300,)]
    assert ("laion",) in client.query("SHOW TABLES").result_rows
    assert client.query("SELECT number FROM numbers(3)").first_item == {"number": 0}


def test_parameters_are_bound_on_the_server(client: Client) -> None:
    given = {"i": 1, "s": "it's\t\\ ü\n", "l": ["a'b", "c\\d"], "d": DAY, "x": None, "f": [0.5, 2.0]}
    sql = "SELECT {i:Int32}, {s:String}, {l:Array(String)}, {d:DateTime}, {x:Nullable(String)}, {f:Array(Float32)}"
    assert client.query(sql, parameters=given).result_rows == [
        (1, "it's\t\\ ü\n", ["a'b", "c\\d"], DAY, None, [0.5, 2.0])
    ]
    assert client.query("SELECT count() FROM {t:Identifier}", parameters={"t": "laion"}).result_rows == [(300,)]
    assert client.query("SELECT %(a)s, %(b)s", parameters={"a": 1, "b": "x'y"}).result_rows == [(1, "x'y")]


def test_a_vector_query_is_planned_as_everywhere(client: Client) -> None:
    query = [1.0] + [0.0] * 15
    sql = "SELECT url, cosineDistance(image_embedding, {q:Array(Float32)}) AS d FROM laion ORDER BY d LIMIT 5"
    found = client.query(sql, parameters={"q": query}).result_rows
    plain = client.query(sql + " SETTINGS vector_plan = 0", parameters={"q": query}).result_rows
    assert [u for u, _ in found] == [u for u, _ in plain]
    assert [d for _, d in found] == pytest.approx([d for _, d in plain], abs=1e-6)
    plan = client.query("EXPLAIN " + sql, parameters={"q": query}).result_rows
    assert plan[0] == ("Top-k search (k = 5)",)


def test_the_client_script_of_the_page_on_laion_5b_finds_its_images(client: Client) -> None:
    np_arr = np.random.default_rng(5).standard_normal((1, 16)).astype(np.float32)  # in the place of the text's vector
    params = {"v1": list(np_arr[0])}
    sql = "SELECT id, url FROM laion ORDER BY cosineDistance(image_embedding, %(v1)s) LIMIT 100"
    found = client.query(sql, parameters=params).result_rows
    plain = client.query(sql + " SETTINGS vector_plan = 0", parameters=params).result_rows
    assert (len(found), [r[1] for r in found]) == (100, [r[1] for r in plain])


def test_rows_come_as_columns_frames_and_arrow(client: Client) -> None:
    sql = "SELECT number AS a, toString(number) AS b FROM numbers(3)"
    frame = client.query_df(sql)
    assert frame["a"].tolist() == [0, 1, 2]
    assert frame["b"].tolist() == ["0", "1", "2"]
    assert client.query_arrow(sql).column("a").to_pylist() == [0, 1, 2]
    assert client.query_np("SELECT number FROM numbers(3)").tolist() == [[0], [1], [2]]
    assert client.query(sql, column_oriented=True).result_set == [[0, 1, 2], ["0", "1", "2"]]
    assert client.query("SELECT url, id FROM laion LIMIT 0").column_names == ("url", "id")
    assert client.query("SELECT url FROM laion WHERE 0").result_rows == []
    assert client.raw_query("SELECT 1, 'a'", fmt="CSV") == b'1,"a"\n'


def test_every_type_comes_through_native(client: Client) -> None:
    sql = (
        "SELECT toDate('2024-01-02'), toDateTime64('2024-01-01 00:00:00.123', 3), toDecimal64(1.5, 2), map('a', 1), "
        "(1, 'x'), toIPv4('1.2.3.4'), CAST('a', 'Enum8(\\'a\\' = 1)'), [1, NULL], "
        "toUUID('61f0c404-5cb3-11e7-907b-a6006ad3dba0')"
    )
    row = client.query(sql).result_rows[0]
    assert row[0] == datetime.date(2024, 1, 2)
    assert row[1] == DAY.replace(microsecond=123000)
    assert [str(v) for v in row[2:]] == [
        "1.50", "{'a': 1}", "(1, 'x')", "1.2.3.4", "a", "[1, None]", "61f0c404-5cb3-11e7-907b-a6006ad3dba0"
    ]  # fmt: skip


def test_rows_columns_frames_and_arrow_are_inserted(client: Client, goods: str) -> None:
    rows = [[1, "a", None, DAY, [1.0, 0.0]], [2, "b", 1.5, DAY, [0.0, 1.0]]]
    assert client.insert(goods, rows, column_names=COLUMNS).written_rows == 2
    assert client.insert(goods, [[3, "c", None, DAY, [1.0, 0.0]]]).written_rows == 1
    columns = [[4, 5], ["d", "e"], [None, 1.0], [DAY, DAY], [[1.0, 2.0], [3.0, 4.0]]]
    assert client.insert(goods, columns, column_names=COLUMNS, column_oriented=True).written_rows == 2
    frame = pd.DataFrame({"id": [6], "name": ["f"], "n": [1.0], "t": [pd.Timestamp(DAY)], "v": [[5.0, 6.0]]})
    assert client.insert_df(goods, frame).written_rows == 1
    table = pa.table(
        {
            "id": pa.array([7], pa.uint64()),
            "name": ["g"],
            "n": [2.0],
            "t": pa.array([DAY], pa.timestamp("s")),
            "v": pa.array([[3.0, 4.0]], pa.list_(pa.float32())),
        }
    )
    assert client.insert_arrow(goods, table).written_rows == 1
    assert client.raw_insert(goods, COLUMNS, b'8,"h",,"2024-01-01 00:00:00","[7,8]"\n', fmt="CSV").written_rows == 1
    found = client.query(f"SELECT id, name, v FROM {goods} ORDER BY id").result_rows
    assert [r[0] for r in found] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert "".join(r[1] for r in found) == "abcdefgh"
    assert [r[2] for r in found][-3:] == [[5.0, 6.0], [3.0, 4.0], [7.0, 8.0]]
    nearest = client.query(f"SELECT id FROM {goods} ORDER BY L2Distance(v, [3.1, 4.1]) LIMIT 2").result_rows
    assert sorted(r[0] for r in nearest) == [5, 7]


def test_a_vector_of_another_length_is_refused_and_nothing_stored(client: Client, goods: str) -> None:
    client.insert(goods, [[1, "a", None, DAY, [1.0, 0.0]]], column_names=COLUMNS)
    with pytest.raises(DatabaseError, match=r"v of default\.goods holds 2 numbers; row 1 of the insert has 3"):
        client.insert(goods, [[2, "b", None, DAY, [1, 0]], [3, "c", None, DAY, [1, 0, 0]]], column_names=COLUMNS)
    assert client.query(f"SELECT count() FROM {goods}").result_rows == [(1,)]


def test_a_table_without_vectors_is_clickhouses_own(client: Client) -> None:
    client.command("CREATE TABLE plain2 (a Int32, s String DEFAULT 'x') ENGINE = MergeTree ORDER BY a")
    assert client.insert("plain2", [[i] for i in range(1000)], column_names=["a"]).written_rows == 1000
    assert client.query("SELECT count(), max(a), any(s) FROM plain2").result_rows == [(1000, 999, "x")]
    client.command("DROP TABLE plain2")


def test_results_stream(client: Client) -> None:
    with client.query_row_block_stream("SELECT number, toString(number) FROM numbers(500000)") as stream:
        blocks = [len(b) for b in stream]
    assert (sum(blocks), len(blocks) > 1) == (500_000, True)
    with client.query_df_stream("SELECT number FROM numbers(200000)") as frames:
        assert sum(len(f) for f in frames) == 200_000
    with client.query_arrow_stream("SELECT number FROM numbers(200000)") as batches:
        assert sum(b.num_rows for b in batches) == 200_000


def test_errors_are_clickhouses(client: Client) -> None:
    for sql, code, text in (
        ("SELECT * FROM nosuch", 60, "UNKNOWN_TABLE"),
        ("SELECT nosuch FROM laion", 47, "UNKNOWN_IDENTIFIER"),
        ("SELEC 1", 62, "SYNTAX_ERROR"),
        ("SELECT nosuch(1)", 497, "ACCESS_DENIED"),
        ("SELECT * FROM file('/etc/passwd')", 497, "ACCESS_DENIED"),
        ("SELECT 'a' + 1", 43, "ILLEGAL_TYPE_OF_ARGUMENT"),
    ):
        error = failure(client, sql)
        assert error.code == code, sql
        assert text in str(error)


def test_an_error_among_the_rows_is_told(client: Client) -> None:
    sql = "SELECT number, throwIf(number = 2900000, 'boo') FROM numbers(3000000) SETTINGS max_threads = 1"
    with pytest.raises(DatabaseError, match="boo"):  # the client has the server wait for the end
        client.query(sql)
    with pytest.raises(StreamFailureError, match="boo"), client.query_row_block_stream(sql) as blocks:
        sum(len(block) for block in blocks)


def test_settings_hold_for_their_query_alone(client: Client) -> None:
    sql = "SELECT getSetting('max_threads') AS t, getSetting('max_block_size') AS b"
    assert client.query(sql, settings={"max_threads": 1, "max_block_size": 1000}).first_item == {"t": 1, "b": 1000}
    assert client.query(sql).first_item["b"] != 1000
    with pytest.raises(DatabaseError, match="format_schema"):
        client.query("SELECT 1", settings={"format_schema": "/etc/passwd"})


def test_a_session_keeps_settings_and_temporary_tables(server: Running, client: Client) -> None:
    held = clickhouse_connect.get_client(host="127.0.0.1", port=server.port, session_id="a session")
    held.command("SET max_threads = 1")
    held.command("CREATE TEMPORARY TABLE mine (a Int32)")
    held.insert("mine", [[1], [2]], column_names=["a"])
    assert held.query("SELECT sum(a), getSetting('max_threads') FROM mine").result_rows == [(3, 1)]
    assert failure(client, "SELECT * FROM mine").code == 60
    held.close()


def test_a_token_is_the_password(reader: Running) -> None:
    client = clickhouse_connect.get_client(host="127.0.0.1", port=reader.port, username="anyone", password=TOKEN)
    assert client.query("SELECT count() FROM laion").result_rows == [(300,)]
    assert failure(client, "DROP TABLE laion").code == 164
    client.close()
    bearer = clickhouse_connect.get_client(host="127.0.0.1", port=reader.port, access_token=TOKEN)
    assert bearer.command("SELECT 1") == 1
    bearer.close()
    with pytest.raises(DatabaseError, match="Authentication failed"):
        clickhouse_connect.get_client(host="127.0.0.1", port=reader.port, username="anyone", password="wrong")


def test_compression_of_every_kind_both_ways(server: Running) -> None:
    for kind in ("lz4", "zstd", "gzip", False):
        given: Any = kind
        client = clickhouse_connect.get_client(host="127.0.0.1", port=server.port, compress=given)
        client.command("CREATE TABLE packed (a Int32, v Array(Float32)) ENGINE = MergeTree ORDER BY a")
        client.insert("packed", [[i, [float(i), 1.0]] for i in range(500)], column_names=["a", "v"])
        found = client.query("SELECT count(), sum(a), sum(v[1]) FROM packed").result_rows
        assert found == [(500, 124750, 124750.0)], kind
        assert len(client.query("SELECT number FROM numbers(300000)").result_rows) == 300_000
        client.command("DROP TABLE packed")
        client.close()


def test_external_data_are_tables_of_one_query(server: Running, reader: Running, client: Client) -> None:
    rows = ExternalData(file_name="wanted.csv", data=b"3,c\n5,e\n", fmt="CSV", structure=["id UInt64", "name String"])
    sql = "SELECT l.id, w.name FROM laion AS l JOIN wanted AS w ON l.id = w.id ORDER BY l.id"
    assert client.query(sql, external_data=rows).result_rows == [(3, "c"), (5, "e")]
    assert failure(client, "SELECT * FROM wanted").code == 60
    nearest = (
        "SELECT id FROM laion WHERE id IN wanted_ids ORDER BY L2Distance(image_embedding, {q:Array(Float32)}) LIMIT 5"
    )
    ids = ExternalData(file_name="wanted_ids.tsv", data=b"7\n9\n11\n", fmt="TabSeparated", structure=["id UInt64"])
    found = client.query(nearest, parameters={"q": [1.0] + [0.0] * 15}, external_data=ids).result_rows
    assert sorted(r[0] for r in found) == [7, 9, 11]

    held = clickhouse_connect.get_client(host="127.0.0.1", port=server.port, session_id="with external data")
    held.command("CREATE TEMPORARY TABLE kept AS SELECT 3 AS id")
    assert held.query("SELECT name FROM wanted WHERE id IN kept", external_data=rows).result_rows == [("c",)]
    assert held.query("SELECT * FROM kept").result_rows == [(3,)]
    assert failure(held, "SELECT * FROM wanted").code == 60
    held.close()
    only = clickhouse_connect.get_client(host="127.0.0.1", port=reader.port, username="me", password=TOKEN)
    assert len(only.query(sql, external_data=rows).result_rows) == 2  # a server that only reads keeps none of it
    shadow = ExternalData(file_name="laion.csv", data=b"3\n", fmt="CSV", structure=["id UInt64"])
    assert only.query("SELECT * FROM laion", external_data=shadow).result_rows == [(3,)]
    assert only.query("SELECT count() FROM laion").result_rows == [(300,)]
    only.close()

    for structure, code in ((["id UInt64 DEFAULT file('x')", "n String"], 497), (["id Nosuch", "n String"], 50)):
        wrong = ExternalData(file_name="wanted.csv", data=b"3,c\n", fmt="CSV", structure=structure)
        with pytest.raises(DatabaseError) as caught:
            client.query(sql, external_data=wrong)
        assert caught.value.code == code
    broken = ExternalData(file_name="wanted.csv", data=b"x,c\n", fmt="CSV", structure=["id UInt64", "name String"])
    with pytest.raises(DatabaseError, match="parse"):
        client.query(sql, external_data=broken)


def test_the_dbapi_works(server: Running) -> None:
    from clickhouse_connect import dbapi

    connection = dbapi.connect(host="127.0.0.1", port=server.port)
    cursor = connection.cursor()
    cursor.execute("SELECT id, caption FROM laion WHERE NSFW = %(n)s ORDER BY id LIMIT 2", {"n": "UNLIKELY"})
    assert [len(r) for r in cursor.fetchall()] == [2, 2]
    assert [d[0] for d in cursor.description] == ["id", "caption"]
    connection.close()
