"""The notebook of docs/examples runs from top to bottom, on fewer rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest


def test_the_notebook_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    text = (Path(__file__).parents[2] / "docs" / "examples" / "datacomp_small.ipynb").read_text("utf-8")
    cells = ["".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    assert "ROWS = 20_000" in cells[0]
    names: dict[str, Any] = {}
    try:
        for cell in cells:
            exec(compile(cell.replace("ROWS = 20_000", "ROWS = 400"), "notebook", "exec"), names)
        counts = names["counts"]
        assert counts[0] == 420
        assert counts[1] == counts[0] - names["told"].duplicates
        assert sorted(counts, reverse=True) == counts
        assert 0 < counts[-1] < counts[0] // 2
        assert names["exported"].rows == counts[-1]
        assert list((tmp_path / "kept").glob("*.tar"))
    finally:
        if "db" in names:
            names["db"].close()
            names["plt"].close("all")
