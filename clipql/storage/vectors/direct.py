"""Reading many places of files from the disk at once, past the page cache: Linux's io_submit(2) on O_DIRECT.

Rows that a search compares lie at random and are not wanted again soon. Read through a mapping, each brings a page or
two into the page cache, and pages of the index leave it for them. What must stay true: whoever reads has a mapping to
fall back to, and nothing here raises for want of the means (another system, a file system or a container that refuses,
too many open files); a context serves one thread at a time.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types, uint64
from numba.core import cgutils
from numba.extending import intrinsic
from numpy.typing import NDArray

from clipql.storage.vectors.bits import kernel

Integers = NDArray[np.int64]
Addresses = NDArray[np.uint64]
DEPTH = 128  # reads under way at once
ALIGNED = 512  # bytes that a read begins and ends at multiples of
NOWHERE = 0  # no context: nothing can be read so
# io_setup, io_getevents, io_submit
_NUMBERS = {"x86_64": (206, 208, 209), "aarch64": (0, 4, 2)}.get(platform.machine())
SETUP, GET_EVENTS, SUBMIT = _NUMBERS or (-1, -1, -1)
_THERE = _NUMBERS is not None and sys.platform == "linux" and sys.byteorder == "little"
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) \S+ (\d+) +(/.*)")


class Files:
    """The files behind mapped arrays, opened once more for direct reads, until this is gone.

    descriptor: int64 (n,), of each array's file, -1 where it has none. offset: int64 (n,), where it begins there.
    """

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self.descriptor, self.offset = np.full(len(arrays), -1, np.int64), np.zeros(len(arrays), np.int64)
        self._opened: list[int] = []
        if not _THERE or not arrays:
            return
        with contextlib.suppress(OSError, ValueError):
            for i, found in enumerate(_behind([a.ctypes.data for a in arrays])):
                if found is not None:
                    self.descriptor[i], self.offset[i] = self._open(found[0], found[1]), found[2]
            return
        self.descriptor[:] = -1

    def _open(self, path: str, inode: int) -> int:
        """A descriptor of the file that is mapped; -1 where that name is another's by now."""
        try:
            file = os.open(path, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        except FileNotFoundError:
            return -1
        self._opened.append(file)
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            os.preadv(file, [memoryview(page)[:ALIGNED]], 0)
        return file if os.fstat(file).st_ino == inode else -1

    def __del__(self) -> None:
        for file in self._opened:
            os.close(file)


def _behind(addresses: Sequence[int]) -> list[tuple[str, int, int] | None]:
    """The file that each address is mapped from: path, inode and offset. None for memory that is no file's."""
    found: list[tuple[str, int, int] | None] = [None] * len(addresses)
    order = sorted(range(len(addresses)), key=addresses.__getitem__)
    at = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        told = _MAPPING.match(line)
        first, last = (int(n, 16) for n in line.split(" ", 1)[0].split("-"))
        while at < len(order) and addresses[order[at]] < last:
            address = addresses[order[at]]
            if told and first <= address:
                found[order[at]] = told[5], int(told[4]), int(told[3], 16) + address - first
            at += 1
    return found


_spare: list[int] = []
# a process that was forked has none of its parent's contexts
os.register_at_fork(after_in_child=_spare.clear)


@contextlib.contextmanager
def context() -> Iterator[np.uint64]:
    """One of the kernel's contexts for `read`, which no other thread uses meanwhile; NOWHERE where none is to be had.

    They are kept for who comes next, as giving one back to the kernel takes milliseconds.
    """
    try:
        found = _spare.pop()
    except IndexError:
        made = ctypes.c_ulong(0)
        failed = not _THERE or ctypes.CDLL(None).syscall(SETUP, DEPTH, ctypes.byref(made))
        found = NOWHERE if failed else made.value
    try:
        yield np.uint64(found)
    finally:
        if found != NOWHERE:
            _spare.append(found)


@intrinsic
def _system_call(typingctx: Any, number: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    """syscall(2) of five words; int64, -1 where it failed."""
    sig = types.int64(types.int64, types.uint64, types.uint64, types.uint64, types.uint64, types.uint64)

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word], var_arg=True)
        return b.call(cgutils.get_or_insert_function(b.module, kind, "syscall"), args)

    return sig, codegen


@kernel
def room(places: int, size: int) -> NDArray[np.uint8]:
    """Where `read` puts so many places of `size` bytes."""
    return np.empty(ALIGNED + places * _slot(size), np.uint8)


@kernel
def _slot(size: int) -> int:
    return ((size + ALIGNED - 1) // ALIGNED + 1) * ALIGNED


@kernel
def read(
    context: np.uint64,
    descriptor: Integers,
    offset: Integers,
    size: int,
    room: NDArray[np.uint8],
    first: int,
    address: Addresses,
) -> int:
    """Read `size` bytes at each offset (n,) of a file; returns how many places were read, and writes where they are now
    into address (n,), which keeps what it says of those that were not.

    room: made for at least first + n places by `room`, of which those from the first on are used.
    """
    n, slot = descriptor.size, _slot(size)
    begin = (uint64(room.ctypes.data) + uint64(ALIGNED - 1)) & ~uint64(ALIGNED - 1)
    request, pointers = np.zeros((DEPTH, 8), np.uint64), np.empty(DEPTH, np.uint64)
    events = np.empty((DEPTH, 4), np.int64)
    at, done = 0, 0
    while at < n:
        count, before = 0, at
        while at < n and count < DEPTH:
            if descriptor[at] >= 0:
                start = offset[at] & ~(ALIGNED - 1)
                end = (offset[at] + size + ALIGNED - 1) & ~(ALIGNED - 1)
                request[count, 0] = uint64(at)
                request[count, 2] = uint64(descriptor[at]) << uint64(32)  # and the command 0, which reads
                request[count, 3] = begin + uint64((first + at) * slot)
                request[count, 4] = uint64(end - start)
                request[count, 5] = uint64(start)
                pointers[count] = uint64(request.ctypes.data) + uint64(64 * count)
                count += 1
            at += 1
        taken = 0
        while taken < count:
            more = _system_call(
                SUBMIT, context, uint64(count - taken), uint64(pointers.ctypes.data) + uint64(8 * taken),
                uint64(0), uint64(0),
            )  # fmt: skip
            if more <= 0:
                break
            taken += more
        came = 0
        while came < taken:
            more = _system_call(
                GET_EVENTS, context, uint64(taken - came), uint64(taken - came), uint64(events.ctypes.data), uint64(0)
            )
            for e in range(max(more, 0)):
                i = events[e, 0]
                skipped = offset[i] & (ALIGNED - 1)
                if events[e, 2] >= skipped + size:
                    address[i] = begin + uint64((first + i) * slot + skipped)
                    done += 1
            came += max(more, 0)
        if taken < count and before == at:
            break
    return done + 0 * (int(request[0, 0]) + int(pointers[0]) + int(events[0, 0]))


def read_places(files: Files, which: Integers, offset: Integers, size: int) -> Iterator[bytes | None]:
    """The bytes at these offsets of these of the files, for tests and where few are wanted; None where not read."""
    space = room(len(which), size)
    address = np.zeros(len(which), np.uint64)
    with context() as borrowed:
        read(borrowed, files.descriptor[which], files.offset[which] + offset, size, space, 0, address)
    start = space.ctypes.data
    for each in address.tolist():
        yield bytes(space[each - start : each - start + size]) if each else None
