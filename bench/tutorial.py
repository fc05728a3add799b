"""Ingest against the way of ClickHouse's LAION tutorial: pandas writes a CSV file, and chDB reads it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import child, data
from bench.ingest import take_in
from bench.results import Comparison, Line, Plot, at_least, median

ROUNDS = 3
LARGEST = 50_000
HOW = f"""\
{{rows:,}} rows, {ROUNDS} rounds in turns. The script loads the arrays and the Parquet file, puts the vectors into a
DataFrame as lists, writes CSV without a header, and inserts it into the tutorial's table. Lists are made by `tolist()`,
which is faster than the tutorial's `list()` and which numpy 2 writes as plain numbers."""


def compare(rows: int) -> Comparison:
    """Rows a second of both, over a part small enough for pandas."""
    rows = min(rows, LARGEST)
    folder = data.part(rows)
    times: dict[str, list[float]] = {"clipql": [], "to CSV": [], "CSV into chDB": []}
    for _ in range(ROUNDS):
        data.forget(folder)
        times["clipql"].append(child.run(take_in, part=str(folder), place=str(data.fresh("tutorial")))["seconds"])
        data.forget(folder)
        place = data.fresh("tutorial")
        place.mkdir()
        for name, seconds in child.run(follow, part=str(folder), place=str(place)).items():
            times[name].append(seconds)
    data.clear(data.fresh("tutorial"))
    ours, csv, insert = (rows / median(times[name]) for name in ("clipql", "to CSV", "CSV into chDB"))
    script = rows / (median(times["to CSV"]) + median(times["CSV into chDB"]))
    work = "ingest against the tutorial's script, same rows"
    bars = {"clipql": ours, "the script": script}
    return Comparison(
        "tutorial",
        "Ingest against the tutorial",
        HOW.format(rows=rows),
        (
            at_least(work, f"{ours:,.0f} rows/s, {script:,.0f} rows/s", ours / script, 20),
            Line("of the script: pandas to CSV · CSV into chDB", f"{csv:,.0f} · {insert:,.0f} rows/s"),
        ),
        Plot("tutorial", f"Ingest of {rows:,} rows, both vectors", "rows a second, median", bars),
        times,
    )


def follow(part: str, place: str) -> dict[str, float]:
    """In a child: seconds of the tutorial's two steps."""
    from bench import plain

    csv = str(Path(place) / "0.csv")
    began = time.perf_counter()
    rows = _to_csv(Path(part), csv)
    written = time.perf_counter()
    with plain.opened(str(Path(place) / "chdb")) as session:
        opened = time.perf_counter()
        names = plain.COLUMNS.replace("`", "").replace("'", "")
        session.query(f"INSERT INTO laion SELECT * FROM file('{csv}', 'CSV', '{names}')")
        done = time.perf_counter()
        [(there,)] = plain.rows(session, "SELECT count() FROM laion")
    if there != rows:
        raise RuntimeError(f"{there} rows of {rows} are in the table")
    return {"to CSV": written - began, "CSV into chDB": done - opened}


def _to_csv(part: Path, csv: str) -> int:
    import pandas as pd

    frame: Any = pd.read_parquet(part / "metadata" / "metadata_0.parquet")
    image = np.load(part / "img_emb" / "img_emb_0.npy")
    text = np.load(part / "text_emb" / "text_emb_0.npy")
    frame = pd.concat(
        [frame, pd.DataFrame({"image_embedding": [*image]}), pd.DataFrame({"text_embedding": [*text]})], axis=1
    )
    frame = frame[["url", "caption", "NSFW", "similarity", "image_embedding", "text_embedding"]]
    frame["image_embedding"] = frame["image_embedding"].apply(lambda x: x.tolist())
    frame["text_embedding"] = frame["text_embedding"].apply(lambda x: x.tolist())
    frame["caption"] = frame["caption"].apply(lambda x: x.replace("'", " ").replace('"', " "))
    frame.to_csv(csv, header=False)
    return len(frame)
