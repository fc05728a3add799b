"""Parts in S3: botocore against a small server that answers as S3 does."""

from __future__ import annotations

import hashlib
import json
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from part_server import QUICK, PartServer
from parts import make_part

import clipql
from clipql.errors import DownloadError
from clipql.ingest.fetch.download import DownloadReport

IMAGE = "/bucket/laion/img_emb/img_emb_0.npy"


@pytest.fixture
def s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PartServer]:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    for number in range(2):
        make_part(tmp_path / "mirror", rows=100, dimension=200, number=number)
    with PartServer() as made:
        made.publish(tmp_path / "mirror", "/bucket/laion")
        for path, content in made.files.items():
            made.headers[path] = {"ETag": f'"{hashlib.md5(content).hexdigest()}"', "x-amz-request-id": "1"}
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        yield made


def fetch(tmp_path: Path, numbers: str = "0", source: str = "s3://bucket/laion") -> DownloadReport:
    return clipql.download(source, tmp_path / "out", parts=numbers, jobs=1, patience=QUICK)


def check_whole(s3: PartServer, tmp_path: Path) -> None:
    for path, content in s3.files.items():
        if "_0." in path:
            assert (tmp_path / "out" / path.removeprefix("/bucket/laion/")).read_bytes() == content


def test_parts_of_a_bucket_are_fetched_and_checked_by_their_etag(s3: PartServer, tmp_path: Path) -> None:
    report = fetch(tmp_path, "0-1")
    assert (report.whole, report.lost) == (2, ())
    check_whole(s3, tmp_path)
    files = json.loads(report.record.read_bytes())["files"]
    assert {entry["checked_by"] for entry in files.values()} == {"md5 of the ETag of S3, size, opening it"}
    assert all((r.authorization or "").startswith("AWS4-HMAC-SHA256 Credential=key/") for r in s3.requests)


def test_a_public_bucket_needs_no_credentials(s3: PartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert fetch(tmp_path).whole == 1
    assert {r.authorization for r in s3.requests} == {None}


def test_a_connection_that_breaks_off_goes_on_where_it_was(s3: PartServer, tmp_path: Path) -> None:
    s3.cuts[IMAGE] = [10_000, 5_000]
    assert fetch(tmp_path).whole == 1
    assert s3.got(IMAGE) == [None, "bytes=10000-", "bytes=15000-"]
    check_whole(s3, tmp_path)


def test_an_object_that_changes_is_not_spliced(s3: PartServer, tmp_path: Path) -> None:
    make_part(tmp_path / "new", rows=100, dimension=200, seed=9)
    new = (tmp_path / "new" / "img_emb" / "img_emb_0.npy").read_bytes()
    s3.cuts[IMAGE], s3.then[IMAGE] = [10_000], [new]
    s3.headers[IMAGE] = {"x-amz-request-id": "1"}
    assert fetch(tmp_path).whole == 1
    check_whole(s3, tmp_path)


def test_an_object_that_comes_altered_is_not_kept(s3: PartServer, tmp_path: Path) -> None:
    s3.flips[IMAGE] = 2
    assert [m.reason.partition("its md5")[0] for m in fetch(tmp_path).lost] == [
        "s3://bucket/laion/img_emb/img_emb_0.npy came damaged, twice: "
    ]


def test_a_checksum_of_s3_goes_before_its_etag(s3: PartServer, tmp_path: Path) -> None:
    sha = b64encode(hashlib.sha256(s3.files[IMAGE]).digest()).decode()
    s3.headers[IMAGE] = {"ETag": '"0123-4"', "x-amz-request-id": "1", "x-amz-checksum-sha256": sha}
    report = fetch(tmp_path)
    entry = json.loads(report.record.read_bytes())["files"]["img_emb/img_emb_0.npy"]
    assert entry["checked_by"] == "sha256 of S3's x-amz-checksum-sha256, size, opening it"


def test_an_object_that_is_not_there_is_missing(s3: PartServer, tmp_path: Path) -> None:
    del s3.files[IMAGE]
    report = fetch(tmp_path, "0-1")
    assert (report.whole, [(m.file, m.status) for m in report.lost]) == (1, [("img_emb/img_emb_0.npy", 404)])


@pytest.mark.parametrize("status", [500, 503])
def test_s3_in_trouble_is_asked_again(s3: PartServer, tmp_path: Path, status: int) -> None:
    s3.answers[IMAGE] = [(status, {}), (status, {"Retry-After": "0"})]
    assert fetch(tmp_path).whole == 1
    check_whole(s3, tmp_path)


def test_a_bucket_that_may_not_be_read_is_told(s3: PartServer, tmp_path: Path) -> None:
    for path in s3.files:
        s3.always[path] = 403
    with pytest.raises(DownloadError, match="the object is not there, or these credentials may not read it"):
        fetch(tmp_path)


def test_a_bucket_streams_into_a_table(s3: PartServer, db: clipql.Database) -> None:
    report = db.ingest("s3://bucket/laion", parts="0-1", patience=QUICK)
    assert (report.rows, report.parts_taken) == (200, 2)


def test_what_s3_needs_is_told_where_it_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    with pytest.raises(DownloadError, match=r"s3: addresses need botocore: pip install 'clipql\[s3\]'"):
        fetch(tmp_path)
