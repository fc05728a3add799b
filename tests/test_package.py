"""What is installed: one version, the command, the bundled data, and nothing loaded before it is needed;
and what may import what."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import entry_points, version
from importlib.resources import files
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import clipql

ROOT = Path(__file__).resolve().parent.parent
# from the bottom up, as ARCHITECTURE.md lists them: a file imports from its own room and from those below
ROOMS = (
    "errors", "version", "brief", "synthetic", "engine", "syntax", "storage", "index", "projection", "encode",
    "tables", "sql", "result", "ingest", "care", "database", "reader", "curate", "serve", "mcp", "cluster",
    "connection", "notebook",
    "__init__", "cli", "__main__",
)  # fmt: skip
# the same within sql/, whose own files are above all its rooms
ROOMS_OF_SQL = ("recognition", "search", "numbers", "joins", "planning", "inserts", "definitions")
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
        r"^([a-z0-9-]+)(?:\[[a-z0-9,-]+\])?==([^ ]+).*?\\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)",
        text,
        re.MULTILINE,
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


def imports_of(path: Path, modules: Mapping[str, Path]) -> set[Path]:
    """The files of clipql that a file imports anywhere in it: in functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            named = [(alias.name,) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            named = [(f"{node.module}.{alias.name}", node.module or "") for alias in node.names]
        else:
            continue
        found |= {modules[next(n for n in names if n in modules)] for names in named if set(names) & set(modules)}
    return found


@pytest.fixture(scope="module")
def imports() -> dict[Path, set[Path]]:
    """For each file of clipql, by its path within the package, those that it imports."""
    modules = {}
    for path in (ROOT / "clipql").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    inside = {path: path.relative_to(ROOT / "clipql") for path in modules.values()}
    return {inside[p]: {inside[q] for q in imports_of(p, modules)} for p in modules.values()}


def test_no_files_import_each_other_in_a_circle(imports: dict[Path, set[Path]]) -> None:
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(map(str, reversed(error.args[1]))))


def upwards(imports: Mapping[Path, set[Path]], rooms: Sequence[str], room: Callable[[Path], str | None]) -> list[str]:
    """The imports of a room above the one of whoever imports; room: None for what has no room among these."""
    places = {path: room(path) for path in imports}
    assert set(places.values()) - {None} == set(rooms)
    return [
        f"{path} imports {other}"
        for path, others in imports.items()
        for other in others
        if (above := places[other]) and (own := places[path]) and rooms.index(above) > rooms.index(own)
    ]


def test_imports_point_down_the_order_of_rooms(imports: dict[Path, set[Path]]) -> None:
    def room(path: Path) -> str | None:
        return None if path.parts[0] == "data" else path.parts[0].removesuffix(".py")

    assert upwards(imports, ROOMS, room) == []


def test_imports_within_sql_point_down_the_order_of_its_rooms(imports: dict[Path, set[Path]]) -> None:
    def room(path: Path) -> str | None:
        return None if path.parts[0] != "sql" else path.parts[1] if len(path.parts) > 2 else "sql"

    assert upwards(imports, (*ROOMS_OF_SQL, "sql"), room) == []


def test_taking_a_part_in_and_searching_it_load_only_what_they_need(tmp_path: Path) -> None:
    code = (
        "import sys; heavy = {'PIL', 'asyncio', 'http.client', 'httpx2', 'huggingface_hub', 'onnxruntime', 'pandas',"
        "'prompt_toolkit', 'pyarrow.dataset', 'pyarrow.flight', 'starlette', 'tokenizers', 'torch'}\n"
        "def loaded(folder): return sorted(m for m in sys.modules if m.startswith(folder))\n"
        "from importlib.resources import files; import clipql; from clipql.tables import rowgrowth\n"
        "rowgrowth.LEAST_ROWS = 1\n"
        "with clipql.connect(sys.argv[1]) as db:\n"
        "    db.ingest(str(files('clipql.data') / 'fashion9'), table='shoes')\n"
        "    print(loaded('clipql.sql'), loaded('clipql.index.ivf'), loaded('clipql.ingest.fetch'))\n"
        "    assert db.registry.catalog.tables[0].row_file\n"
        "    near = 'SELECT caption FROM shoes ORDER BY cosineDistance(image_embedding, {q:Array(Float32)}) LIMIT 3'\n"
        "    assert len(db.sql(near, q=[1.0] * 512).rows) == 3\n"
        "print(sorted(heavy & set(sys.modules)), loaded('clipql.index.ivf'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "db")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[] [] []\n[] []\n"  # the room of SQL is loaded by the first statement
