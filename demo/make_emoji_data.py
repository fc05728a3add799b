"""Make the emoji collection that ships with clipql: `emoji.tar` (pictures and captions) and `emoji.parquet`.

    python demo/make_emoji_data.py SOURCES clipql/data/emoji

SOURCES holds the unpacked npm packages emoji-datasource-google, cldr-annotations-full and
cldr-annotations-derived-full, each in a folder of its name (demo/README.md has the commands). What must stay true: the
same sources give the same bytes.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

# Of the five skin tones two are kept, so that people do not crowd out everything else
TONES = {"1F3FB", "1F3FF"}
COLOURS = 48  # of a picture's palette: no difference is seen at 64 pixels, and a file is 1.3 KB
SELECTOR = "\ufe0f"  # asks for the colourful form of a character; CLDR leaves it out of most keys


@dataclass(frozen=True)
class Emoji:
    """One picture and what Unicode calls it."""

    character: str
    name: str
    keywords: tuple[str, ...]
    group: str
    picture: Path

    @property
    def caption(self) -> str:
        """As people write one: the name, then the keywords that are not in the name already."""
        said = set(re.findall(r"\w+", self.name.lower()))
        more = [word for word in self.keywords if not set(re.findall(r"\w+", word.lower())) <= said]
        return ", ".join([self.name, *more])


def read_emoji(sources: Path) -> list[Emoji]:
    """Every emoji that has a picture, in Unicode's order, with two of the five skin tones."""
    words = _annotations(sources)
    pictures = sources / "emoji-datasource-google" / "img" / "google" / "64"
    listed = json.loads((sources / "emoji-datasource-google" / "emoji.json").read_text(encoding="utf-8"))
    found = []
    for entry in sorted(listed, key=lambda entry: entry["sort_order"]):
        for form in _forms(entry):
            character = "".join(chr(int(code, 16)) for code in form["unified"].split("-"))
            said = words.get(character) or words[character.replace(SELECTOR, "")]
            found.append(
                Emoji(character, said["tts"][0], tuple(said["default"]), entry["category"], pictures / form["image"])
            )
    return found


def _annotations(sources: Path) -> dict[str, dict[str, list[str]]]:
    found: dict[str, dict[str, list[str]]] = {}
    for package, key in (("full", "annotations"), ("derived-full", "annotationsDerived")):
        file = sources / f"cldr-annotations-{package}" / key / "en" / "annotations.json"
        found |= json.loads(file.read_text(encoding="utf-8"))[key]["annotations"]
    return found


def _forms(entry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if entry["has_img_google"]:
        yield entry
    for tone, form in entry.get("skin_variations", {}).items():
        if tone in TONES and form["has_img_google"]:
            yield form


def png(file: Path) -> bytes:
    """The picture on white, with a palette: what a model sees must not hang on how a reader treats transparency."""
    with Image.open(file) as image:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
    small = white.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    written = io.BytesIO()
    small.save(written, "PNG", optimize=True)
    return written.getvalue()


def main(sources: Path, out: Path) -> None:
    """Write both files."""
    out.mkdir(parents=True, exist_ok=True)
    emoji = read_emoji(sources)
    with tarfile.open(out / "emoji.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, each in enumerate(emoji, 1):
            for suffix, content in (("png", png(each.picture)), ("txt", each.caption.encode())):
                member = tarfile.TarInfo(f"{number:05}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    table = pa.table(
        {
            "key": [f"{number:05}" for number in range(1, len(emoji) + 1)],
            "emoji": [each.character for each in emoji],
            "name": [each.name for each in emoji],
            "keywords": [list(each.keywords) for each in emoji],
            "caption": [each.caption for each in emoji],
            "category": [each.group for each in emoji],
        }
    )
    pq.write_table(table, out / "emoji.parquet", compression="zstd")
    print(f"{len(emoji):,} emoji, {(out / 'emoji.tar').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
