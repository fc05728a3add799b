"""The whole of clipql in a minute: real vectors taken in and asked in SQL, emoji by words, then 100,000 rows, timed.

Everything shown is what the engine gave: the statements run as they are printed, and the tables are ClickHouse's own
bytes. What must stay true: without a folder to keep it in, nothing is left behind.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql import synthetic
from clipql.cli import demo_emoji
from clipql.connection import connect
from clipql.database import Database
from clipql.errors import StorageError
from clipql.sql.session import Answer

PrintLine = Callable[[str], None]

ROWS = 100_000
WARM_QUERIES = 20
# a caption may have thousands of letters; ClickHouse cuts what is wider, so that a table fits a terminal
WIDEST = 60

_BY_CAPTION = """\
WITH (SELECT text_embedding FROM fashion WHERE caption = 'a red and black plaid coat with a belt') AS words
SELECT basename(image_path) AS picture, caption, cosineDistance(image_embedding, words) AS distance
FROM fashion
ORDER BY distance
LIMIT 4"""

_BY_CAPTION_WHERE = """\
WITH (SELECT text_embedding FROM fashion WHERE caption = 'a black crop top with a round neckline') AS words
SELECT basename(image_path) AS picture, caption, cosineDistance(image_embedding, words) AS distance
FROM fashion
WHERE caption LIKE '%black%' AND image_path NOT LIKE '%.png'
ORDER BY distance
LIMIT 4"""

_BY_IMAGE = """\
SELECT basename(image_path) AS picture, caption, L2Distance(image_embedding, {picture:Array(Float32)}) AS distance
FROM fashion
ORDER BY distance
LIMIT 4"""

_BY_IMAGE_WHERE = """\
SELECT caption, cosineDistance(text_embedding, {picture:Array(Float32)}) AS distance
FROM fashion
WHERE caption NOT LIKE '%shirt%'
ORDER BY distance
LIMIT 3"""

_LARGE = """\
SELECT url, caption, round(similarity, 3) AS similarity
FROM laion
ORDER BY L2Distance(image_embedding, {words:Array(Float32)})
LIMIT 5"""

_LARGE_WHERE = """\
SELECT url, caption, round(similarity, 3) AS similarity
FROM laion
WHERE NSFW = 'UNLIKELY' AND width >= 1024
ORDER BY L2Distance(image_embedding, {words:Array(Float32)})
LIMIT 5"""


def run(
    print_line: PrintLine,
    folder: str | os.PathLike[str] | None = None,
    *,
    rows: int = ROWS,
    emoji: int = demo_emoji.ALL,
) -> None:
    """Run the demo. print_line: where its lines go. folder: kept, with the database `demo.db` in it; it must be empty.

    rows: size of the part that is made; emoji: how many are embedded, 144 or more. Raises StorageError where the folder
    holds something.
    """
    with ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="clipql-demo-"))
        elif Path(folder).exists() and any(Path(folder).iterdir()):
            raise StorageError(f"{folder} is not empty: name a new folder for the demo")
        db = stack.enter_context(connect(Path(folder) / "demo.db"))
        show = _Show(db, print_line)
        show.ask(f"SET output_format_pretty_max_value_width = {WIDEST}", quiet=True)
        _real(show, db)
        demo_emoji.run(show, db, Path(folder), emoji)
        _large(show, db, Path(folder) / "part", rows)


class _Show:
    """Runs statements and prints them as a shell would."""

    def __init__(self, db: Database, print_line: PrintLine) -> None:
        self._db, self.line = db, print_line

    def title(self, text: str) -> None:
        """A heading."""
        self.line("")
        self.line(text)
        self.line("─" * len(text))

    def ask(self, sql: str, params: Mapping[str, Any] | None = None, *, quiet: bool = False) -> Answer:
        """Run a statement and print it with its table, unless it is to be quiet."""
        answer = self._db.execute(sql, params, format="PrettyCompact")
        if not quiet:
            self.line("")
            for line in [*sql.splitlines(), "", *answer.output.data.decode("utf-8", "replace").splitlines()]:
                self.line(line)
        return answer


def _real(show: _Show, db: Database) -> None:
    """Nine pictures of a shop, their captions, and CLIP's vectors of both."""
    with as_file(files("clipql.data") / "fashion9") as source:
        show.title("Real data: nine pictures and their captions, embedded by CLIP ViT-B/32")
        report = db.ingest(source, table="fashion")
        show.line(f"{report.rows} rows in {report.seconds:.2f} s, each with an image vector and a text vector")
        picture = np.load(source / "img_emb" / "img_emb_0.npy")[4]
    show.title("Which pictures look like these words? The caption's vector comes from a subquery")
    show.ask(_BY_CAPTION)
    show.title("The same with WHERE: only black ones, no PNG files")
    show.ask(_BY_CAPTION_WHERE)
    show.title("Which pictures look like img5.jpg? Its vector is the parameter `picture`")
    show.ask(_BY_IMAGE, {"picture": picture})
    show.title("Which captions fit img5.jpg, if no shirt may be in them?")
    show.ask(_BY_IMAGE_WHERE, {"picture": picture})


def _large(show: _Show, db: Database, folder: Path, rows: int) -> None:
    """A part shaped as LAION-400M's, with made-up vectors that lie as CLIP's do."""
    show.title(f"A part of {rows:,} rows, shaped as LAION-400M's, with vectors that lie as CLIP's do")
    began = time.perf_counter()
    synthetic.write_parts(folder, rows=rows, queries=1 + WARM_QUERIES, seed=1)
    show.line(f"made in {time.perf_counter() - began:.1f} s")
    report = db.ingest(folder, table="laion")
    show.line(f"taken in, synced to disk: {report.seconds:.2f} s, {report.rows / report.seconds:,.0f} rows/s")
    words = np.load(folder / "queries" / "text.npy")
    first = show.ask(_LARGE, {"words": words[0]})
    show.line("")
    show.line(f"exact: {_compared(first):,} vectors compared")
    show.line(f"first query: {1000 * first.elapsed:.0f} ms, warm: {_warm(show, _LARGE, words[1:]):.0f} ms (median)")
    filtered = show.ask(_LARGE_WHERE, {"words": words[0]})
    show.line("")
    show.line(f"exact, with WHERE: {_compared(filtered):,} vectors compared")
    show.line(f"warm: {_warm(show, _LARGE_WHERE, words[1:]):.0f} ms (median)")


def _compared(answer: Answer) -> int:
    return sum(step.cost.rows_scanned for step in answer.steps)


def _warm(show: _Show, sql: str, words: NDArray[np.float32]) -> float:
    """The median time of a statement over query vectors, in milliseconds."""
    return 1000 * statistics.median(show.ask(sql, {"words": word}, quiet=True).elapsed for word in words)
