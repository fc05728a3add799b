"""Errors of a statement from the network name the place in the text that was sent."""

from __future__ import annotations

import re

import pytest

from tests.serve.conftest import Running

WRONG = (
    "SELECT 1 FORM nothing",
    "  SELECT /* über */ 1\n, -- two\n FORM nothing FORM nothing",
    "SELECT '¿qué?', {name:String}, {many:Array(Float32)} FORM nothing",
)


@pytest.mark.parametrize("sql", WRONG)
def test_a_syntax_error_names_the_byte_that_the_sender_sees(server: Running, sql: str) -> None:
    explained = server.post("/api/explain", {"sql": sql, "params": {"name": "a", "many": [1, 2]}})
    sent = server.sql(sql, param_name="a", param_many="[1,2]")
    for reply in (sent, explained):
        assert reply.status == 400, reply.text
        place = re.search(r"failed at position (\d+) \((\w+)\)(?: \(line (\d+), col (\d+)\))?", reply.text)
        assert place is not None, reply.text
        at = int(place[1]) - 1
        assert sql.encode()[at:].startswith(place[2].encode()), (reply.text, sql.encode()[at:])
        if place[3] is not None:
            line = sql.split("\n")[int(place[3]) - 1]
            assert line.encode()[int(place[4]) - 1 :].startswith(place[2].encode()), reply.text


def test_what_is_no_sql_is_named_with_its_place(server: Running) -> None:
    before = "SELECT 'é', "
    for sql in (f"{before}é", f"{before}'open"):
        place = re.search(r"at position (\d+)", server.sql(sql).text)
        assert place is not None
        assert int(place[1]) == len(before.encode()) + 1
