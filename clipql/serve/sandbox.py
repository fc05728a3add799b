"""The kernel's wall around a server: what it may read and write, made as a plan, then applied for good.

The guard says what SQL may do; this is what a process can do where the guard is wrong. It is put up while the process
has one thread and has loaded nothing heavy, so that the engine's threads, and everybody else's, begin inside it.

What must stay true: nothing outside the plan is opened, no socket is made and no program run after `apply`; what is not
protected is said in one line (`State.sentence`), and under `require` it is an error.
"""

from __future__ import annotations

import contextlib
import os
import site
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from clipql.encode import cache, models
from clipql.errors import ModelError, ServerError
from clipql.serve import confinement
from clipql.serve.confinement import READ, WRITE, Unavailable
from clipql.serve.scratch import Scratch
from clipql.storage import files
from clipql.storage.catalog import Catalog, Segment

# What the C library, the engine and the thread pools look at: libraries, the clock, locales, the machine's size
_SYSTEM = (
    "/usr", "/lib", "/lib64", "/opt/lib", "/etc/ld.so.cache", "/etc/localtime", "/etc/timezone", "/etc/mime.types",
    "/etc/ssl/openssl.cnf", "/etc/gai.conf", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/hosts", "/etc/resolv.conf",
    "/dev/urandom", "/dev/random", "/dev/zero", "/sys/fs/cgroup", "/sys/devices/system",
    "/sys/kernel/mm/transparent_hugepage", "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/loadavg",
    "/proc/uptime", "/proc/vmstat", "/proc/version", "/proc/filesystems", "/proc/sys/vm", "/proc/sys/kernel",
)  # fmt: skip
# of /proc/self, which has the environment too, and the token may be in it
_OF_PROCESS = ("auxv", "cgroup", "limits", "maps", "mounts", "mountinfo", "smaps_rollup", "stat", "statm", "status")
_WRITTEN = (Path("/dev/null"),)
_ARRAY = b"\x93NUMPY"  # what a .npy file begins with


@dataclass(frozen=True)
class Plan:
    """What a process may still do. readable, writable: files, and folders with all in them. emptied: folders out of
    which folders may be removed. Everything else is closed: other files, running programs, sockets."""

    readable: tuple[Path, ...]
    writable: tuple[Path, ...] = ()
    emptied: tuple[Path, ...] = ()


@dataclass(frozen=True)
class State:
    """What protects a process now. landlock: the version (ABI) that closes files, 0 for none. sockets: whether none can
    be made. why: what was not to be had."""

    landlock: int = 0
    sockets: bool = False
    why: str = "not asked for"

    @property
    def whole(self) -> bool:
        """Whether files are closed, and every way into the network."""
        return self.landlock > 0 and self.sockets

    @property
    def sentence(self) -> str:
        """What protects and what does not, in one line."""
        if self.whole:
            return f"the kernel closes other files, programs and the network to it (Landlock {self.landlock}, seccomp)"
        if self.landlock:
            network = "TCP" if self.landlock >= 4 else "nothing of the network"
            return f"the kernel closes other files and {network} to it, but not all sockets: {self.why}"
        closed = "the network, but no files," if self.sockets else "nothing"
        return f"the kernel closes {closed} to it ({self.why}): only the check of each statement protects this machine"


OFF = State(why="--sandbox off")


def base() -> tuple[Path, ...]:
    """What any Python process here needs to read: its own code, its libraries, what the machine is."""
    here = Path(os.path.abspath(__file__)).parent.parent
    code = [Path(sys.prefix), Path(sys.base_prefix), here, *map(Path, sysconfig.get_paths().values())]
    with contextlib.suppress(AttributeError):  # some environments make no such
        code += map(Path, (*site.getsitepackages(), site.getusersitepackages()))
    found = [module.__file__ for module in list(sys.modules.values()) if getattr(module, "__file__", None)]
    code += [Path(os.path.abspath(f)) for f in found if f]
    caches = [os.environ.get("NUMBA_CACHE_DIR"), os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "numba")]
    code += [Path(c).expanduser() for c in caches if c]
    own = [Path("/proc/self") / name for name in _OF_PROCESS]
    return _distinct([*code, *map(Path, _SYSTEM), *own])


def of_models(names: Iterable[str | None]) -> tuple[Path, ...]:
    """The files of models that are on this machine: their folders, and in the Hugging Face cache what these link to."""
    found: list[Path] = []
    for name in names:
        with contextlib.suppress(ModelError, OSError):
            folder = models.find(name).path.absolute()
            found.append(folder if cache.repository_of(folder) is None else folder.parents[1])
    return _distinct(found)


def models_to_choose(mode: str) -> tuple[str, ...] | None:
    """The models of the cache that a server may offer: found while it may still look; None where it always may."""
    return None if mode == "off" else tuple(m.name for m in models.installed() if m.place == "cache")


def of_server(
    folder: Path,
    scratch: Scratch,
    known: Catalog,
    model: str | None,
    *,
    write: bool,
    also: tuple[Path, ...] = (),
    choice: tuple[str, ...] = (),
) -> Plan:
    """The plan of a server over a database folder, of what its manifest names, with its place for temporary files.

    also: folders that it may write besides. choice: models that may be chosen.
    """
    columns = [c for t in known.tables for c in t.columns]
    linked = [Path(s.file) for c in columns for s in c.segments if s.linked and _is_linked_part(s)]
    named = of_models({model, *(c.model for c in columns), *choice})
    written = (folder,) if write else (folder / "lock", scratch.temporary, scratch.engine)
    return Plan(
        _distinct([*base(), *named, *linked, folder, scratch.folder]), (*_WRITTEN, *written, *also), (scratch.parent,)
    )


def _is_linked_part(segment: Segment) -> bool:
    """Whether a linked segment can be the file that the manifest names: the manifest may be a stranger's, and a name in
    it, of a folder or a key, must open nothing. Arrays are read later; this loads no library that has threads."""
    if segment.hollow:
        return False
    try:
        with files.open_plain(Path(segment.file)) as file:
            size = os.fstat(file.fileno()).st_size
            width = segment.dimension * (2 if segment.dtype == "float16" else 4)
            return file.read(len(_ARRAY)) == _ARRAY and size == segment.offset + segment.rows * width
    except OSError:
        return False


def of_pictures(roots: tuple[Path, ...] | None) -> Plan:
    """The plan of a process that opens pictures for a server, in these folders; None for any."""
    return Plan((Path("/"),) if roots is None else roots)


def of_encoder(model: str | None, *, pictures: bool) -> Plan:
    """The plan of a process that encodes for others: it reads the model, and of pictures any file; it writes none."""
    return Plan((Path("/"),) if pictures else _distinct([*base(), *of_models([model])]), _WRITTEN)


def apply(plan: Plan, mode: str = "auto", *, network: bool = False) -> State:
    """Put the wall up around this thread and all that it starts; there is no way back. mode: auto, require or off.
    network: whether it may make sockets and connect by them all the same.

    Raises ServerError under `require` where the kernel offers less than all, and where there are threads already, which
    would stay outside.
    """
    if mode == "off":
        return OFF
    running = _threads()
    if running > 1:
        raise ServerError(f"this process has {running} threads already, which would stay outside of its sandbox")
    rights = {path.resolve(): 0 for path in (*plan.readable, *plan.writable, *plan.emptied)}
    for paths, right in ((plan.readable, READ), (plan.writable, WRITE), (plan.emptied, confinement.REMOVE_DIR)):
        for path in paths:
            rights[path.resolve()] |= right
    landlock, sockets, why = 0, False, []
    try:
        held = [p for p in rights if p.parts[:2] == ("/", "proc")]
        landlock = confinement.restrict_files(rights, held, tcp=network)
    except Unavailable as error:
        why.append(str(error.strerror))
    try:
        if not network:
            confinement.refuse_sockets()
            sockets = True
    except Unavailable as error:
        why.append(str(error.strerror))
    state = State(landlock, sockets, "; ".join(why))
    if mode == "require" and not state.whole:
        raise ServerError(f"--sandbox require: {state.sentence}; --sandbox auto starts all the same")
    return state


def _threads() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:  # no Linux, so nothing to put up
        return 1


def _distinct(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Paths without those below others, in order."""
    known = dict.fromkeys(p for p in paths if p.is_absolute())
    return tuple(p for p in known if not any(parent in known for parent in p.parents))
