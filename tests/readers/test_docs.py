"""The examples of docs/readers.md run; a stand-in takes torch's place."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from parts import make_part
from writing import ROOT

BLOCKS = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "docs" / "readers.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
)
TORCH = "import numpy\ntensor = numpy.array\n"
DATA = """
class IterableDataset: ...
def get_worker_info(): return None
class DataLoader:
    def __init__(self, dataset, batch_size, num_workers): self.dataset = dataset
    def __iter__(self): return iter(self.dataset)
"""


def test_the_examples_run_from_top_to_bottom(tmp_path: Path) -> None:
    make_part(tmp_path / "laion400m", rows=50)
    (tmp_path / "torch" / "utils" / "data").mkdir(parents=True)
    for name, text in (("", TORCH), ("utils", ""), ("utils/data", DATA)):
        (tmp_path / "torch" / name / "__init__.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    said = []
    for block in BLOCKS:
        command = [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == "[(50,)]\n"
    assert 0 < int(said[1]) <= 50
