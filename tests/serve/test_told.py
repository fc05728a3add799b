"""What tools ask of a server about itself: modest answers, from what the server knows."""

from __future__ import annotations

from tests.serve.conftest import Running


def test_users_and_grants_are_those_of_the_token(server: Running, reader: Running) -> None:
    key = {"X-ClickHouse-Key": "open sesame"}
    assert server.sql("SELECT name FROM system.users").text == "default\n"
    writing = server.sql("SELECT access_type FROM system.grants AS g ORDER BY 1").text.split()
    reading = reader.ask("/", "SELECT access_type FROM system.grants ORDER BY 1", headers=key).text.split()
    assert writing == ["ALTER", "CREATE", "DROP", "INSERT", "OPTIMIZE", "SELECT", "SHOW", "TRUNCATE"]
    assert reading == ["SELECT", "SHOW"]
    assert server.sql("SHOW GRANTS").text.startswith("GRANT SHOW, SELECT, INSERT")


def test_clusters_macros_and_policies_are_none(server: Running) -> None:
    joined = "SELECT count() FROM system.clusters AS c LEFT JOIN system.macros AS m ON c.cluster = m.macro"
    assert server.sql(joined).text == "0\n"
    assert server.sql(
        "SELECT host_name, is_local FROM system.clusters WHERE cluster = 'x' FORMAT TSVWithNames"
    ).text == ("host_name\tis_local\n")
    for sql in ("SHOW POLICIES", "SHOW ROW POLICIES ON laion"):
        assert (server.sql(sql).status, server.sql(sql).text) == (200, "")


def test_the_log_has_queries_that_ended_and_processes_those_that_run(server: Running) -> None:
    server.sql("SELECT 'it''s logged' FORMAT Null", query_id="logged-1")
    server.sql("SELECT nothing", query_id="logged-2")
    columns, condition = "query, type, exception_code", "query_id = {id:String} AND event_time > now() - 99"
    log = f"SELECT {columns} FROM system.query_log WHERE {condition}"
    assert server.sql(log, param_id="logged-1").text == "SELECT \\'it\\'\\'s logged\\' FORMAT Null\tQueryFinish\t0\n"
    assert server.sql(log, param_id="logged-2").text == "SELECT nothing\tExceptionWhileProcessing\t47\n"
    running = "SELECT query_id FROM system.processes WHERE query LIKE '%processes%'"
    assert server.sql(running, query_id="running-1").text == "running-1\n"
    assert "running-2" in server.sql("SHOW PROCESSLIST", query_id="running-2").text


def test_nothing_of_clickhouses_own_is_read_instead(server: Running) -> None:
    for sql in ("DESCRIBE TABLE system.users", "SELECT * FROM system.roles", "SELECT 1 IN (system.users)",
                "DELETE FROM laion WHERE url IN (SELECT name FROM system.users)"):  # fmt: skip
        assert server.sql(sql).status == 403, sql


def test_what_is_written_out_for_a_table_is_written_a_few_times(server: Running) -> None:
    for table in ("system.query_log", "system.columns", "information_schema.columns"):
        union = " UNION ALL ".join([f"SELECT 1 FROM {table}"] * 3_000)
        reply = server.sql(f"SELECT 1 WHERE 1 IN ({union})")
        assert (reply.status, reply.headers["x-clickhouse-exception-code"]) == (400, "168"), table
    twice = "SELECT count() FROM (SELECT name FROM system.tables) AS a JOIN system.tables AS b USING name"
    assert int(server.sql(twice).text) > 1


def test_a_change_sees_no_more_of_the_server_than_a_query(server: Running) -> None:
    server.sql("CREATE TABLE told (id UInt32, s String) ENGINE = MergeTree ORDER BY id")
    server.sql("INSERT INTO told SELECT number, '' FROM numbers(10)")
    names = "(SELECT toString(arraySort(groupArray(name))) FROM system.databases)"
    assert server.sql(f"ALTER TABLE told UPDATE s = {names} WHERE id IN (SELECT 1 UNION ALL SELECT 2)").status == 200
    assert (
        server.sql("SELECT s FROM told WHERE id = 2 FORMAT TSVRaw").text
        == server.sql(f"SELECT {names} FORMAT TSVRaw").text
    )
    assert server.sql("CREATE VIEW names AS SELECT name FROM system.databases").status == 200
    assert server.sql("DELETE FROM told WHERE 'clipql_' || 'internal' IN (SELECT name FROM names)").status == 200
    rows = "(WITH c AS (SELECT id FROM told WHERE id BETWEEN {low:UInt32} AND 6) SELECT id FROM c)"
    assert (
        server.sql(
            f"DELETE FROM told WHERE id IN {rows} AND id NOT IN (SELECT 5 UNION ALL SELECT id FROM told WHERE id = 4)",
            param_low="3",
        ).status
        == 200
    )
    assert server.sql("SELECT id FROM told").text.split() == list("01245789")
    for change in ("ADD PROJECTION p (SELECT id, (SELECT max(name) FROM system.databases) ORDER BY id)",
                   "ADD CONSTRAINT c CHECK id IN (SELECT id FROM told)"):  # fmt: skip
        assert server.sql(f"ALTER TABLE told {change}").status == 403, change
    assert server.sql("DROP VIEW names").status == server.sql("DROP TABLE told").status == 200
