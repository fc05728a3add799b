"""Run several commands of dbt in one process, as it takes seconds to start; what each node came to, as JSON.

Runs in the environment `.venv-dbt`. Its arguments: a list of commands, as JSON, and where to write.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from dbt.cli.main import dbtRunner

dbt, told = dbtRunner(), []
for command in json.loads(sys.argv[1]):
    done = dbt.invoke(command)
    nodes = {each.node.name: str(each.status) for each in getattr(done.result, "results", ())}
    told.append([done.success, str(done.exception or ""), nodes])
Path(sys.argv[2]).write_text(json.dumps(told), encoding="utf-8")
