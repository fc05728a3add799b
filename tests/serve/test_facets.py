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
