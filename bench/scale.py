"""How cost grows with rows: 1M to 30M image vectors, linked, indexed, and searched in memory that grows with them.

    python -m bench.scale [--millions 1,4,10,30] [--most 30] [--memory 4] [--only growth,searches,ingest] [--keep]

A build has `--memory`; searches have 60 MB for each million rows, beside the process (`scale_searches`), which is what
400 million rows have on a machine of 24 GB. Takes two hours and 60 GB of disk, most of it for the 30 million vectors,
which are made once and kept under bench/data; `--most 10` makes 10 million. Writes the figures and plots of
docs/scale.md.

`--only searches` searches the databases that an earlier run with `--keep` has left.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from bench import child, data
from bench.results import median
from bench.scale_searches import all_searches
from bench.scale_work import MILLIONS, PART, grow, ingest_in_child, truth

RESULTS = data.FOLDER / "scale"


def drop_caches() -> None:
    """Have the kernel forget what it has read, where we may."""
    subprocess.run(["sync"], check=True)
    try:
        Path("/proc/sys/vm/drop_caches").write_text("1")
    except OSError:
        print("the page cache could not be dropped; the control group's limit holds all the same")


def ingest(millions: int = 3) -> dict[str, Any]:
    """Both vectors, copied, part after part, beside `cp` and `sync` of the same files."""
    folder = data.FOLDER / f"both-{millions}"
    if not (folder / "whole").exists():
        shutil.rmtree(folder, ignore_errors=True)
        child.run(data.make, folder=str(folder), rows=millions * PART, parts=millions)
        (folder / "whole").touch()
    times: dict[str, list[float]] = {"cp": [], "clipql": []}
    for _ in range(3):
        for name in times:
            place = data.fresh(f"scale-ingest-{name}")
            data.forget(folder)
            began = time.perf_counter()
            if name == "cp":
                subprocess.run(["cp", "-r", str(folder), str(place)], check=True)
                subprocess.run(["sync"], check=True)
            else:
                child.run(ingest_in_child, folder=str(folder), place=str(place))
            times[name].append(time.perf_counter() - began)
            data.clear(place)
    shutil.rmtree(folder)
    return {"rows": millions * PART, "seconds": {name: median(t) for name, t in times.items()}}


def main() -> None:
    """Run what was asked for, keep each result, write the page."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--millions", default=",".join(map(str, MILLIONS)), help="of rows (%(default)s)")
    parser.add_argument("--most", type=int, default=max(MILLIONS), help="millions of rows to make (%(default)s)")
    parser.add_argument("--memory", type=int, default=4, metavar="GB", help="%(default)s")
    parser.add_argument("--only", default="growth,searches,ingest", help="%(default)s")
    parser.add_argument("--keep", action="store_true", help="leave the databases under bench/data")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    if "ingest" in arguments.only:
        keep("ingest", ingest())
    for millions in map(int, arguments.millions.split(",")):
        place = data.FOLDER / f"scale-{millions}"
        if "growth" in arguments.only:
            data.clear(place)
            drop_caches()
            found = child.run(grow, millions=millions, most=arguments.most, place=str(place), memory=arguments.memory)
            keep(f"growth-{millions}", found)
        if "searches" in arguments.only:
            keep(f"searches-{millions}", all_searches(millions, arguments.most, place, known(arguments.most, millions)))
        if not arguments.keep and "growth" in arguments.only:
            data.clear(place)
    from bench import scale_report

    print(scale_report.write())


def known(most: int, millions: int) -> Path:
    """The file of true neighbours among so many million rows, found by a pass over all of them if it is not there."""
    kept = RESULTS / f"truth-{most}.json"
    if not kept.exists() or str(millions) not in json.loads(kept.read_text()):
        sizes = sorted({millions, *(m for m in MILLIONS if m <= most)})
        kept.write_text(json.dumps(child.run(truth, most=most, sizes=sizes)))
    return kept


def keep(name: str, found: dict[str, Any]) -> None:
    """Keep a result, and show it."""
    (RESULTS / f"{name}.json").write_text(json.dumps({**found, "when": time.strftime("%Y-%m-%d")}, indent=1))
    print(name, json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
