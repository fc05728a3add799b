"""The demo's second part: pictures and words to vectors and back, with the small model that ships with clipql.

What must stay true: it is the real pipeline (embed, ingest, index, encode inside queries), run on files in a folder as
a user's own would be; and it says that this model knows emoji only.
"""

from __future__ import annotations

import tarfile
import time
from collections.abc import Callable, Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Protocol

from clipql.database import Database

MODEL = "clipql/emoji"
PICTURES = "emoji.tar"
ALL, HEART = 2543, "00144.png"


class Show(Protocol):
    """What prints headings, lines and statements with their tables."""

    line: Callable[[str], None]

    def title(self, text: str) -> None: ...

    def ask(self, sql: str, params: Mapping[str, Any] | None = None) -> object: ...


def unpack(folder: Path, most: int = ALL) -> Path:
    """The first `most` pictures and their captions as files in `folder`/pictures."""
    target = folder / "pictures"
    target.mkdir(parents=True, exist_ok=True)
    with as_file(files("clipql.data") / "emoji" / PICTURES) as archive, tarfile.open(archive) as opened:
        for member in opened:
            content = opened.extractfile(member) if int(Path(member.name).stem) <= most else None
            if content is not None:
                (target / Path(member.name).name).write_bytes(content.read())
    return target


def run(show: Show, db: Database, folder: Path, most: int = ALL) -> None:
    """Embed the emoji, take them in, index them, and ask by words, by a picture, and by sums of both."""
    from clipql.encode.clip import open_encoder
    from clipql.encode.embed import embed_pictures

    show.title("Pictures and words to vectors: emoji, with the small model that ships with clipql")
    show.line("This model was trained on these emoji and knows nothing else. For photographs get CLIP's own:")
    show.line("    clipql model pull openai/clip-vit-base-patch32")
    pictures = unpack(folder, most)
    began = time.perf_counter()
    embedded = embed_pictures([pictures], folder / "emoji", encoder=open_encoder(MODEL))
    show.line("")
    show.line(f"clipql embed images pictures emoji --model {MODEL}")
    show.line(f"    {embedded.rows:,} pictures and captions in {time.perf_counter() - began:.1f} s")
    report = db.ingest(folder / "emoji", table="emoji")
    show.line("clipql ingest emoji --table emoji")
    show.line(f"    {report.rows:,} rows in {report.seconds:.2f} s; their vectors remember the model")
    for sql in ("ALTER TABLE emoji ADD INDEX near image_embedding TYPE ivf('cosineDistance')",
                "ALTER TABLE emoji MATERIALIZE INDEX near"):  # fmt: skip
        show.line("")
        show.line(sql)
        db.sql(sql)
    for title, vector in (
        ("A word finds pictures", "encode_text('cat')"),
        (f"A picture finds others: the parameter `picture` is the path of {HEART}", "encode_image({picture:String})"),
        ("'cat' plus 'heart'", "encode_text('cat') + encode_text('heart')"),
        ("'face' minus 'smile'", "encode_text('face') - encode_text('smile')"),
    ):
        show.title(title)
        show.ask(_query(vector), {"picture": str(pictures / HEART)})


def _query(vector: str) -> str:
    return f"""\
SELECT basename(image_path) AS picture, caption,
    cosineDistance(image_embedding, {vector}) AS distance
FROM emoji
ORDER BY distance
LIMIT 5"""
