"""The process that starts a server's others, hands them connections, and replaces those that die or do not stop.

It accepts connections and reads nothing from them: each goes to the worker that has the fewest. Processes that listen
on one socket would share connections by who wakes first, and those of SO_REUSEPORT by chance, with those lost that wait
for a process that was killed. uvicorn's own supervisor starts processes that are all alike, each a fresh Python, has no
channels between them, and waits for ever for one that does not end; gunicorn's are all alike too. Here one process
writes, and each is a fork of this one, which has one thread and has loaded nothing heavy, so that a sandbox can be put
around it.

What must stay true: this process makes no thread; a process that has died holds nothing, neither a connection, nor its
share of the limits; none outlives this one.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from clipql.errors import ServerError
from clipql.serve import logs
from clipql.serve.listening import Doors
from clipql.serve.workers import board as numbers
from clipql.serve.workers import channel as letters
from clipql.serve.workers.board import Board
from clipql.serve.workers.channel import Channel

LOG = logging.getLogger("clipql.serve")
WRITER = 0
# seconds: without a sign of life, until a process is taken for one that will not stop; that one must have lived for its
# death to be the first; the longest wait before the next start; from the end of the grace until a process is killed
SILENT, LIVED, LONGEST_WAIT, CLOSE_SECONDS = 30.0, 10.0, 10.0, 17.0
# seconds that connections wait for a process that takes them, before they are answered that there is none
PATIENCE = 5.0
_PARENT_DEATH = 1
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: 43\r\n\r\nThe server's processes are being restarted\n"
)


@dataclass
class Started:
    """A process that runs. given: connections that it was handed. unread: those that it has not taken yet, which
    another one is handed should it die."""

    pid: int
    channel: Channel
    began: float
    ready: bool = False
    given: int = 0
    unread: deque[socket.socket] = field(default_factory=deque)


@dataclass
class Slot:
    """The place of one process, whoever has it. fails: how often in a row one died young; next: when to start one."""

    number: int
    now: Started | None = None
    fails: int = 0
    next: float = 0.0
    said: str = ""


class Supervisor:
    """Call `run`. doors: the sockets that listen; at that of the native protocol the writer takes connections itself,
    and they wait in the kernel while it is replaced. workers: how many, beside the writer. work: what a child does,
    with its number and its end of a channel; it gives the exit status. grace: seconds that what runs has at the end."""

    def __init__(
        self, doors: Doors, workers: int, board: Board, work: Callable[[int, Channel], int], grace: int
    ) -> None:
        self._doors, self._bound = doors, doors.http
        self._board, self._work, self._grace = board, work, grace
        self._slots = [Slot(number) for number in range(workers + 1)]
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []
        self._stops, self._deadline = 0, float("inf")
        self._accepting, self._last_ready = False, float("inf")
        self._closing: list[tuple[float, socket.socket]] = []
        self._failed = False
        self._settled = False  # the writer has brought the database in order, which the others open then

    def run(self, ready: Callable[[], None]) -> int:
        """Start all, supervise them until SIGTERM or SIGINT, and end them; the exit status.

        ready: called once requests are taken. Raises ServerError where a process cannot start at all.
        """
        wake, woken = socket.socketpair()
        for end in (wake, woken):
            end.setblocking(False)
        numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        before = {number: signal.signal(number, lambda number, _: self._signals.append(number)) for number in numbers}
        fd = signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        self._selector.register(wake, selectors.EVENT_READ, "wake")
        self._bound.setblocking(False)
        try:
            return self._supervise(wake, ready)
        finally:
            self._kill_all()
            signal.set_wakeup_fd(fd)
            for number, handler in before.items():
                signal.signal(number, handler)
            self._selector.close()
            wake.close()
            woken.close()

    def _supervise(self, wake: socket.socket, ready: Callable[[], None]) -> int:
        told = False
        while True:
            self._start_due()
            if not told and all(slot.now and slot.now.ready for slot in self._slots):
                told = True
                LOG.info("supervising", extra={"fields": {"pid": os.getpid(), "workers": len(self._slots) - 1}})
                ready()
            self._listen()
            for key, _ in self._selector.select(self._pause()):
                if key.data == "wake":
                    with contextlib.suppress(BlockingIOError):
                        wake.recv(4096)
                elif key.data == "accept":
                    self._accept()
                else:
                    self._hear(key.data)
            self._bury(told)
            self._obey()
            self._look()
            if self._stops and not any(slot.now for slot in self._slots):
                return 1 if self._failed else 0

    def _pause(self) -> float:
        due = [slot.next for slot in self._slots if slot.now is None and not self._stops]
        now = time.monotonic()
        return max(0.0, min([1.0, *(at - now for at in due)]))

    # starting

    def _start_due(self) -> None:
        for slot in self._slots:
            if not self._stops and slot.now is None and slot.next <= time.monotonic():
                self._start(slot)

    def _start(self, slot: Slot) -> None:
        ours, theirs = letters.pair()
        self._board.clear(slot.number)
        sys.stdout.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                ours.close()
                self._become_child(parent, slot.number)
                logs.name_process(_name(slot.number))
                status = self._work(slot.number, theirs)
            except SystemExit:
                status = 0
            except BaseException:
                LOG.exception("a process cannot go on")
            finally:
                logging.shutdown()
                os._exit(status)
        theirs.close()
        slot.now = Started(pid, ours, time.monotonic())
        if self._settled:
            ours.send(letters.GO)
        self._selector.register(ours, selectors.EVENT_READ, slot)

    def _become_child(self, parent: int, number: int) -> None:
        """Let go of all that is the supervisor's."""
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until it serves: it takes its places away
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal: the supervisor says what it means
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, (socket.socket, Channel)):
                key.fileobj.close()
        self._selector.close()
        self._bound.close()
        if number != WRITER and self._doors.tcp is not None:
            self._doors.tcp.close()
        for slot in self._slots:
            slot.now = None

    # connections

    def _ready(self) -> list[tuple[Slot, Started]]:
        """Who takes connections: the workers, or the writer while there is none."""
        found = [(slot, slot.now) for slot in self._slots if slot.now is not None and slot.now.ready]
        return [each for each in found if each[0].number != WRITER] or found

    def _listen(self) -> None:
        """Accept while somebody takes connections; they wait in the kernel for a while otherwise."""
        now, ready = time.monotonic(), bool(self._ready())
        if ready:
            self._last_ready = now
        wanted = not self._stops and (ready or now - self._last_ready > PATIENCE)
        if wanted != self._accepting:
            self._accepting = wanted
            if wanted:
                self._selector.register(self._bound, selectors.EVENT_READ, "accept")
            else:
                self._selector.unregister(self._bound)

    def _accept(self) -> None:
        for _ in range(64):
            try:
                made, _ = self._bound.accept()
            except BlockingIOError:
                return
            except OSError as error:  # too many open files, or the client has gone
                LOG.warning("not accepted", extra={"fields": {"why": str(error)}})
                return
            self._give(made)

    def _give(self, made: socket.socket) -> None:
        """Hand a connection to whom it burdens least; of those that have as many, to whom has had the fewest."""
        for _, started in sorted(self._ready(), key=lambda each: (self._open(*each), each[1].given)):
            if started.channel.send(letters.CLIENT, given=made):
                started.given += 1
                started.unread.append(made)
                return
        with contextlib.suppress(OSError):
            made.setblocking(False)
            made.send(_BUSY)
            made.shutdown(socket.SHUT_WR)
        self._closing.append((time.monotonic() + 1, made))  # by then the client has read it

    def _open(self, slot: Slot, started: Started) -> int:
        return started.given - self._board.get(slot.number, numbers.CLOSED)

    # what the processes say

    def _hear(self, slot: Slot) -> None:
        started = slot.now
        if started is None:
            return
        for message in started.channel.receive():
            if message is None:
                with contextlib.suppress(KeyError):  # heard before
                    self._selector.unregister(started.channel)
                return
            letter, rest, brought = message
            if letter == letters.READY:
                started.ready = True
                if not self._settled:
                    self._settled = True
                    for each in self._slots:
                        if each.now is not None and each is not slot:
                            each.now.channel.send(letters.GO)
            elif letter == letters.TAKEN and started.unread:
                started.unread.popleft().close()
            elif letter == letters.FAILED:
                slot.said = rest.decode("utf-8", "replace")
            elif letter == letters.FELLOW and brought is not None:
                writer = self._slots[WRITER].now
                if writer is not None and writer.ready:
                    writer.channel.send(letters.FELLOW, given=brought)
            elif letter == letters.KILL and rest and rest[0] < len(self._slots):
                other = self._slots[rest[0]].now
                if other is not None:
                    other.channel.send(letters.KILL, rest[1:])
            if brought is not None:
                brought.close()

    # deaths

    def _bury(self, told: bool) -> None:
        for slot in self._slots:
            started = slot.now
            if started is None:
                continue
            pid, status = os.waitpid(started.pid, os.WNOHANG)
            if not pid:
                continue
            self._hear(slot)  # its last words
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(started.channel)
            started.channel.close()
            self._board.clear(slot.number)
            slot.now = None
            for made in started.unread:
                self._give(made)
            code = os.waitstatus_to_exitcode(status)
            if self._stops:
                if code not in (0, -signal.SIGTERM):  # one that has just been forked has no handler yet
                    self._failed = True
                    fields = {"process": _name(slot.number), "pid": pid, "status": code, "said": slot.said}
                    LOG.error("a process did not end in order", extra={"fields": fields})
                continue
            if not told and not started.ready:
                raise ServerError(slot.said or f"a process of the server ended with status {code} before it was ready")
            lived = time.monotonic() - started.began
            slot.fails = slot.fails + 1 if lived < LIVED else 0
            wait = 0.0 if not slot.fails else min(LONGEST_WAIT, 0.1 * 2.0**slot.fails)
            slot.next = time.monotonic() + wait
            fields = {"process": _name(slot.number), "pid": pid, "status": code, "seconds": round(lived, 1)}
            LOG.error("a process has ended and is replaced", extra={"fields": {**fields, "said": slot.said}})
            slot.said = ""

    def _look(self) -> None:
        """End those that give no sign of life, or had their time to stop."""
        now = time.monotonic()
        for slot in self._slots:
            if slot.now is None:
                continue
            beat = self._board.get(slot.number, numbers.BEAT) / 1000
            silent = slot.now.ready and now - max(beat, slot.now.began) > SILENT
            if silent:
                LOG.error("a process does not answer", extra={"fields": {"process": _name(slot.number)}})
            if silent or now > self._deadline:
                self._failed = self._failed or now > self._deadline
                with contextlib.suppress(ProcessLookupError):
                    os.kill(slot.now.pid, signal.SIGKILL)
        for at, made in [each for each in self._closing if each[0] < now or self._stops]:
            made.close()
            self._closing.remove((at, made))

    def _obey(self) -> None:
        """The signals that have come."""
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGCHLD:
                continue
            self._stops += 1
            LOG.info("stopping", extra={"fields": {"signal": signal.Signals(number).name}})
            if self._stops == 1:
                self._listen()
                self._doors.close()
                self._deadline = time.monotonic() + self._grace + CLOSE_SECONDS
            else:
                self._deadline = min(self._deadline, time.monotonic() + 3)
            for slot in self._slots:
                if slot.now is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(slot.now.pid, signal.SIGTERM)

    def _kill_all(self) -> None:
        """What is left when something went wrong here; a writer that was killed is recovered at the next open."""
        for slot in self._slots:
            if slot.now is not None:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(slot.now.pid, signal.SIGKILL)
                    os.waitpid(slot.now.pid, 0)
                slot.now.channel.close()
                for made in slot.now.unread:
                    made.close()
                slot.now = None
        for _, made in self._closing:
            made.close()


def _name(number: int) -> str:
    return "writer" if number == WRITER else f"worker {number}"
