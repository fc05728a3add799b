"""The REST API, and the client behind `clipql.connect("http://…")`."""

from __future__ import annotations

import base64
import collections
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import clipql
from clipql.errors import PictureError, QueryError, ServerError, UnknownTable
from clipql.serve.picture_files import Folders
from tests.parts import vectors
from tests.patience import LAST_NET_SECONDS
from tests.serve.conftest import ROWS, TOKEN, Running
from tests.sql.test_python_types import VALUES, same

FIRST = vectors(ROWS, 16, 0)  # the image vectors of the table laion


def search(server: Running, **asked: object) -> dict[str, object]:
    reply = server.post("/api/search", {"table": "laion", **asked})
    assert reply.status == 200, reply.text
    found: dict[str, object] = reply.json
    return found


def ids(found: dict[str, object]) -> list[str]:
    rows = found["rows"]
    assert isinstance(rows, list)
    return [r["id"] for r in rows]


def nearest(vector: np.ndarray, rows: np.ndarray) -> list[str]:
    unit = FIRST.astype(np.float64)
    distance = 1 - unit @ (vector / np.linalg.norm(vector)) / np.linalg.norm(unit, axis=1)
    return [str(i) for i in rows[np.argsort(distance[rows], kind="stable")]]


def test_tables_are_described(server: Running) -> None:
    found = server.ask("/api/tables").json
    laion = next(t for t in found["tables"] if t["name"] == "laion")
    assert (found["write"], found["version"], laion["rows"]) == (True, clipql.__version__, ROWS)
    assert laion["picture"] == {"column": "url", "kind": "url"}
    assert (laion["caption"], laion["nsfw"]) == ("caption", "NSFW")
    assert [(v["column"], v["dimension"], v["of"]) for v in laion["vectors"]] == [
        ("image_embedding", 16, "image"),
        ("text_embedding", 16, "text"),
    ]
    kinds = {c["name"]: c["kind"] for c in laion["columns"]}
    assert (kinds["caption"], kinds["similarity"], kinds["image_embedding"]) == ("text", "number", "vector")
    pictures = next(t for t in found["tables"] if t["name"] == "pictures")
    assert pictures["picture"] == {"column": "image_path", "kind": "file"}


def test_a_search_gives_the_nearest_rows_page_by_page(server: Running) -> None:
    every = np.arange(ROWS)
    query = [float(x) for x in FIRST[7]]
    found = search(server, terms=[{"vector": query}], k=5, safe=False)
    assert ids(found) == nearest(FIRST[7].astype(np.float64), every)[:5]
    assert found["more"] is True
    assert found["plan"][0] == "Top-k search (k = 6)"  # type: ignore[index]
    second = search(server, terms=[{"vector": query}], k=5, offset=5, safe=False)
    assert ids(found) + ids(second) == nearest(FIRST[7].astype(np.float64), every)[:10]
    assert ids(search(server, terms=[{"id": "7"}], k=5, safe=False)) == ids(found)
    last = search(server, terms=[{"id": "7"}], k=100, offset=250, safe=False)
    assert (len(ids(last)), last["more"]) == (50, False)


def test_pages_over_equal_distances_give_each_row_once(server: Running) -> None:
    vector = "arrayMap(i -> toFloat32(sipHash64(number % 60, i) % 1000) / 500 - 1, range(8))"
    for statement in (
        "CREATE TABLE equal (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id",
        f"INSERT INTO equal SELECT number, {vector} FROM numbers(2500)",
        "ALTER TABLE equal ADD INDEX near v TYPE ivf('cosineDistance')",
        "ALTER TABLE equal MATERIALIZE INDEX near",
        f"INSERT INTO equal SELECT number + 2500 AS number, {vector} FROM numbers(500)",
    ):
        assert server.sql(statement).status == 200
    rows: list[str] = []
    for offset in range(0, 70, 7):
        found = search(server, table="equal", terms=[{"id": "23"}], k=7, offset=offset, safe=False)
        assert "near (ivf" in str(found["plan"])
        rows += ids(found)
    assert [int(r) for r in rows[:50]] == list(range(23, 3_000, 60))
    assert len(set(rows)) == 70
    server.sql("DROP TABLE equal")


def test_values_of_every_kind_are_as_people_write_them(server: Running) -> None:
    made = (
        "CREATE TABLE kinds (id UInt32, at DateTime('UTC'), ip IPv4, kind Enum8('a' = 1, 'b' = 2), "
        "pair Tuple(UInt8, String), by Map(String, IPv4), price Decimal(9, 2), odd String, v Array(Float32)) "
        "ENGINE = MergeTree ORDER BY id"
    )
    row = "4000000000, 60, '1.2.3.4', 'b', (1, 'x'), map('k', toIPv4('1.2.3.5')), 1.5, unhex('61ff'), [1]"
    for statement in (made, f"INSERT INTO kinds SELECT {row}"):
        reply = server.sql(statement)
        assert reply.status == 200, reply.text
    expected = {
        "id": 4000000000,
        "at": "1970-01-01T00:01:00+00:00",
        "ip": "1.2.3.4",
        "kind": "b",
        "pair": [1, "x"],
        "by": {"k": "1.2.3.5"},
        "price": "1.50",
        "odd": "a\ufffd",
    }
    found = server.post("/api/search", {"table": "kinds", "column": "v", "terms": [{"vector": [1.0]}], "k": 1}).json
    assert [row["values"] for row in found["rows"]] == [expected]
    assert server.ask("/api/rows/default/kinds/0").json["values"] == expected
    server.sql("DROP TABLE kinds")


def test_numbers_of_float32_are_as_clickhouse_writes_them(server: Running) -> None:
    kinds = {
        "a": "Float32",
        "b": "Nullable(Float32)",
        "c": "Tuple(Float32, Float64)",
        "d": "Map(String, Float32)",
        "e": "Array(Nullable(Float32))",
        "f": "Tuple(x Float32, y String)",
        "g": "Float64",
    }
    columns = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
    made = f"CREATE TABLE short (id UInt32, {columns}, v Array(Float32)) ENGINE = MergeTree ORDER BY id"
    numbers = ["0.1", "1.1", "-0.103", "1e-20", "16777217", "3.4e38", "0"]
    rows = ", ".join(
        f"({i}, {n}, {n if i % 2 else 'NULL'}, ({n}, {n}), map('k', {n}), [{n}, NULL], ({n}, 'x'), {n}, [1, {i}])"
        for i, n in enumerate(numbers)
    )
    for statement in (made, f"INSERT INTO short VALUES {rows}"):
        reply = server.sql(statement)
        assert reply.status == 200, reply.text
    names = ", ".join(kinds)
    lines = server.sql(f"SELECT {names} FROM short ORDER BY id FORMAT JSONEachRow").text.splitlines()
    expected = [json.loads(line) for line in lines]
    assert expected[0]["a"] == 0.1
    found = search(server, table="short", terms=[], k=20, safe=False)
    got = [{name: row["values"][name] for name in kinds} for row in found["rows"]]  # type: ignore[attr-defined]
    assert got == expected
    assert server.ask("/api/rows/default/short/2").json["values"]["a"] == -0.103
    server.sql("DROP TABLE short")


def test_safe_mode_leaves_out_what_is_marked(server: Running) -> None:
    found = search(server, terms=[{"id": "0"}], k=100)
    assert ids(found) == nearest(FIRST[0].astype(np.float64), np.arange(0, ROWS, 3))[:100]
    assert "`NSFW` = 'UNLIKELY'" in str(found["sql"])
    assert ids(search(server, table="pictures", k=10, terms=[])) == ["0", "1", "2"]


def test_terms_are_mixed_by_weight(server: Running) -> None:
    terms = [{"id": "3"}, {"id": "9", "weight": -0.5}, {"vector": FIRST[20].tolist(), "weight": 2}]
    unit = [FIRST[i].astype(np.float64) / np.linalg.norm(FIRST[i].astype(np.float64)) for i in (3, 9, 20)]
    expected = nearest(unit[0] - 0.5 * unit[1] + 2 * unit[2], np.arange(ROWS))
    assert ids(search(server, terms=terms, k=8, safe=False)) == expected[:8]


def test_the_statement_shown_gives_the_same_rows(server: Running) -> None:
    terms = [{"id": "3"}, {"id": "9", "weight": -0.5}, {"vector": FIRST[20].tolist(), "weight": 2}]
    found = search(server, terms=terms, k=8, where="similarity > 0.3")
    params = {f"param_{n}": json.dumps(v) for n, v in dict(found["params"]).items()}  # type: ignore[call-overload]
    reply = server.sql(f"{found['sql']} FORMAT JSONEachRow", **params)
    urls = [json.loads(line)["url"] for line in reply.text.splitlines()]
    assert urls[:8] == [r["picture"] for r in found["rows"]]  # type: ignore[attr-defined]


def test_where_recall_exact_columns_and_browsing(server: Running) -> None:
    found = search(server, terms=[{"id": "0"}], where="similarity > 0.4", columns=["similarity"], k=50, safe=False)
    values = [r["values"] for r in found["rows"]]  # type: ignore[attr-defined]
    assert all(v["similarity"] > 0.4 and list(v) == ["similarity"] for v in values)
    assert ids(search(server, k=4, safe=False)) == ["0", "1", "2", "3"]
    assert "SETTINGS recall = 0.5, vector_index = 0" in str(search(server, recall=0.5, exact=True)["sql"])


def test_rows_that_are_listed_by_number_come_as_they_are_listed_page_by_page(server: Running) -> None:
    listed = [7, 2, 11, 2, 3, 900_000, 5]
    asked = {"table": "laion", "safe": False, "where": f"_row IN ({', '.join(map(str, listed))})"}
    found = [server.post("/api/search", {**asked, "k": 2, "offset": at}).json for at in (0, 2, 4)]
    assert [row["id"] for reply in found for row in reply["rows"]] == ["7", "2", "11", "3", "5"]
    assert [reply["more"] for reply in found] == [True, True, False]
    urls = server.sql(found[0]["sql"] + " FORMAT JSONEachRow").text.splitlines()
    assert [json.loads(row)["url"] for row in urls] == [row["picture"] for row in found[0]["rows"]]
    for where, rows in (
        (["similarity > -1", " _row IN (7, 2) "], ["7", "2"]),  # the others only leave some out
        ("_row IN (7, 2) AND 1", ["2", "7"]),
        ("(_row IN (7, 2))", ["2", "7"]),
        (f"_row IN (7, 2{', 1000000' * 998})", ["7", "2"]),
        (f"_row IN (7, 2{', 1000000' * 20_000})", ["2", "7"]),  # too many to look each row up
    ):
        reply = server.post("/api/search", {**asked, "where": where}).json
        assert [row["id"] for row in reply["rows"]] == rows


def test_near_duplicates_name_the_row_that_they_repeat(server: Running) -> None:
    found = search(server, terms=[{"id": "5"}], k=3, fold=0.0, safe=False)
    twins = [r["duplicate_of"] for r in found["rows"]]  # type: ignore[attr-defined]
    assert (twins[0], set(twins[1:])) == (None, {"5"})


def test_a_file_of_results_has_each_of_those_almost_the_same_once(server: Running) -> None:
    asked = {"table": "laion", "terms": [{"id": "5"}], "k": 60, "fold": 0.3, "safe": False, "columns": ["url"]}
    rows = search(server, **asked)["rows"]
    assert isinstance(rows, list)
    kept = [r["picture"] for r in rows if r["duplicate_of"] is None]
    assert 1 < len(kept) < 60
    reply = server.post("/api/search", {**asked, "format": "Parquet"})
    assert pq.read_table(io.BytesIO(reply.body)).column("url").to_pylist() == kept


def test_a_file_of_results_may_have_more_rows_than_a_page(server: Running) -> None:
    asked = {"table": "laion", "k": 10_000, "safe": False, "columns": ["url"]}
    assert server.post("/api/search", asked).status == 400
    assert server.ask("/api/tables").json["most"] == {"search": 1_000, "file": 10_000_000}
    reply = server.post("/api/search", {**asked, "terms": [{"id": "5"}], "format": "CSV"})
    assert len(reply.text.splitlines()) == ROWS + 1


def test_pages_with_an_index_are_those_of_one_long_search(server: Running) -> None:
    rows, numbers = 20_000, "arrayMap(i -> toFloat32(sipHash64(number, i) % 1000) / 500 - 1, range(16))"
    for statement in (
        "CREATE TABLE many (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id",
        f"INSERT INTO many SELECT number, {numbers} FROM numbers({rows})",
        "ALTER TABLE many ADD INDEX near v TYPE ivf('cosineDistance')",
        "ALTER TABLE many MATERIALIZE INDEX near",
    ):
        assert server.sql(statement).status == 200
    asked = {"table": "many", "terms": [{"id": "23"}], "safe": False}
    pages = [(0, 40), *((offset, 80) for offset in range(40, 900, 80))]
    found = [search(server, **asked, k=k, offset=offset) for offset, k in pages]
    assert all("near (ivf" in str(page["plan"]) for page in found)
    every = [row for page in found for row in ids(page)]
    assert len(every) == len(set(every)) == 920
    assert every == ids(search(server, **asked, k=920))
    folded = [search(server, **asked, k=k, offset=offset, fold=0.96) for offset, k in pages[:4]]
    assert [row for page in folded for row in ids(page)] == every[:280]
    for row in (5, 6, 7, 8):  # of these, all but the first are known, and short work
        vector = json.loads(server.sql(f"SELECT v FROM many WHERE id = {row} FORMAT JSONCompact").text)["data"][0][0]
        by_vector = search(server, table="many", terms=[{"vector": vector}], safe=False, k=3)
        in_sql = server.sql(
            f"SELECT id, cosineDistance(v, {vector}) AS d FROM many ORDER BY d LIMIT 3 FORMAT JSON"
        ).json
        assert [(r["id"], r["distance"]) for r in by_vector["rows"]] == [  # type: ignore[attr-defined]
            (str(r["id"]), pytest.approx(r["d"])) for r in in_sql["data"]
        ]
        assert ids(by_vector)[0] == str(row)
        assert by_vector["more"]
        assert by_vector["params"] == {"vector0": pytest.approx(vector)}
    for wrong in ([1.0, 2.0], [0.0] * 15 + [1e39]):
        reply = server.post("/api/search", {"table": "many", "terms": [{"vector": wrong}], "safe": False, "k": 3})
        assert reply.status == 400, reply.text
    server.sql("DELETE FROM many WHERE id = 8")
    assert ids(search(server, table="many", terms=[{"vector": vector}], safe=False, k=3))[0] != "8"
    server.sql("DROP TABLE many")
    reply = server.post("/api/search", {"table": "many", "terms": [{"vector": vector}], "safe": False, "k": 3})
    assert reply.status == 404


def test_results_are_downloaded_in_other_formats(server: Running) -> None:
    asked = {"table": "laion", "terms": [{"id": "5"}], "k": 4, "columns": ["url"], "safe": False}
    rows = [r["picture"] for r in search(server, **asked)["rows"]]  # type: ignore[arg-type, attr-defined]
    parquet = server.post("/api/search", {**asked, "format": "Parquet"})
    assert parquet.headers["content-disposition"] == 'attachment; filename="clipql-results.parquet"'
    assert pq.read_table(io.BytesIO(parquet.body)).column("url").to_pylist() == rows
    arrow = server.post("/api/search", {**asked, "format": "Arrow"})
    assert pa.ipc.open_file(arrow.body).read_all().column("url").to_pylist() == rows
    text = server.post("/api/search", {**asked, "format": "CSV"}).text.splitlines()
    assert (text[0], len(text)) == ('"url","distance"', 5)


def test_a_search_that_is_not_as_it_should_be_is_told_why(server: Running) -> None:
    for asked, status, words in (
        ({}, 400, "table: expected"),
        ({"table": "nosuch"}, 404, "there is no table"),
        ({"table": "laion", "column": "url"}, 400, "no vector column url"),
        ({"table": "laion", "k": 100_000}, 400, "k: expected"),
        ({"table": "laion", "k": "5"}, 400, "k: expected"),
        ({"table": "laion", "terms": [{"vector": [1, 2]}]}, 400, "holds 16 numbers"),
        ({"table": "laion", "terms": [{"id": "9999"}]}, 400, "has no row 9999"),
        ({"table": "laion", "terms": [{"text": "a", "id": "1"}]}, 400, "a term has one of"),
        ({"table": "laion", "terms": [{"text": "a cat"}]}, 503, "no-model"),
        ({"table": "laion", "where": "1) OR (1"}, 400, "one condition"),
        ({"table": "laion", "where": "url IN (SELECT * FROM file('/etc/passwd'))"}, 403, "file"),
        ({"table": "laion", "where": "1 SETTINGS max_threads = 1"}, 400, ""),
        ({"table": "laion", "columns": ["a`b"]}, 400, "has no column"),
        ([], 400, "expected a JSON object"),
    ):
        reply = server.post("/api/search", asked)
        assert (reply.status, words in reply.json["error"]) == (status, True), (asked, reply.text)
    assert server.ask("/api/search", "{").status == 400


def test_many_searches_in_one_request_are_each_what_it_is_alone(server: Running) -> None:
    given = {"k": 4, "offset": 1, "where": "similarity > 0.1", "columns": ["url"]}
    queries: list[object] = [{"vector": v.tolist()} for v in FIRST[:40]]
    queries += [[{"id": "3"}, {"id": "4", "weight": -0.5}], {"id": "7", "weight": 2}]
    for more in ({}, {"exact": True}):
        found = server.post("/api/search", {"table": "laion", **given, **more, "queries": queries})
        assert found.status == 200, found.text
        alone = [search(server, **given, **more, terms=q if isinstance(q, list) else [q]) for q in queries]
        assert found.json["answers"] == [{"rows": a["rows"], "more": a["more"]} for a in alone]
        assert found.json["plan"] == alone[0]["plan"]
    one = {"vector": FIRST[0].tolist()}
    for asked, words in (
        ({"queries": []}, "1 to 1,000 searches"),
        ({"queries": [one] * 1001}, "1 to 1,000 searches"),
        ({"queries": [one] * 101, "k": 1000}, "more than 100,000 rows"),
        ({"queries": [one], "terms": [one]}, "terms goes with one search"),
        ({"queries": [one], "format": "CSV"}, "format goes with one search"),
        ({"queries": [one, []]}, "queries: number 2: terms: expected a list"),
        ({"queries": [one, {"vector": [True]}]}, "queries: number 2: vector: expected finite numbers"),
        ({"queries": [one, {"vector": [1, 2]}]}, "has 2"),
        ({"queries": [one, {"id": "9999"}]}, "has no row 9999"),
        ({"queries": [one], "where": "simil > 3"}, "simil"),
    ):
        reply = server.post("/api/search", {"table": "laion", **asked})
        assert (reply.status in (400, 404), words in reply.json["error"]) == (True, True), (words, reply.text)


def test_a_search_says_how_many_rows_it_goes_through_and_how_many_are_hidden(server: Running) -> None:
    safe = len(range(0, ROWS, 3))
    for where, safe_only, expected in (
        (None, True, (ROWS, safe, ROWS - safe)),
        (None, False, (ROWS, ROWS, 0)),
        (["NSFW != 'NSFW'", "1 -- all"], True, None),
        ("0", True, (ROWS, 0, 0)),
    ):
        found = server.post("/api/count", {"table": "laion", "where": where, "safe": safe_only}).json
        if expected is not None:
            assert (found["rows"], found["matching"], found["hidden"]) == expected
        every = search(server, where=where, safe=safe_only, k=1000)
        assert len(ids(every)) == found["matching"]
    reply = server.post("/api/count", {"table": "laion", "where": "url IN (SELECT * FROM file('/etc/passwd'))"})
    assert (reply.status, "file" in reply.text) == (403, True)


def test_facets_count_what_the_rows_of_a_search_have(server: Running) -> None:
    asked = {"table": "laion", "where": ["similarity > 0.31", "1 -- all"], "safe": False}
    found = server.post("/api/facets", asked).json
    assert {k: found[k] for k in ("rows", "matching", "hidden")} == server.post("/api/count", asked).json
    rows = [r["values"] for r in server.post("/api/search", {**asked, "k": 1000}).json["rows"]]
    columns = {c["name"]: c for c in found["columns"]}
    unsafe = columns["NSFW"]
    assert {v["value"]: v["rows"] for v in unsafe["values"]} == collections.Counter(r["NSFW"] for r in rows)
    assert unsafe["others"] == 0
    assert [v["rows"] for v in unsafe["values"]] == sorted((v["rows"] for v in unsafe["values"]), reverse=True)
    similarity = columns["similarity"]
    values = [r["similarity"] for r in rows]
    assert (similarity["least"], similarity["most"]) == (pytest.approx(min(values)), pytest.approx(max(values)))
    expected = np.histogram(values, len(similarity["bins"]), (similarity["least"], similarity["most"]))[0]
    assert sum(similarity["bins"]) == len(values)
    assert np.abs(np.array(similarity["bins"]) - expected).sum() <= 4  # a value on the line between two
    assert not {"caption", "url", "image_embedding"} & set(columns)
    part = "9 OF PART"
    within = server.post("/api/facets", {**asked, "values_of": "caption", "containing": part}).json["columns"][0]
    wanted = collections.Counter(r["caption"] for r in rows if part.lower() in r["caption"].lower())
    assert within["values"] == [
        {"value": v, "rows": wanted[v]} for v in sorted(wanted, key=lambda v: (-wanted[v], v))[:12]
    ]
    assert within["others"] == len(wanted) - len(within["values"])
    assert server.post("/api/facets", {**asked, "values_of": "similarity"}).status == 400
    wrong = server.post("/api/facets", {**asked, "where": "nosuch > 1"})
    assert (wrong.status, "SELECT" in wrong.text) == (404, False)
    assert server.post("/api/facets", {**asked, "where": "url IN (SELECT * FROM file('/etc/passwd'))"}).status == 403


def test_a_mistake_in_a_condition_is_told_in_its_own_words(server: Running) -> None:
    for where, told in (
        ("nosuch > 1", "Unknown expression or function identifier `nosuch` (ClickHouse 47 UNKNOWN_IDENTIFIER)"),
        ("similarity >", "Syntax error: something is missing at the end of the condition similarity >"),
        (["1", "similarity FROM"], "Syntax error: failed at position 12 (FROM): FROM"),
        (["'für' = url", "1 +", "2"], "Syntax error: something is missing at the end of the condition 1 +"),
        ("letters('a')", "letters() is not called for the network"),
    ):
        for path, terms in (("/api/search", {}), ("/api/search", {"terms": [{"id": "1"}]}), ("/api/count", {})):
            reply = server.post(path, {"table": "laion", "where": where, **terms})
            assert (reply.json["error"], path) == (told, path)
    for where in ("url", "similarity LIKE 3", "x -> 3", "similarity > 'abc'", "url IN (SELECT 1, 2)"):
        reply = server.post("/api/search", {"table": "laion", "where": where, "terms": [{"id": "1"}]})
        assert (reply.status, where) == (400, where)
        told = reply.json["error"]
        assert not any(word in told for word in ("SELECT", "In scope", "__table", "executing")), told
    assert server.post("/api/search", {"table": "laion", "where": 5}).status == 400
    assert server.post("/api/search", {"table": "laion", "where": ["1", "1) OR (1"]}).status == 400


def test_words_without_their_model_are_told_which_it_is_and_may_use_another_at_hand(server: Running) -> None:
    reply = server.post("/api/search", {"table": "laion", "terms": [{"text": "a cat"}]})
    assert (reply.status, reply.json["model"].endswith("no-model")) == (503, True)
    at_hand = server.ask("/api/models").json["models"]
    bundled = next(m for m in at_hand if m["name"] == "clipql/emoji")
    numbers = ", ".join(["0.5"] * bundled["dimension"])
    for statement in (
        "CREATE TABLE fitting (id UInt8, v Array(Float32)) ENGINE = MergeTree ORDER BY id",
        f"INSERT INTO fitting VALUES (1, [{numbers}])",
    ):
        assert server.sql(statement).status == 200
    asked = {"table": "fitting", "terms": [{"text": "a cat"}], "model": "clipql/emoji"}
    found = server.post("/api/search", asked).json
    assert "encode_text('a cat', 'clipql/emoji')" in found["sql"]
    assert ids(found) == ["0"]
    several = {"table": "fitting", "queries": [{"text": "a cat"}, {"text": "a dog"}], "model": "clipql/emoji"}
    assert [ids(answer) for answer in server.post("/api/search", several).json["answers"]] == [["0"], ["0"]]
    chance = server.post("/api/chance", {"table": "fitting", "model": "clipql/emoji"}).json["similarity"]
    assert -1 <= chance <= 1
    unfit = server.post("/api/search", {**asked, "table": "laion"})
    assert (unfit.status, "holds 16" in unfit.json["error"]) == (503, True)
    for name in ("/etc", str(server.folder), "../models", "nosuch"):
        assert server.post("/api/search", {**asked, "model": name}).status == 400
    words = {t["name"]: t["vectors"][0]["words"] for t in server.ask("/api/tables").json["tables"]}
    assert not any(words.values())
    server.sql("DROP TABLE fitting")


def test_words_are_looked_for_beside_meaning(server: Running) -> None:
    # the meaning of both is far off; the words alone tell the second
    for statement in (
        "CREATE TABLE worded (id UInt8, caption String, v Array(Float32)) ENGINE = MergeTree ORDER BY id",
        (
            "INSERT INTO worded SELECT number, if(number = 77, 'the zebra\\'s crossing', concat('thing ', "
            "toString(number))), arrayMap(i -> toFloat32(sin(number * i + i)), range(1, 129)) FROM numbers(120)"
        ),
    ):
        assert server.sql(statement).status == 200
    asked = {"table": "worded", "terms": [{"text": "zebra's"}], "model": "clipql/emoji", "k": 5}
    alone, both = (server.post("/api/search", {**asked, "hybrid": hybrid}).json for hybrid in (False, True))
    assert "hybrid_score" not in alone["rows"][0]
    first = both["rows"][0]
    assert (first["id"], len(both["rows"]), both["more"]) == ("77", 5, True)
    assert first["hybrid_score"] > 1 / 61
    assert set(ids(both)) > set(ids(alone)[:4])
    assert server.sql(both["sql"].replace("encode_text('zebra\\'s', 'clipql/emoji')", str([0.5] * 128))).status == 200
    rest = server.post("/api/search", {**asked, "hybrid": True, "offset": 5, "k": 3}).json
    assert ids(rest) == ids(server.post("/api/search", {**asked, "hybrid": True, "k": 8}).json)[5:]
    named = server.post("/api/search", {**asked, "hybrid": True, "words": "caption", "where": "id != 77"}).json
    assert ids(named) == [id for id in ids(server.post("/api/search", {**asked, "k": 6}).json) if id != "77"][:5]
    for wrong, told in (
        ({"terms": [{"id": "1"}]}, "has one term, a text"),
        ({"terms": [{"text": "a"}, {"text": "b"}]}, "has one term, a text"),
        ({"fold": 0.9}, "leave one of hybrid and fold out"),
        ({"words": "nosuch"}, "there is no such column"),
    ):
        reply = server.post("/api/search", {**asked, "hybrid": True, **wrong})
        assert (reply.status, told in reply.json["error"]) == (400, True), reply.text
    server.sql("DROP TABLE worded")


def test_a_picture_is_uploaded_as_a_form_or_in_base64(server: Running) -> None:
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    query = json.dumps({"table": "laion", "terms": [{"upload": "one"}]})
    body = (
        (
            f'--x\r\nContent-Disposition: form-data; name="query"\r\n\r\n{query}\r\n'
            '--x\r\nContent-Disposition: form-data; name="one"; filename="a.png"\r\n\r\n'
        ).encode()
        + out.getvalue()
        + b"\r\n--x--\r\n"
    )
    reply = server.ask("/api/search", body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert (reply.status, "no-model" in reply.json["error"]) == (503, True)
    asked = {"table": "laion", "terms": [{"image": base64.b64encode(out.getvalue()).decode()}]}
    assert server.post("/api/search", asked).status == 503


def test_a_row_and_the_map_of_rows(server: Running) -> None:
    row = server.ask("/api/rows/default/laion/7").json
    assert (row["id"], row["picture"]) == ("7", "https://example.org/0/7.jpg")
    assert server.ask("/api/rows/default/laion/99999").status == 404
    asked = {"table": "laion", "column": "image_embedding", "ids": [str(i) for i in range(40)]}
    points = server.post("/api/map", asked).json["points"]
    places = np.array([[p["x"], p["y"]] for p in points])
    assert [p["id"] for p in points] == asked["ids"]
    assert np.abs(places).max() == 1
    centred = FIRST[:40].astype(np.float64) - FIRST[:40].astype(np.float64).mean(axis=0)
    expected = np.linalg.svd(centred, full_matrices=False)[1][:2]
    assert np.linalg.norm(places, axis=0) / np.linalg.norm(places) == pytest.approx(
        expected / np.linalg.norm(expected), abs=1e-3
    )
    assert server.post("/api/map", {**asked, "ids": ["1"]}).json["points"] == [{"id": "1", "x": 0.0, "y": 0.0}]


def test_a_relative_path_is_one_of_where_the_server_was_started_or_the_database_is(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        Image.new("L", (1, 1)).save(folder / f"{folder.name}.png")
    (here / "words.png").write_bytes(b"no picture at all")
    found = Folders((here, there), (here,))
    for name in ("here.png", str(here / "here.png")):
        with os.fdopen(found.open(name), "rb") as file:
            assert file.read() == (here / "here.png").read_bytes()
    for name in ("there.png", "../there/there.png", "nowhere.png", "words.png", "", "here"):
        with pytest.raises(PictureError):
            found.open(name)


def test_thumbnails_are_of_the_files_that_rows_name_and_of_no_others(server: Running) -> None:
    reply = server.ask("/api/thumbnail/default/pictures/0", size="64")
    with Image.open(io.BytesIO(reply.body)) as picture:
        assert (reply.headers["content-type"], picture.size) == ("image/webp", (64, 32))
    again = server.ask("/api/thumbnail/default/pictures/0", size="64", headers={"If-None-Match": reply.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    for row in ("1", "2", "3", "77"):  # gone, no picture, gone, no row
        assert server.ask(f"/api/thumbnail/default/pictures/{row}").status == 404
        assert server.ask(f"/api/picture/default/pictures/{row}").status == 404
    whole = server.ask("/api/picture/default/pictures/0")
    assert (whole.headers["content-type"], whole.body) == (
        "image/png",
        (server.folder / "pictures" / "red.png").read_bytes(),
    )
    assert (whole.headers["content-security-policy"], whole.headers["x-content-type-options"]) == (
        "sandbox; default-src 'none'",
        "nosniff",
    )
    assert b"canary" not in server.ask("/api/thumbnail/default/pictures/2").body
    assert server.ask("/api/thumbnail/default/pictures/..%2F0").status in (400, 404)
    assert server.ask("/api/thumbnail/default/pictures/0", size="100000").status == 400
    outside = server.folder / "outside.png"
    Image.new("RGB", (8, 8)).save(outside)
    server.sql(f"INSERT INTO pictures VALUES ('{outside}', 'x', 0, [1, 0, 0, 0])")
    assert server.ask("/api/thumbnail/default/pictures/4").status == 404
    assert server.ask("/api/picture/default/pictures/4").status == 404
    server.sql("DELETE FROM pictures WHERE caption = 'x'")


def test_plans_completions_and_figures(server: Running) -> None:
    sql = "SELECT url FROM laion ORDER BY L2Distance(image_embedding, text_embedding) LIMIT 1"
    assert server.post("/api/explain", {"sql": sql}).status == 200
    elsewhere = server.post("/api/explain", {"sql": sql, "database": "system"})
    assert (elsewhere.status, "laion" in elsewhere.text) == (404, True)
    assert server.post("/api/explain", {"sql": "SELECT * FROM file('x')"}).status == 403
    words = server.ask("/api/complete").json
    assert {"cosineDistance", "encode_text"} <= set(words["functions"])
    assert "file" not in words["functions"]
    assert "SELECT" in words["keywords"]
    search(server, terms=[{"id": "1"}])
    figures = server.ask("/metrics").text
    for name in ("clipql_requests_total", "clipql_stage_seconds_bucket", "clipql_vector_searches_total",
                 'clipql_search_work_total{what="rows_scanned"}', 'clipql_stage_seconds_count{stage="index scan"}',
                 'clipql_encoded_total{function="encode_text"}', 'clipql_encoded_total{function="encode_image"} 0.0',
                 'clipql_table_rows{table="default.laion"} 300.0'):  # fmt: skip
        assert name in figures


def test_the_document_describes_every_route_that_there_is(server: Running) -> None:
    document = server.ask("/api/openapi.json").json
    assert document["openapi"].startswith("3.1")
    for path, methods in document["paths"].items():
        for method in methods:
            target = path.replace("{database}", "default").replace("{table}", "laion").replace("{id}", "1")
            reply = server.ask(target, "{}" if method == "post" else None, method=method.upper())
            assert reply.status not in (405, 500), (path, method, reply.text[:100])
    assert {"/api/status", "/api/tables", "/api/search", "/api/map", "/api/projection", "/api/explain", "/api/login",
            "/api/count", "/api/chance", "/api/models", "/api/facets", "/api/complete", "/healthz", "/metrics",
            "/api/progress/{query_id}",
            "/api/picture/{database}/{table}/{id}", "/api/rows/{database}/{table}/{id}",
            "/api/thumbnail/{database}/{table}/{id}",
            "/", "/ping", "/replicas_status", "/api/openapi.json"} == set(document["paths"])  # fmt: skip


def test_a_page_logs_in_once_and_gets_a_cookie_for_pictures(reader: Running) -> None:
    assert reader.post("/api/login", {"token": "wrong"}).status == 401
    reply = reader.post("/api/login", {"token": TOKEN})
    cookie = reply.headers["set-cookie"]
    assert all(word in cookie.lower() for word in ("httponly", "samesite=strict"))
    headers = {"Cookie": cookie.partition(";")[0]}
    assert reader.ask("/api/thumbnail/default/pictures/0", headers=headers).status == 200
    assert reader.ask("/api/thumbnail/default/pictures/0").status == 401


def test_a_server_is_used_like_a_folder(server: Running) -> None:
    with clipql.connect(server.url) as db:
        assert db.sql("SELECT count() FROM laion").rows == [(ROWS,)]
        given = {"s": "it's \\ a\ttab\n", "a": ["x'y\\"], "n": None}
        assert db.sql("SELECT {s:String}, {a:Array(String)}, {n:Nullable(String)}", **given).rows == [
            tuple(given.values())
        ]
        found = db.search("laion", vector=FIRST[7].astype(np.float32), k=3, columns=["url"])
        assert found.columns == ("url", "distance")
        assert found.rows[0][0] == "https://example.org/0/7.jpg"
        many = db.search_many("laion", vectors=FIRST[5:8].astype(np.float32), k=1, columns=["id"])
        assert [each.rows[0][0] for each in many] == [5, 6, 7]
        db.sql("SET max_threads = 1; CREATE TEMPORARY TABLE mine (a Int8); INSERT INTO mine VALUES (3)")
        assert db.sql("SELECT a, getSetting('max_threads') FROM mine").rows == [(3, 1)]
        long = np.arange(5000, dtype=np.float32)
        assert db.sql("SELECT length({v:Array(Float32)})", v=long).rows == [(5000,)]
        assert db.execute("SELECT 1 AS a FORMAT JSONEachRow").output.data == b'{"a":1}\n'
        with pytest.raises(UnknownTable) as caught:
            db.sql("SELECT * FROM nosuch")
        assert (caught.value.code, caught.value.name) == (60, "UNKNOWN_TABLE")
        with pytest.raises(QueryError, match="no-model"):
            db.search("laion", text="a cat")
        for nothing in ("nosuch.jpg", Path("nosuch.jpg")):
            with pytest.raises(PictureError, match=r"nosuch.jpg.* cannot be read as a picture: No such file"):
                db.search("laion", image=nothing)
        with pytest.raises(ServerError, match="run it where the server runs"):
            db.ingest("somewhere")


def test_a_value_of_each_type_comes_from_a_server_as_from_a_folder(server: Running) -> None:
    with clipql.connect(server.url) as db:
        for expression, (expected, _) in VALUES.items():
            assert same(db.sql(f"SELECT {expression} AS x, 1 AS n").rows[0][0], expected), expression
        db.sql("CREATE TABLE moods (mood Enum8('dull' = 1), v Array(Float32)) ENGINE = MergeTree ORDER BY tuple()")
        db.sql("INSERT INTO moods VALUES ('dull', [1, 0])")
        near = "SELECT mood FROM moods ORDER BY L2Distance(v, [0, 1]) LIMIT 1"
        assert db.sql(near).rows == [("dull",)]
        with clipql.connect(server.url) as other:
            other.sql("ALTER TABLE moods MODIFY COLUMN mood Enum8('grey' = 1)")
        assert db.sql(near).rows == [("grey",)]
        db.sql("DROP TABLE moods")


def test_a_server_that_is_not_there_or_wants_a_token_is_told(reader: Running) -> None:
    with pytest.raises(ServerError, match="does not answer"):
        clipql.connect("http://127.0.0.1:9")
    with pytest.raises(ServerError, match="asks for a token"):
        clipql.connect(reader.url, token="wrong")
    with clipql.connect(reader.url, token=TOKEN) as db:
        assert len(db.sql("SELECT 1")) == 1


def test_the_command_line_reaches_a_server(server: Running) -> None:
    command = [sys.executable, "-m", "clipql", "--url", server.url, "sql", "SELECT count() FROM laion"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LAST_NET_SECONDS, check=True)
    assert done.stdout == f"{ROWS}\n"
