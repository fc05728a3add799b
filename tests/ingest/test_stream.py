"""`clipql ingest --from`: parts fetched, taken in and freed, each once, in their order."""

from __future__ import annotations

import argparse
import io
import os
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from part_server import QUICK, PartServer
from parts import Part, make_part, stored
from patience import until

import clipql
from clipql.cli.commands.download import DownloadDisplay, rate, state
from clipql.cli.console import CLEAR_LINE
from clipql.cli.entry import main
from clipql.errors import DiskFull, DownloadError, IngestError
from clipql.ingest.fetch.parts import FetchProgress
from clipql.ingest.fetch.record import locked
from clipql.ingest.pipeline import IngestProgress, IngestReport

IMAGE, TEXT, METADATA = "/img_emb/img_emb_0.npy", "/text_emb/text_emb_0.npy", "/metadata/metadata_0.parquet"


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    return [make_part(tmp_path / "mirror", rows=40, dimension=16, number=number) for number in range(6)]


@pytest.fixture
def server(parts: list[Part]) -> Iterator[PartServer]:
    with PartServer() as made:
        made.publish(parts[0].folder)
        yield made


def ingest(db: clipql.Database, server: PartServer, numbers: str, **options: object) -> IngestReport:
    return db.ingest(server.url, parts=numbers, patience=QUICK, **options)  # type: ignore[no-any-return]


def check(db: clipql.Database, *parts: Part) -> None:
    """The table holds these parts, in this order, and nothing of them lies about any more."""
    for column, of in (("image_embedding", "image"), ("text_embedding", "text")):
        expected = np.concatenate([getattr(p, of) for p in parts]).astype(np.float32)
        assert np.array_equal(stored(db, "laion", column), expected)
    captions = [c for p in parts for c in p.metadata["caption"].to_pylist()]
    assert [c for (c,) in db.sql("SELECT caption FROM laion ORDER BY _row").rows] == captions
    assert not (db.path / "incoming").exists()


def number_of(path: str) -> int:
    return int(path.rpartition("_")[2].partition(".")[0])


def test_parts_from_an_address_are_taken_in(db: clipql.Database, server: PartServer, parts: list[Part]) -> None:
    report = ingest(db, server, "0-5")
    assert (report.rows, report.parts_taken, report.parts_skipped, report.lost) == (240, 6, 0, ())
    check(db, *parts)


def test_a_part_that_is_in_the_table_is_not_fetched_again(
    db: clipql.Database, server: PartServer, parts: list[Part]
) -> None:
    ingest(db, server, "0-2")
    server.requests.clear()
    report = ingest(db, server, "0-3")
    assert (report.rows, report.parts_taken, report.parts_skipped) == (40, 1, 3)
    assert {number_of(r.path) for r in server.requests if r.path in server.files} == {3}
    server.requests.clear()
    assert ingest(db, server, "0-3").parts_skipped == 4
    assert server.requests == []
    check(db, *parts[:4])


def test_a_part_that_came_from_a_folder_is_told_by_its_ends(
    db: clipql.Database, server: PartServer, parts: list[Part]
) -> None:
    db.ingest(parts[0].folder, parts="0-1")
    report = ingest(db, server, "0-2")
    assert (report.parts_taken, report.parts_skipped) == (1, 2)
    check(db, *parts[:3])


def test_a_part_that_came_from_a_folder_is_fetched_and_skipped_where_its_ends_cannot_be_had(
    db: clipql.Database, server: PartServer, parts: list[Part]
) -> None:
    db.ingest(parts[0].folder, parts="0-1")
    for path in (IMAGE, TEXT, METADATA):
        server.answers[path] = [(503, {})]
    report = ingest(db, server, "0-2")
    assert (report.parts_taken, report.parts_skipped) == (1, 2)
    check(db, *parts[:3])


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_no_more_parts_lie_about_than_allowed(
    db: clipql.Database, server: PartServer, parts: list[Part], ahead: int
) -> None:
    most, taken = 0, 0

    def look(progress: object) -> None:
        nonlocal most
        there = {number_of(p.name.removesuffix(".partial")) for p in (db.path / "incoming").glob("*/*[yt]")}
        most = max(most, len(there))

    def note(progress: IngestProgress) -> None:
        nonlocal taken
        look(progress)
        taken += progress.finished

    ingest(db, server, "0-5", ahead=ahead, jobs=6, progress=note, fetching=look)
    assert 1 <= most <= ahead + 1
    assert taken == 6
    check(db, *parts)


def test_parts_are_fetched_while_one_is_taken_in(db: clipql.Database, server: PartServer) -> None:
    seen: list[set[int]] = []

    def note(progress: IngestProgress) -> None:
        # the parts after it come while this one waits, and no others
        if progress.part_number == 1 and not seen:
            until(lambda: len({number_of(p) for p in server.fetched()}) >= 3, "the next two are fetched")
            seen.append({number_of(p) for p in server.fetched()})

    ingest(db, server, "0-5", progress=note)
    assert seen == [{0, 1, 2}]


def test_a_part_that_cannot_be_had_is_told_and_the_others_go_on(
    db: clipql.Database, server: PartServer, parts: list[Part]
) -> None:
    del server.files[TEXT.replace("_0", "_1")]
    server.always[IMAGE.replace("_0", "_3")] = 503
    report = ingest(db, server, "0-5")
    assert report.parts_taken == 4
    assert [(lost.part, lost.file, lost.status) for lost in report.lost] == [
        (1, TEXT[1:].replace("_0", "_1"), 404),
        (3, IMAGE[1:].replace("_0", "_3"), 503),
    ]
    assert not {p for p in server.fetched() if number_of(p) == 1}  # what is useless alone is not fetched
    check(db, parts[0], parts[2], parts[4], parts[5])
    server.always.clear()
    assert ingest(db, server, "3").parts_taken == 1


def test_a_part_that_cannot_be_taken_in_is_told_and_the_others_go_on(
    db: clipql.Database, server: PartServer, parts: list[Part]
) -> None:
    bad = parts[1].image
    assert bad is not None
    bad = bad.copy()
    bad[7, 3] = np.nan
    stream = io.BytesIO()
    np.save(stream, bad)
    server.files[IMAGE.replace("_0", "_1")] = stream.getvalue()
    report = ingest(db, server, "0-2")
    assert report.parts_taken == 2
    assert [lost.part for lost in report.lost] == [1]
    assert "row 7 holds nan at position 3" in report.lost[0].reason
    check(db, parts[0], parts[2])


def test_a_damaged_part_is_told_and_the_others_go_on(
    db: clipql.Database, server: PartServer, parts: list[Part]
) -> None:
    server.files[METADATA] = server.files[METADATA][:-9]
    report = ingest(db, server, "0-1")
    assert "came damaged, twice" in report.lost[0].reason
    check(db, parts[1])


def test_parts_that_never_fit_the_table_are_not_all_fetched(db: clipql.Database, server: PartServer) -> None:
    db.sql("CREATE TABLE laion (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    with pytest.raises(IngestError, match=r"none of the first 3 parts could be taken in.*has no vector column"):
        ingest(db, server, "0-5", ahead=0)
    assert {number_of(p) for p in server.fetched()} == {0, 1, 2}
    assert db.sql("SELECT count() FROM laion").rows == [(0,)]


def test_the_room_for_a_few_parts_is_asked_for_first(
    db: clipql.Database, server: PartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", ["total", "used", "free"])
    size = sum(len(c) for p, c in server.files.items() if number_of(p) == 0)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 0, 4 * size - 1))
    with pytest.raises(DiskFull, match=r"3 parts of .* and the room for one in the table need"):
        ingest(db, server, "0-5")
    assert server.fetched() == set()
    assert ingest(db, server, "0-1").parts_taken == 2


def test_an_index_is_brought_up_to_date_once_at_the_end(
    db: clipql.Database, server: PartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[int] = []
    monkeypatch.setattr(
        db.indexes,
        "after_insert",
        lambda id: called.append(db.registry.find(None, "laion").rows),  # type: ignore[union-attr]
    )
    ingest(db, server, "0-5")
    assert called == [240]


def test_progress_counts_over_all_parts(db: clipql.Database, server: PartServer) -> None:
    seen: list[IngestProgress] = []
    ingest(db, server, "0-5", progress=seen.append)
    ends = [p for p in seen if p.finished]
    assert [(p.part_number, p.parts, p.rows_done, p.rows_total) for p in ends] == [
        (n, 6, 40 * n, 240) for n in range(1, 7)
    ]


def test_images_alone_make_a_table_of_images(db: clipql.Database, server: PartServer, parts: list[Part]) -> None:
    ingest(db, server, "0-1", without=["text"])
    assert db.sql("DESCRIBE TABLE laion").rows[-1][0] == "image_embedding"
    assert not [p for p in server.fetched() if "text" in p]


def test_the_model_that_a_source_names_is_remembered(db: clipql.Database, server: PartServer) -> None:
    server.files["/model.json"] = b'{"model": "ViT-B/32"}'
    ingest(db, server, "0")
    table = db.registry.find(None, "laion")
    assert table is not None
    assert [c.model for c in table.columns] == ["ViT-B/32", "ViT-B/32"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"link": True}, "leave --link out"), ({"ahead": -1}, "expected 0 or more")],
)
def test_what_cannot_be_is_refused(
    db: clipql.Database, server: PartServer, options: dict[str, object], message: str
) -> None:
    with pytest.raises(IngestError, match=message):
        ingest(db, server, "0", **options)


def test_a_source_that_is_out_of_reach_ends_the_run_and_keeps_what_is_in(
    db: clipql.Database, server: PartServer, parts: list[Part]
) -> None:
    for number in range(2, 40):
        for path in (IMAGE, TEXT, METADATA):
            server.always[path.replace("_0", f"_{number}")] = 503
    with pytest.raises(DownloadError, match="the source is taken to be out of reach"):
        db.ingest(server.url, parts="0-39", ahead=9, patience=replace(QUICK, attempts=1))
    assert db.sql("SELECT count() FROM laion").rows == [(80,)]


# the command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> object:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIPQL_DB", raising=False)

    def call(*arguments: str) -> tuple[int, list[str], list[str]]:
        status = main(arguments)
        out, err = capfd.readouterr()
        return status, out.splitlines(), err.splitlines()

    return call


def test_the_command_tells_each_part_and_ends_with_what_is_missing(server: PartServer, run: object) -> None:
    assert callable(run)
    status, out, err = run("ingest", "--from", server.url, "--parts", "4-6", "--tries", "1")
    url = f"{server.url}{METADATA}".replace("_0", "_6")
    assert status == 1
    assert out[0].startswith("80 rows in 2 parts, ")
    assert err == [
        "part metadata_4.parquet (1 of 3): 40 rows",
        "part metadata_5.parquet (2 of 3): 40 rows",
        "fetching: part 6 is left out",
        f"clipql: part 6: {url}: the source has no such file",
    ]
    assert run("ingest", "--from", server.url, "--parts", "4-5")[:1] == (0,)


def test_the_command_downloads(server: PartServer, run: object, tmp_path: Path) -> None:
    assert callable(run)
    status, out, err = run("download", server.url, "out", "--parts", "0,6", "--without", "text", "--limit-rate", "99M")
    assert status == 1
    assert err[0].startswith("part 0 (1 of 2): fetched, ")
    assert [line.partition(": http")[0] for line in err[1:]] == [
        "part 6 (2 of 2): not whole, " + err[1].partition("whole, ")[2].partition(": http")[0],
        "clipql: part 6",
        "clipql: part 6",
    ]
    assert out[0].startswith("2 parts: 1 whole; 2 files missing, listed in out/download.json. ")
    assert run("download", server.url, "out", "--parts", "0", "--without", "text")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--from", "https://h"], "say which parts, such as --parts 0-409"),
        (["folder", "--from", "https://h", "--parts", "0"], "name the one or the other"),
        ([], "give a folder of parts, files with vectors, or --from and an address"),
    ],
)
def test_a_command_that_leaves_a_question_open_is_refused(run: object, arguments: list[str], message: str) -> None:
    assert callable(run)
    status, _, err = run("ingest", *arguments)
    assert status == 1
    assert message in err[-1]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_an_ingest_that_was_ended_goes_on(
    server: PartServer, parts: list[Part], tmp_path: Path, how: signal.Signals
) -> None:
    server.stalls[IMAGE.replace("_0", "_3")] = 100
    command = [sys.executable, "-m", "clipql", "--db", "laion.db", "ingest", "--from", server.url, "--parts", "0-5"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:  # parts 0 to 2 are in, and 3 does not come
        if "(3 of 6)" in line:
            break
    process.send_signal(how)
    told = process.stderr.read()
    process.wait()
    process.stderr.close()
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert ("run the same command again" in told) == (how == signal.SIGINT)
    server.stalls.clear()
    server.requests.clear()
    with clipql.connect(tmp_path / "laion.db") as db:
        report = ingest(db, server, "0-5")
        assert (report.parts_taken, report.parts_skipped) == (3, 3)
        assert {number_of(p) for p in server.fetched()} == {3, 4, 5}
        check(db, *parts)


def test_what_an_earlier_run_has_left_of_other_parts_is_removed(
    db: clipql.Database, server: PartServer, parts: list[Part]
) -> None:
    left = db.path / "incoming" / "img_emb" / "img_emb_77.npy"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"x" * 100)
    ingest(db, server, "0")
    check(db, parts[0])


def test_what_an_earlier_run_has_left_of_another_source_is_not_taken_for_this_ones(
    db: clipql.Database, server: PartServer, parts: list[Part], tmp_path: Path
) -> None:
    other = make_part(tmp_path / "other", rows=40, dimension=16, seed=99)
    for path in (other.image_path, other.text_path, other.metadata_path):
        target = db.path / "incoming" / path.relative_to(other.folder)
        target.parent.mkdir(parents=True)
        target.write_bytes(path.read_bytes())
    report = ingest(db, server, "0")
    assert report.parts_taken == 1
    check(db, parts[0])


class Terminal(io.StringIO):
    """A terminal that remembers what was written to it."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_one_line_that_is_gone_at_the_end(server: PartServer, tmp_path: Path) -> None:
    server.answers[IMAGE] = [(503, {})]
    terminal = Terminal()
    with DownloadDisplay(terminal) as display:
        clipql.download(server.url, tmp_path / "out", parts="0", patience=QUICK, progress=display.update)
    lines = terminal.getvalue().split(CLEAR_LINE)
    assert lines[0] == lines[-1] == ""
    assert any(line.startswith("asking for the sizes of 3 files: ") for line in lines)
    assert "\n" not in terminal.getvalue()


def test_what_is_shown_of_a_run() -> None:
    progress = FetchProgress(12, 1230, 34 * 10**8, 12 * 10**11, 852 * 10**7, 100.0, 4, 410)
    assert state(progress) == "12 of 1,230 files  3.40 GB of 1.20 TB  85.20 MB/s  3 h 54 min left"
    waiting = replace(progress, waiting="https://h/x: HTTP 503\x1b[2J")
    terminal = Terminal()
    DownloadDisplay(terminal).update(waiting)
    assert terminal.getvalue() == f"{CLEAR_LINE}waiting: https://h/x: HTTP 503␛[2J"


@pytest.mark.parametrize(
    ("text", "bytes_a_second"), [("500", 500.0), ("1.5K", 1500.0), ("20M", 2e7), ("20MB/s", 2e7), ("1g", 1e9)]
)
def test_a_rate_is_read_as_it_is_written(text: str, bytes_a_second: float) -> None:
    assert rate(text) == bytes_a_second


@pytest.mark.parametrize("text", ["", "0", "-5M", "fast", "5T", "1e6"])
def test_a_rate_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected bytes a second, such as 500K or 20M"):
        rate(text)


def test_an_address_among_folders_is_told_where_to_go(
    db: clipql.Database, server: PartServer, parts: list[Part]
) -> None:
    with pytest.raises(IngestError, match="is an address: --from takes one"):
        db.ingest([parts[0].folder, server.url])
    with pytest.raises(IngestError, match="expected numbers below ten million"):
        ingest(db, server, "0-99999999999")


def test_indexes_that_an_ended_run_has_not_built_are_built_by_the_next(
    db: clipql.Database, server: PartServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(db, server, "0-1")
    called: list[str] = []
    monkeypatch.setattr(db.indexes, "after_insert", called.append)
    ingest(db, server, "0-1")
    assert len(called) == 1


def test_the_command_streams_from_a_folder_too(parts: list[Part], run: object) -> None:
    assert callable(run)
    assert run("ingest", "--from", str(parts[0].folder), "--parts", "0-2")[0] == 0
    status, out, _ = run("ingest", "--from", str(parts[0].folder), "--parts", "0-3", "--ahead", "0")
    assert status == 0
    assert out[0].startswith("40 rows in 1 part, 3 skipped, ")


def test_a_room_that_another_run_uses_is_left_alone(
    db: clipql.Database, server: PartServer, parts: list[Part], tmp_path: Path
) -> None:
    with locked(tmp_path / "room" / "incoming"):
        with pytest.raises(DownloadError, match="another process is downloading into"):
            ingest(db, server, "0", room=tmp_path / "room")
        assert (tmp_path / "room" / "incoming").exists()
    ingest(db, server, "0", room=tmp_path / "room")
    assert list((tmp_path / "room").iterdir()) == []
    check(db, parts[0])


def test_a_room_keeps_what_is_not_ours(db: clipql.Database, server: PartServer, parts: list[Part]) -> None:
    own = {p: p.read_bytes() for p in parts[0].folder.rglob("*") if p.is_file()}
    ingest(db, server, "0-1", room=parts[0].folder)
    assert {p: p.read_bytes() for p in parts[0].folder.rglob("*") if p.is_file()} == own


def test_each_of_the_last_parts_that_cannot_be_taken_in_is_told(
    db: clipql.Database, server: PartServer, parts: list[Part]
) -> None:
    db.sql("CREATE TABLE laion (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    report = ingest(db, server, "0-2")
    assert [lost.part for lost in report.lost] == [0, 1, 2]
