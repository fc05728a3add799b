"""`unused.txt` in an output folder: what lies in the sources and makes no row, a line each, with the reason."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from clipql.encode.embed.rows import Unused
from clipql.storage import files

NAME = "unused.txt"


@contextlib.contextmanager
def unused_file(out: Path) -> Iterator[Unused]:
    """Takes the notes of one reading of all sources; the file is replaced at its end, or removed where none came."""
    path = out / NAME
    scratch = path.with_suffix(".tmp")
    with contextlib.ExitStack() as stack:
        opened: list[TextIO] = []

        def write(line: str) -> None:
            if not opened:
                # names byte for byte
                file = stack.enter_context(open(scratch, "w", encoding="utf-8", errors="surrogateescape"))
                opened.append(file)
            with files.translated(scratch, "writing"):
                opened[0].write(line.replace("\n", "\\n") + "\n")

        try:
            yield Unused(write)
            with files.translated(path, "writing"):
                stack.close()
                if opened:
                    os.replace(scratch, path)
                else:
                    path.unlink(missing_ok=True)
        finally:
            stack.close()
            scratch.unlink(missing_ok=True)
