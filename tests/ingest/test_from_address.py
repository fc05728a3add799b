"""Files with vectors at an address: fetched one by one, taken in, freed, and not fetched again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from part_server import COMMIT, QUICK, PartServer
from parts import state

import clipql
from clipql.errors import ClipqlError, DownloadError, IngestError

ROWS, DIMENSION = 40, 5
_names = itertools.count()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[clipql.Database]:
    """One database for all tests of the module, each with a table of its own."""
    with clipql.connect(tmp_path_factory.mktemp("addresses") / "db") as db:
        yield db


@pytest.fixture
def table() -> str:
    return f"t{next(_names)}"


@pytest.fixture
def server() -> Iterator[PartServer]:
    with PartServer() as made:
        for number in range(3):
            made.files[f"/data/train-{number}.parquet"] = parquet(number)
        yield made


def parquet(number: int, rows: int = ROWS) -> bytes:
    sink, vectors = pa.BufferOutputStream(), np.random.default_rng(number).standard_normal((rows, DIMENSION))
    lists = pa.array(list(vectors.astype(np.float32)), pa.list_(pa.float32()))
    pq.write_table(pa.table({"n": [number * 1000 + i for i in range(rows)], "emb": lists}), sink, row_group_size=15)
    return bytes(sink.getvalue())


def numbers(db: clipql.Database, table: str) -> list[int]:
    return [n for (n,) in db.sql(f"SELECT n FROM {table} ORDER BY _row").rows]


def of(*files: int) -> list[int]:
    return [number * 1000 + i for number in files for i in range(ROWS)]


def gets(server: PartServer) -> list[str]:
    return [r.path.rpartition("/")[2] for r in server.requests if r.method == "GET" and r.range is None]


def test_files_are_fetched_one_by_one_and_leave_nothing_behind(
    shared: clipql.Database, server: PartServer, table: str
) -> None:
    urls = [f"{server.url}/data/train-{i}.parquet?token=secret" for i in (2, 0)]
    report = shared.ingest(urls, table=table, patience=QUICK)
    assert (report.rows, report.parts_taken, report.parts_skipped, report.unit) == (2 * ROWS, 6, 0, "row group")
    assert numbers(shared, table) == of(2, 0)
    expected = pq.read_table(pa.BufferReader(parquet(0)))["emb"].to_pylist()
    found = shared.sql(f"SELECT emb FROM {table} WHERE n < 1000 ORDER BY n").rows
    assert np.allclose([v for (v,) in found], expected)
    assert not (Path(shared.path) / "incoming").exists()
    known = state(shared)
    assert "secret" not in str(known)


def test_what_is_in_the_table_is_not_fetched_again_unless_it_has_changed(
    shared: clipql.Database, server: PartServer, table: str
) -> None:
    urls = [f"{server.url}/data/train-{i}.parquet" for i in range(2)]
    shared.ingest(urls, table=table, patience=QUICK)
    before = len(gets(server))
    report = shared.ingest(urls, table=table, patience=QUICK)
    assert (report.rows, report.parts_skipped, report.rows_skipped) == (0, 2, 2 * ROWS)
    assert gets(server)[before:] == ["train-0.parquet", "train-1.parquet"]  # 64 KB of each, which these small ones have
    server.files["/data/train-1.parquet"] = parquet(7)
    assert shared.ingest(urls, table=table, patience=QUICK).rows == ROWS
    assert numbers(shared, table) == of(0, 1, 7)


def test_a_file_that_cannot_be_had_stops_the_run_and_another_run_goes_on(
    shared: clipql.Database, server: PartServer, table: str
) -> None:
    urls = [f"{server.url}/data/train-{i}.parquet" for i in range(3)]
    server.answers["/data/train-1.parquet"] = [(404, {})] * 3
    with pytest.raises(DownloadError, match=r"train-1\.parquet: the source has no such file; what was taken in stays"):
        shared.ingest(urls, table=table, patience=QUICK)
    assert numbers(shared, table) == of(0)
    server.answers.clear()
    server.cuts["/data/train-1.parquet"] = [400, 300]
    report = shared.ingest(urls, table=table, patience=QUICK)
    assert (report.rows, report.rows_skipped) == (2 * ROWS, ROWS)
    assert numbers(shared, table) == of(0, 1, 2)


def test_a_file_that_was_taken_in_half_goes_on_with_the_row_groups_that_lack(
    shared: clipql.Database, server: PartServer, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipql.ingest.records import rows as records_rows
    from clipql.ingest.records import taking

    url, read = f"{server.url}/data/train-0.parquet", records_rows.Rows.of_group

    def fail(self: records_rows.Rows, file: object, group: int, *rest: object) -> Iterator[pa.RecordBatch]:
        if group == 2:
            raise KeyboardInterrupt
        return read(self, file, group, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(taking, "AT_ONCE", 15)
    with monkeypatch.context() as patched:
        patched.setattr(records_rows.Rows, "of_group", fail)
        with pytest.raises(KeyboardInterrupt):
            shared.ingest(url, table=table, patience=QUICK)
    assert numbers(shared, table) == of(0)[:30]
    assert [p.name[9:] for p in (Path(shared.path) / "incoming").glob("*-train*")] == ["train-0.parquet"]
    report = shared.ingest(url, table=table, patience=QUICK)
    assert (report.rows, report.rows_skipped) == (10, 30)
    assert numbers(shared, table) == of(0)
    assert not (Path(shared.path) / "incoming").exists()


@pytest.mark.parametrize("asked", ["data/train-[02].parquet", "data/train-[02]*", "@main/data/train-[02].parquet"])
def test_a_pattern_of_a_data_set_of_the_hub_is_fetched_at_one_commit(
    shared: clipql.Database, server: PartServer, table: str, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    hub(server, monkeypatch)
    address = f"hf://datasets/some/set{'' if asked[0] == '@' else '/'}{asked}"
    assert shared.ingest(address, table=table, patience=QUICK).rows == 2 * ROWS
    assert numbers(shared, table) == of(0, 2)


def test_a_whole_data_set_and_one_file_of_it_are_fetched(
    shared: clipql.Database, server: PartServer, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub(server, monkeypatch)
    shared.ingest("hf://datasets/some/set/data/train-1.parquet", table=table, patience=QUICK)
    report = shared.ingest("hf://datasets/some/set", table=table, patience=QUICK)
    assert (report.rows, report.rows_skipped) == (2 * ROWS, ROWS)
    assert numbers(shared, table) == of(1, 0, 2)


def hub(server: PartServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for path, content in list(server.files.items()):
        server.files[f"/datasets/some/set/resolve/{COMMIT}{path}"] = content
    server.files[f"/datasets/some/set/resolve/{COMMIT}/README.md"] = b"words"


@pytest.mark.parametrize("address", ["s3://bucket/data/", "s3://bucket/data/train-*", "s3://bucket/data"])
def test_a_folder_of_a_bucket_is_fetched_in_the_order_of_names(
    shared: clipql.Database,
    server: PartServer,
    table: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    address: str,
) -> None:
    for name, value in (("AWS_CONFIG_FILE", "none"), ("AWS_SHARED_CREDENTIALS_FILE", "none")):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    for number in range(3):
        path = f"/bucket/data/train-{number}.parquet"
        server.files[path] = parquet(number)
        server.headers[path] = {"x-amz-request-id": "1"}
    server.files["/bucket/data/_hidden.parquet"] = server.files["/bucket/database.parquet"] = b"not asked for"
    assert shared.ingest(address, table=table, patience=QUICK).rows == 3 * ROWS
    assert numbers(shared, table) == of(0, 1, 2)


def test_a_folder_by_fsspec_is_fetched(shared: clipql.Database, table: str, tmp_path: Path) -> None:
    for number in (10, 9):
        (tmp_path / f"train-{number}.parquet").write_bytes(parquet(number))
    assert shared.ingest(f"local://{tmp_path}", table=table).rows == 2 * ROWS
    assert numbers(shared, table) == of(9, 10)


@pytest.mark.parametrize(
    ("address", "options", "why"),
    [
        ("{server}/data/", {}, "over HTTP files cannot be listed"),
        ("{server}/data/*.parquet", {}, "over HTTP files cannot be listed"),
        ("{server}/data/train-0.parquet", {"link": True}, "link is not for files with vectors at an address"),
        ("{server}/data/train-0.parquet", {"vector_column": "other"}, "has no column other"),
        ("{server}/data/page.parquet", {}, "it begins as a web page"),
        ("local:///nowhere/at/all", {}, "has no file of rows"),
        ("hf://datasets/some", {}, "expected hf://datasets/OWNER/NAME"),
    ],
)
def test_what_cannot_be_fetched_or_read_is_refused_and_leaves_nothing(
    shared: clipql.Database, server: PartServer, table: str, address: str, options: dict[str, object], why: str
) -> None:
    server.files["/data/page.parquet"] = b"<!DOCTYPE html><html>no</html>" * 9
    with pytest.raises((DownloadError, IngestError), match=why):
        shared.ingest(address.format(server=server.url), table=table, patience=QUICK, **options)
    with pytest.raises(ClipqlError):
        shared.sql(f"SELECT count() FROM {table}")
    assert not (Path(shared.path) / "incoming").exists()
