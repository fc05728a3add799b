"""The demo: it runs from the bundled data alone, finds what it should, and leaves nothing behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from clipql import connect
from clipql.cli import demo
from clipql.errors import StorageError


@pytest.fixture(scope="module")
def lines() -> list[str]:
    found: list[str] = []
    demo.run(found.append, rows=3_000, emoji=400)
    return found


def table_after(lines: list[str], title: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    below = lines[lines.index(title) :]
    rows: list[list[str]] = []
    for line in below:
        if "│" in line:
            rows.append([cell.strip() for cell in line.split("│")[1:-1]])
        elif rows:
            break
    return rows


def test_a_caption_finds_its_picture_first(lines: list[str]) -> None:
    rows = table_after(lines, "Which pictures look like these words? The caption's vector comes from a subquery")
    assert rows[0][:2] == ["img8.jpg", "a red and black plaid coat with a belt"]
    assert len(rows) == 4


def test_where_keeps_out_what_does_not_match(lines: list[str]) -> None:
    rows = table_after(lines, "The same with WHERE: only black ones, no PNG files")
    assert [row[0] for row in rows] == ["img9.jpg", "img8.jpg"]
    rows = table_after(lines, "Which captions fit img5.jpg, if no shirt may be in them?")
    assert rows[0][0] == "the north face men's flee pants"


def test_a_picture_finds_itself_and_then_the_other_plaid_one(lines: list[str]) -> None:
    rows = table_after(lines, "Which pictures look like img5.jpg? Its vector is the parameter `picture`")
    assert [row[0] for row in rows[:2]] == ["img5.jpg", "img8.jpg"]
    assert float(rows[0][2]) == 0


def test_the_large_part_is_scanned_exactly_with_and_without_where(lines: list[str]) -> None:
    assert "exact: 3,000 vectors compared" in lines
    [filtered] = [line for line in lines if line.startswith("exact, with WHERE: ")]
    assert 0 < int(filtered.split()[3].replace(",", "")) < 3_000
    assert any(line.startswith("taken in, synced to disk: ") and line.endswith(" rows/s") for line in lines)
    assert any(line.startswith("first query: ") and "warm: " in line for line in lines)


def test_words_a_picture_and_sums_find_emoji(lines: list[str]) -> None:
    for title, first in (
        ("A word finds pictures", "cat"),
        ("A picture finds others: the parameter `picture` is the path of 00144.png", "red heart"),
        ("'cat' plus 'heart'", "smiling cat with heart-eyes"),
    ):
        assert first in table_after(lines, title)[0][1]
    assert len(table_after(lines, "'face' minus 'smile'")) == 5
    assert "This model was trained on these emoji and knows nothing else. For photographs get CLIP's own:" in lines


def test_every_line_fits_a_wide_terminal(lines: list[str]) -> None:
    assert [line for line in lines if len(line) > 130 or "\n" in line] == []


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    demo.run(lambda line: None, rows=100, emoji=144)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_kept_and_can_be_opened(tmp_path: Path) -> None:
    demo.run(lambda line: None, tmp_path / "kept", rows=100, emoji=144)
    with connect(tmp_path / "kept" / "demo.db") as db:
        assert db.sql("SELECT count() FROM fashion").rows == [(9,)]
        assert db.sql("SELECT count() FROM laion").rows == [(100,)]


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"is not empty: name a new folder"):
        demo.run(lambda line: None, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
