"""A fault at every change that each operation makes to the disk, ClickHouse's own among them.

    python -m bench.faults

For each operation: a kill after each change; a power loss after each change, with what was not synced cut off, empty
or zeros; ENOSPC and EIO at each write, sync and creation. See tests/faults.
"""

from __future__ import annotations

import argparse
import errno
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "faults")]

from driving import Bench  # noqa: E402
from operations import OPERATIONS  # noqa: E402

LOSSES = {
    "kills": {"torn": None},
    "power losses, zeros": {"torn": "zeros"},
    "power losses, all names, half files": {"torn": "half", "names": True},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("operations", nargs="*", default=list(OPERATIONS), help=f"of {', '.join(OPERATIONS)}")
    parser.add_argument("--every", type=int, default=1, help="let only every so many-th change fail")
    given = parser.parse_args()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="clipql-faults-") as folder:
        bench = Bench(Path(folder) / "work")
        bench.record(given.operations)
        for operation in given.operations:
            changes = len(bench.changes(operation))
            for what, options in LOSSES.items():
                began = time.monotonic()
                counted, bad = bench.outcomes(operation, **options)  # type: ignore[arg-type]
                wrong += bad
                seconds = time.monotonic() - began
                print(
                    f"{operation}, {changes} changes: {what}: {dict(counted)}, {len(bad)} wrong, {seconds:.0f} s",
                    flush=True,
                )
            for number, sticky in ((errno.ENOSPC, True), (errno.EIO, False)):
                found = bench.failed(operation, number, sticky=sticky, every=given.every)
                bad = [
                    f"{operation}, {errno.errorcode[number]} at {f['n']}: {f['problem']}" for f in found if f["problem"]
                ]
                wrong += bad
                told = sum(1 for f in found if f["error"])
                print(
                    f"{operation}: {len(found)} times {errno.errorcode[number]}: {told} told, {len(bad)} wrong",
                    flush=True,
                )
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
