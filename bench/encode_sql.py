"""A statement with words in it: the encoder's time plus the search's, and nothing more."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from bench import child, data, encode_speed
from bench.results import Comparison, Line, median

ROWS, ROUNDS, WARM_UP = 300_000, 40, 8
HOW = f"""\
`SELECT url, caption FROM laion ORDER BY cosineDistance(image_embedding, encode_text('…')) LIMIT 10` over {ROWS:,} rows,
exact, with {ROUNDS} captions not asked before, beside the same captions through the encoder alone and the same
statement with the vector as a parameter, in turns. A model of ViT-B/32's shape with random weights, all cores."""


def compare(rows: int = 0) -> Comparison:
    """Whole statements against their two parts."""
    place = data.fresh("encode-sql")
    times: dict[str, list[float]] = child.run(
        measure, part=str(data.part(ROWS)), place=str(place), model=str(encode_speed.model())
    )
    data.clear(place)
    whole, encoder, search = (1000 * median(times[n]) for n in ("whole", "encoder", "search"))
    shown = f"{whole:.1f} ms, the encoder {encoder:.1f} ms and the search {search:.1f} ms: "
    shown += f"{whole - encoder - search:+.1f} ms"
    met = whole <= 1.05 * (encoder + search)
    line = Line("ORDER BY cosineDistance(…, encode_text('…')), warm", shown, "at most 5 % more than both", met)
    return Comparison("encode-sql", "Words inside a statement", HOW, (line,), None, times)


def measure(part: str, place: str, model: str) -> dict[str, list[float]]:
    """In a child."""
    import pyarrow.parquet as pq

    import clipql

    captions = pq.read_table(Path(part) / "metadata" / "metadata_0.parquet", columns=["caption"]).column(0).to_pylist()
    texts = list(dict.fromkeys(captions))[: 2 * (ROUNDS + WARM_UP)]
    times: dict[str, list[float]] = {"whole": [], "encoder": [], "search": []}
    sql = "SELECT url, caption FROM laion ORDER BY cosineDistance(image_embedding, {}) LIMIT 10"

    def timed(name: str, number: int, work: Any) -> Any:
        began = time.perf_counter()
        found = work()
        if number >= WARM_UP:
            times[name].append(time.perf_counter() - began)
        return found

    with clipql.connect(place, model=model) as db:
        db.ingest(part, table="laion")
        encoder = db.encoders.encoder()
        for number in range(ROUNDS + WARM_UP):
            text = texts[2 * number + 1]
            words = sql.format("encode_text({words:String})")
            timed("whole", number, lambda: db.sql(words, words=text))  # noqa: B023
            vector = timed("encoder", number, lambda: encoder.encode_texts([text]))[0]  # noqa: B023
            timed("search", number, lambda: db.sql(sql.format("{v:Array(Float32)}"), v=vector))  # noqa: B023
    return times
