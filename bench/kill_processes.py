"""Random kills of all processes around one database that lives on: a server's writer, its workers, its supervisor, and
embedded readers beside them.

    python -m bench.kill_processes --kills 1000 --seed 1

One client writes by HTTP, others read by HTTP and embedded, without a pause, while processes are killed (SIGKILL) at
random times. An INSERT brings a whole batch of rows, each with a vector that follows from its id, so that half a commit
is seen. Whatever was acknowledged before a reader began to look must be seen by it, also by one that asks another
worker; what was under way may be there or not, as a whole. After each generation (so many kills, the last of the
supervisor) nothing may be left: no process, no snapshot, no damage.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import http.client
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from bench.child import environment

BATCH, MOST_BATCHES = 40, 40  # rows of one INSERT; batches beyond which more is deleted than inserted
VICTIMS = {"worker": 5, "reader": 5, "writer": 2}
SEEN = "SELECT intDiv(id, 1000) AS batch, count(), countIf(v[1] = id AND v[2] = 1), uniqExact(id) FROM t GROUP BY batch"
NEAREST = "SELECT id FROM t ORDER BY L2Distance(v, {q:Array(Float32)}) LIMIT 1"
# a server that starts a process anew at once, however often one is killed
SERVER = (
    "import clipql.serve.workers.supervisor as s; s.LONGEST_WAIT = 0.1; from clipql.cli.entry import main; "
    "import sys; sys.exit(main())"
)
PATIENCE_SECONDS = 300.0


@dataclass
class Model:
    """What must be in the table. sure: batches that were acknowledged; gone: that were deleted for certain; open: of
    which it is not known; leaving: of which a DELETE was ever begun; begun: all that were ever sent."""

    sure: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)
    open: set[int] = field(default_factory=set)
    leaving: set[int] = field(default_factory=set)
    next: int = 1
    lock: threading.Lock = field(default_factory=threading.Lock)
    wrong: list[str] = field(default_factory=list)

    def before(self) -> tuple[set[int], set[int]]:
        """What whoever begins to look now must see, and must not."""
        with self.lock:
            return set(self.sure), set(self.gone)

    def check(self, who: str, before: tuple[set[int], set[int]], rows: list[Any]) -> None:
        """Whether rows of `SEEN` are whole commits, with all that was sure and nothing that was gone."""
        sure, gone = before
        seen = {int(row[0]) for row in rows}
        half = [row for row in rows if {int(n) for n in row[1:]} != {BATCH}]
        with self.lock:
            lost, back, made_up = sure - self.leaving - seen, seen & gone, {b for b in seen if b >= self.next}
            if half or lost or back or made_up:
                said = f"{who}: half {half}, lost {sorted(lost)}, back {sorted(back)}, made up {sorted(made_up)}"
                self.wrong.append(said)
                print(said, flush=True)

    def settle(self, rows: list[Any]) -> None:
        """Nothing runs: what is there now is what there is."""
        self.check("nobody has it open", self.before(), rows)
        with self.lock:
            self.sure = {int(row[0]) for row in rows}
            self.gone |= self.open - self.sure | (self.leaving - self.sure)
            self.open, self.leaving = set(), set()


def look(db: Any) -> list[Any]:
    """What an embedded reader sees; raises AssertionError where its arrays are not its rows, or a search misses."""
    with db.snapshot():
        rows = db.sql(SEEN).rows
        ids = [float(n) for block in db.vectors("t", "v") for n in block.vectors[:, 0]]
        assert sorted(ids) == sorted(float(r[0] * 1000 + i) for r in rows for i in range(r[1])), "arrays of other rows"
        for wanted in ids[:1] + ids[-1:]:
            found = db.sql(NEAREST, q=np.array([wanted, 1], np.float32)).rows
            assert found == [(int(wanted),)], f"the search for {wanted} gives {found}"
    return list(map(list, rows))


def lives(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] not in "ZX"
    return False


def reader(folder: str, pipe: Any, follow: bool) -> None:
    """A process that looks whenever it is told, with a reader that is open, or that it opens each time."""
    import clipql

    with contextlib.ExitStack() as stack:
        db = stack.enter_context(clipql.connect(folder, read_only=True, follow=True)) if follow else None
        while True:
            pipe.recv()
            try:
                if db is not None:
                    pipe.send(look(db))
                else:
                    with clipql.connect(folder, read_only=True) as once:
                        pipe.send(look(once))
            except (clipql.ClipqlError, AssertionError) as error:
                pipe.send(f"{type(error).__name__}: {error}")


class Crowd:
    """The server, its clients and the embedded readers, over one database."""

    def __init__(
        self, folder: Path, model: Model, workers: int, readers: int, luck: random.Random, pause: float
    ) -> None:
        self.pause, self.looked = pause, set[int]()
        self.folder, self.model, self.luck, self.workers, self.readers = folder, model, luck, workers, readers
        self.done = threading.Event()
        self.looks: collections.Counter[str] = collections.Counter()
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["clipql.reader"])
        self.processes: dict[int, Any] = {}
        self.server: subprocess.Popen[str] | None = None
        self.port = 0

    def start(self) -> None:
        """Start everything anew."""
        self.done.clear()
        self.looks.clear()
        self.looked.clear()
        command = [sys.executable, "-c", SERVER, "--db", str(self.folder), "serve", "--port", "0", "--write",
                   "--workers", str(self.workers), "--log-level", "warning"]  # fmt: skip
        with open(self.folder.parent / "server.log", "a", encoding="utf-8") as log:
            self.server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment())
        assert self.server.stdout is not None
        self.port = urlsplit(self.server.stdout.readline().split(" at ")[-1].strip()).port or 0
        assert self.port, (self.folder.parent / "server.log").read_text(encoding="utf-8")[-2000:]
        work: list[Callable[[], None]] = [self._write, self._read_by_http, self._read_by_http]
        work += [lambda at=at: self._read_embedded(at) for at in range(self.readers)]  # type: ignore[misc]
        self.threads = [threading.Thread(target=each) for each in work]
        for thread in self.threads:
            thread.start()

    def stop(self, how: signal.Signals) -> None:
        """End the server by a signal to its supervisor, and wait until all is gone."""
        assert self.server is not None
        assert self.server.stdout is not None
        everybody = [self.server.pid, *self.children()]
        self.done.set()
        os.kill(self.server.pid, how)
        self.server.wait(PATIENCE_SECONDS)
        self.server.stdout.close()
        for thread in self.threads:
            thread.join()
        end = time.monotonic() + PATIENCE_SECONDS
        while left := [pid for pid in everybody if lives(pid)]:
            if time.monotonic() > end:
                self.model.wrong.append(f"processes {left} outlive their supervisor")
                return
            time.sleep(0.05)

    def children(self) -> list[int]:
        """The processes of the server but its first."""
        assert self.server is not None
        with contextlib.suppress(OSError):
            return [
                int(n) for n in Path(f"/proc/{self.server.pid}/task/{self.server.pid}/children").read_text().split()
            ]
        return []

    def kill_one(self, kind: str) -> str:
        """Kill a process of a kind, if there is one; what it was. While the writer opens the database, nothing tells it
        from workers."""
        writer = self._writer()
        if kind == "reader":
            found = [p.pid for p in self.processes.values() if p.is_alive()]
        else:
            found = [pid for pid in self.children() if (pid == writer) == (kind == "writer")]
        if not found:
            return ""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.luck.choice(found), signal.SIGKILL)
        return kind if writer or kind == "reader" else "worker, or writer that opens"

    def wait(self, events: int) -> None:
        """Until the clients and readers have seen so many things more, so that a slow machine is killed on as long."""
        end, wanted = time.monotonic() + self.pause, self._seen() + events
        while self._seen() < wanted and time.monotonic() < end:
            time.sleep(0.01)

    def _seen(self) -> int:
        return sum(n for what, n in self.looks.copy().items() if "unknown" not in what)

    def complete(self) -> None:
        """Until all do their work: rows are acknowledged, and each reader has looked."""
        end = time.monotonic() + PATIENCE_SECONDS
        while self.looks["insert, acknowledged"] == 0 or len(self.looked) < self.readers:
            if time.monotonic() > end:
                self.model.wrong.append("not all processes are there after five minutes")
                return
            time.sleep(0.05)

    def _writer(self) -> int:
        """The process that has the database's own engine open."""
        status = os.path.realpath(self.folder / "engine/status")
        for pid in self.children():
            with contextlib.suppress(OSError):
                if any(os.path.realpath(fd) == status for fd in Path(f"/proc/{pid}/fd").iterdir()):
                    return pid
        return 0

    def ask(self, statement: str, **query: str) -> str | None:
        """An answer over a connection of its own; None where it is not known what became of it."""
        from urllib.parse import urlencode

        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_SECONDS)
        try:
            connection.request("POST", "/?" + urlencode(query), statement.encode())
            reply = connection.getresponse()
            said = reply.read().decode()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        if reply.status == 200:
            return said
        if reply.status not in (429, 503):
            self.model.wrong.append(f"{statement[:60]}: {reply.status} {said[:300]}")
            print(self.model.wrong[-1], flush=True)
        return None

    def _write(self) -> None:
        model = self.model
        while not self.done.is_set():
            with model.lock:
                many = len(model.sure) > MOST_BATCHES
                verb = self.luck.choices(("insert", "delete", "optimise", "index"), (4 if many else 8, 6, 0.5, 0.5))[0]
                batch = model.next
                if verb == "delete":
                    if not model.sure:
                        continue
                    batch = self.luck.choice(sorted(model.sure))
                    model.leaving.add(batch)
                    model.sure.discard(batch)
                    model.open.add(batch)
                elif verb == "insert":
                    model.next += 1
                    model.open.add(batch)
            text = {
                "insert": f"INSERT INTO t SELECT {batch} * 1000 + number AS id, [id, 1] FROM numbers({BATCH})",
                "delete": f"DELETE FROM t WHERE intDiv(id, 1000) = {batch}",
                "optimise": "OPTIMIZE TABLE t FINAL",
                "index": "ALTER TABLE t MATERIALIZE INDEX near",
            }[verb]
            known = self.ask(text) is not None
            self.looks[f"{verb}, {'acknowledged' if known else 'outcome unknown'}"] += 1
            if known and verb in ("insert", "delete"):
                with model.lock:
                    model.open.discard(batch)
                    (model.sure if verb == "insert" else model.gone).add(batch)
            elif not known:
                time.sleep(0.05)

    def _read_by_http(self) -> None:
        model = self.model
        while not self.done.is_set():
            before = model.before()
            said = self.ask(SEEN + " FORMAT JSONCompact")
            if said is None:
                time.sleep(0.02)
                continue
            rows = json.loads(said)["data"]
            model.check("a client", before, rows)
            self.looks["by HTTP"] += 1
            if before[0]:
                wanted = max(before[0]) * 1000
                said = self.ask(NEAREST + " FORMAT TSV", param_q=f"[{wanted},1]")
                with model.lock:
                    if said is not None and said != f"{wanted}\n" and wanted // 1000 not in model.leaving:
                        model.wrong.append(f"a client's search for {wanted} gives {said!r}")

    def _read_embedded(self, at: int) -> None:
        while not self.done.is_set():
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=reader, args=(str(self.folder), theirs, at % 2 == 0), daemon=True)
            process.start()
            theirs.close()
            self.processes[at] = process
            with contextlib.suppress(EOFError, OSError):
                while not self.done.is_set():
                    before = self.model.before()
                    ours.send("look")
                    found = ours.recv()
                    if isinstance(found, str):
                        self.model.wrong.append(f"an embedded reader: {found}")
                        print(self.model.wrong[-1], flush=True)
                    else:
                        self.model.check("an embedded reader", before, found)
                        self.looks["embedded"] += 1
                        self.looked.add(at)
            process.kill()
            process.join()
            ours.close()


def run(folder: Path, kills: int, seed: int, *, workers: int = 2, readers: int = 2, generation: int = 50,
        pause: float = 2.0) -> list[str]:  # fmt: skip
    """Kill so many times; what went wrong, which is nothing. pause: seconds between two kills, at most; fewer
    where enough was seen meanwhile."""
    import clipql

    luck, model = random.Random(seed), Model()
    with clipql.connect(folder) as db:
        db.sql("CREATE TABLE t (id UInt64, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        db.sql("ALTER TABLE t ADD INDEX near v TYPE ivf('L2Distance')")
    crowd, counted, began = (
        Crowd(folder, model, workers, readers, luck, pause),
        collections.Counter[str](),
        time.monotonic(),
    )
    while counted.total() < kills and len(model.wrong) < 5:
        crowd.start()
        crowd.complete()
        last = min(kills, counted.total() + generation) - 1
        while counted.total() < last and len(model.wrong) < 5:
            crowd.wait(luck.randrange(8))
            kind = luck.choices(list(VICTIMS), list(VICTIMS.values()))[0]
            if killed := crowd.kill_one(kind):
                counted[killed] += 1
        crowd.wait(3)
        how = luck.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        counted["server"] += how == signal.SIGKILL or counted.total() >= kills - 1
        crowd.stop(how)
        left: list[str] = []
        with clipql.connect(folder, read_only=True) as db:
            model.check("a reader after all", model.before(), look(db))
        with clipql.connect(folder) as db:
            model.settle(db.sql(SEEN).rows)
            left = [path.name for path in folder.glob("tmp/reader-*")]
        if left:
            model.wrong.append(f"snapshots are left: {left}")
        model.wrong += [str(found) for found in clipql.check(folder, deep=True).findings]
        told = ", ".join(f"{n} {kind}" for kind, n in sorted(counted.items()))
        seen = ", ".join(f"{n} {what}" for what, n in sorted(crowd.looks.items()))
        line = f"{time.monotonic() - began:.0f} s: {counted.total()} kills ({told}); {seen}; {len(model.wrong)} wrong"
        print(*model.wrong, line, sep="\n", flush=True)
    return model.wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--readers", type=int, default=2, help="embedded ones")
    parser.add_argument("--generation", type=int, default=50, help="kills until all ends and is looked at")
    parser.add_argument("--pause", type=float, default=2.0, help="seconds between two kills, at most")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="clipql-kills-"))
    wrong = ["it did not end"]
    try:
        wrong = run(place / "db", given.kills, given.seed, workers=given.workers, readers=given.readers,
                    generation=given.generation, pause=given.pause)  # fmt: skip
    finally:
        if wrong:
            print(f"kept: {place}")
        else:
            shutil.rmtree(place, ignore_errors=True)
    print("\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    from bench import kill_processes  # under its own name, by which the readers' processes find it

    sys.exit(kill_processes.main())
