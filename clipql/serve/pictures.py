"""Single rows of the REST API, and the pictures that they name: small ones, which browsers keep, and the files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from clipql.errors import PictureError
from clipql.serve import search_request as search
from clipql.serve.json_response import JsonResponse, error_response
from clipql.serve.search_results import SearchResults
from clipql.serve.service import Service
from clipql.serve.thumbnails import SIZES, Thumbnails

InThread = Callable[[HttpRequest, Callable[[], Response]], Awaitable[Response]]


class Pictures:
    """The routes of rows and pictures. in_thread: has work done in the pool."""

    def __init__(self, service: Service, results: SearchResults, thumbnails: Thumbnails, in_thread: InThread) -> None:
        self._service, self._results, self._thumbnails, self._in_thread = service, results, thumbnails, in_thread

    def small(self, name: str, size: int) -> bytes:
        """The picture in a file that a row names, as WebP of at most so many pixels a side. Raises PictureError."""
        with self._thumbnails.open(name) as file:
            return self._thumbnails.make(file, size)

    async def row(self, request: HttpRequest) -> Response:
        """One row's values."""
        return await self._in_thread(request, lambda: self._one_row(request.path_params))

    def _one_row(self, path: Mapping[str, str]) -> Response:
        table = self._service.table(path["database"], path["table"])
        roles = self._service.roles[table]
        found = self._results.read_row(table, roles.plain, search.row_number(path["id"]))
        if found is None:
            return error_response(404, f"{table.full_name} has no row {path['id'][:20]}")
        shown = self._results.shown(table, roles, found)
        return JsonResponse({k: shown[k] for k in ("id", "caption", "picture", "thumbnail", "values")})

    async def thumbnail(self, request: HttpRequest) -> Response:
        """The picture that a row names, small, as WebP."""
        size = request.query_params.get("size", "256")
        if not size.isascii() or not size.isdigit() or len(size) > 6 or not SIZES[0] <= int(size) <= SIZES[1]:
            raise search.wrong(f"size: expected a whole number from {SIZES[0]} to {SIZES[1]}")
        seen = request.headers.get("if-none-match", "")
        return await self._in_thread(request, lambda: self._drawn(request.path_params, int(size), seen))

    async def original(self, request: HttpRequest) -> Response:
        """The picture that a row names, as its file is."""
        return await self._in_thread(request, lambda: self._whole(request.path_params))

    def _whole(self, path: Mapping[str, str]) -> Response:
        try:
            with self._thumbnails.open(self._file_of(path)) as file:
                data, media = self._thumbnails.original(file, self._service.options.limits.body)
        except PictureError as error:
            return error_response(404, str(error))
        # a picture is shown and no more, whatever else its bytes may be read as
        headers = {"Content-Security-Policy": "sandbox; default-src 'none'", "Cache-Control": "private, max-age=3600"}
        return Response(data, media_type=media, headers=headers)

    def _file_of(self, path: Mapping[str, str]) -> str:
        """The name of the file that a row of a path names. Raises PictureError."""
        table = self._service.table(path["database"], path["table"])
        roles = self._service.roles[table]
        number = search.row_number(path["id"])
        if roles.file and (name := self._results.names.find(table, roles.file, number)) is not None:
            return name
        row = self._results.read_row(table, (roles.file,), number) if roles.file else None
        if row is None or roles.file is None:
            raise PictureError("there is no such row with a picture's file")
        return str(row[roles.file] or "")

    def _drawn(self, path: Mapping[str, str], size: int, seen: str) -> Response:
        try:
            with self._thumbnails.open(self._file_of(path)) as file:
                tag = f'"{self._thumbnails.tag(file, size)}"'
                headers = {"ETag": tag, "Cache-Control": "private, max-age=3600"}
                if tag in seen:
                    return Response(status_code=304, headers=headers)
                data = self._thumbnails.make(file, size)
        except PictureError as error:
            return error_response(404, str(error))
        return Response(data, media_type="image/webp", headers=headers)
