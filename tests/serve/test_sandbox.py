"""The kernel's wall: what a server's process can reach where nothing else stops it."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pytest
from spellings import reaching

import clipql
from clipql.errors import ServerError
from clipql.serve import confinement, sandbox, scratch
from clipql.serve.sandbox import State
from clipql.storage import catalog
from clipql.storage.catalog import Catalog, Segment, Table, VectorColumn
from tests.patience import LAST_NET_SECONDS
from tests.serve.conftest import fill, start, stop
from tests.serve.test_escapes import SECRET, Attempt, attempts
from tests.serve.wall import SLOW

ATTEMPTS = int(os.environ.get("CLIPQL_ATTEMPTS", "300"))  # 0: all
ROOT = Path(__file__).parents[2]


def _offered() -> bool:
    try:
        return confinement.landlock_abi() >= 1
    except confinement.Unavailable:
        return False


walled = pytest.mark.skipif(not _offered(), reason="this kernel has no Landlock")


@dataclass(frozen=True)
class Tried:
    """What came of attempts, by name; connections that reached this machine; the files afterwards and before."""

    said: dict[str, str]
    reached: int
    beside: dict[str, str]
    before: dict[str, str]


def contents(folder: Path, *, of_database: bool) -> dict[str, str]:
    """The hashes of files by their names, of a database or of what lies beside it."""
    files = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    kept = {n: p for n, p in files.items() if n.startswith("test.db/") == of_database and "/tmp/" not in n}
    return {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in kept.items() if not n.endswith("/lock")}


def test_a_manifest_opens_nothing_in_the_wall_but_linked_parts(tmp_path: Path) -> None:
    vectors = np.ones((3, 4), np.float32)
    np.save(tmp_path / "part.npy", vectors)
    (tmp_path / "key").write_text("the canary sings")
    (tmp_path / "link.npy").symlink_to(tmp_path / "part.npy")
    (tmp_path / "db").mkdir()
    part = Segment(str(tmp_path / "part.npy"), 0, 3, 4, "float32", 128, 2.0, "", linked=True)
    named = [replace(part, file=str(p)) for p in (tmp_path, tmp_path / "key", tmp_path / "link.npy", "/", "/dev/mem")]
    others = [*named, replace(part, rows=4), replace(part, dimension=5), replace(part, absent=3)]
    column = VectorColumn("v", "column-0", 4, segments=(part, *others))
    known = Catalog((Table("default", "t", "t-1", (column,)),))
    with scratch.opened(tmp_path / "db") as own:
        plain = sandbox.of_server(tmp_path / "db", own, Catalog(), "no-model", write=False)
        plan = sandbox.of_server(tmp_path / "db", own, known, "no-model", write=False)
    assert set(plan.readable) - set(plain.readable) == {tmp_path / "part.npy"}


@pytest.mark.parametrize("left", ["engine/shadow/increment.txt", "manifest.json.tmp", ".backup-7/manifest.json"])
def test_what_was_left_to_be_removed_is_removed_before_the_wall_goes_up(tmp_path: Path, left: str) -> None:
    (tmp_path / "engine" / "metadata_dropped").mkdir(parents=True)
    catalog.save(tmp_path, Catalog())
    assert scratch.is_settled(tmp_path)
    (tmp_path / left).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / left).write_text("1")
    assert not scratch.is_settled(tmp_path)


def straight(attempt: Attempt, secrets: Path, port: int) -> tuple[str, list[str], dict[str, str]]:
    """An attempt as statements for the engine, with their parameters."""
    text = attempt.text.replace("{canary}", str(secrets / "canary")).replace("{folder}", str(secrets))
    text = text.replace("{port}", str(port))
    params: dict[str, str] = {}
    if attempt.how == "params":
        text, _, given = text.partition("&")
        pairs = dict(parse_qsl(given, keep_blank_values=True))
        params = {k.removeprefix("param_"): v for k, v in pairs.items() if k.startswith("param_")}
        settings = [f"{k} = '{v}'" for k, v in pairs.items() if not k.startswith("param_")]
        text += f" SETTINGS {', '.join(settings)}" if settings else ""
    if attempt.how == "header":
        text = text.partition("|")[0]
    return attempt.name, text.split(";; "), params


def tried(folder: Path, mode: str, some: list[Attempt]) -> Tried:
    """Send attempts to an engine inside the sandbox, past the guard."""
    fill(folder)
    with clipql.connect(folder / "test.db") as db:
        db.sql("CREATE TABLE plain (a String) ENGINE = MergeTree ORDER BY a")
    secrets = folder / "secrets"
    secrets.mkdir()
    for name in ("canary", "canary.csv"):
        (secrets / name).write_text(f"{SECRET}\n")
        (folder / name).write_text(f"{SECRET}\n")
    reached = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        threading.Thread(target=lambda: reached.append(listening.accept()), daemon=True).start()
        given = json.dumps([straight(a, secrets, port) for a in some])
        before = contents(folder, of_database=True)
        done = subprocess.run(
            [sys.executable, "-m", "tests.serve.wall", str(folder / "test.db"), mode],
            cwd=ROOT, input=given, capture_output=True, text=True, timeout=LAST_NET_SECONDS * 3,
        )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines, done.stderr
    assert "Landlock" in lines[0]["said"]
    said = {line["name"]: line["said"] for line in lines[1:]}
    return Tried(said, len(reached), contents(folder, of_database=False), before)


@walled
@pytest.mark.parametrize("mode", ["write", "read"])
def test_without_the_guard_no_escape_reads_writes_or_connects(tmp_path: Path, mode: str) -> None:
    some = attempts()
    if mode == "read":  # the others are the same
        some = [a for a in some if not a.text.upper().startswith(("SELECT", "SYSTEM", "SHOW", "WITH"))]
        some += [a for a in attempts() if "INTO OUTFILE" in a.text.upper()]
    found = tried(tmp_path, mode, some)
    last = [a.name for a in some if a.text.upper().startswith("SYSTEM")]  # one of these ends the process
    slow = [a.name for a in some if any(word in a.text.lower() for word in SLOW)]
    assert {a.name for a in some} - set(found.said) <= {*last, *slow}, "not sent"
    read = [name for name, said in found.said.items() if SECRET in said]
    assert read == []
    assert found.reached == 0
    expected = {*("canary", "canary.csv", "secrets/canary", "secrets/canary.csv"), "pictures/red.png",
                "pictures/secret.txt"}  # fmt: skip
    assert {n for n in found.beside if not n.startswith("parts/")} == expected
    secret = hashlib.sha256(f"{SECRET}\n".encode()).hexdigest()
    assert {h for n, h in found.beside.items() if "canary" in n} == {secret}
    if mode == "read":
        assert contents(tmp_path, of_database=True) == found.before


@walled
def test_without_the_guard_no_spelling_in_any_place_reads_writes_or_connects(tmp_path: Path) -> None:
    some = [Attempt(str(at), "sql", sql) for at, sql in enumerate(reaching(ATTEMPTS or 3_000, seed=7))]
    found = tried(tmp_path, "write", some)
    assert len(found.said) > 0.9 * len(some)  # some end what they are sent by
    assert [some[int(name)].text for name, said in found.said.items() if SECRET in said] == []
    assert found.reached == 0
    secret = hashlib.sha256(f"{SECRET}\n".encode()).hexdigest()
    assert {h for n, h in found.beside.items() if "canary" in n} == {secret}
    inside = [p for p in (tmp_path / "test.db").rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    assert inside == []


PROBES = """
import ctypes, errno, json, os, socket, sys, threading
from pathlib import Path
from clipql.serve import sandbox

inside, beside = map(Path, sys.argv[1:])
state = sandbox.apply(sandbox.Plan((*sandbox.base(), inside), (inside / "writable",)), "require")
said = {}

def probe(name, work):
    try:
        work()
        said[name] = "done"
    except OSError as error:
        said[name] = errno.errorcode[error.errno]

def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.sendto(b"x", ("127.0.0.1", 53))

def abstract():
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0]
    pair.connect("\\0clipql-test")

def raw(number, *arguments):
    library = ctypes.CDLL(None, use_errno=True)
    if library.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "no")

def all():
    probe("read inside", (inside / "file").read_bytes)
    probe("write inside", lambda: (inside / "file").write_bytes(b""))
    probe("write where it may", lambda: (inside / "writable/file").write_bytes(b"x"))
    probe("read beside", (beside / "file").read_bytes)
    probe("list beside", lambda: os.listdir(beside))
    probe("make beside", lambda: (beside / "new").touch())
    probe("link from beside", lambda: os.link(beside / "file", inside / "writable/link"))
    probe("read by a symlink", lambda: (inside / "symlink").read_bytes())
    probe("environment", lambda: open("/proc/self/environ").read())
    probe("users", lambda: open("/etc/passwd").read())
    probe("run", lambda: os.execv("/bin/true", ["true"]))
    probe("signal", lambda: os.kill(os.getppid(), 0))
    probe("tcp", lambda: socket.create_connection(("127.0.0.1", 9)))
    probe("udp", udp)
    probe("unix", abstract)
    probe("io_uring", lambda: raw(425, 8, 0))

thread = threading.Thread(target=all)
thread.start()
thread.join()
print(json.dumps(said))
"""


@walled
def test_inside_a_sandbox_only_what_the_plan_names_can_be_done(tmp_path: Path) -> None:
    inside, beside = tmp_path / "inside", tmp_path / "beside"
    (inside / "writable").mkdir(parents=True)
    beside.mkdir()
    for folder in (inside, beside):
        (folder / "file").write_text("kept")
    (inside / "symlink").symlink_to(beside / "file")
    command = [sys.executable, "-c", PROBES, str(inside), str(beside)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LAST_NET_SECONDS)
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    assert {name for name, what in said.items() if what == "done"} == {"read inside", "write where it may"}
    assert said.pop("link from beside") in ("EXDEV", "EACCES")
    assert set(said.values()) == {"done", "EACCES", "EPERM"}
    assert [p.name for p in beside.iterdir()] == ["file"]


@walled
def test_a_server_tells_its_state_and_leaves_nothing_behind(tmp_path: Path) -> None:
    fill(tmp_path)
    stray = tmp_path / "test.db/vectors/none-of-its-tables"  # which whoever may only read cannot remove
    stray.mkdir()
    (stray / "0.npy").write_bytes(b"of a table that is gone")
    before = contents(tmp_path, of_database=True)
    left = tmp_path / "test.db/tmp/serve-killed"
    (left / "temporary/clickhouse-embedded-x").mkdir(parents=True)
    server = start(tmp_path, "--sandbox", "require")
    assert not left.exists()
    assert server.sql("SELECT count() FROM laion").text == "300\n"
    status = server.ask("/api/status").json
    assert (status["sandbox"]["files"], status["sandbox"]["network"]) == (True, True)
    assert "Landlock" in status["sandbox"]["says"]
    assert server.ask("/api/thumbnail/default/pictures/0").status == 200  # opened by the helper
    stop(server)
    assert list((tmp_path / "test.db/tmp").iterdir()) == []
    assert contents(tmp_path, of_database=True) == before


@walled
def test_a_reading_server_settles_a_database_that_was_not_closed(tmp_path: Path) -> None:
    fill(tmp_path)
    writing = start(tmp_path, "--write")
    assert writing.sql("INSERT INTO laion (id) VALUES (1)").status in (200, 400)
    writing.process.kill()
    stop(writing)
    assert not scratch.is_settled(tmp_path / "test.db")
    server = start(tmp_path)
    try:
        assert server.sql("SELECT count() > 299 FROM laion").text == "1\n"
        assert scratch.is_settled(tmp_path / "test.db")
    finally:
        stop(server)


def test_off_says_so_and_a_sandbox_that_is_asked_for_and_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sandbox.apply(sandbox.Plan(()), "off").sentence == (
        "the kernel closes nothing to it (--sandbox off): only the check of each statement protects this machine"
    )

    def missing(*arguments: object, **more: object) -> int:
        raise confinement.Unavailable(38, "this kernel has no Landlock")

    monkeypatch.setattr(sandbox, "_threads", lambda: 1)
    monkeypatch.setattr(confinement, "restrict_files", missing)
    monkeypatch.setattr(confinement, "refuse_sockets", missing)
    state = sandbox.apply(sandbox.Plan(()), "auto")
    assert (state.whole, state.landlock, state.sockets) == (False, 0, False)
    assert "this kernel has no Landlock" in state.sentence
    assert "\n" not in state.sentence
    with pytest.raises(ServerError, match="--sandbox require: the kernel closes nothing to it"):
        sandbox.apply(sandbox.Plan(()), "require")


def test_each_kernel_is_told_what_it_does_not_close() -> None:
    assert State(7, True).sentence.startswith("the kernel closes other files, programs and the network")
    assert "nothing of the network" in State(3, False, "no seccomp").sentence
    assert "TCP" in State(4, False, "no seccomp").sentence


def test_threads_that_run_already_are_not_forgotten() -> None:
    begun = threading.Event()
    thread = threading.Thread(target=begun.wait)
    thread.start()
    try:
        with pytest.raises(ServerError, match="threads already"):
            sandbox.apply(sandbox.Plan(()), "auto")
    finally:
        begun.set()
        thread.join()


@pytest.fixture(autouse=True)
def _here() -> Iterator[None]:
    """Tests here start processes with this checkout's code."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *([before] if before else [])])
    yield
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
