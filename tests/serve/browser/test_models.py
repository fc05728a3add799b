"""Columns whose model is not at hand, or not known."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from browser_steps import captions, meanwhile, painted, search, settled
from browser_support import serve
from playwright.sync_api import Page, Route, expect

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


def test_without_a_model_words_are_sent_once_and_again_when_asked_to(page: Page) -> None:
    told = {"error": "the model is not on this machine", "code": 0, "model": MISSING}
    asked: list[Route] = []

    def refuse(route: Route) -> None:
        asked.append(route)
        route.fulfill(status=503, json=told)

    def words(route: Route) -> bool:
        return '"text"' in (route.request.post_data or "")

    page.route("**/api/search", lambda route: refuse(route) if words(route) else route.continue_())
    models: list[str] = []
    page.on("request", lambda sent: models.append(sent.url) if sent.url.endswith("/api/models") else None)
    box = page.get_by_label("Describe a picture")
    notice = page.locator("#notice")
    for letters in ("c", "ca", "cat", "cat f"):
        box.fill(letters)
        painted(page)
        expect(notice).to_contain_text(f"need the model {MISSING}")
        expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")
    page.get_by_role("link", name="Map").click()
    painted(page)
    page.get_by_role("link", name="Pictures").click()
    painted(page)
    assert (len(asked), len(models)) == (1, 1)
    # what needs no model is searched for
    page.get_by_label("Clear the search").click()
    settled(page)
    expect(notice).to_be_hidden()
    box.fill("cat")
    expect(notice).to_contain_text(f"need the model {MISSING}")
    box.press("Enter")
    meanwhile(page, lambda: len(asked) == 2, "Enter has asked again")
    expect(notice).to_contain_text(f"need the model {MISSING}")
    page.unroute("**/api/search")  # it was pulled meanwhile
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".tile .caption").first).to_contain_text("cat")
    expect(notice).to_be_hidden()
