"""Searches of a table that is larger than memory, in proportion to 400 million rows on a machine of 24 GB.

That machine has 60 MB for each million rows, beside what the process takes without data; so a table of 10 million rows
is searched within 0.6 GB beside it. Every setting is measured by a process of its own, which starts with nothing of
the table in the page cache: its first half of the queries finds it so (cold), the other half what the first have left
(warm).
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import child, data
from bench.limits import bytes_read, limit_this_process
from bench.scale_work import FILTERS, PART, QUERIES, K, keep_queries

MB_PER_MILLION, PROCESS_MB = 60, 450
CLIENTS, CLIENT_SECONDS = 16, 20
_ASKED = data.FOLDER / "scale" / "queries.npy"
QUERY = (
    "SELECT url, caption FROM laion {}ORDER BY cosineDistance(image_embedding, {{q:Array(Float32)}}) LIMIT 10 "
    "SETTINGS {}"
)


def memory_for(millions: int) -> int:
    """Bytes that a process which searches so many rows may have, the page cache of its files included."""
    return (PROCESS_MB + MB_PER_MILLION * millions) * 1_000_000


def all_searches(millions: int, most: int, place: Path, true: Path) -> dict[str, Any]:
    """Each setting in a process of its own: two recalls, two filters, and clients side by side."""
    if not _ASKED.exists():
        child.run(keep_queries, file=str(_ASKED))
    found: dict[str, Any] = {"millions": millions, "bytes": memory_for(millions), "points": []}
    settings = [("recall = 0.95", name) for name in FILTERS] + [("recall = 0.98", "all")]
    for setting, filtered in settings:
        forget_table(millions, most, place)
        found["points"].append(
            child.run(searched, place=str(place), millions=millions, true=str(true), setting=setting, filtered=filtered)
        )
        print(json.dumps(found["points"][-1]), flush=True)
    forget_table(millions, most, place)
    found["clients"] = child.run(clients, place=str(place), millions=millions, setting="recall = 0.95")
    found["limit"] = found["points"][0]["limit"]
    return found


def forget_table(millions: int, most: int, place: Path) -> None:
    """Have the kernel drop all files of a database and the parts it is linked to, which no process has mapped."""
    subprocess.run(["sync"], check=True)
    linked = [data.images(most * PART, most) / f"img_emb/img_emb_{part}.npy" for part in range(millions)]
    for path in [*linked, *(p for p in place.rglob("*") if p.is_file())]:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def searched(place: str, millions: int, true: str, setting: str, filtered: str) -> dict[str, Any]:
    """In a child: recall, milliseconds and bytes read of whole statements."""
    limited = limit_this_process(memory_for(millions))
    import clipql
    from clipql.engine import memory

    asked, nearest = np.load(_ASKED), json.loads(Path(true).read_text())[str(millions)][filtered]
    sql = QUERY.format(_where(filtered), setting)
    half = QUERIES // 2
    with clipql.connect(place) as db:
        began = time.perf_counter()
        db.sql(sql, q=-asked[0])  # compiles, and evaluates the filter
        first = 1000 * (time.perf_counter() - began)
        parts = [_timed(db, sql, asked[a : a + half], nearest[a : a + half]) for a in (0, half)]
        anonymous = memory.in_use()
    return {
        "setting": setting,
        "filter": filtered,
        "limit": limited,
        "first": first,
        "anonymous": anonymous,
        "recall": sum(p["recall"] for p in parts) / 2,
        "cold": parts[0],
        "warm": parts[1],
    }


def clients(place: str, millions: int, setting: str) -> dict[str, Any]:
    """In a child: queries a second of threads that each ask one after the other, once the cache holds what it can."""
    limit_this_process(memory_for(millions))
    import clipql

    asked, sql = np.load(_ASKED), QUERY.format("", setting)
    seconds: list[float] = []
    with clipql.connect(place) as db:
        for q in asked[: QUERIES // 2]:
            db.sql(sql, q=q)
        end, read = time.perf_counter() + CLIENT_SECONDS, bytes_read()

        def ask(number: int) -> None:
            turn = np.random.default_rng(number)
            while time.perf_counter() < end:
                began = time.perf_counter()
                db.sql(sql, q=asked[turn.integers(len(asked))] + _little(turn))
                seconds.append(time.perf_counter() - began)

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        read = bytes_read() - read
    return {
        "clients": CLIENTS,
        "setting": setting,
        "per_second": len(seconds) / CLIENT_SECONDS,
        "read": read / len(seconds),
        **_quantiles(seconds),
    }


def _little(turn: np.random.Generator) -> NDArray[np.float32]:
    """What makes a query another one, whose lists and rows are mostly new."""
    return (0.02 * turn.standard_normal(512)).astype(np.float32)


def _where(filtered: str) -> str:
    if filtered == "all":
        return ""
    narrowest, widest, lowest, highest = FILTERS[filtered]
    height = f" AND height BETWEEN {lowest} AND {highest}" if (lowest, highest) != (200, 1_999) else ""
    return f"WHERE width BETWEEN {narrowest} AND {widest}{height} "


def _timed(db: Any, sql: str, asked: NDArray[np.float32], true: Sequence[Sequence[str]]) -> dict[str, Any]:
    seconds, hits, read, spent = [], 0, bytes_read(), time.process_time()
    for q, urls in zip(asked, true, strict=True):
        began = time.perf_counter()
        found = db.sql(sql, q=q)
        rows = found.rows
        seconds.append(time.perf_counter() - began)
        hits += len({r[0] for r in rows} & set(urls))
    return {
        "recall": hits / (K * len(asked)),
        "read": (bytes_read() - read) / len(asked),
        "processor": 1000 * (time.process_time() - spent) / len(asked),
        **_quantiles(seconds),
    }


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"p{p}": 1000 * ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 90, 99)}
