"""`clipql dedup` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

import clipql
from clipql.cli.entry import main


def test_the_command_groups_and_says_how_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "other")
    with clipql.connect(path) as made:
        made.sql("CREATE TABLE t (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        made.sql("INSERT INTO t VALUES (1, [0, 1]), (2, [0, 2]), (3, [1, 0])")
    asked = ["--db", path, "dedup", "--table", "t", "--column", "v", "--within", "0.01"]
    assert main([*asked, "--into", "dups"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 rows, 1 groups, 1 rows besides those kept\nall pairs were compared; ")
    statement = said.splitlines()[-1].removeprefix("to take them out: ")
    with clipql.connect(path) as made:
        made.sql(statement)
        assert made.sql("SELECT id FROM t ORDER BY id").rows == [(1,), (3,)]
    assert main([*asked, "--forecast", "--rows", "400000000"]) == 0
    assert capsys.readouterr().out.startswith("400,000,000 rows: about ")
    assert main(asked) == 1
    assert "--into" in capsys.readouterr().err
