"""encode_text and encode_image inside statements, with an encoder that needs no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fake_encoder
import numpy as np
import pytest
from parts import make_part
from PIL import Image

import clipql
from clipql.errors import ModelMismatch, PictureError, QueryError, VectorError
from clipql.sql.recognition.encode_calls import BATCH

letters = fake_encoder.letters


@pytest.fixture
def encoder(db: clipql.Database) -> Any:
    made = fake_encoder.FakeEncoder()
    db.encoders.use(made)
    return made


@pytest.fixture
def pets(db: clipql.Database, encoder: Any, tmp_path: Path) -> clipql.Database:
    Image.new("RGB", (20, 10), (200, 10, 10)).save(tmp_path / "red.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    db.sql(
        "CREATE TABLE pets (id UInt32, caption String, path String, image_embedding Array(Float32)) "
        "ENGINE = MergeTree ORDER BY id"
    )
    db.sql(
        f"INSERT INTO pets VALUES (1, 'cat', '{tmp_path}/red.png', encode_text('cat')), "
        f"(2, 'dog', '{tmp_path}/bad.png', encode_text('dog')), "
        f"(3, 'red', '{tmp_path}/red.png', encode_image('{tmp_path}/red.png'))"
    )
    encoder.batches.clear()
    return db


def test_a_constant_is_a_vector_anywhere_an_expression_may_stand(db: clipql.Database, encoder: Any) -> None:
    found = db.sql("SELECT encode_text('cat'), length(encode_text('dog')) AS n, [encode_text('cat')][1][1] = 0")
    assert found.columns[0] == "encode_text('cat')"
    assert np.array_equal(np.array(found.rows[0][0], np.float32), letters("cat"))
    assert found.rows[0][1:] == (16, 0)


def test_words_find_their_row_in_one_statement(pets: clipql.Database) -> None:
    found = pets.sql("SELECT id FROM pets ORDER BY cosineDistance(image_embedding, encode_text('god')) LIMIT 2")
    assert found.rows[0] == (2,)
    assert found.stats.searches[0].kind == "top-k"


def test_a_constant_is_encoded_once_a_query_and_remembered_across_queries(pets: clipql.Database, encoder: Any) -> None:
    sql = (
        "SELECT id, cosineDistance(image_embedding, encode_text('owl')) AS d FROM pets "
        "WHERE cosineDistance(image_embedding, encode_text('owl')) < 2 ORDER BY d LIMIT 2"
    )
    pets.sql(sql)
    pets.sql(sql)
    assert encoder.batches == [1]


@pytest.mark.parametrize(
    "argument", ["{word:String}", "concat('c', 'at')", "w", "lower('CAT')", "'cat', 'tests/stand-in'"]
)
def test_any_expression_without_columns_is_a_constant(pets: clipql.Database, argument: str) -> None:
    sql = (
        f"WITH 'cat' AS w SELECT id FROM pets ORDER BY cosineDistance(image_embedding, encode_text({argument})) LIMIT 1"
    )
    found = pets.sql(sql, word="cat")
    assert found.rows == [(1,)]
    assert found.stats.searches[0].kind == "top-k"


def test_vectors_of_words_and_pictures_can_be_added_subtracted_and_weighed(
    pets: clipql.Database, tmp_path: Path
) -> None:
    picture = f"encode_image('{tmp_path}/red.png')"
    mixed = pets.sql(f"SELECT (encode_text('cat') + 3 * {picture}) / 4 - encode_text('dog') AS v").rows[0][0]
    red = np.array(pets.sql(f"SELECT {picture}").rows[0][0], np.float32)
    expected = (letters("cat").astype(np.float64) + 3.0 * red) / 4 - letters("dog")
    assert np.allclose(mixed, expected, atol=1e-6)
    nearest = pets.sql(
        f"SELECT id FROM pets ORDER BY cosineDistance(image_embedding, {picture} + 0.1 * encode_text('cat')) LIMIT 1"
    )
    assert nearest.rows == [(3,)]
    assert nearest.stats.searches[0].kind == "top-k"


def test_a_column_goes_through_the_model_in_batches(pets: clipql.Database, encoder: Any) -> None:
    pets.sql(
        "INSERT INTO pets SELECT number + 10, toString(number), '', encode_text(toString(number)) FROM numbers(3000)"
    )
    assert encoder.batches == [BATCH] * (3000 // BATCH) + [3000 % BATCH]
    encoder.batches.clear()
    same = pets.sql("SELECT count() FROM pets WHERE id > 9 AND L2Distance(encode_text(caption), image_embedding) = 0")
    assert same.rows == [(3000,)]
    assert encoder.batches == [BATCH] * (3000 // BATCH) + [3000 % BATCH]


def test_only_the_rows_that_the_answer_holds_are_encoded(pets: clipql.Database, encoder: Any) -> None:
    unit = [1.0] + [0.0] * 15
    pets.sql(f"INSERT INTO pets SELECT number + 10, concat('n', toString(number)), '', {unit} FROM numbers(500)")
    found = pets.sql("SELECT id, encode_text(caption) AS v FROM pets WHERE id > 20 ORDER BY id LIMIT 3")
    assert [r[0] for r in found.rows] == [21, 22, 23]
    assert np.allclose(found.rows[0][1], letters("n11"), atol=1e-7)
    assert encoder.batches == [3]


def test_equal_values_are_encoded_once(pets: clipql.Database, encoder: Any) -> None:
    found = pets.sql("SELECT encode_text(if(id = 1, 'a', 'b')) AS v FROM pets ORDER BY id")
    assert [np.array(r[0], np.float32).tolist() for r in found.rows] == [letters(t).tolist() for t in "abb"]
    assert encoder.batches == [2]


def test_calls_in_subqueries_joins_and_views_are_right(pets: clipql.Database) -> None:
    pets.sql("CREATE VIEW encoded AS SELECT id, encode_text(caption) AS v FROM pets")
    joined = pets.sql(
        "SELECT p.id FROM pets AS p JOIN (SELECT id, encode_text(caption) AS v FROM pets) AS s ON p.id = s.id "
        "WHERE L2Distance(p.image_embedding, s.v) = 0 ORDER BY p.id"
    )
    viewed = pets.sql("SELECT v FROM encoded WHERE id = 2").rows[0][0]
    assert joined.rows == [(1,), (2,)]
    assert np.array_equal(np.array(viewed, np.float32), letters("dog"))


def test_array_join_gives_a_row_an_element(db: clipql.Database, encoder: Any) -> None:
    found = db.sql("SELECT encode_text(arrayJoin(['a', 'b', 'c'])) AS v")
    assert [np.array(r[0], np.float32).tolist() for r in found.rows] == [letters(t).tolist() for t in "abc"]


def test_what_depends_on_rows_is_no_constant(pets: clipql.Database) -> None:
    counted = pets.sql("SELECT encode_text(toString(count())) = encode_text('3') AS same FROM pets")
    numbered = pets.sql("SELECT uniqExact(encode_text(toString(rowNumberInAllBlocks()))) AS n FROM pets")
    drawn = pets.sql("SELECT uniqExact(encode_text(toString(generateUUIDv4()))) > 1 AS several FROM pets")
    assert (counted.rows, numbered.rows, drawn.rows) == ([(1,)], [(3,)], [(1,)])


def test_values_are_encoded_in_batches(pets: clipql.Database, encoder: Any) -> None:
    plain = ", ".join(f"({i}, 'r', '', encode_text('row {i}'))" for i in range(2000, 3300))
    pets.sql(f"INSERT INTO pets VALUES {plain}")
    assert encoder.batches == [BATCH] * (1300 // BATCH) + [1300 % BATCH]
    found = pets.sql("SELECT count() FROM pets WHERE id >= 2000 AND L2Distance(image_embedding, "
                     "encode_text(concat('row ', toString(id)))) = 0")  # fmt: skip
    assert found.rows == [(1300,)]


@pytest.mark.parametrize("name", ["BMW.bmp", "RIFF.png", "GIF8.gif"])
def test_a_path_that_begins_as_a_picture_does_is_a_path(
    pets: clipql.Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8), (9, 99, 9)).save(name)
    data = Path(name).read_bytes().hex()
    assert pets.sql(f"SELECT encode_image('{name}') = encode_image(unhex('{data}')) AS same").rows == [(1,)]


@pytest.mark.parametrize("null", ["NULL", "{word:Nullable(String)}"])
def test_null_gives_an_empty_vector_as_a_constant_too(db: clipql.Database, encoder: Any, null: str) -> None:
    assert db.sql(f"SELECT length(encode_text({null})) AS n", word=None).rows == [(0,)]


def test_null_gives_an_empty_array(db: clipql.Database, encoder: Any) -> None:
    assert db.sql("SELECT encode_text(CAST(NULL AS Nullable(String))) AS v").rows == [([],)]


def test_text_that_is_not_utf8_is_encoded_with_replacements(db: clipql.Database, encoder: Any) -> None:
    found = db.sql("SELECT encode_text(unhex('61FF62')) AS v").rows[0][0]
    assert np.array_equal(np.array(found, np.float32), letters("a�b"))


def test_encode_image_takes_the_bytes_of_a_picture(pets: clipql.Database, tmp_path: Path) -> None:
    data = (tmp_path / "red.png").read_bytes().hex()
    by_bytes = pets.sql(f"SELECT encode_image(unhex('{data}')) AS v").rows
    assert by_bytes == pets.sql(f"SELECT encode_image('{tmp_path}/red.png') AS v").rows


def test_a_bad_picture_is_named(pets: clipql.Database, tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"bad\.png"):
        pets.sql("SELECT encode_image(path) FROM pets")
    assert len(pets.sql("SELECT encode_image(path) FROM pets WHERE id != 2")) == 2
    with pytest.raises(PictureError, match=r"nowhere\.png"):
        pets.sql("SELECT encode_image('/nowhere.png')")


def test_a_picture_that_changed_is_encoded_anew(pets: clipql.Database, tmp_path: Path) -> None:
    before = pets.sql(f"SELECT encode_image('{tmp_path}/red.png') AS v").rows
    Image.new("RGB", (21, 10), (0, 200, 10)).save(tmp_path / "red.png")
    assert pets.sql(f"SELECT encode_image('{tmp_path}/red.png') AS v").rows != before


@pytest.mark.parametrize("call", ["encode_text()", "encode_text('a', 'b', 'c')", "encode_text(1)", "encode_text([1])"])
def test_a_wrong_call_says_what_is_expected(db: clipql.Database, encoder: Any, call: str) -> None:
    with pytest.raises(QueryError, match=r"encode_text|String"):
        db.sql(f"SELECT {call}")


def test_search_takes_words_a_path_bytes_or_a_vector(pets: clipql.Database, tmp_path: Path) -> None:
    def first(**by: Any) -> int:
        return int(pets.search("pets", k=1, columns=["id"], **by).rows[0][0])

    picture = tmp_path / "red.png"
    assert (first(text="dog"), first(image=picture), first(image=picture.read_bytes())) == (2, 3, 3)
    data = picture.read_bytes()
    assert [first(image=i) for i in (str(picture), bytearray(data), memoryview(data))] == [3, 3, 3]
    with pytest.raises(PictureError, match="a picture is of type int; expected its bytes, or its path"):
        first(image=5)
    assert first(vector=letters("cat")) == 1
    with pytest.raises(QueryError, match="give text, image or vector"):
        pets.search("pets")
    with pytest.raises(QueryError, match="text and vector"):
        pets.search("pets", text="a", vector=letters("a"))


@pytest.fixture
def modelled(db: clipql.Database, tmp_path: Path) -> clipql.Database:
    """A table whose columns were filled by the model tests/one, and encoders of two models."""
    make_part(tmp_path / "parts", seed=3)
    db.ingest(tmp_path / "parts", table="laion", model="tests/one")
    for name in ("tests/one", "tests/two"):
        db.encoders.use(fake_encoder.FakeEncoder(name))
    db.encoders.default = None
    return db


_NEAREST = "SELECT id FROM laion ORDER BY cosineDistance(image_embedding, {}) LIMIT 1"


def test_words_are_encoded_by_the_model_that_filled_the_column(modelled: clipql.Database) -> None:
    assert len(modelled.sql(_NEAREST.format("encode_text('cat')"))) == 1
    assert len(modelled.sql(_NEAREST.format("encode_text('cat', 'tests/one')"))) == 1


@pytest.mark.parametrize(
    "vector",
    [
        "encode_text('cat', 'tests/two')",
        "encode_text('a', 'tests/one') + encode_text('cat', 'tests/two')",
        "(SELECT v FROM other LIMIT 1)",
    ],
)
def test_a_vector_of_another_model_is_refused_and_both_are_named(
    modelled: clipql.Database, tmp_path: Path, vector: str
) -> None:
    make_part(tmp_path / "two", seed=4)
    modelled.ingest(tmp_path / "two", table="two", model="tests/two")
    modelled.sql("ALTER TABLE two RENAME COLUMN image_embedding TO v")
    modelled.sql("RENAME TABLE two TO other")
    with pytest.raises(ModelMismatch, match=r"tests/one.*tests/two"):
        modelled.sql(_NEAREST.format(vector))
    with pytest.raises(ModelMismatch, match=r"tests/one.*tests/two"):
        modelled.sql(
            "SELECT count() FROM laion AS a CROSS JOIN other AS b WHERE L2Distance(a.image_embedding, b.v) < 1"
        )


def test_the_default_model_is_refused_where_the_column_has_another(modelled: clipql.Database) -> None:
    modelled.encoders.default = "tests/two"
    with pytest.raises(ModelMismatch, match=r"tests/one.*tests/two"):
        modelled.search("laion", text="cat")


WRONG = {
    "5": "UInt8", "-1.5": "Float64", "['a']": "Array(String)", "(1, 'a')": "Tuple(UInt8, String)", "today()": "Date",
    "true": "Bool", "{n:Int32}": "Int32", "id": "UInt32", "image_embedding": "Array(Float32)",
    "length(caption)": "UInt64", "[caption]": "Array(String)", "if(id = 1, NULL, id)": "Nullable(UInt32)",
    "map(caption, 1)": "Map(String, UInt8)",
}  # fmt: skip


@pytest.mark.parametrize("function", ["encode_text", "encode_image"])
@pytest.mark.parametrize("argument", WRONG)
def test_what_is_no_text_is_named_with_its_type(pets: clipql.Database, function: str, argument: str) -> None:
    call = f"{function}({argument})"
    for sql in (
        f"SELECT length({call}) FROM pets",
        f"SELECT id FROM pets ORDER BY L2Distance(image_embedding, {call}) LIMIT 1",
        f"SELECT id FROM pets WHERE L2Distance(image_embedding, {call}) < 1",
        f"INSERT INTO pets SELECT id, caption, path, {call} FROM pets",
    ):
        with pytest.raises(QueryError) as raised:
            pets.sql(sql, n=5)
        assert str(raised.value) == f"{call} got {WRONG[argument]}; expected text"


@pytest.mark.parametrize(
    ("sql", "kind"),
    [
        ("SELECT encode_text((SELECT id FROM pets LIMIT 1))", "UInt32"),
        ("SELECT arrayMap(x -> encode_text(x), [id]) FROM pets", "UInt32"),
        ("SELECT id, encode_text(n) FROM (SELECT id, 1.5 AS n FROM pets GROUP BY id)", "Float64"),
    ],
)
def test_where_rows_cannot_be_told_the_type_is_named_too(pets: clipql.Database, sql: str, kind: str) -> None:
    with pytest.raises(QueryError, match=rf"^encode_text(\(n\))? got {kind}; expected text"):
        pets.sql(sql)


def test_a_constant_that_does_not_fit_is_named_as_it_was_written(pets: clipql.Database) -> None:
    pets.sql("CREATE TABLE other (id UInt32, v Array(Float32)) ENGINE = MergeTree ORDER BY id")
    pets.sql("INSERT INTO other VALUES (1, [1, 2, 3])")
    for call, numbers in (("encode_text('cat')", 16), ("encode_text(NULL)", 0)):
        with pytest.raises(VectorError) as raised:
            pets.sql(f"SELECT id FROM other ORDER BY L2Distance(v, {call}) LIMIT 1")
        assert str(raised.value) == f"v of default.other holds 3 numbers; the query vector {call} has {numbers}"
