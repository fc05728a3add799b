"""A column of numbers mixed into the order, with a weight."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from pathlib import Path

from browser_data import EMOJI
from browser_steps import answer, ids, search, settled, shows, until
from browser_support import Served
from playwright.sync_api import Page, expect

SCORE = {"column": "letters", "weight": 0.02}


def choose(page: Page, column: str, weight: str) -> None:
    """Set the order in the panel of filters, and leave it."""
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Mixed into the order").select_option(column)
    page.get_by_label("Its weight").fill(weight)
    page.get_by_role("dialog").get_by_role("button", name="Close").click()
    settled(page)


def test_a_column_is_mixed_into_the_order_with_a_weight(page: Page) -> None:
    search(page, "cat")
    alone = answer(page, "cat")
    choose(page, "letters", "0.02")
    wanted = answer(page, "cat", score=SCORE)
    assert wanted[:30] != alone[:30]
    shows(page, wanted)
    expect(page).to_have_url(re.compile(r"score=0\.02(~|%7E)letters"))
    expect(page.locator(".pill")).to_have_text(["order: distance − 0.02 × letters"])
    expect(page.get_by_label("Least similarity shown")).to_be_hidden()  # rows are not by their similarity
    page.reload()
    shows(page, wanted)
    page.get_by_role("button", name="Order by similarity alone").click()
    shows(page, alone)
    expect(page).not_to_have_url(re.compile("score="))
    page.go_back()
    shows(page, wanted)


def test_a_weight_that_is_no_number_is_not_searched_by(page: Page) -> None:
    search(page, "cat")
    choose(page, "letters", "-1")
    wanted = answer(page, "cat", score={"column": "letters", "weight": -1})
    shows(page, wanted)
    page.get_by_role("button", name="Filters").click()
    weight = page.get_by_label("Its weight")
    for text in ("", "much", "1e99"):
        weight.fill(text)
        expect(weight).to_have_attribute("title", "a weight is a number, such as 0.1 or -2")
    shows(page, wanted)
    expect(page.locator(".pill")).to_have_text(["order: distance + 1 × letters"])


def test_all_pages_of_a_mixed_order_and_its_sql_have_the_same_rows(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}#pictures?table=emoji&q=cat&score=0.02~letters&filter=ge~letters~5")
    settled(page)
    until(page, "(window.scrollTo(0, document.documentElement.scrollHeight), document.querySelector('.end') !== null)")
    shown = page.eval_on_selector_all(".tile[data-id]", "tiles => tiles.map(t => t.dataset.id)")
    assert shown == answer(page, "cat", score=SCORE, where="letters >= 5", k=EMOJI)
    assert len(shown) > 100
    page.get_by_role("button", name="Show SQL").click()
    page.get_by_role("button", name="Edit and run").click()
    page.get_by_role("button", name="Run", exact=True).click()
    until(page, "count => document.querySelectorAll('.sql-table tbody tr').length === count", len(shown))
    rows = page.eval_on_selector_all(".sql-table tbody tr", "rows => rows.map(row => row.innerText.split(/\\s+/))")
    assert all(id in row for id, row in zip(shown, rows, strict=True))


def test_a_file_of_a_mixed_order_has_its_rows_in_that_order_without_those_that_safe_hides(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}#pictures?table=web&q=cat&score=0.5~similarity")
    settled(page)
    page.get_by_role("button", name="Export").click()
    with page.expect_download() as download:
        page.get_by_role("dialog").get_by_role("button", name="CSV").click()
    with Path(download.value.path()).open() as file:
        exported = [row["width"] for row in csv.DictReader(file)]
    wanted = answer(page, "cat", table="web", score={"column": "similarity", "weight": 0.5}, k=len(exported))
    assert exported == [str(400 + 10 * int(row)) for row in wanted]
    assert len(exported) >= 30
    assert all(int(row) % 7 != 6 for row in wanted)


def test_nothing_searched_for_the_column_alone_ranks(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(f"{served.address}#pictures?table=emoji&score=1~letters")
    settled(page)
    wanted = answer(page, score={"column": "letters", "weight": 1})
    shows(page, wanted)
    assert ids(page)[:10] != sorted(ids(page), key=int)[:10]


def test_an_order_that_cannot_be_used_is_seen_to_be_unused(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(f"{served.address}#pictures?table=emoji&q=cat&score=1~nosuch")
    pill = page.locator(".pill")
    expect(pill).to_have_class(re.compile("wrong"))
    expect(pill).to_have_attribute("title", "Not used: there is no column nosuch of numbers")
    shows(page, answer(page, "cat"))
    page.evaluate("location.hash = '#pictures?table=emoji&q=cat&score=1~letters&hybrid=1'")
    expect(page.locator(".pill.wrong")).to_have_attribute("title", "Not used: the words themselves rank, too")
    shows(page, answer(page, "cat", hybrid=True))
    page.evaluate("location.hash = '#pictures?table=emoji&q=cat&score=nothing'")
    expect(pill).to_have_count(0)


def test_another_table_has_an_order_of_its_own(page: Page) -> None:
    search(page, "cat")
    choose(page, "letters", "0.02")
    chosen = page.get_by_label("Table").locator("option").filter(has_text=re.compile("^web"))
    page.get_by_label("Table").select_option(chosen.get_attribute("value"))
    expect(page).to_have_url(re.compile("table=web"))
    expect(page).not_to_have_url(re.compile("score="))
