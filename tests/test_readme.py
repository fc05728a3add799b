"""The README's tour, run from top to bottom in one folder, as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run(language: str, text: str, folder: Path) -> str:
    """What a block of the README prints; it must succeed."""
    command = {
        "sh": ["bash", "-euo", "pipefail", "-c", text],
        "sql": [sys.executable, "-m", "clipql", "sql", text],
        "python": [sys.executable, "-c", text],
    }[language]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    folder = tmp_path_factory.mktemp("tour")
    return [(text, run(language, text, folder)) for language, text in BLOCKS]


def output_of(outputs: list[tuple[str, str]], beginning: str) -> list[str]:
    [found] = [output for text, output in outputs if text.startswith(beginning)]
    return found.splitlines()


def test_ingest_says_what_it_took_in(outputs: list[tuple[str, str]]) -> None:
    assert output_of(outputs, "clipql ingest")[0].startswith("6,000 rows in 2 parts")


def test_a_search_gives_as_many_rows_as_it_was_asked_for(outputs: list[tuple[str, str]]) -> None:
    rows = [line.split("\t") for line in output_of(outputs, "SELECT url, caption, similarity")]
    assert [len(row) for row in rows] == [3] * 5


def test_explain_names_the_exact_scan(outputs: list[tuple[str, str]]) -> None:
    lines = output_of(outputs, "EXPLAIN")
    assert lines[0] == "Top-k search (k = 5)"
    assert any("exact scan on all cores" in line for line in lines)


def test_distances_are_aggregated(outputs: list[tuple[str, str]]) -> None:
    rows = [line.split("\t") for line in output_of(outputs, "SELECT NSFW, count()")]
    assert [row[0] for row in rows] == ["NSFW", "UNLIKELY", "UNSURE"]
    assert sum(int(row[1]) for row in rows) == 6_000


def test_python_prints_rows_and_a_frame(outputs: list[tuple[str, str]]) -> None:
    lines = output_of(outputs, "import numpy")
    assert [line.startswith("https://") for line in lines[:11]] == [True] * 10 + [False]
    assert lines[10].split() == ["caption", "distance"]


def test_the_shell_takes_vectors_from_files_and_sql_from_a_pipe(outputs: list[tuple[str, str]]) -> None:
    text = "\n".join(output_of(outputs, "python -c"))
    assert '"count()": 6000' in text.replace('"6000"', "6000")
    assert "UNLIKELY\t" in text


def test_an_index_answers_too(outputs: list[tuple[str, str]]) -> None:
    rows = [line.split("\t") for line in output_of(outputs, "ALTER TABLE")]
    assert [len(row) for row in rows] == [2] * 5


def test_words_find_emoji(outputs: list[tuple[str, str]]) -> None:
    lines = output_of(outputs, "clipql model list")
    found = [line.split("\t") for line in lines[-4:]]
    assert any("2,543 rows" in line for line in lines)
    assert all("cat" in row[0] for row in found[:3])
    assert found[3][0].startswith("smiling cat with heart-eyes")


def test_every_file_that_the_readme_names_is_there() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_target_that_the_readme_names_can_be_made() -> None:
    named = set(re.findall(r"^    make (\w+)|`make (\w+)`", README, re.MULTILINE))
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {a or b for a, b in named} == {"demo", "test", "bench"}
    assert {a or b for a, b in named} <= targets
