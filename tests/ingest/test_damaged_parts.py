"""Parts with damage of every kind: an error that names the file, or the right rows; never a crash, never wrong data.

Bytes in the middle of a part may be anything, so damage there shows only by a digest. What is damaged here is what says
how bytes are to be read: headers, footers and lengths.
"""

from __future__ import annotations

import io
import resource
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cases import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parts import Part, make_part, state, stored

import clipql
from clipql.errors import ClipqlError, IngestError
from clipql.ingest.layout import PartFiles, check_part
from clipql.storage.vectors import segments

# numpy and Python warn of what a damaged header would mean
pytestmark = pytest.mark.filterwarnings("ignore")
ROWS, DIMENSION = 30, 8
MOST_MEMORY = 400 << 20
quick = settings(
    max_examples=examples(300), derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def part(tmp_path_factory: pytest.TempPathFactory) -> Part:
    made = make_part(tmp_path_factory.mktemp("whole"), rows=ROWS, dimension=DIMENSION)
    pq.write_table(made.metadata, made.metadata_path, row_group_size=10, write_page_checksum=True)
    return made


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


@pytest.fixture(autouse=True)
def no_huge_allocation() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < MOST_MEMORY


def damaged(data: st.DataObject, content: bytes, begin: int, end: int) -> bytes:
    """Contents with bytes altered, taken out or put in between two places, or with the end cut off."""
    how = data.draw(st.sampled_from(["alter", "alter many", "insert", "delete", "cut", "extend"]))
    at = data.draw(st.integers(begin, end - 1))
    if how == "alter":
        return content[:at] + data.draw(st.binary(min_size=1, max_size=1)) + content[at + 1 :]
    if how == "alter many":
        new = data.draw(st.binary(min_size=1, max_size=min(16, end - at)))
        return content[:at] + new + content[at + len(new) :]
    if how == "insert":
        return content[:at] + data.draw(st.binary(min_size=1, max_size=8)) + content[at:]
    if how == "delete":
        return content[:at] + content[at + data.draw(st.integers(1, 8)) :]
    return content[:at] if how == "cut" else content + data.draw(st.binary(min_size=1, max_size=64))


def says(error: ClipqlError, path: Path) -> bool:
    """Fail where an error does not name the file; otherwise False, for the file was refused."""
    assert str(path) in str(error)
    return False


def check_header(path: Path, content: bytes) -> None:
    """A header is refused with the name of the file, or says what the bytes of the file bear out."""
    path.write_bytes(content)
    try:
        found = segments.read_header(path)
    except ClipqlError as error:
        says(error, path)
        return
    assert found.dtype.kind == "f"
    assert found.rows >= 0
    assert 1 <= found.dimension <= segments.LONGEST
    assert found.offset + found.rows * found.dimension * found.dtype.itemsize == len(content)
    blocks = [block.copy() for _, block in segments.read_blocks(found)]
    assert sum(len(block) for block in blocks) == found.rows
    with np.errstate(all="ignore"):
        expected = np.load(io.BytesIO(content), allow_pickle=False)
    assert expected.shape == (found.rows, found.dimension)
    given = np.concatenate(blocks) if blocks else np.empty((0, found.dimension))
    # float64 and big-endian numbers come as float32
    assert np.array_equal(given, expected.astype(given.dtype), equal_nan=True)


@quick
@given(data=st.data())
def test_a_damaged_header_of_vectors_is_refused_or_true(part: Part, folder: Path, data: st.DataObject) -> None:
    content = part.image_path.read_bytes()
    check_header(folder / "damaged.npy", damaged(data, content, 0, 128))


def npy(header: bytes, version: tuple[int, int] = (1, 0), body: bytes = bytes(64), length: int | None = None) -> bytes:
    form = "<H" if version == (1, 0) else "<I"
    size = struct.pack(form, len(header) if length is None else length)
    return b"\x93NUMPY" + bytes(version) + size + header + body


WHOLE = b"{'descr': '<f2', 'fortran_order': False, 'shape': (4, 8), }\n"


@quick
@given(
    descr=st.one_of(
        st.sampled_from(["'<f2'", "'<f4'", "'>f8'", "'|O'", "'<f16'", "[('a', '<f2')]"]), st.text(max_size=9)
    ),
    fortran=st.sampled_from(["False", "True", "0", "None"]),
    shape=st.one_of(
        st.lists(st.integers(-(2**70), 2**70), max_size=3).map(lambda s: repr(tuple(s))),
        st.sampled_from(["(4, 8)", "(4L, 8L)", "(True, 32)", "(0, 8)", "(0, 99999999999)", "(4.0, 8)", "4", "None"]),
        st.text(alphabet="0123456789,()[]{}-+*L' \n", max_size=30),
    ),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0), (1, 1), (9, 9), (0, 0)]),
)
def test_any_text_of_a_header_is_refused_or_true(
    folder: Path, descr: str, fortran: str, shape: str, version: tuple[int, int]
) -> None:
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}\n"
    check_header(folder / "text.npy", npy(text.encode("utf-8", "replace"), version))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (npy(WHOLE, (2, 0), length=2**32 - 1), "its header announces 4,294,967,295 bytes"),
        (npy(WHOLE, (9, 9)), "its format is 9.9"),
        (npy(WHOLE.replace(b"(4, 8)", b"(-4, -8)")), "expected (rows, dimension)"),
        (npy(WHOLE.replace(b"(4, 8)", b"(0, 1000000000000)"), body=b""), "65,536 are the most"),
        (npy(WHOLE.replace(b"(4, 8)", b"(10**9, 10**9)")), "is not a .npy file of vectors"),
        (npy(WHOLE.replace(b"(4, 8)", b"(4, 99999999999999999999)")), "65,536 are the most"),
        (npy(WHOLE.replace(b"(4, 8)", b"(" * 900)), "is not a .npy file of vectors"),
        (npy(WHOLE.replace(b"(4, 8)", b"-" * 5000 + b"1")), "is not a .npy file of vectors"),
        (npy(WHOLE.replace(b"'<f2'", b"'|O'")), "holds Python objects, which are never loaded"),
        (b"", "is not a .npy file of vectors"),
        (b"\x93NUMPY", "is not a .npy file of vectors"),
        (b"\x93NUMPY\x01\x00\x76", "is not a .npy file of vectors"),
    ],
)
def test_headers_that_ask_for_too_much_are_refused(folder: Path, content: bytes, message: str) -> None:
    path = folder / "hostile.npy"
    path.write_bytes(content)
    with pytest.raises(ClipqlError) as caught:
        segments.read_header(path)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)


def is_taken(part: Part, path: Path, content: bytes) -> bool:
    """Whether a part with damaged metadata passes the checks that come before anything is written."""
    path.write_bytes(content)
    try:
        checked = check_part(PartFiles(0, path, part.image_path, part.text_path))
    except IngestError as error:
        return says(error, path)
    assert checked.rows == ROWS
    return True


@quick
@given(data=st.data())
def test_a_damaged_footer_of_metadata_is_refused_or_harmless(part: Part, folder: Path, data: st.DataObject) -> None:
    content = part.metadata_path.read_bytes()
    footer = int.from_bytes(content[-8:-4], "little") + 8
    is_taken(part, folder / "metadata_0.parquet", damaged(data, content, len(content) - footer, len(content)))


@quick
@given(data=st.data())
def test_any_damage_to_metadata_is_refused_or_harmless(part: Part, folder: Path, data: st.DataObject) -> None:
    content = part.metadata_path.read_bytes()
    is_taken(part, folder / "metadata_0.parquet", damaged(data, content, 0, len(content)))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"PAR1" + b"\xff" * 4 + b"PAR1", b"PAR1" + bytes(99)])
def test_what_is_no_parquet_file_is_refused(part: Part, folder: Path, content: bytes) -> None:
    assert not is_taken(part, folder / "metadata_0.parquet", content)


def test_a_part_with_damage_anywhere_goes_in_right_or_not_at_all(
    db: clipql.Database, part: Part, tmp_path: Path
) -> None:
    """Every 97th byte of each file altered, one at a time, on the real engine; pages have checksums."""
    assert part.image is not None
    expected = [tuple(row.values()) for row in part.metadata.to_pylist()]
    columns = ", ".join(part.metadata.column_names)
    before, refused, taken = state(db), 0, 0
    for name in ("img_emb/img_emb_0.npy", "metadata/metadata_0.parquet"):
        content = (part.folder / name).read_bytes()
        # in vectors, the header; the numbers themselves may be anything
        for at in range(3, 128 if name.endswith("npy") else len(content), 97):
            shutil.rmtree(tmp_path / "bad", ignore_errors=True)
            shutil.copytree(part.folder, tmp_path / "bad")
            (tmp_path / "bad" / name).write_bytes(content[:at] + bytes([content[at] ^ 0x5A]) + content[at + 1 :])
            try:
                db.ingest(tmp_path / "bad")
            except ClipqlError as error:
                says(error, tmp_path / "bad")
                assert state(db) == before
                refused += 1
                continue
            taken += 1
            names = set(db.sql("SELECT * FROM laion LIMIT 0").columns)
            if name.endswith("parquet") and set(part.metadata.column_names) <= names:
                assert db.sql(f"SELECT {columns} FROM laion ORDER BY _row").rows == expected
            assert np.array_equal(stored(db, "laion"), part.image.astype(np.float32))
            db.sql("DROP TABLE laion")
            assert state(db) == before
    assert refused > taken > 0
