"""A table of the same name as one before."""

from __future__ import annotations

from tests.serve.conftest import Running


def test_an_answer_tells_of_which_table_it_is_where_one_of_its_name_is_made_anew(server: Running) -> None:
    told = []
    for _ in range(2):
        server.sql("CREATE TABLE anew (image_path String, v Array(Float32)) ENGINE = MergeTree ORDER BY tuple()")
        server.sql("INSERT INTO anew VALUES ('a.png', [1, 0])")
        (listed,) = [t for t in server.ask("/api/tables").json["tables"] if t["name"] == "anew"]
        found = server.post("/api/search", {"table": "anew"}).json
        assert found["table_id"] == listed["table_id"]
        told.append((found["table_id"], found["rows"][0]["thumbnail"]))
        server.sql("DROP TABLE anew")
    assert len(set(told)) == len(dict(told)) == 2  # browsers keep pictures by their addresses
