"""Thousands of random statements: planned, unplanned and on a plain table of ClickHouse they give the same."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import run
from compare import bags, promised, ranked, sequences
from generator import Key

STATEMENTS, SEED = int(os.environ.get("CLIPQL_STATEMENTS", "600")), 1


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> run.Summary:
    return run.run(STATEMENTS, SEED, tmp_path_factory.mktemp("differential"))


def test_random_statements_give_what_plain_clickhouse_gives(summary: run.Summary) -> None:
    assert not summary.failures, f"{summary}\n\n" + "\n".join(map(str, summary.failures[:10]))
    assert summary.statements >= STATEMENTS


def test_every_family_and_every_kind_of_plan_was_tried(summary: run.Summary) -> None:
    families = {kind.partition(",")[0] for kind in summary.kinds}
    assert {
        "top-k",
        "several keys",
        "pages",
        "range",
        "partition",
        "star",
        "nested",
        "nearest join",
        "cross join",
        "groups",
        "distinct",
        "window",
        "functions",
        "aliases",
    } <= families
    assert {"top-k", "range", "distances", "nearest join"} <= set(summary.plans)


def test_the_comparison_sees_what_differs_and_forgives_what_rounding_and_ties_may_change() -> None:
    key = (Key("d"),)
    assert bags([(1, 0.1), (2, 0.2)], [(2, 0.2000001), (1, 0.1)]) is None
    assert bags([(1, 0.1)], [(1, 0.101)])
    assert sequences([(1,), (2,)], [(2,), (1,)])
    full = [(1, 0.0), (2, 0.5), (3, 0.5), (4, 0.9)]  # id, and the key
    assert ranked([(1,), (3,)], full, key, 0, 2) is None
    assert ranked([(1,), (4,)], full, key, 0, 2)
    assert ranked([(1,)], full, key, 0, 2)
    assert promised([(1,), (4,)], full, key, 0, 2) is None
    assert promised([(4,), (1,)], full, key, 0, 2)
    assert promised([(1,), (5,)], full, key, 0, 2)
