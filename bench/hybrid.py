"""Whether meaning and words fused find more than either: nDCG@10 on a labelled set of the emoji that ship with clipql.

    python -m bench.hybrid [--queries 400] [--seed 0]

The rows are 2,543 emoji: a picture's vector by `clipql/emoji`, and the emoji's name as text. Three kinds of query, of
each `--queries`: a name, that its one emoji answers; a keyword, that all emoji with it answer, whether it is in their
names or not; and as many of both, as people ask. Keywords are those of `held_out.json` first, pairs of which the
model was never shown, then others. The confidence intervals are of the mean over queries, and of the mean difference
from the better of the two alone, by 2,000 bootstrap samples.
"""

from __future__ import annotations

import argparse
import json
import tarfile
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import clipql
from clipql.encode.clip import open_encoder

K, SAMPLES, MODEL = 10, 2000, "clipql/emoji"
EMOJI = Path(str(files("clipql.data"))) / "emoji"
BY_WORDS = (
    "SELECT id FROM emoji WHERE bm25(name, {query:String}) > 0 ORDER BY bm25(name, {query:String}) DESC, id "
    f"LIMIT {K}"
)
Query = tuple[str, frozenset[int]]  # what is asked, and the ids that answer it


def filled(folder: Path) -> tuple[clipql.Database, list[dict[str, Any]]]:
    """The emoji in a table."""
    rows = pq.read_table(EMOJI / "emoji.parquet").to_pylist()
    with tarfile.open(EMOJI / "emoji.tar") as tar:
        pictures = {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith(".png")}  # type: ignore[union-attr]
    found = open_encoder(MODEL).encode_pictures([pictures[f"{r['key']}.png"] for r in rows]).vectors
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(found.ravel()), found.shape[1])
    names = [r["name"] for r in rows]
    table = pa.table({"id": pa.array(range(len(rows)), pa.uint32()), "name": names, "image_embedding": vectors})
    pq.write_table(table, folder / "emoji.parquet")
    db = clipql.connect(folder / "db", model=MODEL)
    db.ingest(folder / "emoji.parquet", table="emoji", model=MODEL)
    db.sql("ALTER TABLE emoji ADD INDEX words name TYPE text(tokenizer = 'splitByNonAlpha')")
    db.sql("ALTER TABLE emoji MATERIALIZE INDEX words")
    return db, rows


def asked(rows: list[dict[str, Any]], count: int, rng: np.random.Generator) -> dict[str, list[Query]]:
    """The queries of each kind."""
    names = [(rows[i]["name"], frozenset([int(i)])) for i in rng.permutation(len(rows))[:count]]
    having: dict[str, set[int]] = {}
    for at, row in enumerate(rows):
        for word in row["keywords"]:
            having.setdefault(word, set()).add(at)
    told = json.loads((EMOJI / "model" / "held_out.json").read_text("utf-8"))
    first = list(dict.fromkeys(str(word) for _, word in told))
    rest = [w for w in map(str, rng.permutation(sorted(having))) if w not in first]
    keywords = [(w, frozenset(having[w])) for w in [*first, *rest] if len(having.get(w, ())) > 1][:count]
    return {"names": names, "keywords": keywords}


def ndcg(found: list[int], relevant: frozenset[int]) -> float:
    """nDCG@10 of a ranking, where a row answers a query or does not."""
    gains = [1 / np.log2(place + 2) for place, id in enumerate(found[:K]) if id in relevant]
    best = sum(1 / np.log2(place + 2) for place in range(min(K, len(relevant))))
    return float(sum(gains) / best)


def scores(db: clipql.Database, queries: list[Query]) -> dict[str, NDArray[np.float64]]:
    """nDCG@10 of each query by each way of searching."""
    found: dict[str, list[float]] = {"meaning": [], "words": [], "fused": []}
    for query, relevant in queries:
        ways = {
            "meaning": db.search("emoji", text=query, k=K, columns=["id"]),
            "words": db.sql(BY_WORDS, query=query),
            "fused": db.search("emoji", text=query, k=K, columns=["id"], hybrid=True, words="name"),
        }
        for way, result in ways.items():
            found[way].append(ndcg([int(row[0]) for row in result.rows], relevant))
    return {way: np.array(values) for way, values in found.items()}


def interval(values: NDArray[np.float64], rng: np.random.Generator) -> str:
    """A mean with its 95 % confidence interval."""
    means = values[rng.integers(0, len(values), (SAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng = np.random.default_rng(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        db, rows = filled(Path(folder))
        with db:
            print("| queries | meaning | words | fused | fused less the better one |\n|---|---|---|---|---|")
            found = {kind: scores(db, queries) for kind, queries in asked(rows, given.queries, rng).items()}
            each = min(len(by["fused"]) for by in found.values())
            found["both"] = {w: np.concatenate([by[w][:each] for by in found.values()]) for w in found["names"]}
            for kind, by in found.items():
                better = max(("meaning", "words"), key=lambda way: by[way].mean())
                cells = [interval(by[way], rng) for way in ("meaning", "words", "fused")]
                gain = interval(by["fused"] - by[better], rng)
                print(f"| {len(by['fused'])}: {kind} | {' | '.join(cells)} | {gain} |", flush=True)


if __name__ == "__main__":
    main()
