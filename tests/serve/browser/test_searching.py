"""Searching on the page: words, pictures, mixtures, filters, scrolling, the address."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
from browser_data import EMOJI
from browser_steps import (
    answer,
    captions,
    chips,
    drop,
    first_is,
    hover_action,
    ids,
    meanwhile,
    painted,
    search,
    settled,
    shows,
    until,
)
from browser_support import Served
from patience import LAST_NET_SECONDS
from playwright.sync_api import Page, Route, expect


def picture_of(served: Served, page: Page, number: int) -> bytes:
    """The file of the number-th picture shown."""
    address = f"{served.address}api/rows/default/emoji/{ids(page)[number]}"
    row = page.request.get(address, timeout=1000 * LAST_NET_SECONDS).json()
    return Path(row["values"]["image_path"]).read_bytes()


def test_words_are_searched_while_they_are_typed(page: Page) -> None:
    page.get_by_label("Describe a picture").press_sequentially("cat", delay=30)
    shows(page, answer(page, "cat"))
    expect(page).to_have_url(re.compile(r"#pictures\?table=emoji&q=cat$"))
    assert "cat" in page.title()
    expect(page.locator(".tile .similarity").first).to_be_visible()


def test_a_key_that_stands_alone_waits_for_no_timer(page: Page) -> None:
    page.evaluate("window.setTimeout = () => 0")
    page.get_by_label("Describe a picture").fill("cat")
    shows(page, answer(page, "cat"))


def test_pictures_on_their_way_make_way_for_a_search_and_are_asked_for_after_it(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}healthz")
    pictures: list[Route] = []
    searches: list[Route] = []
    page.route("**/api/thumbnail/**", lambda route: pictures.append(route))
    page.goto(f"{served.address}#pictures?table=emoji")
    meanwhile(page, lambda: pictures, "pictures are asked for")

    def hold_dogs(route: Route) -> None:  # a later page of the search before may come between
        if "dog" in (route.request.post_data or ""):
            searches.append(route)
        else:
            route.continue_()

    page.route("**/api/search", hold_dogs)
    for fails in (True, False):
        page.get_by_label("Describe a picture").fill(f"dog {fails}")
        meanwhile(page, lambda: searches, "the search is asked for")
        assert page.locator(".tile[data-id]").count() > 20
        assert page.locator(".tile img[src]").count() == 0
        if fails:
            searches.pop().fulfill(status=500, json={"error": "not now"})
            until(page, "document.querySelectorAll('.tile img[src]').length > 20")
    page.unroute("**/api/thumbnail/**")
    searches.pop().continue_()
    shows(page, answer(page, "dog False"))
    until(page, "document.querySelectorAll('.tile.loaded').length > 20")


def test_words_are_looked_for_beside_meaning_where_that_is_switched_on(page: Page) -> None:
    search(page, "thinking face")
    page.get_by_role("button", name="Filters").click()
    with page.expect_response(lambda reply: '"hybrid":true' in (reply.request.post_data or "")) as told:
        page.get_by_label("look for the words themselves, too").check()
    rows = told.value.json()["rows"]
    settled(page)
    expect(page).to_have_url(re.compile(r"&hybrid=1$"))
    assert ids(page)[:5] == [row["id"] for row in rows[:5]]
    assert "thinking face" in rows[0]["caption"]
    assert rows[0]["hybrid_score"] >= rows[1]["hybrid_score"] > 0


def test_a_late_answer_to_older_words_is_dropped(page: Page) -> None:
    def hold_cats(route: Route) -> None:
        asked = json.loads(route.request.post_data or "{}")
        if asked["terms"] == [{"text": "cat", "weight": 1}]:
            held.append(route)
        else:
            route.continue_()

    held: list[Route] = []
    page.route("**/api/search", hold_cats)
    words = page.get_by_label("Describe a picture")
    words.fill("cat")
    meanwhile(page, lambda: held, "the search for cats is held")
    words.fill("dog")
    dogs = answer(page, "dog")
    shows(page, dogs)
    for route in held:
        route.abort()  # the page may have cancelled it already: then nothing tells that it has failed
    painted(page)
    shows(page, dogs)
    expect(page.locator("#notice")).to_be_hidden()


def test_a_dropped_picture_finds_itself_and_outlives_a_reload(
    page: Page, served: Served, open_page: Callable[..., Page]
) -> None:
    wanted = ids(page)[7]
    drop(page, picture_of(served, page, 7))
    expect(page.locator(".chip")).to_have_count(1)
    first_is(page, wanted)
    expect(page).to_have_url(re.compile("picture=1%7E"))
    shown = ids(page)
    page.reload()
    settled(page)
    assert ids(page)[:20] == shown[:20]
    assert chips(page) == ["Plus your picture, weight 1"]

    other = open_page(page.url)
    expect(other.locator("#notice")).to_contain_text("pictures are not part of a link")


def test_a_picture_can_be_picked_or_pasted(page: Page, served: Served) -> None:
    first, second = ids(page)[3], ids(page)[12]
    data = [picture_of(served, page, number) for number in (3, 12)]
    page.set_input_files("#file", {"name": "one.png", "mimeType": "image/png", "buffer": data[0]})
    first_is(page, first)
    page.get_by_label("Leave it out").click()
    page.evaluate(
        """bytes => {
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([new Uint8Array(bytes)], 'pasted.png', { type: 'image/png' }));
            document.dispatchEvent(new ClipboardEvent('paste', { clipboardData, bubbles: true, cancelable: true }));
        }""",
        list(data[1]),
    )
    first_is(page, second)
    drop(page, b"plain words", "text/plain")
    expect(page.locator("#notice")).to_have_text("picture.png is not a picture.")


def test_phrases_and_pictures_are_added_and_taken_away_with_weights(page: Page) -> None:
    search(page, "cat + heart")
    assert chips(page) == ["Plus cat, weight 1", "Plus heart, weight 1"]
    shows(page, answer(page, "cat", "heart"))

    page.get_by_role("button", name="Weigh it less").nth(1).click()
    page.get_by_role("button", name="Plus: change to minus").nth(1).click()
    assert chips(page) == ["Plus cat, weight 1", "Minus heart, weight 0.75"]
    without = ({"text": "cat"}, {"text": "heart", "weight": -0.75})
    shows(page, answer(page, *without))

    added = hover_action(page, 2, "Take away from the search")
    expect(page.locator(".chip")).to_have_count(3)
    shows(page, answer(page, *without, {"id": added, "weight": -0.5}))
    expect(page).to_have_url(re.compile(f"like=-0.5%7E{added}"))
    page.get_by_role("button", name="with…").click()
    page.get_by_label("Words to add").fill("moon")
    page.get_by_label("Words to add").press("Enter")
    assert chips(page)[-1] == "Plus moon, weight 1"
    for _ in range(4):
        page.get_by_role("button", name="Leave it out").first.click()
    expect(page.locator(".chip")).to_have_count(0)


def test_more_like_this_begins_with_the_picture_itself_and_back_returns(page: Page) -> None:
    search(page, "fish")
    before = ids(page)
    liked = hover_action(page, 4, "More like this")
    first_is(page, liked)
    assert page.get_by_label("Describe a picture").input_value() == ""
    page.go_back()
    first_is(page, before[0])
    assert page.get_by_label("Describe a picture").input_value() == "fish"
    assert ids(page)[:20] == before[:20]


def test_filters_are_made_from_the_columns(page: Page) -> None:
    page.get_by_role("button", name="Filters").click()
    panel = page.get_by_role("dialog", name="Filters")
    panel.get_by_role("button", name="Another column").click()
    panel.get_by_label("Column").select_option("category")
    panel.get_by_label("Comparison").select_option("has")
    panel.get_by_label("Value").fill("ANIMALS")
    expect(page.locator(".pill")).to_have_text(["category contains “ANIMALS”"])
    panel.get_by_label("WHERE, in SQL").fill("letters < 8 -- short names")
    panel.get_by_label("Close").click()
    expect(page.locator(".pill")).to_have_count(2)
    settled(page)
    until(page, "[...document.querySelectorAll('.caption')].every(c => c.textContent.trim().length < 8)")
    expect(page).to_have_url(re.compile("filter=has%7Ecategory%7EANIMALS"))
    assert captions(page)
    page.get_by_role("button", name="Clear all").click()
    expect(page.locator(".pill")).to_have_count(0)


def test_a_wrong_condition_is_reported_where_it_is_typed(page: Page) -> None:
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("WHERE, in SQL").fill("no_such_column > 1")
    page.get_by_label("WHERE, in SQL").press("Control+Enter")
    expect(page.locator("#filter-error")).to_contain_text("no_such_column")
    page.get_by_label("WHERE, in SQL").fill("letters > 1000")
    page.get_by_label("WHERE, in SQL").press("Control+Enter")
    expect(page.locator("#filter-error")).to_have_text("")
    page.get_by_role("dialog").get_by_label("Close").click()
    expect(page.get_by_role("heading", name="No pictures here")).to_be_visible()
    page.get_by_role("button", name="Without the filters").click()
    expect(page.locator(".tile.loaded").first).to_be_visible()


def test_scrolling_shows_every_row_once(page: Page) -> None:

    def at_the_end() -> bool:
        page.evaluate("window.scrollTo(0, document.documentElement.scrollHeight)")
        return page.get_by_text("That is all of them.").is_visible()

    meanwhile(page, at_the_end, "the last picture is shown")
    found = ids(page)
    assert len(found) == EMOJI
    assert sorted(map(int, found)) == list(range(EMOJI))
    expect(page.locator("#status")).to_contain_text(f"{EMOJI} pictures")


def test_a_shared_address_shows_the_same(page: Page, open_page: Callable[..., Page]) -> None:
    search(page, "face - smile")
    page.get_by_role("radio", name="Captions").click()
    settled(page)
    page.wait_for_url("**column=text_embedding**")
    page.locator(".tile .open").nth(1).click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.wait_for_url("**row=**")  # the address follows what is shown a moment later
    settled(page)
    other = open_page(page.url)
    expect(other.get_by_role("dialog").get_by_role("heading")).to_have_text(captions(page)[1])
    settled(other)
    assert ids(other)[:30] == ids(page)[:30]
    assert chips(other) == chips(page)
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page).not_to_have_url(re.compile("row="))


def test_the_details_show_every_value_and_step_with_arrows(page: Page) -> None:
    page.get_by_label("Describe a picture").press("ArrowDown")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("heading")).to_have_text(captions(page)[0])
    assert dialog.locator("dt").all_inner_texts() == [
        "row",
        "id",
        "caption",
        "category",
        "image_path",
        "width",
        "height",
        "letters",
        "key",
    ]
    page.keyboard.press("ArrowRight")
    expect(dialog.get_by_role("heading")).to_have_text(captions(page)[1])
    expect(page).to_have_url(re.compile(f"row={ids(page)[1]}"))
    page.go_back()
    expect(dialog).to_have_count(0)


def test_results_are_exported(page: Page) -> None:
    search(page, "star")
    page.get_by_role("button", name="Export").click()
    saved = {}
    for format in ("JSON", "CSV", "Parquet"):
        with page.expect_download() as download:
            page.get_by_role("dialog").get_by_role("button", name=format).click()
        saved[download.value.suggested_filename] = Path(download.value.path())
    first = captions(page)[0]
    assert json.loads(saved["emoji.json"].read_bytes())["rows"][0]["caption"] == first
    assert next(csv.DictReader(saved["emoji.csv"].read_text().splitlines()))["caption"] == first
    assert pq.read_table(saved["emoji.parquet"]).column("caption")[0].as_py() == first


def test_everything_can_be_done_with_keys(page: Page) -> None:
    page.wait_for_selector("[data-band]")  # a press between the pictures begins a band, and leaves the box all the same
    page.locator("body").click(position={"x": 5, "y": 400})
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="How to search")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("/")
    page.keyboard.type("dog")
    shown = answer(page, "dog")
    shows(page, shown)
    page.keyboard.press("ArrowDown")
    here = "document.activeElement.closest('.tile').dataset.id"
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp"):
        page.keyboard.press(key)
        seen.append(page.evaluate(here))
    assert seen[:3] == [shown[1], shown[2], shown[1]]
    assert seen[3] not in shown[:3]
    assert seen[4] == shown[1]
    page.keyboard.press("m")
    first_is(page, shown[1])
