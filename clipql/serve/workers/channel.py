"""Messages between the supervisor and one process of a server, with open files in them where they bring one.

They go over a pair of sockets that was made before the sandbox, in which none can be connected. A message is a letter
and what belongs to it; the other side's end is a message that is None.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

# letters. To a process: it may open the database, a client's connection, a fellow's, a query that shall end. From it:
# it is ready, it cannot start and why, it has a client's connection, a connection that the writer shall have, a query
# that another process (one byte) shall end
GO, CLIENT, FELLOW, KILL, READY, FAILED, TAKEN = b"g", b"c", b"f", b"k", b"r", b"e", b"t"
_LONGEST = 1 << 16
# bytes of a message that is sent: what is longer is cut, as a query's id never is
_MOST = 1 << 13

Message = tuple[bytes, bytes, socket.socket | None]


def pair() -> tuple[Channel, Channel]:
    """Both ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(ours), Channel(theirs)


class Channel:
    """One end, which waits for nothing."""

    def __init__(self, made: socket.socket) -> None:
        made.setblocking(False)
        self.socket = made

    def fileno(self) -> int:
        """For whoever waits for messages."""
        return self.socket.fileno()

    def send(self, letter: bytes, rest: bytes = b"", given: socket.socket | None = None) -> bool:
        """Whether it was taken: the other side may be gone, or slow."""
        try:
            if given is None:
                self.socket.send((letter + rest)[:_MOST])
            else:
                socket.send_fds(self.socket, [(letter + rest)[:_MOST]], [given.fileno()])
        except OSError:
            return False
        return True

    def receive(self) -> Iterator[Message | None]:
        """What has come."""
        while True:
            try:
                data, handles, _, _ = socket.recv_fds(self.socket, _LONGEST, 1)
            except BlockingIOError:
                return
            except OSError:
                data, handles = b"", []
            brought = socket.socket(fileno=handles[0]) if handles else None
            for handle in handles[1:]:
                os.close(handle)
            if not data:
                yield None
                return
            yield data[:1], data[1:], brought

    def wait(self, letter: bytes) -> bool:
        """Wait for a message that brings nothing; whether it has come, before the other side was gone."""
        self.socket.setblocking(True)
        try:
            return self.socket.recv(_LONGEST)[:1] == letter
        finally:
            self.socket.setblocking(False)

    def close(self) -> None:
        """Let the other side know."""
        with contextlib.suppress(OSError):
            self.socket.close()
