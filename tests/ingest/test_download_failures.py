"""`clipql.download` where networks and servers fail: nothing wrong is kept, and nothing that has come is lost."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest
from part_server import QUICK, PartServer
from parts import make_part
from patience import LAST_NET_SECONDS, until

import clipql
from clipql.errors import DownloadError
from clipql.ingest.fetch import partial
from clipql.ingest.fetch.download import DownloadReport
from clipql.ingest.fetch.manners import Manners, Patience, retry_after
from clipql.ingest.fetch.parts import FetchProgress

IMAGE, TEXT, METADATA = "/img_emb/img_emb_0.npy", "/text_emb/text_emb_0.npy", "/metadata/metadata_0.parquet"
THREE = (METADATA, IMAGE, TEXT)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PartServer]:
    for number in range(2):
        make_part(tmp_path / "mirror", rows=100, dimension=200, number=number)
    with PartServer() as made:
        made.publish(tmp_path / "mirror")
        yield made


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that runs would have waited; they do not."""
    seen: list[float] = []

    def sleep(self: Manners, seconds: float) -> None:
        seen.append(seconds)
        self._quiet_until = 0.0
        self.check()

    monkeypatch.setattr(Manners, "sleep", sleep)
    return seen


def fetch(server: PartServer, tmp_path: Path, numbers: str = "0", **options: object) -> DownloadReport:
    given: dict[str, object] = {"jobs": 1, "patience": QUICK, **options}
    return clipql.download(server.url, tmp_path / "out", parts=numbers, **given)  # type: ignore[arg-type]


def check_whole(server: PartServer, tmp_path: Path) -> None:
    """Part 0 is there as the server has it, and nothing else is."""
    out = tmp_path / "out"
    there = {f"/{p.relative_to(out).as_posix()}": p.read_bytes() for p in out.glob("*/*")}
    assert there == {p: server.files[p] for p in THREE}


def reasons(report: DownloadReport) -> str:
    return "\n".join(lost.reason for lost in report.lost)


# connections that break


def test_a_connection_that_breaks_off_goes_on_where_it_was(server: PartServer, tmp_path: Path) -> None:
    server.cuts[IMAGE] = [10_000, 20_000, 1, 0, 0]
    assert fetch(server, tmp_path).whole == 1
    assert server.got(IMAGE) == [None, "bytes=10000-", "bytes=30000-", *["bytes=30001-"] * 3]
    check_whole(server, tmp_path)


def test_a_connection_that_always_breaks_is_given_up(server: PartServer, tmp_path: Path) -> None:
    server.cuts[IMAGE] = [10_000] + [0] * 9
    report = fetch(server, tmp_path)
    assert [m.file for m in report.lost] == [IMAGE[1:]]
    assert "cannot be reached or breaks off" in reasons(report)
    assert len(server.got(IMAGE)) == 1 + QUICK.attempts - 1
    server.cuts.clear()
    assert fetch(server, tmp_path).whole == 1
    assert server.got(IMAGE)[-1] == "bytes=10000-"
    check_whole(server, tmp_path)


def test_a_server_without_ranges_is_asked_for_the_whole_again(server: PartServer, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts[IMAGE] = [10_000, 20_000]
    assert fetch(server, tmp_path).whole == 1
    check_whole(server, tmp_path)


def test_a_server_without_ranges_that_always_breaks_in_one_place_is_given_up(
    server: PartServer, tmp_path: Path
) -> None:
    server.ranges = False
    server.cuts[IMAGE] = [10_000] * 50
    assert "breaks off" in reasons(fetch(server, tmp_path))
    assert len(server.got(IMAGE)) == QUICK.attempts


def test_a_server_that_tells_no_version_is_not_continued(server: PartServer, tmp_path: Path) -> None:
    server.validators = ()
    server.cuts[IMAGE] = [10_000]
    assert fetch(server, tmp_path).whole == 1
    assert server.got(IMAGE) == [None, None]
    check_whole(server, tmp_path)


@pytest.mark.parametrize("validators", [("etag",), ("modified",), ("etag", "modified")])
def test_a_file_that_changes_between_two_connections_is_not_spliced(
    server: PartServer, tmp_path: Path, validators: tuple[str, ...]
) -> None:
    make_part(tmp_path / "new", rows=100, dimension=200, seed=9)
    server.validators = validators
    server.cuts[IMAGE] = [10_000]
    server.then[IMAGE] = [(tmp_path / "new" / IMAGE[1:]).read_bytes()]
    assert fetch(server, tmp_path).whole == 1
    check_whole(server, tmp_path)


def test_a_file_that_changes_between_two_runs_is_not_spliced(server: PartServer, tmp_path: Path) -> None:
    make_part(tmp_path / "new", rows=100, dimension=200, seed=9)
    server.cuts[IMAGE] = [10_000] + [0] * 9
    fetch(server, tmp_path)
    server.cuts.clear()
    server.files[IMAGE] = (tmp_path / "new" / IMAGE[1:]).read_bytes()
    before = len(server.got(IMAGE))
    assert fetch(server, tmp_path).whole == 1
    assert server.got(IMAGE)[before:] == [None]
    check_whole(server, tmp_path)


def test_a_file_that_keeps_changing_is_given_up(server: PartServer, tmp_path: Path) -> None:
    server.cuts[IMAGE] = [10_000] * 9
    server.then[IMAGE] = [server.files[IMAGE][:-1] + bytes([n]) for n in range(9)]
    assert "keeps changing: its etag was" in reasons(fetch(server, tmp_path))


# lengths that are not true


def test_a_length_that_is_too_long_is_a_connection_that_breaks_off(server: PartServer, tmp_path: Path) -> None:
    server.sizes[IMAGE] = len(server.files[IMAGE]) + 500
    server.lies[IMAGE] = [500]
    assert fetch(server, tmp_path).whole == 1
    check_whole(server, tmp_path)


def test_a_length_that_is_too_short_for_once_does_no_harm(server: PartServer, tmp_path: Path) -> None:
    server.lies[IMAGE] = [-500]
    assert fetch(server, tmp_path).whole == 1
    check_whole(server, tmp_path)


@pytest.mark.parametrize("lie", [-500, 500])
def test_a_length_that_is_always_wrong_leaves_no_file(server: PartServer, tmp_path: Path, lie: int) -> None:
    server.ranges = False
    server.sizes[IMAGE] = len(server.files[IMAGE]) + lie
    server.lies[IMAGE] = [lie] * 50
    report = fetch(server, tmp_path)
    assert [m.file for m in report.lost] == [IMAGE[1:]]
    assert not (tmp_path / "out" / IMAGE[1:]).exists()


@pytest.mark.parametrize("said", [0, 1, 10**15])
def test_a_head_that_is_wrong_is_corrected_by_the_answer_itself(
    server: PartServer, tmp_path: Path, said: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.sizes[TEXT] = said
    monkeypatch.setattr("clipql.ingest.fetch.download.check_room", lambda fetching, order: None)
    assert fetch(server, tmp_path).whole == 1
    check_whole(server, tmp_path)


def test_a_server_without_head_is_asked_for_the_first_byte(server: PartServer, tmp_path: Path) -> None:
    server.heads = False
    assert fetch(server, tmp_path).whole == 1
    check_whole(server, tmp_path)


def test_a_server_that_announces_no_length_is_checked_by_opening_the_files(server: PartServer, tmp_path: Path) -> None:
    server.chunked, server.ranges = True, False
    assert fetch(server, tmp_path).whole == 1
    check_whole(server, tmp_path)


# refusals


@pytest.mark.parametrize("status", [404, 410])
def test_a_file_that_is_not_there_is_asked_for_once(server: PartServer, tmp_path: Path, status: int) -> None:
    server.always[IMAGE] = status
    report = fetch(server, tmp_path, "0-1")
    assert [(m.part, m.file, m.status) for m in report.lost] == [(0, IMAGE[1:], 404)]
    assert report.whole == 1
    assert len([r for r in server.requests if r.path == IMAGE]) == 2  # for the layout, and for itself


@pytest.mark.parametrize("status", [401, 403, 400, 451])
def test_a_refusal_is_not_asked_again(server: PartServer, tmp_path: Path, status: int) -> None:
    server.always[TEXT] = status
    report = fetch(server, tmp_path)
    assert [m.status for m in report.lost] == [status]
    assert f"HTTP {status}" in reasons(report)
    assert len([r for r in server.requests if r.path == TEXT]) <= 4


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(server: PartServer, tmp_path: Path, status: int) -> None:
    server.answers[TEXT] = [(status, {})] * 3
    assert fetch(server, tmp_path).whole == 1
    check_whole(server, tmp_path)


def test_a_server_that_stays_in_trouble_is_given_up(server: PartServer, tmp_path: Path) -> None:
    server.always[TEXT] = 503
    report = fetch(server, tmp_path)
    assert [m.status for m in report.lost] == [503]
    assert server.got(TEXT) == []


@pytest.mark.parametrize("status", [429, 503])
def test_what_retry_after_asks_for_is_waited(
    server: PartServer, tmp_path: Path, waits: list[float], status: int
) -> None:
    server.answers[TEXT] = [(status, {"Retry-After": "120"})]
    assert fetch(server, tmp_path).whole == 1
    assert [w for w in waits if w > 1] == [pytest.approx(120.5, abs=0.51)]


def test_all_threads_wait_for_what_one_was_asked_to() -> None:
    shared, slept = Manners(QUICK), []
    shared.sleep = slept.append  # type: ignore[method-assign]
    shared.back_off(1, 60.0)
    shared._quiet_until, left = shared._quiet_until - 59.5, shared._quiet_until
    shared.sleep = lambda seconds: (slept.append(seconds), setattr(shared, "_quiet_until", 0.0))  # type: ignore[method-assign, func-returns-value]
    shared.pause()
    assert slept[0] >= 60.0
    assert 0 < slept[1] <= 1.5
    assert left > 0


def test_a_retry_after_beyond_bearing_is_told(server: PartServer, tmp_path: Path, waits: list[float]) -> None:
    server.answers[TEXT] = [(429, {"Retry-After": "86400"})] * 9
    report = fetch(server, tmp_path)
    assert "it asks to come back in 86,400 s: run again then" in reasons(report)
    assert max(waits, default=0) < 1


def test_retry_after_is_read_in_both_its_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    assert retry_after("7") == 7.0
    assert retry_after(formatdate(1_700_000_100, usegmt=True)) == 100.0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert [retry_after(said) for said in (None, "", "soon", "-1")] == [None] * 4


def test_waits_double_and_differ(waits: list[float]) -> None:
    random.seed(7)
    shared = Manners(Patience(first_wait=1.0, longest_wait=60.0))
    for failures in range(1, 10):
        shared.back_off(failures)
    whole = [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert all(w / 2 <= seconds <= w for seconds, w in zip(waits, whole, strict=True))
    assert len({seconds / w for seconds, w in zip(waits, whole, strict=True)}) == len(whole)


def test_a_source_that_is_out_of_reach_is_not_asked_for_each_of_its_files(server: PartServer, tmp_path: Path) -> None:
    for number in range(1, 100):
        for name in (IMAGE, TEXT, METADATA):
            server.always[name.replace("_0.", f"_{number}.")] = 503
    with pytest.raises(DownloadError, match="12 files in succession could not be had, so the source is taken to be"):
        fetch(server, tmp_path, "0-99", patience=replace(QUICK, attempts=1))
    assert len({r.path for r in server.requests}) < 40
    check_whole(server, tmp_path)


def test_a_host_that_is_not_there_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    with pytest.raises(DownloadError, match=rf"http://127.0.0.1:{port}/img_emb/img_emb_0.npy cannot be reached"):
        clipql.download(f"http://127.0.0.1:{port}", tmp_path / "out", parts="0", patience=QUICK)


# silence


def test_a_server_that_falls_silent_is_asked_again(server: PartServer, tmp_path: Path) -> None:
    server.stalls[IMAGE] = 10_000
    come = tmp_path / "out" / f"{IMAGE[1:]}.partial"
    seen: list[FetchProgress] = []

    def note(progress: FetchProgress) -> None:
        seen.append(progress)
        if "was silent" in progress.waiting and come.exists() and come.stat().st_size >= 10_000:
            server.stalls.clear()

    assert (
        fetch(server, tmp_path, patience=replace(QUICK, attempts=1000, timeout_seconds=1.0), progress=note).whole == 1
    )
    assert server.got(IMAGE)[-1] == "bytes=10000-"
    assert f"{server.url}{IMAGE} was silent for 1 s" in [p.waiting for p in seen]
    check_whole(server, tmp_path)


def test_a_server_that_only_trickles_is_left_and_asked_again(server: PartServer, tmp_path: Path) -> None:
    server.trickles.add(IMAGE)

    def note(progress: FetchProgress) -> None:
        if "has all but stalled" in progress.waiting:
            server.trickles.clear()

    patience = replace(QUICK, attempts=1000, timeout_seconds=0.5, slowest=10_000.0)
    assert fetch(server, tmp_path, patience=patience, progress=note).whole == 1
    assert len(server.got(IMAGE)) >= 2
    check_whole(server, tmp_path)


# what comes is not what it should be


def test_redirects_are_followed_and_continued(server: PartServer, tmp_path: Path) -> None:
    server.files["/elsewhere"] = server.files[IMAGE]
    server.redirects[IMAGE] = "/elsewhere"
    server.cuts["/elsewhere"] = [10_000]
    assert fetch(server, tmp_path).whole == 1
    assert server.got("/elsewhere") == [None, "bytes=10000-"]


def test_a_redirect_without_end_is_told(server: PartServer, tmp_path: Path) -> None:
    server.answers[IMAGE] = [(302, {"Location": IMAGE})] * 200
    assert "redirects" in reasons(fetch(server, tmp_path, "0-1"))


def test_a_file_that_comes_damaged_is_fetched_anew_once(server: PartServer, tmp_path: Path) -> None:
    server.flips = {IMAGE: 1, METADATA: 1}
    report = fetch(server, tmp_path)
    assert report.whole == 1
    assert server.got(IMAGE) == server.got(METADATA) == [None, None]
    check_whole(server, tmp_path)


def test_a_file_that_is_damaged_at_its_source_is_told_and_not_kept(server: PartServer, tmp_path: Path) -> None:
    server.files[IMAGE] = server.files[IMAGE][:-7]
    server.files[METADATA] = server.files[METADATA][:-7]
    server.files[TEXT] = b"<html>Please log in</html>"
    report = fetch(server, tmp_path, "0-1")
    assert report.whole == 1
    assert [m.part for m in report.lost] == [0, 0, 0]
    assert "came damaged, twice: the file is not a whole Parquet file" in reasons(report)
    assert "came damaged, twice: the file is cut short" in reasons(report)
    assert "came damaged, twice: the file is not a .npy file" in reasons(report)
    assert not list((tmp_path / "out").glob("*/*_0.*"))


def test_a_compressed_answer_that_was_not_asked_for_is_refused(server: PartServer, tmp_path: Path) -> None:
    server.headers[IMAGE] = {"Content-Encoding": "gzip"}
    assert "comes compressed (gzip), which was not asked for" in reasons(fetch(server, tmp_path))


# ends of the process


def start(server: PartServer, tmp_path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "clipql", "download", server.url, "out", "--parts", "0", "--jobs", "1"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_bytes(path: Path, size: int, process: subprocess.Popen[str]) -> None:
    def come() -> bool:
        assert process.poll() is None
        return path.exists() and path.stat().st_size >= size

    until(come, f"{size} bytes of {path.name} have come")


def test_ctrl_c_keeps_what_has_come(server: PartServer, tmp_path: Path) -> None:
    server.stalls[IMAGE] = 10_000
    process = start(server, tmp_path)
    wait_for_bytes(tmp_path / "out" / f"{IMAGE[1:]}.partial", 10_000, process)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=LAST_NET_SECONDS)
    assert process.returncode == 130
    assert told == "clipql: stopped; what has come is kept, run the same command again to go on\n"
    server.stalls.clear()
    report = fetch(server, tmp_path)
    assert (report.whole, report.fetched_bytes) == (1, len(server.files[IMAGE]) - 10_000 + len(server.files[TEXT]))
    check_whole(server, tmp_path)


def test_a_kill_leaves_nothing_that_is_wrong(server: PartServer, tmp_path: Path) -> None:
    server.stalls[IMAGE] = 10_000
    process = start(server, tmp_path)
    wait_for_bytes(tmp_path / "out" / f"{IMAGE[1:]}.partial", 10_000, process)
    process.kill()
    process.wait()
    assert process.stderr is not None
    process.stderr.close()
    server.stalls.clear()
    assert fetch(server, tmp_path).whole == 1
    check_whole(server, tmp_path)


def test_what_was_not_synced_is_fetched_again(server: PartServer, tmp_path: Path) -> None:
    server.cuts[IMAGE] = [10_000] + [0] * 9
    fetch(server, tmp_path)
    held = tmp_path / "out" / f"{IMAGE[1:]}{partial.SUFFIX}"
    with open(held, "ab") as file:  # as a file system leaves it where the power was cut
        file.write(bytes(5000))
    server.cuts.clear()
    assert fetch(server, tmp_path).whole == 1
    assert server.got(IMAGE)[-1] == "bytes=10000-"
    check_whole(server, tmp_path)


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"file": 1, "synced": -5}', b'{"synced": "x"}', b"\xff"])
def test_a_damaged_note_costs_a_new_start_and_nothing_else(server: PartServer, tmp_path: Path, note: bytes) -> None:
    server.cuts[IMAGE] = [10_000] + [0] * 9
    fetch(server, tmp_path)
    (tmp_path / "out" / f"{IMAGE[1:]}{partial.NOTE}").write_bytes(note)
    server.cuts.clear()
    assert fetch(server, tmp_path).whole == 1
    assert server.got(IMAGE)[-1] is None
    check_whole(server, tmp_path)


@pytest.mark.parametrize("record", [b"", b"[]", b'{"version": 1}', b'{"version": 1, "files": {"a": 1}, "source": ""}'])
def test_a_damaged_record_costs_a_look_at_the_files_and_nothing_else(
    server: PartServer, tmp_path: Path, record: bytes
) -> None:
    fetch(server, tmp_path)
    (tmp_path / "out" / "download.json").write_bytes(record)
    report = fetch(server, tmp_path)
    assert (report.whole, report.fetched_bytes) == (1, 0)


def test_a_folder_that_cannot_be_written_to_is_told(server: PartServer, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(clipql.ClipqlError, match=r"cannot finish making .*out"):
        fetch(server, tmp_path)


def test_a_source_that_wants_us_to_come_back_tomorrow_is_left(
    server: PartServer, tmp_path: Path, waits: list[float]
) -> None:
    for number in range(1, 100):
        for name in (IMAGE, TEXT, METADATA):
            server.answers[name.replace("_0.", f"_{number}.")] = [(429, {"Retry-After": "86400"})] * 9
    with pytest.raises(
        DownloadError, match=r"it asks to come back in 86,400 s: run again then\. What has come is kept"
    ):
        fetch(server, tmp_path, "0-99")
    assert len(server.requests) < 60


# sources that send something else


def endless(server: PartServer, first: bytes, sent: list[int]) -> None:
    """Have the server send these bytes, and zeros without end, and not tell how many."""
    server.endless[IMAGE] = (first, sent)


@pytest.mark.parametrize(
    ("first", "seen"),
    [
        (bytes(64), r"the file is not a .npy file: it begins as b'\x00\x00"),
        (b"<!DOCTYPE html><html>", "it begins as a web page, b'<!DOCTYPE ht'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it begins as a pointer of Git LFS"),
        (b"PAR1" + bytes(100), "it begins as b'PAR1"),
    ],
    ids=["zeros", "a page", "a pointer", "another kind"],
)
def test_what_is_no_part_ends_after_its_first_bytes(
    server: PartServer, tmp_path: Path, first: bytes, seen: str
) -> None:
    sent: list[int] = []
    endless(server, first, sent)
    report = fetch(server, tmp_path)
    assert f"{server.url}{IMAGE} came damaged, twice: " in reasons(report)
    assert seen in reasons(report)
    until(lambda: len(sent) == 2, "both answers of the server have ended")
    assert max(sent) < 32 << 20
    assert not list((tmp_path / "out").glob("*/img_emb_0*"))


def test_a_file_whose_size_nobody_tells_ends_where_its_header_says(server: PartServer, tmp_path: Path) -> None:
    sent: list[int] = []
    content = server.files[IMAGE]
    endless(server, content, sent)
    report = fetch(server, tmp_path)
    assert f"it goes on after the {len(content):,} bytes that its header announces" in reasons(report)
    until(lambda: sent, "the server's answer has ended")
    assert max(sent) < 32 << 20
    assert not list((tmp_path / "out").glob("*/img_emb_0*"))


def test_a_file_whose_size_nobody_tells_has_a_largest_size(server: PartServer, tmp_path: Path) -> None:
    sent: list[int] = []
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 200), }".ljust(117) + b"\n"
    endless(server, b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header, sent)
    report = fetch(server, tmp_path, patience=replace(QUICK, unsized_bytes=1_000_000))
    told = "it goes on after the 1,000,000 bytes that are taken of a file whose size is not told (--max-unsized)"
    assert told in reasons(report)
    until(lambda: sent, "the server's answer has ended")
    assert max(sent) < 32 << 20
    assert not list((tmp_path / "out").glob("*/img_emb_0*"))


def test_a_list_of_checksums_and_a_model_without_end_are_not_read_on(server: PartServer, tmp_path: Path) -> None:
    for path, first in (("/sums", b"a" * 64 + b"  x\n"), ("/model.json", b"{")):
        server.files[path] = first
        server.endless[path] = (first, [])
    with pytest.raises(DownloadError, match="brings more than 16,777,216 bytes"):
        fetch(server, tmp_path, checksums=f"{server.url}/sums")
    assert fetch(server, tmp_path).whole == 1
    assert not (tmp_path / "out" / "model.json").exists()
