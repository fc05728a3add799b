"""Settings from the network: all that ClickHouse has are taken, but those that reach out or make a promise void."""

from __future__ import annotations

import pytest

from tests.serve.conftest import Running

HARMLESS = (
    "lightweight_deletes_sync=2", "insert_distributed_sync=1", "allow_experimental_annoy_index=1",
    "allow_experimental_usearch_index=1", "enable_vector_similarity_index=1", "vector_search_filter_strategy=auto",
    "max_limit_for_ann_queries=10", "max_parallel_replicas=1", "enable_time_time64_type=1",
    "allow_experimental_qbit_type=1", "allow_suspicious_variant_types=1", "mutations_sync=2", "alter_sync=2",
    "database_replicated_enforce_synchronous_settings=1", "http_max_field_name_size=9999", "max_execution_time=5",
    "vector_device=cpu",
)  # fmt: skip
DANGEROUS = (
    "format_schema=x", "additional_table_filters={}", "filter=1", "dialect=kusto", "mutations_sync=0",
    "lightweight_deletes_sync=0", "asterisk_include_alias_columns=0", "default_table_engine=File",
    "memory_overcommit_ratio_denominator=0", "ignore_drop_queries_probability=1", "storage_policy=x",
    "apply_deleted_mask=0", "vector_device=cuda", "vector_device=auto",
)  # fmt: skip


def three_ways(server: Running, setting: str) -> list[tuple[int, str]]:
    """What a setting beside a statement, in its SETTINGS and in SET gives: the status and the code."""
    name, _, value = setting.partition("=")
    literal = value if value.lstrip("-").isdigit() else f"'{value}'"
    replies = (
        server.sql("SELECT 1", **{name: value}),
        server.sql(f"SELECT 1 SETTINGS {name} = {literal}"),
        server.sql(f"SET {name} = {literal}"),
    )
    return [(r.status, r.headers.get("x-clickhouse-exception-code", "")) for r in replies]


@pytest.mark.parametrize("setting", HARMLESS)
def test_harmless_settings_are_taken_in_all_three_places(server: Running, setting: str) -> None:
    assert three_ways(server, setting) == [(200, "")] * 3


@pytest.mark.parametrize("setting", DANGEROUS)
def test_dangerous_settings_are_refused_in_all_three_places(server: Running, setting: str) -> None:
    assert three_ways(server, setting) == [(403, "452")] * 3


def test_what_clickhouse_does_not_know_is_unknown(server: Running) -> None:
    assert [code for _, code in three_ways(server, "no_such_setting=1")] == ["115"] * 3


def test_a_limit_above_the_servers_is_capped_and_said_so(server: Running) -> None:
    asked = "SELECT getSetting('max_execution_time'), getSetting('max_result_rows')"
    reply = server.sql(asked, max_execution_time="100000", max_result_rows="7")
    assert (reply.text, reply.headers["x-clipql-capped"]) == ("60\t7\n", "max_execution_time=60")
    assert "x-clipql-capped" not in server.sql(asked, max_execution_time="10").headers
    reply = server.sql("SET max_execution_time = 100000, max_threads = 1", session_id="capped")
    assert "max_execution_time = 60" in reply.headers["x-clipql-capped"]
    assert server.sql(asked, session_id="capped").text.startswith("60\t")


def test_a_table_with_vectors_takes_types_that_a_setting_allows(server: Running) -> None:
    sql = "CREATE TABLE odd (a LowCardinality(UInt8), v Array(Float32)) ENGINE = MergeTree ORDER BY a"
    assert server.sql(sql).headers["x-clickhouse-exception-code"] == "455"
    assert server.sql(sql, allow_suspicious_low_cardinality_types="1").status == 200
    assert server.sql("INSERT INTO odd VALUES (1, [1, 2])").status == 200
    assert server.sql("SELECT * FROM odd").text == "1\t[1,2]\n"
    assert server.sql("DROP TABLE odd").status == 200
