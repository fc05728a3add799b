"""chDB without clipql: a plain MergeTree with Array(Float32) columns, as the tutorial has it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COLUMNS = (
    "`id` Int64, `url` String, `caption` String, `NSFW` String, `similarity` Float32, "
    "`image_embedding` Array(Float32), `text_embedding` Array(Float32)"
)
CREATE = f"CREATE TABLE laion ({COLUMNS}) ENGINE = MergeTree ORDER BY id SETTINGS index_granularity = 8192"
BATCH = 50_000


@contextlib.contextmanager
def opened(place: str) -> Iterator[Any]:
    """A chDB session on a folder."""
    from chdb.session import Session

    with contextlib.closing(Session(place)) as session:
        session.query(CREATE)
        yield session


def lists(vectors: np.ndarray[Any, Any]) -> pa.Array:
    """Vectors as an Arrow column of float32 lists."""
    values = np.ascontiguousarray(vectors, np.float32)
    edges = np.arange(0, values.size + 1, values.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(pa.array(edges), pa.array(values.ravel()))


def fill(session: Any, folder: Path) -> None:
    """Insert a part, and keep it as inserted."""
    # chDB reads merged parts several times slower, since merging compresses the vectors: the peer gets its best
    session.query("SYSTEM STOP MERGES laion")
    image = np.load(folder / "img_emb" / "img_emb_0.npy", mmap_mode="r")
    text = np.load(folder / "text_emb" / "text_emb_0.npy", mmap_mode="r")
    metadata = pq.read_table(
        folder / "metadata" / "metadata_0.parquet", columns=["url", "caption", "NSFW", "similarity"]
    )
    for a in range(0, len(image), BATCH):
        batch = metadata.slice(a, BATCH).add_column(0, "id", pa.array(np.arange(a, min(a + BATCH, len(image)))))
        batch = batch.append_column("image_embedding", lists(image[a : a + BATCH]))
        batch = batch.append_column("text_embedding", lists(text[a : a + BATCH]))
        session.query("INSERT INTO laion SELECT * FROM Python(batch)")


def rows(session: Any, sql: str, **vectors: np.ndarray[Any, Any]) -> list[tuple[Any, ...]]:
    """The rows of a query with vector parameters."""
    params = {name: str(vector.tolist()) for name, vector in vectors.items()}
    table = pa.ipc.open_stream(session.query(sql, "ArrowStream", params=params).bytes()).read_all()
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))
