"""Which files are named by paths and folders, of what form each is, and what its rows are made of.

What must stay true: finding and opening reads no vectors; what is not a whole file of a known form is refused by name.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from clipql.brief import Brief
from clipql.errors import IngestError, VectorError
from clipql.ingest import layout
from clipql.ingest.layout import DAMAGED
from clipql.ingest.records import lance_files
from clipql.ingest.records.lance_files import Fragment
from clipql.ingest.records.nesting import Shallow
from clipql.storage.vectors import segments
from clipql.storage.vectors.segments import ArrayFile

PARQUET, ARROW, STREAM, JSON, CSV, TSV, LANCE = "parquet", "arrow", "stream", "json", "csv", "tsv", "lance"
_ENDINGS = {
    ".parquet": PARQUET, ".pq": PARQUET, ".arrow": ARROW, ".feather": ARROW, ".ipc": ARROW, ".arrows": ARROW,
    ".jsonl": JSON, ".ndjson": JSON, ".json": JSON, ".csv": CSV, ".tsv": TSV,
}  # fmt: skip
_PACKED = (".gz", ".bz2", ".zst")
TEXT_BLOCK = 4 << 20  # bytes of JSON or CSV that are read at once
_LINE = 2_048  # about so many bytes of a text file are taken for a row where its progress is told
# the column that the vectors of a `.npy` get where no name is given
BESIDE = "vector"


@dataclass(frozen=True, repr=False)
class RecordFile(Brief):
    """A file of rows, or a fragment of a Lance data set. form: one of the constants above. groups: the rows of each of
    its row groups (Parquet) or record batches (Arrow), or of the fragment; one of None where only reading tells. bytes:
    of its rows, unpacked, by group. digest: of its size, its first and last 64 KB. origin: the address that it was
    fetched from. beside: a `.npy` with the vector of each row, whose column has the name `beside_name`.
    """

    path: Path
    form: str
    schema: pa.Schema
    groups: tuple[int | None, ...]
    bytes: tuple[int, ...]
    digest: str
    beside: ArrayFile | None = None
    beside_name: str = BESIDE
    origin: str = ""
    fragment: Fragment | None = None

    @property
    def unit(self) -> str:
        """What a group of it is called."""
        return {PARQUET: "row group", ARROW: "record batch", LANCE: "fragment"}.get(self.form, "file")

    def weight(self, group: int) -> int:
        """The rows of a group, or about how many they are."""
        rows = self.groups[group]
        return rows if rows is not None else max(1, self.bytes[group] // _LINE)

    def where(self, group: int, row: int) -> str:
        """A row, as messages name it. row: from 0 within the group."""
        if self.fragment is not None:
            return f"{self.path}: row {row:,} of fragment {self.fragment.id}"
        if self.form in (PARQUET, ARROW):
            return f"{self.origin or self.path}: row {row:,} of {self.unit} {group}"
        return f"{self.origin or self.path}: row {row:,}"


def are_records(sources: Sequence[str | os.PathLike[str]]) -> bool:
    """Whether paths name files of rows with vectors, and not LAION parts."""
    found = False
    for source in map(Path, sources):
        if lance_files.is_dataset(source):
            found = True
        elif source.is_dir():
            paths = _inside(source)
            if any(layout.is_of_part(p.name) for p in paths if p.suffix != ".parquet"):
                return False
            found = found or any(_form(p) for p in paths)
        elif layout.is_of_part(source.name):
            return False
        else:
            found = found or _form(source) is not None
    return found


def is_of_rows(name: str) -> bool:
    """Whether a file is one of rows by its name."""
    return _form(Path(name)) is not None


def find_files(sources: Sequence[str | os.PathLike[str]], names: Sequence[str] = ()) -> list[RecordFile]:
    """The files that are named or lie in folders, by path, opened. names: of columns that hold vectors; the first that
    a file itself lacks is that of the `.npy` beside it. Raises IngestError, naming the file.
    """
    paths: list[Path] = []
    for source in map(Path, sources):
        if not source.exists():
            raise IngestError(f"there is no {source}")
        whole = lance_files.is_dataset(source) or not source.is_dir()
        inside = [source] if whole else [p for p in _inside(source) if _form(p) or p.suffix == ".npy"]
        if not inside:
            raise IngestError(f"{source} has no file of rows in it: expected names that end in {', '.join(_ENDINGS)}")
        paths += inside
    paths = list(dict.fromkeys(paths))
    arrays = [p for p in paths if p.suffix == ".npy"]
    rows = [p for p in paths if p.suffix != ".npy"]
    return [file for path, beside in _paired(rows, arrays) for file in _opened(path, beside, names)]


def _inside(folder: Path) -> list[Path]:
    """The files and Lance data sets in a folder and in those below it, in the order of their names, hidden ones left
    out.
    """
    found: list[Path] = []
    for path in sorted(folder.iterdir(), key=lambda p: layout.natural(p.name)):
        if path.name.startswith((".", "_")):
            continue
        found += _inside(path) if path.is_dir() and not lance_files.is_dataset(path) else [path]
    return found


def _paired(rows: list[Path], arrays: list[Path]) -> list[tuple[Path, Path | None]]:
    """Each file of rows with the `.npy` of its stem, or the only `.npy` with the only file of rows."""
    if len(rows) == len(arrays) == 1:
        return [(rows[0], arrays[0])]
    stems = {(a.parent, a.stem): a for a in arrays}
    pairs = [(r, stems.pop((r.parent, _stem(r)), None)) for r in rows]
    if stems:
        lonely = next(iter(stems.values()))
        raise IngestError(
            f"{lonely} has no file of rows beside it: expected one of its name, as {lonely.with_suffix('.csv').name} is"
        )
    return pairs


def _stem(path: Path) -> str:
    return Path(path.stem).stem if path.suffix in _PACKED else path.stem


def _form(path: Path) -> str | None:
    if lance_files.is_dataset(path):
        return LANCE
    ending = path.suffix.lower()
    if ending in _PACKED:
        inner = _ENDINGS.get(Path(path.stem).suffix.lower())
        return inner if inner in (JSON, CSV, TSV) else None
    return _ENDINGS.get(ending)


def _opened(path: Path, beside: Path | None, names: Sequence[str]) -> list[RecordFile]:
    """A file, or a Lance data set as one for each fragment."""
    if not lance_files.is_dataset(path):
        return [_open(path, beside, names)]
    if beside is not None:
        raise IngestError(f"{beside} lies beside the Lance data set {path}, which holds its vectors itself: name one")
    schema, fragments = lance_files.fragments_of(path)
    layout.check_names(path, schema.names, ("_row",))
    if not fragments:
        raise IngestError(f"{path} is a Lance data set without rows")
    return [RecordFile(path, LANCE, schema, (f.rows,), (f.bytes,), f.digest, fragment=f) for f in fragments]


def _open(path: Path, beside: Path | None, names: Sequence[str]) -> RecordFile:
    form = _form(path)
    if form is None:
        raise IngestError(f"{path}: its name does not say what it is; expected one that ends in {', '.join(_ENDINGS)}")
    try:
        found = _OPENERS[form](path)
    except DAMAGED as error:
        told = f"{path} is not a whole file of {_NAMES[form]} ({error}); mend it, or fetch it again"
        raise IngestError(told) from error
    samples = [layout.sample_of(path), layout.sample_of(beside) if beside else None]
    found = dataclasses.replace(found, digest=layout.fingerprint_of(samples))
    if beside is not None:
        name = next((n for n in names if n not in found.schema.names), BESIDE)
        found = _with_array(found, beside, name)
    layout.check_names(path, found.schema.names, ("_row",))
    return found


def _with_array(found: RecordFile, beside: Path, name: str) -> RecordFile:
    try:
        array = segments.read_header(beside)
    except VectorError as error:
        raise IngestError(str(error)) from error
    rows = sum(n or 0 for n in found.groups)
    if None not in found.groups and array.rows != rows:
        raise IngestError(
            f"{beside} has {array.rows:,} vectors and {found.path} has {rows:,} rows: each row needs one vector"
        )
    if name in found.schema.names:
        raise IngestError(f"{found.path} has a column {name} itself, so name the column of {beside} otherwise")
    kind = pa.list_(pa.float16() if array.dtype.name == "float16" else pa.float32(), array.dimension)
    return dataclasses.replace(found, schema=found.schema.append(pa.field(name, kind)), beside=array, beside_name=name)


def _open_parquet(path: Path) -> RecordFile:
    layout.read_metadata(path)
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        rows, sizes = tuple(g.num_rows for g in groups), tuple(g.total_byte_size for g in groups)
        return RecordFile(path, PARQUET, file.schema_arrow, rows, sizes, "")


def _open_arrow(path: Path) -> RecordFile:
    with pa.OSFile(str(path), "rb") as plain:
        begin = plain.read(6)
    if begin[:4] == b"FEA1":
        raise IngestError(f"{path} is Feather of version 1, which pyarrow calls outdated; write it again as version 2")
    if begin != b"ARROW1":
        with pa.OSFile(str(path), "rb") as plain, pa.ipc.open_stream(plain) as stream:
            return RecordFile(path, STREAM, stream.schema, (None,), (path.stat().st_size,), "")
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped) as file:
        schema, count = file.schema, file.num_record_batches
    # only one column is unpacked to count the rows
    narrow = min(range(len(schema)), key=lambda i: (pa.types.is_nested(schema.types[i]), i), default=None)
    options = pa.ipc.IpcReadOptions(included_fields=[] if narrow is None else [narrow])
    with pa.memory_map(str(path)) as mapped, pa.ipc.open_file(mapped, options=options) as file:
        rows = tuple(file.get_batch(i).num_rows for i in range(count))
    size = path.stat().st_size
    return RecordFile(path, ARROW, schema, rows, tuple(size * n // max(1, sum(rows)) for n in rows), "")


def _open_json(path: Path) -> RecordFile:
    with pa.input_stream(str(path), compression="detect") as plain:
        begin = plain.read(1 << 12).lstrip()
    if begin[:1] == b"[":
        raise IngestError(f"{path} is one JSON array; expected an object a line: jq -c '.[]' {path.name} writes it so")
    options = pa.json.ReadOptions(block_size=TEXT_BLOCK)
    with (
        pa.input_stream(str(path), compression="detect") as plain,
        pa.json.open_json(pa.PythonFile(Shallow(plain), mode="r"), options) as reader,
    ):
        return RecordFile(path, JSON, reader.schema, (None,), (path.stat().st_size,), "")


def _open_csv(path: Path) -> RecordFile:
    with csv_reader(path, {}) as reader:
        form = TSV if _form(path) == TSV else CSV
        return RecordFile(path, form, reader.schema, (None,), (path.stat().st_size,), "")


def csv_reader(path: Path, kinds: dict[str, pa.DataType]) -> pa.csv.CSVStreamingReader:
    """A CSV or TSV file from its beginning. kinds: of columns whose values are not to tell it. Raises DAMAGED."""
    return pa.csv.open_csv(
        pa.input_stream(str(path), compression="detect"),
        pa.csv.ReadOptions(block_size=TEXT_BLOCK, use_threads=False),
        pa.csv.ParseOptions(delimiter="\t" if _form(path) == TSV else ",", newlines_in_values=True),
        pa.csv.ConvertOptions(column_types=kinds),
    )


_OPENERS = {
    PARQUET: _open_parquet, ARROW: _open_arrow, JSON: _open_json, CSV: _open_csv, TSV: _open_csv,
}  # fmt: skip
_NAMES = {PARQUET: "Parquet", ARROW: "Arrow", JSON: "JSON lines", CSV: "CSV", TSV: "tab-separated values"}
