"""Picking pictures, and what the tray does with them, on a server that writes."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from browser_steps import ids, meanwhile, painted, settled
from browser_support import Served, Web, serve
from playwright.sync_api import Page, Route, expect

import clipql

ROWS, BIG = 12, 1203


@pytest.fixture(scope="module")
def writing(tmp_path_factory: pytest.TempPathFactory, web: Web) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("writing")
    with clipql.connect(folder / "some.db") as db:
        db.sql("CREATE TABLE t (url String, caption String, v Array(Float32)) ENGINE = MergeTree ORDER BY tuple()")
        rows = [(f"{web.address}/gone/{i}.png", f"it's \\ {i}", [float(i), 1.0]) for i in range(ROWS)]
        table = pa.table({name: [r[at] for r in rows] for at, name in enumerate(("url", "caption", "v"))})
        pq.write_table(table, folder / "rows.parquet")
        db.sql(f"INSERT INTO t SELECT * FROM file('{folder / 'rows.parquet'}')")
        db.sql("CREATE TABLE big (caption String, v Array(Float32)) ENGINE = MergeTree ORDER BY tuple()")
        db.sql(f"INSERT INTO big SELECT concat('a ', toString(number)), [number, number % 7] FROM numbers({BIG})")
        db.sql("DELETE FROM big WHERE caption = 'a 5'")
    with serve(folder / "some.db", folder / "log", "--write") as running:
        yield running


def rows(page: Page, sql: str) -> str:
    reply = page.request.post(f"{page.url.partition('#')[0]}?wait_end_of_query=1", data=sql)
    assert reply.ok, reply.text()
    return reply.text().strip()


@pytest.fixture
def page(open_page: Callable[..., Page], writing: Served) -> Page:
    opened = open_page(f"{writing.address}#pictures?table=t")
    settled(opened)
    expect(opened.locator("#gone:not(:empty)")).to_be_visible()  # until then tiles become lines
    return opened


def test_pictures_are_picked_by_key_click_and_range_and_saved_with_their_vectors(page: Page, tmp_path: Path) -> None:
    tiles = page.locator(".tile[data-id] .open")
    tiles.nth(1).focus()
    page.keyboard.press("x")
    expect(page.locator(".tray-count")).to_have_text("1 picked")
    tiles.nth(4).click(modifiers=["Shift"])
    tiles.nth(2).click()  # while others are picked a click is enough, and takes the pick back
    expect(page.locator(".tray-count")).to_have_text("3 picked")
    expect(page.locator(".tile.picked")).to_have_count(3)
    shown = ids(page) or page.eval_on_selector_all(".tile[data-id]", "all => all.map(t => t.dataset.id)")
    picked = [int(shown[i]) for i in (1, 3, 4)]

    page.get_by_role("button", name="Save", exact=True).click()
    with page.expect_download() as parquet:
        page.get_by_role("button", name="Parquet").click()
    found = pq.read_table(io.BytesIO(Path(parquet.value.path()).read_bytes()))
    assert sorted(v[0] for v in found["v"].to_pylist()) == sorted(map(float, picked))
    with page.expect_download() as listed:
        page.get_by_role("button", name="Addresses as a list").click()
    addresses = Path(listed.value.path()).read_text().split()
    assert [int(a.rpartition("/")[2].removesuffix(".png")) for a in addresses] == picked


def test_pictures_are_picked_by_their_ticks_one_after_the_other(page: Page) -> None:
    for number in (0, 2, 3):
        tile = page.locator(".tile[data-id]").nth(number)
        tile.hover()
        tile.get_by_role("button", name="Pick", exact=True).click()
    expect(page.locator(".tray-count")).to_have_text("3 picked")
    assert page.eval_on_selector_all(".tile", "all => all.map(t => t.matches('.picked'))")[:5] == [
        True, False, True, True, False,
    ]  # fmt: skip


def test_what_is_picked_is_tagged_saved_as_a_table_and_deleted_unless_taken_back(page: Page) -> None:
    page.locator(".tile[data-id] .open").first.focus()
    page.keyboard.press("x")
    page.get_by_role("button", name="Tag", exact=True).click()
    page.get_by_label("A word for them").fill("it's")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("1 picture tagged")
    assert rows(page, "SELECT count() FROM t WHERE has(tags, 'it\\'s')") == "1"
    page.keyboard.press("Escape")
    page.locator(".tile[data-id] .open").nth(1).focus()
    for wanted in (2, 1):  # others can be picked after it
        page.keyboard.press("x")
        expect(page.locator(".tray-count")).to_have_text(f"{wanted} picked")

    page.get_by_role("button", name="Save as a table").click()
    page.get_by_label("Its name").fill("my picks")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text("The table my picks has 1 row")
    assert rows(page, "SELECT count(), any(length(v)) FROM `my picks`") == "1\t2"
    page.keyboard.press("Escape")

    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_label("Deleting")).to_contain_text("1 picture will be deleted from t")
    page.get_by_role("button", name="Undo").click()
    assert rows(page, "SELECT count() FROM t") == str(ROWS)
    page.locator(".tile[data-id] .open").first.focus()
    page.keyboard.press("x")
    page.get_by_role("button", name="Delete", exact=True).click()
    meanwhile(page, lambda: rows(page, "SELECT count() FROM t") == str(ROWS - 1), "the row is deleted")


def test_a_row_that_has_another_number_by_now_is_left_alone(page: Page) -> None:
    before = int(rows(page, "SELECT count() FROM t"))
    page.locator(".tile[data-id] .open").nth(5).focus()
    page.keyboard.press("x")
    rows(page, "DELETE FROM t WHERE _row = (SELECT min(_row) FROM t)")
    rows(page, "OPTIMIZE TABLE t FINAL")  # numbers the rows anew
    page.get_by_role("button", name="Delete", exact=True).click()
    meanwhile(page, lambda: page.get_by_label("Deleting").count() == 0, "it was carried out")
    assert int(rows(page, "SELECT count() FROM t")) == before - 1


def test_a_tag_goes_to_the_table_that_was_open_when_it_was_given(page: Page) -> None:
    page.evaluate("location.hash = '#pictures?table=big'")
    expect(page.locator(".tile[data-id='0'] .caption")).to_have_text("a 0")
    held: list[Route] = []
    page.route("**/?wait_end_of_query*", lambda route: route.continue_() if held else held.append(route))
    page.locator(".tile[data-id='0'] .open").focus()
    page.keyboard.press("x")
    page.get_by_role("button", name="Tag", exact=True).click()
    page.get_by_label("A word for them").fill("mine")
    page.keyboard.press("Enter")
    meanwhile(page, lambda: held, "a column of tags is asked for")
    page.go_back()
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(page.locator(".tray-count")).to_be_hidden()
    held[0].continue_()
    tagged = "SELECT arraySort(groupArray(table)) FROM system.columns WHERE name = 'tags' AND table = 'big'"
    meanwhile(page, lambda: rows(page, tagged) == "['big']", "the table has tags")
    meanwhile(page, lambda: rows(page, "SELECT _row FROM big WHERE has(tags, 'mine')") == "0", "the row has its tag")


def test_more_rows_than_a_statement_lists_are_chosen_on_the_map_shown_saved_and_tagged(page: Page) -> None:
    page.evaluate("location.hash = '#map?table=big'")
    expect(page.locator(".map-said")).to_contain_text(f"{BIG - 1:,} pictures")
    page.get_by_role("button", name="Choose all in view").click()
    chosen = page.get_by_label("Chosen on the map")
    chosen.get_by_role("button", name=f"Pick these {BIG - 1:,}").click()
    expect(page.locator(".tray-count")).to_have_text(f"{BIG - 1:,} picked")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator(".pill")).to_have_text(f"{BIG - 1:,} chosen rows")
    expect(page.locator("#status")).to_contain_text(f"first 40 of {BIG - 1:,} pictures")
    expect(page.locator(".tile.picked").first).to_be_visible()

    page.get_by_role("button", name="Tag", exact=True).click()
    page.get_by_label("A word for them").fill("many")
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_contain_text(f"{BIG - 1:,} pictures tagged")
    assert rows(page, "SELECT countIf(has(tags, 'many')), count() FROM big") == f"{BIG - 1}\t{BIG - 1}"
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Save", exact=True).click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Parquet").click()
    found = pq.read_table(io.BytesIO(Path(saved.value.path()).read_bytes()))
    assert sorted(v[0] for v in found["v"].to_pylist()) == [float(i) for i in range(BIG) if i != 5]

    rows(page, "DELETE FROM big WHERE caption = 'a 7'")
    rows(page, "OPTIMIZE TABLE big FINAL")  # numbers the rows anew
    page.get_by_role("button", name="CSV").click()
    expect(page.get_by_role("dialog")).to_contain_text("The table big has changed since these rows were picked")


def test_the_condition_of_many_rows_holds_for_those_alone(page: Page) -> None:
    chance = np.random.default_rng(18)
    sets = {
        "few": [7, 3, 900_000],
        "many": sorted(chance.choice(9_000, 2_000, replace=False).tolist()),
        "every fifth of a large table": [
            1_000_003 + 5 * i for i in chance.choice(4_000, 1_200, replace=False).tolist()
        ],
        "all of a part": list(range(2_000, 4_400, 2)),
        "far from each other": [i * 99_991 for i in range(1, 1_100)],
    }
    made = """async ids => {
        const rowset = await import('./static/rowset.js');
        const condition = rowset.conditionOf(ids);
        return [condition, rowset.countOf(condition)];
    }"""
    for name, ids_ in sets.items():
        condition, counted = page.evaluate(made, ids_)
        around = sorted({*ids_, *(i + 1 for i in ids_), *(max(0, i - 1) for i in ids_), 0, 2 * max(ids_)})
        found = rows(page, f"SELECT _row FROM (SELECT arrayJoin({around}) AS _row) WHERE {condition} ORDER BY _row")
        assert [int(i) for i in found.split()] == sorted(ids_), name
        assert counted == len(ids_), name
    text = "it's \\ قطة 🐈"
    mark = page.evaluate("async text => (await import('./static/rowset.js')).markOf('17', text)", text)
    assert mark == zlib.crc32(f"17 {text}".encode())


def test_a_table_that_is_made_in_sql_can_be_chosen_at_once_and_what_is_written_meanwhile_stays(page: Page) -> None:
    page.get_by_role("link", name="SQL").click()
    statement = page.get_by_label("SQL statement")
    statement.fill("CREATE TABLE made (caption String, v Array(Float32)) ENGINE = MergeTree ORDER BY tuple()")
    held: list[Route] = []
    holding = True
    page.route("**/api/tables", lambda route: held.append(route) if holding else route.continue_())
    page.keyboard.press("Control+Enter")
    meanwhile(page, lambda: held, "the tables are asked for anew")
    statement.fill("SELECT 1 AS one")
    holding = False  # for the requests after these
    for route in held:
        route.continue_()
    expect(page.locator("#table option").filter(has_text="made")).to_have_count(1)
    painted(page)
    expect(statement).to_have_value("SELECT 1 AS one")
