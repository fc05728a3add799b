"""The page works in Firefox, too: it is used there once as a whole, by keys and by mouse, on a desk and on a phone."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from browser_steps import answer
from browser_support import Served
from patience import LAST_NET_SECONDS
from playwright.sync_api import Page

HERE = Path(__file__).parent
FIREFOX = ("firefox-esr", "firefox")


def used_in_firefox(address: str, cat: list[str]) -> dict[str, Any]:
    """What is seen when the page is used as firefox.mjs does. cat: the ids that "cat" must show first."""
    path = next((found for name in FIREFOX if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip(f"no Firefox: looked for {', '.join(FIREFOX)} on PATH; on Debian, apt-get install firefox-esr")
    command = ["node", str(HERE / "firefox.mjs"), address, path, str(LAST_NET_SECONDS), json.dumps(cat)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * LAST_NET_SECONDS)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_the_page_is_used_in_firefox_from_the_first_word_to_a_phone(served: Served, page: Page) -> None:
    expected = answer(page, "cat", url=served.address)
    seen = used_in_firefox(served.address, expected[:20])
    assert "failed" not in seen, seen
    assert seen["browser"].lower().startswith("firefox/")
    assert [seen["first"], seen["second"]] == expected[:2]
    assert "1" in seen["tray"]
    assert len(seen["rows"]) == 3
    assert seen["rows"] == sorted(seen["rows"])
    assert seen["map"] > 0
    assert seen["wider"] <= 0
    assert not seen["mistakes"]
