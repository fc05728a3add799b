"""Going from one thing to the next: other tables, other addresses, back, and several pictures at once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from browser_data import EMOJI
from browser_steps import answer, captions, chips, drop, ids, painted, search, settled, shows, until
from browser_support import Served, serve
from playwright.sync_api import Page, Route, expect

import clipql

UNSAFE = "6"  # the first row of the table web that is not safe


def test_another_table_shows_its_own_pictures_though_its_rows_have_the_same_numbers(page: Page) -> None:
    before = captions(page)
    chosen = page.get_by_label("Table").locator("option").filter(has_text=re.compile("^web"))
    page.get_by_label("Table").select_option(chosen.get_attribute("value"))
    expect(page).to_have_url(re.compile("table=web"))
    settled(page)
    assert captions(page)[2:] != before[2 : len(captions(page))]
    assert captions(page)[1] == "an address that is a script"
    expect(page.locator(".tile[data-id='2'] .size")).to_have_text("420 × 400")
    page.locator(".tile[data-id='2'] .open").click()
    expect(page.get_by_role("dialog").locator("dt").filter(has_text="url")).to_be_visible()
    page.evaluate("location.hash = '#pictures?table=emoji&row=2'")
    expect(page.get_by_role("dialog").locator("dt").filter(has_text="image_path")).to_be_visible()


@pytest.mark.parametrize("safe", ["safe", "blur"])
def test_what_is_not_safe_is_veiled_in_details_and_chips_too(
    open_page: Callable[..., Page], served: Served, safe: str
) -> None:
    page = open_page(f"{served.address}#pictures?table=web&safe={safe}&row={UNSAFE}&like=1~{UNSAFE}")
    picture = page.locator(".details-picture")
    expect(picture.locator("img")).to_have_css("filter", re.compile("blur"))
    expect(page.locator(".chip-picture")).to_have_css("filter", re.compile("blur"))
    picture.get_by_role("button", name="Show this picture").click()
    expect(picture.locator("img")).to_have_css("filter", "none")


def test_a_picture_is_veiled_before_it_is_known_whether_it_is_safe(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}healthz")
    held: list[Route] = []
    holding = True
    page.route("**/api/tables", lambda route: held.append(route) if holding else route.continue_())
    page.goto(f"{served.address}#pictures?table=web&row={UNSAFE}")
    picture = page.locator(".details-picture img")
    expect(picture).to_have_css("filter", re.compile("blur"))
    holding = False  # for the requests after these
    for route in held:
        route.continue_()
    settled(page)
    expect(picture).to_have_css("filter", re.compile("blur"))


def test_stepping_to_a_picture_that_is_not_safe_shows_it_veiled(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(f"{served.address}#pictures?table=web&safe=blur&row=5")
    settled(page)
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile(f"row={UNSAFE}"))
    expect(page.locator(".details-picture img")).to_have_css("filter", re.compile("blur"))
    page.keyboard.press("ArrowRight")
    expect(page).to_have_url(re.compile("row=7"))
    expect(page.locator(".details-picture img")).to_have_css("filter", "none")


def test_all_of_several_picked_pictures_are_taken(page: Page, served: Served) -> None:
    paths = sorted((served.folder / "pictures").glob("*.png"))[:3]
    page.set_input_files("#file", paths)
    expect(page.locator(".chip")).to_have_count(3)
    page.go_back()
    expect(page.locator(".chip")).to_have_count(0)


def test_back_brings_the_words_back_with_their_pictures(page: Page) -> None:
    words = page.get_by_label("Describe a picture")
    for text in ("dog", "house"):
        words.fill(text)
        words.press("Enter")
        shows(page, answer(page, text))
    page.go_back()
    shows(page, answer(page, "dog"))
    expect(words).to_have_value("dog")


def test_an_address_without_a_table_is_about_the_one_that_is_open(page: Page) -> None:
    page.evaluate("location.hash = '#pictures?q=cat'")
    shows(page, answer(page, "cat"))
    page.evaluate("location.hash = '#map'")
    expect(page.locator(".map-list li")).to_have_count(EMOJI)
    expect(page).to_have_url(re.compile(r"#map\?table=emoji"))


def test_a_table_that_is_not_there_leaves_nothing_of_another(page: Page) -> None:
    page.evaluate("location.hash = '#pictures?table=nosuch'")
    expect(page.locator("#notice")).to_contain_text("There is no table nosuch here.")
    assert ids(page) == []
    expect(page.get_by_role("button", name="Export")).to_be_hidden()
    page.get_by_role("button", name="Open emoji").click()
    expect(page.locator(".tile.loaded").first).to_be_visible()
    expect(page.locator("#notice")).to_be_hidden()


def test_a_table_without_vectors_is_opened_with_sql(open_page: Callable[..., Page], tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "some.db") as db:
        db.sql("CREATE TABLE plain (a String) ENGINE = MergeTree ORDER BY a")
        db.sql("INSERT INTO plain VALUES ('seen')")
    with serve(tmp_path / "some.db", tmp_path / "log") as running:
        page = open_page(f"{running.address}#pictures?table=plain")
        expect(page.locator("#notice")).to_contain_text("The table plain has no vectors")
        page.get_by_role("button", name="Open it in SQL").click()
        page.get_by_role("button", name="Run").click()
        expect(page.locator(".sql-table td")).to_have_text(["seen"])
        expect(page.locator("#notice")).to_be_hidden()


def test_files_that_are_no_pictures_do_not_stay_in_the_query(page: Page, served: Served) -> None:
    good = sorted((served.folder / "pictures").glob("*.png"))[0].read_bytes()
    page.set_input_files(
        "#file",
        [
            {"name": "good.png", "mimeType": "image/png", "buffer": good},
            {"name": "words.png", "mimeType": "image/png", "buffer": b"no picture"},
        ],
    )
    expect(page.locator(".chip")).to_have_count(1)
    expect(page.locator("#notice")).to_contain_text("words.png is damaged, or no picture")
    settled(page)
    expect(page.locator("#notice")).to_contain_text("words.png is damaged, or no picture")
    # what a browser draws and the server does not
    drop(page, b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'><rect/></svg>", "image/svg+xml")
    expect(page.locator("#notice")).to_contain_text("cannot be read")
    expect(page.locator(".chip")).to_have_count(1)
    page.reload()
    settled(page)
    expect(page.locator(".tile.loaded").first).to_be_visible()
    expect(page.locator(".chip")).to_have_count(1)


def test_a_sign_before_the_first_word_counts(page: Page) -> None:
    search(page, "- cat")
    shows(page, answer(page, {"text": "cat", "weight": -1}))
    assert chips(page) == ["Minus cat, weight 1"]
    page.get_by_role("button", name="with…").click()
    page.get_by_label("Words to add").fill("heart")
    page.get_by_label("Words to add").press("Enter")
    expect(page.locator(".chip")).to_have_count(2)
    page.get_by_label("Clear the search").click()
    expect(page.locator(".chip")).to_have_count(0)
    expect(page.get_by_label("Clear the search")).to_be_hidden()


def test_an_address_is_not_searched_as_words(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(f"{served.address}#pictures?table=web")
    page.wait_for_selector(".tile.loaded")
    address = page.locator(".tile .facts a:not(.archive)").nth(3).get_attribute("href")
    assert address is not None
    asked = []
    page.on("request", lambda sent: asked.append(sent.post_data) if sent.url.endswith("/api/search") else None)
    page.get_by_label("Describe a picture").fill(address)
    expect(page.locator("#notice")).to_contain_text("That is an address")
    assert [text for text in asked if address in json.dumps(text)] == []
    page.get_by_role("button", name="Look for the row with this address").click()
    until(page, "document.querySelectorAll('.tile[data-id]').length === 1")
    expect(page.locator(".tile .facts a:not(.archive)")).to_have_attribute("href", address)
    expect(page.locator("#notice")).to_be_hidden()


def test_the_token_can_be_entered_after_its_dialog_was_left(open_page: Callable[..., Page], tmp_path: Path) -> None:
    clipql.connect(tmp_path / "empty.db").close()
    with serve(tmp_path / "empty.db", tmp_path / "log", CLIPQL_TOKEN="open sesame") as running:
        page = open_page(running.address)
        expect(page.get_by_role("textbox", name="Token")).to_be_visible()
        page.keyboard.press("Escape")
        page.get_by_role("button", name="Enter the token").click()
        page.get_by_role("textbox", name="Token").fill("open sesame")
        page.get_by_role("button", name="Enter", exact=True).click()
        expect(page.get_by_role("heading", name="Nothing to search yet")).to_be_visible()


@pytest.mark.parametrize("format", ["JSON", "CSV"])
def test_rows_almost_the_same_are_counted_and_exported_once(
    open_page: Callable[..., Page], served: Served, format: str
) -> None:
    page = open_page(f"{served.address}#pictures?table=web&safe=all&fold=1")
    settled(page)
    expect(page.locator("#status")).to_have_text(re.compile(r"\d+ pictures?, \d+ more almost like them"))
    page.get_by_role("button", name="Export").click()
    chosen = page.get_by_role("dialog").get_by_label("Rows").locator("option").first
    expect(chosen).to_have_text(re.compile(r"the \d+ shown"))
    shown = int(re.sub(r"\D", "", chosen.inner_text()))
    with page.expect_download() as download:
        page.get_by_role("dialog").get_by_role("button", name=format).click()
    text = Path(download.value.path()).read_text()
    assert (len(json.loads(text)["rows"]) if format == "JSON" else text.count("\n") - 1) == shown


def test_every_number_of_rows_that_export_offers_can_be_had(page: Page) -> None:
    search(page, "star")
    page.get_by_role("button", name="Export").click()
    dialog = page.get_by_role("dialog")
    for offered in dialog.get_by_label("Rows").locator("option").all():
        dialog.get_by_label("Rows").select_option(offered.get_attribute("value"))
        for format in ("JSON", "CSV", "Parquet"):
            dialog.get_by_role("button", name=format).click()
            expect(dialog.get_by_role("button", name=format)).to_be_enabled()
            expect(dialog.get_by_role("status")).to_have_text("Saved.")


def test_back_closes_the_panel_of_filters_and_what_was_typed_last_is_not_taken(page: Page) -> None:
    search(page, "cat")
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("WHERE, in SQL").fill("letters > 5")
    page.go_back()
    expect(page.get_by_role("dialog")).to_have_count(0)
    painted(page)
    assert "where" not in page.url
    assert "q=cat" in page.url


def test_what_ranks_otherwise_than_usual_is_seen_beside_the_filters_and_taken_away_there(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}#pictures?table=emoji&q=cat&hybrid=1&recall=exact")
    pills = page.locator(".pill")
    expect(pills).to_have_text(["the words themselves, too", "all rows compared"])
    page.get_by_role("button", name="Find as many of the nearest as usual").click()
    expect(pills).to_have_text(["the words themselves, too"])
    expect(pills).not_to_have_class(re.compile("wrong"))
    page.get_by_label("Describe a picture").fill("cat - dog")
    expect(pills).to_have_class(re.compile("wrong"))
    expect(pills).to_have_attribute("title", "Not used: the search is not of one text alone")
    page.get_by_role("button", name="Rank by meaning alone").click()
    expect(pills).to_have_count(0)
    expect(page).not_to_have_url(re.compile("hybrid"))


def test_keys_go_on_from_the_first_picture_of_another_search_begun_by_a_key(page: Page) -> None:
    page.locator(".tile[data-id] .open").nth(5).focus()
    liked = page.evaluate("document.activeElement.closest('.tile').dataset.id")
    page.keyboard.press("m")
    shows(page, answer(page, {"id": liked}))
    until(page, "document.activeElement.closest('.tile') === document.querySelector('.tile')")
    page.keyboard.press("ArrowRight")
    until(page, "document.activeElement.closest('.tile') === document.querySelectorAll('.tile')[1]")
    page.go_back()
    settled(page)
    until(page, "document.activeElement.closest('.tile') !== null")
