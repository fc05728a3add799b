"""The rows of a result as pictures, on the map and as thumbnails: those of the table that they come from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from urllib.request import Request, urlopen

import pytest
from browser_steps import captions, settled
from browser_support import Served, serve
from patience import LAST_NET_SECONDS
from PIL import Image
from playwright.sync_api import Page, expect

import clipql

ROWS = {"many": 12, "typed": 1_500}
COLUMNS = "(caption String, image_path String, v Array(Float32)) ENGINE = MergeTree ORDER BY tuple()"


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Two tables of the same columns, whose captions say which rows they are."""
    folder = tmp_path_factory.mktemp("rows")
    for name, colour in zip(ROWS, ("red", "blue"), strict=True):
        Image.new("RGB", (60, 40), colour).save(folder / f"{name}.png")
    with clipql.connect(folder / "some.db") as db:
        for name, rows in ROWS.items():
            db.sql(f"CREATE TABLE {name} {COLUMNS}")
            values = f"concat('{name} ', toString(number)), '{folder}/{name}.png', [number, 1]"
            db.sql(f"INSERT INTO {name} SELECT {values} FROM numbers({rows})")
    with serve(folder / "some.db", folder / "log", "--write", "--pictures", str(folder)) as running:
        yield running


@pytest.fixture
def opened(open_page: Callable[..., Page], writing: Served) -> Page:
    """The SQL view while `many` is open."""
    page = open_page(f"{writing.address}#sql?table=many")
    expect(page.get_by_label("SQL statement")).to_have_value(re.compile("many"))
    return page


def run(page: Page, sql: str) -> None:
    """Write a statement and run it; its table is there."""
    page.get_by_label("SQL statement").fill(sql)
    page.get_by_role("button", name="Run").click()
    expect(page.locator(".sql-table")).to_be_visible()
    expect(page.get_by_role("button", name="Run")).to_have_text("Run")


def open_as_pictures(page: Page, name: str = "As pictures") -> list[str]:
    """Press the button; the captions that the grid shows then."""
    page.get_by_role("button", name=name, exact=True).click()
    expect(page.locator("#view-pictures")).to_be_visible()
    settled(page)
    return captions(page)


@pytest.mark.parametrize(
    ("sql", "shown"),
    [
        ("SELECT t._row AS _row, caption FROM typed AS t WHERE _row < 3 AND caption NOT IN (SELECT caption FROM many)",
         ["typed 0", "typed 1", "typed 2"]),
        ("SELECT _row FROM typed WHERE _row IN (7, 5) ORDER BY _row DESC", ["typed 7", "typed 5"]),
        ("SELECT _row AS id, caption AS many FROM (SELECT _row, caption FROM typed) WHERE id = 4", ["typed 4"]),
        ("SELECT _row FROM many WHERE _row > 9 -- typed", ["many 10", "many 11"]),
        ("SELECT 1; SELECT _row, 'many' FROM default.typed LIMIT 1", ["typed 0"]),
    ],
)  # fmt: skip
def test_pictures_of_a_result_are_those_of_the_table_that_was_read(opened: Page, sql: str, shown: list[str]) -> None:
    run(opened, sql)
    assert open_as_pictures(opened) == shown
    opened.go_back()
    expect(opened.get_by_label("SQL statement")).to_have_value(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT _row + 1 AS _row, 'many' FROM many",
        "SELECT number AS _row, 'many' FROM numbers(3)",
        "SELECT _row FROM many UNION ALL SELECT _row FROM typed WHERE _row < 3",
        "SELECT t._row AS _row FROM many AS m LEFT JOIN typed AS t ON t._row = m._row + 1495",
    ],
)
def test_where_the_table_is_not_certain_no_rows_are_opened(opened: Page, sql: str) -> None:
    run(opened, sql)
    expect(opened.get_by_role("button", name="Chart")).to_be_visible()
    expect(opened.get_by_role("button", name=re.compile("As pictures|On the map"))).to_have_count(0)


def test_of_a_join_the_rows_of_either_table_are_opened(opened: Page) -> None:
    join = "FROM many AS m JOIN typed AS t ON t._row = m._row + 20 WHERE m._row < 2 ORDER BY m._row"
    run(opened, f"SELECT m._row, t._row {join}")
    assert open_as_pictures(opened, "As pictures: typed") == ["typed 20", "typed 21"]
    opened.go_back()
    run(opened, f"SELECT m._row, t._row, 1 {join}")
    assert open_as_pictures(opened, "As pictures: many") == ["many 0", "many 1"]


def test_all_rows_of_a_long_result_are_opened_and_their_order_is_told(opened: Page) -> None:
    run(opened, "SELECT _row FROM typed WHERE _row < 900 ORDER BY _row DESC")
    expect(opened.locator(".sql-out")).not_to_contain_text("in the order of their numbers")
    run(opened, "SELECT _row FROM typed WHERE _row % 5 ORDER BY _row DESC")
    expect(opened.locator(".sql-out")).to_contain_text(
        "More than 1,000 rows are shown as pictures in the order of their"
    )
    assert open_as_pictures(opened)[:5] == ["typed 1", "typed 2", "typed 3", "typed 4", "typed 6"]
    expect(opened.locator("#pills")).to_contain_text("1,200 chosen rows")
    expect(opened.locator("#status")).to_contain_text("1,200")


def test_the_map_is_that_of_the_table_that_was_read(opened: Page) -> None:
    run(opened, "SELECT _row FROM typed WHERE _row < 30")
    opened.get_by_role("button", name="On the map").click()
    expect(opened.locator(".map-said")).to_contain_text("30")
    assert "table=typed" in opened.url


def test_a_table_that_was_replaced_since_is_not_opened_and_one_that_was_just_made_is(
    opened: Page, writing: Served
) -> None:
    def meanwhile(sql: str) -> None:
        request = Request(writing.address, sql.encode(), method="POST")
        with urlopen(request, timeout=LAST_NET_SECONDS):
            pass

    run(opened, f"CREATE TABLE IF NOT EXISTS fresh {COLUMNS}; SELECT _row FROM many LIMIT 1")
    meanwhile("INSERT INTO fresh SELECT 'fresh', '', [1, 1]")
    run(opened, "SELECT _row FROM fresh")
    meanwhile("DROP TABLE fresh")
    meanwhile(f"CREATE TABLE fresh {COLUMNS}")
    opened.get_by_role("button", name="As pictures").click()
    expect(opened.locator(".sql .status").first).to_contain_text("run it again")
    meanwhile("INSERT INTO fresh SELECT 'fresh again', '', [1, 1]")
    run(opened, "SELECT _row FROM fresh")
    assert open_as_pictures(opened) == ["fresh again"]
    meanwhile("DROP TABLE fresh")


def test_thumbnails_are_of_the_table_that_was_read(opened: Page) -> None:
    run(
        opened, "SELECT t._row AS _row, m.image_path FROM many AS m JOIN typed AS t ON t._row = m._row WHERE m._row = 1"
    )
    expect(opened.locator(".sql-table td")).to_have_text(["1", re.compile("many.png")])
    expect(opened.locator(".sql-table img")).to_have_count(0)  # the row's number is another's
    run(opened, "SELECT m._row, m.image_path, 'typed' FROM many AS m WHERE m._row = 1")
    expect(opened.locator(".sql-table img")).to_have_attribute("src", re.compile("/default/many/1"))
    run(opened, "SELECT _row, image_path FROM typed WHERE _row = 3")
    expect(opened.locator(".sql-table img")).to_have_attribute("src", re.compile("/default/typed/3"))
