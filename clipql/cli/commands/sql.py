"""`clipql sql`, and `clipql` with a script on standard input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clipql.cli.commands.common import FORMATS, command, open_database, print_answer, read_vector
from clipql.errors import QueryError


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    made = command(commands, shared, "sql", "run SQL statements and print what they return", run)
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
        type=assignment,
        metavar="NAME=VALUE",
        dest="params",
        help="a value for {NAME:Type}; NAME=@file.npy: a vector from a numpy file; NAME=@@… a text that begins with @",
    )
    made.add_argument("--format", metavar="NAME", help=FORMATS)


def run(arguments: argparse.Namespace) -> int:
    """`clipql sql`."""
    params = {name: _parameter(value) for name, value in arguments.params}
    text = read_input() if arguments.statements == "-" else arguments.statements
    if text is arguments.statements and _lacks_data(text) and not sys.stdin.isatty():
        text += "\n" + read_input()
    return run_script(arguments, text, params, arguments.format)


def run_script(arguments: argparse.Namespace, text: str, params: Mapping[str, Any], format: str | None) -> int:
    from clipql.syntax.lexer import split_statements

    with open_database(arguments) as db:
        for statement in split_statements(text):
            print_answer(db, statement, params, format)
    return 0


def assignment(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE or NAME=@file.npy")
    return name, value


def _parameter(value: str) -> Any:
    if value.startswith("@@"):
        return value[1:]
    return read_vector(Path(value[1:])) if value.startswith("@") else value


def _lacks_data(text: str) -> bool:
    """Whether the last statement is `INSERT … FORMAT name` without the data."""
    from clipql.syntax.lexer import split_statements
    from clipql.syntax.reading import read

    last = (split_statements(text) or [""])[-1]
    tokens = read(last).tokens
    words = [t.upper for t in tokens]
    inserts = len(words) > 4 and words[0] == "INSERT" and words[-2] == "FORMAT" and words[-1] != "VALUES"
    return inserts and not {"SELECT", "INFILE"} & set(words) and not last[tokens[-1].end :].strip("; \n")


def read_input() -> str:
    data = sys.stdin.buffer.read()
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise QueryError(f"standard input is not UTF-8 text: byte {data[error.start]:#04x} at {error.start}") from error
