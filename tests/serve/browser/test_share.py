"""A search handed on: its link, its SQL and its citation, with buttons that copy them."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from urllib.parse import quote

from browser_data import EMOJI
from browser_steps import captions, ids, meanwhile, settled, shows
from browser_support import Served
from playwright.sync_api import Page, expect

import clipql

SEARCH = (
    "#pictures?table=emoji&q=cat&with=-0.5~face&filter=ge~letters~5&score=0.02~letters&recall=exact&cut=0.1&fold=0.97"
)


def copied(page: Page, name: str) -> str:
    """Press a button of the dialog, and give what is in the clipboard then."""
    page.evaluate("navigator.clipboard.writeText('')")
    page.get_by_role("dialog").get_by_role("button", name=name).click()
    text: str = meanwhile(page, lambda: page.evaluate("navigator.clipboard.readText()"), f"{name} has copied")
    return text


def opened(open_page: Callable[..., Page], served: Served, search: str) -> Page:
    """A page with the dialog of a search."""
    page = open_page(served.address + search, alone=True)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    settled(page)
    page.clock.set_fixed_time(datetime.datetime(2026, 3, 5, 12))  # noqa: DTZ001 - the browser's own
    page.get_by_role("button", name="Share and cite").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    return page


def test_the_link_shows_the_same_with_every_setting(open_page: Callable[..., Page], served: Served) -> None:
    page = opened(open_page, served, SEARCH)
    link = copied(page, "Copy the link")
    assert page.get_by_role("dialog").locator(".statement").first.inner_text() == link
    other = open_page(link, alone=True)
    settled(other)
    assert other.url == link
    shows(other, ids(page))
    expect(other.locator(".pill")).to_have_text(
        ["letters ≥ 5", "order: distance − 0.02 × letters", "all rows compared"]
    )


def test_the_sql_gives_the_rows(open_page: Callable[..., Page], served: Served) -> None:
    page = opened(open_page, served, "#pictures?table=emoji&q=cat&score=0.02~letters")
    sql = copied(page, "Copy the SQL")
    reply = page.request.post(served.address, data=f"{sql} FORMAT JSON")
    assert reply.ok, reply.text()
    found = [row["caption"] for row in reply.json()["data"]]
    assert found[: len(captions(page))] == captions(page)
    assert len(found) >= 40


def test_a_citation_names_search_table_rows_version_day_and_address(
    open_page: Callable[..., Page], served: Served
) -> None:
    page = opened(open_page, served, SEARCH)
    link = copied(page, "Copy the link")
    version = clipql.__version__
    assert copied(page, "Copy the citation") == (
        "“cat − 0.5 × face, letters ≥ 5”. Search of the table emoji "
        f"({EMOJI} rows) with clipql {version}, 2026-03-05. {link}"
    )
    assert copied(page, "Copy BibTeX").splitlines() == [
        "@misc{clipql-emoji-20260305,",
        "  title = {{cat − 0.5 × face, letters ≥ 5}},",
        f"  howpublished = {{Search of the table emoji ({EMOJI} rows) with clipql {version}}},",
        "  year = {2026},",
        "  month = mar,",
        f"  url = {{{link}}},",
        "  urldate = {2026-03-05}",
        "}",
    ]


def test_signs_that_mean_something_to_tex_are_letters_in_bibtex(open_page: Callable[..., Page], served: Served) -> None:
    words = "50%_of {a} & $b #c ~d ^e \\f"
    page = opened(open_page, served, f"#pictures?table=emoji&q={quote(words)}")
    bibtex = copied(page, "Copy BibTeX")
    wanted = r"50\%\_of \{a\} \& \$b \#c \textasciitilde{}d \textasciicircum{}e \textbackslash{}f"
    assert f"title = {{{{{wanted}}}}}," in bibtex
    assert f"“{words}”." in copied(page, "Copy the citation")


def test_what_is_not_part_of_a_link_is_said(page: Page, served: Served) -> None:
    page.set_input_files("#file", sorted((served.folder / "pictures").glob("*.png"))[:2])
    expect(page.locator(".chip")).to_have_count(2)
    settled(page)
    page.get_by_role("button", name="Share and cite").click()
    expect(page.get_by_role("dialog")).to_contain_text("2 pictures that you gave are not part of the link")
    expect(page.get_by_role("dialog")).to_contain_text("It names parameters, which Show SQL has.")
    expect(page.get_by_role("dialog").locator(".statement").nth(2)).to_contain_text("“a picture + a picture”.")
