"""The `clipql` command, on the real engine; as a process where exit status, pipes or start-up matter."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from parts import make_part
from patience import LAST_NET_SECONDS, until

import clipql
from clipql.cli import console
from clipql.cli.entry import main

ROOT = Path(clipql.__file__).parents[1]
MADE = "CREATE TABLE t (a Int32, v Array(Float32)) ENGINE = MergeTree ORDER BY a; INSERT INTO t VALUES "
Run = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]) -> Run:
    """Run the command line in this process, in an empty folder: exit status, standard output, standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLIPQL_DB", raising=False)

    def call(*arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        status = main(arguments)
        out, err = capfdbinary.readouterr()
        return status, out, err.decode()

    return call


def process(*arguments: str, folder: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "clipql", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=stdin,
        capture_output=True,
        timeout=LAST_NET_SECONDS,
        check=False,
    )


def test_results_are_tab_separated_where_no_terminal_reads_them(run: Run) -> None:
    assert run("sql", "SELECT number, toString(number) AS t FROM numbers(2)") == (0, b"0\t0\n1\t1\n", "")


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("CSV", b'1,"a,b"\n'),
        ("CSVWithNames", b'"x","y"\n1,"a,b"\n'),
        ("JSONEachRow", b'{"x":1,"y":"a,b"}\n'),
        ("Values", b"(1,'a,b')"),
        ("PrettyCompact", "   ┌─x─┬─y───┐\n1. │ 1 │ a,b │\n   └───┴─────┘\n".encode()),
    ],
)
def test_a_format_is_written_as_clickhouse_writes_it(run: Run, format: str, expected: bytes) -> None:
    assert run("sql", "SELECT 1 AS x, 'a,b' AS y", "--format", format) == (0, expected, "")


def test_a_format_in_the_statement_wins_over_the_option(run: Run) -> None:
    assert run("sql", "SELECT 1 AS x FORMAT JSONEachRow", "--format", "CSV") == (0, b'{"x":1}\n', "")


def test_json_csv_arrow_and_parquet_hold_the_same_rows(run: Run) -> None:
    query = "SELECT number AS n, concat('ü', toString(number)) AS t FROM numbers(3)"
    expected = {"n": [0, 1, 2], "t": ["ü0", "ü1", "ü2"]}
    out = {f: run("sql", query, "--format", f)[1] for f in ("JSON", "CSVWithNames", "ArrowStream", "Arrow", "Parquet")}
    assert pa.ipc.open_stream(out["ArrowStream"]).read_all().to_pydict() == expected
    assert pa.feather.read_table(io.BytesIO(out["Arrow"])).to_pydict() == expected
    assert pq.read_table(io.BytesIO(out["Parquet"])).to_pydict() == expected
    assert [(int(r["n"]), r["t"]) for r in json.loads(out["JSON"])["data"]] == list(
        zip(*expected.values(), strict=True)
    )
    rows = list(csv.DictReader(io.StringIO(out["CSVWithNames"].decode())))
    assert [r["t"] for r in rows] == expected["t"]


def test_several_statements_run_in_order_and_each_prints(run: Run) -> None:
    assert run("sql", MADE + "(1, [1, 0]); SELECT a FROM t; SELECT ';' AS s;") == (0, b"1\n;\n", "")


def test_a_script_comes_from_standard_input(run: Run) -> None:
    script = MADE.encode() + b"(1, [1, 0]);\n-- a comment; with a semicolon\nSELECT v FROM t;\n"
    assert run(stdin=script) == (0, b"[1,0]\n", "")
    assert run("sql", "-", stdin=b"SELECT count() FROM t") == (0, b"1\n", "")
    assert run("sql", stdin=b"") == (0, b"", "")


def test_data_follows_insert_format_in_a_script(run: Run) -> None:
    script = (MADE + '(1, [1, 0]);\nINSERT INTO t FORMAT CSV\n2,"[0,1]"\n3,"[1,1]"\n').encode()
    assert run(stdin=script) == (0, b"", "")
    assert run("sql", "SELECT * FROM t ORDER BY a") == (0, b"1\t[1,0]\n2\t[0,1]\n3\t[1,1]\n", "")


def test_data_for_insert_format_comes_from_standard_input(run: Run) -> None:
    run("sql", MADE + "(1, [1, 0])")
    assert run("sql", "INSERT INTO t FORMAT CSV", stdin=b'2,"[0,1]"\n') == (0, b"", "")
    assert run("sql", "SELECT a FROM t ORDER BY a")[1] == b"1\n2\n"


def test_a_vector_parameter_comes_from_a_numpy_file(run: Run, tmp_path: Path) -> None:
    np.save("flat.npy", np.array([1, 0], np.float16))
    np.save("row.npy", np.array([[0.25, 1]], np.float64))
    run("sql", MADE + "(1, [1, 0]), (2, [0, 1])")
    query = "SELECT a FROM t ORDER BY L2Distance(v, {q:Array(Float32)}) LIMIT 1"
    assert run("sql", query, "--param", "q=@flat.npy")[1] == b"1\n"
    assert run("sql", query, "--param", f"q=@{tmp_path}/row.npy")[1] == b"2\n"


def test_a_text_parameter_is_taken_as_it_is(run: Run) -> None:
    query = "SELECT {n:Int32} + 1, {s:String}"
    assert run("sql", query, "--param", "n=41", "--param", "s=a=b 'c'")[1] == b"42\ta=b \\'c\\'\n"
    assert run("sql", "SELECT {s:String}", "--param", "s=@@me")[1] == b"@me\n"


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3)), "bad.npy holds an array of shape (2, 3); expected one vector, (d,) or (1, d)"),
        (np.zeros(0), "bad.npy holds an array of shape (0,); expected one vector, (d,) or (1, d)"),
        (np.array(["a"]), "bad.npy holds <U1 values; expected numbers"),
        (np.array([{}], object), "bad.npy is not a .npy file of numbers"),
    ],
)
def test_a_file_that_is_no_vector_is_refused_with_what_was_found(run: Run, array: np.ndarray, message: str) -> None:
    np.save("bad.npy", array)
    assert run("sql", "SELECT {q:Array(Float32)}", "--param", "q=@bad.npy") == (1, b"", f"clipql: {message}\n")


def test_a_vector_file_that_is_not_there_is_named(run: Run) -> None:
    expected = (1, b"", "clipql: gone.npy: No such file or directory\n")
    assert run("search", "--vector", "@gone.npy") == expected


def test_search_prints_the_nearest_rows(run: Run) -> None:
    np.save("q.npy", np.array([1, 0.1], np.float32))
    run("sql", MADE + "(1, [1, 0]), (2, [0, 1]), (3, [1, 1])")
    options = ("--table", "t", "--column", "v", "--vector", "@q.npy", "--columns", "a", "--format", "JSONEachRow")
    status, out, err = run("search", *options, "-k", "2")
    assert (status, [json.loads(line)["a"] for line in out.splitlines()], err) == (0, [1, 3], "")
    assert [json.loads(line)["a"] for line in run("search", *options, "--where", "a > 1")[1].splitlines()] == [3, 2]
    assert run("search", *options, "--distance", "nope")[0] == 1


def test_ingest_says_what_each_part_gave_and_skips_what_is_there(run: Run) -> None:
    make_part(Path("laion"), rows=30, number=0)
    make_part(Path("laion"), rows=20, number=1)
    status, out, err = run("ingest", "laion", "--table", "pictures", "--parts", "0")
    assert (status, err) == (0, "part metadata_0.parquet (1 of 1): 30 rows\n")
    assert out.startswith(b"30 rows in 1 part, ")
    status, out, err = run("ingest", "laion", "--table", "pictures", "--link")
    assert err.splitlines() == [
        "part metadata_0.parquet (1 of 2): already there, skipped",
        "part metadata_1.parquet (2 of 2): 20 rows",
    ]
    assert out.startswith(b"20 rows in 1 part, 1 skipped, ")
    assert run("sql", "SELECT count() FROM pictures")[1] == b"50\n"
    assert run("ingest", "nowhere")[0] == 1


@pytest.mark.parametrize(
    ("arguments", "lower"),
    [
        (["ingest", "nowhere"], True),
        (["embed", "captions", "nowhere", "out"], True),
        (["dedup", "--table", "none", "--within", "0.1", "--into", "x"], True),
        (["cluster-rows", "--table", "none", "--k", "2", "--into", "x"], True),
        (["sql", "SELECT 1"], False),
        (["search", "words"], False),
    ],
)
def test_commands_that_work_for_long_leave_the_processors_to_others(
    arguments: list[str], lower: bool, tmp_path: Path
) -> None:
    code = (
        "import os, sys; from clipql.cli.entry import main; before = os.getpriority(os.PRIO_PROCESS, 0); "
        f"sys.argv = ['clipql', *{arguments}]; main(); "
        "print(before, os.getpriority(os.PRIO_PROCESS, 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    before, after = map(int, done.stdout.splitlines()[-1].split())
    assert after == (min(19, before + 5) if lower else before), done.stderr


def test_the_database_is_db_then_clipql_db_then_the_current_folder(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("sql", "SELECT 1")
    monkeypatch.setenv("CLIPQL_DB", "of_environment")
    run("sql", "SELECT 1")
    run("--db", "before", "sql", "SELECT 1")
    run("sql", "--db", "after", "SELECT 1")
    assert sorted(os.listdir()) == ["after", "before", "clipql.db", "of_environment"]


@pytest.mark.parametrize(
    ("name", "server", "made"),
    [
        ("sql", True, True), ("ingest", True, True), ("search", True, True),
        ("serve", False, True), ("check", False, False), ("backup", False, False),
    ],
)  # fmt: skip
def test_the_help_offers_a_server_and_a_new_folder_where_a_command_takes_them(
    run: Run, name: str, server: bool, made: bool
) -> None:
    status, out, _ = run(name, "--help")
    assert (status, b"--db PATH" in out) == (0, True)
    assert (b"--url URL" in out, b"the database folder, made if" in out) == (server, made)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["serve"], "clipql: --url names a server that runs already: give --db, the folder to serve"),
        (["check"], "clipql: check and backup work on a folder, not on a server: stop the server, then name --db"),
        (
            ["backup", "copy"],
            "clipql: check and backup work on a folder, not on a server: stop the server, then name --db",
        ),
    ],
)
def test_a_command_that_needs_a_folder_says_so_of_a_server(run: Run, arguments: list[str], message: str) -> None:
    server = ["--url", "http://127.0.0.1:1"]
    assert run(*server, *arguments) == run(*arguments, *server) == (1, b"", f"{message}\n")
    assert os.listdir() == []


def test_an_error_is_one_line_on_standard_error_and_stops_the_script(run: Run) -> None:
    status, out, err = run("sql", "SELECT 1; SELECT nope; SELECT 2")
    assert (status, out) == (1, b"1\n")
    assert err.startswith("clipql: Unknown expression identifier `nope`")
    assert err.endswith("(ClickHouse 47 UNKNOWN_IDENTIFIER)\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["frobnicate"], ["sql", "--param", "q"], ["sql", "SELECT 1", "--frmat", "CSV"], ["search", "--vector", "q.npy"]],
)
def test_a_wrong_command_line_is_status_2_with_the_usage(run: Run, arguments: list[str]) -> None:
    status, out, err = run(*arguments)
    assert (status, out) == (2, b"")
    assert err.startswith("usage: clipql")
    assert not os.listdir()  # and no database was made


def test_a_script_that_is_not_utf8_is_refused_with_the_place(run: Run) -> None:
    assert run(stdin=b"SELECT '\xff'") == (1, b"", "clipql: standard input is not UTF-8 text: byte 0xff at 8\n")


def test_a_database_that_another_process_holds_is_an_error_of_one_line(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "clipql.db"):
        done = process("sql", "SELECT 1", folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"clipql: ")
    assert done.stderr.count(b"\n") == 1


def test_all_of_a_large_result_arrives(tmp_path: Path) -> None:
    done = process("sql", "SELECT number FROM numbers(1000000)", folder=tmp_path)
    assert done.stdout.splitlines() == [b"%d" % n for n in range(1_000_000)]


def test_a_reader_that_stops_reading_ends_it_silently(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clipql", "sql", "SELECT number FROM numbers(3000000); SELECT 1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == b"0\n"
        child.stdout.close()
        assert child.stderr.read() == b""
    assert child.returncode == 141


def processor_time(process: int) -> float:
    """Seconds of the processor that a process has had."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="whether a process computes is read from /proc")
def test_ctrl_c_ends_a_query_with_status_130(tmp_path: Path) -> None:
    query = "SELECT 'begun'; SELECT count() FROM numbers(1000000000000) WHERE sipHash64(number) = 0"
    command = [sys.executable, "-m", "clipql", "sql", query]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == b"begun\n"
        before = processor_time(child.pid)
        until(lambda: processor_time(child.pid) > before + 0.3, "the second query computes")
        child.send_signal(signal.SIGINT)
        assert child.stderr.read() == b""
    assert child.returncode == 130
    assert process("sql", "SELECT 1", folder=tmp_path).stdout == b"1\n"


def test_help_and_version_load_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from clipql.cli.entry import main; status = main(sys.argv[1:]); "
        "print(status, sorted({'numpy', 'pyarrow', 'numba', 'chdb', 'prompt_toolkit', 'ssl', 'json', 'hashlib',"
        "'clipql.storage', 'clipql.serve', 'clipql.encode'} & set(sys.modules)))"
    )
    for option, begins in (("--help", "usage: clipql"), ("--version", f"clipql {clipql.__version__}")):
        done = subprocess.run(
            [sys.executable, "-c", code, option],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LAST_NET_SECONDS,
            check=True,
        )
        assert done.stdout.startswith(begins)
        assert done.stdout.endswith("0 []\n")


@pytest.mark.parametrize(
    ("number", "count", "size"),
    [
        (0, "0.00", "0.00 B"),
        (999, "999.00", "999.00 B"),
        (300_000, "300.00 thousand", "300.00 KB"),
        (25_600_000, "25.60 million", "25.60 MB"),
        (52_430_000_000, "52.43 billion", "52.43 GB"),
    ],
)
def test_quantities_are_written_as_clickhouse_writes_them(number: int, count: str, size: str) -> None:
    assert (console.readable(number), console.readable_bytes(number)) == (count, size)


def test_the_footer_tells_the_work_only_where_it_is_much() -> None:
    assert console.footer("1 row in set", 0.5, console.Work(999, 10)) == "1 row in set. Elapsed: 0.500 sec."
    assert console.footer("8 rows in set", 0.012, console.Work(300_000, 614_400_000)) == (
        "8 rows in set. Elapsed: 0.012 sec. "
        "Processed 300.00 thousand rows, 614.40 MB (25.00 million rows/s., 51.20 GB/s.)"
    )


@pytest.mark.parametrize(("seconds", "text"), [(8.4, "8 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")])
def test_the_time_left_is_in_units_of_its_size(seconds: float, text: str) -> None:
    assert console.duration(seconds) == text


def test_a_bar_grows_by_eighths_of_a_character() -> None:
    assert [console.bar(share, 2) for share in (0, 0.125, 0.5, 1, 7)] == ["  ", "▎ ", "█ ", "██", "██"]


def test_what_an_ingest_took_is_summed_up() -> None:
    assert console.ingest_summary(300_000, 2, 1, 1.2) == "300,000 rows in 2 parts, 1 skipped, 1.2 s (250,000 rows/s)"
    assert console.ingest_summary(1, 1, 0, 0.5) == "1 row in 1 part, 0.5 s (2 rows/s)"
