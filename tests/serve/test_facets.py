"""Facets: which columns have them."""

from __future__ import annotations

from tests.serve.conftest import Running


def test_facets_leave_out_numbers_that_only_tell_rows_apart(server: Running) -> None:
    columns = {
        "place": "number", "id": "cityHash64(number)", "photoId": "number * number", "paid": "number * number",
        "category_id": "number % 7", "score": "number / 3",
    }  # fmt: skip
    types = ", ".join(f"{name} {'Float64' if name == 'score' else 'UInt64'}" for name in columns)
    server.sql(f"CREATE TABLE numbered ({types}, v Array(Float32)) ENGINE = MergeTree ORDER BY tuple()")
    server.sql(f"INSERT INTO numbered SELECT {', '.join(columns.values())}, [number, 1] FROM numbers(300)")
    found = server.post("/api/facets", {"table": "numbered"}).json
    assert ([c["name"] for c in found["columns"]], found["many"]) == (["paid", "category_id", "score"], [])


def test_text_that_is_not_utf_8_and_numbers_of_256_bits_have_facets_too(server: Running) -> None:
    columns = "label String, caption String, wide Int256, v Array(Float32)"
    server.sql(f"CREATE TABLE odd ({columns}) ENGINE = MergeTree ORDER BY tuple()")
    rows = "if(number % 3 = 0, unhex('ff61'), 'plain'), toString(number), number, [number, 1]"
    server.sql(f"INSERT INTO odd SELECT {rows} FROM numbers(300)")
    found = {c["name"]: c for c in server.post("/api/facets", {"table": "odd"}).json["columns"]}
    assert [(v["value"], v["rows"]) for v in found["label"]["values"]] == [("plain", 200), ("\ufffda", 100)]
    within = server.post("/api/facets", {"table": "odd", "values_of": "label", "containing": "a"}).json
    assert [v["rows"] for v in within["columns"][0]["values"]] == [200, 100]
