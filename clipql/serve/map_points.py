"""What a map is drawn of: the places of rows, and what colours them, in few bytes.

A reply is a header's length (uint32, little-endian), the header in JSON, and arrays as it lists them: rows as the
differences of their ascending numbers, places as whole numbers from 0 to 65,535. What must stay true: a reply has those
rows alone that are there, meet the conditions and are safe where that is asked, by a statement that the guard has seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.responses import Response

from clipql.engine.arrow import numpy_numbers
from clipql.engine.python_values import python_values
from clipql.engine.quoting import quote_name, quote_string
from clipql.projection.fitting import Projection
from clipql.serve import search_request as search
from clipql.serve.column_roles import ColumnRoles, kind
from clipql.serve.condition_errors import in_conditions
from clipql.serve.facets import as_number, source_of
from clipql.serve.json_response import JsonResponse
from clipql.serve.limits import Limits
from clipql.serve.maps import Maps
from clipql.serve.packing import MAP
from clipql.serve.search_request import Search
from clipql.serve.search_results import SearchResults
from clipql.serve.search_statement import mixed
from clipql.serve.service import Request, Service
from clipql.serve.values import plain, projected
from clipql.storage.catalog import Table, VectorColumn
from clipql.storage.vectors.metrics import Metric
from clipql.tables.registry import ROW

MOST_NAMES = 12  # values of a column that have a colour each
_FINEST = 65_535
_MIDDLE = (2, 98)  # percentiles between which a scale goes: a few outliers do not make all else one colour


@dataclass(frozen=True)
class MapAsked:
    """What is asked: the rows of a search, and of them what the column `by` has, or how similar they are to what is
    searched for, or else their places. better_than: the method of those that are known already."""

    search: Search
    by: str | None
    similarity: bool
    better_than: str | None

    @classmethod
    def read(cls, given: Any, uploads: Mapping[str, bytes], limits: Limits) -> MapAsked:
        """The request in parsed JSON. Raises QueryError."""
        own = ("by", "by_similarity", "better_than")
        rest = {k: v for k, v in given.items() if k not in own} if isinstance(given, Mapping) else given
        asked = Search.read(rest, uploads, limits)
        return cls(asked, search.text(given, own[0]), search.flag(given, own[1], False), search.text(given, own[2]))


class MapPoints:
    """Answers for them. Call it in a thread of the pool."""

    def __init__(self, service: Service, results: SearchResults) -> None:
        self._service, self._results, self._maps = service, results, Maps(service)

    def answer(self, all: MapAsked) -> Response:
        """Places or values; JSON with status 202 while there are none. Raises ClipqlError."""
        service, asked = self._service, all.search
        table = service.table(asked.database, asked.table)
        column = service.column(table, asked.column)
        projection, stage = self._maps.of(table, column)
        told = None if stage is None else {"name": stage.name, "done": stage.done, "total": stage.total}
        if projection is None or (told is not None and projection.method == all.better_than):
            return JsonResponse({"stage": told}, 202, {"Retry-After": "1"})
        if all.similarity:
            rows = projection.rows[self._shown(asked, table, projection)]
            values = self._similarities(asked, table, column, rows)
            return _packed(rows, {"kind": "number", **_scale(values)}, [("values", values)])
        if all.by is not None:
            return self._coloured(asked, table, projection, all.by)
        shown = self._shown(asked, table, projection)
        places = np.round((projection.places[shown].astype(np.float64) + 1) / 2 * _FINEST).astype(np.uint16)
        head = {
            "method": projection.method,
            "step": projection.step,
            "better": told,
            "labels": [
                {"x": each.x, "y": each.y, "text": each.text, "level": each.level} for each in projection.labels
            ],
        }
        return _packed(projection.rows[shown], head, [("places", places)])

    def some(self, table: Table, column: VectorColumn, ids: Sequence[str]) -> Response:
        """The places of a few rows, by the two directions in which these differ most. Raises QueryError."""
        rows = self._results.rows_there(table, [search.row_number(i) for i in ids])
        if not rows:
            return JsonResponse({"points": []})
        places = projected(self._service.registry.store(table, column.name).take(np.array(rows, np.int64)))
        points = zip(rows, places.tolist(), strict=True)
        return JsonResponse({"points": [{"id": str(r), "x": round(x, 4), "y": round(y, 4)} for r, (x, y) in points]})

    def _shown(self, asked: Search, table: Table, projection: Projection) -> NDArray[np.bool_]:
        """Which points are there and meet the conditions, bool (n,)."""
        rows, step = projection.rows, projection.step
        roles = self._service.roles[table]
        if asked.where or (asked.safe and roles.safe):
            found = self._aggregated(asked, table, roles, [f"groupArray({ROW})"], step)[0]
            shown = np.isin(rows, numpy_numbers(found).astype(np.int64), assume_unique=True)
            return shown & (rows < table.rows)
        alive = self._service.registry.alive(table)
        inside = rows < table.rows
        return inside if alive is None else inside & alive[np.minimum(rows, len(alive) - 1)]

    def _aggregated(self, asked: Search, table: Table, roles: ColumnRoles, what: Sequence[str], step: int) -> list[Any]:
        """Lists of values of the rows that may have a point, as arrays of Arrow."""
        where = search.where_sql(
            asked.where, roles.safe if asked.safe else None, f"{ROW} % {step} = 0" if step > 1 else None
        )
        sql = f"SELECT {', '.join(what)} FROM {source_of(table)}{where}"
        with in_conditions(sql, asked.where):
            found = self._service.run(Request(sql), self._service.engine.acting).output.arrow()
        return [column.combine_chunks().flatten() for column in found.columns]

    def _similarities(
        self, asked: Search, table: Table, column: VectorColumn, rows: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """1 less the cosine distance to what is searched for, float32 (n,)."""
        if not asked.terms:
            raise search.wrong("by_similarity: there is nothing to be similar to: give terms")
        vectors = self._results.vectors(asked, table, column)
        query = mixed(vectors, [term.weight for term in asked.terms])
        store = self._service.registry.store(table, column.name)
        if len(query) != store.dimension:
            raise search.wrong(f"{column.name} holds {store.dimension} numbers; what is searched for has {len(query)}")
        found = 1 - store.distances(Metric.COSINE, rows, query.astype(np.float64))
        return found.astype(np.float32)

    def _coloured(self, asked: Search, table: Table, projection: Projection, by: str) -> Response:
        roles = self._service.roles[table]
        type = roles.types.get(by)
        sort = "vector" if type is None or table.column(by) is not None or by == ROW else kind(type)
        if type is None or sort not in ("number", "date", "bool", "text"):
            good = [n for n in roles.plain if kind(roles.types[n]) in ("number", "date", "bool", "text")]
            raise search.wrong(f"by: {by[:60]!r} is no column of numbers, dates or text; {', '.join(good)} are")
        if sort in ("number", "date"):
            number = f"toFloat32(ifNull({as_number(by, type)}, nan))"
            rows, values = self._values(asked, table, projection, number)
            return _packed(rows, {"kind": sort, **_scale(values)}, [("values", values.astype(np.float32))])
        text = f"ifNull(toString({quote_name(by)}), 'NULL')"
        where = search.where_sql(asked.where, roles.safe if asked.safe else None)
        sql = f"SELECT {text} AS value, count() AS rows FROM {source_of(table)}{where} GROUP BY value "
        sql += f"ORDER BY rows DESC, value LIMIT {MOST_NAMES}"
        with in_conditions(sql, asked.where):
            found = self._service.run(Request(sql), self._service.engine.acting).output.arrow()
        commonest = python_values(found.column(0))  # bytes where it is not UTF-8
        names = [str(plain(value)) for value in commonest]
        exact = (f"unhex('{v.hex()}')" if isinstance(v, bytes) else quote_string(v) for v in commonest)
        listed = ", ".join(exact) or "''"
        rows, codes = self._values(asked, table, projection, f"toUInt8(indexOf([{listed}], {text}))")
        counts = np.bincount(codes.astype(np.int64), minlength=len(names) + 1).tolist()
        head = {"kind": "text", "names": names, "counts": counts[1:], "others": counts[0]}
        return _packed(rows, head, [("codes", codes.astype(np.uint8))])

    def _values(
        self, asked: Search, table: Table, projection: Projection, value: str
    ) -> tuple[NDArray[np.int64], NDArray[Any]]:
        """The rows with a point, ascending, and what an expression is for each."""
        roles = self._service.roles[table]
        lists = self._aggregated(asked, table, roles, [f"groupArray({ROW})", f"groupArray({value})"], projection.step)
        rows, values = numpy_numbers(lists[0]).astype(np.int64), numpy_numbers(lists[1])
        order = np.argsort(rows)
        order = order[np.isin(rows[order], projection.rows, assume_unique=True)]
        return rows[order], values[order]


def _scale(values: NDArray[np.floating[Any]]) -> dict[str, float | None]:
    """From where to where colours go."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return {"least": None, "most": None, "low": None, "high": None}
    low, high = np.percentile(finite, _MIDDLE)
    return {"least": float(finite.min()), "most": float(finite.max()), "low": float(low), "high": float(high)}


def _packed(rows: NDArray[np.int64], head: Mapping[str, Any], arrays: Sequence[tuple[str, NDArray[Any]]]) -> Response:
    """The reply with some arrays of a value, or two, for each row."""
    steps = np.diff(rows, prepend=rows[:1]).astype("<u4")
    listed = [{"name": "rows", "type": "u4"}, *({"name": n, "type": a.dtype.str[1:]} for n, a in arrays)]
    whole = {**head, "count": len(rows), "first": str(int(rows[0])) if len(rows) else "0", "arrays": listed}
    told = json.dumps(whole).encode()
    told += b" " * (-len(told) % 4)  # so that numbers of four bytes lie where they can be read in place
    pieces = [len(told).to_bytes(4, "little"), told, steps.tobytes()]
    for _, array in arrays:
        data = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()
        pieces += [data, bytes(-len(data) % 4)]
    return Response(b"".join(pieces), media_type=MAP)
