"""Writes one LAION part: `img_emb/img_emb_N.npy`, `text_emb/text_emb_N.npy`, `metadata/metadata_N.parquet`.

What must stay true: a file under its final name is whole; memory does not grow with the part (vectors go to their
files, metadata to a scratch file until the types of all its columns are known); the row counts of the files agree.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipql.encode.embed.columns import as_text, fitted, further, own_fields, unified
from clipql.encode.embed.rows import Row
from clipql.storage import files
from clipql.storage.vectors.segments import HEADER, header

MODEL_KEY, FAILED_KEY = b"clipql.model", b"clipql.failed"
IMAGE, TEXT = "img_emb", "text_emb"
_CHUNK_ROWS = 8192


def part_files(out: Path, number: int) -> dict[str, Path]:
    """Where the files of a part lie, by kind."""
    return {
        IMAGE: out / IMAGE / f"{IMAGE}_{number}.npy",
        TEXT: out / TEXT / f"{TEXT}_{number}.npy",
        "metadata": out / "metadata" / f"metadata_{number}.parquet",
    }


class _Abandoned(Exception):
    """Tells an open file that nobody will finish it."""


class _Vectors:
    """A float16 `.npy` file whose number of rows is known at its end only."""

    def __init__(self, path: Path, dimension: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stack = contextlib.ExitStack()
        self._path, self._dimension = path, dimension
        self._file: BinaryIO = self._stack.enter_context(files.new_file(path))
        self._file.write(b"\0" * HEADER)
        self.rows = 0

    def append(self, vectors: NDArray[np.float32]) -> None:
        """Add (n, dimension) vectors."""
        view = memoryview(np.ascontiguousarray(vectors, "<f2").tobytes())
        with files.translated(self._path, "writing"):
            while view:
                view = view[self._file.write(view) :]
        self.rows += len(vectors)

    def finish(self) -> None:
        with files.translated(self._path, "writing"):
            self._file.seek(0)
            self._file.write(header(self.rows, self._dimension, np.dtype("<f2")))
        self._stack.close()
        files.sync_folder(self._path.parent)

    def abandon(self) -> None:
        with contextlib.suppress(_Abandoned):
            self._stack.__exit__(_Abandoned, _Abandoned(), None)


class PartWriter:
    """One part on its way; `finish` gives its files their names, `abandon` leaves nothing behind.

    text: whether captions get vectors: None decides it by the first caption, and gives the rows before it `blank`'s.
    """

    def __init__(
        self, out: Path, number: int, *, model: str, dimension: int, pictures: bool, text: bool | None
    ) -> None:
        self.out, self.number, self.rows, self.errors = out, number, 0, 0
        self.text = text
        self._model, self._dimension, self._pictures = model, dimension, pictures
        self._files = part_files(out, number)
        self._own = own_fields(pictures)
        self._vectors: dict[str, _Vectors] = {}
        self._failed: list[int] = []  # rows without vectors before the texts' file was begun
        self._chunks: list[pa.Schema] = []
        self._busy = self._odd_paths = False
        self.left_out: set[str] = set()  # what the columns of the first part could not take
        self._waiting: list[pa.Table] = []
        self._spill_path = self._files["metadata"].with_suffix(".rows.tmp")
        self._spill_path.parent.mkdir(parents=True, exist_ok=True)
        with files.translated(self._spill_path, "writing"):
            self._spill = open(self._spill_path, "w+b")  # noqa: SIM115  closed by finish and abandon
        if pictures:
            self._vectors[IMAGE] = _Vectors(self._files[IMAGE], dimension)
        if text:
            self._vectors[TEXT] = _Vectors(self._files[TEXT], dimension)

    def begin_texts(self, blank: NDArray[np.float32]) -> None:
        """Give captions vectors from here on. blank: the vector of no words at all, for the rows that came before."""
        self.text = True
        writer = self._vectors[TEXT] = _Vectors(self._files[TEXT], self._dimension)
        failed, done = np.array(self._failed, np.int64), 0
        while done < self.rows:
            block = np.tile(blank, (min(_CHUNK_ROWS, self.rows - done), 1))
            block[failed[(failed >= done) & (failed < done + len(block))] - done] = 0
            writer.append(block)
            done += len(block)

    def append(
        self,
        rows: Sequence[Row],
        errors: Sequence[str],
        *,
        pictures: NDArray[np.float32] | None = None,
        texts: NDArray[np.float32] | None = None,
        sizes: Sequence[tuple[int, int]] = (),
        similarity: Sequence[float | None] = (),
    ) -> None:
        """Add rows with their vectors, (n, dimension) float32, zeros where errors[i] says why there are none."""
        self._busy = True
        for kind, vectors in ((IMAGE, pictures), (TEXT, texts)):
            if vectors is not None:
                self._vectors[kind].append(vectors)
        own: dict[str, list[Any]] = {
            "caption": [as_text(r.caption) for r in rows],
            "error": [as_text(e) for e in errors],
        }
        if self._pictures:
            paths = [_path(r.path) for r in rows]
            self._odd_paths = self._odd_paths or not all(map(_is_text, paths))
            own["image_path"] = paths
            own["similarity"] = list(similarity)
            own["width"], own["height"] = ([s[i] for s in sizes] for i in (0, 1))
        kinds = {f.name: pa.binary() if f.name == "image_path" else f.type for f in self._own}
        columns = {name: pa.array(own[name], kind) for name, kind in kinds.items()}
        columns |= further(rows, list(columns))
        self._waiting.append(pa.table(columns))
        failed = [self.rows + i for i, error in enumerate(errors) if error]
        if self.text is None:
            self._failed += failed
        self.rows, self.errors = self.rows + len(rows), self.errors + len(failed)
        if sum(t.num_rows for t in self._waiting) >= _CHUNK_ROWS:
            self._flush()
        self._busy = False

    @property
    def whole(self) -> bool:
        """Whether what has come so far can be finished: false where Ctrl-C fell in the middle of a write."""
        return not self._busy and self.rows > 0 and all(v.rows == self.rows for v in self._vectors.values())

    def _flush(self) -> None:
        if not self._waiting:
            return
        types = unified([t.schema for t in self._waiting])
        chunk = pa.concat_tables([fitted(t, types) for t in self._waiting])
        self._waiting.clear()
        with files.translated(self._spill_path, "writing"), pa.ipc.new_stream(self._spill, chunk.schema) as stream:
            stream.write_table(chunk.combine_chunks())
        self._chunks.append(chunk.schema)

    def finish(self) -> None:
        """Write the metadata and give all files their names, the metadata last."""
        self._flush()
        schema = self._schema()
        path = self._files["metadata"]
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(files.new_file(path))
            buffered = io.BufferedWriter(raw, 1 << 20)
            self._spill.seek(0)
            with pq.ParquetWriter(buffered, schema, compression="zstd") as writer:
                for _ in self._chunks:
                    table = pa.ipc.open_stream(self._spill).read_all()
                    whole = fitted(table, {f.name: f.type for f in schema})
                    self._note_losses(table, whole)
                    writer.write_table(whole.cast(schema))
            buffered.flush()
            buffered.detach()
            for vectors in self._vectors.values():
                vectors.finish()
        files.sync_folder(path.parent)
        self._drop_spill()

    def _schema(self) -> pa.Schema:
        """The columns of the first part are those of all: `ingest` takes parts that agree into one table."""
        own = {f.name: f for f in self._own}
        if self._odd_paths:  # Parquet's text is UTF-8, and a name of a file need not be
            own["image_path"] = pa.field("image_path", pa.binary(), nullable=False)
        metadata = {MODEL_KEY: self._model, FAILED_KEY: str(self.errors)}
        if self.number:
            first = pq.read_schema(part_files(self.out, 0)["metadata"])
            return pa.schema([own.get(f.name, f) for f in first], metadata)
        types = unified([pa.schema(self._own), *self._chunks])
        kinds = {name: pa.string() if pa.types.is_null(kind) else kind for name, kind in types.items()}
        return pa.schema([own.get(name) or pa.field(name, kind) for name, kind in kinds.items()], metadata)

    def _note_losses(self, before: pa.Table, after: pa.Table) -> None:
        for name in before.schema.names:
            if name not in after.schema.names:
                self.left_out.add(name)
            elif after.column(name).null_count > before.column(name).null_count:
                self.left_out.add(f"{name} where it is no {after.schema.field(name).type}")

    def abandon(self) -> None:
        """Remove what was written of the part."""
        for vectors in self._vectors.values():
            vectors.abandon()
        self._drop_spill()

    def _drop_spill(self) -> None:
        self._spill.close()
        self._spill_path.unlink(missing_ok=True)


def _path(path: str) -> bytes:
    """A path byte for byte, as Python has it from the file system."""
    try:
        return path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return as_text(path).encode()


def _is_text(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True
