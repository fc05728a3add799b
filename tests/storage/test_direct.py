"""Reads past the page cache give what the file has, and where they cannot be had, say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipql.storage.vectors import direct


@pytest.fixture
def mapped(tmp_path: Path) -> np.ndarray:
    rng = np.random.default_rng(1)
    np.save(tmp_path / "a.npy", rng.standard_normal((3_000, 96), np.float32))
    return np.asarray(np.load(tmp_path / "a.npy", mmap_mode="r"))


def test_rows_at_random_come_as_the_file_has_them(mapped: np.ndarray) -> None:
    files = direct.Files([mapped[1_000:], mapped])
    if files.descriptor.min() < 0:
        pytest.skip("this file system or container has no direct reads")
    rows = np.array([0, 1_999, 5, 5, *np.random.default_rng(2).integers(0, 2_000, 300)])
    size = mapped.strides[0]
    got = list(direct.read_places(files, np.zeros(len(rows), np.int64), rows * size, size))
    assert got == [mapped[1_000 + row].tobytes() for row in rows]
    last = list(direct.read_places(files, np.ones(1, np.int64), np.array([2_999 * size]), size))
    assert last == [mapped[2_999].tobytes()]


def test_what_lies_in_no_file_is_left_where_it_is(mapped: np.ndarray) -> None:
    files = direct.Files([mapped.copy(), mapped])
    assert files.descriptor[0] == -1
    size = mapped.strides[0]
    assert list(direct.read_places(files, np.zeros(2, np.int64), np.array([0, size]), size)) == [None, None]


def test_a_place_beyond_the_file_is_not_read(mapped: np.ndarray) -> None:
    files, size = direct.Files([mapped]), mapped.strides[0]
    assert list(direct.read_places(files, np.zeros(1, np.int64), np.array([3_000 * size]), size)) == [None]


def test_a_file_that_was_replaced_since_it_was_mapped_is_not_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((100, 64), np.float32))
    mapped = np.asarray(np.load(tmp_path / "a.npy", mmap_mode="r"))
    np.save(tmp_path / "b.npy", np.ones((100, 64), np.float32))
    (tmp_path / "b.npy").rename(tmp_path / "a.npy")
    assert direct.Files([mapped]).descriptor.tolist() == [-1]
