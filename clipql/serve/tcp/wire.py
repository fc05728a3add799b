"""Bytes from a client as they are asked for: numbers, strings, pieces; plain, in chunks, or in compressed frames.

https://clickhouse.com/docs/native-protocol/basics. What must stay true: what is held grows with what has come, never
with what was claimed; a number or a string that is longer than it may be ends the conversation.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable

from clipql.errors import QueryError
from clipql.serve.request_body import Held
from clipql.serve.unpacking import too_large, unpack_blocks

# bytes that have come and are not asked for yet, beyond which nothing more is read
ROOM = 4 << 20
# bytes that were taken, beyond which they are let go
_TAKEN = 1 << 16
# the header of a compressed frame: hash, method, size, size unpacked
_FRAME = 25
# bytes of a frame that are unpacked on the event loop
_SHORT = 1 << 16
# seconds between two rounds of the event loop while packets that have come are read
_TURN = 0.001


class Gone(Exception):
    """The client has closed the connection."""


def broken(what: str) -> QueryError:
    """The error of bytes that are not in the protocol."""
    said = f"the client's bytes are not in the native protocol: {what}"
    return QueryError(said, code=101, name="UNEXPECTED_PACKET_FROM_CLIENT")


class Turns:
    """Others get their turn on the event loop, though all that is read next may have come.

    Going round the loop takes longer than reading a small packet. So all conversations together read for a moment, and
    let the loop go round then; while it has not, each reads one thing and waits.
    """

    def __init__(self) -> None:
        self._began, self._comes = 0.0, False

    async def __call__(self) -> None:
        """Wait for the loop to go round, if that is due."""
        if time.monotonic() < self._began + _TURN:
            return
        if not self._comes:
            self._comes = True
            asyncio.get_running_loop().call_soon(self._begin)
        await asyncio.sleep(0)

    def _begin(self) -> None:
        self._began, self._comes = time.monotonic(), False


# of all conversations, which are on one event loop
others = Turns()


class Source:
    """Bytes in order."""

    def __init__(self) -> None:
        self.buffer, self.at = bytearray(), 0
        self.wanted = 0  # bytes that are waited for

    async def more(self) -> None:
        """Have at least one byte more. Raises Gone."""
        raise NotImplementedError

    async def need(self, size: int) -> None:
        """Have so many bytes that are not taken yet."""
        self.wanted = size
        while len(self.buffer) - self.at < size:
            await self.more()
        self.wanted = 0

    async def take(self, size: int) -> bytes:
        """The next bytes."""
        if len(self.buffer) - self.at < size:
            await self.need(size)
        data = bytes(memoryview(self.buffer)[self.at : self.at + size])
        self.at += size
        self.let_go()
        return data

    def let_go(self) -> None:
        """Keep nothing of what was taken."""
        if self.at >= _TAKEN or self.at == len(self.buffer):
            del self.buffer[: self.at]
            self.at = 0

    async def byte(self) -> int:
        """One byte."""
        if self.at >= len(self.buffer):
            await self.need(1)
        found = self.buffer[self.at]
        self.at += 1
        return found

    async def number(self) -> int:
        """A number of variable length, less than 2 to the 63rd."""
        found = shift = 0
        while True:
            byte = await self.byte()
            found |= (byte & 0x7F) << shift
            if byte < 0x80:
                return found
            shift += 7
            if shift > 56:
                raise broken("a number is longer than nine bytes")

    async def text(self, most: int, count: Callable[[int], None] | None = None) -> str:
        """A string of at most so many bytes. count: told of them before they are kept."""
        size = await self.number()
        if size > most:
            raise broken(f"a string claims {size:,} bytes, where at most {most:,} are expected")
        if count is not None:
            count(size)
        return (await self.take(size)).decode("utf-8", "replace")


class Incoming(Source):
    """What comes from a connection. pause, resume: stop and go on reading from it."""

    def __init__(self, pause: Callable[[], None], resume: Callable[[], None]) -> None:
        super().__init__()
        self._pause, self._resume, self._paused = pause, resume, False
        self._waiting: asyncio.Future[None] | None = None
        self._ended = False
        # None: bytes come as they are. Else those of a chunk that are still to come, and what came of its header
        self._left: int | None = None
        self._head = b""

    def feed(self, data: bytes) -> None:
        """More has come."""
        if self._left is None:
            self.buffer += data
        else:
            self._unchunk(data)
        if len(self.buffer) - self.at > self.wanted + ROOM and not self._paused:
            self._paused = True
            self._pause()
        self._wake()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._wake()

    @property
    def ended(self) -> bool:
        """Whether the client has gone, whatever it sent before."""
        return self._ended

    def _wake(self) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def more(self) -> None:
        had = len(self.buffer)
        while len(self.buffer) == had:
            if self._ended:
                raise Gone
            if self._paused:
                self._paused = False
                self._resume()
            waiting = self._waiting = asyncio.get_running_loop().create_future()
            try:
                await waiting
            finally:
                if self._waiting is waiting:  # one that was cancelled may end after the next has begun
                    self._waiting = None

    def unchunk(self) -> None:
        """All that follows comes in chunks: a size of four bytes and so many more; 0 ends a packet."""
        self._left = 0
        rest = bytes(self.buffer[self.at :])
        del self.buffer[self.at :]
        self._unchunk(rest)

    def _unchunk(self, data: bytes) -> None:
        at, left = 0, self._left or 0
        while at < len(data):
            if left:
                part = data[at : at + left]
                self.buffer += part
                at += len(part)
                left -= len(part)
                continue
            missing = 4 - len(self._head)
            self._head += data[at : at + missing]
            at += missing
            if len(self._head) == 4:
                (left,) = struct.unpack("<I", self._head)
                self._head = b""
        self._left = left


class Unpacked(Source):
    """The data in compressed frames. most: bytes of one frame, as it comes and unpacked. held: counts those of the last
    one, until whoever made it releases it."""

    def __init__(self, packed: Source, most: int, held: Held) -> None:
        super().__init__()
        self._packed, self._most, self._held = packed, most, held

    async def more(self) -> None:
        packed = self._packed
        await packed.need(_FRAME)
        size, claimed = struct.unpack_from("<II", packed.buffer, packed.at + 17)
        if size < 9:
            raise broken("a compressed frame is shorter than its header")
        if not claimed:
            raise broken("a compressed frame holds nothing")
        if max(size, claimed) > self._most:
            raise too_large(self._most)
        self._held.release()
        self._held.take(size + claimed)
        await others()
        frame = await packed.take(16 + size)
        if max(size, claimed) <= _SHORT:
            self.buffer += unpack_blocks(frame, self._most)
        else:
            self.buffer += await asyncio.to_thread(unpack_blocks, frame, self._most)
