"""Statements in a plain chDB database, in a process of its own: what ClickHouse itself makes of them."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

_CHILD = """
import json, sys
from chdb.session import Session
session = Session(sys.argv[1])
for statement in json.load(sys.stdin):
    try:
        text = str(session.query(statement, "JSONCompactEachRowWithNames"))
        rows = [json.loads(line) for line in text.splitlines()]
    except Exception as error:
        rows = str(error)
    print(json.dumps(rows), flush=True)
"""


def plain(statements: Sequence[str]) -> list[Any]:
    """For each statement the names of its columns and then its rows, or the text of its error."""
    with tempfile.TemporaryDirectory() as folder:
        found = subprocess.run(
            [sys.executable, "-c", _CHILD, folder],
            input=json.dumps(list(statements)), capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
    return [json.loads(line) for line in found.stdout.splitlines()]
