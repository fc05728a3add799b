"""The SQL shell: typed at through a pipe, and on a real terminal where signals and screens matter."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from parts import make_part
from patience import LAST_NET_SECONDS
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

import clipql
from clipql.cli import console
from clipql.cli.editor import Highlighter, NameCompleter, Names, complete, history
from clipql.cli.shell import Shell

ROOT = Path(clipql.__file__).parents[1]
ENTER, ALT_ENTER, CTRL_C, CTRL_D, TAB = "\r", "\x1b\r", "\x03", "\x04", "\t"
MADE = (
    "CREATE TABLE laion (id UInt32, caption String, embedding Array(Float32)) ENGINE = MergeTree ORDER BY id",
    "INSERT INTO laion SELECT number, 'cat', [number, 1] FROM numbers(3000)",
)


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


def typed(db: clipql.Database, keys: str) -> str:
    """What the shell writes while these keys are struck, without its greeting and with times as T."""
    out = io.StringIO()
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(keys + CTRL_C + CTRL_D)
        assert Shell(db, out=out, errors=out, input=pipe, output=DummyOutput()).loop() == 0
    greeting, _, rest = out.getvalue().partition("\n\n")
    assert greeting.startswith(f"clipql {clipql.__version__} on ClickHouse ")
    return re.sub(r"Elapsed: [0-9.]+", "Elapsed: T", rest)


def test_a_result_is_a_table_with_the_number_of_its_rows(db: clipql.Database) -> None:
    assert typed(db, "SELECT 1 AS x, 'a' AS y;" + ENTER) == (
        "\n   ┌─x─┬─y─┐\n1. │ 1 │ a │\n   └───┴───┘\n\n1 row in set. Elapsed: T sec.\n\n"
    )


def test_the_rows_returned_and_the_rows_gone_through_are_told_apart(db: clipql.Database) -> None:
    shown = typed(db, "SELECT number FROM numbers(100000) WHERE number % 50 = 0;" + ENTER)
    assert "\n2,000 rows in set. Elapsed: T sec. Processed 100.00 thousand rows, 800.00 KB (" in shown


def test_vectors_that_a_search_compares_are_counted_as_processed(db: clipql.Database) -> None:
    for statement in MADE:
        db.execute(statement)
    shown = typed(db, "SELECT id FROM laion ORDER BY L2Distance(embedding, [5, 1]) LIMIT 2;" + ENTER)
    found = re.search(r"2 rows in set\. Elapsed: T sec\. Processed ([0-9.]+) thousand rows, ([0-9.]+) KB", shown)
    assert found
    assert float(found[1]) >= 3.0  # the 3,000 vectors, and what ClickHouse read to fetch two rows
    assert float(found[2]) >= 12.0  # 3,000 vectors of two float16 numbers


def test_statements_without_a_result_say_ok(db: clipql.Database) -> None:
    assert typed(db, "SET max_threads = 2;" + ENTER) == "\nOk.\n\n0 rows in set. Elapsed: T sec.\n\n"


@pytest.mark.parametrize("vector", ["v Array(Float32)", "v String"])
def test_an_insert_tells_its_rows_with_vectors_and_without(db: clipql.Database, vector: str) -> None:
    db.execute(f"CREATE TABLE t (a Int32, {vector}) ENGINE = MergeTree ORDER BY a")
    assert typed(db, "INSERT INTO t VALUES (1, '[1]'), (2, '[2]');" + ENTER).startswith("\nOk.\n\n2 rows inserted. ")
    assert typed(db, "INSERT INTO t FORMAT CSV" + ENTER + '3,"[3]";' + ENTER).startswith("\nOk.\n\n1 row inserted. ")
    assert db.sql("SELECT a FROM t ORDER BY a").rows == [(1,), (2,), (3,)]


def test_an_empty_result_has_no_rows(db: clipql.Database) -> None:
    assert typed(db, "SELECT 1 WHERE 0;" + ENTER) == "\n\n0 rows in set. Elapsed: T sec.\n\n"


def test_several_statements_run_until_one_fails(db: clipql.Database) -> None:
    shown = typed(db, "SELECT 'one' AS x; SELECT nope; SELECT 'three' AS x;" + ENTER)
    assert "│ one │" in shown
    assert "Code: 47. DB::Exception: Unknown expression identifier `nope`." in shown
    assert shown.endswith("(UNKNOWN_IDENTIFIER)\n\n")
    assert "three" not in shown


def test_an_error_of_clipql_is_its_message(db: clipql.Database) -> None:
    for statement in MADE:
        db.execute(statement)
    shown = typed(db, "SELECT id FROM laion ORDER BY L2Distance(embedding, [1, 2, 3]) LIMIT 1;" + ENTER)
    assert shown == "embedding of default.laion holds 2 numbers; the query vector [1, 2, 3] has 3\n\n"


def test_enter_continues_a_statement_until_its_semicolon(db: clipql.Database) -> None:
    assert "│ 3 │" in typed(db, "SELECT 1" + ENTER + "+ 2 AS x" + ENTER + ";" + ENTER)
    assert "│ 3 │" in typed(db, "SELECT 1" + ALT_ENTER + "+ 2 AS x;" + ENTER)


def test_enter_on_nothing_does_nothing(db: clipql.Database) -> None:
    assert typed(db, ENTER + "  " + ENTER + ";" + ENTER + ";;" + ENTER) == ""


def test_ctrl_c_clears_the_line(db: clipql.Database) -> None:
    assert typed(db, "SELECT nope" + CTRL_C + "SELECT 7 AS x;" + ENTER).count("│ 7 │") == 1


@pytest.mark.parametrize("leave", ["exit", "quit", "EXIT;", "\\q", CTRL_D])
def test_it_can_be_left(db: clipql.Database, leave: str) -> None:
    assert typed(db, leave + ENTER + "SELECT 7 AS x;" + ENTER) == ""


@pytest.mark.parametrize("ask", ["help", "\\?", "?", "HELP;"])
def test_help_is_shown(db: clipql.Database, ask: str) -> None:
    assert "Tab completes" in typed(db, ask + ENTER)


def test_shortcuts_list_tables_and_describe_one(db: clipql.Database) -> None:
    for statement in MADE:
        db.execute(statement)
    assert "│ laion │" in typed(db, "\\l" + ENTER)
    assert "│ embedding │ Array(Float32) │" in typed(db, "\\d laion" + ENTER)
    assert "│ embedding │ Array(Float32) │" in typed(db, "\\d default.laion;" + ENTER)


def test_backslash_g_shows_each_column_on_a_line_and_cuts_vectors(db: clipql.Database) -> None:
    shown = typed(db, "SELECT 1 AS x, range(1000) AS v\\G" + ENTER)
    assert shown.startswith("\nRow 1:\n──────\nx: 1\nv: [0,1,2,")
    assert max(map(len, shown.splitlines())) < 220


def test_vectors_are_cut_in_tables_until_the_user_asks_for_more(db: clipql.Database) -> None:
    query = "SELECT range(1000) AS v FROM numbers(2);" + ENTER
    assert max(map(len, typed(db, query).splitlines())) < 100
    assert "998,999]" in typed(db, f"SET {console.WIDTH_SETTING} = 9999;" + ENTER + query)


def test_the_session_keeps_parameters_settings_and_the_database(db: clipql.Database) -> None:
    keys = (
        "SET param_target = [1, 2];SELECT {target:Array(Float32)} AS t;USE system;"
        "SELECT currentDatabase() AS d, getSetting('max_threads') AS m SETTINGS max_threads = 3;"
    )
    shown = typed(db, keys + ENTER)
    assert "│ [1,2] │" in shown
    assert "│ system │ 3 │" in shown


def test_control_characters_in_captions_do_not_reach_the_terminal(db: clipql.Database) -> None:
    shown = typed(db, "SELECT '\\x1b[2J\\x07ü' AS caption;" + ENTER)
    assert "\x1b" not in shown
    assert "␛[2J␇ü" in shown


def test_a_binary_format_is_not_poured_onto_the_terminal(db: clipql.Database) -> None:
    shown = typed(db, "SELECT 1 AS x FORMAT Parquet;" + ENTER)
    assert "of Parquet, which is no text" in shown
    assert "PAR1" not in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("  \n", True),
        ("SELECT 1", False),
        ("SELECT 1;", True),
        ("SELECT 1; -- done", True),
        ("SELECT 1 -- done;", False),
        ("SELECT ';", False),
        ("SELECT 'a;\nb';", True),
        ("SELECT 1 /* ; */", False),
        ("SELECT 1\\G", True),
        ("exit", True),
        ("exit the", False),
        ("\\d laion", True),
    ],
)
def test_a_statement_is_complete_at_its_semicolon(text: str, expected: bool) -> None:
    assert complete(text) is expected


def completions(db: clipql.Database, text: str) -> list[str]:
    found = NameCompleter(Names(db)).get_completions(Document(text), CompleteEvent(completion_requested=True))
    return [c.text for c in found]


def test_names_of_all_kinds_are_completed(db: clipql.Database) -> None:
    for statement in MADE:
        db.execute(statement)
    assert completions(db, "SELECT embe") == ["embedding"]
    assert completions(db, "SELECT id FROM ") == [
        "laion",
        "INFORMATION_SCHEMA",
        "default",
        "information_schema",
        "system",
    ]
    assert completions(db, "SELECT id FROM lai") == ["laion"]
    assert completions(db, "SELECT L2Dist")[0] == "L2Distance"
    assert completions(db, "SELECT 1 FORMAT JSONEachR")[0] == "JSONEachRow"
    assert completions(db, "SET vector_p") == ["vector_plan"]
    assert completions(db, "SELECT 1 SETTINGS max_threads = 1, max_bytes_to_tra")[0] == "max_bytes_to_transfer"
    assert completions(db, "USE sys") == ["system"]


def test_keywords_are_completed_in_the_case_they_are_typed_in(db: clipql.Database) -> None:
    assert "SELECT" in completions(db, "SELE")
    assert "select" in completions(db, "sele")


def test_nothing_is_completed_within_a_string(db: clipql.Database) -> None:
    assert completions(db, "SELECT 'sel") == []


def test_a_new_table_is_completed_at_once(db: clipql.Database) -> None:
    names = Names(db)
    assert names.schema.tables == ()
    with create_pipe_input() as pipe:
        shell = Shell(db, out=io.StringIO(), errors=io.StringIO(), input=pipe, output=DummyOutput())
        assert shell.names.schema.tables == ()
        shell.run("CREATE TABLE fresh (a Int32) ENGINE = Memory;")
        assert shell.names.schema.tables == ("fresh",)


def test_colours_follow_the_tokens_and_change_no_text(db: clipql.Database) -> None:
    text = "SELECT count() -- all\n, 'it''s', 1.5 FROM t\nWHERE 'open\nend"
    line = Highlighter(Names(db)).lex_document(Document(text))
    pieces = [line(n) for n in range(4)]
    assert ["".join(p[1] for p in found) for found in pieces] == text.split("\n")
    styles = {p[1].strip(): p[0] for found in pieces for p in found}
    assert styles["SELECT"] == "class:keyword"
    assert styles["count"] == "class:function"
    assert styles["-- all"] == "class:comment"
    assert styles["'it''s'"] == styles["end"] == "class:string"
    assert styles["1.5"] == "class:number"


def test_the_history_is_kept_in_a_file_of_the_users_own(db: clipql.Database, tmp_path: Path) -> None:
    typed(db, "SELECT 7 AS x;" + ENTER)
    path = tmp_path / "state" / "clipql" / "history"
    assert "+SELECT 7 AS x;" in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "│ 7 │" in typed(db, "\x1b[A" + ENTER)  # the arrow upwards


def test_without_a_place_for_the_history_it_is_kept_in_memory(
    db: clipql.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert isinstance(history(), InMemoryHistory)
    assert "│ 7 │" in typed(db, "SELECT 7 AS x;" + ENTER)


# on a real terminal


class Terminal:
    """A process on a terminal of its own, which reads keys and shows what it writes."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.master, self.process, self.seen = master, process, ""

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def until(self, text: str, *, timeout_seconds: float = LAST_NET_SECONDS) -> str:
        """What was written up to and with this text."""
        end = time.monotonic() + timeout_seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0, end - time.monotonic()))
            if not ready:
                raise AssertionError(f"{text!r} did not come; there was {self.seen!r}")
            self.seen += os.read(self.master, 65536).decode(errors="replace")
        found, text, self.seen = self.seen.partition(text)
        return found + text

    def ask(self, statement: str, answer: str) -> None:
        """Type a statement, see the answer, and wait for the next prompt: keys struck before it are the terminal's."""
        self.type(statement + "\r")
        self.until(answer)
        self.until("clipql :)")


@contextmanager
def terminal(folder: Path, *arguments: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    code = (
        "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "from clipql.cli.entry import main; sys.exit(main(sys.argv[1:]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env=environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        os.close(master)


def test_ctrl_c_cancels_the_query_and_the_shell_lives_on(tmp_path: Path) -> None:
    with terminal(tmp_path) as shell:
        shell.until("clipql :)")
        shell.type("SELECT count() FROM numbers(1000000000000) WHERE sipHash64(number) = 0;\r")
        shell.until("Progress: ")
        shell.until("rows/s.")
        shell.type(CTRL_C)
        assert "Exception" not in shell.until("Query was cancelled.")
        shell.until("clipql :)")
        shell.ask("SELECT 3 + 4 AS x;", "│ 7 │")
        shell.ask("SELEC 1;", "\x1b[31mCode: 62. DB::Exception: Syntax error")
        shell.type("exit\r")
        assert shell.process.wait(timeout=LAST_NET_SECONDS) == 0


def test_an_ingest_draws_a_bar_and_takes_it_away(tmp_path: Path) -> None:
    make_part(tmp_path / "laion", rows=30)
    with terminal(tmp_path, "ingest", "laion") as command:
        shown = command.until("rows/s)")
        assert "part metadata_0.parquet (1 of 1)  30 of 30 rows" in shown
        assert shown.split(console.CLEAR_LINE)[-1].startswith("30 rows in 1 part, ")
        assert command.process.wait(timeout=LAST_NET_SECONDS) == 0


def test_tab_completes_what_is_typed(tmp_path: Path) -> None:
    with terminal(tmp_path) as shell:
        shell.until("clipql :)")
        shell.ask("CREATE TABLE pictures (a Int32) ENGINE = Memory;", "0 rows in set.")
        shell.type("SELECT count() + 7 AS n FROM pict" + TAB)
        shell.until("ures")
        shell.ask(";", "│ 7 │")
        shell.type(CTRL_D)
        assert shell.process.wait(timeout=LAST_NET_SECONDS) == 0


def test_on_a_terminal_results_are_tables_and_vectors_are_cut(tmp_path: Path) -> None:
    with terminal(tmp_path, "sql", "SELECT range(1000) AS v FROM numbers(2)") as command:
        shown = command.until("└")
        assert "┌─v─" in shown
        assert max(map(len, shown.splitlines())) < 100
        assert command.process.wait(timeout=LAST_NET_SECONDS) == 0
