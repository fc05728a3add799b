"""A table, or some of its rows, as LAION parts: vectors in `.npy`, metadata in Parquet, line by line the same rows.

    OUT/img_emb/img_emb_0.npy         image_embedding, float16 where it is stored so; text_emb likewise
    OUT/metadata/metadata_0.parquet   the other columns
    OUT/manifest.json                 what was asked for, and rows and SHA-256 of each file that is whole

What must stay true: row i of every file of a part is the same row; a file that the manifest lists is whole; going on
where an export stopped gives what one run gives; memory does not grow with the rows.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from clipql.brief import Brief
from clipql.curate.forms import FORMS
from clipql.curate.part_files import MANIFEST, metadata, new_file, npy, stored_as
from clipql.curate.tables import chosen_rows
from clipql.engine.quoting import quote_string
from clipql.errors import ClipqlError, UnknownTable
from clipql.storage import files
from clipql.tables.shape import insertable

if TYPE_CHECKING:
    from clipql.database import Database
    from clipql.storage.catalog import Table

FOLDERS = {"image_embedding": "img_emb", "text_embedding": "text_emb"}
LAION = "laion"
Progress = Callable[[int, int], None]


@dataclass(frozen=True, repr=False)
class Exported(Brief):
    """rows and parts of the whole export; written: the parts that this run wrote."""

    rows: int
    parts: int
    written: int
    seconds: float


def export_parts(
    db: Database,
    table: str,
    folder: str | os.PathLike[str],
    *,
    where: str | None = None,
    rows_per_part: int = 1_000_000,
    form: str = LAION,
    progress: Progress = lambda done, total: None,
) -> Exported:
    """Write the rows that meet a condition, in the order of their numbers; parts that are whole already are kept.

    form: 'laion', or one of `forms.FORMS`.
    Raises UnknownTable, QueryError, ClipqlError where the folder holds another export or one of the rows has no vector
    in a column, StorageError.
    """
    began, out = time.perf_counter(), Path(folder)
    database, _, name = table.rpartition(".")
    known = db.registry.find(database or None, name)
    if known is None:
        raise UnknownTable(f"there is no table {table} with vector columns")
    if form != LAION and form not in FORMS:
        raise ClipqlError(f"{form} is no form of an export; there are {', '.join((LAION, *FORMS))}")
    if rows_per_part < 1:
        raise ClipqlError(f"{rows_per_part} rows a part; expected at least 1")
    with db.registry.gate.reading(), files.translated(out, "writing an export to"):
        chosen = chosen_rows(db, known, where)
        rows = np.arange(known.rows) if chosen is None else chosen
        _check_vectors(db, known, rows)
        asked = {
            "table": known.full_name,
            "where": where,
            "rows": len(rows),
            "rows_per_part": rows_per_part,
            "as": form,
            "of": f"{known.id} {xxhash.xxh3_64_hexdigest(rows.astype(np.uint64).tobytes())} {_values(db, known)}",
        }
        manifest = _begun(out, asked)
        written, parts = 0, max(1, -(-len(rows) // rows_per_part))
        for number in range(parts):
            db.registry.engine.check_cancelled()
            progress(number * rows_per_part, len(rows))
            if number < len(manifest["parts"]) and _is_whole(out, manifest["parts"][number]):
                continue
            own = rows[number * rows_per_part : (number + 1) * rows_per_part]
            part = _written(db, known, own, out, form, number, parts)
            manifest["parts"][number : number + 1] = [part]
            files.replace(out / MANIFEST, json.dumps(manifest, indent=1).encode())
            written += 1
    return Exported(len(rows), parts, written, time.perf_counter() - began)


def _check_vectors(db: Database, table: Table, rows: NDArray[np.int64]) -> None:
    """Raise ClipqlError where a row has no vector, for which a part has no place."""
    for column in table.columns:
        there = db.registry.store(table, column.name).there
        lacking = 0 if there is None else len(rows) - int(np.count_nonzero(there[rows]))
        if lacking:
            raise ClipqlError(
                f"{lacking:,} of {len(rows):,} rows of {table.full_name} have no vector in {column.name}, and a part "
                f"has one for each row: export those that have, by --where 'notEmpty({column.name})', or fill it"
            )


def _values(db: Database, table: Table) -> str:
    """What changes when values of rows that are there do: the columns, the last mutation, and that of vectors."""
    engine = db.registry.engine
    columns = json.dumps(sorted(n for n, _ in insertable(engine, table)))
    named = f"database = {quote_string(table.database)} AND table = {quote_string(table.name)}"
    last = engine.scalar(f"SELECT max(arrayMax(block_numbers.number)) FROM system.mutations WHERE {named}")
    revised = "".join(f" {c.name} {c.revision}" for c in table.columns if c.revision)
    return f"{xxhash.xxh3_64_hexdigest(columns.encode())} {int(last or 0)}{revised}"


def _begun(out: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """The manifest as it is, of the same export, or a new one."""
    files.make_folder(out)
    try:
        found = json.loads((out / MANIFEST).read_bytes())
    except FileNotFoundError:
        if any(out.iterdir()):
            raise ClipqlError(f"{out} is not empty, and holds no export: use another folder") from None
        begun = {**asked, "parts": []}
        files.replace(
            out / MANIFEST, json.dumps(begun, indent=1).encode()
        )  # so that a first part that is cut off is ours
        return begun
    except ValueError as error:
        raise ClipqlError(f"{out / MANIFEST} cannot be read ({error}): use another folder") from error
    if isinstance(found, dict):
        found.setdefault("as", LAION)  # which manifests did not say at first
    if not isinstance(found, dict) or {k: found.get(k) for k in asked} != asked:
        raise ClipqlError(f"{out} holds an export of other rows, or of the table as it was: use another folder")
    return found


def _is_whole(out: Path, part: dict[str, Any]) -> bool:
    """Whether the files of a part are there, by their sizes."""
    return all(
        (out / name).is_file() and (out / name).stat().st_size == f["bytes"] for name, f in part["files"].items()
    )


def _laion(db: Database, table: Table, rows: NDArray[Any], out: Path, number: int) -> list[Path]:
    made: list[Path] = []
    for column in table.columns:
        folder = FOLDERS.get(column.name, column.name)
        made.append(out / folder / f"{folder}_{number}.npy")
        with new_file(made[-1]) as file:
            for piece in npy(db.registry.store(table, column.name), rows, stored_as(column), column.dimension or 0):
                files.write_all(file, piece)
    made.append(out / "metadata" / f"metadata_{number}.parquet")
    with new_file(made[-1]) as file:
        metadata(db, table, rows, file)
    return made


def _written(
    db: Database, table: Table, rows: NDArray[Any], out: Path, form: str, number: int, parts: int
) -> dict[str, Any]:
    made = _laion(db, table, rows, out, number) if form == LAION else FORMS[form](db, table, rows, out, number, parts)
    return {
        "rows": len(rows),
        "files": {
            path.relative_to(out).as_posix(): {"bytes": path.stat().st_size, "sha256": _digest(path)} for path in made
        },
    }


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
