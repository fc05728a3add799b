"""Taking one Parquet file with a vector in each row in, against LanceDB's ingest of the same file."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench import child, data
from bench.results import Comparison, Line, Plot, at_least, median

ROUNDS = 5
BATCH = 65_536
DIMENSION = 768
OURS, INSERT, LANCE = "clipql", "clipql, INSERT … SELECT FROM file()", "LanceDB"
HOW = f"""\
{ROUNDS} rounds in turns over one file of {{megabytes:,.0f}} MB, dropped from memory before each: {DIMENSION} float32
numbers, a url and a caption a row, in row groups of {BATCH:,}. clipql syncs what it writes before it returns; LanceDB
gets the file's batches of {BATCH:,} rows as pyarrow reads them, with vectors as lists of fixed size, and a `sync` after
it."""


def compare(rows: int) -> Comparison:
    """Run all in turns."""
    file, place = made(rows), data.fresh("ingest-parquet")
    ways: dict[str, Callable[[str, str], float]] = {OURS: take_in, INSERT: insert, LANCE: lance}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            subprocess.run(["sync"], check=True)
            with open(file, "rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            times[name].append(float(child.run(way, file=str(file), place=str(place))))
            data.clear(place)
    seconds = {name: median(values) for name, values in times.items()}
    rate = {name: rows / value for name, value in seconds.items()}
    return Comparison(
        "ingest-parquet",
        "Ingest of Parquet with vectors",
        HOW.format(megabytes=file.stat().st_size / 1e6),
        (
            _line(f"ingest a Parquet file of {rows:,} rows", rate[OURS], 120_000),
            _line("the same by INSERT … SELECT FROM file()", rate[INSERT], 80_000),
            at_least(
                "ingest of Parquet against LanceDB, same file",
                f"{rate[OURS]:,.0f} rows/s, {rate[LANCE]:,.0f} rows/s",
                seconds[LANCE] / seconds[OURS],
                2,
            ),
        ),
        Plot("ingest-parquet", f"Ingest of {rows:,} rows of Parquet", "rows a second, median", rate, (OURS, INSERT)),
        times,
    )


def _line(work: str, rate: float, bar: float) -> Line:
    return Line(work, f"{rate:,.0f} rows/s", f"at least {bar:,.0f} rows/s", rate >= bar)


def made(rows: int) -> Path:
    """The file, made once."""
    folder = data.FOLDER / f"parquet-{rows}"
    file, coming = folder / "rows.parquet", folder / "coming"
    if file.exists():
        return file
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    child.run(write, path=str(coming), rows=rows)
    coming.rename(file)
    return file


def write(path: str, rows: int) -> None:
    """In a child: write the file."""
    rng, writer = np.random.default_rng(5), None
    for first in range(0, rows, BATCH):
        count = min(BATCH, rows - first)
        vectors = rng.standard_normal((count, DIMENSION), np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        lists = pa.ListArray.from_arrays(
            np.arange(0, (count + 1) * DIMENSION, DIMENSION, np.int32), vectors.reshape(-1)
        )
        ids = range(first, first + count)
        table = pa.table(
            {
                "url": [f"https://pictures.example/{i}.jpg" for i in ids],
                "caption": [f"a picture of {i} things at a place" for i in ids],
                "vector": lists,
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema, use_dictionary=["caption"])
        writer.write_table(table, row_group_size=BATCH)
    if writer:
        writer.close()


def take_in(file: str, place: str) -> float:
    """In a child: seconds of `db.ingest` on an open database."""
    import clipql

    with clipql.connect(place) as db:
        began = time.perf_counter()
        db.ingest(file, table="t")
        return time.perf_counter() - began


def insert(file: str, place: str) -> float:
    """In a child: seconds of INSERT … SELECT FROM file()."""
    import clipql

    with clipql.connect(place) as db:
        db.sql("CREATE TABLE t (url String, caption String, vector Array(Float32)) ENGINE = MergeTree ORDER BY tuple()")
        began = time.perf_counter()
        db.sql(f"INSERT INTO t SELECT url, caption, vector FROM file('{file}', 'Parquet')")
        return time.perf_counter() - began


def lance(file: str, place: str) -> float:
    """In a child: seconds of a LanceDB table made from the file, synced."""
    import lancedb

    db, source = lancedb.connect(place), pq.ParquetFile(file)
    kind = pa.list_(pa.float32(), DIMENSION)
    own = source.schema_arrow
    schema = own.set(own.get_field_index("vector"), pa.field("vector", kind))

    def fixed(batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([batch["url"], batch["caption"], batch["vector"].cast(kind)], schema=schema)

    began = time.perf_counter()
    batches = (fixed(batch) for batch in source.iter_batches(BATCH))
    table = db.create_table("t", data=pa.RecordBatchReader.from_batches(schema, batches))
    os.sync()
    seconds = time.perf_counter() - began
    if table.count_rows() != source.metadata.num_rows:
        raise RuntimeError(f"LanceDB has {table.count_rows()} rows of {source.metadata.num_rows}")
    return seconds
