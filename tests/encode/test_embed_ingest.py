"""Parts of `clipql embed` in a table: found by meaning, remembered by model, and without what has no vectors."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from embedding import Colours, make_tar, part_rows, picture

import clipql
from clipql.cli import entry as cli
from clipql.cli.commands.embed import EmbedDisplay
from clipql.encode import clip
from clipql.encode.embed import EmbedProgress, embed_captions, embed_pictures
from clipql.errors import IngestError, UnknownTable
from clipql.ingest.embedding import embed_into

OPENAI = "openai/clip-vit-base-patch32"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three colours with captions, and two broken pictures."""
    made = tmp_path / "pictures"
    made.mkdir()
    for name, colour in Colours.NAMES.items():
        (made / f"{name}.png").write_bytes(picture(colour))
        (made / f"{name}.txt").write_text(f"all {name}")
    (made / "broken.png").write_bytes(b"broken")
    (made / "zero.png").write_bytes(b"")
    return made


def models(db: clipql.Database) -> dict[str, str | None]:
    (table,) = db.registry.catalog.tables
    return {c.name: c.model for c in table.columns}


@pytest.mark.parametrize("distance", ["cosineDistance", "L2Distance"])
def test_a_phrase_finds_its_picture_and_what_has_no_vector_is_never_found(
    db: clipql.Database, folder: Path, tmp_path: Path, distance: str
) -> None:
    embed_pictures(folder, tmp_path / "out", encoder=Colours(), part_rows=2)
    assert len(part_rows(tmp_path / "out")) == 2
    report = db.ingest(tmp_path / "out")
    assert (report.rows, report.rows_left_out, report.parts_taken) == (3, 2, 2)
    for column in ("image_embedding", "text_embedding"):
        order = f"ORDER BY {distance}({column}, {{q:Array(Float32)}}) LIMIT 10"
        rows = db.sql(f"SELECT caption, width, error FROM laion {order}", q=Colours().encode_texts(["green"])[0]).rows
        assert rows[0] == ("all green", 6, "")
        assert sorted(rows) == [("all blue", 6, ""), ("all green", 6, ""), ("all red", 6, "")]
    assert db.sql("SELECT id FROM laion ORDER BY _row").rows == [(0,), (1,), (2,)]
    again = db.ingest(tmp_path / "out")
    assert (again.rows, again.parts_skipped) == (0, 2)


def test_vectors_and_rows_stay_together_where_rows_are_left_out(db: clipql.Database, tmp_path: Path) -> None:
    members = {f"{i:04}.png": picture((i % 256, i // 256, 9)) if i % 7 else b"bad" for i in range(2000)}
    tar = make_tar(tmp_path / "t.tar", members)
    embed_pictures(tar, tmp_path / "out", encoder=Colours())
    assert db.ingest(tmp_path / "out").rows == 2000 - 286
    good = {name: data for name, data in members.items() if data != b"bad"}
    rows = db.sql("SELECT image_path, image_embedding FROM laion ORDER BY _row").rows
    assert [path.rpartition("#")[2] for path, _ in rows] == list(good)
    expected = Colours().encode_pictures(list(good.values())).vectors.astype(np.float16)
    assert np.array_equal(np.array([v for _, v in rows], np.float16), expected)


def test_a_part_without_a_single_vector_adds_no_rows(db: clipql.Database, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"bad")
    (tmp_path / "c.png").write_bytes(picture((1, 2, 3)))
    embed_pictures([tmp_path / f"{n}.png" for n in "abc"], tmp_path / "out", encoder=Colours(), part_rows=1)
    report = db.ingest(tmp_path / "out")
    assert (report.rows, report.rows_left_out) == (1, 2)
    assert db.sql("SELECT image_path, length(image_embedding) FROM laion").rows == [(str(tmp_path / "c.png"), 8)]


def test_parts_with_gaps_cannot_be_linked_and_whole_ones_can(db: clipql.Database, folder: Path, tmp_path: Path) -> None:
    embed_pictures(folder, tmp_path / "out", encoder=Colours())
    with pytest.raises(IngestError, match=r"has 2 rows without vectors.*without --link"):
        db.ingest(tmp_path / "out", link=True)
    embed_pictures(sorted(folder.glob("[rg]*.png")), tmp_path / "whole", encoder=Colours())
    assert db.ingest(tmp_path / "whole", link=True).rows == 2


# the model


def test_a_table_learns_the_model_from_its_parts(db: clipql.Database, folder: Path, tmp_path: Path) -> None:
    embed_pictures(folder, tmp_path / "out", encoder=Colours(OPENAI))
    assert pq.read_schema(tmp_path / "out/metadata/metadata_0.parquet").metadata[b"clipql.model"] == OPENAI.encode()
    assert json.loads((tmp_path / "out" / "model.json").read_text()) == {"model": OPENAI, "dimension": 8}
    db.ingest(tmp_path / "out", model="ViT-B/32")  # another name of the same
    assert models(db) == {"image_embedding": OPENAI, "text_embedding": OPENAI}


def test_a_model_in_the_folder_counts_where_the_parquet_file_has_lost_it(
    db: clipql.Database, folder: Path, tmp_path: Path
) -> None:
    embed_captions(folder / "red.txt", tmp_path / "out", encoder=Colours(OPENAI))
    path = tmp_path / "out" / "metadata" / "metadata_0.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata(), path)
    db.ingest(path)
    assert models(db) == {"text_embedding": OPENAI}


@pytest.mark.parametrize("content", ["{cut", '{"model": 3}'])
def test_a_model_file_that_names_no_model_is_an_error(
    db: clipql.Database, folder: Path, tmp_path: Path, content: str
) -> None:
    embed_captions(folder / "red.txt", tmp_path / "out", encoder=Colours())
    path = tmp_path / "out" / "metadata" / "metadata_0.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata(), path)
    (tmp_path / "out" / "model.json").write_text(content)
    with pytest.raises(IngestError, match=r"model\.json"):
        db.ingest(tmp_path / "out")


def test_a_model_that_contradicts_the_parts_is_an_error_that_names_both(
    db: clipql.Database, folder: Path, tmp_path: Path
) -> None:
    embed_pictures(folder, tmp_path / "out", encoder=Colours("model/one"))
    with pytest.raises(IngestError, match="says that model/one made its vectors, and --model says model/two"):
        db.ingest(tmp_path / "out", model="model/two")
    assert db.registry.catalog.tables == ()


def test_parts_of_another_model_do_not_go_into_a_table(db: clipql.Database, folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        embed_pictures(folder, tmp_path / name, encoder=Colours(f"model/{name}"))
    shutil.copytree(tmp_path / "two", tmp_path / "plain")
    (tmp_path / "plain" / "model.json").unlink()
    path = tmp_path / "plain" / "metadata" / "metadata_0.parquet"
    kept: Any = {b"clipql.failed": b"2"}
    pq.write_table(pq.read_table(path).replace_schema_metadata(kept), path)
    with pytest.raises(IngestError, match=r"two/metadata.* by model/two, those of .*one/metadata.* by model/one"):
        db.ingest([tmp_path / "one", tmp_path / "two"])
    db.ingest(tmp_path / "one")
    both = "by model/two, those of column image_embedding of default.laion by model/one"
    with pytest.raises(IngestError, match=both):
        db.ingest(tmp_path / "two")
    with pytest.raises(IngestError, match=both):
        db.ingest(tmp_path / "plain", model="model/two")
    assert db.sql("SELECT count() FROM laion").rows == [(3,)]


# the command


def test_the_command_embeds_and_ingest_takes_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Any, ...]] = []

    def opened(model: str | None = None, *, threads: int | None = None, device: str = "cpu") -> Colours:
        asked.append((model, threads))
        return Colours()

    monkeypatch.setattr(clip, "open_encoder", opened)
    out, db = str(tmp_path / "out"), str(tmp_path / "test.db")
    embed = ["embed", "images", str(folder), out, "--model", "colours", "--part-rows", "4", "--threads", "1"]
    assert cli.main(embed) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("5 images in 2 parts, 2 errors, 3 embedded, ")
    assert shown.out.endswith("images/s), by test/colours\n")
    assert shown.err.splitlines() == [
        "part 0: 4 rows",
        "part 1: 1 row",
        f"clipql: {folder / 'broken.png'}: not a picture: 6 bytes",
        f"clipql: {folder / 'zero.png'}: not a picture: 0 bytes",
    ]
    assert cli.main(embed) == 0
    assert "5 images in 2 parts, 5 of them there already, 2 errors, 3 embedded, 0.0 s" in capsys.readouterr().out
    assert cli.main(["--db", db, "ingest", out]) == 0
    told = capsys.readouterr().out
    assert "2 rows have an error in place of vectors and were left out" in told
    assert told.endswith("5 rows there: 3 taken in, 2 left out, 0 in parts skipped\n")
    assert cli.main(["--db", db, "ingest", out]) == 0
    assert capsys.readouterr().out.endswith("5 rows there: 0 taken in, 1 left out, 4 in parts skipped\n")
    captions = ["embed", "captions", str(folder), str(tmp_path / "captions"), "--batch", "2"]
    assert cli.main(captions) == 0
    assert capsys.readouterr().out.startswith("3 captions in 1 part, ")
    assert asked == [("colours", 1), ("colours", 1), (None, None)]
    assert cli.main([*embed, "--caption-column", "x"]) == 1
    assert "begun with caption column None, and this run has x" in capsys.readouterr().err


def test_a_terminal_sees_a_line_with_speed_and_the_time_left_which_is_gone_at_the_end() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    with EmbedDisplay(screen, "image") as display:
        display.update(EmbedProgress(100, 50, 350, 3, seconds=10.0, part=0))
        assert "150 of 350 images  3 errors  10 images/s  20 s left" in screen.getvalue()
        assert "43%" in screen.getvalue()
        display.update(EmbedProgress(100, 0, None, 0, seconds=50.0, part=0))
        assert screen.getvalue().endswith("100 images  2.0 images/s")
    assert screen.getvalue().endswith("\r\x1b[K")


class Cut(Exception):
    """Ctrl-C, so to say."""


class CutOff(Colours):
    """Keeps what it encodes, and is cut off by so manieth call."""

    def __init__(self, call: int = 99) -> None:
        super().__init__()
        self.given: list[str] = []
        self.left = call

    def encode_texts(self, texts: Any) -> Any:
        self.left -= 1
        if not self.left:
            raise Cut
        self.given += texts
        return super().encode_texts(texts)


def test_the_captions_of_a_table_fill_a_column_for_rows_without_a_vector_and_a_run_goes_on(
    db: clipql.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.sql("CREATE TABLE t (id UInt8, caption Nullable(String), v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    words = ["red", "green", "blue", "", "red", "green"]
    values = ", ".join(f"({i}, '{word}', [1])" for i, word in enumerate(words))
    db.sql(f"INSERT INTO t VALUES {values}, (6, NULL, [1]), (7, 'blue', [1])")
    db.sql("DELETE FROM t WHERE id = 4")
    monkeypatch.setattr("clipql.ingest.embedding.PIECE", 3)
    with pytest.raises(Cut):
        embed_into(db, "t.meaning", encoder=CutOff(1), batch=2)
    assert db.sql("SELECT id FROM t WHERE notEmpty(meaning) ORDER BY id").rows == []
    first, rest = CutOff(2), CutOff()
    with pytest.raises(Cut):
        embed_into(db, "t.meaning", encoder=first, batch=3)
    assert first.given == ["red", "green", "blue"]
    report = embed_into(db, "default.t.meaning", encoder=rest, batch=3)
    assert rest.given == ["green", "blue"]
    assert (report.rows, report.there, report.empty, report.errors) == (2, 3, 2, 0)
    db.encoders.use(Colours())
    found = [i for (i,) in db.sql(
        "SELECT id FROM t ORDER BY cosineDistance(meaning, encode_text('blue')), id LIMIT 99"
    ).rows]  # fmt: skip
    assert (found[:2], sorted(found)) == ([2, 7], [0, 1, 2, 5, 7])
    assert models(db)["meaning"] == Colours().model
    assert embed_into(db, "t.meaning", encoder=CutOff(1)).rows == 0
    with pytest.raises(IngestError, match=r"meaning of default\.t was filled by the model test/colours, and o/o is to"):
        embed_into(db, "t.meaning", encoder=Colours("o/o"))
    for wrong, message in (("t", "expected TABLE.COLUMN"), ("t.new", "has no column nothing: say which one")):
        with pytest.raises(IngestError, match=message):
            embed_into(db, wrong, encoder=Colours(), column="nothing")
    with pytest.raises(UnknownTable, match="there is no table u to fill"):
        embed_into(db, "u.v", encoder=Colours())
    assert [c.name for c in db.registry.catalog.tables[0].columns] == ["v", "meaning"]


def test_the_pictures_of_a_table_fill_a_column_by_their_bytes_or_their_paths(
    db: clipql.Database, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    db.sql("CREATE TABLE t (id UInt8, image String, path String, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    for i, name in enumerate(["red", "green", "blue", "broken", "zero"]):
        file = folder / f"{name}.png"
        if name == "broken":
            file.write_bytes(b"\x89PNG, it says")
        content = file.read_bytes().hex()
        db.sql(f"INSERT INTO t SELECT {i}, unhex('{content}'), '{file}', [1]")
    (folder / "zero.png").write_bytes(b"none")
    report = embed_into(db, "t.by_bytes", encoder=Colours(), pictures=True)
    assert (report.rows, report.empty, report.errors) == (3, 1, 1)
    monkeypatch.setattr(clip, "open_encoder", lambda *a, **k: Colours())
    path = str(db.path)
    db.close()
    assert cli.main(["--db", path, "embed", "--into", "t.by_path", "--column", "path", "--pictures"]) == 0
    assert "3 images embedded into t.by_path, 2 errors" in capsys.readouterr().out
    with clipql.connect(path) as again:
        assert again.sql("SELECT id FROM t WHERE by_bytes = by_path AND notEmpty(by_path) ORDER BY id").rows == [
            (0,), (1,), (2,),
        ]  # fmt: skip
