"""Exports as LAION parts: line by line the same rows, to the last bit, and taken in again as they were."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clipql
from clipql import synthetic
from clipql.cli.entry import main
from clipql.curate import parts
from clipql.curate.parts import export_parts

ROWS = 700


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of synthetic parts, with rows deleted, a column of NULLs, and captions of all kinds."""
    folder = tmp_path_factory.mktemp("parts")
    synthetic.write_parts(folder / "parts", rows=ROWS, parts=2, seed=5)
    with clipql.connect(folder / "db") as db:
        db.ingest(folder / "parts", table="laion")
        db.sql("ALTER TABLE laion ADD COLUMN note Nullable(String)")
        db.sql("ALTER TABLE laion UPDATE note = 'ü “quoted” \\t\\n' WHERE id % 3 = 0 SETTINGS mutations_sync = 1")
        db.sql("DELETE FROM laion WHERE id % 10 = 4")
    return folder / "db"


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_exported_is_taken_in_again_to_the_last_bit(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with clipql.connect(place) as db:
        told = export_parts(db, "laion", out, rows_per_part=256)
        before = db.sql("SELECT * FROM laion ORDER BY id")
        image = db.sql("SELECT id, image_embedding FROM laion ORDER BY id").arrow()
    assert (told.rows, told.parts, told.written) == (ROWS * 9 // 10, 3, 3)
    for number in range(3):
        vectors = np.load(out / "img_emb" / f"img_emb_{number}.npy")
        ids = pq.read_table(out / "metadata" / f"metadata_{number}.parquet").column("id").to_pylist()
        assert vectors.dtype == np.float16
        assert len(vectors) == len(ids) == (256, 256, 118)[number]
        by_id = dict(zip(image.column(0).to_pylist(), image.column(1).to_pylist(), strict=True))
        assert all(np.array_equal(vectors[i], np.array(by_id[id], np.float16)) for i, id in enumerate(ids))
    manifest = json.loads((out / "manifest.json").read_text())
    listed = {name: f["sha256"] for part in manifest["parts"] for name, f in part["files"].items()}
    assert listed == {n: hashlib.sha256(c).hexdigest() for n, c in files(out).items() if n != "manifest.json"}
    with clipql.connect(tmp_path / "again") as db:
        db.ingest(out, table="laion")
        after = db.sql(f"SELECT {', '.join(before.columns)} FROM laion ORDER BY id")
    assert after.rows == before.rows


def test_an_export_of_some_rows_goes_on_where_it_stopped(place: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done >= 200:
            raise KeyboardInterrupt

    given: dict[str, Any] = {"where": "width > 300 AND id % 2 = 0", "rows_per_part": 100}
    with clipql.connect(place) as db:
        whole = export_parts(db, "laion", tmp_path / "whole", **given)
        with pytest.raises(KeyboardInterrupt):
            export_parts(db, "laion", tmp_path / "out", **given, progress=stop)
        assert len(json.loads((tmp_path / "out" / "manifest.json").read_text())["parts"]) == 2
        (tmp_path / "out" / "img_emb" / "img_emb_1.npy").write_bytes(b"cut")
        went_on = export_parts(db, "laion", tmp_path / "out", **given)
        assert (went_on.rows, went_on.written) == (whole.rows, whole.parts - 1)
        assert files(tmp_path / "out") == files(tmp_path / "whole")
        ids = [
            i for n in range(whole.parts) for i in pq.read_table(tmp_path / f"out/metadata/metadata_{n}.parquet")["id"]
        ]
        expected = db.sql(f"SELECT id FROM laion WHERE {given['where']} ORDER BY id").rows
        assert sorted(i.as_py() for i in ids) == [row[0] for row in expected]
        with pytest.raises(clipql.ClipqlError, match="holds an export of other rows"):
            export_parts(db, "laion", tmp_path / "out", where="width > 301", rows_per_part=100)


def test_an_export_that_was_killed_in_its_first_part_goes_on(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*given: Any) -> None:
        raise KeyboardInterrupt

    with clipql.connect(place) as db:
        with monkeypatch.context() as patch:
            patch.setattr(parts, "metadata", killed)
            with pytest.raises(KeyboardInterrupt):
                export_parts(db, "laion", tmp_path / "out")
        assert list((tmp_path / "out").rglob("*.npy"))
        assert export_parts(db, "laion", tmp_path / "out").written == 1
        export_parts(db, "laion", tmp_path / "at once")
    assert files(tmp_path / "out") == files(tmp_path / "at once")


def test_an_export_does_not_go_on_where_values_have_changed_since(place: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with clipql.connect(place) as db:
        with pytest.raises(KeyboardInterrupt):
            export_parts(db, "laion", tmp_path / "out", rows_per_part=300, progress=stop)
        db.sql("ALTER TABLE laion UPDATE note = 'new' WHERE id % 3 = 1 SETTINGS mutations_sync = 1")
        with pytest.raises(clipql.ClipqlError, match="of the table as it was"):
            export_parts(db, "laion", tmp_path / "out", rows_per_part=300)
        with pytest.raises(KeyboardInterrupt):
            export_parts(db, "laion", tmp_path / "again", rows_per_part=300, progress=stop)
    with clipql.connect(place) as db:  # which changes nothing
        assert export_parts(db, "laion", tmp_path / "again", rows_per_part=300).written > 0


def test_what_cannot_be_exported_is_refused(place: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with clipql.connect(place) as db:
        for table, folder, options, message in (
            ("nowhere", "a", {}, "there is no table nowhere"),
            ("laion", "full", {}, "is not empty, and holds no export"),
            ("laion", "a", {"where": "nothing > 3"}, "nothing"),
            ("laion", "a", {"rows_per_part": 0}, "expected at least 1"),
        ):
            with pytest.raises(clipql.ClipqlError, match=message):
                export_parts(db, table, tmp_path / folder, **options)  # type: ignore[arg-type]
    assert files(tmp_path) == {"full/mine.txt": b"mine"}


def shards(out: Path, form: str) -> tuple[list[int], np.ndarray]:
    """The ids and image vectors of an export, in order, by the description of its form."""
    if form in ("parquet", "hf"):
        readers = {"parquet": pq.read_table, "hf": lambda p: pa.ipc.open_stream(p.read_bytes()).read_all()}
        names = json.loads((out / "state.json").read_text())["_data_files"] if form == "hf" else []
        found = [out / n["filename"] for n in names] or sorted(out.glob("data/*.parquet"))
        tables = [readers[form](p) for p in found]
        assert {str(t.schema.field("image_embedding").type.value_type) for t in tables} == {"halffloat"}
        vectors = [t["image_embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 512) for t in tables]
        return [i for t in tables for i in t["id"].to_pylist()], np.concatenate(vectors)
    ids, vectors = [], []
    if form == "webdataset":
        for path in sorted(out.glob("*.tar")):
            with tarfile.open(path) as tar:
                members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
            for key in dict.fromkeys(name.partition(".")[0] for name in members):
                said = json.loads(members[f"{key}.json"])
                assert members[f"{key}.txt"].decode() == said["caption"]
                ids.append(said["id"])
                vectors.append(np.load(io.BytesIO(members[f"{key}.image_embedding.npy"])))
        return ids, np.array(vectors)
    for number in range(len(list((out / "metadata").iterdir()))):
        ids += pq.read_table(out / "metadata" / f"metadata_{number}.parquet").column("id").to_pylist()
        path = out / "image_embedding" / f"image_embedding_{number}.{form}"
        if form == "npy":
            vectors.append(np.load(path))
        else:  # as faiss's index_write.cpp has it: after the head, the lengths of what follows
            content = path.read_bytes()
            assert content[:4] == b"IxSQ"
            size, rows = struct.unpack_from("<iq", content, 4)
            assert struct.unpack("<Q", content[73:81]) == (2 * size * rows,)
            vectors.append(np.frombuffer(content[81:], "<f2").reshape(rows, size))
    return ids, np.concatenate(vectors)


@pytest.mark.parametrize("form", ["parquet", "npy", "webdataset", "faiss", "hf"])
def test_other_forms_hold_the_same_rows_to_the_last_bit(place: Path, tmp_path: Path, form: str) -> None:
    given: dict[str, Any] = {"where": "id < 150", "rows_per_part": 60}
    with clipql.connect(place) as db:
        told = export_parts(db, "laion", tmp_path / "out", **given, form=form)
        rows = db.sql("SELECT id, image_embedding FROM laion WHERE id < 150 ORDER BY id").arrow()
        (tmp_path / "again").mkdir()
        manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
        (tmp_path / "again" / "manifest.json").write_text(json.dumps({**manifest, "parts": []}))
        export_parts(db, "laion", tmp_path / "again", **given, form=form)
        with pytest.raises(clipql.ClipqlError, match="holds an export of other rows"):
            export_parts(db, "laion", tmp_path / "out", **given)
    assert files(tmp_path / "out") == files(tmp_path / "again")
    assert (told.parts, told.written) == (3, 3)
    ids, vectors = shards(tmp_path / "out", form)
    by_id = dict(zip(ids, vectors, strict=True))
    assert vectors.dtype == np.float16
    assert len(by_id) == rows.num_rows
    for id, vector in zip(rows.column(0).to_pylist(), rows.column(1).to_pylist(), strict=True):
        assert np.array_equal(by_id[id], np.array(vector, np.float16))
    listed = {name: f["sha256"] for part in manifest["parts"] for name, f in part["files"].items()}
    assert listed == {
        n: hashlib.sha256(c).hexdigest() for n, c in files(tmp_path / "out").items() if n != "manifest.json"
    }


def test_a_flat_index_of_float32_is_one_that_faiss_writes(place: Path, tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).standard_normal((5, 3)).astype(np.float32)
    with clipql.connect(place) as db:
        db.sql("CREATE TABLE IF NOT EXISTS f (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        db.sql("INSERT INTO f VALUES " + ", ".join(f"({i}, {v.tolist()})" for i, v in enumerate(vectors)))
        export_parts(db, "f", tmp_path / "out", form="faiss")
        with pytest.raises(clipql.ClipqlError, match="there are laion, parquet, npy, webdataset, faiss, hf, lance"):
            export_parts(db, "f", tmp_path / "out", form="csv")
    head = b"IxFI" + struct.pack("<iqqqBiQ", 3, 5, 1 << 20, 1 << 20, 1, 0, 15)
    assert (tmp_path / "out" / "v" / "v_0.faiss").read_bytes() == head + vectors.tobytes()


def test_the_command_writes_parts(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--db", str(place), "export", "--as", "laion", "--where", "id < 0", str(tmp_path / "out")]
    assert main(asked) == 0
    assert capsys.readouterr().out.startswith("0 rows are in ")
    assert np.load(tmp_path / "out" / "img_emb" / "img_emb_0.npy").shape == (0, 512)
    assert pq.read_table(tmp_path / "out" / "metadata" / "metadata_0.parquet").num_rows == 0
