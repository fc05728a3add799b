"""The line editor of the shell: keys, history, completion and colours.

What must stay true: Enter runs a finished statement and otherwise begins a line; nothing that completion or colours
need can fail the shell, so an engine that refuses a question leaves them without an answer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import has_focus, is_searching
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import Lexer
from prompt_toolkit.styles import Style

from clipql.cli import console
from clipql.engine.quoting import quote_name
from clipql.errors import ClipqlError
from clipql.sql.recognition.settings import OURS
from clipql.syntax.lexer import Token, tokenize

if TYPE_CHECKING:
    from prompt_toolkit.input import Input
    from prompt_toolkit.output import Output

    from clipql.database import Database

PROMPT, CONTINUED = "clipql :) ", ":-] "
LEAVE, HELP = ("exit", "quit", "logout", "\\q", ":q"), ("help", "?", "\\?", "\\h")
KEYS = f"""\
Statements are SQL and end with a semicolon; Enter before it begins another line.

  \\l                     SHOW TABLES
  \\d NAME                DESCRIBE TABLE NAME
  …\\G                    in place of the semicolon: each column on a line of its own
  help, \\?               this help
  exit, quit, \\q, Ctrl-D leave

  Tab completes          Alt-Enter begins a line       Ctrl-R searches the history
  Ctrl-C clears the line, or cancels the query         Ctrl-X Ctrl-E opens $EDITOR

  SET param_q = [0.1, …];                              then {{q:Array(Float32)}} stands for it
  SET {console.WIDTH_SETTING} = 1000; shows longer values; they are cut at {console.WIDEST_VALUE} now
"""
_STYLE = Style.from_dict(
    {
        "prompt": "bold",
        "keyword": "bold ansiblue",
        "function": "ansicyan",
        "string": "ansigreen",
        "number": "ansimagenta",
        "comment": "italic ansibrightblack",
    }
)


def prompt_session(names: Names, *, input: Input | None = None, output: Output | None = None) -> PromptSession[str]:
    """The editor, ready to ask. input, output: prompt_toolkit's, by default the terminal."""
    return PromptSession(
        [("class:prompt", PROMPT)],
        multiline=True,
        prompt_continuation=lambda width, line, wrapped: [("class:prompt", CONTINUED.rjust(width))],
        key_bindings=_keys(),
        lexer=Highlighter(names),
        completer=NameCompleter(names),
        complete_while_typing=False,
        history=history(),
        auto_suggest=AutoSuggestFromHistory(),
        enable_open_in_editor=True,
        tempfile_suffix=".sql",
        style=_STYLE,
        input=input,
        output=output,
    )


def complete(text: str) -> bool:
    """Whether Enter runs what was typed: it ends a statement, is a command of the shell, or is empty."""
    stripped = text.strip()
    if not stripped or stripped.lower() in (*LEAVE, *HELP) or shortcut(*word_and_rest(stripped)):
        return True
    tokens = tokenize(text)
    if any(t.kind == "error" and len(t.text) > 1 and t.end == len(text) and t.text != "\\G" for t in tokens):
        return False  # a quote or a comment that nothing closes
    if not tokens:
        return False
    data = text[tokens[-1].end :].strip()  # of INSERT … FORMAT, which has no tokens
    return (
        tokens[-1].text == ";" or stripped.endswith("\\G") or (data[-1:] == ";" and not data.startswith(("--", "/*")))
    )


def word_and_rest(text: str) -> tuple[str, str]:
    """A command of the shell and what follows it."""
    word, _, rest = text.strip().rstrip("; ").partition(" ")
    return word, rest.strip()


def shortcut(word: str, rest: str) -> str | None:
    """The statement that a shortcut stands for."""
    if word in ("\\l", "\\d", "\\dt") and not rest:
        return "SHOW TABLES"
    if word == "\\d":
        return "DESCRIBE TABLE " + ".".join(n if n[:1] in '`"' else quote_name(n) for n in rest.split("."))
    return None


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter", filter=has_focus("DEFAULT_BUFFER") & ~is_searching)
    def run_or_continue(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None  # Enter takes the completion
        elif complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.newline(copy_margin=False)

    @keys.add("escape", "enter", filter=has_focus("DEFAULT_BUFFER"))
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


def history() -> History:
    """What was typed before, kept in $XDG_STATE_HOME/clipql/history; in memory where that cannot be written."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    try:
        path = Path(state).expanduser() / "clipql" / "history"
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))  # statements may hold what others should not read
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return InMemoryHistory()
    return _PatientHistory(path)


class _PatientHistory(FileHistory):
    """A history file; a disk that is full or gone costs the history and not the shell."""

    def store_string(self, string: str) -> None:
        try:
            super().store_string(string)
        except OSError:
            self.store_string = lambda string: None  # type: ignore[method-assign]


@dataclass(frozen=True)
class Schema:
    """Names of the tables and columns of the current database, and of the databases."""

    tables: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()


class Names:
    """The names that completion and colours know, read from the engine when first needed."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._schema: Schema | None = None
        self._kept: dict[str, tuple[str, ...]] = {}

    def forget(self) -> None:
        """Read tables and columns again when next needed."""
        self._schema = None

    @property
    def schema(self) -> Schema:
        """Tables and columns as they are now."""
        if self._schema is None:
            columns = (
                "SELECT DISTINCT name FROM system.columns "
                "WHERE database = currentDatabase() AND name != '_row' ORDER BY name"
            )
            self._schema = Schema(self._list("SHOW TABLES"), self._list(columns), self._list("SHOW DATABASES"))
        return self._schema

    @property
    def keywords(self) -> tuple[str, ...]:
        """Single words in capitals."""
        return self._keep(
            "SELECT DISTINCT arrayJoin(splitByChar(' ', keyword)) AS word FROM system.keywords "
            "WHERE match(word, '^[A-Z_]{2,}$') ORDER BY word"
        )

    @property
    def functions(self) -> tuple[str, ...]:
        """Functions, those that return tables last."""
        return self._keep(
            "SELECT DISTINCT name FROM (SELECT name, 0 AS place FROM system.functions WHERE NOT startsWith(name, '_') "
            "UNION ALL SELECT name, 1 FROM system.table_functions) ORDER BY place, name"
        )

    @property
    def settings(self) -> tuple[str, ...]:
        """ClickHouse's settings and clipql's own."""
        return (*OURS, *self._keep("SELECT name FROM system.settings ORDER BY name"))

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats that FORMAT takes."""
        return self._keep("SELECT name FROM system.formats ORDER BY name")

    def _keep(self, sql: str) -> tuple[str, ...]:
        if sql not in self._kept:
            self._kept[sql] = self._list(sql)
        return self._kept[sql]

    def _list(self, sql: str) -> tuple[str, ...]:
        try:
            return tuple(str(row[0]) for row in self._db.sql(sql).rows)
        except ClipqlError:
            return ()  # nothing to complete with; the statement itself will say what is wrong


class NameCompleter(Completer):
    """Completes the word before the cursor by what can stand there."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """prompt_toolkit's question: what could the word before the cursor become?"""
        before = document.text_before_cursor
        word = re.search(r"\w*$", before)
        typed = word[0] if word else ""
        tokens = tokenize(before[: len(before) - len(typed)])
        if any(t.kind == "error" and t.text[0] in "'‘$" for t in tokens):
            return  # within a string
        given: set[str] = set()
        for kind, found in self._possible(tokens, typed):
            for name in found:
                text = name.lower() if kind == "keyword" and typed.islower() else name
                # NANOSECOND the function is nanosecond the keyword; tables may differ by case alone
                key = text.lower() if kind in ("keyword", "function") else text
                if text.lower().startswith(typed.lower()) and key not in given:
                    given.add(key)
                    yield Completion(text, -len(typed), display_meta=kind)

    def _possible(self, tokens: Sequence[Token], typed: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        names = self._names
        last = tokens[-1].upper if tokens else ""
        begin = max((i + 1 for i, t in enumerate(tokens) if t.text == ";"), default=0)
        words = [t.upper for t in tokens[begin:]]
        if last == "USE":
            yield "database", names.schema.databases
        elif last == "FORMAT":
            yield "format", names.formats
        elif last in ("FROM", "JOIN", "INTO", "TABLE", "DESCRIBE", "DESC", "EXISTS", "\\D", "OPTIMIZE", "TRUNCATE"):
            yield "table", names.schema.tables
            yield "database", names.schema.databases
        elif last == ".":
            yield "table", names.schema.tables
            yield "column", names.schema.columns
        elif words[:1] == ["SET"] or (last in ("SETTINGS", ",") and "SETTINGS" in words):
            yield "setting", names.settings
        if typed and last not in ("USE", "FORMAT", "."):
            yield "column", names.schema.columns
            yield "table", names.schema.tables
            yield "keyword", names.keywords
            yield "function", names.functions


class Highlighter(Lexer):
    """Colours by the same tokens that the planner reads."""

    def __init__(self, names: Names) -> None:
        self._names = names

    def lex_document(self, document: Document) -> Callable[[int], StyleAndTextTuples]:
        """prompt_toolkit's question: the coloured pieces of each line."""
        lines: list[StyleAndTextTuples] = [[]]
        for style, text in self._pieces(document.text):
            first, *others = text.split("\n")
            lines[-1].append((style, first))
            lines.extend([(style, other)] for other in others)
        return lambda number: lines[number] if number < len(lines) else []

    def _pieces(self, text: str) -> Iterator[tuple[str, str]]:
        at = 0
        keywords = set(self._names.keywords)
        for token in tokenize(text):
            gap = text[at : token.start]
            yield ("class:comment" if gap.strip() else "", gap)
            called = text[token.end : token.end + 1] == "("
            style = {"string": "class:string", "number": "class:number", "vector": "class:number"}.get(token.kind, "")
            if token.kind == "error":  # a string or a comment that nothing closes yet
                style = {"'": "class:string", "‘": "class:string", "/": "class:comment"}.get(token.text[0], "")
            if token.kind == "word":
                style = "class:keyword" if token.upper in keywords else "class:function" if called else ""
            yield style, token.text
            at = token.end
        rest = text[at:]
        yield ("class:comment" if rest.strip() else "", rest)
