"""A database folder behind many processes: who opens it how, each behind the kernel's wall.

The writer opens the database as a server of one process does. In a server that writes, workers open readers of it; in
one that only reads, nothing changes, so each has the database's files and an engine's folder of links, as the one
process of such a server has. The supervisor holds the folder's lock, so that nobody else opens the database while its
writer is replaced.

What must stay true: each process puts up the wall that the one process would have, before it loads what has threads.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from clipql.errors import ClipqlError, ServerError
from clipql.serve import layout, picture_addresses, sandbox, scratch
from clipql.serve.limits import Options
from clipql.serve.listening import Doors
from clipql.serve.logs import log_to_stderr
from clipql.serve.picture_files import Helper
from clipql.serve.workers import channel as letters
from clipql.serve.workers.board import Board
from clipql.serve.workers.channel import Channel
from clipql.serve.workers.supervisor import WRITER, Supervisor
from clipql.storage import catalog, files, places, strays

MOST = 64


@dataclass(frozen=True)
class Fleet:
    """A server of `workers` processes beside the writer. model: of encode_text and encode_image. mode: of the
    sandbox."""

    folder: Path
    workers: int
    options: Options
    model: str | None
    mode: str
    log_level: str

    def serve(self, doors: Doors, ready: Callable[[], None]) -> int:
        """Serve until SIGTERM or SIGINT; the exit status. Raises ClipqlError where it cannot start."""
        if not hasattr(signal, "pthread_sigmask") or not hasattr(os, "sched_getaffinity"):
            raise ServerError("--workers: servers of many processes run on Linux only; leave it out")
        catalog.prepare(self.folder)
        own = files.FolderLock(self.folder)
        lock = own.shared()
        try:
            log_to_stderr(self.log_level)
            strays.refuse(self.folder)
            place = places.Place(self.folder / strays.SCRATCH, scratch.PREFIX)
            figures = place.folder / "figures"
            figures.mkdir()
            board = Board(self.workers + 1)

            def work(number: int, channel: Channel) -> int:
                return self._process(number, channel, board, lock, figures, doors)

            try:
                return Supervisor(doors, self.workers, board, work, self.options.limits.grace).run(ready)
            finally:
                place.release()
                for prefix in (places.READER, scratch.PREFIX):  # of processes that were killed
                    places.sweep(self.folder / strays.SCRATCH, prefix)
        finally:
            os.close(lock)
            own.release()

    def _process(self, number: int, channel: Channel, board: Board, lock: int, figures: Path, doors: Doors) -> int:
        """One process, from its fork to its end; its exit status."""
        try:
            with scratch.opened(self.folder, locked=True) as own, ExitStack() as held:
                self._walled(number, channel, board, lock, figures, doors, own, held)
        except ClipqlError as error:
            channel.send(letters.FAILED, str(error).encode())
            return 1
        return 0

    def _walled(
        self,
        number: int,
        channel: Channel,
        board: Board,
        lock: int,
        figures: Path,
        doors: Doors,
        own: scratch.Scratch,
        held: ExitStack,
    ) -> None:
        folder, options, write = self.folder, self.options, self.options.write
        follows = number != WRITER and (write or self.mode == "off")
        apart = not write and not follows and (number != WRITER or self.mode != "off")
        if follows:
            os.close(lock)
        if apart and (folder / "engine").is_dir():
            own.link_engine(folder / "engine")
        known = catalog.load(folder) if (folder / catalog.NAME).exists() else catalog.Catalog()
        helper = None
        if self.mode != "off" and (options.pictures or not write):
            helper = Helper(options.picture_folders(folder), self.mode)
            held.callback(helper.close)
        points = layout.Helper(self.mode) if number == WRITER and layout.is_there() else None
        if points is not None:
            held.callback(points.close)
        fetcher = None
        if options.fetch_from is not None:
            fetcher = picture_addresses.Helper(options.fetch_from, self.mode)
            held.callback(fetcher.close)
        models = sandbox.models_to_choose(self.mode)
        plan = sandbox.of_server(folder, own, known, self.model, write=write, also=(figures,), choice=models or ())
        state = sandbox.apply(plan, self.mode)
        options = replace(options, opener=helper, layout=points, fetcher=fetcher, models=models, sandbox=state)
        from clipql.database import Database
        from clipql.reader import ReadOnlyDatabase
        from clipql.serve import prometheus, server
        from clipql.serve.workers.member import Member

        prometheus.write_into(str(figures), number)
        member = Member(number, board, channel, str(figures))
        if number != WRITER and not channel.wait(letters.GO):
            raise ServerError("the server's first process is gone")
        engine = own.engine if apart else None
        opened = (
            ReadOnlyDatabase(folder, model=self.model)
            if follows
            else Database(folder, model=self.model, engine=engine, lock=lock)
        )
        with opened as database:
            if apart:
                database.registry.engine.run("SYSTEM STOP MERGES")  # they could not write
            elif isinstance(opened, Database):
                opened.indexes.resume()
            server.serve(database, doors, options, lambda: None, member)
