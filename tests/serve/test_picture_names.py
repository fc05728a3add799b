"""Which file the picture of a row is in: what searches told is remembered, and never beyond a change of the rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

import clipql
from clipql.serve.picture_names import PictureNames
from tests.parts import vectors
from tests.serve.conftest import Running


def test_what_a_search_told_holds_until_the_rows_change(tmp_path: Path) -> None:
    with clipql.connect(tmp_path / "db") as db:
        db.sql("CREATE TABLE p (path String, day Date, v Array(Float32)) ENGINE = MergeTree ORDER BY path")
        for path, vector in zip("abc", vectors(3, 4, 7, np.float32), strict=True):
            db.sql("INSERT INTO p VALUES ({p:String}, today(), {v:Array(Float32)})", p=path, v=vector)
        service: Any = SimpleNamespace(registry=db.registry, database=db)
        names = PictureNames(service)

        def known() -> list[str | None]:
            table = db.registry.find(None, "p")
            assert table is not None
            return [names.find(table, "path", row) for row in range(4)]

        def tell() -> None:
            table = db.registry.find(None, "p")
            assert table is not None
            version = names.version(table)
            found = db.sql("SELECT _row, path FROM p ORDER BY _row").rows
            names.tell(table, version, "path", found)

        assert known() == [None, None, None, None]
        tell()
        assert known() == ["a", "b", "c", None]
        db.sql("ALTER TABLE p UPDATE path = 'z' WHERE path = 'b'")
        assert known() == [None, None, None, None]
        tell()
        assert known() == ["a", "z", "c", None]
        db.sql("DELETE FROM p WHERE path = 'a'")
        tell()
        assert known() == [None, "z", "c", None]
        db.sql("OPTIMIZE TABLE p")  # makes a row file, which is asked where no search has told
        assert known() == [None, "z", "c", None]
        db.sql("ALTER TABLE p MODIFY TTL day + INTERVAL 1 YEAR")
        tell()
        assert known() == [None, None, None, None]


def test_a_small_picture_is_of_the_file_that_its_row_names_now(server: Running) -> None:
    red = str(server.folder / "pictures" / "red.png")
    server.sql("CREATE TABLE moved (image_path String, v Array(Float32)) ENGINE = MergeTree ORDER BY image_path")
    server.sql(f"INSERT INTO moved VALUES ('gone.png', [1, 0, 0, 0]), ('{red}', [0, 1, 0, 0])")
    search = {"table": "moved", "terms": [{"id": "0"}]}

    def statuses() -> list[int]:
        found = sorted(row["id"] for row in server.post("/api/search", search).json["rows"])
        return [server.ask(f"/api/thumbnail/default/moved/{id}").status for id in found]

    assert statuses() == [404, 200]
    server.sql(
        f"ALTER TABLE moved UPDATE image_path = '{red}' WHERE image_path = 'gone.png' SETTINGS mutations_sync = 1"
    )
    assert statuses() == [200, 200]
    server.sql("DELETE FROM moved WHERE _row = 1")
    assert [server.ask(f"/api/thumbnail/default/moved/{id}").status for id in ("0", "1")] == [200, 404]
    server.sql("DROP TABLE moved")
