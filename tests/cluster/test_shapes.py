"""Shards that do not fit together are told apart, and statements about indexes are read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from clipql.cluster.partial_query import GLOBAL_ROW, PartialQuery, Run, Snapshot, joined, rows_of, statement
from clipql.cluster.placeholder import Shape, one_shape
from clipql.cluster.session import added_vectors, index_change
from clipql.errors import ClusterError, ReplicaUnavailable
from clipql.syntax.reading import read
from clipql.syntax.statements import OnTable

SHAPE = Shape("default", "laion", (("id", "UInt64"), ("v", "Array(Float32)")), (), {"v": (512, "openai/clip")})
QUERY = PartialQuery("default", "laion", "t", f"t.id AS a, {GLOBAL_ROW} AS b", where="t.id > 3")


def test_lengths_and_models_are_those_of_the_shards_that_know_them() -> None:
    empty = replace(SHAPE, vectors={"v": (None, None)})

    assert one_shape([empty, SHAPE, empty]) == SHAPE


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (replace(SHAPE, listed=(("id", "UInt32"),)), "has other columns on shard 0"),
        (replace(SHAPE, vectors={"v": (768, "openai/clip")}), "holds 512 numbers on one shard and 768 on shard 1"),
        (replace(SHAPE, vectors={"v": (512, "laion/clip")}), "was made by openai/clip on one shard and by laion/clip"),
    ],
)
def test_shards_with_other_columns_lengths_or_models_are_named(other: Shape, told: str) -> None:
    with pytest.raises(ClusterError, match=told):
        one_shape([SHAPE, other])


def test_answers_with_other_columns_are_not_joined() -> None:
    one = rows_of(b"\x01\x01a\x05UInt8\x07")
    other = rows_of(b"\x01\x01a\x06UInt16\x07\x00")

    with pytest.raises(ClusterError, match="one gives a UInt8, another a UInt16"):
        joined([one, other], "default.laion")


@pytest.mark.parametrize("data", [b"", b"\x02\x01a\x01b\x05UInt8", b"\x01\x7fa"])
def test_an_answer_that_is_cut_short_is_told(data: bytes) -> None:
    with pytest.raises(ClusterError, match="cut short"):
        rows_of(data)


def test_rows_are_numbered_over_all_shards_and_later_ones_left_out() -> None:
    snapshot = Snapshot((Run(0, 10, 5), Run(5, 40, 5), Run(10, 45, 5)))

    made = statement(QUERY, snapshot, 20)

    assert made == (
        "SELECT t.id AS a, toUInt64(t._row + [10, 35][arrayFirstIndex(_clipql_end -> t._row < _clipql_end, [5, 15])]) "
        "AS b FROM `default`.`laion` AS t WHERE t._row < 15 AND t.id > 3"
    )


@pytest.mark.parametrize(
    ("bounds", "condition"),
    [
        ((0, None), "t._row < 15 AND t.id > 3"),
        ((12, None), "t._row >= 2 AND t._row < 15 AND t.id > 3"),
        ((20, 47), "t._row >= 5 AND t._row < 12 AND t.id > 3"),
        ((0, 3), "t._row < 0 AND t.id > 3"),
        ((90, None), "t._row >= 15 AND t._row < 15 AND t.id > 3"),
    ],
)
def test_numbers_of_rows_that_where_names_are_looked_up_in_each_shard(
    bounds: tuple[int, int | None], condition: str
) -> None:
    snapshot = Snapshot((Run(0, 10, 5), Run(5, 40, 5), Run(10, 45, 5)))

    assert statement(replace(QUERY, bounds=bounds), snapshot, 20).endswith(f" WHERE {condition}")


def test_a_replica_that_lacks_rows_does_not_answer() -> None:
    with pytest.raises(ReplicaUnavailable, match=r"has 4 rows of default\.laion and should have 5"):
        statement(QUERY, Snapshot((Run(0, 0, 5),)), 4)


@pytest.mark.parametrize(
    ("sql", "change"),
    [
        ("ALTER TABLE laion ADD INDEX near v TYPE ivf('L2Distance', 64)", ("ADD", "near", False)),
        ("ALTER TABLE a.laion ADD INDEX IF NOT EXISTS `n r` v TYPE ivf('L2Distance')", ("ADD", "n r", True)),
        ("ALTER TABLE laion MATERIALIZE INDEX near", ("MATERIALIZE", "near", False)),
        ("ALTER TABLE laion DROP INDEX near", ("DROP", "near", False)),
        ("ALTER TABLE laion DROP INDEX IF EXISTS near", ("DROP", "near", True)),
        ("ALTER TABLE laion DROP INDEX near, DROP COLUMN url", None),
        ("ALTER TABLE laion DROP COLUMN near", None),
    ],
)
def test_changes_of_indexes_are_told_from_other_changes(sql: str, change: tuple[str, str, bool] | None) -> None:
    found = read(sql).kind

    assert isinstance(found, OnTable)
    assert index_change(sql, found) == change


@pytest.mark.parametrize(
    ("change", "added"),
    [
        ("ADD COLUMN siglip Array(Float32)", ("siglip", False)),
        ("ADD COLUMN IF NOT EXISTS `a b` Array(Float32) AFTER id", ("a b", True)),
        ("ADD COLUMN siglip Array(Float32) FIRST", ("siglip", False)),
        ("ADD COLUMN siglip Array(Float32) DEFAULT [1]", None),
        ("ADD COLUMN siglip Array(Float32), DROP COLUMN url", None),
        ("ADD COLUMN siglip Array(Float64)", None),
        ("ADD COLUMN w UInt8", None),
    ],
)
def test_a_vector_column_that_is_added_is_told_from_other_changes(change: str, added: tuple[str, bool] | None) -> None:
    sql = f"ALTER TABLE laion {change}"
    found = read(sql).kind

    assert isinstance(found, OnTable)
    assert added_vectors(sql, found) == added
