"""Lance data sets as sources: each fragment is one group of rows. Lance's library is imported here alone, where it is
needed.

What must stay true: a data set is read as it was when it was found, whatever is added or compacted meanwhile, as long
as that version is kept; rows that were deleted are none; a fragment is known by the names of its files, which Lance
never gives twice, so that fragments that are added later are new and the others are not.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from clipql.errors import IngestError

_VERSIONS = "_versions"  # the folder that every data set has
_AHEAD = 2  # batches that Lance reads ahead: by default 16


@dataclass(frozen=True)
class Fragment:
    """A fragment of a data set at a version. id: its number there. rows: those that were not deleted. bytes: of its
    files. digest: of their names.
    """

    id: int
    version: int
    rows: int
    bytes: int
    digest: str


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a Lance data set."""
    return folder.is_dir() and (folder / _VERSIONS).is_dir()


def fragments_of(folder: Path) -> tuple[pa.Schema, list[Fragment]]:
    """The columns of a data set, and its fragments in their order. Raises IngestError, naming the folder."""
    lance = _library(folder)
    try:
        data = lance.dataset(str(folder))
        return data.schema, [_told(folder, data.version, fragment) for fragment in data.get_fragments()]
    except Exception as error:  # Lance raises what it likes
        raise IngestError(f"{folder} is not a whole Lance data set ({error}); mend it, or copy it again") from error


def _told(folder: Path, version: int, fragment: Any) -> Fragment:
    paths = [file.path for file in fragment.data_files()]
    sizes = [(folder / "data" / path).stat().st_size for path in paths]
    # a column that was added later is in a file of its own: the rows are the same
    digest = xxhash.xxh3_64_hexdigest(paths[0].encode())
    return Fragment(int(fragment.fragment_id), int(version), int(fragment.count_rows()), sum(sizes), digest)


def batches(folder: Path, fragment: Fragment, rows: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
    """The rows of a fragment, about `rows` at a time. columns: those that are needed, None for all.

    Raises OSError where they cannot be read.
    """
    lance = _library(folder)
    try:
        found = lance.dataset(str(folder), version=fragment.version).get_fragment(fragment.id)
        yield from found.to_batches(columns=columns, batch_size=rows, batch_readahead=_AHEAD)
    except (GeneratorExit, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:
        raise OSError(str(error)) from error


def _library(folder: str | os.PathLike[str]) -> Any:
    try:
        import lance
    except ImportError as error:
        needed = "which needs Lance's library: pip install 'clipql[lance]'"
        raise IngestError(f"{folder} is a Lance data set, {needed}") from error
    return lance
