"""The `clipql` command: a thin shell over the library.

What must stay true: `clipql --help` imports nothing heavy (chDB, pyarrow and numba take half a second), so the
library is imported inside the commands; results go to standard output as the engine wrote them, everything else to
standard error; a ClipqlError is one line and exit status 1, never a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipql import __version__
from clipql.errors import ClipqlError, QueryError, VectorError

if TYPE_CHECKING:
    from clipql.database import Database

Command = Callable[[argparse.Namespace], int]

USAGE, INTERRUPTED, PIPE_CLOSED = 2, 130, 141
_FORMATS = (
    "any ClickHouse format: Pretty, JSON, CSV, Arrow, Parquet, … "
    "(default: PrettyCompact on a terminal, TabSeparated otherwise)"
)
_EXAMPLES = """examples:
  clipql                                          the SQL shell on ./clipql.db
  clipql --db laion.db < script.sql               run a script
  clipql ingest laion400m/ --table laion          take LAION parts in
  clipql sql "SELECT count() FROM laion"
  clipql sql "SELECT url FROM laion ORDER BY L2Distance(image_embedding, {q:Array(Float32)}) LIMIT 10" --param q=@q.npy
  clipql search --table laion --vector @q.npy -k 5 --where "similarity > 0.3"

Exit status: 0, 1 after an error, 2 for a wrong command line, 130 after Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status. argv: the arguments, by default the process's."""
    try:
        arguments = parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said why
        return stop.code if isinstance(stop.code, int) else USAGE
    command: Command = getattr(arguments, "command", shell_or_script)
    try:
        status = command(arguments)
        sys.stdout.flush()
        return status
    except ClipqlError as error:
        return _complain(str(error))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # whoever read the output has seen enough; without this, closing stdout would complain again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        return _complain(f"{error.filename or 'output'}: {error.strerror or error}")


def _complain(message: str) -> int:
    from clipql.console import printable

    print(f"clipql: {printable(message)}", file=sys.stderr)
    return 1


# the commands and their options


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, from which docs/cli.md is generated too."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--db",
        metavar="PATH",
        default=argparse.SUPPRESS,  # so that a subcommand's default does not undo `clipql --db X sql`
        help="the database folder, made if it is not there (default: $CLIPQL_DB, then ./clipql.db)",
    )
    top = argparse.ArgumentParser(
        prog="clipql",
        description="Search images and captions by meaning, in SQL.\n"
        "Without a command: the SQL shell on a terminal, otherwise the SQL script on standard input is run.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared],
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"clipql {__version__}")
    commands = top.add_subparsers(metavar="COMMAND", title="commands")
    for add in (_add_sql, _add_ingest, _add_search, _add_recall, _add_demo):
        add(commands, shared)
    return top


def _command(
    commands: Any, shared: argparse.ArgumentParser | None, name: str, help: str, run: Command
) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        parents=[shared] if shared else [],
        allow_abbrev=False,
    )
    made.set_defaults(command=run)
    return made


def _add_sql(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = _command(commands, shared, "sql", "run SQL statements and print what they return", run_sql)
    made.add_argument(
        "statements",
        nargs="?",
        default="-",
        metavar="SQL",
        help='one statement, or several with ";" between them; "-" or nothing reads standard input; after '
        "INSERT … FORMAT name the data may follow in the text or on standard input",
    )
    made.add_argument(
        "--param",
        action="append",
        default=[],
        type=_assignment,
        metavar="NAME=VALUE",
        dest="params",
        help="a value for {NAME:Type}; NAME=@file.npy: a vector from a numpy file; NAME=@@… a text that begins with @",
    )
    made.add_argument("--format", metavar="NAME", help=_FORMATS)


def _add_ingest(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = _command(
        commands,
        shared,
        "ingest",
        "take LAION parts (img_emb_N.npy, text_emb_N.npy, metadata_N.parquet) "
        "into a table; a part already there is skipped",
        run_ingest,
    )
    made.add_argument("sources", nargs="+", metavar="SOURCE", help="a folder of parts")
    made.add_argument("--table", default="laion", metavar="NAME", help="made if it is not there (default: laion)")
    made.add_argument("--parts", metavar="LIST", help="only these, such as 0-9,12")
    made.add_argument("--link", action="store_true", help="use the .npy files where they are instead of copying them")
    made.add_argument("--model", metavar="NAME", help="the model that made the vectors")


def _add_search(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = _command(commands, shared, "search", "print the rows of a table that are nearest to a vector", run_search)
    made.add_argument("--table", default="laion", metavar="NAME", help="(default: laion)")
    made.add_argument(
        "--vector", required=True, type=_file, metavar="@FILE.npy", help="the query vector, from a numpy file"
    )
    made.add_argument("-k", type=int, default=10, metavar="K", help="number of rows (default: 10)")
    made.add_argument("--where", metavar="SQL", help='a condition on the columns, such as "similarity > 0.3"')
    made.add_argument("--column", default="image_embedding", metavar="NAME", help="(default: image_embedding)")
    made.add_argument("--columns", metavar="LIST", help="columns to print (default: all but the vectors)")
    made.add_argument("--distance", default="cosineDistance", metavar="NAME", help="(default: cosineDistance)")
    made.add_argument("--format", metavar="NAME", help=_FORMATS)


def _add_recall(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = _command(
        commands,
        shared,
        "recall",
        "measure the indexes of a column against the exact scan on one's own queries",
        run_recall,
    )
    made.add_argument("--table", default="laion", metavar="NAME", help="(default: laion)")
    made.add_argument("--column", default="image_embedding", metavar="NAME", help="(default: image_embedding)")
    made.add_argument(
        "--queries", required=True, type=_file, metavar="@FILE.npy", help="query vectors, (n, d), from a numpy file"
    )
    made.add_argument("-k", type=int, default=10, metavar="K", help="rows a query (default: 10)")
    made.add_argument("--index", metavar="NAME", help="only this index (default: all of the column)")
    made.add_argument("--plot", type=Path, metavar="FILE.png", help="draw recall against latency")


def _add_demo(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = _command(commands, None, "demo", "show the whole of it on bundled real data", run_demo)
    made.add_argument(
        "--folder",
        type=Path,
        metavar="PATH",
        help="keep the demo's database in this empty folder (default: thrown away)",
    )


def _assignment(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE or NAME=@file.npy")
    return name, value


def _file(text: str) -> Path:
    if not text.startswith("@") or len(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: expected @ and the name of a .npy file")
    return Path(text[1:])


# what they do


def shell_or_script(arguments: argparse.Namespace) -> int:
    """No command: the shell on a terminal, otherwise the script on standard input."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return _run_script(arguments, _read_input(), {}, None)
    from clipql.shell import Shell

    with _open(arguments) as db:
        return Shell(db).loop()


def run_sql(arguments: argparse.Namespace) -> int:
    """`clipql sql`."""
    params = {name: _parameter(value) for name, value in arguments.params}
    text = _read_input() if arguments.statements == "-" else arguments.statements
    if text is arguments.statements and _lacks_data(text) and not sys.stdin.isatty():
        text += "\n" + _read_input()
    return _run_script(arguments, text, params, arguments.format)


def run_ingest(arguments: argparse.Namespace) -> int:
    """`clipql ingest`."""
    from clipql.console import IngestDisplay, ingest_summary

    with _open(arguments) as db, IngestDisplay(sys.stderr) as display:
        report = db.ingest(
            arguments.sources,
            table=arguments.table,
            parts=arguments.parts,
            link=arguments.link,
            model=arguments.model,
            progress=display.update,
        )
    print(ingest_summary(report.rows, report.parts_taken, report.parts_skipped, report.seconds))
    return 0


def run_search(arguments: argparse.Namespace) -> int:
    """`clipql search`."""
    vector = read_vector(arguments.vector)
    with _open(arguments) as db:
        statement = db.search_sql(
            arguments.table,
            k=arguments.k,
            where=arguments.where,
            column=arguments.column,
            columns=[c.strip() for c in arguments.columns.split(",")] if arguments.columns else None,
            distance=arguments.distance,
        )
        _print_answer(db, statement, {"query": vector}, arguments.format)
    return 0


def run_recall(arguments: argparse.Namespace) -> int:
    """`clipql recall`."""
    from clipql.evaluate import evaluate

    queries = read_array(arguments.queries)
    with _open(arguments) as db:
        measured = evaluate(db, arguments.table, queries, column=arguments.column, k=arguments.k, index=arguments.index)
    if arguments.plot:
        measured.plot(arguments.plot)
    print(f"{measured.table}.{measured.column}, {measured.queries} queries, one at a time")
    heads = f"{'recall@' + str(measured.k):>10} {'median ms':>10} {'p95 ms':>10} {'rescored':>9}"
    print(f"{'index':28} {'setting':18} {heads}")
    for p in measured.points:
        times = f"{p.median_seconds * 1e3:10.3f} {p.p95_seconds * 1e3:10.3f}"
        print(f"{p.index:28} {p.setting:18} {p.recall:10.3f} {times} {p.rescored:9.0f}")
    return 0


def run_demo(arguments: argparse.Namespace) -> int:
    """`clipql demo`."""
    from clipql import demo

    demo.run(print, arguments.folder)
    return 0


# helpers of the commands


@contextmanager
def _open(arguments: argparse.Namespace) -> Iterator[Database]:
    from clipql.database import connect

    with connect(getattr(arguments, "db", None)) as db:
        if sys.stdout.isatty():
            from clipql.console import DISPLAY

            db.execute(DISPLAY)
        yield db


def _run_script(arguments: argparse.Namespace, text: str, params: Mapping[str, Any], format: str | None) -> int:
    from clipql.query.lexer import split_statements

    with _open(arguments) as db:
        for statement in split_statements(text):
            _print_answer(db, statement, params, format)
    return 0


def _lacks_data(text: str) -> bool:
    """Whether the last statement is `INSERT … FORMAT name` without the data."""
    from clipql.query.lexer import split_statements, tokenize

    last = (split_statements(text) or [""])[-1]
    tokens = tokenize(last)
    words = [t.upper for t in tokens]
    inserts = len(words) > 4 and words[0] == "INSERT" and words[-2] == "FORMAT" and words[-1] != "VALUES"
    return inserts and not {"SELECT", "INFILE"} & set(words) and not last[tokens[-1].end :].strip("; \n")


def _print_answer(db: Database, statement: str, params: Mapping[str, Any], format: str | None) -> None:
    from clipql.console import QueryProgress, printable

    terminal = sys.stdout.isatty()
    format = format or ("PrettyCompact" if terminal else "TabSeparated")
    with QueryProgress(sys.stderr) as progress:
        answer = db.execute(statement, params, format=format, progress=progress.update if progress.live else None)
    data = answer.output.data
    if terminal and answer.format.startswith(("Pretty", "Vertical")):
        data = printable(data.decode("utf-8", "replace")).encode()
    _write(data)


def _write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # an unbuffered standard output (python -u) may take only a part
        rest = rest[sys.stdout.buffer.write(rest) :]
    sys.stdout.buffer.flush()


def _read_input() -> str:
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise QueryError(f"standard input is not UTF-8 text: byte {data[error.start]:#04x} at {error.start}") from error


def _parameter(value: str) -> Any:
    if value.startswith("@@"):
        return value[1:]
    return read_vector(Path(value[1:])) if value.startswith("@") else value


def read_vector(path: Path) -> Any:
    """The vector in a `.npy` file: shape (d,), or (1, d) as encoders write one. Raises VectorError."""
    found = read_array(path)
    if found.ndim == 2 and found.shape[0] == 1:
        found = found[0]
    if found.ndim != 1 or not found.size:
        raise VectorError(f"{path} holds an array of shape {found.shape}; expected one vector, (d,) or (1, d)")
    return found


def read_array(path: Path) -> Any:
    """The numbers in a `.npy` file. Raises VectorError."""
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except OSError as error:
        raise VectorError(f"{path}: {error.strerror or error}") from error
    except (ValueError, EOFError) as error:
        raise VectorError(f"{path} is not a .npy file of numbers") from error
    if not isinstance(found, np.ndarray):
        raise VectorError(f"{path} holds several arrays (.npz); expected one vector in a .npy file")
    if found.dtype.kind not in "fiu":
        raise VectorError(f"{path} holds {found.dtype} values; expected numbers")
    return found
