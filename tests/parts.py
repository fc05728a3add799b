"""LAION parts for tests, small and the same in every run, and what a database holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import clipql

FOLDERS = ("img_emb", "text_emb", "metadata")  # as clip-retrieval writes them
LAION_FOLDERS = ("images", "texts", "metadata")  # as LAION-400M names them
SIDE_BY_SIDE = (".", ".", ".")


@dataclass(frozen=True)
class Part:
    """What a part holds, and where its files lie. image and text are as in the files, None where there is none."""

    folder: Path
    number: int
    image: NDArray[Any] | None
    text: NDArray[Any] | None
    metadata: pa.Table
    image_path: Path
    text_path: Path
    metadata_path: Path


def vectors(rows: int, dimension: int, seed: int, dtype: Any = np.float16) -> NDArray[Any]:
    """Unit vectors, (rows, dimension)."""
    found = np.random.default_rng(seed).standard_normal((rows, dimension))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(dtype)


def columns(rows: int, number: int = 0) -> dict[str, Sequence[Any]]:
    """The metadata of a part, as plain lists."""
    return {
        "url": [f"https://example.org/{number}/{i}.jpg" for i in range(rows)],
        "caption": [f'picture {i} of part {number}, a "cat"\ton a\nsofa \\ {"é" * (i % 3)}' for i in range(rows)],
        "NSFW": [("UNLIKELY", "UNSURE", "NSFW")[i % 3] for i in range(rows)],
        "similarity": [0.25 + i / (4 * max(rows, 1)) for i in range(rows)],
    }


def make_part(
    folder: Path,
    rows: int = 20,
    number: int = 0,
    dimension: int = 16,
    seed: int = 0,
    dtype: Any = np.float16,
    image: bool = True,
    text: bool = True,
    metadata_columns: Mapping[str, Any] | pa.Table | None = None,
    layout: tuple[str, str, str] = FOLDERS,
) -> Part:
    """Write a LAION part into a folder, which is made where it is not there.

    metadata_columns: instead of url, caption, NSFW and similarity. layout: folders of the images', the texts' and the
    metadata's files. Parts of other numbers have other vectors.
    """
    img, txt = (vectors(rows, dimension, 1000 * seed + 10 * number + i, dtype) for i in (0, 1))
    given = columns(rows, number) if metadata_columns is None else metadata_columns
    metadata = given if isinstance(given, pa.Table) else pa.table(dict(given))
    places = [folder / name for name in layout]
    for place, wanted in zip(places, (image, text, True), strict=True):
        if wanted:
            place.mkdir(parents=True, exist_ok=True)
    image_path, text_path = places[0] / f"img_emb_{number}.npy", places[1] / f"text_emb_{number}.npy"
    metadata_path = places[2] / f"metadata_{number}.parquet"
    if image:
        np.save(image_path, img)
    if text:
        np.save(text_path, txt)
    pq.write_table(metadata, metadata_path)
    return Part(
        folder, number, img if image else None, txt if text else None, metadata, image_path, text_path, metadata_path
    )


def stored(
    db: clipql.Database, table: str, column: str = "image_embedding", order: str = "_row"
) -> NDArray[np.float32]:
    """The vectors of a column through SQL, (rows, d), in the order of an expression."""
    rows = db.sql(f"SELECT {column} FROM {table} ORDER BY {order}").rows
    return np.array([r[0] for r in rows], np.float32)


def vector_files(folder: Path) -> list[str]:
    """All files under `vectors/` of a database folder."""
    root = folder / "vectors"
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()) if root.is_dir() else []


def state(db: clipql.Database) -> dict[str, Any]:
    """All that must be as before when something failed: tables, rows, the catalog, segment files, hidden tables."""
    tables = db.sql(
        "SELECT database, name FROM system.tables WHERE database NOT IN ('system', 'INFORMATION_SCHEMA', "
        "'information_schema') ORDER BY ALL"
    ).rows
    visible = [(d, n) for d, n in tables if d != "clipql_internal"]
    return {
        "tables": tables,
        "rows": {f"{d}.{n}": sorted(map(repr, db.sql(f"SELECT * FROM `{d}`.`{n}`").rows)) for d, n in visible},
        "catalog": ({repr(asdict(t)) for t in db.registry.catalog.tables}, db.registry.catalog.pending),
        "files": vector_files(db.path),
    }
