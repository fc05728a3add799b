"""The parameters of a request are those that Starlette reads, however they are escaped."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from clipql.serve.clickhouse import _parameters

PIECES = st.sampled_from(
    ["%2C", "%2c", "%20", "%", "%2", "%25", "2C", "20", "+", "&", "=", "q", ",", " ", "%C3%A9", "é"]
)


@given(st.lists(PIECES, max_size=24).map("".join))
@settings(max_examples=300, deadline=None)
@example("query=SELECT%201%2C%202&param_q=%5B1%2C2%5D&query=SELECT+3")
@example("%252C=%2520&%%2C=%2%2C&%2%20=%C3%20%A9")
def test_parameters_are_those_of_starlette(text: str) -> None:
    raw = text.encode()
    request = SimpleNamespace(scope={"query_string": raw})
    assert _parameters(request) == dict(QueryParams(raw).multi_items())  # type: ignore[arg-type]
