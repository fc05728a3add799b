"""What a LAION part looks like on disk, and which files belong together.

A part is `metadata_N.parquet` with `img_emb_N.npy`, `text_emb_N.npy` or both, side by side or in folders of their own
(`img_emb/`, `text_emb/`, `metadata/` as clip-retrieval writes them; `images/`, `texts/` as LAION-400M names them). The
number N pairs them. Finding parts reads no vectors.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from clipql.brief import Brief
from clipql.errors import IngestError, StorageError, VectorError
from clipql.ingest.part_metadata import part_model, rows_without_vectors
from clipql.storage import files
from clipql.storage.vectors import segments
from clipql.storage.vectors.segments import ArrayFile

IMAGE, TEXT = "image_embedding", "text_embedding"
_NAME = re.compile(r"(?P<kind>img_emb|image_emb|text_emb|metadata)_(?P<number>\d+)\.(?P<ending>npy|npz|parquet)\Z")
_KINDS = {
    ("img_emb", "npy"): IMAGE,
    ("image_emb", "npy"): IMAGE,
    ("text_emb", "npy"): TEXT,
    ("img_emb", "npz"): IMAGE,
    ("image_emb", "npz"): IMAGE,
    ("text_emb", "npz"): TEXT,
    ("metadata", "parquet"): "metadata",
}
SAMPLE = 1 << 16
# what pyarrow raises for Parquet files that are not as they should be
DAMAGED = (pa.ArrowException, OSError, ValueError, LookupError, ArithmeticError, MemoryError)


@dataclass(frozen=True, repr=False)
class PartFiles(Brief):
    """The files of one part; `image` or `text` may be missing, not both."""

    number: int
    metadata: Path
    image: Path | None
    text: Path | None

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"part {self.number} ({self.metadata})"


@dataclass(frozen=True, repr=False)
class CheckedPart(Brief):
    """A part whose headers agree: rows, its vectors' files by column, the Arrow schema of its metadata.

    fingerprint: of the files' sizes and of their first and last 64 KB, the same wherever the files lie. model: what
    made its vectors, where it says so. failed: how many of its rows have an error in place of vectors. fetched_from:
    the address of its metadata, where its files lie here only for a while.
    """

    files: PartFiles
    rows: int
    vectors: dict[str, ArrayFile]
    schema: pa.Schema
    fingerprint: str
    model: str | None = None
    failed: int = 0
    fetched_from: str | None = None


def is_of_part(name: str) -> bool:
    """Whether a file is named like one of a LAION part."""
    return _NAME.match(name) is not None


def parse_numbers(text: str) -> frozenset[int]:
    """`0-9,12` as numbers. Raises IngestError for anything else."""
    found: set[int] = set()
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", piece)
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise IngestError(f"parts {text!r}: expected numbers and ranges such as 0-9,12")
        if len(match[2] or match[1]) > 7:
            raise IngestError(f"parts {text!r}: expected numbers below ten million")
        found.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return frozenset(found)


def find_parts(sources: Sequence[str | os.PathLike[str]], numbers: frozenset[int] | None = None) -> list[PartFiles]:
    """The parts in folders, or of files, by number. Raises IngestError where something is missing or ambiguous."""
    parts: list[PartFiles] = []
    for source in sources:
        parts += _parts_of(Path(source), numbers)
    if not parts:
        wanted = "" if numbers is None else f" with the numbers {', '.join(map(str, sorted(numbers)[:10]))}"
        raise IngestError(
            f"no parts{wanted} in {', '.join(map(str, sources))}: expected metadata_N.parquet with img_emb_N.npy or "
            "text_emb_N.npy, side by side or in folders metadata/, img_emb/ and text_emb/; or files whose rows hold "
            "their vectors (.parquet, .arrow, .feather, .jsonl, .csv)"
        )
    return parts


def _parts_of(source: Path, numbers: frozenset[int] | None) -> list[PartFiles]:
    if not source.exists():
        raise IngestError(f"there is no {source}")
    if source.is_file():
        match = _NAME.match(source.name)
        if not match:
            raise IngestError(
                f"{source} is not named like a file of a part: metadata_N.parquet, img_emb_N.npy or text_emb_N.npy; "
                "nor like one whose rows hold their vectors: .parquet, .arrow, .feather, .jsonl or .csv"
            )
        folder = (
            source.parent.parent
            if source.parent.name in ("metadata", "img_emb", "text_emb", "images", "texts")
            else source.parent
        )
        only = frozenset([int(match["number"])])
        return _parts_of(folder, only)
    found: dict[int, dict[str, Path]] = {}
    for path in _candidates(source):
        match = _NAME.match(path.name)
        kind = _KINDS.get((match["kind"], match["ending"])) if match else None
        if not match or not kind or (numbers is not None and int(match["number"]) not in numbers):
            continue
        pieces = found.setdefault(int(match["number"]), {})
        if kind in pieces:
            raise IngestError(
                f"part {match['number']} has two files for its {kind}, {pieces[kind]} and {path}: name one folder"
            )
        pieces[kind] = path
    return [_part(number, found[number]) for number in sorted(found)]


def _candidates(folder: Path) -> Iterable[Path]:
    if not folder.is_dir():
        raise IngestError(f"{folder} is neither a file nor a folder; expected a folder of parts")
    for path in sorted(folder.iterdir()):
        if path.is_file():
            yield path
        elif path.is_dir() and not path.name.startswith("."):
            yield from sorted(p for p in path.iterdir() if p.is_file())


def _part(number: int, pieces: dict[str, Path]) -> PartFiles:
    if "metadata" not in pieces:
        raise IngestError(
            f"part {number}: there is no metadata_{number}.parquet for {next(iter(pieces.values()))}; fetch it too"
        )
    if IMAGE not in pieces and TEXT not in pieces:
        raise IngestError(
            f"part {number}: {pieces['metadata']} has neither img_emb_{number}.npy nor text_emb_{number}.npy beside it"
        )
    return PartFiles(number, pieces["metadata"], pieces.get(IMAGE), pieces.get(TEXT))


def natural(name: str) -> list[tuple[int, str]]:
    """A key of sorting by which part-2 comes before part-10."""
    return [(int(t), "") if t.isdigit() else (-1, t) for t in re.split(r"(\d+)", name)]


def check_file(path: Path, ending: str) -> int:
    """Open one file of a part, `.npy` or `.parquet`, and return its rows. Raises IngestError where it is not whole."""
    return _read_vectors(path).rows if ending == ".npy" else read_metadata(path)[0]


def _read_vectors(path: Path) -> ArrayFile:
    try:
        return segments.read_header(path)
    except VectorError as error:
        raise IngestError(str(error)) from error


def read_metadata(path: Path) -> tuple[int, pa.Schema]:
    """The rows and the schema that the footer of a part's metadata announces. Raises IngestError."""
    try:
        with open(path, "rb") as plain:
            if (begin := plain.read(4)) != b"PAR1":  # pyarrow looks at the end only
                raise IngestError(
                    f"{path} is not a whole Parquet file (it begins with {begin!r}, not with PAR1); fetch it again"
                )
        with pq.ParquetFile(path) as file:
            rows, schema = file.metadata.num_rows, file.schema_arrow
            if rows < 0 or not all(isinstance(name, str) for name in schema.names):  # also that they are UTF-8
                raise IngestError(f"{path} announces {rows:,} rows, so it is damaged; fetch it again")
            return rows, schema
    except DAMAGED as error:
        raise IngestError(f"{path} is not a whole Parquet file ({error}); fetch it again") from error


def check_part(part: PartFiles) -> CheckedPart:
    """Read the headers of a part's files and compare them.

    Raises IngestError, naming file and expectation, where one is damaged or their row counts differ.
    """
    vectors = {c: _read_vectors(p) for c, p in ((IMAGE, part.image), (TEXT, part.text)) if p}
    rows, schema = read_metadata(part.metadata)
    for array in vectors.values():
        if array.rows != rows:
            raise IngestError(
                f"{array.path} has {array.rows:,} vectors and {part.metadata} has {rows:,} rows: the files of a part "
                "must have the same number; fetch the shorter one again"
            )
    check_names(part.metadata, schema.names)
    model, failed = part_model(part.metadata, schema), rows_without_vectors(schema)
    return CheckedPart(part, rows, vectors, schema, _fingerprint(part), model, failed)


def check_names(path: Path, names: Sequence[str], used: Sequence[str] = (IMAGE, TEXT, "_row")) -> None:
    """Raise IngestError for a column that a table cannot have, or not beside the others. used: names of clipql's."""
    for place, name in enumerate(names, 1):
        if name in used:
            raise IngestError(f"{path} has a column {name}, a name that clipql uses: rename it")
        if not name:
            raise IngestError(f"{path}: column {place} of {len(names)} has no name: give it one, or leave it out")
        if name in names[: place - 1]:
            raise IngestError(
                f"{path} has two columns of one name, {names.index(name) + 1} and {place} of {len(names)}: {name}; "
                "rename one, or leave it out"
            )


def _fingerprint(part: PartFiles) -> str:
    return fingerprint_of([None if p is None else sample_of(p) for p in (part.metadata, part.image, part.text)])


def sample_of(path: Path) -> tuple[int, bytes, bytes]:
    """The size, the first and the last SAMPLE bytes of a file. Raises IngestError."""
    try:
        with files.translated(path, "reading"), open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(SAMPLE)
            file.seek(max(0, size - SAMPLE))
            return size, head, file.read(SAMPLE)
    except StorageError as error:
        raise IngestError(str(error)) from error


def fingerprint_of(samples: Sequence[tuple[int, bytes, bytes] | None]) -> str:
    """What tells a part from others: of metadata, image and text the size, the first and the last SAMPLE bytes."""
    digest = xxhash.xxh3_128()
    for sample in samples:
        if sample is None:
            digest.update(b"none")
            continue
        size, head, tail = sample
        digest.update(size.to_bytes(8, "little"))
        digest.update(head)
        digest.update(tail)
    return digest.hexdigest()
