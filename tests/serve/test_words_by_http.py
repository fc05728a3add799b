"""bm25(…) through a server: allowed, and no way around what the network may not read."""

from __future__ import annotations

import pytest

from tests.serve.conftest import ROWS, Running


def test_words_are_scored_through_a_server(server: Running) -> None:
    assert server.sql("SELECT count() FROM laion WHERE bm25(caption, 'picture') > 0").text == f"{ROWS}\n"
    best = "SELECT id FROM laion ORDER BY bm25(caption, {w:String}) DESC, id LIMIT 1"
    assert server.sql(best, param_w="picture 17").text == "17\n"


@pytest.mark.parametrize(
    "words", ["(SELECT name FROM system.roles LIMIT 1)", "(SELECT * FROM file('/etc/passwd', 'LineAsString'))"]
)
def test_what_the_network_may_not_read_is_not_read_by_way_of_words(server: Running, words: str) -> None:
    reply = server.sql(f"SELECT bm25(caption, {words}) FROM laion LIMIT 1")
    assert (reply.status, "ACCESS_DENIED" in reply.text) == (403, True)


def test_heads_are_computed_for_the_network(server: Running) -> None:
    said = server.sql("SELECT count() FROM laion WHERE vectorRelu(image_embedding)[1] >= 0").text
    assert said == f"{ROWS}\n"
    reply = server.sql("SELECT vectorLinear(image_embedding, [[file('/etc/passwd')]], [1]) FROM laion LIMIT 1")
    assert reply.status >= 400
    assert "root:" not in reply.text
