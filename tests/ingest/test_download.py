"""`clipql.download`: what it fetches, in every layout and by every scheme, and what it leaves alone."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
from base64 import b64encode
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from part_server import COMMIT, QUICK, PartServer
from parts import FOLDERS, LAION_FOLDERS, SIDE_BY_SIDE, make_part
from patience import until

import clipql
from clipql.errors import DiskFull, DownloadError, IngestError, StorageError
from clipql.ingest.fetch import manners, parts
from clipql.ingest.fetch.download import DownloadReport

IMAGE, TEXT, METADATA = "/img_emb/img_emb_0.npy", "/text_emb/text_emb_0.npy", "/metadata/metadata_0.parquet"
THREE = (METADATA, IMAGE, TEXT)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PartServer]:
    """Three parts of some 40 KB a file."""
    for number in range(3):
        make_part(tmp_path / "mirror", rows=100, dimension=200, number=number)
    with PartServer() as made:
        made.publish(tmp_path / "mirror")
        yield made


def fetch(server: PartServer, tmp_path: Path, numbers: str = "0", **options: object) -> DownloadReport:
    given: dict[str, object] = {"jobs": 1, "patience": QUICK, **options}
    return clipql.download(server.url, tmp_path / "out", parts=numbers, **given)  # type: ignore[arg-type]


def got(tmp_path: Path) -> dict[str, bytes]:
    """The files of parts that are there, as paths of the server."""
    out = tmp_path / "out"
    return {f"/{p.relative_to(out).as_posix()}": p.read_bytes() for p in sorted(out.glob("*/*")) if p.is_file()}


def reasons(report: DownloadReport) -> str:
    return "\n".join(lost.reason for lost in report.lost)


# what is fetched


def test_parts_are_fetched_whole_and_ingested(server: PartServer, tmp_path: Path, db: clipql.Database) -> None:
    report = fetch(server, tmp_path, "0-2", jobs=4)
    assert (report.parts, report.whole, report.there, report.lost) == (3, 3, 0, ())
    assert report.fetched_bytes == sum(map(len, server.files.values()))
    assert got(tmp_path) == server.files
    assert db.ingest(tmp_path / "out").rows == 300


def test_only_the_parts_and_the_files_that_are_asked_for_are_requested(server: PartServer, tmp_path: Path) -> None:
    report = fetch(server, tmp_path, "0,2", without=["text"])
    assert report.whole == 2
    assert set(got(tmp_path)) == {IMAGE, METADATA, IMAGE.replace("_0", "_2"), METADATA.replace("_0", "_2")}
    assert not any("_1." in r.path or "text" in r.path for r in server.requests)


@pytest.mark.parametrize("layout", [FOLDERS, LAION_FOLDERS, SIDE_BY_SIDE])
@pytest.mark.parametrize("digits", [1, 4, 5])
def test_every_layout_is_found_out(tmp_path: Path, layout: tuple[str, str, str], digits: int) -> None:
    part = make_part(tmp_path / "mirror", rows=9, number=7, layout=layout)
    for path in (part.image_path, part.text_path, part.metadata_path):
        path.rename(path.with_name(path.name.replace("_7.", f"_{7:0{digits}}.")))
    with PartServer() as server:
        server.publish(tmp_path / "mirror", "/deep/er")
        report = clipql.download(f"{server.url}/deep/er/", tmp_path / "out", parts="6-7", patience=QUICK)
    assert (report.parts, report.whole) == (2, 1)
    assert {lost.part for lost in report.lost} == {6}
    assert sorted(got(tmp_path)) == [s.replace("_0.", "_7.") for s in sorted(THREE)]


def test_a_template_says_where_files_are(server: PartServer, tmp_path: Path) -> None:
    server.files = {f"/v{p.rpartition('_')[2]}/{p.split('/')[1]}": c for p, c in server.files.items()}
    template = server.url + "/v{number}.{ending}/{kind}?token=secret"
    report = clipql.download(template, tmp_path / "out", parts="0-1", patience=QUICK)
    assert report.whole == 2
    assert "secret" not in report.record.read_text()


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("https://h/{number}.npy", "needs {number} and {kind}"),
        ("https://h/{kind}.npy", "needs {number} and {kind}"),
        ("https://h/{kind}_{number}_{what}", "it may hold {kind}, {folder}, {number}, {ending}"),
        ("https://h/{kind}_{number!x}", "it may hold"),
        ("https://h/{kind}_{number", "it may hold"),
        ("https://h/{kind}_{number.real.x}", "it may hold"),
    ],
)
def test_a_template_that_cannot_be_filled_is_explained(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(DownloadError) as caught:
        clipql.download(template, tmp_path / "out", parts="0")
    assert message in str(caught.value)


def test_a_query_of_the_base_address_is_sent_with_each_file(server: PartServer, tmp_path: Path) -> None:
    clipql.download(f"{server.url}/?sig=secret", tmp_path / "out", parts="0", patience=QUICK)
    assert got(tmp_path) == {p: server.files[p] for p in THREE}
    assert "secret" not in (tmp_path / "out" / "download.json").read_text()


@pytest.mark.parametrize("how", ["plain", "file:", "file://"])
def test_a_folder_of_this_machine_is_a_source(tmp_path: Path, how: str) -> None:
    folder = tmp_path / "on {a} disk"
    make_part(folder, rows=9)
    address = {"plain": str(folder), "file:": f"file:{folder}", "file://": f"file://{folder}"}[how]
    report = clipql.download(address.replace(" ", "%20") if how != "plain" else address, tmp_path / "out", parts="0")
    assert report.whole == 1
    assert (tmp_path / "out" / IMAGE[1:]).read_bytes() == (folder / IMAGE[1:]).read_bytes()


def test_any_file_system_of_fsspec_is_a_source(tmp_path: Path) -> None:
    make_part(tmp_path / "mirror", rows=9)
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/mirror", "/bucket/laion", recursive=True)
    try:
        report = clipql.download("memory://bucket/laion", tmp_path / "out", parts="0-1", patience=QUICK)
    finally:
        memory.rm("/bucket", recursive=True)
    assert (report.whole, [m.part for m in report.lost]) == (1, [1, 1, 1])


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nosuch://bucket/x", "known are http:, https:, s3:, hf:, file: and the file systems of fsspec"),
        ("hf://models/x", "expected hf://datasets/OWNER/NAME"),
        ("/no/such/folder", "/no/such/folder has none of the first parts"),
    ],
)
def test_a_source_that_is_none_is_explained(tmp_path: Path, address: str, message: str) -> None:
    with pytest.raises(DownloadError) as caught:
        clipql.download(address, tmp_path / "out", parts="0", patience=QUICK)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": "0-x"}, "expected numbers and ranges"),
        ({"without": ["image", "text"]}, "expected image or text, not both"),
        ({"without": ["sound"]}, "expected image or text, not both"),
        ({"jobs": 0}, "expected 1 to 64"),
        ({"rate": 0}, "expected more than 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    server: PartServer, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises((DownloadError, IngestError), match=message):
        clipql.download(server.url, tmp_path / "out", **{"parts": "0", "patience": QUICK, **options})  # type: ignore[arg-type]


def test_the_model_that_a_source_names_comes_along(server: PartServer, tmp_path: Path) -> None:
    server.files["/model.json"] = b'{"model": "ViT-B/32"}'
    fetch(server, tmp_path)
    assert json.loads((tmp_path / "out" / "model.json").read_bytes()) == {"model": "ViT-B/32"}


def test_no_more_files_are_fetched_at_a_time_than_allowed(server: PartServer, tmp_path: Path) -> None:
    fetch(server, tmp_path, "0-2", jobs=2)
    assert server.most_at_once <= 2


def test_the_rate_is_kept_by_all_threads_together(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(manners.Manners, "sleep", lambda self, seconds: waits.append(seconds))
    shared = manners.Manners(QUICK, rate=1000.0)
    for _ in range(3):
        shared.took(500)
    assert waits == pytest.approx([0.5, 1.0, 1.5], abs=0.1)


# Hugging Face


@pytest.fixture
def hub(server: PartServer, monkeypatch: pytest.MonkeyPatch) -> PartServer:
    """A data set whose files lie elsewhere, as those in large-file storage do."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for path, content in list(server.files.items()):
        at = f"/datasets/some/laion/resolve/{COMMIT}{path}"
        server.redirects[at] = path
        digest = hashlib.sha256(content).hexdigest()
        server.headers[at] = {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(content))}
    return server


def test_a_data_set_of_the_hub_is_fetched_at_one_commit_and_checked(hub: PartServer, tmp_path: Path) -> None:
    report = clipql.download("hf://datasets/some/laion", tmp_path / "out", parts="0-1", patience=QUICK)
    assert report.whole == 2
    assert {p: got(tmp_path)[p] for p in THREE} == {p: hub.files[p] for p in THREE}
    known = json.loads(report.record.read_bytes())["files"][IMAGE[1:]]
    assert known["checked_by"] == "sha256 of Hugging Face, size, opening it"


def test_the_token_goes_to_the_hub_and_nowhere_else(hub: PartServer, tmp_path: Path) -> None:
    clipql.download("hf://datasets/some/laion@main", tmp_path / "out", parts="0", patience=QUICK)
    tokens = {(r.port == hub.port, r.authorization) for r in hub.requests}
    assert tokens == {(True, "Bearer hf_secret"), (False, None)}


def test_a_data_set_that_is_not_there_is_explained(hub: PartServer, tmp_path: Path) -> None:
    hub.always["/api/datasets/some/other"] = 404
    with pytest.raises(DownloadError, match="see whether the data set and the revision are there"):
        clipql.download("hf://datasets/some/other", tmp_path / "out", parts="0", patience=QUICK)


def test_a_file_of_the_hub_that_comes_altered_is_not_kept(hub: PartServer, tmp_path: Path) -> None:
    hub.flips[TEXT] = 2
    report = clipql.download("hf://datasets/some/laion", tmp_path / "out", parts="0", patience=QUICK)
    assert "came damaged, twice: its sha256 is" in reasons(report)
    assert not (tmp_path / "out" / TEXT[1:]).exists()


# run again


def test_a_second_run_asks_for_no_file(server: PartServer, tmp_path: Path) -> None:
    fetch(server, tmp_path, "0-2")
    before = len(server.requests)
    report = fetch(server, tmp_path, "0-2")
    assert (report.whole, report.there, report.fetched_bytes) == (3, 3, 0)
    assert [r.path for r in server.requests[before:] if r.path in server.files] == [IMAGE]  # for the layout


def test_a_file_that_was_touched_since_is_looked_at_again(server: PartServer, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    image = tmp_path / "out" / IMAGE[1:]
    image.write_bytes(image.read_bytes()[:-1])
    report = fetch(server, tmp_path)
    assert (report.whole, report.there) == (1, 0)
    assert got(tmp_path)[IMAGE] == server.files[IMAGE]


def test_files_that_came_otherwise_are_kept_where_they_are_the_same(server: PartServer, tmp_path: Path) -> None:
    for path in THREE:
        target = tmp_path / "out" / path[1:]
        target.parent.mkdir(parents=True)
        target.write_bytes(server.files[path])
    report = fetch(server, tmp_path)
    assert (report.whole, report.fetched_bytes) == (1, 0)


def test_another_whole_file_of_the_name_is_never_replaced(server: PartServer, tmp_path: Path) -> None:
    other = np.ones((100, 200), np.float16)
    (tmp_path / "out" / "img_emb").mkdir(parents=True)
    np.save(tmp_path / "out" / IMAGE[1:], other)
    report = fetch(server, tmp_path)
    assert "is a whole file, and not the one of" in reasons(report)
    assert np.array_equal(np.load(tmp_path / "out" / IMAGE[1:]), other)


def test_another_mirror_of_the_same_files_goes_on(server: PartServer, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    with PartServer(files=dict(server.files), validators=()) as mirror:
        report = fetch(mirror, tmp_path, "0-1")
    assert (report.whole, report.there) == (2, 1)


def test_the_record_tells_what_is_there_and_what_is_missing(server: PartServer, tmp_path: Path) -> None:
    del server.files[TEXT]
    report = fetch(server, tmp_path, "0-1")
    record = json.loads(report.record.read_bytes())
    url = f"{server.url}{TEXT}"
    assert record["missing"] == [
        {"part": 0, "file": TEXT[1:], "url": url, "status": 404, "reason": f"{url}: the source has no such file"}
    ]
    assert (record["source"], record["parts"], record["finished"]) == (server.url, "0-1", True)
    assert {name: entry["size"] for name, entry in record["files"].items()} == {
        p[1:]: len(c) for p, c in server.files.items() if "_2." not in p
    }


def test_two_runs_do_not_share_a_folder(server: PartServer, tmp_path: Path) -> None:
    server.stalls[METADATA] = 10
    code = f"import clipql; clipql.download('{server.url}', '{tmp_path / 'out'}', parts='0')"
    other = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        until(lambda: server.got(METADATA) or other.poll() is not None, "the other run has begun")
        with pytest.raises(DownloadError, match="another process is downloading into"):
            fetch(server, tmp_path)
    finally:
        other.kill()
        other.wait()


# the disk


Usage = namedtuple("Usage", ["total", "used", "free"])


def test_what_does_not_fit_is_refused_before_anything_is_fetched(
    server: PartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(10**9, 10**9 - 64 * 2**20 - 1000, 64 * 2**20 + 1000))
    with pytest.raises(DiskFull, match=r"out has 0\.1 GB free, and 0\.0 GB are to come.*`clipql ingest --from`"):
        fetch(server, tmp_path, "0-2")
    assert server.fetched() == set()


def test_a_disk_that_fills_up_ends_the_run_and_leaves_what_can_be_continued(
    server: PartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clipql.ingest.fetch import partial

    plain = partial.Partial.write

    def full(self: partial.Partial, block: bytes) -> None:
        plain(self, block[:1000])
        with partial.files.translated(self.path, "writing"):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(partial.Partial, "write", full)
    with pytest.raises(StorageError, match="the disk is full while writing"):
        fetch(server, tmp_path)
    monkeypatch.undo()
    fetch(server, tmp_path)
    assert server.got(METADATA)[-1] == "bytes=1000-"
    assert got(tmp_path) == {p: server.files[p] for p in THREE}


# checksums


def test_a_list_of_checksums_is_believed_before_the_source(server: PartServer, tmp_path: Path) -> None:
    lines = [f"{hashlib.sha256(server.files[p]).hexdigest()}  ./laion{p}" for p in (IMAGE, METADATA)]
    lines.append(f"MD5 (laion{TEXT}) = {hashlib.md5(server.files[TEXT]).hexdigest()}")
    (tmp_path / "SUMS").write_text("# of laion\n" + "\n".join(lines) + "\n")
    report = fetch(server, tmp_path, checksums=tmp_path / "SUMS")
    assert report.whole == 1
    files = json.loads(report.record.read_bytes())["files"]
    assert [files[p[1:]]["checked_by"].split()[0] for p in THREE] == ["sha256", "sha256", "md5"]


def test_a_file_that_is_not_what_the_list_says_is_not_kept(server: PartServer, tmp_path: Path) -> None:
    server.files["/SUMS"] = f"{'0' * 64} *{IMAGE[1:]}\n".encode()
    report = fetch(server, tmp_path, checksums=f"{server.url}/SUMS")
    assert f"came damaged, twice: its sha256 is {hashlib.sha256(server.files[IMAGE]).hexdigest()}" in reasons(report)
    assert set(got(tmp_path)) == {METADATA, TEXT}


def test_a_new_list_of_checksums_is_compared_with_what_is_there(server: PartServer, tmp_path: Path) -> None:
    fetch(server, tmp_path)
    (tmp_path / "SUMS").write_text(f"{'0' * 32}  {IMAGE[1:]}\n")
    assert "is a whole file, and not the one of" in reasons(fetch(server, tmp_path, checksums=tmp_path / "SUMS"))


def test_a_list_that_is_none_is_refused_with_its_line(server: PartServer, tmp_path: Path) -> None:
    (tmp_path / "SUMS").write_text("hello\n")
    with pytest.raises(DownloadError, match=r"SUMS, line 1: 'hello'; expected a digest and a name"):
        fetch(server, tmp_path, checksums=tmp_path / "SUMS")


def _b64(name: str, content: bytes) -> str:
    return b64encode(hashlib.new(name, content).digest()).decode()


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Content-MD5", lambda c: _b64("md5", c)),
        ("Digest", lambda c: f"unixsum=1,SHA-256={_b64('sha256', c)}"),
        ("Repr-Digest", lambda c: f"sha-512=:{_b64('sha512', c)}:, sha-256=:{_b64('sha256', c)}:"),
        ("x-goog-hash", lambda c: f"crc32c=AAAAAA==,md5={_b64('md5', c)}"),
        ("x-amz-checksum-sha256", lambda c: _b64("sha256", c)),
    ],
)
def test_digests_in_headers_are_compared(server: PartServer, tmp_path: Path, header: str, value: object) -> None:
    assert callable(value)
    server.headers[IMAGE] = {header: value(server.files[IMAGE])}
    server.headers[TEXT] = {header: value(b"something else")}
    report = fetch(server, tmp_path)
    assert [m.file for m in report.lost] == [TEXT[1:]]
    assert set(got(tmp_path)) == {METADATA, IMAGE}


@pytest.mark.parametrize(
    ("headers", "compared"),
    [
        ({"Server": "AmazonS3"}, True),
        ({"x-amz-request-id": "1"}, True),
        ({"Server": "nginx"}, False),
        ({"Server": "AmazonS3", "x-amz-server-side-encryption": "aws:kms"}, False),
    ],
)
def test_the_etag_of_s3_is_compared_where_it_is_an_md5(
    server: PartServer, tmp_path: Path, headers: dict[str, str], compared: bool
) -> None:
    wrong = f'"{hashlib.md5(b"else").hexdigest()}"'
    server.headers[IMAGE] = {"ETag": wrong, **headers}
    assert bool(fetch(server, tmp_path).lost) == compared


def test_a_multipart_etag_is_no_md5(server: PartServer, tmp_path: Path) -> None:
    server.headers[IMAGE] = {"ETag": f'"{hashlib.md5(b"else").hexdigest()}-12"', "Server": "AmazonS3"}
    assert fetch(server, tmp_path).whole == 1


# a whole part


def test_files_of_a_part_that_do_not_belong_together_are_told(server: PartServer, tmp_path: Path) -> None:
    make_part(tmp_path / "longer", rows=101, dimension=200)
    server.files[IMAGE] = (tmp_path / "longer" / IMAGE[1:]).read_bytes()
    report = fetch(server, tmp_path, "0-1")
    assert report.whole == 1
    assert "has 101 vectors and" in reasons(report)


def test_progress_adds_up(server: PartServer, tmp_path: Path) -> None:
    seen: list[parts.FetchProgress] = []
    fetch(server, tmp_path, "0-2", progress=seen.append)
    last, size = seen[-1], sum(map(len, server.files.values()))
    assert (last.files_done, last.files, last.parts_done, last.parts) == (9, 9, 3, 3)
    assert (last.done, last.size, last.fetched) == (size, size, size)
    assert [p.done for p in seen] == sorted(p.done for p in seen)
    assert [p.part.number for p in seen if p.part] == [0, 1, 2]
