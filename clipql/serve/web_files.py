"""The files of the page, read once: index.html, its modules, those of them that come first as one, its styles as one.

What must stay true: each is asked for anew every time, so that a page never mixes modules of two versions, and answered
without a body where the browser has it already.
"""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

from clipql.serve.json_response import error_response
from clipql.serve.packing import packed
from clipql.serve.web_modules import joined

# in the order in which they override each other; fewer requests are fewer round trips on a slow line
STYLES = ("base.css", "search.css", "grid.css", "dialogs.css", "sql.css")
ALL_STYLES = "page.css"
MAIN, FIRST = "app.js", "first.js"


@dataclass(frozen=True)
class _File:
    data: bytes
    media: str
    tag: str


class WebFiles:
    """Answers for the files in a folder, and for no others."""

    def __init__(self, folder: Path) -> None:
        names = [p for p in sorted(folder.glob("*")) if p.is_file()] if folder.is_dir() else []
        contents = {p.name: p.read_bytes() for p in names}
        if MAIN in contents:
            scripts = {name: data.decode() for name, data in contents.items() if name.endswith(".js")}
            contents |= {name: text.encode() for name, text in joined(scripts, MAIN, FIRST).items()}
        self._files = {name: _file(data, name) for name, data in contents.items()}
        styles = [self._files[name].data for name in STYLES if name in self._files]
        if len(styles) == len(STYLES):
            self._files[ALL_STYLES] = _file(b"\n".join(styles), ALL_STYLES)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def answer(self, name: str, request: Request) -> Response:
        """The response with a file."""
        found = self._files.get(name)
        if found is None:
            return error_response(404, f"there is no {request.url.path[:100]} here")
        headers = {"ETag": found.tag, "Cache-Control": "no-cache"}
        if found.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return packed(Response(found.data, media_type=found.media, headers=headers), request)

    async def static(self, request: Request) -> Response:
        """The endpoint of /static/{name}."""
        return self.answer(request.path_params["name"], request)


def _file(data: bytes, name: str) -> _File:
    media = "text/javascript" if name.endswith(".js") else mimetypes.guess_type(name)[0] or "application/octet-stream"
    return _File(data, media, f'"{hashlib.sha256(data).hexdigest()[:24]}"')
