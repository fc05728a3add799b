"""Tables that others change, replace or drop while the page shows them, on a server that writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from urllib.request import Request, urlopen

import pytest
from browser_steps import captions, settled, until
from browser_support import Served, serve
from patience import LAST_NET_SECONDS
from PIL import Image
from playwright.sync_api import Page, Route, expect

import clipql

ROWS = 9
COLUMNS = "(caption String, image_path String, v Array(Float32)) ENGINE = MergeTree ORDER BY tuple()"


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("changed")
    for colour in ("red", "blue"):
        Image.new("RGB", (300, 200), colour).save(folder / f"{colour}.png")
    clipql.connect(folder / "some.db").close()
    with serve(folder / "some.db", folder / "log", "--write", "--pictures", str(folder)) as running:
        yield running


def run(served: Served, sql: str) -> str:
    """A statement of somebody else."""
    with urlopen(Request(served.address, sql.encode(), method="POST"), timeout=LAST_NET_SECONDS) as reply:
        return reply.read().decode().strip()  # type: ignore[no-any-return]


def make(served: Served, colour: str) -> None:
    """The table, made anew: captions and pictures of one colour."""
    run(served, "DROP TABLE IF EXISTS t")
    run(served, f"CREATE TABLE t {COLUMNS}")
    path = served.folder / f"{colour}.png"
    run(
        served,
        f"INSERT INTO t SELECT concat('{colour} ', toString(number)), '{path}', [number, 1] FROM numbers({ROWS})",
    )


@pytest.fixture
def page(open_page: Callable[..., Page], writing: Served) -> Page:
    make(writing, "red")
    opened = open_page(f"{writing.address}#pictures?table=t")
    settled(opened)
    return opened


def looks(page: Page) -> list[int]:
    """Red, green and blue of the first picture."""
    found: list[int] = until(
        page,
        """(async () => {
            const image = document.querySelector('.tile.loaded img');
            if (!image) return null;
            await image.decode();
            const canvas = Object.assign(document.createElement('canvas'), { width: 1, height: 1 });
            canvas.getContext('2d').drawImage(image, 0, 0, 1, 1);
            return [...canvas.getContext('2d').getImageData(0, 0, 1, 1).data].slice(0, 3);
        })()""",
    )
    return found


def test_of_a_table_that_was_replaced_the_new_rows_and_pictures_are_shown(page: Page, writing: Served) -> None:
    red, _, blue = looks(page)
    assert red > 200 > 50 > blue
    make(writing, "blue")
    run(writing, "ALTER TABLE t ADD COLUMN weight Int32 DEFAULT 7")
    page.locator(".tile[data-id='2'] .open").focus()
    page.keyboard.press("m")
    expect(page.locator(".tile .caption").first).to_have_text("blue 2")
    assert all(caption.startswith("blue") for caption in captions(page))
    red, _, blue = looks(page)
    assert red < 50 < 200 < blue
    page.get_by_role("button", name="Filters").click()
    page.get_by_role("button", name="Another column").click()
    expect(page.get_by_label("Column").locator("option")).to_have_text(["caption", "image_path", "weight"])


def test_a_table_that_was_dropped_is_said_to_be_gone_and_nothing_of_it_is_left(page: Page, writing: Served) -> None:
    run(writing, f"CREATE TABLE IF NOT EXISTS still {COLUMNS}")
    page.locator(".tile .open").first.click(modifiers=["Control"])
    expect(page.locator(".tray-count")).to_have_text("1 picked")
    run(writing, "DROP TABLE t")
    page.locator(".tile[data-id='2'] .open").focus()
    page.keyboard.press("m")
    notice = page.locator("#notice")
    expect(notice).to_contain_text("There is no table t here.")
    expect(page.locator(".tile")).to_have_count(0)
    expect(page.locator("#tray")).to_be_hidden()
    expect(page.get_by_label("Table").locator("option:not([hidden])")).to_have_text(["still · 0"])
    notice.get_by_role("button", name="Open still").click()
    expect(page.get_by_role("heading", name="No pictures here")).to_be_visible()
    expect(notice).to_be_hidden()


def test_a_table_that_one_answer_lacks_and_the_next_has_is_not_asked_for_without_end(
    page: Page, writing: Served
) -> None:
    asked: list[Route] = []

    def lacking(route: Route) -> None:
        asked.append(route)
        route.fulfill(status=404, json={"error": "there is no table default.t", "code": 60})

    page.route("**/api/search", lacking)
    page.locator(".tile[data-id='2'] .open").focus()
    page.keyboard.press("m")
    expect(page.locator("#notice")).to_have_text("there is no table default.t")
    page.unroute("**/api/search")
    page.route("**/api/search", lambda route: route.fulfill(json=asking(writing, route) | {"table_id": "of elsewhere"}))
    page.locator(".tile[data-id='3'] .open").focus()
    page.keyboard.press("m")
    expect(page.locator(".tile .caption").first).to_have_text("red 3")
    expect(page.locator("#notice")).to_be_hidden()
    assert len(asked) == 1


def asking(served: Served, route: Route) -> dict[str, object]:
    """The server's own answer."""
    headers = {"Content-Type": "application/json"}
    request = Request(f"{served.address}api/search", (route.request.post_data or "").encode(), headers)
    with urlopen(request, timeout=LAST_NET_SECONDS) as reply:
        found: dict[str, object] = json.load(reply)
    return found


def test_what_is_done_with_picked_rows_counts_those_that_are_there(page: Page, writing: Served) -> None:
    for number in (1, 2, 3):
        page.locator(".tile .open").nth(number).click(modifiers=["Control"])
    run(writing, "DELETE FROM t WHERE caption IN ('red 2', 'red 3')")
    dialog = page.get_by_role("dialog")
    some = "1 of 3 pictures (the others are gone, or have another number)"

    page.get_by_role("button", name="Tag").click()
    page.get_by_label("A word for them").fill("keep")
    dialog.get_by_role("button", name="Tag").click()
    expect(dialog).to_contain_text(f"{some} tagged “keep”")
    assert run(writing, "SELECT groupArray(caption) FROM t WHERE has(tags, 'keep')") == "['red 1']"
    page.keyboard.press("Escape")

    page.get_by_role("button", name="Save as a table").click()
    page.get_by_label("Its name").fill("some")
    dialog.get_by_role("button", name="Save as a table").click()
    expect(dialog).to_contain_text(f"The table some has {some.replace('pictures', 'rows')}")
    assert run(writing, "SELECT count() FROM some") == "1"
    page.keyboard.press("Escape")

    page.get_by_role("button", name="Save", exact=True).click()
    with page.expect_download():
        dialog.get_by_role("button", name="CSV").click()
    expect(dialog).to_contain_text(f"Saved: {some}.")
    page.keyboard.press("Escape")

    run(writing, "DELETE FROM t WHERE caption = 'red 1'")
    page.get_by_role("button", name="Tag").click()
    page.get_by_label("A word for them").fill("more")
    dialog.get_by_role("button", name="Tag").click()
    expect(dialog).to_contain_text("None of these rows is in the table t any more")
