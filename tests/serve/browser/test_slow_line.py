"""What a slow line has to carry before the first results are seen, counted rather than timed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser_steps import answer, meanwhile, painted, settled, shows
from browser_support import Served
from patience import until
from playwright.sync_api import Page, Route, expect

import clipql.serve
from clipql.serve.web_modules import joined, order, without_comments

WEB = Path(clipql.serve.__file__).parent / "web"
MOST_BYTES, MOST_REQUESTS, MOST_REPLY_BYTES = 50_000, 8, 4_000
# keeps all that screen readers are told from here on in window.told
TOLD = """() => {
    const live = document.getElementById('live');
    window.told = [];
    new MutationObserver(() => window.told.push(live.textContent)).observe(live, { childList: true });
}"""


def fetched(page: Page) -> list[dict[str, Any]]:
    """What was fetched, and whether before the first results had come."""
    found: list[dict[str, Any]] = page.evaluate(
        """(() => {
            const all = performance.getEntriesByType('resource');
            const first = all.find(e => e.name.includes('api/search'));
            return all.map(e => ({ name: new URL(e.name).pathname.split('/').at(-1), size: e.transferSize,
                                   early: e.startTime < first.responseEnd }));
        })()"""
    )
    return found


def test_what_the_first_results_need_is_asked_for_at_once_and_the_rest_after_them(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}#pictures?table=emoji", alone=True)
    settled(page)
    modules = {file.name: file.read_text() for file in WEB.glob("*.js")}
    first = order(modules, "app.js")
    assert {*first} >= {"app.js", "grid.js", "state.js"}
    every = {*modules, "first.js"} - {*first}
    until(lambda: {one["name"] for one in fetched(page)} >= every, "all parts are fetched")
    assert {one["name"] for one in fetched(page) if one["early"] and one["name"].endswith(".js")} == {
        "first.js",
        "theme.js",
    }
    # the tables are on their way before any module has run
    assert (
        page.evaluate("performance.getEntriesByName(new URL('api/tables', document.baseURI).href)[0].initiatorType")
        == "link"
    )


def test_what_is_loaded_before_the_first_results_is_packed_and_little(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}healthz", alone=True)
    seen: list[tuple[str, dict[str, str]]] = []
    page.on("response", lambda reply: seen.append((reply.url, reply.headers)))
    page.goto(f"{served.address}#pictures?table=emoji")
    settled(page)
    long = [(url, headers) for url, headers in seen if int(headers.get("content-length", 0)) > 1000]
    unpacked = [url for url, headers in long if "thumbnail" not in url and headers.get("content-encoding") != "gzip"]
    assert unpacked == []
    own = [one["size"] for one in fetched(page) if one["early"]]
    assert sum(own) < MOST_BYTES
    assert len(own) <= MOST_REQUESTS
    again = page.request.get(f"{served.address}static/app.js")
    assert (
        page.request.get(f"{served.address}static/app.js", headers={"If-None-Match": again.headers["etag"]}).status
        == 304
    )


def test_comments_do_not_travel_and_nothing_else_is_left_out() -> None:
    first, rest = "const a = 1; // one\n", "const b = `\n// text\n/* text */\n`;\n/* c */ f();\n"
    assert without_comments(f"/** What it is.\n * More. */\n{first}  // alone\n{rest}") == first + rest


def test_a_part_that_could_not_be_fetched_is_told_of_and_fetched_when_asked_for_again(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}healthz")
    page.route("**/static/panel.js", lambda route: route.abort())
    page.goto(f"{served.address}#pictures?table=emoji")
    settled(page)
    page.click("#filters")
    page.wait_for_selector("#notice:has-text('A part of this page could not be fetched')")
    page.unroute("**/static/panel.js")
    page.click("#filters")
    page.wait_for_selector("dialog[open]")


def test_modules_that_declare_one_name_do_not_become_one() -> None:
    with pytest.raises(ValueError, match=r"b\.js and a\.js both declare x"):
        joined(
            {"a.js": "import { y } from './b.js';\nconst x = y;\n", "b.js": "let x = 1;\nexport let y = 2;\n"},
            "a.js",
            "f.js",
        )


def test_from_the_last_key_to_its_pictures_there_is_one_request_and_one_drawing(
    open_page: Callable[..., Page], served: Served
) -> None:
    def first_pages(route: Route) -> None:
        if '"offset":0' in (route.request.post_data or ""):
            route.continue_()

    page = open_page(f"{served.address}healthz")
    page.route("**/api/search", first_pages)
    page.goto(f"{served.address}#pictures?table=emoji&q=do")
    settled(page)
    page.evaluate(
        """() => {
            const seen = (window.seen = { drawings: 0, made: 0, begun: performance.now() });
            new MutationObserver(records => {
                seen.drawings++;
                for (const record of records) seen.made += record.addedNodes.length;
            }).observe(document.querySelector('#grid'), { childList: true });
        }"""
    )
    page.get_by_label("Describe a picture").press("g")
    wanted = answer(page, "dog")
    shows(page, wanted)
    settled(page)
    painted(page)
    seen = page.evaluate("window.seen")
    asked = page.evaluate(
        """performance.getEntriesByType('resource')
            .filter(one => one.startTime >= window.seen.begun)
            .map(one => [new URL(one.name).pathname, one.transferSize])"""
    )
    answers = [size for name, size in asked if name == "/api/search" and size]  # what was given up has no size
    assert len(answers) == 1
    assert answers[0] < MOST_REPLY_BYTES
    pictures = [name.rpartition("/")[2] for name, _ in asked if "/thumbnail/" in name]
    assert {*pictures} <= {*wanted}
    assert len(pictures) == len({*pictures})
    assert seen["drawings"] == 1
    assert seen["made"] <= len(wanted)


def test_of_the_dialogs_asked_for_while_their_parts_are_on_the_way_the_last_one_opens(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}healthz", alone=True)
    held: list[Route] = []
    for part in ("facets", "panel"):
        page.route(f"**/static/{part}.js", lambda route: held.append(route))
    page.goto(f"{served.address}#pictures?table=emoji")
    settled(page)
    for name in ("Filters", "Facets", "Facets"):
        page.get_by_role("button", name=name).click()
    until(lambda: painted(page) or len(held) >= 2, "the parts are asked for")
    for route in held:
        route.continue_()
    expect(page.get_by_role("dialog", name="Facets")).to_be_visible()
    expect(page.locator("dialog")).to_have_count(1)
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_have_count(0)


def test_a_part_that_is_still_being_fetched_is_seen_to_be_on_its_way(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = open_page(f"{served.address}healthz", alone=True)
    held: list[Route] = []
    page.route("**/facets.js*", lambda route: held.append(route))
    page.goto(f"{served.address}#pictures?table=emoji")
    settled(page)
    page.evaluate(TOLD)
    page.get_by_role("button", name="Facets").click()
    expect(page.locator("html")).to_have_class("fetching")
    # how many pictures there are may be told after it
    fetching = "A part of the page is being fetched"
    meanwhile(page, lambda: fetching in page.evaluate("window.told"), "a screen reader is told")
    meanwhile(page, lambda: held, "the part is asked for")
    for route in held:
        route.continue_()
    expect(page.get_by_role("dialog")).to_be_visible()
    expect(page.locator("html")).not_to_have_class("fetching")
