"""The `clipql` command: a thin shell over the library.

What must stay true: `clipql --help` imports nothing heavy (chDB, pyarrow and numba take half a second), so the
library is imported inside the commands; results go to standard output as the engine wrote them, everything else to
standard error; a ClipqlError is one line and exit status 1, never a traceback.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from clipql.cli.commands import (
    care,
    cluster,
    cluster_rows,
    dedup,
    demo,
    download,
    embed,
    evaluate,
    export,
    ingest,
    mcp,
    model,
    recall,
    search,
    serve,
    sql,
    takedown,
    udf,
)
from clipql.cli.commands.common import Command, database_options, open_database
from clipql.engine.priority import lower_priority_of_process
from clipql.errors import ClipqlError
from clipql.version import __version__

USAGE, INTERRUPTED, PIPE_CLOSED = 2, 130, 141
_EXAMPLES = """examples:
  clipql                                          the SQL shell on ./clipql.db
  clipql --db laion.db < script.sql               run a script
  clipql ingest laion400m/ --table laion          take LAION parts in
  clipql ingest --from https://host/laion400m --parts 0-409 --table laion
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
    if argv is None and getattr(arguments, "others_first", False):
        lower_priority_of_process()
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
    from clipql.cli.console import printable

    print(f"clipql: {printable(message)}", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    """The parser of the whole command line, from which docs/cli.md is generated too."""
    shared = database_options()
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
    for each in (
        sql, ingest, download, embed, search, recall, evaluate, dedup, cluster_rows, takedown, serve, mcp, care, export,
        cluster, demo, model, udf,
    ):  # fmt: skip
        each.add(commands, shared)
    return top


def shell_or_script(arguments: argparse.Namespace) -> int:
    """No command: the shell on a terminal, otherwise the script on standard input."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return sql.run_script(arguments, sql.read_input(), {}, None)
    from clipql.cli.shell import Shell

    with open_database(arguments) as db:
        return Shell(db).loop()
