"""Downloads from servers that do anything: what has the name of a file is that file, and in the end all are there."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from cases import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from part_server import QUICK, PartServer
from parts import make_part

import clipql
from clipql.errors import DownloadError
from clipql.ingest.fetch.digests import ChecksumList, from_headers
from clipql.ingest.fetch.http import shown
from clipql.ingest.fetch.manners import retry_after

quick = settings(max_examples=examples(200), derandomize=True, deadline=None, database=None)
HEADERS = (
    "content-md5", "digest", "repr-digest", "x-goog-hash", "etag", "server", "x-amz-request-id", "x-amz-checksum-type",
    "x-amz-checksum-sha256", "x-amz-checksum-crc32", "x-amz-server-side-encryption", "x-linked-etag",
)  # fmt: skip
LATIN = st.text(st.characters(max_codepoint=255), max_size=90)


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("mirror")
    for number in range(2):
        make_part(folder, rows=100, dimension=200, number=number)
    server = PartServer()
    server.publish(folder)
    return server.files


def trouble(server: PartServer, chance: random.Random) -> None:
    """What a bad day brings to some of the files."""
    server.ranges, server.heads = chance.random() < 0.7, chance.random() < 0.8
    server.chunked = chance.random() < 0.2
    server.validators = chance.choice([("etag",), ("modified",), ("etag", "modified"), ()])
    for path, content in server.files.items():
        if chance.random() < 0.5:
            server.cuts[path] = [chance.randrange(len(content)) for _ in range(chance.randrange(4))]
        if chance.random() < 0.3:
            statuses = [429, 500, 503, 403, 404]
            server.answers[path] = [(chance.choice(statuses), {"Retry-After": "0"}) for _ in range(chance.randrange(3))]
        if chance.random() < 0.2:
            server.lies[path] = [chance.choice([-700, 700]) for _ in range(chance.randrange(3))]
        if chance.random() < 0.2:
            server.sizes[path] = chance.choice([0, 17, len(content) + 17])
        if chance.random() < 0.2:
            # the first byte is one of those that opening the file looks at
            server.flips[path] = chance.randrange(3)


@pytest.mark.parametrize("seed", range(25))
def test_a_bad_day_costs_runs_and_nothing_else(
    contents: dict[str, bytes], tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "clipql.ingest.fetch.download.check_room", lambda fetching, order: None
    )  # of sizes that are lies
    chance = random.Random(seed)
    with PartServer(files=dict(contents)) as server:
        trouble(server, chance)
        for _ in range(12):
            try:
                report = clipql.download(
                    server.url, tmp_path, parts="0-1", jobs=chance.randint(1, 4), patience=replace(QUICK, attempts=3)
                )
            except DownloadError:  # the files by which the layout is found out are not to be had
                continue
            there = {f"/{p.relative_to(tmp_path).as_posix()}" for p in tmp_path.glob("*/*[yt]")}
            assert {p: (tmp_path / p[1:]).read_bytes() for p in there} == {p: contents[p] for p in there}
            if not report.lost:
                break
            server.sizes.clear()
        assert (report.whole, report.lost) == (2, ())
        assert there == set(contents)


@quick
@given(headers=st.dictionaries(st.sampled_from(HEADERS), LATIN))
def test_no_header_of_a_server_breaks_anything(headers: dict[str, str]) -> None:
    for digest in from_headers(headers):
        assert set(digest.hex) <= set("0123456789abcdef")


@quick
@given(value=st.one_of(LATIN, st.from_regex(r"[0-9]{0,30}", fullmatch=True), st.datetimes().map(str)))
def test_no_retry_after_breaks_anything(value: str) -> None:
    seconds = retry_after(value)
    assert seconds is None or seconds >= 0


@quick
@given(text=LATIN)
def test_a_list_of_checksums_is_read_or_refused(text: str) -> None:
    try:
        ChecksumList(text, "SUMS").of("https://h/img_emb/img_emb_0.npy")
    except DownloadError as error:
        assert "SUMS, line " in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("https://me:secret@host:8/a/b?sig=secret#x", "https://host:8/a/b"),
        ("s3://bucket/a", "s3://bucket/a"),
        ("hf://datasets/o/n@main/x", "hf://datasets/o/n@main/x"),
        ("/plain/folder", "/plain/folder"),
    ],
)
def test_what_is_shown_of_an_address_has_no_secrets(url: str, seen: str) -> None:
    assert shown(url) == seen
