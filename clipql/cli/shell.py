"""The SQL shell: what `clipql` is on a terminal, in the manner of clickhouse-client.

What must stay true: the shell shows what the engine wrote (tables are ClickHouse's own); Ctrl-C stops the query and
never the shell; an error of one statement keeps the rest of the input from running, and nothing else.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from clipql.cli import console
from clipql.cli.editor import HELP, KEYS, LEAVE, Names, prompt_session, shortcut, word_and_rest
from clipql.errors import ClipqlError, QueryError
from clipql.syntax.lexer import split_statements, tokenize
from clipql.version import __version__

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

    from clipql.database import Database
    from clipql.sql.session import Answer

_RETURNING = ("SELECT", "WITH", "(", "SHOW", "DESCRIBE", "DESC", "EXISTS", "EXPLAIN", "CHECK", "VALUES")
_LONGEST_VERTICAL = 200


class Shell:
    """One run of the shell on an open database.

    out: where results go; a terminal also gets colours and progress (on `errors`). input, output: prompt_toolkit's,
    for tests.
    """

    def __init__(
        self,
        db: Database,
        *,
        out: TextIO | None = None,
        errors: TextIO | None = None,
        input: Input | None = None,
        output: Output | None = None,
    ) -> None:
        self._db = db
        self._out, self._errors = out or sys.stdout, errors or sys.stderr
        self._colours = self._out.isatty() and "NO_COLOR" not in os.environ
        self.names = Names(db)
        self._prompt = prompt_session(self.names, input=input, output=output)

    def loop(self) -> int:
        """Read and run until the user leaves; returns the exit status."""
        self._db.execute(console.DISPLAY)
        engine = self._db.sql("SELECT version()").rows[0][0]
        self._write(f"clipql {__version__} on ClickHouse {engine}, {self._db.path}. \\? for help, \\q to leave.\n\n")
        while True:
            try:
                text = self._prompt.prompt()
            except KeyboardInterrupt:
                continue
            except EOFError:
                return 0
            if not self.run(text):
                return 0

    def run(self, text: str) -> bool:
        """Run what was typed: a command of the shell, or statements. False when it asks to leave."""
        word, rest = word_and_rest(text)
        if word.lower() in LEAVE and not rest:
            return False
        if word.lower() in HELP and not rest:
            self._write(KEYS + "\n")
            return True
        try:
            for statement, vertical in _statements(shortcut(word, rest) or text):
                self._statement(statement, vertical)
        except KeyboardInterrupt:
            self._write("Query was cancelled.\n\n")
        except ClipqlError as error:
            self._write(self._red(console.printable(described(error))) + "\n\n")
        return True

    def _statement(self, statement: str, vertical: bool) -> None:
        with _one_interrupt(), console.QueryProgress(self._errors) as progress:
            format = "Vertical" if vertical else "PrettyCompact"
            answer = self._db.execute(statement, format=format, progress=progress.update)
        shown, head = self._shown(answer, vertical), f"{console.counted(answer.output.rows, 'row')} in set"
        if tokenize(statement[:1000])[0].upper not in _RETURNING:
            self.names.forget()  # it may have made or renamed what completion knows
            rows = answer.rows or int(progress.latest.get("written_rows", 0))
            shown, head = shown + "Ok.\n", f"{console.counted(rows, 'row')} inserted" if rows else "0 rows in set"
            shown += f"{answer.indexes}.\n" if answer.indexes else ""
        self._write("\n" + shown)
        work = console.work_of(answer.steps, progress.latest)
        self._write(f"\n{console.footer(head, answer.elapsed, work)}\n\n")

    def _shown(self, answer: Answer, vertical: bool) -> str:
        data = answer.output.data
        try:
            text = data.decode() if b"\0" not in data or answer.format.startswith("Pretty") else None
        except UnicodeDecodeError:
            text = data.decode("utf-8", "replace") if answer.format.startswith(("Pretty", "Vertical")) else None
        if text is None:
            return (
                f"{console.readable_bytes(len(data))} of {answer.format}, which is no text: use INTO OUTFILE 'file'\n"
            )
        text = console.printable(text)
        if vertical:
            cut = rf"(?m)^(.*?: *\[.{{{_LONGEST_VERTICAL}}}).+$"
            text = re.sub(cut, r"\1⋯", text)
        if self._colours and answer.format == "PrettyCompact":
            text = re.sub(
                r"(?m)^ *┌.*$", lambda head: re.sub(r"[^─┬┐┌ ][^─┬┐]*", "\x1b[1m\\g<0>\x1b[0m", head[0]), text
            )
        return text if not text or text.endswith("\n") else text + "\n"

    def _red(self, text: str) -> str:
        return f"\x1b[31m{text}\x1b[0m" if self._colours else text

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def described(error: ClipqlError) -> str:
    """An error as clickhouse-client shows it, where it is one of ClickHouse's."""
    if not isinstance(error, QueryError) or not error.code:
        return str(error)
    message = str(error).removesuffix(f"(ClickHouse {error.code} {error.name})").rstrip()
    return f"Code: {error.code}. DB::Exception: {message} ({error.name})"


def _statements(text: str) -> Iterator[tuple[str, bool]]:
    """The statements of an input, and whether each asks for vertical output."""
    text = text.strip()
    vertical = text.endswith("\\G")
    # a semicolon at the very end is what ran the input; INSERT … FORMAT would take it for data
    found = split_statements(text.removesuffix("\\G").rstrip().rstrip(";"))
    for at, statement in enumerate(found):
        yield statement, vertical and at == len(found) - 1


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """Let Ctrl-C interrupt once; pressed again while the engine winds the query up, it changes nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen = False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal seen
        if not seen:
            seen = True
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
