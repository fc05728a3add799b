"""Makes the database of the browser tests, in a process of its own: chDB serves one folder a process.

    python browser_data.py FOLDER PICTURES_URL [all]

`emoji`: pictures in files, from the bundled data set. `web`: the same kind of pictures at web addresses, some of them
gone, with captions and addresses that mean harm, rows that are not safe, and rows that are almost the same.
"""

from __future__ import annotations

import sys
import tarfile
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import clipql
from clipql.encode.clip import open_encoder

MODEL = "clipql/emoji"
WORDS = ("cat", "dog", "heart", "face", "star", "fish")
HOSTILE = "<img src=x onerror=\"document.title='hacked'\"><script>document.title='hacked'</script>"
SCRIPT_ADDRESS = "javascript:document.title='hacked'"
EMOJI, WEB = 180, 60


def write_part(folder: Path, image: np.ndarray, text: np.ndarray, metadata: pa.Table) -> None:
    """A LAION part."""
    for name in ("img_emb", "text_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    np.save(folder / "img_emb" / "img_emb_0.npy", image.astype(np.float16))
    np.save(folder / "text_emb" / "text_emb_0.npy", text.astype(np.float16))
    pq.write_table(metadata, folder / "metadata" / "metadata_0.parquet")


def chosen(table: pa.Table) -> list[dict]:
    """Rows that have to do with the words searched for, then others, in a fixed order."""
    rows = table.to_pylist()
    rows.sort(key=lambda row: (not any(word in row["name"].split() for word in WORDS), row["key"]))
    return rows


def main(folder: Path, pictures_url: str, most: int) -> None:
    """Both tables."""
    with as_file(files("clipql.data").joinpath("emoji")) as source:
        rows = chosen(pq.read_table(source / "emoji.parquet"))[:most]
        with tarfile.open(source / "emoji.tar") as tar:
            (folder / "pictures").mkdir(parents=True)
            for row in rows:
                member = tar.extractfile(f"{row['key']}.png")
                assert member is not None
                (folder / "pictures" / f"{row['key']}.png").write_bytes(member.read())
    paths = [folder / "pictures" / f"{row['key']}.png" for row in rows]
    encoder = open_encoder(MODEL)
    pictures, words = encoder.encode_pictures(paths), encoder.encode_texts([row["name"] for row in rows])
    emoji = {
        "caption": [row["name"] for row in rows],
        "category": [row["category"] for row in rows],
        "image_path": [str(path) for path in paths],
        "width": [width for width, _ in pictures.sizes],
        "height": [height for _, height in pictures.sizes],
        "letters": [len(row["name"]) for row in rows],
        "key": [str(row["key"]) for row in rows],
    }
    write_part(folder / "parts-emoji", pictures.vectors, words, pa.table(emoji))

    image, text = pictures.vectors[:WEB].copy(), words[:WEB]
    image[10:14] = np.eye(1, image.shape[1])  # four of the same picture, unlike all others
    names = emoji["caption"][:WEB]
    urls = [f"{pictures_url}/{'gone' if i % 6 == 4 else 'good'}/{rows[i]['key']}.png" for i in range(WEB)]
    names[0], names[1], urls[1] = HOSTILE, "an address that is a script", SCRIPT_ADDRESS
    web = {
        "url": urls,
        "caption": names,
        "NSFW": ["NSFW" if i % 7 == 6 else "UNLIKELY" for i in range(WEB)],
        "similarity": [0.25 + i / 1000 for i in range(WEB)],
        "width": [400 + 10 * i for i in range(WEB)],
        "height": [400] * WEB,
    }
    write_part(folder / "parts-web", image, text, pa.table(web))
    with clipql.connect(folder / "test.db") as db:
        db.ingest(folder / "parts-emoji", table="emoji")
        db.ingest(folder / "parts-web", table="web")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.maxsize if sys.argv[3:] == ["all"] else EMOJI)
