"""The panel of facets: what the rows that match now have, and filtering by a click or a brush."""

from __future__ import annotations

import re
from collections.abc import Callable

from browser_data import EMOJI, WEB
from browser_steps import settled
from browser_support import Served
from playwright.sync_api import Page, expect

UNSAFE = len([i for i in range(WEB) if i % 7 == 6])


def test_a_click_on_a_value_filters_and_another_frees_it(page: Page) -> None:
    page.get_by_role("button", name="Facets").click()
    panel = page.get_by_role("dialog", name="Facets")
    expect(panel.get_by_role("status")).to_have_text(f"{EMOJI} of {EMOJI} rows match")
    first = panel.get_by_role("region", name="category").get_by_role("button").first
    name, rows = first.locator("span").all_inner_texts()
    first.click()
    expect(panel.get_by_role("status")).to_have_text(f"{rows} of {EMOJI} rows match")
    expect(page.locator(".pill")).to_have_text([f"category = {name}"])
    expect(page.locator("#status")).to_contain_text(f"{rows} pictures")
    expect(first).to_have_attribute("aria-pressed", "true")
    expect(first).to_be_focused()
    first.press("Enter")
    expect(panel.get_by_role("status")).to_have_text(f"{EMOJI} of {EMOJI} rows match")
    expect(page.locator(".pill")).to_have_count(0)


def test_a_histogram_is_brushed_and_says_what_safe_hides(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(f"{served.address}#pictures?table=web")
    settled(page)
    page.get_by_role("button", name="Facets").click()
    panel = page.get_by_role("dialog", name="Facets")
    expect(panel.get_by_role("status")).to_have_text(f"{WEB - UNSAFE} of {WEB} rows match, {UNSAFE} hidden by Safe")
    bars = panel.get_by_role("group", name="Histogram of width").get_by_role("button")
    expect(bars).to_have_count(24)
    bars.nth(0).hover()
    page.mouse.down()
    bars.nth(11).hover()
    page.mouse.up()
    expect(page.locator(".pill")).to_have_text([re.compile(r"^width ≥ 400$"), re.compile(r"^width ≤ 69\d")])
    half = [i for i in range(WEB) if 400 + 10 * i <= 400 + 12 * 580 / 24]
    expect(panel.get_by_role("status")).to_contain_text(f"{len([i for i in half if i % 7 != 6])} of {WEB} rows match")
    panel.get_by_role("button", name="all").click()
    expect(panel.get_by_role("status")).to_contain_text(f"{WEB - UNSAFE} of {WEB} rows match")


def test_a_value_among_many_is_found_by_a_part_of_it(page: Page) -> None:
    page.get_by_role("button", name="Facets").click()
    panel = page.get_by_role("dialog", name="Facets")
    section = panel.get_by_role("region", name="key")
    expect(section.get_by_role("button")).to_have_count(0)
    key = page.request.get(f"{page.url.partition('#')[0]}api/rows/default/emoji/7").json()["values"]["key"]
    section.get_by_role("searchbox").fill(key.upper())
    section.get_by_role("button", name=key).first.click()
    expect(page.locator(".pill")).to_have_text([f"key = {key}"])
    expect(panel.get_by_role("status").first).to_have_text(f"1 of {EMOJI} rows match")
    expect(section.get_by_role("searchbox")).to_have_value(key.upper())
    expect(section.get_by_role("button", name=key)).to_have_attribute("aria-pressed", "true")


def test_a_column_that_only_numbers_the_rows_has_no_histogram(page: Page) -> None:
    page.get_by_role("button", name="Facets").click()
    panel = page.get_by_role("dialog", name="Facets")
    expect(panel.get_by_role("region", name="letters")).to_be_visible()
    assert panel.get_by_role("region").evaluate_all("all => all.map(one => one.getAttribute('aria-label'))") == [
        "category",
        "letters",
        "key",  # of words: to be looked for
    ]
