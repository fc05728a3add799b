"""The REST API: its routes, who may ask them, and how errors look; what the page and programs ask for in JSON."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import Route

from clipql.engine.users import Acting
from clipql.errors import ClipqlError, QueryError
from clipql.serve import access_control, openapi, search_batch
from clipql.serve import search_request as search
from clipql.serve.chance import Chance
from clipql.serve.column_roles import ColumnRoles, kind
from clipql.serve.counts import Counted, counts
from clipql.serve.error_position import without_prefix
from clipql.serve.errors import error_headers, error_status, let_go
from clipql.serve.facets import Facets
from clipql.serve.json_response import JsonResponse, error_response
from clipql.serve.map_points import MapAsked, MapPoints
from clipql.serve.models_at_hand import choice, models
from clipql.serve.packing import packed
from clipql.serve.pictures import Pictures
from clipql.serve.pool import Busy, gone
from clipql.serve.prometheus import CONTENT_TYPE
from clipql.serve.request_body import Held, content_length
from clipql.serve.search_batch import Batch
from clipql.serve.search_request import Search
from clipql.serve.search_results import SearchResults
from clipql.serve.service import Request, Service
from clipql.serve.statements import SHORT
from clipql.serve.thumbnails import Thumbnails
from clipql.serve.unpacking import too_large
from clipql.storage.catalog import Table, VectorColumn
from clipql.tables.registry import INTERNAL, ROW
from clipql.version import __version__

LOG = logging.getLogger("clipql.serve")
MAP_ROWS = 5_000
VALUES = ("values_of", "containing")  # of /api/facets: a column, and what its values have in them
_EXPLAIN = "EXPLAIN "
Body = Callable[[HttpRequest], Any]
T = TypeVar("T")


class Api:
    """The routes under /api, and /healthz and /metrics."""

    def __init__(self, service: Service) -> None:
        self._service = service
        options = service.options
        opener = options.opener or options.picture_folders(service.database.path)
        self.results = SearchResults(service)
        self._by_chance, self._of_columns = Chance(service), Facets(service)
        self._points = MapPoints(service, self.results)
        self.pictures = Pictures(service, self.results, Thumbnails(opener, options.limits.pixels), self.in_thread)

    def routes(self) -> list[Route]:
        """All routes."""
        guarded = self.guarded
        return [
            Route("/api/search", guarded(self._search), methods=["POST"]),  # first, as most are for it
            Route("/healthz", self._health),
            Route("/api/status", guarded(self._status)),
            Route("/metrics", guarded(self._metrics)),
            Route("/api/openapi.json", guarded(self._openapi)),
            Route("/api/login", guarded(self._login, public=True), methods=["POST"]),
            Route("/api/tables", guarded(self._tables)),
            Route("/api/models", guarded(self._models)),
            Route("/api/count", guarded(self._count), methods=["POST"]),
            Route("/api/facets", guarded(self._facets), methods=["POST"]),
            Route("/api/chance", guarded(self._chance), methods=["POST"]),
            Route("/api/rows/{database}/{table}/{id}", guarded(self.pictures.row)),
            Route("/api/thumbnail/{database}/{table}/{id}", guarded(self.pictures.thumbnail)),
            Route("/api/picture/{database}/{table}/{id}", guarded(self.pictures.original)),
            Route("/api/map", guarded(self._map), methods=["POST"]),
            Route("/api/projection", guarded(self._projection), methods=["POST"]),
            Route("/api/explain", guarded(self._explain), methods=["POST"]),
            Route("/api/complete", guarded(self._complete)),
            Route("/api/progress/{query_id}", guarded(self._progress)),
        ]

    def guarded(self, handler: Body, *, public: bool = False) -> Body:
        """With the token asked for, unless it is public, and errors as JSON."""

        async def handle(request: HttpRequest) -> Response:
            status = 500
            began = time.perf_counter()
            held = request.state.held = Held(self._service.bodies)
            try:
                if not public and not access_control.authorised(self._service.options.token, request):
                    raise PermissionError
                response: Response = packed(await handler(request), request)
                status = response.status_code
                return response
            except PermissionError:
                status = 401
                return error_response(401, "this server asks for a token: Authorization: Bearer …", 516)
            except Busy as busy:
                status = 429
                return error_response(429, str(busy), 202, {"Retry-After": "1"})
            except search.UnreadablePicture as error:
                status = error_status(error)
                return error_response(status, str(error), field=error.field)
            except search.NoModel as error:
                status = error_status(error)
                return error_response(status, str(error), model=error.model)
            except ClipqlError as error:
                status = error_status(error)
                let_go(error)
                return error_response(status, str(error), getattr(error, "code", 0), error_headers(error))
            except ClientDisconnect:
                status = 499
                return error_response(499, "the client has gone")
            finally:
                held.release()
                seconds = time.perf_counter() - began
                self._service.metrics.requests.labels("api", str(status)).inc()
                self._service.metrics.took("api", seconds)
                _log(request, status, seconds)

        return handle

    async def in_thread(self, request: HttpRequest, work: Callable[[], T], acting: Acting | None = None) -> T:
        """Work in the pool, for everybody's user unless somebody acts; cancelled when the client goes."""
        service = self._service
        acting = acting or service.acting()

        def run() -> T:
            with service.engine.act(acting):
                return work()

        future: asyncio.Future[Any] = service.pool.submit(run, acting)
        watch: asyncio.Future[Any] = asyncio.ensure_future(gone(request))
        try:
            await asyncio.wait({future, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                raise ClientDisconnect
            found: T = future.result()
            return found
        except BaseException:
            if not future.done():
                service.pool.stop(acting)
            raise
        finally:
            watch.cancel()

    async def _health(self, request: HttpRequest) -> Response:
        return JsonResponse({"ok": True})

    async def _status(self, request: HttpRequest) -> Response:
        options = self._service.options
        state = options.sandbox
        wall = {"files": state.landlock > 0, "network": state.sockets, "says": state.sentence}
        limits = dataclasses.asdict(options.limits)
        return JsonResponse({"version": __version__, "write": options.write, "sandbox": wall, "limits": limits})

    async def _metrics(self, request: HttpRequest) -> Response:
        return Response(self._service.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _openapi(self, request: HttpRequest) -> Response:
        return JsonResponse(openapi.document(self._service.options))

    async def _login(self, request: HttpRequest) -> Response:
        given = search.parsed(await self._service.bodies.read(request, 10_000, request.state.held))
        search.check_keys(given, {"token"})
        token = self._service.options.token
        if token is not None and not access_control.same(token, str(given.get("token", ""))):
            return error_response(401, "this is not the token", 516)
        response = JsonResponse({"ok": True})
        if token is not None:
            response.set_cookie(access_control.COOKIE, token, httponly=True, samesite="strict", path="/api")
        return response

    async def _tables(self, request: HttpRequest) -> Response:
        return JsonResponse(await self.in_thread(request, self._describe_tables))

    def _describe_tables(self) -> dict[str, Any]:
        service = self._service
        try:
            encoders = service.database.encoders
            model: str | None = encoders.encoder(encoders.usual(service.registry.catalog.tables)).model
        except ClipqlError:
            model = None
        tables = [t for t in service.registry.catalog.tables if t.database != INTERNAL]
        at_hand = models(service.database.encoders)
        return {
            "version": __version__,
            "model": model,
            "write": service.options.write,
            "fetches": service.options.fetcher is not None,
            "most": {"search": service.options.limits.k, "file": service.options.limits.rows},
            "tables": [self._describe(t, service.roles[t], at_hand) for t in tables],
        }

    def _describe(self, table: Table, roles: ColumnRoles, at_hand: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        picture = {"column": roles.url, "kind": "url"} if roles.url else None
        if picture is None and roles.file:
            picture = {"column": roles.file, "kind": "file"}
        return {
            "database": table.database,
            "name": table.name,
            "rows": table.rows,
            "table_id": table.id,
            "caption": roles.caption,
            "picture": picture,
            "nsfw": roles.nsfw,
            "columns": [{"name": n, "type": t, "kind": kind(t)} for n, t in roles.types.items() if n != ROW],
            "vectors": [self._describe_vectors(table, c, at_hand) for c in table.columns],
        }

    def _describe_vectors(
        self, table: Table, column: VectorColumn, at_hand: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        usual, others = choice(self._service.database.encoders, column, at_hand)
        name = column.name.lower()
        return {
            "column": column.name,
            "dimension": column.dimension,
            "model": column.model,
            "words": usual is not None,
            "usual": usual,
            "others": others,
            "of": "text" if "text" in name or "caption" in name else "image",
            "indexes": [i.kind for i in table.indexes if i.column == column.name],
        }

    # searching

    async def _search(self, request: HttpRequest) -> Response:
        given, uploads = await self._search_body(request)
        limits = self._service.options.limits
        if isinstance(given, Mapping) and given.get("queries") is not None:
            batch = await self._service.bodies.in_thread(lambda: Batch.read(given, uploads, limits))
            return await self.in_thread(request, lambda: search_batch.answer(self._service, self.results, batch))
        one = self.results.of(Search.read(given, uploads, limits))
        response = one.at_once()
        return await self.in_thread(request, one.answer) if response is None else response

    async def _search_body(self, request: HttpRequest) -> tuple[Any, dict[str, bytes]]:
        limits = self._service.options.limits
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            return await self.json_of(request, search.parsed_search), {}
        self._service.pool.check()
        length = content_length(request)
        if length is None or length > limits.body:
            raise too_large(limits.body)
        request.state.held.take(length)
        async with request.form(
            max_files=search.MOST_TERMS, max_fields=search.MOST_TERMS, max_part_size=limits.json
        ) as form:
            query = form.get("query")
            if not isinstance(query, str):
                raise search.wrong("the form has no field `query` with the request's JSON")
            uploads = {n: await v.read() for n, v in form.items() if isinstance(v, UploadFile)}
        return await self._service.bodies.in_thread(lambda: search.parsed(query)), uploads

    async def json_of(self, request: HttpRequest, parse: Callable[[bytes], Any] = search.parsed) -> Any:
        """The request's JSON. Raises QueryError, Busy."""
        service = self._service
        service.pool.check()
        most = min(service.options.limits.json, service.options.limits.body)
        body = await service.bodies.read(request, most, request.state.held)
        return parse(body) if len(body) < SHORT else await service.bodies.in_thread(lambda: parse(body))

    async def _models(self, request: HttpRequest) -> Response:
        return JsonResponse({"models": await self.in_thread(request, self._models_at_hand)})

    def _models_at_hand(self) -> list[Mapping[str, Any]]:
        return models(self._service.database.encoders)

    async def _count(self, request: HttpRequest) -> Response:
        asked = Counted.read(await self.json_of(request))
        return JsonResponse(await self.in_thread(request, lambda: counts(self._service, asked)))

    async def _facets(self, request: HttpRequest) -> Response:
        given = await self.json_of(request)
        rest = {k: v for k, v in given.items() if k not in VALUES} if isinstance(given, Mapping) else given
        asked = Counted.read(rest)
        column, part = (search.text(given, name) for name in VALUES)
        facets = self._of_columns
        return JsonResponse(
            await self.in_thread(
                request, lambda: facets.within(asked, column, part or "") if column else facets.of(asked)
            )
        )

    async def _chance(self, request: HttpRequest) -> Response:
        given = await self.json_of(request)
        search.check_keys(given, {"database", "table", "column", "model"})
        names = {name: search.text(given, name) for name in ("database", "table", "column", "model")}
        return await self.in_thread(request, lambda: self._reached_by_chance(names))

    def _reached_by_chance(self, given: Mapping[str, str | None]) -> Response:
        table = self._service.table(given["database"], given["table"] or "")
        column = self._service.column(table, given["column"])
        return JsonResponse({"similarity": self._by_chance.similarity(table, column, given["model"])})

    async def _map(self, request: HttpRequest) -> Response:
        given = await self.json_of(request)
        search.check_keys(given, {"database", "table", "column", "ids"})
        ids = given.get("ids")
        if not isinstance(ids, list) or len(ids) > MAP_ROWS or not all(isinstance(i, str) for i in ids):
            raise search.wrong(f"ids: expected a list of at most {MAP_ROWS:,} ids")
        names = {name: search.text(given, name) for name in ("database", "table", "column")}
        return await self.in_thread(request, lambda: self._projected(names, ids))

    def _projected(self, given: Mapping[str, str | None], ids: list[str]) -> Response:
        table = self._service.table(given.get("database"), given.get("table") or "")
        column = self._service.column(table, given.get("column"))
        return self._points.some(table, column, ids)

    async def _projection(self, request: HttpRequest) -> Response:
        given, uploads = await self._search_body(request)
        asked = MapAsked.read(given, uploads, self._service.options.limits)
        return await self.in_thread(request, lambda: self._points.answer(asked))

    async def _explain(self, request: HttpRequest) -> Response:
        given = await self.json_of(request)
        search.check_keys(given, {"sql", "database", "params"})
        sql, params = search.text(given, "sql"), given.get("params") or {}
        if sql is None:
            raise search.wrong("sql: expected a statement")
        if not isinstance(params, dict):
            raise search.wrong("params: expected an object")
        asked = Request(f"{_EXPLAIN}{sql}", params, database=search.text(given, "database"))
        acting = self._service.acting(None, asked)
        try:
            answer = await self.in_thread(request, lambda: self._service.run(asked, acting), acting)
        except QueryError as error:
            raise without_prefix(error, _EXPLAIN) from error.__cause__
        return JsonResponse({"plan": [str(v) for v in answer.output.arrow().column(0).to_pylist()]})

    async def _progress(self, request: HttpRequest) -> Response:
        """Answered at once, however many statements run."""
        meter = self._service.meters.get(request.path_params["query_id"])
        read = meter.now if meter else None
        rows, total = (read.rows, read.total_rows) if read else (None, None)
        return JsonResponse({"read_rows": rows, "total_rows": max(rows or 0, total) if total else None})

    async def _complete(self, request: HttpRequest) -> Response:
        return JsonResponse(await self.in_thread(request, self._completions))

    def _completions(self) -> dict[str, list[str]]:
        from clipql.serve import allowed

        engine = self._service.engine
        words = engine.arrow("SELECT keyword FROM system.keywords ORDER BY keyword").column(0).to_pylist()
        names = engine.arrow("SELECT name FROM system.functions ORDER BY name").column(0).to_pylist()
        functions = [n for n in names if allowed.function(n)] + ["encode_image", "encode_text"]
        return {"keywords": words, "functions": sorted(functions, key=str.lower)}


def _log(request: HttpRequest, status: int, seconds: float) -> None:
    path = request.scope["path"]
    # a page of results, and one that waits for a statement, ask for many of these
    level = logging.DEBUG if path.startswith(("/api/thumbnail/", "/api/progress/", "/metrics")) else logging.INFO
    if LOG.isEnabledFor(level):
        fields = {"method": request.method, "path": path[:200], "status": status, "seconds": round(seconds, 6)}
        LOG.log(level, "request", extra={"fields": fields})
