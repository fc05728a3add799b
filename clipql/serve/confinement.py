"""The kernel's two ways to take rights away from a thread and all that it starts: Landlock and seccomp, over ctypes.

Landlock (Linux 5.13) names the files that may still be opened; seccomp takes whole system calls away: `socket`, so that
there is no way out by TCP, UDP or a Unix socket. Three system calls and nine instructions: the libraries `landlock` and
`landlockpy` know no scopes (ABI 6), and none does both. See https://docs.kernel.org/userspace-api/landlock.html.

What must stay true: rights are only ever taken; what a kernel does not know is left out and told, not guessed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import stat
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = (1 << n for n in range(6))
MAKE_DIR, MAKE_REG, MAKE_FIFO, MAKE_SYM, REFER, TRUNCATE, IOCTL_DEV = (1 << n for n in (7, 8, 10, 12, 13, 14, 15))
READ = READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_FIFO | MAKE_SYM | REFER | TRUNCATE
_OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_FIRST = (1 << 13) - 1  # the rights of ABI 1
_LATER = {2: REFER, 3: TRUNCATE, 5: IOCTL_DEV}
_CONNECT_AND_BIND, _SIGNALS_AND_ABSTRACT = 3, 3
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_NO_NEW_PRIVS, _SET_SECCOMP, _FILTER = 38, 22, 2
# by machine: what the kernel calls it, and its numbers of socket, connect, bind, ptrace, process_vm_readv and _writev
_MACHINES = {
    "x86_64": (0xC000003E, (41, 42, 49, 101, 310, 311)),
    "aarch64": (0xC00000B7, (198, 203, 200, 117, 270, 271)),
}
_EVERYWHERE = (425,)  # io_uring_setup, which makes sockets without `socket`


class Unavailable(OSError):
    """The kernel, or the container, does not offer it."""


def landlock_abi() -> int:
    """The version of Landlock here. Raises Unavailable."""
    if sys.platform != "linux":
        raise Unavailable(errno.ENOSYS, f"{platform.system()} has no Landlock")
    try:
        return _syscall(_CREATE, None, 0, 1)
    except OSError as error:
        why = {
            errno.ENOSYS: "this kernel has no Landlock",
            errno.EOPNOTSUPP: "Landlock is off in this kernel (boot parameter lsm=)",
            errno.EPERM: "this container forbids Landlock",
        }
        raise Unavailable(error.errno, why.get(error.errno or 0, str(error))) from error


def restrict_files(rights: Mapping[Path, int], held: Iterable[Path] = (), *, tcp: bool = False) -> int:
    """Leave this thread, and all that it starts, just these rights below these paths, and no TCP without `tcp`. The
    ABI it was done by.

    rights: paths that are not there are left out. held: those of them that stay open, so that a file that the kernel
    makes up (/proc) stays the one that was meant. Raises Unavailable.
    """
    abi = landlock_abi()
    known = _FIRST | sum(right for since, right in _LATER.items() if since <= abi)
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    attributes = struct.pack("=QQQ", known, 0 if tcp else _CONNECT_AND_BIND, _SIGNALS_AND_ABSTRACT)[:size]
    ruleset = _syscall(_CREATE, attributes, size, 0)
    kept = set(held)
    try:
        for path, given in rights.items():
            _allow(ruleset, path, given & known, keep=path in kept)
        if _prctl(_NO_NEW_PRIVS, 1):
            raise Unavailable(ctypes.get_errno(), "this process may still gain rights, so it may give none up")
        _syscall(_RESTRICT, ruleset, 0)
    finally:
        os.close(ruleset)
    return abi


def _allow(ruleset: int, path: Path, given: int, *, keep: bool) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            given &= _OF_FILES
        if given:
            _syscall(_ADD, ruleset, 1, struct.pack("=Qi", given, handle), 0)
    finally:
        if not keep:
            os.close(handle)


def refuse_sockets() -> None:
    """Let this thread, and all that it starts, make no socket, and touch no other process. Raises Unavailable."""
    if sys.platform != "linux":
        raise Unavailable(errno.ENOSYS, f"{platform.system()} has no seccomp")
    known = _MACHINES.get(platform.machine())
    if known is None or sys.maxsize < 1 << 32:
        raise Unavailable(errno.ENOSYS, f"the system calls of {platform.machine()} are not known here")
    audit, numbers = known
    refused = (*numbers, *_EVERYWHERE)
    last = len(refused) + 3
    # BPF over struct seccomp_data: its number at 0, its machine at 4. Refuse another machine's calls and x32's (bit 30)
    program = [
        (0x20, 0, 0, 4),
        (0x15, 0, last, audit),
        (0x20, 0, 0, 0),
        (0x35, last - 2, 0, 1 << 30),
        *((0x15, len(refused) - at, 0, number) for at, number in enumerate(refused)),
        (0x06, 0, 0, 0x7FFF0000),  # allow
        (0x06, 0, 0, 0x00050000 | errno.EACCES),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    if _prctl(_NO_NEW_PRIVS, 1) or _prctl(_SET_SECCOMP, _FILTER, header):
        raise Unavailable(ctypes.get_errno(), f"seccomp is refused here ({os.strerror(ctypes.get_errno())})")


def _library() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int, pointer: bytes | None = None) -> int:
    zero = ctypes.c_ulong(0)
    return int(_library().prctl(option, ctypes.c_ulong(value), pointer, zero, zero))


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    call = _library().syscall
    call.restype = ctypes.c_long
    given = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    found = int(call(ctypes.c_long(number), *given))
    if found < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return found
