"""Columns whose model is not at hand, or not known."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from browser_steps import captions, search, settled
from browser_support import serve
from playwright.sync_api import Page, expect

import clipql
from clipql.encode.clip import open_encoder

MISSING = "openai/clip-vit-large-patch14"


def test_without_a_model_captions_can_be_read_instead(page: Page) -> None:
    told = {"error": "the model is not on this machine\n(looked in …)", "code": 0, "model": MISSING}
    page.route("**/api/search", lambda route: route.fulfill(status=503, json=told))
    page.get_by_label("Describe a picture").fill("cat")
    notice = page.locator("#notice")
    expect(notice).to_contain_text(f"Words and pictures need the model {MISSING}")
    expect(notice).not_to_contain_text("looked in")
    expect(notice.locator("code")).to_have_text(f"clipql model pull {MISSING}")
    letters = page.get_by_role("button", name="Find these letters in the captions")
    expect(letters).to_be_visible()  # the search for more of the first pictures may have failed before
    page.unroute("**/api/search")
    letters.click()
    settled(page)
    expect(page.locator(".pill")).to_have_text(["caption contains “cat”"])
    assert captions(page)
    assert all("cat" in caption for caption in captions(page))


def test_a_column_without_a_model_promises_no_words_and_may_use_one_at_hand(
    open_page: Callable[..., Page], tmp_path: Path
) -> None:
    words = ["cat", "dog", "star", "fish"]
    with clipql.connect(tmp_path / "some.db") as db:
        db.sql("CREATE TABLE some (caption String, v Array(Float32)) ENGINE = MergeTree ORDER BY caption")
        for word, vector in zip(words, open_encoder("clipql/emoji").encode_texts(words), strict=True):
            db.sql("INSERT INTO some VALUES ({c:String}, {v:Array(Float32)})", c=word, v=vector)
    environment = {"CLIPQL_MODEL": MISSING, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path)}
    with serve(tmp_path / "some.db", tmp_path / "log", **environment) as running:
        page = open_page(f"{running.address}#pictures?table=some")
        settled(page)
        box = page.get_by_label("Describe a picture")
        expect(box).to_have_attribute("placeholder", re.compile("No model for words here"))
        box.fill("star")
        expect(page.locator("#notice")).to_contain_text(f"Words and pictures need the model {MISSING}")
        page.get_by_label("Model to search with").select_option("clipql/emoji")
        expect(page.locator(".pill")).to_have_text(["model clipql/emoji"])
        settled(page)
        expect(page.locator(".tile .caption").first).to_have_text("star")
        expect(page.locator("#notice")).to_be_hidden()
        expect(page).to_have_url(re.compile("model=clipql%2Femoji"))
        expect(box).to_have_attribute("placeholder", "Describe a picture")
        search(page, "fish")
        expect(page.locator(".tile .caption").first).to_have_text("fish")
