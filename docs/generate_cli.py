"""Writes docs/cli.md from the command line's own help: `python docs/generate_cli.py`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from unittest import mock

from clipql.cli.editor import KEYS
from clipql.cli.entry import parser

PAGE = Path(__file__).with_name("cli.md")


def page() -> str:
    """The page as it should be now."""
    with mock.patch.dict(os.environ, COLUMNS="100"):  # argparse wraps at the width of the terminal
        top = parser()
        parts = ["# The command line\n", "Generated from the command's own help by `python docs/generate_cli.py`.\n"]
        parts += _section("clipql", top)
        for name, command in _commands(top).items():
            parts += _section(f"clipql {name}", command)
            for action, under in _commands(command).items():
                parts += _section(f"clipql {name} {action}", under)
    parts += ["## The shell\n", f"```text\n{KEYS.rstrip()}\n```\n"]
    return "\n".join(parts)


def _section(title: str, command: argparse.ArgumentParser) -> list[str]:
    return [f"## {title}\n", f"```text\n{command.format_help().rstrip()}\n```\n"]


def _commands(top: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    found = [a for a in top._actions if isinstance(a, argparse._SubParsersAction)]
    return dict(found[0].choices) if found else {}


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
