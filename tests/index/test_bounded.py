"""A search by codes finds the rows of the scan, with their distances: judged by 80 bits and by the scan of all rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from clipql.errors import DatabaseDamaged
from clipql.index.base import Candidates
from clipql.index.bounded import file as code_file
from clipql.index.bounded import kernels, search
from clipql.index.bounded.coder import Coder, learn
from clipql.index.bounded.file import CodeFile
from clipql.index.bounded.search import BoundedScan, asked
from clipql.index.flat import Scan, Term
from clipql.storage import files
from clipql.storage.catalog import VectorColumn
from clipql.storage.vectors import segments
from clipql.storage.vectors.metrics import Metric
from clipql.storage.vectors.store import ColumnStore
from tests.cases import examples
from tests.index.test_exact_magnitudes import LONG, judged

DIMENSIONS = (1, 3, 17, 64, 70, 200)


@pytest.fixture(autouse=True)
def never_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes are made, and used, also where they are worth nothing."""
    monkeypatch.setattr(code_file, "WORTH", np.inf)
    monkeypatch.setattr(search, "MOST_LEFT", 2.0)


def store_of(folder: Path, rows: NDArray[Any], cuts: tuple[int, ...] = ()) -> ColumnStore:
    """A column of these rows, in segments that end at the cuts."""
    found = []
    for number, part in enumerate(np.split(rows, cuts)):
        path = folder / f"{number}.npy"
        path.unlink(missing_ok=True)
        with files.new_file(path) as file:
            writer = segments.SegmentWriter(file, path, sum(s.rows for s in found), rows.shape[1], rows.dtype.name)
            writer.append(part, "the test", 0)
            found.append(writer.finish())
    return ColumnStore(folder, VectorColumn("v", folder.name, rows.shape[1], None, tuple(found)))


def codes_of(folder: Path, store: ColumnStore, **options: Any) -> CodeFile:
    code_file.write(folder / "codes", store, **options)
    return CodeFile(folder / "codes")


def made(seed: int, n: int, d: int, kind: str, narrow: bool) -> NDArray[Any]:
    """Rows of one kind: as CLIP's, of unlike lengths, with outliers, all alike, whole numbers that tie, or sparse."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(d) + rng.standard_normal((n, d)) * np.geomspace(1, 0.01, d)
    if kind == "lengths":
        x *= 10.0 ** rng.uniform(-4 if narrow else -30, 3 if narrow else 30, (n, 1))
    elif kind == "outliers":
        x[rng.random(n) < 0.05] *= 1e3 if narrow else 1e25
    elif kind == "tiny":
        x *= 1e-6 if narrow else 1e-38
    elif kind == "alike":
        x[:] = x[0]
    elif kind == "ties":
        x = rng.integers(-1, 2, (n, d)).astype(float)
    elif kind == "sparse":
        x[rng.random((n, d)) < 0.9] = 0
    x[rng.random(n) < 0.1] = 0
    x[rng.random(n) < 0.1] = x[0]
    return x.astype(np.float16 if narrow else np.float32)


kinds = st.sampled_from(["plain", "lengths", "outliers", "tiny", "alike", "ties", "sparse"])
places = st.tuples(st.integers(0, 99), st.integers(1, 90), st.sampled_from(DIMENSIONS), kinds, st.booleans())


def query_of(seed: int, rows: NDArray[Any], own: bool) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed + 1000)
    scale = float(np.median(np.abs(rows.astype(np.float64)))) or 1.0
    far = rng.standard_normal(rows.shape[1]) * scale * 10.0 ** rng.integers(-2, 3)
    return rows[seed % len(rows)].astype(np.float64) if own else far.astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("metric", list(Metric))
@settings(max_examples=examples(60))
@given(places, st.booleans(), st.sampled_from([1.0, -1.0, 2.5]))
def test_no_bound_is_above_the_key_of_its_row(
    metric: Metric, place: tuple[int, int, int, str, bool], own: bool, weight: float
) -> None:
    rows = made(*place)
    query = query_of(place[0], rows, own)
    found = learn(rows, rows.dtype.itemsize)
    if found is None:
        return
    coder = found[0]
    codes, residual, norm = coder.encode(rows)
    file = _InMemory(coder)
    term = Term(_Sizes(rows), metric, query, weight)  # type: ignore[arg-type]
    question = asked(file, term)  # type: ignore[arg-type]
    if question is None:
        return
    n = len(rows)
    given, out = np.empty(n, np.int64), np.empty(n)
    norms = norm[:0] if metric is Metric.COSINE else norm
    every = np.empty(0, np.bool_)
    for array in (codes, residual, norms, every):
        array.setflags(write=False)
    counted = kernels.lowest(
        codes, residual, norms, every, question.levels, coder.layout, question.form, np.inf, given, out
    )
    assert counted == n
    if metric in (Metric.COSINE, Metric.DOT):
        true = weight * judged(metric, rows, query)
    else:
        true = np.sign(weight) * judged(Metric.L2_SQUARED, rows, query)
    there = ~np.isnan(true.astype(np.float64))
    assert (out[there] <= true[there].astype(LONG)).all()


class _InMemory:
    """As much of a code file as a query is made for."""

    def __init__(self, coder: Coder) -> None:
        self.coder = coder


class _Sizes:
    """As much of a store as a term asks for."""

    def __init__(self, rows: NDArray[Any]) -> None:
        self.largest, self.dimension = float(np.linalg.norm(rows.astype(np.float64), axis=1).max()), rows.shape[1]


@settings(max_examples=30)
@example((3, 80, 64, "ties", True), Metric.L2, -1.0, 7, True, 0.5, True)
@given(
    places,
    st.sampled_from(list(Metric)),
    st.sampled_from([1.0, -1.0, 3.0]),
    st.integers(1, 30),
    st.booleans(),
    st.sampled_from([0.0, 0.5, 0.9]),
    st.booleans(),
)
def test_codes_find_what_a_scan_of_all_rows_finds(
    tmp_path_factory: pytest.TempPathFactory,
    place: tuple[int, int, int, str, bool],
    metric: Metric,
    weight: float,
    k: int,
    own: bool,
    left_out: float,
    rounded: bool,
) -> None:
    folder = tmp_path_factory.getbasetemp() / "bounded"
    folder.mkdir(exist_ok=True)
    rows = made(*place)
    store = store_of(folder, rows, (len(rows) // 3,))
    file = codes_of(folder, store)
    among = np.random.default_rng(place[0]).random(len(rows)) >= left_out if left_out else None
    term = Term(store, metric, query_of(place[0], rows, own), weight, rounded)
    same(BoundedScan(file, term, among).nearest(k), Scan([term], store.rows, among).nearest(k))
    keys = Scan([term], store.rows, among).nearest(len(rows)).distances
    for radius in keys[np.isfinite(keys)][[0, -1]] if np.isfinite(keys).any() else ():
        scanned = Scan([term], store.rows, among).within(float(radius), len(rows))
        found = BoundedScan(file, term, among).within(float(radius), len(rows))
        if found is not None:
            assert isinstance(found, Candidates)
            assert isinstance(scanned, Candidates)
            inside = found.distances <= radius
            np.testing.assert_array_equal(found.rows[inside], scanned.rows[scanned.distances <= radius])


def same(found: Candidates | None, expected: Candidates) -> None:
    """Codes may pass; what they give is what the scan gives."""
    if found is not None:
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.distances, expected.distances)
        assert found.cost.proven == 1


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ColumnStore]:
    """Rows for several stretches and both cores, in two segments."""
    folder = tmp_path_factory.mktemp("large")
    rng = np.random.default_rng(5)
    rows = (1 + rng.standard_normal((100_000, 64)) * np.geomspace(1, 0.05, 64)).astype(np.float16)
    rows[7::5000] = rows[9]
    return folder, store_of(folder, rows, (70_000,))


@pytest.mark.parametrize("metric", list(Metric))
def test_most_rows_are_ruled_out_and_none_that_counts(large: tuple[Path, ColumnStore], metric: Metric) -> None:
    folder, store = large
    file = codes_of(folder, store)
    term = Term(store, metric, store.take(np.array([9]))[0].astype(np.float64), -1 if metric is Metric.DOT else 1, True)
    for among in (None, np.arange(store.rows) % 3 != 0):
        found = BoundedScan(file, term, among).nearest(15)
        assert found is not None
        same(found, Scan([term], store.rows, among).nearest(15))
        assert found.cost.rows_rescored < 10_000
        assert found.cost.codes_scanned == store.rows


def test_rows_that_came_later_are_added_to_the_codes_there_are(large: tuple[Path, ColumnStore], tmp_path: Path) -> None:
    _, store = large
    first = ColumnStore(large[0], VectorColumn("v", large[0].name, 64, None, tuple(store.segments[:1])))
    older = codes_of(tmp_path, first)
    code_file.write(tmp_path / "grown", store, older=older)
    grown = CodeFile(tmp_path / "grown")
    assert (grown.rows, grown.learned) == (100_000, 70_000)
    grown.verify()
    np.testing.assert_array_equal(grown.codes[:70_000], older.codes)
    term = Term(store, Metric.L2, store.take(np.array([99_999]))[0].astype(np.float64), 1.0, True)
    same(BoundedScan(grown, term, None).nearest(10), Scan([term], store.rows).nearest(10))


def test_what_is_damaged_is_noticed_before_it_could_hide_a_row(large: tuple[Path, ColumnStore], tmp_path: Path) -> None:
    _, store = large
    code_file.write(tmp_path / "codes", store)
    whole = (tmp_path / "codes" / "codes.npy").read_bytes()
    (tmp_path / "codes" / "codes.npy").write_bytes(whole[:-5] + b"\xff" + whole[-4:])
    term = Term(store, Metric.L2, np.ones(64), 1.0, True)
    with pytest.raises(DatabaseDamaged, match=r"is damaged in rows 98,304 and after|its hash differs"):
        BoundedScan(CodeFile(tmp_path / "codes"), term, None).nearest(10)


def test_codes_that_would_rule_out_too_little_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_file, "WORTH", 0.7)
    store = store_of(tmp_path, np.random.default_rng(0).standard_normal((3000, 16)).astype(np.float16))
    file = codes_of(tmp_path, store)
    assert not file.useful
    assert len(file.codes) == 0
    assert BoundedScan(file, Term(store, Metric.L2, np.ones(16)), None).nearest(3) is None
