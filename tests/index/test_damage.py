"""Index files that are not what was written are named and passed over, and the answers are those of the exact scan."""

from __future__ import annotations

import io
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clipql
from clipql.errors import DatabaseDamaged
from clipql.index import folder as index_folder

SEARCH = "SELECT id FROM t ORDER BY L2Distance(v, [0.3, 0.1, -0.2, 0.5, 0, 0.7, -0.1, 0.2]) LIMIT 5"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    place = tmp_path_factory.mktemp("damage") / "db"
    with clipql.connect(place) as db:
        db.sql("CREATE TABLE t (id UInt32, v Array(Float32), INDEX near v TYPE ivf('L2Distance')) "
               "ENGINE = MergeTree ORDER BY id")  # fmt: skip
        db.sql("INSERT INTO t SELECT number, arrayMap(i -> sin(number * 7 + i * i), range(8)) FROM numbers(1500)")
        db.sql("ALTER TABLE t MATERIALIZE INDEX near")
        exact = db.sql(SEARCH + " SETTINGS vector_plan = 0").rows
    return place, exact


def saved(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "empty": lambda data, luck: b"",
    "cut short": lambda data, luck: data[: luck.randrange(len(data))],
    "longer": lambda data, luck: data + b"\0",
    "another shape": lambda data, luck: data.replace(b"(", b"(1,", 1).replace(b"  \n", b"\n", 1),
    "another type": lambda data, luck: data.replace(b"'<", b"'>", 1),
    "noise": lambda data, luck: luck.randbytes(len(data)),
    "rows in another order": lambda data, luck: saved(np.load(io.BytesIO(data))[::-1]),
    "a row twice": lambda data, luck: saved(np.zeros_like(np.load(io.BytesIO(data)))),
    "objects": lambda data, luck: data.replace(b"'<", b"'O", 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_array_is_named_and_the_scan_answers(
    whole: tuple[Path, list[Any]], tmp_path: Path, damage: str
) -> None:
    source, exact = whole
    luck = random.Random(damage)
    shutil.copytree(source, tmp_path / "db", symlinks=True)
    (place,) = (tmp_path / "db" / "index").glob("*/near-*")
    arrays = sorted(p for p in place.glob("*.npy"))
    path = place / "rows.npy" if "row" in damage else luck.choice(arrays)
    before = path.read_bytes()
    path.write_bytes(DAMAGE[damage](before, luck))
    if path.read_bytes() == before:
        path.write_bytes(before[:-1])
    with pytest.raises(DatabaseDamaged, match=path.name):
        index_folder.read(place)
    with clipql.connect(tmp_path / "db") as db:
        assert db.sql(SEARCH).rows == exact
        ((state,),) = db.sql("SELECT state FROM clipql.indexes").rows
        assert state.startswith("damaged: ")
        assert path.name in state


@pytest.mark.parametrize("key", ["version", "rows", "files", "curves", "parameters", "hash", "metric", "dimension"])
def test_a_description_with_a_key_taken_away_or_changed_is_not_believed(
    whole: tuple[Path, list[Any]], tmp_path: Path, key: str
) -> None:
    source, _ = whole
    (found,) = (source / "index").glob("*/near-*")
    for number, value in enumerate(("", [], {}, -1, None, 1e300, "gone")):
        place = tmp_path / str(number)
        shutil.copytree(found, place)
        meta = json.loads((place / "meta.json").read_text())
        if value == "gone":
            meta.pop(key)
        else:
            meta[key] = value
        (place / "meta.json").write_text(json.dumps(meta))
        with pytest.raises(clipql.errors.StorageError, match=r"meta\.json"):
            index_folder.read(place)


def test_large_files_are_known_by_their_beginnings_at_open_and_by_all_bytes_when_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with index_folder.NewFolder(tmp_path / "made") as made:
        made.save("large", np.arange(40_000))
        made.commit({"version": 1, "rows": 1})
    monkeypatch.setattr(index_folder, "_HASHED_ON_OPEN", 1000)
    index_folder.read(tmp_path / "made")
    path = tmp_path / "made" / "large.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"\1")
    index_folder.read(tmp_path / "made")
    with pytest.raises(DatabaseDamaged, match=r"large\.npy is not as it was written \(its hash"):
        index_folder.verify(tmp_path / "made")
    path.write_bytes(whole.replace(b"<i8", b"<f8", 1))
    with pytest.raises(DatabaseDamaged, match=r"large\.npy is not as it was written \(its head"):
        index_folder.read(tmp_path / "made")
