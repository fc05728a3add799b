"""`clipql --read-only` and $CLIPQL_READ_ONLY, beside a writer."""

from __future__ import annotations

from pathlib import Path

import pytest
from writing import Writer

import clipql
from clipql.cli.entry import main
from clipql.errors import QueryError


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


def test_commands_that_read_work_beside_a_writer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "t.db"
    reads = ("--read-only", "--db", str(folder))
    with Writer(folder) as writer:
        writer.run("CREATE TABLE t (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        writer.run("INSERT INTO t VALUES (1, [1, 2]), (2, [3, 4])")
        assert run(capsys, *reads, "sql", "SELECT count() FROM t") == (0, "2\n", "")
        assert run(capsys, "sql", "SELECT max(id) FROM t", *reads) == (0, "2\n", "")
        status, out, _ = run(capsys, *reads, "check")
        assert status == 0
        assert "nothing is damaged" in out
        assert run(capsys, *reads, "backup", str(tmp_path / "backup"))[0] == 0
        status, _, err = run(capsys, "--db", str(folder), "sql", "SELECT 1")
        assert status == 1
        assert "read beside it with read_only=True (`clipql --read-only`)" in err
        status, _, err = run(capsys, *reads, "sql", "INSERT INTO t VALUES (3, [5, 6])")
        assert status == 1
        assert "INSERT writes, and" in err
        status, _, err = run(capsys, *reads, "ingest", str(tmp_path))
        assert status == 1
        assert "ingest writes, and" in err


def test_the_environment_says_so_for_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "t.db"
    with Writer(folder) as writer:
        writer.run("CREATE TABLE t (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        monkeypatch.setenv("CLIPQL_READ_ONLY", "1")
        assert run(capsys, "--db", str(folder), "sql", "SELECT count() FROM t") == (0, "0\n", "")
        with clipql.connect(folder) as db:
            assert db.sql("SELECT count() FROM t").rows == [(0,)]
    with clipql.connect(folder, read_only=False) as db:
        db.sql("INSERT INTO t VALUES (1, [1, 2])")


def test_read_only_and_follow_are_for_folders_that_are_read(tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="for a database folder, and http://host is none"):
        clipql.connect("http://host", read_only=True)
    with pytest.raises(QueryError, match="follow is for a database that is opened with read_only=True"):
        clipql.connect(tmp_path, follow=True)
