"""What the page says of a search beside its results: how many rows, what is hidden, whether anything was found."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from browser_data import EMOJI, WEB
from browser_steps import answer, ids, painted, search, settled, until
from browser_support import Served
from playwright.sync_api import Page, Route, expect

UNSAFE = [i for i in range(WEB) if i % 7 == 6]


def test_the_page_says_how_many_match_and_how_many_safe_hides(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(f"{served.address}#pictures?table=web&q=cat")
    settled(page)
    status = page.locator("#status")
    expect(status).to_contain_text(f"{len(UNSAFE)} hidden by Safe")
    page.get_by_role("button", name=f"{len(UNSAFE)} hidden by Safe").click()
    settled(page)
    expect(page.get_by_label("Pictures that are not safe")).to_have_value("blur")
    expect(status).not_to_contain_text("hidden")

    few = [i for i in range(WEB) if 400 + 10 * i < 500]
    page.evaluate("location.hash = '#pictures?table=web&q=cat&filter=le~width~499&where=height=400--all'")
    hidden = len(set(few) & set(UNSAFE))
    expect(status).to_have_text(re.compile(rf"^{len(few) - hidden} pictures · {hidden} hidden by Safe"))


def test_the_first_of_many_pictures_are_told_as_such(open_page: Callable[..., Page], served: Served) -> None:
    def hold_later_pages(route: Route) -> None:
        asked = json.loads(route.request.post_data or "{}")
        held.append(route) if asked["offset"] else route.continue_()

    held: list[Route] = []
    page = open_page(f"{served.address}healthz")
    page.route("**/api/search", hold_later_pages)
    page.goto(f"{served.address}#pictures?table=emoji")
    expect(page.locator("#status")).to_contain_text(f"first 40 of {EMOJI} pictures")


def test_what_an_index_found_is_checked_exactly_in_the_background(
    open_page: Callable[..., Page], served: Served
) -> None:
    def as_by_an_index(route: Route) -> None:
        reply = route.fetch()
        found = json.loads(reply.text())
        exact = json.loads(route.request.post_data or "{}")["exact"]
        rows = found["rows"] if exact else [row for row in found["rows"] if row["id"] != missed]
        route.fulfill(response=reply, json={**found, "rows": rows, "exact": exact})

    page = open_page(f"{served.address}healthz")
    missed = answer(page, "cat", k=40, url=served.address)[3]
    page.route("**/api/search", as_by_an_index)
    page.goto(f"{served.address}#pictures?table=emoji&q=cat")
    trust = page.locator("#trust")
    expect(trust).to_contain_text("checked exactly: 39 of 40")
    assert missed not in ids(page)
    page.get_by_role("button", name="Show the exact ones").click()
    expect(page.locator(f".tile[data-id='{missed}']")).to_be_visible()
    expect(trust).to_contain_text("exact")
    expect(trust).not_to_contain_text("checked")


def test_a_cut_off_leaves_out_what_is_less_similar_and_is_in_the_address(
    open_page: Callable[..., Page], page: Page
) -> None:
    search(page, "cat")
    reply = page.request.post(
        f"{page.url.partition('#')[0]}api/search", data={"table": "emoji", "terms": [{"text": "cat"}], "k": 40}
    )
    similar = [round(1 - row["distance"], 6) for row in reply.json()["rows"]]
    cut = round(sum(similar[4:6]) / 2, 3)
    near = [s for s in similar if s >= cut]
    page.get_by_label("Least similarity shown").evaluate(
        "(input, cut) => { input.step = 'any'; input.value = cut; input.dispatchEvent(new Event('input')); }", cut
    )
    expect(page.locator("#status")).to_contain_text(f"{len(near)} pictures of similarity {cut:.3f} or more")
    assert len(ids(page)) == len(near)
    other = open_page(page.url)
    expect(other.locator("#status")).to_contain_text(f"{len(near)} pictures of similarity {cut:.3f} or more")
    page.get_by_role("button", name="how it was searched").click()
    expect(page.get_by_role("dialog")).to_contain_text("How it is searched")


def test_a_cut_off_that_nothing_comes_up_to_says_so_and_can_be_taken_away(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}#pictures?table=emoji&q=dog&cut=0.99")
    empty = page.locator(".empty")
    expect(empty).to_contain_text("Only a similarity of 0.990 or more is shown. The nearest picture has 0.")
    empty.get_by_role("button", name="Show any similarity").click()
    expect(empty).to_have_count(0)
    assert "cut=" not in page.url
    assert ids(page)[:20] == answer(page, "dog")[:20]


def test_figures_that_are_late_or_lost_hold_nothing_up(open_page: Callable[..., Page], served: Served) -> None:
    page = open_page(f"{served.address}healthz")
    page.route("**/api/count", lambda route: route.abort())
    held: list[Route] = []
    page.route("**/api/chance", lambda route: held.append(route))
    page.goto(f"{served.address}#pictures?table=emoji&q=cat")
    settled(page)
    painted(page)
    expect(page.locator("#status")).to_contain_text("pictures")
    expect(page.locator("#notice")).to_be_hidden()


def test_a_search_that_finds_nothing_says_that_its_matches_are_weak(page: Page) -> None:
    weak = page.locator("#weak")
    search(page, "elephant")  # there is none among these emoji
    expect(weak).to_contain_text("Weak matches: nothing here is nearer to “elephant”")
    search(page, "cat")
    expect(weak).to_be_hidden()
    search(page, "elephant")
    expect(weak).to_be_visible()
    page.get_by_label("Clear the search").click()
    settled(page)
    expect(weak).to_be_hidden()


def test_a_mistake_in_the_where_is_told_without_sql_that_nobody_typed(page: Page) -> None:
    page.get_by_role("button", name="Filters").click()
    where = page.get_by_label("WHERE, in SQL")
    for typed, told in (
        ("letters FORM 3", "Syntax error: failed at position 9 (FORM): FORM 3"),
        ("letters >", "Syntax error: something is missing at the end of the condition letters >"),
        ("lettres > 3", "Unknown expression or function identifier `lettres`."),
    ):
        where.fill(typed)
        where.press("Control+Enter")
        expect(page.locator("#filter-error")).to_contain_text(told)
        expect(page.locator("#filter-error")).not_to_contain_text("SELECT")
    # the filters before it do not move the place
    page.evaluate("location.hash = '#pictures?table=emoji&q=cat&filter=ge~letters~3&where=letters FORM 3'")
    expect(page.locator("#notice")).to_contain_text("failed at position 9 (FORM): FORM 3")
    until(page, "!document.querySelector('#notice').textContent.includes('ORDER BY')")


@pytest.mark.parametrize("width", [390, 1100])
def test_no_figure_of_a_picture_is_cut_in_its_middle(
    open_page: Callable[..., Page], served: Served, width: int
) -> None:
    for table in ("emoji", "web"):
        page = open_page(f"{served.address}#pictures?table={table}&q=cat", viewport={"width": width, "height": 800})
        settled(page)
        painted(page)
        cut = page.evaluate(
            """() => [...document.querySelectorAll('.tile:not(.held):not(.left) .facts')].flatMap(facts => {
                const line = facts.getBoundingClientRect();
                return [...facts.children].filter(fact => {
                    const box = fact.getBoundingClientRect();
                    const seen = box.top < line.bottom - 1 && box.width > 0;
                    const cut = box.right > line.right + 1 || fact.scrollWidth > fact.clientWidth + 1;
                    return seen && fact.tagName !== 'A' && cut;
                }).map(fact => fact.textContent);
            })"""
        )
        assert cut == []
        first = page.locator(".tile .similarity").first
        assert re.fullmatch(r"similarity 0\.\d{3}", first.text_content() or "")


def test_how_alike_pictures_are_that_are_shown_once_is_a_slider_and_in_the_address(page: Page) -> None:
    search(page, "cat")
    page.get_by_role("button", name="Fold alike").click()
    settled(page)
    few = len(ids(page))
    slider = page.get_by_label("How alike pictures are that are shown once")
    with page.expect_response(lambda reply: reply.url.endswith("/api/search")) as asked:
        slider.evaluate("input => { input.value = 0.8; input.dispatchEvent(new Event('change')); }")
    assert json.loads(asked.value.request.post_data or "{}")["fold"] == 0.8
    settled(page)
    assert len(ids(page)) < few
    assert "fold=0.8" in page.url


def test_a_search_is_saved_by_name_and_opened_again(page: Page) -> None:
    search(page, "cat")
    page.get_by_role("button", name="Saved searches").click()
    page.get_by_label("Name of this search").fill("my <cats>")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("Saved as “my <cats>”.")
    page.keyboard.press("Escape")
    search(page, "heart")
    page.reload()
    page.get_by_role("button", name="Saved searches").click()
    page.get_by_role("link", name="my <cats>").click()
    expect(page.get_by_label("Describe a picture")).to_have_value("cat")
    expect(page.get_by_role("dialog")).to_have_count(0)
