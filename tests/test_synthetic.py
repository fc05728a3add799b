"""The generator: the files it writes are LAION parts, the same seed gives the same bytes, and vectors lie as CLIP's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipql import synthetic

# how far `measure` may be off its target; neighbours are further off than the target on purpose
TOLERANCE = {
    "participation ratio": 6.0,
    "median cosine to the nearest": 0.07,
    "median cosine to the 10th nearest": 0.08,
    "mean cosine of image and caption": 0.04,
}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def two_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    synthetic.write_parts(folder, rows=6_001, parts=2, queries=7, seed=3)
    return folder


def test_parts_and_queries_lie_where_laion_has_them(two_parts: Path) -> None:
    assert list(files_of(two_parts)) == [
        "img_emb/img_emb_0.npy",
        "img_emb/img_emb_1.npy",
        "metadata/metadata_0.parquet",
        "metadata/metadata_1.parquet",
        "queries/image.npy",
        "queries/text.npy",
        "text_emb/text_emb_0.npy",
        "text_emb/text_emb_1.npy",
    ]


def test_the_rows_are_shared_out_to_the_parts_and_the_files_of_a_part_agree(two_parts: Path) -> None:
    rows = []
    for part in (0, 1):
        image = np.load(two_parts / f"img_emb/img_emb_{part}.npy")
        text = np.load(two_parts / f"text_emb/text_emb_{part}.npy")
        table = pq.read_table(two_parts / f"metadata/metadata_{part}.parquet")
        assert (image.dtype, text.dtype) == (np.float16, np.float16)
        assert image.shape == text.shape == (table.num_rows, 512)
        own = np.einsum("ij,ij->i", image.astype(np.float32), text.astype(np.float32))
        np.testing.assert_allclose(table["similarity"].to_numpy(), own, atol=2e-3)
        rows.append(table.num_rows)
    assert rows == [3_000, 3_001]


def test_metadata_has_the_columns_of_laion_and_keys_are_unique_over_parts(two_parts: Path) -> None:
    tables = [pq.read_table(two_parts / f"metadata/metadata_{part}.parquet") for part in (0, 1)]
    assert tables[0].column_names == ["url", "caption", "NSFW", "similarity", "LICENSE", "width", "height", "key"]
    keys = [key for table in tables for key in table["key"].to_pylist()]
    assert keys == [f"{i:012d}" for i in range(6_001)]


def test_vectors_and_queries_have_unit_length_and_no_query_is_in_a_part(two_parts: Path) -> None:
    image = np.load(two_parts / "img_emb/img_emb_0.npy").astype(np.float32)
    for kind in ("image", "text"):
        queries = np.load(two_parts / f"queries/{kind}.npy")
        assert (queries.dtype, queries.shape) == (np.float32, (7, 512))
        np.testing.assert_allclose(np.linalg.norm(queries, axis=1), 1, atol=1e-5)
        assert (queries @ image.T).max() < 0.999
    np.testing.assert_allclose(np.linalg.norm(image, axis=1), 1, atol=2e-3)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(two_parts: Path, tmp_path: Path) -> None:
    synthetic.write_parts(tmp_path / "again", rows=6_001, parts=2, queries=7, seed=3)
    synthetic.write_parts(tmp_path / "other", rows=6_001, parts=2, queries=7, seed=4)
    first, again, other = files_of(two_parts), files_of(tmp_path / "again"), files_of(tmp_path / "other")
    assert first == again
    assert [name for name in first if first[name] == other[name]] == []


def test_without_text_there_is_no_text_folder(tmp_path: Path) -> None:
    synthetic.write_parts(tmp_path, rows=10, images_only=True)
    assert list(files_of(tmp_path)) == ["img_emb/img_emb_0.npy", "metadata/metadata_0.parquet"]


def test_a_part_of_no_rows_is_whole(tmp_path: Path) -> None:
    synthetic.write_parts(tmp_path, rows=0)
    assert np.load(tmp_path / "img_emb/img_emb_0.npy").shape == (0, 512)
    assert pq.read_table(tmp_path / "metadata/metadata_0.parquet").num_rows == 0


def test_vectors_lie_as_those_of_clip() -> None:
    sample = synthetic.world().draw(np.random.default_rng(5), 3_045)
    found = synthetic.measure(sample.image, sample.text)
    off = {name: round(found[name] - target, 3) for name, target in synthetic.TARGETS.items()}
    assert {name: d for name, d in off.items() if abs(d) > TOLERANCE.get(name, 0.03)} == {}


def test_a_negative_number_of_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows = -1.*expected 0 or more"):
        synthetic.write_parts(tmp_path, rows=-1)
    assert list(tmp_path.iterdir()) == []


def test_the_module_is_a_command(tmp_path: Path) -> None:
    synthetic.main([str(tmp_path), "--rows", "20", "--parts", "2", "--queries", "3", "--seed", "9"])
    synthetic.write_parts(tmp_path / "called", rows=20, parts=2, queries=3, seed=9)
    called = files_of(tmp_path / "called")
    assert {name: data for name, data in files_of(tmp_path).items() if not name.startswith("called")} == called
