"""The server's application: ClickHouse's protocol and the page at `/`, REST under /api, one database behind all."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from clipql.database import Database
from clipql.serve.access_control import AccessControl
from clipql.serve.api import Api
from clipql.serve.clickhouse import ClickHouse
from clipql.serve.clip_retrieval import ClipRetrieval
from clipql.serve.fellows import Fellows
from clipql.serve.json_response import error_response
from clipql.serve.limits import Options
from clipql.serve.service import Service
from clipql.serve.statements import Statements
from clipql.serve.web_files import WebFiles


def pages() -> Path:
    """The folder of the page: as it was built, or as it stands."""
    web = Path(str(resources.files("clipql.serve"))) / "web"
    return web / "dist" if (web / "dist" / "index.html").is_file() else web


def make_app(database: Database, options: Options, fellows: Fellows) -> tuple[AccessControl, Statements]:
    """The ASGI application of an open database, and what it works with. Close its service before the database."""
    service = Service(database, options, fellows)
    statements = Statements(service)
    clickhouse = ClickHouse(service, statements)
    files, api = WebFiles(pages()), Api(service)

    async def front(request: Request) -> Response:
        wants_page = "text/html" in request.headers.get("accept", "") and "query" not in request.query_params
        if request.method in ("GET", "HEAD") and wants_page and "index.html" in files:
            return files.answer("index.html", request)
        return await clickhouse.handle(request)

    async def missing(request: Request, error: Exception) -> Response:
        return error_response(404, f"there is no {request.url.path[:100]} here")

    app = Starlette(
        routes=[
            Route("/", front, methods=["GET", "HEAD", "POST"]),
            Route("/ping", clickhouse.ping),
            Route("/replicas_status", clickhouse.replicas),
            *api.routes(),
            *ClipRetrieval(service, api).routes(),
            Route("/static/{name}", files.static),
        ],
        exception_handlers={404: missing},
    )
    return AccessControl(app, options), statements
