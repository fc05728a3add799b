"""Searches of the REST API: from a request to rows, or a file of them, as JSON's readers want them."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from starlette.responses import Response

from clipql.engine.arrow import numpy_numbers
from clipql.engine.python_values import python_columns
from clipql.engine.quoting import quote_name
from clipql.errors import PictureError, QueryError
from clipql.serve import search_request as search
from clipql.serve.column_roles import ColumnRoles
from clipql.serve.condition_errors import in_conditions
from clipql.serve.json_response import JsonResponse
from clipql.serve.models_at_hand import model_for
from clipql.serve.picture_addresses import OFF
from clipql.serve.picture_names import PictureNames
from clipql.serve.search_request import Search
from clipql.serve.search_statement import Statement, mixed, statement
from clipql.serve.service import Request, Service
from clipql.serve.short_way import ShortWay
from clipql.serve.values import folded, plain
from clipql.sql.hybrid import SCORE
from clipql.sql.planning import explain
from clipql.sql.session import Answer
from clipql.storage.catalog import Table, VectorColumn
from clipql.tables.registry import ROW

MEDIA = {"CSV": ("text/csv; charset=utf-8", "csv"), "Parquet": ("application/vnd.apache.parquet", "parquet"),
         "Arrow": ("application/vnd.apache.arrow.file", "arrow")}  # fmt: skip


@dataclass(frozen=True)
class Ready:
    """A search whose statement is made. began, encoded: by the performance counter, before its vectors and after."""

    table: Table
    column: VectorColumn
    roles: ColumnRoles
    vectors: tuple[NDArray[np.float32], ...]
    made: Statement
    began: float
    encoded: float


class SearchResults:
    """What searches find, and single rows. Call it in a thread of the pool, as whoever acts there."""

    def __init__(self, service: Service) -> None:
        self._service, self._short, self.names = service, ShortWay(service), PictureNames(service)

    def moment_now(self) -> contextlib.AbstractContextManager[bool]:
        """One moment of the database, without waiting: whether it is held."""
        return self._service.moment_now()

    def of(self, asked: Search) -> OneSearch:
        """A search on its way to its response."""
        return OneSearch(self, asked)

    def may_be_short(self, asked: Search) -> bool:
        """Whether a search may be short work: by vectors, of the rows that a table has, for the page.

        Call it from the event loop, as whoever acts there. Raises ClipqlError.
        """
        if not asked.terms or any(t.vector is None for t in asked.terms) or asked.format != "JSON":
            return False
        service = self._service
        table = service.table(asked.database, asked.table)
        # which rows meet a condition is looked up, which may take long
        if asked.fold is not None or asked.where or not service.roles.knows(table):
            return False
        return not (asked.safe and service.roles[table].safe)

    def run_at_once(self, run: Request) -> Answer | None:
        """The answer to what is short work; None for anything else."""
        acting, as_table = self._service.acting(), run.format == "ArrowStream"
        return self._short.answer(run.sql, run.params, run.format, acting, {}, write=False, as_table=as_table)

    def run(self, run: Request) -> Answer:
        """The answer to any statement."""
        return self._service.run(run, self._service.engine.acting)

    def ready(self, asked: Search) -> Ready:
        """A search with its vectors and its statement. Raises ClipqlError."""
        service = self._service
        began = time.perf_counter()
        table = service.table(asked.database, asked.table)
        column = service.column(table, asked.column)
        roles = service.roles[table]
        vectors = self.vectors(asked, table, column)
        encoded = time.perf_counter()
        vector = mixed(vectors, [t.weight for t in asked.terms]) if vectors else None
        download = asked.format != "JSON"
        alike: list[int] = []
        if download and asked.fold is not None:
            alike = self._alike(asked, table, column, roles, vector)
        made = statement(asked, table, column, roles, vector, download=download, without=alike)
        return Ready(table, column, roles, tuple(vectors), made, began, encoded)

    def holds(self, ready: Ready, asked: Search) -> bool:
        """Whether nothing has changed since a search was made ready."""
        table = self._service.table(asked.database, asked.table)
        return table is ready.table and self._service.roles[table] is ready.roles

    def response(self, asked: Search, ready: Ready, run: Callable[[Request], Answer | None]) -> Response | None:
        """The response to a search, whose statement is run so; None where that gives none. Raises ClipqlError."""
        service, made, roles, table = self._service, ready.made, ready.roles, ready.table
        version = self.names.version(table)
        download = asked.format != "JSON"
        format = search.FORMATS[asked.format] if download else "ArrowStream"
        with in_conditions(made.sql, asked.where):
            answer = run(Request(made.sql, made.params, format))
        if answer is None:
            return None
        searched = time.perf_counter()
        if asked.terms:
            service.metrics.took("encode", ready.encoded - ready.began)
        service.metrics.took("search", searched - ready.encoded)
        if download:
            media, ending = MEDIA[asked.format]
            disposition = f'attachment; filename="clipql-results.{ending}"'
            return Response(answer.output.data, headers={"Content-Type": media, "Content-Disposition": disposition})
        found = answer.output.arrow()
        page, more, duplicates = self.page(asked, table, ready.column.name, found, roles.types)
        if roles.file:  # a page of results is asked for its pictures next
            self.names.tell(table, version, roles.file, [(r[ROW], r[roles.file]) for r in page if roles.file in r])
        given = [
            np.ascontiguousarray(vector)
            for term, vector in zip(asked.terms, ready.vectors, strict=True)
            if term.text is None and term.row is None
        ]
        params = dict(zip(made.shown_params, given, strict=True))
        ended = time.perf_counter()
        seconds = {
            "encode": ready.encoded - ready.began, "search": searched - ready.encoded, "total": ended - ready.began
        }  # fmt: skip
        return JsonResponse(
            {
                "rows": [self.shown(table, roles, row, duplicates) for row in page],
                "table_id": table.id,
                "sql": made.shown,
                "params": params,
                "plan": explain.describe([s.plan for s in answer.steps], service.registry),
                "exact": not any(explain.by_index(s.plan) for s in answer.steps),
                "more": more,
                "ms": {k: round(v * 1000, 2) for k, v in seconds.items()},
            }
        )

    def records(self, asked: Search) -> list[dict[str, Any]]:
        """The rows of a search by its terms, nearest first, as `shown` has them. Raises ClipqlError."""
        service = self._service
        table = service.table(asked.database, asked.table)
        column = service.column(table, asked.column)
        roles = service.roles[table]
        vectors = self.vectors(asked, table, column)
        made = statement(asked, table, column, roles, mixed(vectors, [t.weight for t in asked.terms]))
        answer = service.run(Request(made.sql, made.params, "ArrowStream"), service.engine.acting)
        page = self.page(asked, table, column.name, answer.output.arrow(), roles.types)[0]
        return [self.shown(table, roles, row) for row in page]

    def vectors(self, asked: Search, table: Table, column: VectorColumn) -> list[NDArray[np.float32]]:
        """What the terms of a search stand for, float32 (d,) each. Raises ClipqlError."""
        service = self._service
        if service.options.fetcher is None and any(t.url is not None for t in asked.terms):
            raise search.wrong(f"url: {OFF}")
        model = model_for(service.database.encoders, column, asked.model) if asked.encodes else None
        return [self.vector(term, table, column.name, model) for term in asked.terms]

    def vector(self, term: search.Term, table: Table, column: str, model: str | None) -> NDArray[np.float32]:
        """What a term stands for, float32 (d,). Raises ClipqlError."""
        service = self._service
        if term.vector is not None:
            return term.vector
        if term.row is not None:
            store = service.registry.store(table, column)
            if term.row >= store.rows or not self.rows_there(table, [term.row]):
                raise QueryError(f"{table.full_name} has no row {term.row}", code=36, name="BAD_ARGUMENTS")
            return np.asarray(store.take(np.array([term.row]))[0])
        encoders = service.database.encoders
        if term.text is not None:
            found: NDArray[np.float32] = encoders.texts([term.text], model)[0]
            return found
        picture = term.picture or b""
        if term.url is not None:
            fetcher = service.options.fetcher
            if fetcher is None:
                raise search.wrong(f"url: {OFF}")
            picture = fetcher.fetch(term.url)
        try:
            return encoders.picture(picture, model)
        except PictureError as error:
            raise search.UnreadablePicture(str(error), term.field) from error

    def _alike(
        self, asked: Search, table: Table, column: VectorColumn, roles: ColumnRoles, vector: NDArray[np.float32] | None
    ) -> list[int]:
        """The numbers of the rows of a search that are almost the same as one before them."""
        made = statement(dataclasses.replace(asked, columns=()), table, column, roles, vector)
        with in_conditions(made.sql, asked.where):
            answer = self._service.run(Request(made.sql, made.params, "ArrowStream"), self._service.engine.acting)
        duplicates = self.page(asked, table, column.name, answer.output.arrow(), roles.types)[2]
        return list(duplicates)

    def rows_there(self, table: Table, rows: list[int]) -> list[int]:
        """Those of some numbers of rows that the table has."""
        alive = self._service.registry.alive(table)
        return [r for r in rows if 0 <= r < table.rows and (alive is None or bool(alive[r]))]

    def page(
        self, asked: Search, table: Table, column: str, found: pa.Table, types: Mapping[str, str]
    ) -> tuple[list[dict[str, Any]], bool, dict[int, int]]:
        """The rows of the page asked for, whether there are more, and which row each duplicate repeats."""
        duplicates: dict[int, int] = {}
        first = 0
        if asked.fold is not None:
            first = asked.offset
            rows = numpy_numbers(found.column(ROW)).astype(np.int64)[: first + asked.k]
            duplicates = folded(self._service.registry.store(table, column).take(rows), rows, asked.fold)
        more = found.num_rows > first + asked.k
        return _records(found.slice(first, asked.k), types), more, duplicates

    def shown(
        self, table: Table, roles: ColumnRoles, row: dict[str, Any], duplicates: Mapping[int, int] | None = None
    ) -> dict[str, Any]:
        """A row as the page has it; takes apart what it is given."""
        number = row.pop(ROW)
        distance = row.pop("distance", None) if "distance" not in roles.types else None
        score = row.pop(SCORE, None) if SCORE not in roles.types else None
        url = row.get(roles.url) if roles.url else None
        good = isinstance(url, str) and url[:8].lower().startswith(("http://", "https://"))
        twin = duplicates.get(number) if duplicates else None
        values = {name: value if type(value) is str else plain(value) for name, value in row.items()}
        return {
            "id": str(number),
            "distance": plain(distance),
            "caption": values.get(roles.caption) if roles.caption else None,
            "picture": url if good else None,
            "thumbnail": _thumbnail(table, number) if roles.file and row.get(roles.file, True) else None,
            "values": values,
            "duplicate_of": None if twin is None else str(twin),
            **({} if score is None else {SCORE: plain(score)}),
        }

    def read_row(self, table: Table, columns: tuple[str, ...], row: int) -> dict[str, Any] | None:
        """One row's values by the names of its columns, or None where there is no such row."""
        names = ", ".join([*map(quote_name, columns), ROW])
        sql = f"SELECT {names} FROM {self._service.registry.physical(table)} WHERE {ROW} = {row} LIMIT 1"
        types = self._service.roles[table].types
        rows = _records(self._service.engine.arrow(sql, user=True), types)
        return rows[0] if rows else None


def _thumbnail(table: Table, row: int) -> str:
    """The address of a row's small picture, which browsers keep: that of a table of the same name is another."""
    path = "/".join(quote(name, safe="") for name in (table.database, table.name))
    return f"/api/thumbnail/{path}/{row}?of={quote(table.id, safe='')}"


def _records(found: pa.Table, types: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows by the names of their columns, with values as Python has them."""
    columns = python_columns(found, types, short=True)
    return [dict(zip(found.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


class OneSearch:
    """A search on its way to its response: tried on the event loop, then in a thread, and made ready once for both."""

    def __init__(self, results: SearchResults, asked: Search) -> None:
        self._results, self._asked = results, asked
        self._ready: Ready | None = None

    def at_once(self) -> Response | None:
        """The response to a search by vectors that was asked before with others; None where it is not short work.

        Call it from the event loop, as whoever acts there. Raises ClipqlError.
        """
        results, asked = self._results, self._asked
        with results.moment_now() as held:
            if not held or not results.may_be_short(asked):
                return None
            self._ready = results.ready(asked)
            return results.response(asked, self._ready, results.run_at_once)

    def answer(self) -> Response:
        """The response: a page of rows, or a file of them. Call it in a thread of the pool. Raises ClipqlError."""
        results, asked, ready = self._results, self._asked, self._ready
        if ready is None or not results.holds(ready, asked):
            ready = results.ready(asked)
        found = results.response(asked, ready, results.run)
        assert found is not None
        return found
