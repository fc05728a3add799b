"""Addresses of pictures in the search box: searched by where the server fetches pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browser_steps import answer, chips, settled, shows
from browser_support import Served, Web, serve
from playwright.sync_api import Page, expect

import clipql
from clipql.encode.clip import open_encoder


@pytest.fixture(scope="module")
def fetching(tmp_path_factory: pytest.TempPathFactory, web: Web, served: Served) -> Iterator[Served]:
    """A server that fetches, also from the web of these tests: a table of pictures that are there."""
    folder: Path = tmp_path_factory.mktemp("fetching")
    paths = sorted((served.folder / "pictures").glob("*.png"))[:20]
    with clipql.connect(folder / "some.db") as db:
        db.sql("CREATE TABLE some (url String, v Array(Float32)) ENGINE = MergeTree ORDER BY url")
        vectors = open_encoder("clipql/emoji").encode_pictures(paths).vectors
        for path, vector in zip(paths, vectors, strict=True):
            db.sql("INSERT INTO some VALUES ({u:String}, {v:Array(Float32)})", u=there(web, path), v=vector)
    options = ("--fetch-pictures", "--fetch-from", "127.0.0.1")
    with serve(folder / "some.db", folder / "log", *options, CLIPQL_MODEL="clipql/emoji") as running:
        yield running


def there(web: Web, path: Path) -> str:
    """The address of a picture."""
    return f"{web.address}/good/{path.name}"


def paste(page: Page, text: str) -> None:
    """Put a text into the search box as from the clipboard."""
    page.get_by_label("Describe a picture").focus()
    page.evaluate(
        """text => {
            const box = document.getElementById('words');
            box.value = text;
            box.dispatchEvent(new InputEvent('input', { inputType: 'insertFromPaste', bubbles: true }));
        }""",
        text,
    )


def test_an_address_that_is_pasted_is_a_picture_of_the_search_and_of_its_link(
    open_page: Callable[..., Page], fetching: Served, web: Web, served: Served
) -> None:
    page = open_page(f"{fetching.address}#pictures?table=some")
    settled(page)
    path = sorted((served.folder / "pictures").glob("*.png"))[7]
    address = there(web, path)
    paste(page, address)
    shows(page, answer(page, {"url": address}, table="some"))
    expect(page.locator(".tile .facts a").first).to_have_attribute("href", address)
    assert chips(page) == [f"Plus the picture at {address}, weight 1"]
    expect(page.get_by_label("Describe a picture")).to_have_value("")
    expect(page.locator(".chip-picture")).to_have_attribute("src", address)
    expect(page).to_have_url(re.compile(r"at=1(~|%7E)http"))
    page.reload()
    shows(page, answer(page, {"url": address}, table="some"))
    page.get_by_role("button", name="Plus: change to minus").click()
    shows(page, answer(page, {"url": address, "weight": -1}, table="some"))
    page.go_back()
    page.go_back()
    expect(page.locator(".chip")).to_have_count(0)


def test_an_address_that_is_typed_is_searched_by_with_enter_or_when_it_is_asked_for(
    open_page: Callable[..., Page], fetching: Served, web: Web, served: Served
) -> None:
    page = open_page(f"{fetching.address}#pictures?table=some")
    settled(page)
    asked: list[str] = []
    page.on("request", lambda sent: asked.append(sent.post_data or "") if sent.url.endswith("/api/search") else None)
    first, second = (there(web, path) for path in sorted((served.folder / "pictures").glob("*.png"))[3:5])
    box = page.get_by_label("Describe a picture")
    box.fill(first)
    expect(page.locator("#notice")).to_contain_text("That is an address.")
    assert not [body for body in asked if "good" in body]  # half an address is another one
    box.press("Enter")
    shows(page, answer(page, {"url": first}, table="some"))
    expect(page.locator("#notice")).to_be_hidden()
    box.fill(second)
    page.get_by_role("button", name="Search with the picture there").click()
    shows(page, answer(page, {"url": first}, {"url": second}, table="some"))
    expect(page.locator(".chip")).to_have_count(2)


def test_why_a_picture_cannot_be_fetched_is_said(open_page: Callable[..., Page], fetching: Served, web: Web) -> None:
    page = open_page(f"{fetching.address}#pictures?table=some")
    settled(page)
    paste(page, f"{web.address}/gone/none.png")
    expect(page.locator("#notice")).to_contain_text("HTTP 404")
    expect(page.locator(".chip-name")).to_contain_text("/gone/none.png")  # as no picture can be shown
    page.get_by_role("button", name="Leave it out").click()
    settled(page)
    paste(page, web.address.replace("127.0.0.1", "localhost") + "/good/x.png")
    expect(page.locator("#notice")).to_contain_text("localhost is not in the public network")


def test_where_nothing_is_fetched_an_address_stays_in_the_box(page: Page, web: Web) -> None:
    paste(page, f"{web.address}/good/x.png")
    expect(page.locator("#notice")).to_contain_text("this page fetches nothing from elsewhere")
    expect(page.locator(".chip")).to_have_count(0)
    page.evaluate("location.hash = '#pictures?table=emoji&at=1~http://127.0.0.1:1/x.png'")
    expect(page.locator("#notice")).to_contain_text("`clipql serve --fetch-pictures` lets it")
