"""Takes the pictures of docs/page.md, of all bundled emoji.

    PYTHONPATH=tests python tests/serve/browser/take_pictures.py [VIEW …]

Each view is taken in light and in dark and on a phone; with names, only those views.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from browser_steps import settled
from browser_support import serve
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

IMAGES = Path(__file__).parents[3] / "docs" / "img"
LAPTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 1.5, "is_mobile": True, "has_touch": True}
LOOKS: dict[str, dict[str, Any]] = {
    "light": {**LAPTOP, "color_scheme": "light"},
    "dark": {**LAPTOP, "color_scheme": "dark"},
    "phone": {**PHONE, "color_scheme": "light"},
}
LONGEST_BYTES = 150_000
STATEMENT = """SELECT _row, image_path, caption,
  cosineDistance(image_embedding, encode_text('a red heart')) AS distance
FROM emoji
WHERE category != 'Flags'
ORDER BY distance
LIMIT 20"""


def words(page: Page) -> None:
    """A search by words."""
    page.wait_for_selector(".tile.loaded")
    page.evaluate("document.activeElement.blur()")
    if not page.evaluate("matchMedia('(hover: none)').matches"):
        page.locator(".tile").nth(2).hover()


def picks(page: Page) -> None:
    """Pictures that are picked, and the tray."""
    page.wait_for_selector(".tile.loaded")
    for at in (0, 1, 3, 4):
        page.locator(".tile[data-id] .open").nth(at).focus()
        page.keyboard.press("x")
    expect(page.locator(".tray-count")).to_have_text("4 picked")
    page.evaluate("document.activeElement.blur()")


def details(page: Page) -> None:
    """The details of the best match."""
    page.wait_for_selector(".tile.loaded")
    page.locator(".tile[data-id] .open").first.click()
    expect(page.locator(".details-words h2")).to_be_visible()


def facets(page: Page) -> None:
    """What matches now, counted."""
    page.wait_for_selector(".tile.loaded")
    page.get_by_role("button", name="Facets").click()
    expect(page.get_by_role("region", name="category")).to_be_visible()


def map_(page: Page) -> None:
    """The map, laid out by UMAP."""
    page.wait_for_selector(".map-list li")
    said = page.locator(".map-said")
    expect(said).to_contain_text("to choose", timeout=1_800_000)
    expect(said).not_to_contain_text("better", timeout=1_800_000)
    expect(page.locator(".map-values")).to_be_visible()
    page.wait_for_timeout(4000)  # its pictures come one by one


def sql(page: Page) -> None:
    """A statement and its result."""
    page.get_by_label("SQL statement").fill(STATEMENT)
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".sql-table")).to_be_visible()
    expect(page.locator(".sql-tree details").first).to_be_attached()


VIEWS: dict[str, tuple[str, Callable[[Page], None]]] = {
    "search": ("#pictures?table=emoji&q=cat&with=1~heart", words),
    "picks": ("#pictures?table=emoji&q=red%20heart", picks),
    "details": ("#pictures?table=emoji&q=guitar", details),
    "facets": ("#pictures?table=emoji&q=food", facets),
    "map": ("#map?table=emoji&q=animal&colour=category", map_),
    "sql": ("#sql?table=emoji", sql),
}


def take(browser: Browser, address: str, view: str, look: str) -> None:
    """One picture, in a file of its own. Raises ValueError where it would be too large for a page that is read."""
    fragment, show = VIEWS[view]
    page = browser.new_context(reduced_motion="reduce", **LOOKS[look]).new_page()
    page.set_default_timeout(600_000)
    page.goto(f"{address}{fragment}")
    if not fragment.startswith("#sql"):
        settled(page)
        page.reload()  # the first search has loaded the model
        settled(page)
    show(page)
    page.wait_for_timeout(2500)
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    file = IMAGES / f"page-{view}-{look}.webp"
    shot.save(file, quality=80, method=6)
    if file.stat().st_size > LONGEST_BYTES:
        raise ValueError(f"{file.name} has {file.stat().st_size:,} bytes; at most {LONGEST_BYTES:,} were expected")
    page.context.close()


def main(names: list[str]) -> None:
    """All pictures, or those of some views."""
    expect.set_options(timeout=600_000)
    with tempfile.TemporaryDirectory(prefix="emoji-", dir="/tmp") as folder:  # it is seen in the pictures
        here = Path(folder)
        build = [sys.executable, str(Path(__file__).with_name("browser_data.py")), folder, "http://127.0.0.1:9", "all"]
        subprocess.run(build, check=True)
        options = ("--write", "--pictures", str(here / "pictures"))
        with (
            serve(here / "test.db", here / "log", *options, CLIPQL_MODEL="clipql/emoji") as served,
            sync_playwright() as playwright,
        ):
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            for view in names or VIEWS:
                for look in LOOKS:
                    take(browser, served.address, view, look)
            browser.close()


if __name__ == "__main__":
    main(sys.argv[1:])
