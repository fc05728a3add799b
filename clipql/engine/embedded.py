"""chDB, which is ClickHouse in this process: connections, parameters, Arrow in and out, error translation.

Nothing else imports chdb. What must stay true: one folder per process; a connection runs one query at a time and
none while its stream is open, so every query borrows a connection of its own; what a user SETs reaches all of that
user's connections and no other's; the calling thread can be interrupted (Ctrl-C stops the query, not the process).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pyarrow as pa

from clipql.engine import chunks, forks
from clipql.engine.arrow import Appender
from clipql.engine.killing import Kills
from clipql.engine.output import Output
from clipql.engine.quoting import parameter_texts
from clipql.engine.tables_by_name import with_tables
from clipql.engine.translate import CHDB_ERRORS, translate
from clipql.engine.users import ACTING, Acting, Connection, EngineUser
from clipql.errors import DatabaseDamaged, DatabaseLocked

T = TypeVar("T")


class Engine:
    """The one chDB of this process, opened on a folder.

    Thread-safe: each call borrows a connection. `close` ends it; another folder can then be opened.
    """

    _open: Engine | None = None
    _guard = threading.Lock()
    _process: int | None = None  # the one that first opened an engine
    _waiting: ClassVar[list[tuple[str, Callable[..., Any], list[str], str]]] = []  # functions, for the first to open

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # clipql's own queries must not be bent by what a user SETs (a limit, say), so users have their own
        self._own = EngineUser()
        self._acting = Acting(EngineUser())
        self._users = [self._own, self._acting.user]
        self._lock = threading.Lock()
        self._busy: dict[str, Acting] = {}
        self._kills = Kills(self._send_kill)
        self._names = itertools.count()
        self._workers = ThreadPoolExecutor(thread_name_prefix="clipql-query")
        self._begin()

    def _begin(self) -> None:
        self._open_folder()

    def _open_folder(self) -> None:
        from chdb import _chdb  # type: ignore[attr-defined, unused-ignore]

        Engine.refuse_fork()
        with Engine._guard:
            if Engine._open is not None:
                raise DatabaseLocked(
                    f"this process has {Engine._open.folder} open; chDB serves one folder a process: "
                    "close that database first, or use another process"
                )
            chdb: Any = _chdb
            chdb.set_signal_handlers_enabled(0)
            self._chdb: Any = _chdb
            try:
                self._anchor = self._chdb.connect(str(self.folder))  # chDB lives as long as it has a connection
                self._own.idle.append(self._connect(user=False))
            except CHDB_ERRORS as error:
                raise DatabaseDamaged(
                    f"ClickHouse cannot open {self.folder}, a database's half of rows: {translate(error)}; restore a "
                    "backup"
                ) from error
            Engine._open, Engine._process = self, os.getpid()
            while Engine._waiting:
                self._chdb.create_function(*Engine._waiting.pop(0))

    @classmethod
    def refuse_fork(cls) -> None:
        """Raise DatabaseLocked in a process that was forked from one that has opened a database."""
        if cls._process not in (None, os.getpid()):
            raise DatabaseLocked(forks.REFUSED.format(process=cls._process))

    def _connect(self, *, user: bool = True) -> Connection:
        return Connection(self._chdb.connect(str(self.folder)), f"clipql-{next(self._names)}", judged=not user)

    @property
    def acting(self) -> Acting:
        """Who runs the queries of this thread."""
        return ACTING.get() or self._acting

    @contextlib.contextmanager
    def act(self, acting: Acting) -> Iterator[None]:
        """Run this thread's queries for another user than the process's own."""
        with self._lock:
            if acting.user not in self._users:
                self._users.append(acting.user)
        before = ACTING.set(acting)
        try:
            yield
        finally:
            ACTING.reset(before)

    def forget(self, user: EngineUser) -> None:
        """Close what a user had, temporary tables included."""
        with self._lock:
            if user in self._users:
                self._users.remove(user)
            idle, user.idle = user.idle, []
        for connection in idle:
            connection.raw.close()

    def cancel(self, acting: Acting) -> None:
        """Stop what a request is running; its next query, if there was to be one, raises QueryCancelled."""
        acting.cancelled = True
        for tag in tuple(acting.running):
            self.kill(tag, acting)

    def check_cancelled(self) -> None:
        """Raise QueryCancelled where the request that this thread works for was cancelled."""
        if self.acting.cancelled:
            raise self.acting.stopped()

    def check_tag(self, tag: str) -> None:
        """Raise QueryCancelled where the request that runs on the connection with this tag was cancelled."""
        acting = self._busy.get(tag)
        if acting is not None and acting.cancelled:
            raise acting.stopped()

    @contextlib.contextmanager
    def _borrow(self, user: bool = False) -> Iterator[Connection]:
        Engine.refuse_fork()
        acting = self.acting
        owner = acting.user if user else self._own
        if user:
            self.check_cancelled()
        with self._lock:
            connection = owner.idle.pop() if owner.idle else None
        if connection is None:
            connection = self._connect(user=user)
        tag, failed = connection.tag, False
        self._kills.began(tag)
        try:
            if user:
                acting.running.add(connection.tag)
                self._busy[connection.tag] = acting
                try:
                    connection.prepare(acting)
                except CHDB_ERRORS as error:
                    raise translate(error) from error
            yield connection
        except BaseException:
            failed = True
            raise
        finally:
            acting.running.discard(tag)
            self._busy.pop(tag, None)
            killed = self._kills.ended(tag)
            # a KILL that is still on its way is to find no other query under this tag
            usable = not killed or connection.renamed(f"clipql-{next(self._names)}")
            usable = usable and (not failed or connection.drained())
            if usable and owner in self._users:
                with self._lock:
                    owner.idle.append(connection)
            else:
                connection.raw.close()

    def _interruptible(self, call: Callable[[], T], tag: str) -> T:
        """Run a blocking call so that Ctrl-C in the main thread cancels the query and is then raised."""
        if threading.current_thread() is not threading.main_thread():
            return call()
        future: Future[T] = self._workers.submit(call)
        try:
            while True:
                try:
                    return future.result(timeout=0.5)
                except FutureTimeout:
                    if future.done():
                        raise
        except KeyboardInterrupt:
            # until it has stopped, its connection cannot be used again, so a second Ctrl-C changes nothing
            while not future.done():  # the query may not have reached the process list yet
                with contextlib.suppress(Exception, KeyboardInterrupt):
                    self.kill(tag)
                    future.result(timeout=0.1)
            raise

    def kill(self, tag: str, acting: Acting | None = None) -> None:
        """Cancel what the connection with this tag is running; nothing where that has ended, or is another's than of
        `acting` by now.
        """
        self._kills.kill(tag, lambda: acting is None or self._busy.get(tag) is acting)

    def _send_kill(self, tag: str) -> None:
        with self._borrow() as other, contextlib.suppress(*CHDB_ERRORS):
            other.raw.query(f"KILL QUERY WHERE Settings['log_comment'] = '{tag}' ASYNC")

    def query(
        self,
        sql: str,
        format: str = "ArrowStream",
        *,
        params: Mapping[str, Any] | None = None,
        progress: Callable[[Mapping[str, Any]], None] | None = None,
        tables: Mapping[str, pa.Table] | None = None,
        user: bool = False,
    ) -> Output:
        """Run one statement and return its whole result in a ClickHouse format.

        progress: told what ClickHouse has read so far, as `read_rows` and the like, while it runs and at the end;
        params: values of `{name:Type}`; tables: Arrow tables that the statement reads as `Python(name)`; user: with
        what the user SET, and in the database that the user USEs.
        Raises QueryError (or a subclass) with ClickHouse's code.
        """
        texts = parameter_texts(sql, params)
        with self._borrow(user) as connection:
            run = with_tables(connection.raw, tables) if tables else connection.raw.query
            try:
                with _told(connection.raw, progress):
                    raw = self._interruptible(lambda: run(sql, format, params=texts), connection.tag)
                self.check_tag(connection.tag)  # what a killed query gives may be a part, and no error
                return Output(
                    raw.bytes(), raw.elapsed(), raw.rows_read(), raw.storage_rows_read(), raw.storage_bytes_read()
                )
            except CHDB_ERRORS as error:
                raise translate(error) from error

    def arrow(self, sql: str, *, params: Mapping[str, Any] | None = None, user: bool = False) -> pa.Table:
        """The result of a query as an Arrow table."""
        return self.query(sql, params=params, user=user).arrow()

    def scalar(self, sql: str, *, params: Mapping[str, Any] | None = None, user: bool = False) -> Any:
        """The first value of the first row of a query that returns one."""
        return self.arrow(sql, params=params, user=user).column(0)[0].as_py()

    def run(self, sql: str, *, params: Mapping[str, Any] | None = None, user: bool = False) -> None:
        """A statement whose result does not matter."""
        self.query(sql, "Null", params=params, user=user)

    def set(self, statement: str) -> None:
        """Run a user's SET or USE now, and on each of the user's connections before its next query."""
        self.run(statement, user=True)
        self.acting.user.statements.append(statement)

    def stream(
        self,
        sql: str,
        *,
        params: Mapping[str, Any] | None = None,
        tables: Mapping[str, pa.Table] | None = None,
        user: bool = False,
        progress: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        """The result of a query, block by block, in bounded memory. progress: as `query`."""
        texts = parameter_texts(sql, params)
        with self._borrow(user) as connection, _told(connection.raw, progress):
            raw = connection.raw
            send = with_tables(raw, tables, stream=True) if tables else raw.send_query
            with contextlib.closing(self._chunks(connection, lambda: send(sql, "ArrowStream", params=texts))) as chunks:
                for chunk in chunks:
                    yield from pa.ipc.open_stream(pa.py_buffer(chunk.bytes()))

    def _chunks(self, connection: Connection, send: Callable[[], Any]) -> Generator[Any, None, None]:
        """What chDB gives of a query that is sent, piece by piece. Close it, so that the query ends."""
        raw, tag, opened = connection.raw, connection.tag, None
        try:
            opened = self._interruptible(send, tag)
            fetch = partial(raw.streaming_fetch_result, opened)
            while True:
                chunk = self._interruptible(fetch, tag)
                if chunk is None or not chunk.rows_read():
                    opened = None
                    self.check_tag(tag)
                    return
                yield chunk
        except CHDB_ERRORS as error:
            opened = None
            raise translate(error) from error
        finally:
            if opened is not None:
                raw.streaming_cancel_query(opened)

    def stream_bytes(
        self,
        sql: str,
        format: str,
        *,
        params: Mapping[str, Any] | None = None,
        count: Callable[[int, int], None] | None = None,
        progress: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> Iterator[bytes]:
        """The result of a user's query, piece by piece, in a format that `chunks.joins` knows.

        count: told of the rows and bytes of each piece, before it. progress: of what ClickHouse has read, as `query`.
        """
        joined = chunks.joiner(format)
        texts = parameter_texts(sql, params)
        with self._borrow(True) as connection, _told(connection.raw, progress):
            send = partial(connection.raw.send_query, sql, format, params=texts)
            with contextlib.closing(self._chunks(connection, send)) as pieces:
                for piece in pieces:
                    if count is not None:
                        count(piece.rows_read(), piece.size())
                    yield joined.add(piece.bytes())
        if joined.empty and joined.has_header:
            yield self.query(sql, format, params=params, user=True).data
        else:
            yield joined.end()

    def insert(self, head: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
        """`INSERT INTO …` (the head, without FORMAT) of Arrow batches, as one insert."""
        with self._borrow() as connection:
            raw = connection.raw
            inserter = None
            try:
                inserter = raw.send_insert(head, "ArrowStream")
                sink = Appender(lambda data: raw.insert_append(inserter, data))
                with pa.ipc.new_stream(sink, schema) as writer:
                    for batch in batches:
                        writer.write_batch(batch)
                sink.flush_rest()
                finished, inserter = inserter, None
                raw.insert_done(finished)
            except CHDB_ERRORS as error:
                raise translate(error) from error
            finally:
                if inserter is not None:
                    with contextlib.suppress(*CHDB_ERRORS):
                        raw.insert_cancel(inserter)

    def insert_bytes(self, head: str, format: str, pieces: Iterable[bytes], *, user: bool = False) -> int:
        """`INSERT INTO …` (the head, without FORMAT) of data in a ClickHouse format, in pieces; the rows it had."""
        with self._borrow(user) as connection:
            raw = connection.raw
            inserter = None
            try:
                inserter = raw.send_insert(head, format)
                for piece in pieces:
                    for at in range(0, len(piece), 1 << 20):
                        raw.insert_append(inserter, piece[at : at + (1 << 20)])
                finished, inserter = inserter, None
                return int(raw.insert_done(finished).rows_written())
            except CHDB_ERRORS as error:
                raise translate(error) from error
            finally:
                if inserter is not None:
                    with contextlib.suppress(*CHDB_ERRORS):
                        raw.insert_cancel(inserter)

    def register(self, name: str, function: Callable[..., Any], types: list[str], returns: str) -> None:
        """Make a Python function callable from SQL, one call a row."""
        if Engine._open is self:
            self._chdb.create_function(name, function, types, returns)
        else:
            Engine._waiting.append((name, function, types, returns))

    def close(self) -> None:
        """Close every connection; the process may then open another folder."""
        self._workers.shutdown(wait=True)
        self._kills.stop()
        self._close_folder()

    def _close_folder(self) -> None:
        with Engine._guard:
            if Engine._open is not self:
                return
            for user in self._users:
                for connection in user.idle:
                    connection.raw.close()
                user.idle.clear()
            self._anchor.close()
            Engine._open = None


def _leave_to_parent() -> None:
    opened = Engine._open
    if opened is not None:
        forks.leave_to_parent([opened._anchor, *(c.raw for user in opened._users for c in user.idle)])


os.register_at_fork(after_in_child=_leave_to_parent)


@contextlib.contextmanager
def _told(raw: Any, progress: Callable[[Mapping[str, Any]], None] | None) -> Iterator[None]:
    """Have chDB tell of what it reads, about ten times a second and at the end."""
    if progress is None:
        yield
        return
    raw.set_progress_callback(progress)
    try:
        yield
    finally:
        raw.set_progress_callback(None)
