"""What a slow line has to carry before the first results are seen, counted rather than timed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from browser_steps import settled
from browser_support import Served
from playwright.sync_api import Page

import clipql.serve

WEB = Path(clipql.serve.__file__).parent / "web"
MOST_BYTES, MOST_REQUESTS = 90_000, 45


def test_every_module_is_asked_for_at_once(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(f"{served.address}#pictures?table=emoji")
    settled(page)
    found: list[dict[str, Any]] = page.evaluate(
        """performance.getEntriesByType('resource').filter(e => /\\.js$/.test(e.name))
            .map(e => ({ name: e.name.split('/').at(-1), by: e.initiatorType }))"""
    )
    named = re.findall(r'modulepreload" href="static/([\w.]+)"', (WEB / "index.html").read_text())
    imported = {name for file in WEB.glob("*.js") for name in re.findall(r"from '\./([\w.]+)'", file.read_text())}
    assert sorted(named) == sorted(imported)
    assert {one["name"] for one in found} == imported | {"app.js", "theme.js"}
    # the tables are on their way before any module has run
    assert (
        page.evaluate("performance.getEntriesByName(new URL('api/tables', document.baseURI).href)[0].initiatorType")
        == "link"
    )


def test_what_is_loaded_before_the_first_results_is_packed_and_little(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}healthz")
    seen: list[tuple[str, dict[str, str]]] = []
    page.on("response", lambda reply: seen.append((reply.url, reply.headers)))
    page.goto(f"{served.address}#pictures?table=emoji")
    settled(page)
    long = [(url, headers) for url, headers in seen if int(headers.get("content-length", 0)) > 1000]
    unpacked = [url for url, headers in long if "thumbnail" not in url and headers.get("content-encoding") != "gzip"]
    assert unpacked == []
    own: list[int] = page.evaluate(
        """performance.getEntriesByType('resource').filter(e => !e.name.includes('thumbnail'))
            .map(e => e.transferSize)"""
    )
    assert sum(own) < MOST_BYTES
    assert len(own) < MOST_REQUESTS
    again = page.request.get(f"{served.address}static/app.js")
    assert (
        page.request.get(f"{served.address}static/app.js", headers={"If-None-Match": again.headers["etag"]}).status
        == 304
    )
