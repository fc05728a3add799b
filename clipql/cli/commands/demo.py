"""`clipql demo`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clipql.cli.commands.common import command


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = command(commands, None, "demo", "show the whole of it on bundled real data", run)
    made.add_argument(
        "--folder",
        type=Path,
        metavar="PATH",
        help="keep the demo's database in this empty folder (default: thrown away)",
    )


def run(arguments: argparse.Namespace) -> int:
    """`clipql demo`."""
    from clipql.cli import demo as demonstration

    demonstration.run(print, arguments.folder)
    return 0
