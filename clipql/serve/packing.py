"""Packing what the page is made of and what it asks for, for those who take it packed.

ClickHouse's protocol has its own way (`compression.py`): a client asks for it there. Here it is the browser's usual
`Accept-Encoding`. What must stay true: what would not get shorter, or is short, goes out as it is.
"""

from __future__ import annotations

import gzip

from starlette.requests import Request
from starlette.responses import Response

SHORT = 1000  # bytes: a packet, packed or not
_LEVEL = 6
MAP = "application/vnd.clipql.map"  # numbers, of which those of rows become short
_PACKED = ("text/", "application/json", "application/javascript", "image/svg", MAP)


def packed(response: Response, request: Request) -> Response:
    """The response, packed where that is of use. It must be whole."""
    accepted = [e.partition(";")[0].strip() for e in request.headers.get("accept-encoding", "").split(",")]
    short = response.headers.get("content-type", "").startswith(_PACKED)
    if not short or len(response.body) < SHORT or "content-encoding" in response.headers:
        return response
    response.headers["Vary"] = "Accept-Encoding"
    if "gzip" in accepted:
        response.body = gzip.compress(response.body, _LEVEL, mtime=0)
        response.headers["Content-Encoding"] = "gzip"
        response.headers["Content-Length"] = str(len(response.body))
    return response
