"""Fixtures of the browser tests: a real database, the real server, headless Chromium, and pictures on a web of our own.

A test fails where the page raised an error, broke its Content-Security-Policy or asked another host for anything but a
picture. One that failed leaves a screenshot in artefacts/; where all cases are run (CLIPQL_CASES=all), every test does.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser_support import Served, Web, serve
from patience import LAST_NET_SECONDS
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.cases import ALL

HERE = Path(__file__).parent
ARTEFACTS = HERE / "artefacts"
expect.set_options(timeout=1000 * LAST_NET_SECONDS)
FAILED = pytest.StashKey[bool]()
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """Pictures at web addresses, on this machine."""
    folder = tmp_path_factory.mktemp("browser")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.referrers.append(self.headers.get("Referer"))
            path = folder / "pictures" / Path(self.path).name
            good = self.path.startswith("/good/") and path.is_file()
            data = path.read_bytes() if good else b""
            self.send_response(200 if good else 404)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the test's output is the test's."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = Web(f"http://127.0.0.1:{server.server_port}", folder)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def served(web: Web) -> Iterator[Served]:
    """The server of the tables `emoji` and `web`, with the bundled model."""
    done = subprocess.run(
        [sys.executable, str(HERE / "browser_data.py"), str(web.folder), web.address], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with serve(web.folder / "test.db", web.folder / "serve.log", CLIPQL_MODEL="clipql/emoji") as running:
        yield running


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Headless Chromium."""
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.fail(f"no browser: looked for {', '.join(BROWSERS)} on PATH; on Debian, apt-get install chromium")
    ARTEFACTS.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"], timeout=1000 * LAST_NET_SECONDS
        )
        yield running
        running.close()


def in_context(browser: Browser, **options: Any) -> BrowserContext:
    """A window of the browser with nothing kept."""
    options.setdefault("viewport", {"width": 1100, "height": 720})
    options.setdefault("reduced_motion", "reduce")
    context = browser.new_context(accept_downloads=True, **options)
    context.set_default_timeout(1000 * LAST_NET_SECONDS)
    return context


@pytest.fixture(scope="session")
def window(browser: Browser) -> BrowserContext:
    """The window that tests share, as opening one takes longer than most tests."""
    return in_context(browser)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Tells the fixtures of a test that it failed."""
    outcome: Any = yield
    if outcome.get_result().failed:
        item.stash[FAILED] = True


@pytest.fixture
def open_page(
    browser: Browser, window: BrowserContext, request: pytest.FixtureRequest, web: Web
) -> Iterator[Callable[..., Page]]:
    """Opens a page of an address, checked when the test is over: in the shared window, where nothing but the browser's
    cache is kept from test to test, or in one of its own, if `alone` or with options of Playwright's new_context.
    """
    opened: list[Page] = []
    mistakes: list[str] = []

    def open_(address: str, alone: bool = False, **options: Any) -> Page:
        page = (in_context(browser, **options) if alone or options else window).new_page()
        host = address.split("/")[2]

        def said(text: str) -> None:
            if "Content Security Policy" in text or "Failed to load resource" not in text:
                mistakes.append(text)

        def asked(method: str, url: str, kind: str) -> None:
            if url.startswith("http") and url.split("/")[2] != host and kind != "image":
                mistakes.append(f"{method} {url} as {kind}")

        page.on("console", lambda message: said(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        page.on("request", lambda sent: asked(sent.method, sent.url, sent.resource_type))
        opened.append(page)
        page.goto(address)
        return page

    yield open_
    for i, page in enumerate(opened):
        if ALL or FAILED in request.node.stash:
            name = re.sub(r"\W+", "-", request.node.name.removeprefix("test_"))
            page.screenshot(path=ARTEFACTS / f"{name}{f'-{i}' if i else ''}.png", animations="disabled")
        if page.context is window:
            origin = {"origin": "/".join(page.url.split("/")[:3]), "storageTypes": "all"}
            window.new_cdp_session(page).send("Storage.clearDataForOrigin", origin)
            page.close()
        else:
            page.context.close()
    assert mistakes == []


@pytest.fixture
def page(open_page: Callable[..., Page], served: Served) -> Page:
    """The table of emoji, with its first pictures."""
    opened = open_page(f"{served.address}#pictures?table=emoji")
    opened.wait_for_selector(".tile.loaded")
    return opened
