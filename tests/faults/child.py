"""Runs below the shim: operations on a database whose changes of files are noted, or made to fail.

child.py record OUT OPERATION…           a log of each operation, with the folder before it
child.py fail OUT ERRNO STICKY FIRST EVERY OPERATION…   changes fail in turn; what came of it, as JSON
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "tables"), str(HERE.parents[1])]

from operations import OPERATIONS, content  # noqa: E402

import clipql  # noqa: E402

SHIM = ctypes.CDLL(None)
SHIM.fault_count.restype = SHIM.fault_failed.restype = ctypes.c_long
ROOT = Path(os.environ["CLIPQL_FAULT_ROOT"])


def record(out: Path, name: str) -> None:
    operation, place = OPERATIONS[name], out / name
    place.mkdir(parents=True)
    folder = ROOT / name
    with clipql.connect(folder / "db") as db:
        operation.prepare(db)
        before = content(db)
        while True:  # chDB may still be removing what it no longer needs
            shutil.rmtree(place / "before", ignore_errors=True)
            SHIM.fault_log(str(place / "log").encode())
            shutil.copytree(ROOT, place / "before", symlinks=True)
            if not SHIM.fault_count():
                break
        operation.run(db)
        SHIM.fault_log(None)
        after = content(db)
    shutil.rmtree(folder)
    (place / "content.json").write_text(json.dumps([before, after]))


def fail(out: Path, name: str, number: int, sticky: int, first: int, every: int) -> None:
    operation, found = OPERATIONS[name], []
    source, folder = out / name / "before" / name / "db", ROOT / "fails"
    before, after = json.loads((out / name / "content.json").read_text())
    n = first
    while True:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder, symlinks=True)
        error = problem = None
        with clipql.connect(folder) as db:
            SHIM.fault_arm(n, number, sticky)
            try:
                operation.run(db)
            except clipql.ClipqlError as raised:
                error = f"{type(raised).__name__}: {raised}"
            except Exception:  # noqa: BLE001
                problem = traceback.format_exc()
            hit = SHIM.fault_failed()
            SHIM.fault_arm(0, 0, 0)
            try:
                now = content(db)
            except Exception as raised:  # noqa: BLE001
                now, problem = before, problem or f"reading: {raised}"
            if now not in (before, after) or (error is None and now != after):
                problem = problem or f"the content is {now}"
            if now == before != after:
                try:
                    operation.run(db)
                except clipql.ClipqlError as raised:
                    problem = problem or f"again: {raised}"
        try:
            with clipql.connect(folder) as db:
                now = content(db)
                if now != after:
                    problem = problem or f"after opening again: {now}"
        except clipql.ClipqlError as raised:
            problem = problem or f"opening: {raised}"
        found.append({"n": n, "hit": hit, "error": error, "problem": problem})
        if not hit:
            break
        n += every
    (out / name / f"fail-{number}.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    verb, out, *rest = sys.argv[1:]
    if verb == "record":
        for name in rest:
            record(Path(out), name)
    else:
        number, sticky, first, every, *names = rest
        for name in names:
            fail(Path(out), name, int(number), int(sticky), int(first), int(every))
