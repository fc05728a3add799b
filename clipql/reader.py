"""A database that is read beside its writer: `clipql.connect(path, read_only=True)`.

A reader has a snapshot (`storage/snapshot.py`) and answers from it as `Database` does. What must stay true: every
statement, and every `with db.snapshot()`, sees one moment; ClickHouse starts with the first statement that needs it, so
that forks of a process whose statements did not may start their own.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from numpy.typing import NDArray

from clipql.database import Database
from clipql.encode.base import Picture
from clipql.encode.service import Encoders
from clipql.engine.on_demand import EngineOnDemand
from clipql.errors import NotADatabase, QueryError, ReadOnly, StorageError
from clipql.result import Result
from clipql.storage import announced, snapshot
from clipql.storage.snapshot import Snapshot
from clipql.tables import opening, recover
from clipql.tables.catch_up import catch_up
from clipql.tables.following import Following
from clipql.tables.indexes import Indexes
from clipql.tables.plain_columns import PlainColumns
from clipql.tables.read_write_lock import ReadWriteLock
from clipql.tables.registry import Registry

if TYPE_CHECKING:
    from clipql.care.backup import BackupReport
    from clipql.care.report import CheckReport
    from clipql.sql.planning.outputs import Progress
    from clipql.sql.search.vector_blocks import VectorBlocks
    from clipql.sql.session import Answer

# seconds: that statements which run may hold up a refresh in the background, and all others with it; that it waits for
# the end of a change that is under way
PATIENCE, SETTLED_SECONDS = 0.05, 5.0
# seconds that ClickHouse may stay at an earlier moment, whose files it keeps, where no statement needs it
LONGEST_BEHIND = 30.0
MOST_LET_GO = 4  # snapshots that are being removed while statements go on


class ReadOnlyDatabase(Database):
    """A database as it was at its last commit, or with `follow` as it is at each statement. Thread-safe.

    behind_seconds: with `follow`, by how much what is seen may be behind; None for nothing, so that statements wait for
    each commit. moment: the snapshot of another process's reader, to see what that one sees.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        model: str | None = None,
        follow: bool = False,
        behind_seconds: float | None = None,
        moment: Path | None = None,
    ) -> None:
        self.path, self.follow, self._model = Path(path).absolute(), follow, model
        self._closed = False
        self._closing, self._refreshing = threading.Lock(), threading.Lock()
        self._moment, self._inside = ReadWriteLock(), threading.local()
        self._behind_seconds = behind_seconds if follow else None
        self._following = (
            None
            if self._behind_seconds is None
            else Following(self._behind_seconds, self._is_current, partial(self._refresh, PATIENCE, SETTLED_SECONDS))
        )
        self._taken = snapshot.take(moment or self.path, self.path)
        self._unchanged = self._taken.state  # of the manifest, in which nothing later is acknowledged
        self._opened: Snapshot | None = None  # the one in which ClickHouse is open, where that is an earlier one
        self._done_with: list[Snapshot] = []  # those that a later refresh lets go of
        self._letting_go: list[threading.Thread] = []
        self.opened: Callable[[], None] | None = None  # called when ClickHouse has been opened anew
        self._untouched = False  # ClickHouse has what the snapshot had: no change was taken back in it
        try:
            folder, found = self._taken.folder, self._taken.catalog
            recover.verify_vectors(folder, found)
            self._engine: EngineOnDemand = EngineOnDemand(folder / "engine", self._prepare)
            self._registry = Registry(folder, self._engine, found, reads_of=self.path)
            self._indexes, self._plain = Indexes(self._registry), PlainColumns(self._registry)
            self.encoders = Encoders(model)
            if found.pending is not None:
                self._engine.start()
        except BaseException:
            self._taken.release()
            raise

    def _prepare(self) -> None:
        """ClickHouse has the snapshot open."""
        registry, engine = self._registry, self._engine
        registry.settling = True
        try:
            registry.answer()
            unsettled = registry.catalog.pending is not None
            self._untouched = self._taken.linked and not unsettled
            recover.check_parts(engine, unsettled=unsettled)
            opening.settle(registry)
            self.encoders.register(engine)
            if registry.catalog.tables:
                from clipql.sql.recognition.old_views import put_in_order

                put_in_order(registry)
            engine.run("SYSTEM STOP MERGES")
            if self.opened is not None and not engine.started:
                self.opened()
        finally:
            registry.settling = False

    def __reduce__(self) -> tuple[Callable[..., ReadOnlyDatabase], tuple[Any, ...]]:
        """Another process, as multiprocessing's 'spawn' starts one, opens the same moment."""
        moment = str(self._taken.folder) if self._taken.linked else None
        return _reopened, (str(self.path), self._model, self.follow, self._behind_seconds, moment)

    # the moment

    @property
    def commit(self) -> int:
        """The number of the commit that is seen, which is a greater one after each commit."""
        return self._registry.catalog.serial

    def definitions(self) -> frozenset[tuple[str, int, int]]:
        """Another value after each change of the definition of a table or a view."""
        found = (self._taken.folder / "engine" / "metadata").glob("*/*.sql")
        states = ((path, path.stat()) for path in found)
        return frozenset((f"{p.parent.name}/{p.name}", s.st_mtime_ns, s.st_size) for p, s in states)

    @property
    def closed(self) -> bool:
        """Whether it answers no more."""
        return self._closed

    def refresh(self, *, patience: float | None = None) -> bool:
        """Move to the last commit; whether there is a later one than was seen. Waits for the statements that run.

        patience: raise TimeoutError where they run for so many seconds. Raises QueryError inside `with db.snapshot()`.
        """
        self._check_open()
        if self._depth:
            raise QueryError("refresh() inside `with db.snapshot()` would move what it holds: leave the block first")
        return self._refresh(patience)

    def _is_current(self) -> bool:
        now = announced.state(self.path)
        if now != self._unchanged:
            if not self._taken.is_last():
                return False
            self._unchanged = now
        return True

    def _refresh(self, patience: float | None = None, settled_seconds: float = snapshot.UNSETTLED_SECONDS) -> bool:
        noted = self._following.refreshed() if self._following else contextlib.nullcontext()
        with self._refreshing, noted:
            if self._closed or self._is_current():
                return False
            before = self._taken
            later = snapshot.take(self.path, again=True, settled_seconds=settled_seconds)
            try:
                # before statements are held up, as it reads what is new
                recover.verify_vectors(later.folder, later.catalog, before.catalog)
                with self._moment.writing(patience):
                    self._move(before, later)
            except BaseException:
                if self._taken is not later:
                    later.release()
                raise
            self._let_go()
        return True

    def _move(self, before: Snapshot, later: Snapshot) -> None:
        """Go on to a later snapshot while no statement runs."""
        opened, self._taken = self._opened, later
        try:
            self._registry.move(later.folder, later.catalog)
            self._indexes.move()
            unsettled = later.catalog.pending is not None
            if self._engine.started and self._untouched and later.linked and not unsettled:
                self._opened = opened or before  # in which ClickHouse goes on
                self._engine.go_on(partial(self._caught_up, later))
            else:
                self._engine.move(later.folder / "engine")
                self._opened = None
            self._done_with += [each for each in (before, opened) if each is not None and each is not self._opened]
            if unsettled or self._engine.behind_seconds > LONGEST_BEHIND:
                self._engine.start()
        except BaseException:
            self.close()  # half of it is of one moment and half of another
            for each in (before, opened):
                if each is not None:
                    each.release()
            raise

    def _caught_up(self, later: Snapshot) -> Path | None:
        """Have ClickHouse go on to a later snapshot; the folder that is to be opened, where it cannot."""
        with contextlib.suppress(QueryError, StorageError):
            if catch_up(self._engine, later.folder / "engine") and self._prepared():
                return None
        if self._opened is not None:
            self._done_with.append(self._opened)
            self._opened = None
        return later.folder / "engine"

    def _let_go(self) -> None:
        """Remove what is not needed any more, the last names of large files, perhaps: statements go on meanwhile."""
        self._letting_go = [thread for thread in self._letting_go if thread.is_alive()]
        while self._done_with:
            release = self._done_with.pop().release
            thread = threading.Thread(target=release, name="clipql-let-go")
            try:
                if len(self._letting_go) >= MOST_LET_GO:
                    raise RuntimeError
                thread.start()
                self._letting_go.append(thread)
            except RuntimeError:  # there are too many threads
                release()

    def _prepared(self) -> bool:
        """Whether what was attached is what the manifest says; if not, opening says what is wrong."""
        with contextlib.suppress(QueryError, StorageError):
            self._prepare()
            return True
        return False

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Have all statements that this thread runs inside see one moment: the last commit where it follows."""
        with self._statement():
            yield

    @contextlib.contextmanager
    def snapshot_now(self) -> Iterator[bool]:
        """As `snapshot` of a reader that does not follow, without waiting for a refresh: whether it is held."""
        with self._moment.reading_now() as held:
            yield held and not self._closed

    @property
    def _depth(self) -> int:
        return int(getattr(self._inside, "depth", 0))

    @contextlib.contextmanager
    def _statement(self) -> Iterator[None]:
        self._check_open()
        if self.follow and not self._depth and not (self._following and self._following.may_go_on()):
            self._refresh()
        with self._moment.reading():
            self._inside.depth = self._depth + 1
            try:
                yield
            finally:
                self._inside.depth -= 1

    # reading

    def sql(self, text: str, /, **params: Any) -> Result:
        """As `Database.sql`; raises ReadOnly for a statement that writes."""
        with self._statement():
            return super().sql(text, **params)

    def execute(
        self,
        statement: str,
        params: Mapping[str, Any] | None = None,
        *,
        format: str = "ArrowStream",
        progress: Progress | None = None,
    ) -> Answer:
        """As `Database.execute`; raises ReadOnly for a statement that writes."""
        with self._statement():
            return super().execute(statement, params, format=format, progress=progress)

    def search(
        self,
        table: str,
        *,
        text: str | None = None,
        image: Picture | None = None,
        vector: NDArray[Any] | Sequence[float] | None = None,
        **options: Any,
    ) -> Result:
        """As `Database.search`."""
        with self._statement():
            return super().search(table, text=text, image=image, vector=vector, **options)

    def sql_many(self, text: str, params: Sequence[Mapping[str, Any]], /) -> list[Result]:
        """As `Database.sql_many`: all of one moment."""
        with self._statement():
            return super().sql_many(text, params)

    def search_many(self, table: str, **options: Any) -> list[Result]:
        """As `Database.search_many`: all of one moment."""
        with self._statement():
            return super().search_many(table, **options)

    def vectors(
        self, table: str, column: str = "image_embedding", where: str | None = None, *, columns: Sequence[str] = ()
    ) -> VectorBlocks:
        """As `Database.vectors`."""
        with self._statement():
            return super().vectors(table, column, where, columns=columns)

    def check(self, *, deep: bool = False, progress: Callable[[str], None] | None = None) -> CheckReport:
        """Whether what is read is what was written; see `clipql.check`."""
        if not self._taken.linked:
            raise StorageError(f"{self.path} cannot be checked where it is read by symbolic links: copy it")
        with self._statement():
            return super().check(deep=deep, progress=progress)

    def backup(self, path: str | os.PathLike[str], **options: Any) -> BackupReport:
        """As `Database.backup`: a copy of what is seen, while the writer goes on."""
        with self._statement():
            self._engine.start()  # which sweeps the snapshot
            return super().backup(path, **options)

    def ingest(self, source: Any, *, table: str = "laion", **options: Any) -> NoReturn:
        """Raises ReadOnly."""
        raise ReadOnly("ingest", self.path)

    def _check_open(self) -> None:
        if self._closed:
            raise QueryError(f"the database {self.path} is closed")

    def close(self) -> None:
        """Close the database and let go of its snapshot; harmless when called twice."""
        if self._following:
            self._following.stop()
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._registry.close()
            self.encoders.close()
            self._engine.close()
            for each in (self._taken, self._opened, *self._done_with):
                if each is not None:
                    each.release()
            for thread in self._letting_go:
                thread.join()


def _reopened(
    path: str, model: str | None, follow: bool, behind_seconds: float | None, moment: str | None
) -> ReadOnlyDatabase:
    found = Path(moment) if moment else None
    try:
        return ReadOnlyDatabase(path, model=model, follow=follow, behind_seconds=behind_seconds, moment=found)
    except NotADatabase as error:
        raise StorageError(
            f"the reader of {path} that was sent to this process is closed, so what it saw is gone: keep it open"
        ) from error
