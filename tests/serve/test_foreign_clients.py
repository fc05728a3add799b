"""Clients of other projects, unchanged, against the server: SQLAlchemy, as Superset uses it, and ibis.

They are in the extra `dev`; where an older lock was installed that lacks one, its test is skipped.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.serve.conftest import ROWS, Running


def test_sqlalchemy_reflects_reads_and_writes(server: Running) -> None:
    sa = pytest.importorskip("sqlalchemy")
    engine = sa.create_engine(f"clickhousedb://127.0.0.1:{server.port}/default")
    with engine.connect() as connection:
        look = sa.inspect(connection)
        assert "laion" in look.get_table_names()
        assert "default" in look.get_schema_names()
        assert look.has_table("laion")
        assert not look.has_table("nowhere")
        columns = {each["name"]: str(each["type"]) for each in look.get_columns("laion")}
        assert columns["image_embedding"] == "Array(Float32)"
        assert "_row" not in columns
        laion = sa.Table("laion", sa.MetaData(), autoload_with=connection)
        counted = sa.select(sa.func.count()).select_from(laion)
        assert connection.execute(counted).scalar() == ROWS
        distance = sa.func.L2Distance(laion.c.image_embedding, sa.literal_column(str([0.25] * 16))).label("d")
        nearest = sa.select(laion.c.url, distance).order_by(sa.text("d"), laion.c.url).limit(3)
        sql = f"SELECT url FROM laion ORDER BY L2Distance(image_embedding, {[0.25] * 16}), url LIMIT 3 FORMAT TSV"
        assert [row.url for row in connection.execute(nearest)] == server.sql(sql).text.split()
        connection.execute(sa.text("CREATE TABLE alchemy (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id"))
        made = sa.Table("alchemy", sa.MetaData(), autoload_with=connection)
        connection.execute(made.insert(), [{"id": 1, "v": [0.5, 1.5]}, {"id": 2, "v": [2.5, 3.5]}])
        found = connection.execute(sa.select(made).where(made.c.id == 2)).one()
        assert (found.id, list(found.v)) == (2, [2.5, 3.5])
        connection.execute(sa.text("DROP TABLE alchemy"))


@pytest.mark.filterwarnings("ignore")  # of pandas, about what ibis asks of it
def test_ibis_reads_writes_and_searches(server: Running) -> None:
    ibis: Any = pytest.importorskip("ibis")
    pd = pytest.importorskip("pandas")
    with_it = ibis.clickhouse.connect(host="127.0.0.1", port=server.port, database="default")
    laion = with_it.table("laion")
    assert laion.count().execute() == ROWS
    assert laion.schema()["image_embedding"].is_array()
    near = laion.filter(laion.similarity > 0.3).group_by("NSFW").agg(n=ibis._.count()).execute()
    assert int(near["n"].sum()) == int(server.sql("SELECT count() FROM laion WHERE similarity > 0.3").text)

    @ibis.udf.scalar.builtin(name="L2Distance")
    def distance(a: list[float], b: list[float]) -> float: ...

    nearest = laion.order_by(distance(laion.image_embedding, ibis.array([0.25] * 16))).limit(3).url.execute()
    sql = f"SELECT url FROM laion ORDER BY L2Distance(image_embedding, {[0.25] * 16}) LIMIT 3 FORMAT TSV"
    assert list(nearest) == server.sql(sql).text.split()
    given = pd.DataFrame({"id": np.arange(3), "v": [[0.5, 1.0], [1.5, 2.0], [2.5, 3.0]]})
    with_it.create_table("ibises", schema=ibis.schema({"id": "!int64", "v": "!array<!float32>"}))
    with_it.insert("ibises", given)
    assert with_it.table("ibises").order_by("id").execute()["v"].tolist() == given["v"].tolist()
    with_it.con.command("DROP TABLE ibises")  # drop_table needs an older sqlglot than ibis 12 asks for
    assert "ibises" not in with_it.list_tables()
