"""Takes the pictures of the page in docs/img, of all bundled emoji: python tests/serve/browser/take_pictures.py"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from browser_support import serve
from PIL import Image
from playwright.sync_api import Page, expect, sync_playwright

ROOT = Path(__file__).parents[3]
SIZE = {"width": 1280, "height": 800}


def take(page: Page, name: str) -> None:
    """A screenshot in fewer shades, which no eye sees and which halves the file: a README is read by many."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    fewer = picture.point(lambda shade: min(255, (shade + 2) // 4 * 4))
    fewer.save(ROOT / "docs" / "img" / name, optimize=True)


def main() -> None:
    """Both pictures."""
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        build = [sys.executable, str(Path(__file__).with_name("browser_data.py")), folder, "http://127.0.0.1:9", "all"]
        subprocess.run(build, check=True)
        with (
            serve(here / "test.db", here / "log", CLIPQL_MODEL="clipql/emoji") as served,
            sync_playwright() as playwright,
        ):
            browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
            page = browser.new_page(viewport=SIZE)
            page.goto(f"{served.address}#pictures?table=emoji&q=cat&with=1~heart")
            page.wait_for_selector(".tile.loaded")
            page.reload()  # the first search has loaded the model
            page.wait_for_selector(".tile.loaded")
            page.evaluate("document.activeElement.blur()")
            page.locator(".tile").nth(2).hover()
            page.wait_for_timeout(2500)
            take(page, "page-search.png")
            page.goto(f"{served.address}#map?table=emoji&q=animal&colour=category")
            page.wait_for_selector(".map-list li")
            said = page.locator(".map-said")
            expect(said).to_contain_text("to choose", timeout=600_000)
            expect(said).not_to_contain_text("better", timeout=600_000)
            page.wait_for_timeout(4000)
            page.mouse.move(620, 480)
            page.wait_for_timeout(1500)
            take(page, "page-map.png")
            browser.close()


if __name__ == "__main__":
    main()
