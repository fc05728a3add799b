"""Taking one part in: against `cp` and `sync` of the same files and against LanceDB; and the memory it takes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench import child, data
from bench.results import Comparison, Plot, at_least, at_most, median

ROUNDS = 7
BATCH = 65_536
COPY, OURS, COMMAND, LANCE = "cp and sync", "clipql", "clipql, as a command", "LanceDB"
HOW = f"""\
{ROUNDS} rounds in turns over the same files of {{megabytes:.0f}} MB, dropped from memory before each. `cp -r`
and `sync` are timed together; clipql syncs what it writes before it returns; LanceDB gets float16 vectors in Arrow
batches of {BATCH:,} rows mapped from the files, and a `sync` after it."""


def compare(rows: int) -> Comparison:
    """Run all in turns, each round with the source files dropped from memory and nothing left to write."""
    folder, place = data.part(rows), data.fresh("ingest")
    ways: dict[str, Callable[[Path, Path], float]] = {COPY: copy, OURS: call, COMMAND: command, LANCE: lance}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            data.forget(folder)
            times[name].append(way(folder, place))
            data.clear(place)
    seconds = {name: median(values) for name, values in times.items()}
    rate = {name: rows / value for name, value in seconds.items()}
    cp, unit = seconds[COPY], "times as long as `cp` and `sync`"
    return Comparison(
        "ingest",
        "Ingest",
        HOW.format(megabytes=sum(p.stat().st_size for p in data.files(folder)) / 1e6),
        (
            at_most(f"ingest one part of {rows:,} rows", f"{seconds[OURS]:.2f} s: ", seconds[OURS] / cp, 4, unit),
            at_most("the same as a command", f"{seconds[COMMAND]:.2f} s: ", seconds[COMMAND] / cp, 4, unit),
            at_least(
                "ingest against LanceDB, same rows",
                f"{rate[OURS]:,.0f} rows/s, {rate[LANCE]:,.0f} rows/s",
                seconds[LANCE] / seconds[OURS],
                1.5,
            ),
        ),
        Plot("ingest", f"Ingest of {rows:,} rows, both vectors", "rows a second, median", rate, (OURS, COMMAND)),
        times,
    )


def copy(part: Path, place: Path) -> float:
    """Seconds of `cp` and `sync`."""
    place.mkdir()
    sources = [str(part / kind) for kind in ("img_emb", "text_emb", "metadata")]
    began = time.perf_counter()
    subprocess.run(["cp", "-r", *sources, str(place)], check=True)
    subprocess.run(["sync"], check=True)
    return time.perf_counter() - began


def call(part: Path, place: Path) -> float:
    """Seconds of `db.ingest`."""
    return float(child.run(take_in, part=str(part), place=str(place))["seconds"])


def command(part: Path, place: Path) -> float:
    """Seconds of `clipql ingest`, with the start of the process."""
    line = [sys.executable, "-m", "clipql", "--db", str(place), "ingest", str(part), "--table", "laion"]
    began = time.perf_counter()
    subprocess.run(line, check=True, env=child.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def take_in(part: str, place: str) -> dict[str, float]:
    """In a child: seconds of `db.ingest` on an open database, and the most memory the process has had."""
    import clipql

    with clipql.connect(place) as db:
        began = time.perf_counter()
        db.ingest(part, table="laion")
        seconds = time.perf_counter() - began
    return {"seconds": seconds, "bytes": child.peak_memory()}


def lance(part: Path, place: Path) -> float:
    """Seconds of LanceDB."""
    return float(child.run(make_lance, part=str(part), place=str(place)))


def make_lance(part: str, place: str) -> float:
    """In a child: seconds of a LanceDB table made from the part, synced."""
    import lancedb

    folder = Path(part)
    db = lancedb.connect(place)
    metadata = pq.ParquetFile(folder / "metadata" / "metadata_0.parquet")
    vectors = {"image_embedding": "img_emb/img_emb_0.npy", "text_embedding": "text_emb/text_emb_0.npy"}
    kind = pa.list_(pa.float16(), 512)
    schema = metadata.schema_arrow
    for name in vectors:
        schema = schema.append(pa.field(name, kind))

    def batches() -> Iterator[pa.RecordBatch]:
        mapped = {name: np.load(folder / file, mmap_mode="r") for name, file in vectors.items()}
        row = 0
        for batch in metadata.iter_batches(BATCH):
            for name, array in mapped.items():
                values = pa.array(array[row : row + batch.num_rows].reshape(-1))
                batch = batch.append_column(name, pa.FixedSizeListArray.from_arrays(values, 512))
            row += batch.num_rows
            yield batch.cast(schema) if batch.schema != schema else batch

    began = time.perf_counter()
    table = db.create_table("laion", data=pa.RecordBatchReader.from_batches(schema, batches()))
    os.sync()
    seconds = time.perf_counter() - began
    if table.count_rows() != metadata.metadata.num_rows:
        raise RuntimeError(f"LanceDB has {table.count_rows()} rows of {metadata.metadata.num_rows}")
    return seconds


def memory(rows: int) -> Comparison:
    """The most memory that ingest takes, for a part of the full size and smaller ones."""
    peak: dict[int, float] = {}
    for size in (rows // 6, rows // 2, rows):
        place = data.fresh("memory")
        peak[size] = child.run(take_in, part=str(data.part(size)), place=str(place))["bytes"] / 1e9
        data.clear(place)
    smaller = ", ".join(f"{gigabytes:.2f} GB for {size:,} rows" for size, gigabytes in peak.items() if size != rows)
    bars = {f"{size:,} rows": gigabytes for size, gigabytes in peak.items()}
    return Comparison(
        "memory",
        "Memory of ingest",
        "The high-water mark of the process (`VmHWM`), with Python, chDB and the pages of mapped files in it.",
        (at_most(f"memory of ingest, a part of {rows:,} rows", f"({smaller}) ", peak[rows], 1.5, "GB"),),
        Plot("memory", "Peak memory of ingest", "GB", bars, tuple(bars)),
    )
