"""`%load_ext clipql`, `%clipql` and `%%clipql`, in IPython's own shell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import clipql

pytest.importorskip("IPython", reason="the extra notebook is not installed")
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a table `seen` whose rows name a picture, a text, nothing, and what is no markup."""
    made = tmp_path_factory.mktemp("notebook")
    Image.new("RGB", (300, 200), (200, 30, 30)).save(made / "red.png")
    (made / "secret.txt").write_text("the canary sings")
    with clipql.connect(made / "test.db") as db:
        db.sql("CREATE TABLE seen (id UInt8, path String, url String, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
        for at, name in enumerate((str(made / "red.png"), str(made / "secret.txt"), "", "<b>\"'")):
            insert = "INSERT INTO seen SELECT {id:UInt8}, {p:String}, 'https://host.example/a\"b.png', [{id:UInt8}, 1]"
            db.sql(insert, id=at, p=name)
    return made


@pytest.fixture
def shell(folder: Path) -> Iterator[Any]:
    """IPython with the extension, and the database open."""
    made = InteractiveShell()
    made.extension_manager.load_extension("clipql")
    made.run_line_magic("clipql", str(folder / "test.db"))
    yield made
    made.extension_manager.unload_extension("clipql")
    InteractiveShell.clear_instance()


NEAREST = "SELECT id, path FROM seen\nORDER BY L2Distance(v, {q:Array(Float32)})\nLIMIT {n:UInt8}"


def test_a_cell_is_sql_whose_parameters_are_the_notebooks_variables(shell: Any) -> None:
    shell.user_ns.update(q=[3.0, 1.0], n=2)
    assert [row[0] for row in shell.run_cell_magic("clipql", "--plain", NEAREST).rows] == [3, 2]
    assert shell.run_cell_magic("clipql", "found <<", NEAREST) is None
    assert [row[0] for row in shell.user_ns["found"].rows] == [3, 2]
    assert shell.run_line_magic("clipql", "--plain SELECT count() FROM seen WHERE id < 3").rows == [(3,)]


def test_rows_are_shown_with_their_pictures_and_nothing_else_of_files(shell: Any) -> None:
    shown = shell.run_line_magic("clipql", "SELECT * FROM seen ORDER BY id")
    page = shown._repr_html_()
    assert page.count("<img") == page.count('<img src="data:image/webp;base64,') == 1
    assert ("canary" in page, "<b>" in page, "https://host.example" in page) == (False, False, True)
    assert page.count("<tr>") == 5
    assert repr(shown) == repr(shown.result)
    fetched = shell.run_line_magic("clipql", "--urls SELECT url FROM seen LIMIT 2")._repr_html_()
    assert fetched.count('<img src="https://host.example/a&quot;b.png"') == 2
    without = shell.run_line_magic("clipql", "SELECT 1 AS path, '<tr>' AS a")
    assert without._repr_html_() == without.result._repr_html_()


def test_mistakes_are_one_line(shell: Any) -> None:
    for line, said in (("SELEC 1", "SYNTAX_ERROR|Syntax error"), ("", "needs SQL"), ("--all SELECT 1", "no option")):
        with pytest.raises(UsageError, match=said):
            shell.run_line_magic("clipql", line)
