"""`clipql check`, `clipql backup` and `clipql restore`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from clipql.cli.commands.common import command, database_options, open_database
from clipql.errors import StorageError


def add(commands: Any, shared: argparse.ArgumentParser) -> None:
    folder = database_options(server=False, made=False)
    checked = command(commands, folder, "check", "verify a database, and say what is damaged and what mends it", check)
    checked.add_argument(
        "--deep", action="store_true", help="compare every stored value, and more queries by each index"
    )
    made = command(commands, folder, "backup", "copy a database, hashed and verified, into a new folder", backup)
    made.add_argument("path", type=Path, metavar="PATH", help="the folder to make")
    made.add_argument("--keep-links", action="store_true", help="leave parts of `ingest --link` where they lie")
    made.add_argument(
        "--hard-links",
        action="store_true",
        help="link files that never change instead of copying them: on the same disk only, and no help where it fails",
    )
    back = command(commands, None, "restore", "make a database of a backup, which is verified first", restore)
    back.add_argument("backup", type=Path, metavar="BACKUP", help="the backup's folder")
    back.add_argument("path", type=Path, metavar="PATH", help="the database folder to make")


def _folder(arguments: argparse.Namespace) -> str:
    if getattr(arguments, "url", None):
        raise StorageError("check and backup work on a folder, not on a server: stop the server, then name --db")
    return str(getattr(arguments, "db", None) or os.environ.get("CLIPQL_DB") or "clipql.db")


def check(arguments: argparse.Namespace) -> int:
    """`clipql check`: exit status 1 where something is damaged."""
    from clipql.connection import check, reads_only

    folder = _folder(arguments)
    if getattr(arguments, "read_only", False) or reads_only():
        with open_database(arguments) as db:
            report = db.check(deep=arguments.deep)
    else:
        report = check(folder, deep=arguments.deep)
    print(report)
    return 1 if report.damaged else 0


def backup(arguments: argparse.Namespace) -> int:
    """`clipql backup`."""
    folder = _folder(arguments)
    if not Path(folder).is_dir():  # opening would make one
        raise StorageError(f"there is no database in {folder}")
    with open_database(arguments) as db:
        report = db.backup(arguments.path, keep_links=arguments.keep_links, hard_links=arguments.hard_links)
    print(f"{report.files} files, {report.bytes / 1e6:,.1f} MB, verified, in {report.seconds:.1f} s: {report.path}")
    return 0


def restore(arguments: argparse.Namespace) -> int:
    """`clipql restore`."""
    from clipql.care.backup import restore

    report = restore(arguments.backup, arguments.path)
    print(f"{report.files} files, {report.bytes / 1e6:,.1f} MB, in {report.seconds:.1f} s: {report.path}")
    return 0
