"""`clipql check` names what is damaged and what mends it, and what it names as mendable is mended so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import clipql
from clipql.cli.entry import main
from clipql.errors import DatabaseDamaged, DatabaseLocked, NotADatabase
from clipql.storage import catalog

MAKE = [
    "CREATE TABLE t (id UInt32, c String, v Array(Float32), INDEX near v TYPE ivf('L2Distance')) \
ENGINE = MergeTree ORDER BY id",
    "INSERT INTO t SELECT number, toString(number), [number % 7, number % 11, number % 13, 1] FROM numbers(1500)",
    "DELETE FROM t WHERE id % 100 = 3",
    "ALTER TABLE t MATERIALIZE INDEX near",
    "CREATE TABLE plain (id UInt32) ENGINE = MergeTree ORDER BY id",
    "INSERT INTO plain SELECT number FROM numbers(100)",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check") / "db"
    with clipql.connect(folder) as db:
        for statement in MAKE:
            db.sql(statement)
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "db", symlinks=True)
    return tmp_path / "db"


def flip(folder: Path, pattern: str, at: int = -5) -> Path:
    """Turn a bit in the one file that the pattern names."""
    (path,) = folder.glob(pattern)
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("deep", [False, True])
def test_a_whole_database_has_no_findings(copy: Path, deep: bool) -> None:
    report = clipql.check(copy, deep=deep)
    assert report.findings == ()
    assert (report.tables, report.rows, report.damaged) == (1, 1500, False)
    assert report.files > 20
    assert report.bytes > 40_000
    with clipql.connect(copy) as db:
        assert db.check(deep=deep).findings == ()


@pytest.mark.parametrize(
    ("pattern", "what", "statement"),
    [
        ("index/t-1/near-*/codes.npy", "index", "ALTER TABLE default.t MATERIALIZE INDEX near"),
        ("index/t-1/near-*/meta.json", "index", "ALTER TABLE default.t MATERIALIZE INDEX near"),
        ("rows/t-1-*/rows.bin", "row file", "OPTIMIZE TABLE default.t"),
        ("rows/t-1-*/columns-0.bin", "row file", "OPTIMIZE TABLE default.t"),
        ("rows/t-1-*/schema.arrow", "row file", "OPTIMIZE TABLE default.t"),
    ],
)
def test_what_can_be_rebuilt_is_named_with_the_statement_that_does_it(
    copy: Path, pattern: str, what: str, statement: str
) -> None:
    path = flip(copy, pattern)
    report = clipql.check(copy)
    assert {(f.what, f.table, f.statement) for f in report.findings} == {(what, "default.t", statement)}
    assert any(path.name in f.problem or path.parent.name in f.problem for f in report.findings)
    assert f"rebuild it: {statement}" in str(report)
    with clipql.connect(copy) as db:
        db.sql(statement)
        assert db.check().findings == ()
    assert clipql.check(copy, deep=True).findings == ()


@pytest.mark.parametrize(
    ("pattern", "at", "what"),
    [
        ("vectors/t-1/column-0/*.npy", -5, "segment"),
        ("vectors/t-1/column-0/*.npy", 70, "segment"),
        ("manifest.json", 200, "manifest"),
        ("engine/store/*/*/all_1_1_0_2/data.bin", 100, "MergeTree"),
    ],
)
def test_what_only_a_backup_brings_back_is_named_as_such(copy: Path, pattern: str, at: int, what: str) -> None:
    flip(copy, pattern, at)
    report = clipql.check(copy)
    assert what in {f.what for f in report.findings}
    assert all(f.statement is None for f in report.findings if f.what == what)
    assert "it cannot be rebuilt: restore it from a backup" in str(report)


def test_a_missing_segment_and_a_missing_half_are_reported(copy: Path) -> None:
    (segment,) = copy.glob("vectors/*/*/*.npy")
    segment.unlink()
    assert [f.what for f in clipql.check(copy).findings] == ["segment"]
    shutil.rmtree(copy / "engine")
    assert [f.what for f in clipql.check(copy).findings] == ["segment", "database"]


def test_a_damaged_segment_keeps_the_database_from_opening_with_wrong_vectors(copy: Path) -> None:
    path = flip(copy, "vectors/*/*/*.npy")
    with pytest.raises(DatabaseDamaged, match=f"segment {path} has hash .* it was altered"):
        clipql.connect(copy)


def test_a_part_that_clickhouse_puts_aside_keeps_the_database_from_opening(copy: Path) -> None:
    part = copy / "engine" / "data" / "default" / "plain" / "all_1_1_0" / "checksums.txt"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(DatabaseDamaged, match=r"put part broken-on-start_all_1_1_0 of default\.plain aside as broken"):
        clipql.connect(copy)
    (aside,) = copy.glob("engine/store/*/*/detached/broken*")
    assert any("broken-on-start" in f.problem for f in clipql.check(copy).findings)
    shutil.rmtree(aside)
    with clipql.connect(copy) as db:
        assert db.sql("SELECT count() FROM plain").rows == [(0,)]


def test_numbers_that_disagree_are_found_in_a_manifest_whose_hash_is_right(copy: Path) -> None:
    found = catalog.load(copy)
    (table,) = found.tables
    wrong = json.loads((copy / "manifest.json").read_text())
    body = (
        wrong["catalog"].replace('"name":"near"', '"name":"near"').replace('"rows":1500,"parts"', '"rows":1499,"parts"')
    )
    wrong |= {"catalog": body, "hash": catalog._hash(body)}
    (copy / "manifest.json").write_text(json.dumps(wrong))
    assert table.rows == 1500
    assert any("1,500 vectors for 1,499 rows" in f.problem for f in clipql.check(copy).findings)


def test_an_open_database_and_a_folder_of_something_else_are_refused(copy: Path, tmp_path: Path) -> None:
    with clipql.connect(copy), pytest.raises(DatabaseLocked, match="is open in process"):
        clipql.check(copy)
    with pytest.raises(NotADatabase, match="there is no database in"):
        clipql.check(tmp_path / "nothing")


def test_the_command_prints_the_findings_and_ends_with_1(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--db", str(copy)]) == 0
    assert capsys.readouterr().out.endswith("; nothing is damaged\n")
    flip(copy, "rows/*/rows.bin")
    assert main(["--db", str(copy), "check", "--deep"]) == 1
    out = capsys.readouterr().out
    assert "default.t, row file: " in out
    assert "; rebuild it: OPTIMIZE TABLE default.t\n" in out
    assert main(["check", "--url", "http://127.0.0.1:1"]) == 1
    assert "work on a folder, not on a server" in capsys.readouterr().err
