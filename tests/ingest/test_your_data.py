"""The commands of docs/your-data.md, run as they stand there."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from clipql.cli.entry import main

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "your-data.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]
ROWS = 12


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    folder = tmp_path_factory.mktemp("data")
    vectors = np.random.default_rng(0).standard_normal((ROWS, 4)).astype(np.float32)
    captions = [f"row {i}" for i in range(ROWS)]
    rows = pa.table({"caption": captions, "vector": list(vectors)})
    pq.write_table(rows, folder / "photos.parquet")
    ids = pa.array(range(ROWS - 1, -1, -1), pa.uint64())
    pq.write_table(pa.table({"id": ids, "emb": list(vectors)}), folder / "siglip.parquet")
    for name, some in (("some", slice(0, 4)), ("more", slice(2, 7))):
        pq.write_table(pa.table({"id": ids[some], "emb": list(vectors[some])}), folder / f"{name}.parquet")
    pq.write_table(pa.table({"image_emb": list(vectors), "text_emb": list(-vectors)}), folder / "two.parquet")
    pa.csv.write_csv(rows.drop_columns("vector"), folder / "rows.csv")
    np.save(folder / "vectors.npy", vectors)
    lines = [{"caption": "a", "vector": [1, 0.5]}, {"caption": "b", "vector": None}, {"caption": "c", "vector": [0, 2]}]
    (folder / "some_bad.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("CLIPQL_DB", raising=False)
        for command in COMMANDS:
            name, *arguments = shlex.split(command)
            assert name == "clipql"
            found[command] = _printed(arguments)
    return found


def _printed(arguments: list[str]) -> tuple[str, str]:

    out, err = io.StringIO(), io.StringIO()
    binary = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True)
    with contextlib.redirect_stdout(binary), contextlib.redirect_stderr(err):
        assert main(arguments) == 0, err.getvalue()
    out.write(binary.buffer.getvalue().decode())  # type: ignore[attr-defined]
    return out.getvalue(), err.getvalue()


def test_each_command_of_the_page_succeeds(outputs: dict[str, tuple[str, str]]) -> None:
    assert len(outputs) == len(COMMANDS) >= 5


def test_the_first_search_finds_the_row_itself_first(outputs: dict[str, tuple[str, str]]) -> None:
    [found] = [out for command, (out, _) in outputs.items() if "ORDER BY" in command]
    assert found.splitlines()[0] == "row 7"
    assert len(found.splitlines()) == 5


def test_rows_that_got_no_vector_are_counted(outputs: dict[str, tuple[str, str]]) -> None:
    added = [out.splitlines()[-1] for command, (out, _) in outputs.items() if "--add-column dino" in command]
    assert [line.partition(" ")[2] for line in added] == [
        "of photos got 4 vectors; 8 of 12 rows have no vector",
        "of photos got 5 vectors; 5 of 12 rows have no vector",
    ]
    assert [out for command, (out, _) in outputs.items() if "empty(dino)" in command] == ["5\n"]


def test_the_report_says_what_was_taken_and_adds_up(outputs: dict[str, tuple[str, str]]) -> None:
    [(out, err)] = [both for command, both in outputs.items() if "--skip-bad-rows" in command]
    lines = out.splitlines()
    assert lines[0].startswith("2 rows in 1 file, ")
    assert lines[1] == "3 rows there: 2 taken in, 1 left out, 0 in files skipped"
    assert "left out: some_bad.jsonl: row 1 has no vector (NULL) in vector" in err.splitlines()
