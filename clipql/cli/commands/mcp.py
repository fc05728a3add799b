"""`clipql mcp`."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from clipql.cli.commands.common import command, database_options
from clipql.connection import place
from clipql.errors import NotADatabase, ServerError


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    help = "tools for agents, by the Model Context Protocol on standard input and output (pip install 'clipql[mcp]')"
    made = command(commands, database_options(made=False, reads=False), "mcp", help, run)
    made.add_argument("--model", metavar="NAME", help="of words and pictures, for a folder (default: the columns' own)")


def run(arguments: argparse.Namespace) -> int:
    """`clipql mcp`."""
    try:
        from clipql.mcp import asking, tools
    except ImportError as error:
        raise ServerError(f"the Python SDK of MCP is not here ({error}): pip install 'clipql[mcp]'") from error
    from clipql.storage import catalog

    here = Path.cwd()

    where = place(getattr(arguments, "url", None) or getattr(arguments, "db", None))
    with ExitStack() as held:
        if isinstance(where, str) and where.lower().startswith(("http://", "https://")):
            asks = asking.of_server(where, os.environ.get("CLIPQL_TOKEN") or None)
        else:
            folder = Path(where).absolute()
            if not (folder / catalog.NAME).exists():
                raise NotADatabase(f"there is no database at {folder}: name one with --db, or a server with --url")
            asks = held.enter_context(asking.of_folder(folder, arguments.model))
        tools.server(asks, here).run("stdio")
    return 0
