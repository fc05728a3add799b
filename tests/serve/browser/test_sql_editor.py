"""The SQL editor: statements that are saved, what a running one has read, places of errors, and completion."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from browser_steps import meanwhile, settled
from browser_support import Served
from playwright.sync_api import Page, Route, expect

FOREVER = "SELECT count() FROM numbers(100000000000) WHERE sipHash64(number) % 7 = 9"


@pytest.fixture
def opened(open_page: Callable[..., Page], served: Served) -> Page:
    """The SQL view while `web` is open."""
    page = open_page(f"{served.address}#sql?table=web")
    expect(page.get_by_label("SQL statement")).to_have_value(re.compile("web"))
    return page


def write(page: Page, sql: str) -> None:
    """Write a text into the editor, as a hand does."""
    page.get_by_label("SQL statement").fill(sql)


def run(page: Page, sql: str) -> None:
    """Write a text and have it run."""
    write(page, sql)
    page.get_by_role("button", name="Run").click()


def save(page: Page, name: str) -> None:
    """Save what the editor holds."""
    page.get_by_label("Name of this statement").fill(name)
    page.locator(".sql-side").get_by_role("button", name="Save", exact=True).click()


def held(page: Page) -> str:
    """What the editor holds."""
    return page.get_by_label("SQL statement").input_value()


def saved(page: Page) -> list[str]:
    """The names of saved statements."""
    return page.locator(".sql-saved .link").all_inner_texts()


def test_a_statement_is_saved_as_the_editor_holds_it_and_opened_renamed_and_removed(opened: Page) -> None:
    run(opened, "SELECT 1 AS run")
    expect(opened.locator(".sql-table")).to_be_visible()
    opened.get_by_text("Saved statements").click()
    for name, sql in (("counts", "SELECT count()\nFROM web"), ("half written", "SELECT caption FROM")):
        write(opened, sql)
        save(opened, name)
        expect(opened.locator(".sql-side")).to_contain_text(f"Saved as “{name}”.")
    opened.reload()
    opened.get_by_text("Saved statements").click()
    assert saved(opened) == ["counts", "half written"]
    opened.locator(".sql-saved").get_by_text("counts").click()
    assert held(opened) == "SELECT count()\nFROM web"
    expect(opened.get_by_label("Name of this statement")).to_have_value("counts")
    write(opened, "SELECT count() FROM emoji")
    opened.locator(".sql-side").get_by_role("button", name="Save", exact=True).click()  # in its own place
    opened.get_by_role("button", name="Rename counts").click()
    opened.get_by_label("New name of counts").fill("half written")
    opened.get_by_role("button", name="Rename", exact=True).click()
    expect(opened.locator(".sql-side")).to_contain_text("There is a statement “half written” already")
    opened.get_by_label("New name of counts").fill("how many")
    opened.get_by_label("New name of counts").press("Enter")
    expect(opened.locator(".sql-saved .link")).to_have_text(["half written", "how many"])
    opened.get_by_role("button", name="Remove half written").click()
    opened.locator(".sql-saved").get_by_text("how many").click()
    assert (held(opened), saved(opened)) == ("SELECT count() FROM emoji", ["how many"])
    write(opened, "  ")
    save(opened, "nothing")
    expect(opened.locator(".sql-side")).to_contain_text("There is no statement to save.")


def test_a_saved_statement_keeps_its_vector_and_is_in_the_list_of_another_tab(
    opened: Page, open_page: Callable[..., Page], served: Served
) -> None:
    other = open_page(f"{served.address}#sql?table=web")
    for page in (opened, other):
        page.get_by_text("Saved statements").click()
    run(opened, "SELECT image_embedding AS v FROM web LIMIT 1")
    opened.get_by_role("button", name="Search by this vector").click()
    expect(opened.locator(".sql-table tbody tr")).to_have_count(20)
    save(opened, "near it")
    other.get_by_role("button", name="near it", exact=True).click()
    other.get_by_role("button", name="Run").click()
    expect(other.locator(".sql-table tbody tr")).to_have_count(20)
    opened.get_by_role("button", name="Rename near it").click()
    opened.get_by_label("New name of near it").fill("still writ")
    other.get_by_role("button", name="Remove near it").click()
    expect(opened.locator(".sql-saved")).to_contain_text("None was saved")


def test_the_bookmark_keeps_what_the_editor_holds(opened: Page) -> None:
    run(opened, "SELECT 1 AS run")
    expect(opened.locator(".sql-table")).to_be_visible()
    write(opened, "SELECT 2 AS written")
    opened.get_by_role("button", name="Saved searches").click()
    opened.get_by_label("Name of this search").fill("two")
    opened.get_by_role("dialog").get_by_role("button", name="Save", exact=True).click()
    opened.keyboard.press("Escape")
    opened.get_by_role("link", name="Pictures").first.click()
    settled(opened)
    opened.get_by_role("button", name="Saved searches").click()
    opened.get_by_role("link", name="two").click()
    expect(opened.get_by_label("SQL statement")).to_have_value("SELECT 2 AS written")


def test_a_running_statement_says_how_much_it_has_read(opened: Page) -> None:
    run(opened, f"SELECT 1; {FOREVER}")
    said = opened.locator(".sql .bar .status")
    expect(said).to_have_text(
        re.compile(r"^Running statement 2 of 2… \d+ s · [\d,]+ of 100,000,000,000 rows read, \d+ %$")
    )
    share = opened.get_by_label("Share of the rows that is read")
    expect(share).to_be_visible()
    before = share.evaluate("bar => bar.value")
    meanwhile(opened, lambda: share.evaluate("bar => bar.value") > before, "more is read")
    opened.get_by_role("button", name="Stop").click()
    expect(said).to_have_text("Stopped.")
    expect(share).to_be_hidden()


def test_of_a_total_that_is_not_known_the_rows_read_are_told(opened: Page) -> None:
    opened.route("**/api/progress/*", lambda route: route.fulfill(json={"read_rows": 1234, "total_rows": None}))
    run(opened, FOREVER)
    expect(opened.locator(".sql .bar .status")).to_have_text(re.compile(r"^Running… \d+ s · 1,234 rows read$"))
    expect(opened.get_by_label("Share of the rows that is read")).to_be_hidden()
    opened.unroute("**/api/progress/*")
    opened.route("**/api/progress/*", lambda route: route.abort())
    opened.get_by_role("button", name="Stop").click()
    run(opened, f"{FOREVER} -- again")
    expect(opened.locator(".sql .bar .status")).to_have_text(re.compile(r"^Running… [2-9]\d* s$"))
    opened.get_by_role("button", name="Stop").click()


FIRST = "SELECT 'é; ♥' AS a;\n\n-- a heart: ♥;\n"


@pytest.mark.parametrize(
    ("before", "statement", "wrong"),
    [
        (FIRST, "SELECT 1 FORM web", "web"),
        (FIRST, "SELECT 'ü',\n  1 +* 2", "2"),
        (f"\n  {FIRST}SELECT 2;", "SELECT [1, 2", "SELECT [1, 2"),
        ("", "SELECT 'ü',\n  1 +* 2", "2"),
        ("\n\n   ", "SELECT 1 FORM web", "web"),
        (FIRST, "SELECT 1 ♥ 2", "♥ 2"),
    ],
)
def test_the_place_of_an_error_is_counted_in_the_whole_text(
    opened: Page, before: str, statement: str, wrong: str
) -> None:
    text = f"{before}{statement};\nSELECT 3" if before.strip() else f"{before}{statement}"
    run(opened, text)
    error = opened.locator(".sql-error")
    expect(error).to_be_visible()
    opened.get_by_role("button", name="Go to the place").click()
    at = opened.get_by_label("SQL statement").evaluate("area => area.selectionStart")
    told = re.search(r"at position (\d+)", error.inner_text())
    assert told
    assert len(text[:at].encode()) + 1 == int(told[1])
    if wrong != statement:
        assert at == text.index(statement) + statement.rindex(wrong)
    lines = re.search(r"line (\d+), col (\d+)", error.inner_text())
    if lines:
        above = text[:at].split("\n")
        assert (int(lines[1]), int(lines[2])) == (len(above), len(above[-1].encode()) + 1)


def test_a_statement_that_fails_without_a_place_is_gone_to_as_a_whole(opened: Page) -> None:
    text = "SELECT 'a;b';\n SELECT nothing FROM web ; SELECT 3"
    run(opened, text)
    expect(opened.locator(".sql .bar .status")).to_have_text("Statement 2 of 3 failed; those before it have been run.")
    opened.get_by_role("button", name="Go to the statement").click()
    chosen = "area => area.value.slice(area.selectionStart, area.selectionEnd)"
    assert opened.get_by_label("SQL statement").evaluate(chosen) == "SELECT nothing FROM web"
    write(opened, "SELECT 4")
    opened.get_by_role("button", name="Go to the statement").click()
    expect(opened.locator(".sql .bar .status")).to_have_text("The text has been changed since.")


def test_a_number_in_a_message_that_is_no_place_leads_nowhere(opened: Page) -> None:
    run(opened, "SELECT L2Distance(image_embedding, [1, 2, nan]) FROM web ORDER BY 1 LIMIT 1")
    expect(opened.locator(".sql-error")).to_be_visible()
    expect(opened.get_by_role("button", name="Go to the place")).to_have_count(0)


def offered(page: Page, text: str) -> list[tuple[str, str]]:
    """What is offered behind a text that was typed, with what it is said to be."""
    write(page, "")
    page.get_by_label("SQL statement").press_sequentially(text)
    expect(page.locator("#completion li").first).to_be_visible()
    return [tuple(one.split("\n")) for one in page.locator("#completion li").all_inner_texts()]  # type: ignore[misc]


def test_columns_of_the_open_table_and_of_those_named_come_before_words_of_the_language(opened: Page) -> None:
    def catalog(route: Route) -> None:
        reply = route.fetch()
        tables = json.loads(reply.text())
        tables["tables"].sort(key=lambda table: table["name"])
        route.fulfill(response=reply, json=tables)

    opened.route("**/api/tables", catalog)
    opened.reload()
    expect(opened.get_by_label("SQL statement")).to_have_value(re.compile("web"))
    expect(opened.locator(".sql-tree details")).not_to_have_count(0)
    opened.locator(".sql-tree").get_by_text("emoji", exact=True).wait_for(state="attached")
    assert offered(opened, "SELECT ca")[0] == ("caption", "web · Nullable(String)")
    names = [name for name, _ in offered(opened, "SELECT ca")]
    assert names.index("caption") < names.index("CASE")
    assert ("category", "emoji · Nullable(String)") not in offered(opened, "SELECT ca")[:2]
    write(opened, "")
    assert offered(opened, "SELECT 1 FROM emoji WHERE ca")[:2] == [
        ("caption", "emoji · Nullable(String)"), ("category", "emoji · Nullable(String)")
    ]  # fmt: skip
    assert offered(opened, "SELECT 1 FROM emoji WHERE UR")[0] == (
        "url",
        "web · Nullable(String)",
    )
    assert offered(opened, "SELECT 'webs' AS webbing, ca")[0] == ("caption", "web · Nullable(String)")
