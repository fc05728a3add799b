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
