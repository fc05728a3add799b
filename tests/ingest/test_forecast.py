"""An ingest says what it will take, and is refused where that is not there."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import clipql
from clipql.errors import DiskFull
from clipql.ingest import forecast as forecast_module
from clipql.ingest.forecast import IngestForecast
from tests.parts import make_part


def test_parts_that_cannot_fit_are_refused_before_anything_is_written(
    db: clipql.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_part(tmp_path / "parts", 500)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10_000))
    with pytest.raises(DiskFull, match=r"1 parts of 500 rows need 0\.00 GB of disk; .* has 0\.00 GB free"):
        db.ingest(tmp_path / "parts", table="laion")
    assert db.registry.catalog.tables == ()
    monkeypatch.undo()
    db.ingest(tmp_path / "parts", table="laion")
    assert db.sql("SELECT count() FROM laion").rows == [(500,)]


def test_what_an_ingest_will_take_is_told_once_and_counts_only_new_parts(
    db: clipql.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forecast_module, "FORETOLD", 100)
    told: list[IngestForecast] = []
    for number in range(2):
        make_part(tmp_path / "parts", 500, number)
    db.ingest(tmp_path / "parts", table="laion", parts="0", foretold=told.append)
    db.ingest(tmp_path / "parts", table="laion", foretold=told.append)
    db.ingest(tmp_path / "parts", table="laion", foretold=told.append)  # nothing is new
    assert [(t.parts, t.rows) for t in told] == [(1, 500), (1, 500)]
    written = sum(f.stat().st_size for f in (tmp_path / "parts").rglob("*_0.npy"))
    assert told[0].disk > written
    assert told[0].seconds > 0


def test_linked_vectors_need_no_room(db: clipql.Database, tmp_path: Path) -> None:
    from clipql.ingest.layout import check_part, find_parts

    make_part(tmp_path / "parts", 500)
    checked = [check_part(p) for p in find_parts([tmp_path / "parts"], None)]
    copied, linked = (forecast_module.forecast(checked, tmp_path, link=link) for link in (False, True))
    vectors = sum(f.stat().st_size for f in (tmp_path / "parts").rglob("*.npy"))
    assert copied.disk - linked.disk == vectors
