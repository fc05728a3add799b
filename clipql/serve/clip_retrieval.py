"""clip-retrieval's HTTP service, so that its ClipClient and its browser front work by a change of the address.

`POST /knn-service`, `POST /metadata` and `GET /indices-list` with its JSON
(https://github.com/rom1504/clip-retrieval, clip_back.py). An index there is a table here: `name`, or `database.name`
outside the database default. What must stay true: what a request asks for is done, or refused by name; what has no
effect here and is sent by every client is named in the header X-Clipql-Notes.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from clipql.errors import PictureError, QueryError
from clipql.serve import search_request as search
from clipql.serve.api import Api
from clipql.serve.column_roles import ColumnRoles
from clipql.serve.json_response import JsonResponse
from clipql.serve.search_request import Search
from clipql.serve.service import Service
from clipql.serve.values import plain
from clipql.storage.catalog import Table, VectorColumn
from clipql.tables.registry import INTERNAL

# rows whose cosine is above this are one, as clip-retrieval has it
SAME = 0.94
# pictures of files in one answer, and their size in pixels
MOST_PICTURES, PICTURE_SIZE = 200, 512
# what tells a model that knows many languages
_MANY_LANGUAGES = ("mclip", "m-clip", "multilingual", "xlm")


@dataclass(frozen=True)
class Asked:
    """A request to /knn-service, checked. shown: rows that come with all columns, not id and similarity alone."""

    search: Search
    shown: int
    deduplicate: bool
    notes: tuple[str, ...]


class ClipRetrieval:
    """Its three routes over the searches of the REST API."""

    def __init__(self, service: Service, api: Api) -> None:
        self._service, self._api = service, api

    def routes(self) -> list[Route]:
        """All routes."""
        guarded = self._api.guarded
        return [
            Route("/indices-list", guarded(self._list)),
            Route("/knn-service", guarded(self._knn), methods=["POST"]),
            Route("/metadata", guarded(self._metadata), methods=["POST"]),
        ]

    async def _list(self, request: HttpRequest) -> Response:
        return JsonResponse([self._name(t) for t in self._tables()])

    def _tables(self) -> list[Table]:
        return [t for t in self._service.registry.catalog.tables if t.database != INTERNAL and t.columns]

    @staticmethod
    def _name(table: Table) -> str:
        return table.name if table.database == "default" else table.full_name

    def _table(self, name: Any) -> Table:
        tables = {self._name(t): t for t in self._tables()}
        if name is None and tables:
            return next(iter(tables.values()))
        if name not in tables:
            raise search.wrong(f"indice_name: {str(name)[:60]!r} is none of {', '.join(tables) or 'no tables'}")
        return tables[name]

    async def _knn(self, request: HttpRequest) -> Response:
        given = await self._api.json_of(request)
        return await self._api.in_thread(request, lambda: self._found(given))

    def _found(self, given: Any) -> Response:
        if not isinstance(given, Mapping):
            raise search.wrong("expected a JSON object")
        table = self._table(given.get("indice_name"))
        roles = self._service.roles[table]
        column = _column(table, given.get("modality", "image"))
        asked = self._read(given, table, column, roles)
        records = self._api.results.records(asked.search)
        if asked.deduplicate:
            store = self._service.registry.store(table, column.name)
            rows = np.array([int(r["id"]) for r in records], np.int64)
            alike = repeated(store.take(rows)) if len(rows) else set()
            records = [r for at, r in enumerate(records) if at not in alike]
        answer = []
        for at, record in enumerate(records):
            told = self._metadata_of(table, roles, record, at) if at < asked.shown else {}
            distance = record["distance"]  # None where there is none, as to a vector of zeros
            similarity = None if distance is None else 1 - distance
            answer.append({**told, "id": int(record["id"]), "similarity": similarity})
        headers = {"X-Clipql-Notes": "; ".join(asked.notes)} if asked.notes else {}
        return JsonResponse(answer, headers=headers)

    def _read(self, given: Mapping[str, Any], table: Table, column: VectorColumn, roles: ColumnRoles) -> Asked:
        limit = self._service.options.limits.k
        shown = _whole(given, "num_images", 100)
        notes = []
        safe = search.flag(given, "use_safety_model", False)
        if safe and roles.safe is None:
            notes.append("use_safety_model: no column of the table tells what is safe")
        if search.flag(given, "use_violence_detector", False):
            notes.append("use_violence_detector: there is none here")
        if given.get("aesthetic_score") not in (None, "") and given.get("aesthetic_weight") not in (None, "", 0):
            notes.append("aesthetic_score: there are no aesthetic embeddings here; ORDER BY such a column in SQL")
        if search.flag(given, "use_mclip", False) and not any(
            mark in (column.model or "").lower() for mark in _MANY_LANGUAGES
        ):
            raise search.wrong(
                f"use_mclip: {table.full_name} was made with {column.model or 'a model that is not known'}, which is "
                "no multilingual model; ask without it"
            )
        ids = _whole(given, "num_result_ids", shown)
        if ids > limit:
            notes.append(f"num_result_ids: this server gives {limit} (clipql serve --max-k)")
        body = {
            "database": table.database,
            "table": table.name,
            "column": column.name,
            "k": max(1, min(ids, limit)),
            "safe": safe and roles.safe is not None,
            "terms": [_term(given)],
        }
        asked = Search.read(body, {}, self._service.options.limits)
        return Asked(asked, shown, search.flag(given, "deduplicate", False), tuple(notes))

    async def _metadata(self, request: HttpRequest) -> Response:
        given = await self._api.json_of(request)
        return await self._api.in_thread(request, lambda: self._of_ids(given))

    def _of_ids(self, given: Any) -> Response:
        ids = given.get("ids") if isinstance(given, Mapping) else None
        most = self._service.options.limits.k
        if not isinstance(ids, list) or len(ids) > most or not all(type(i) is int for i in ids):
            raise search.wrong(f"ids: expected a list of at most {most:,} whole numbers")
        if not ids:
            return JsonResponse([])
        table = self._table(given.get("indice_name"))
        roles = self._service.roles[table]
        found = []
        for at, row in enumerate(ids):
            there = self._api.results.rows_there(table, [row])
            record = self._api.results.read_row(table, roles.plain, row) if there else None
            if record is None:
                raise QueryError(f"ids: {table.full_name} has no row {row}", code=36, name="BAD_ARGUMENTS")
            shown = self._metadata_of(table, roles, self._api.results.shown(table, roles, record), at)
            found.append({"id": row, "metadata": shown})
        return JsonResponse(found)

    def _metadata_of(self, table: Table, roles: ColumnRoles, record: Mapping[str, Any], at: int) -> dict[str, Any]:
        """A row's columns, with a small picture of its file as clip-retrieval gives one."""
        told = {name: plain(value) for name, value in record["values"].items()}
        if roles.file and at < MOST_PICTURES and told.get(roles.file):
            with contextlib.suppress(PictureError):
                picture = self._api.pictures.small(str(told[roles.file]), PICTURE_SIZE)
                told["image"] = base64.b64encode(picture).decode()
        return told


def _column(table: Table, modality: Any) -> VectorColumn:
    """The vectors that a modality names. Raises QueryError."""
    if modality not in ("image", "text"):
        raise search.wrong(f"modality: {str(modality)[:40]!r} is none of image, text")
    of_text = [c for c in table.columns if "text" in c.name.lower() or "caption" in c.name.lower()]
    fitting = of_text if modality == "text" else [c for c in table.columns if c not in of_text]
    if not fitting:
        raise search.wrong(
            f"modality: {table.full_name} has no vectors of the kind {modality}; it has "
            f"{', '.join(c.name for c in table.columns)}"
        )
    return fitting[0]


def _term(given: Mapping[str, Any]) -> dict[str, Any]:
    """What is looked for, by clip-retrieval's precedence. Raises QueryError."""
    if given.get("text"):
        return {"text": given["text"]}
    if given.get("image") is not None:
        return {"image": given["image"]}
    if given.get("image_url") is not None:
        return {"url": given["image_url"]}
    if given.get("embedding_input") is not None:
        return {"vector": given["embedding_input"]}
    raise search.wrong("expected one of text, image, image_url and embedding_input")


def _whole(given: Mapping[str, Any], name: str, default: int) -> int:
    value = given.get(name, default)
    if type(value) is not int or value < 1:
        raise search.wrong(f"{name}: expected a whole number of at least 1")
    return value


def repeated(vectors: NDArray[np.float32], least: float = SAME) -> set[int]:
    """The places of those of vectors (n, d) that are alike to an earlier one, over others also.

    As clip-retrieval's connected_components_dedup: the first of each group stays.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    near = unit @ unit.T > least
    seen, dropped = np.zeros(len(unit), bool), set[int]()
    for first in range(len(unit)):
        reached = [] if seen[first] else [first]
        while reached:
            at = reached.pop()
            if not seen[at]:
                seen[at] = True
                dropped |= {at} - {first}
                reached += np.flatnonzero(near[at] & ~seen).tolist()
    return dropped
