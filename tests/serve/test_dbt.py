"""dbt, unchanged and in an environment of its own, against the server: the project in `tests/serve/dbt`."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.serve.conftest import Running

PROJECT = Path(__file__).parent / "dbt"
PYTHON = Path(__file__).parents[2] / ".venv-dbt/bin/python"


@pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-dbt, which `make test` sets up")
def test_dbt_builds_a_project_with_vectors_tests_it_and_builds_it_on(server: Running, tmp_path: Path) -> None:
    commands = [["debug"], ["build", "--vars", "last: 2"], ["build", "--vars", "last: 4"]]
    told = tmp_path / "told.json"
    environment = {
        **os.environ, "CLIPQL_PORT": str(server.port),
        "DBT_PROJECT_DIR": str(PROJECT), "DBT_PROFILES_DIR": str(PROJECT),
        "DBT_TARGET_PATH": str(tmp_path / "target"), "DBT_LOG_PATH": str(tmp_path / "logs"),
        "DBT_SEND_ANONYMOUS_USAGE_STATS": "0",
    }  # fmt: skip
    done = subprocess.run(
        [PYTHON, PROJECT / "commands.py", json.dumps(commands), told],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    debug, first, second = json.loads(told.read_text(encoding="utf-8"))
    assert debug[0], done.stdout
    built = dict.fromkeys(("said", "pictures", "nearest", "collected"), "success")
    tested = dict.fromkeys(
        ("unique_pictures_id", "not_null_pictures_id", "unique_collected_id", "a_vector_has_two_numbers",
         "relationships_collected_id__id__ref_pictures_"), "pass",
    )  # fmt: skip
    assert first == second == [True, "", {**built, **tested}], done.stdout
    assert server.sql("SELECT caption FROM captions.nearest FORMAT TSV").text.split("\n") == ["a cat", "a tiger", ""]
    rows = server.sql("SELECT id, v, came FROM captions.collected ORDER BY id FORMAT TSV").text
    assert rows == "1\t[1,0]\t2\n2\t[0,1]\t2\n3\t[0.75,0.25]\t4\n4\t[0.875,0]\t4\n"
    assert server.sql("DROP DATABASE captions").status == 200
