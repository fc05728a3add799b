"""Which settings of a user leave an answer from the row file what it is."""

from __future__ import annotations

import pytest

from clipql.sql.search.harmless import settings_allow

FILTERS = "{'system.tables': 'name != \\'a, max_threads = 1\\'', 'system.parts': '1'}"


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("SET max_threads = 2, log_queries = 0", True),
        ("USE `a = b`", True),
        ("SET max_result_rows = 10000000, result_overflow_mode = 'throw'", True),
        ("SET max_result_rows = 1, result_overflow_mode = 'break'", False),
        ("SET max_result_rows = '0'", True),
        (f"SET additional_table_filters = {FILTERS}, max_threads = 1", True),
        ("SET additional_table_filters = {'system.tables': '1', 'laion': 'id = 1'}", False),
        (f"SET additional_table_filters = {FILTERS}, limit = 1", False),
        ("SET limit = 1", False),
        ("SET max_threads = 2, offset = 1", False),
        ("SET final = 1", False),
        ("SET max_result_bytes = 1", False),
    ],
)
def test_settings_that_could_change_an_answer_are_told_from_those_that_cannot(statement: str, allowed: bool) -> None:
    assert settings_allow([statement], {}) is allowed


def test_settings_given_beside_a_statement_count_alike() -> None:
    assert settings_allow([], {"max_threads": "1", "max_result_rows": "1000"})
    assert not settings_allow([], {"max_result_rows": "10"})
    assert not settings_allow([], {"offset": "1"})
