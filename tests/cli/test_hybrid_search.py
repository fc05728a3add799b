"""`clipql search --hybrid`, with the model that ships with clipql."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import clipql
from clipql.cli.entry import main

EMOJI = Path(str(files("clipql.data"))) / "emoji" / "emoji.parquet"


def test_words_of_a_caption_are_found_whatever_its_vector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    rows = pq.read_table(EMOJI).slice(0, 200)
    vectors = np.random.default_rng(0).standard_normal((200, 128)).astype(np.float32)
    pq.write_table(rows.append_column("v", [list(vectors)]), tmp_path / "emoji.parquet")
    with clipql.connect(tmp_path / "db") as db:
        db.ingest(tmp_path / "emoji.parquet", table="emoji", vector_column="v", model="clipql/emoji")
    monkeypatch.setenv("CLIPQL_DB", str(tmp_path / "db"))
    asked = ["search", "tired face", "--table", "emoji", "--column", "v", "--columns", "name", "-k", "3"]
    for options in (["--hybrid"], ["--words", "name"]):
        assert main([*asked, *options]) == 0
        found = [line.split("\t")[0] for line in capfdbinary.readouterr().out.decode().splitlines()]
        assert len(found) == 3
        assert "tired face" in found
    assert main([*asked, "--words", "nothing"]) == 1
    assert "words = 'nothing': there is no such column; there are id, key" in capfdbinary.readouterr().err.decode()
