"""The facade: an open database folder with its calls sql, search, ingest, check, backup and close."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
from numpy.typing import NDArray

from clipql.encode.base import Picture, as_picture
from clipql.encode.service import Encoders
from clipql.engine import collector
from clipql.engine.embedded import Engine
from clipql.engine.python_values import NeedsTypes
from clipql.errors import QueryError, UnknownTable, VectorError
from clipql.result import Result, Stats
from clipql.storage import catalog, files, places, strays
from clipql.storage.announced import Announcements
from clipql.storage.catalog import Catalog
from clipql.syntax.lexer import split_statements
from clipql.syntax.once import once
from clipql.tables import opening
from clipql.tables.indexes import Indexes
from clipql.tables.plain_columns import PlainColumns
from clipql.tables.registry import Registry

if TYPE_CHECKING:
    from clipql.care.backup import BackupReport
    from clipql.care.report import CheckReport
    from clipql.sql.planning.outputs import Progress
    from clipql.sql.result_types import ResultTypes
    from clipql.sql.search.vector_blocks import VectorBlocks
    from clipql.sql.search_text import Searched
    from clipql.sql.session import Answer, Session


class Database:
    """An open database. Thread-safe: queries run side by side, writers of a table wait for each other.

    Use as a context manager, or call `close`.
    """

    _result_types: ResultTypes | None = None
    _needs_types = NeedsTypes()

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        model: str | None = None,
        engine: Path | None = None,
        lock: int | None = None,
    ) -> None:
        """engine: the folder of ClickHouse, where it is not the one in the database's. lock: `FolderLock.shared`."""
        Engine.refuse_fork()
        self.path = Path(path).absolute()
        catalog.prepare(self.path)
        self._lock = files.FolderLock(self.path, lock)
        self._closed, self._process = False, os.getpid()
        try:
            strays.refuse(self.path)
            places.sweep(self.path / strays.SCRATCH, places.READER)
            if not (self.path / catalog.NAME).exists():  # only who holds the lock may say that it is new
                Announcements(self.path).save(Catalog())
            found = catalog.load(self.path)
            rows = engine or self.path / "engine"
            fresh = not rows.exists()
            self._engine = Engine(rows)
        except BaseException:
            self._lock.release()
            raise
        try:
            self._registry = opening.opened(self.path, self._engine, found, fresh=fresh)
        except BaseException:
            self._engine.close()
            self._lock.release()
            raise
        self._indexes = Indexes(self._registry)
        self._indexes.sweep()
        self.encoders = Encoders(model)
        self.encoders.register(self._engine)
        if self._registry.catalog.tables:
            from clipql.sql.recognition.old_views import put_in_order

            put_in_order(self._registry)
        self._closing = threading.Lock()
        self._plain = PlainColumns(self._registry)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}{', closed' if self._closed else ''})"

    def sql(self, text: str, /, **params: Any) -> Result:
        """Run one statement, or several with semicolons between them, and return the last one's result.

        params: values for `{name:Type}`, numpy arrays among them. Raises QueryError with ClickHouse's code, or another
        ClipqlError.
        """
        statements = split_statements(text) if ";" in text else [text] if text.strip() else []
        if not statements:
            raise QueryError("there is no statement in the text")
        for statement in statements[:-1]:
            self.execute(statement, params, format="Null")
        return self._result(self._answer(statements[-1], params), statements[-1], params)

    def _result(self, answer: Answer, statement: str, params: Mapping[str, Any]) -> Result:
        output = answer.output
        stats = Stats(answer.elapsed, output.rows_read, output.bytes_read, answer.steps, answer.shards, answer.indexes)
        if answer.format == "ArrowStream":
            table = answer.output.arrow()
            return Result(table, stats, types=self._types(statement, params) if self._needs_types(table.schema) else {})
        return Result(pa.table({}), stats, answer.output.data)

    def _types(self, statement: str, params: Mapping[str, Any]) -> Mapping[str, str]:
        """ClickHouse's types of what a statement returns, by name; none where they are not told."""
        if self._result_types is None:
            from clipql.sql.result_types import ResultTypes

            self._result_types = ResultTypes(self._registry)
        return self._result_types.of(statement, params)

    def sql_many(self, text: str, params: Sequence[Mapping[str, Any]], /) -> list[Result]:
        """Run one statement for each of some sets of parameters, and return the results in their order.

        A search by a vector parameter is run for many of them at once, on all cores; anything else one by one. Raises
        as `sql` does.
        """
        self._check_open()
        with collector.held_back():
            answers = self._session.execute_many(text, params)
            return [self._result(answer, text, given) for answer, given in zip(answers, params, strict=True)]

    def execute(
        self,
        statement: str,
        params: Mapping[str, Any] | None = None,
        *,
        format: str = "ArrowStream",
        progress: Progress | None = None,
    ) -> Answer:
        """Run one statement and return its output in a ClickHouse format, unless it names its own."""
        self._check_open()
        return self._session.execute(statement, params, format=format, progress=progress)

    def _answer(self, statement: str, params: Mapping[str, Any]) -> Answer:
        """As `execute`, with a table in the place of its bytes where there is one."""
        self._check_open()
        return self._session.execute(statement, params, as_table=True)

    def _check_open(self) -> None:
        Engine.refuse_fork()
        if self._closed:
            raise QueryError(f"the database {self.path} is closed")

    @once
    def _session(self) -> Session:
        """The session of `sql`: the first statement loads the room of SQL, which takes rows in, copies and checks
        without it.
        """
        from clipql.sql.session import Session

        return Session(self._registry, self._indexes, self.encoders)

    def session(self) -> Session:
        """A session of its own on this database; what it SETs stays apart only where `Engine.act` says who acts."""
        return self._session.beside()

    def search(
        self,
        table: str,
        *,
        text: str | None = None,
        image: Picture | None = None,
        vector: NDArray[Any] | Sequence[float] | None = None,
        k: int = 10,
        where: str | None = None,
        column: str = "image_embedding",
        columns: Sequence[str] | None = None,
        distance: str = "cosineDistance",
        recall: float | None = None,
        hybrid: bool = False,
        words: str | None = None,
    ) -> Result:
        """The k rows of a table nearest to words, a picture or a vector, nearest first, with their distance last.

        image: a path or the bytes of a picture; vector: (d,) numbers; where: a SQL condition on the table's columns;
        columns: what to return, by default all that are not vectors; distance: any of ClickHouse's; recall: what an
        index must reach, 0.95 unless given. hybrid: look for the words of `text` in the column `words`, too, by default
        the one with a text index or `caption`, and rank by both (see `clipql.sql.hybrid`). Raises UnknownTable,
        VectorError, EncodeError, or QueryError where not just one of text, image and vector is given.
        """
        given = [name for name, v in (("text", text), ("image", image), ("vector", vector)) if v is not None]
        if len(given) != 1:
            raise QueryError(f"search got {' and '.join(given) or 'nothing to look for'}: give text, image or vector")
        query: Any = text if image is None else as_picture(image)
        if isinstance(query, Path):
            query = str(query)
        elif isinstance(query, bytes):
            vector = self.encoders.picture(query, self._model_of(self._full(table), column))
        statement = self.search_sql(
            table,
            by="vector" if vector is not None else given[0],
            k=k,
            where=where,
            column=column,
            columns=columns,
            distance=distance,
            recall=recall,
            hybrid=hybrid,
            words=words,
        )
        return self.sql(statement, query=vector if vector is not None else query)

    def search_many(
        self,
        table: str,
        *,
        vectors: NDArray[Any] | Sequence[Any] | None = None,
        texts: Sequence[str] | None = None,
        images: Sequence[Picture] | None = None,
        column: str = "image_embedding",
        **options: Any,
    ) -> list[Result]:
        """`search` for each of many vectors, (n, d) numbers, or texts, or pictures: on all cores, in their order.

        options: k, where, columns, distance and recall, as `search` has them. Raises as `search` does.
        """
        given = [name for name, v in (("vectors", vectors), ("texts", texts), ("images", images)) if v is not None]
        if len(given) != 1:
            raise QueryError(f"search_many got {' and '.join(given) or 'nothing'}: give vectors, texts or images")
        found: Any = vectors
        if texts is not None:
            found = self.encoders.texts(list(texts), self._model_of(self._full(table), column))
        elif images is not None:
            model = self._model_of(self._full(table), column)
            found = [self.encoders.picture(as_picture(image), model) for image in images]
        statement = self.search_sql(table, column=column, **options)
        return self.sql_many(statement, [{"query": vector} for vector in found])

    def _full(self, table: str) -> str:
        return table if "." in table else f"{self._registry.database}.{table}"

    def _model_of(self, table: str, column: str) -> str | None:
        database, _, name = table.rpartition(".")
        known = self._registry.find(database, name)
        found = known.column(column) if known else None
        return self.encoders.default or (found.model if found else None)

    def search_sql(
        self,
        table: str,
        *,
        by: str = "vector",
        k: int = 10,
        where: str | None = None,
        column: str = "image_embedding",
        columns: Sequence[str] | None = None,
        distance: str = "cosineDistance",
        recall: float | None = None,
        hybrid: bool = False,
        words: str | None = None,
    ) -> str:
        """The statement that `search` runs; its parameter `query` is a vector, a text, or an image's path (`by`)."""
        from clipql.sql.search_text import search_text

        known = self._searched(table)
        if column not in known.vectors:
            raise VectorError(f"{known.name} has no vector column {column}; it has {', '.join(known.vectors)}")
        shown = list(columns) if columns is not None else known.plain()
        worded = self._words(known, words) if hybrid or words is not None else None
        return search_text(known.source, shown, column=column, by=by, k=k, where=where, distance=distance,
                           recall=recall, words=worded)  # fmt: skip

    def _words(self, known: Searched, named: str | None) -> str:
        """The column whose words a hybrid search looks for. Raises QueryError."""
        from clipql.sql.hybrid import words_column

        if known.indexed is None:
            raise QueryError(f"{known.name} lies in shards, which are not searched by words: leave hybrid out")
        return words_column(known.indexed(), known.plain(), named)

    def _searched(self, table: str) -> Searched:
        """A table that is searched. Raises UnknownTable."""
        from clipql.sql.search_text import Searched

        database, _, name = table.rpartition(".")
        known = self._registry.find(database or None, name)
        if known is None:
            tables = ", ".join(t.full_name for t in self._registry.catalog.tables) or f"none in {self.path} yet"
            raise UnknownTable(f"there is no table {table} with vector columns; there are: {tables}")
        vectors, plain = tuple(c.name for c in known.columns), partial(self._plain.names, known.id)
        indexed = partial(self._plain.worded, known.id)
        return Searched(known.full_name, self._registry.physical(known), vectors, plain, indexed)

    def ingest(
        self, source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, table: str = "laion", **options: Any
    ) -> Any:
        """Take LAION parts in, from folders, files, or an address such as 'https://host/laion400m' or 's3://…', or
        files whose rows hold their vectors: Parquet, Arrow, JSON lines, CSV.

        See `clipql.ingest.pipeline.ingest` for the options and what is returned, `clipql.ingest.stream.ingest_from` for
        those of an address, `clipql.ingest.records.taking.ingest_files` for those of files with vectors,
        `clipql.ingest.records.adding.add_column` for those of files that fill a new column of a table (add_column).
        """
        from clipql.ingest.routing import take_in

        return take_in(self, source, table, options)

    def vectors(
        self,
        table: str,
        column: str = "image_embedding",
        where: str | None = None,
        *,
        columns: Sequence[str] = (),
    ) -> VectorBlocks:
        """The vectors of a column, in blocks that are mapped, with their row numbers; rows that were deleted, or do not
        meet `where`, are left out. All blocks are of the moment of the call. What it gives is an Arrow stream as well.

        columns: plain columns whose values come with each block, as `block.values`.
        Raises UnknownTable, VectorError where there is no such column, QueryError for what `where` cannot be.
        """
        from clipql.sql.search.vector_blocks import vector_blocks
        from clipql.sql.search_text import one_condition

        self._check_open()
        registry, indexes = self.registry, self.indexes
        found = self._searched(table)
        if column not in found.vectors:
            raise VectorError(f"{found.name} has no vector column {column}; it has {', '.join(found.vectors)}")
        for name in columns:
            if name not in found.plain():
                raise VectorError(f"{found.name} has no plain column {name}; it has {', '.join(found.plain())}")
        database, _, name = table.rpartition(".")
        known = registry.find(database or None, name)
        if known is None:
            raise UnknownTable(f"{table} was dropped meanwhile")
        with registry.gate.reading():
            condition = one_condition(where) if where else None
            return vector_blocks(registry, indexes.rows, known, column, condition, columns)

    def wait_for_indexes(self, progress: Callable[[str, int, int], None] | None = None) -> None:
        """Return when the indexes that are built in the background, after an INSERT or by MATERIALIZE INDEX … SETTINGS
        mutations_sync = 0, are done; `clipql.indexes` has what became of each.

        progress(stage, done, total) is called now and then. What is not waited for goes on when the database is open
        again.
        """
        self._check_open()
        self._indexes.wait(progress)

    def check(self, *, deep: bool = False, progress: Callable[[str], None] | None = None) -> CheckReport:
        """Whether the database is what was written; see `clipql.check`. Writers wait until it is done."""
        from clipql.care.check import check_database

        return check_database(self, deep=deep, progress=progress)

    def backup(self, path: str | os.PathLike[str], **options: Any) -> BackupReport:
        """Copy the database as it is now into a new folder; see `clipql.care.backup.backup` for the options."""
        from clipql.care.backup import backup

        return backup(self, path, **options)

    @property
    def registry(self) -> Registry:
        """The tables with vector columns, for the parts of clipql that work below SQL."""
        return self._registry

    @property
    def indexes(self) -> Indexes:
        """The vector indexes, for the parts of clipql that work below SQL."""
        return self._indexes

    def close(self) -> None:
        """Close the database; harmless when called twice."""
        if self._process != os.getpid():  # a fork: everything belongs to the process that opened it
            return
        with self._closing:
            if self._closed:
                return
            self._closed = True
            self._indexes.background.close()
            self._registry.close()
            self.encoders.close()
            self._engine.close()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
