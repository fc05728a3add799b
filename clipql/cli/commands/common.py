"""What the commands of the command line share: their parsers, the database they open, what they print.

What must stay true: importing this imports nothing heavy; results go to standard output as the engine wrote them.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipql.errors import VectorError

if TYPE_CHECKING:
    from clipql.database import Database

# objects made between two looks for garbage: loading makes 300,000 and drops none of them
SELDOM = 50_000

# of commands that multiply matrices
DEVICE = "where products are made: cpu, a GPU as cuda or cuda:1, auto; needs the extra clipql[torch] (default: cpu)"

Command = Callable[[argparse.Namespace], int]

FORMATS = (
    "any ClickHouse format: Pretty, JSON, CSV, Arrow, Parquet, … "
    "(default: PrettyCompact on a terminal, TabSeparated otherwise)"
)


def database_options(*, server: bool = True, made: bool = True, reads: bool = True) -> argparse.ArgumentParser:
    """The parent of commands that say which database.

    server: whether a server will do; where not, --url is taken but not shown, and the command says why it has to be a
    folder. made: whether a folder that is not there is made. reads: whether it works on a folder that is only read.
    """
    options = argparse.ArgumentParser(add_help=False)
    folder = "the database folder, made if it is not there" if made else "the database folder"
    options.add_argument(
        "--db",
        metavar="PATH",
        default=argparse.SUPPRESS,  # so that a subcommand's default does not undo `clipql --db X sql`
        help=f"{folder} (default: $CLIPQL_DB, then ./clipql.db)",
    )
    options.add_argument(
        "--read-only",
        action="store_true",
        default=argparse.SUPPRESS,
        help="see the folder as it was at its last commit, whoever writes it (default: $CLIPQL_READ_ONLY)"
        if reads
        else argparse.SUPPRESS,
    )
    options.add_argument(
        "--url",
        metavar="URL",
        default=argparse.SUPPRESS,
        help="a server instead of a folder, as http://host:port (its token: $CLIPQL_TOKEN)"
        if server
        else argparse.SUPPRESS,
    )
    return options


def command(
    commands: Any,
    shared: argparse.ArgumentParser | None,
    name: str,
    help: str,
    run: Command,
    *,
    others_first: bool = False,
) -> argparse.ArgumentParser:
    """others_first: its process leaves the processors to others that want them."""
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        help=help,
        description=f"{help[0].upper()}{help[1:]}.",
        parents=[shared] if shared else [],
        allow_abbrev=False,
    )
    made.set_defaults(command=run, others_first=others_first)
    return made


def vector_file(text: str) -> Path:
    if not text.startswith("@") or len(text) < 2:
        raise argparse.ArgumentTypeError(f"{text!r}: expected @ and the name of a .npy file")
    return Path(text[1:])


@contextmanager
def open_database(arguments: argparse.Namespace) -> Iterator[Database]:
    from clipql.connection import connect

    where = getattr(arguments, "url", None) or getattr(arguments, "db", None)
    before = gc.get_threshold()
    gc.set_threshold(SELDOM, *before[1:])
    try:
        with connect(where, read_only=getattr(arguments, "read_only", None)) as db:
            if sys.stdout.isatty():
                from clipql.cli.console import DISPLAY

                db.execute(DISPLAY)
            yield db
    finally:
        gc.set_threshold(*before)


def print_answer(db: Database, statement: str, params: Mapping[str, Any], format: str | None) -> None:
    """Run a statement and print what it gives; an INSERT ends when its rows are in the indexes, too."""
    from clipql.cli.console import QueryProgress, printable

    terminal = sys.stdout.isatty()
    format = format or ("PrettyCompact" if terminal else "TabSeparated")
    with QueryProgress(sys.stderr) as progress:
        answer = db.execute(statement, params, format=format, progress=progress.update if progress.live else None)
        if answer.indexes:
            db.wait_for_indexes(progress.stage)
    if answer.shards and len(set(answer.shards.split("/"))) > 1:
        print(
            f"clipql: shards {answer.shards}: the others are lost, and their rows are not in the answer",
            file=sys.stderr,
        )
    data = answer.output.data
    if terminal and answer.format.startswith(("Pretty", "Vertical")):
        data = printable(data.decode("utf-8", "replace")).encode()
    write(data)


def write(data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # an unbuffered standard output (python -u) may take only a part
        rest = rest[sys.stdout.buffer.write(rest) :]
    sys.stdout.buffer.flush()


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
