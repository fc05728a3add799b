"""What is installed: one version, the command, the bundled data, and nothing loaded before it is needed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import entry_points, version
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import clipql

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted(ROOT.glob("requirements*.lock"))


def test_the_installed_version_is_the_one_in_the_code() -> None:
    assert version("clipql") == clipql.__version__


def test_the_command_is_installed() -> None:
    [command] = [e for e in entry_points(group="console_scripts") if e.name == "clipql"]
    assert command.value == "clipql.cli.entry:main"
    assert callable(command.load())


def test_the_public_names_are_these() -> None:
    assert dir(clipql) == [
        "ClipqlError", "Database", "Result", "Stats", "__version__", "check", "connect", "download", "errors",
        "restore",
    ]  # fmt: skip
    assert [name for name in dir(clipql) if getattr(clipql, name, None) is None] == []


def test_importing_clipql_loads_none_of_the_heavy_libraries() -> None:
    heavy = "{'chdb', 'numba', 'numpy', 'pandas', 'prompt_toolkit', 'pyarrow'}"
    code = f"import sys, clipql; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_bundled_part_is_the_real_one() -> None:
    part = Path(str(files("clipql.data") / "fashion9"))
    image = np.load(part / "img_emb" / "img_emb_0.npy").astype(np.float32)
    text = np.load(part / "text_emb" / "text_emb_0.npy").astype(np.float32)
    cosine = image @ text.T
    own = np.diag(cosine)
    assert image.shape == text.shape == (9, 512)
    assert [round(float(x), 3) for x in (own.min(), own.max(), own.mean())] == [0.289, 0.35, 0.318]
    assert int((cosine.argmax(axis=1) == np.arange(9)).sum()) == 9
    assert int((cosine.argmax(axis=0) == np.arange(9)).sum()) == 8
    assert pq.read_schema(part / "metadata" / "metadata_0.parquet").names == ["image_path", "caption"]
    assert "Apache License" in (part / "LICENSE").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The names in a wheel built from the sources, offline."""
    tree = tmp_path_factory.mktemp("tree")
    shutil.copytree(ROOT / "clipql", tree / "clipql", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    code = "from setuptools.build_meta import build_wheel; build_wheel('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True)
    [path] = (tree / "dist").glob("*.whl")
    assert path.name == f"clipql-{clipql.__version__}-py3-none-any.whl"
    return zipfile.ZipFile(path).namelist()


def test_a_wheel_has_every_module_and_the_data_with_its_licence(wheel: list[str]) -> None:
    sources = [str(p.relative_to(ROOT)) for p in (ROOT / "clipql").rglob("*") if p.is_file() and p.suffix != ".pyc"]
    expected = [name for name in sources if "__pycache__" not in name]
    assert [name for name in expected if name not in wheel] == []
    assert "clipql/data/fashion9/LICENSE" in wheel
    assert "clipql/py.typed" in wheel


def test_a_wheel_has_nothing_but_the_package(wheel: list[str]) -> None:
    assert {name.split("/")[0] for name in wheel} == {"clipql", f"clipql-{clipql.__version__}.dist-info"}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_a_lock_pins_everything_by_hash_and_names_no_host(lock: Path) -> None:
    text = lock.read_text(encoding="utf-8")
    pins = re.findall(
        r"^([a-z0-9-]+)==([^ ]+).*?\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE
    )
    requirements = [line for line in text.splitlines() if re.match(r"[a-z0-9]", line)]
    assert len(pins) == len(requirements) > 20
    assert "://" not in text
    assert "--index" not in text
    assert "torch" not in {name for name, _, _ in pins}


def test_the_lock_has_every_requirement_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=\[]", w)[0].lower().replace("_", "-") for w in wanted} - {"clipql"}
    locked = set(re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE))
    assert names <= locked
