"""Tars, Parquet files, pictures and models made to harm: each is refused by name, in bounded time and memory."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import os
import resource
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from models import change, encoder, tiny
from onnx import TensorProto, helper
from PIL import Image

from bench.encode_model import Shape, Tower
from clipql.encode import pictures
from clipql.encode.embed import members
from clipql.encode.embed.parquet import read_parquet
from clipql.encode.embed.rows import Row, Skip, Unused
from clipql.encode.embed.sources import find_sources
from clipql.encode.embed.webdataset import read_tar
from clipql.encode.folder import read_folder
from clipql.encode.prepare import OPENAI
from clipql.errors import ModelError


def short(value: object) -> str:
    return repr(value)[:12]


SMALL = Shape(Tower(16, 1, 2), Tower(16, 1, 2), dimension=8, context=16, picture=16, patch=8)
DEEP = ("[" * 100_000, '{"a":' * 50_000)


@contextlib.contextmanager
def within(megabytes: int, seconds: float = 60.0) -> Iterator[None]:
    """Fail where more memory is taken, as far as that is more than ever before, or more time."""
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10 < megabytes
    assert time.monotonic() - began < seconds


# tars


def rows_of(path: Path) -> list[Row]:
    with within(150):
        return list(read_tar(path, Skip()))


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_of_gigabytes_is_not_read(tmp_path: Path, kind: bytes) -> None:
    path = tmp_path / "a.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(header("long", 400 << 20, kind))
        for _ in range(400):
            file.write(bytes(1 << 20))
    (row,) = rows_of(path)
    assert row.error.startswith(
        f"{path} is damaged or cut short after 0 samples (a header announces 419,430,400 bytes)"
    )


def test_headers_upon_headers_end(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    record = b"20 comment=xxxxxxxx\n"
    path.write_bytes((header("x", len(record), tarfile.XHDTYPE) + record.ljust(512, b"\0")) * 5_000)
    (row,) = rows_of(path)
    assert row.error.startswith(f"{path} is damaged or cut short after 0 samples")


@pytest.mark.parametrize("size", [-1, -512, -(10**15)])
def test_a_member_that_ends_before_it_begins_is_damage(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(header("a.png", 4) + b"data".ljust(512, b"\0") + header("b.png", size) + bytes(2048))
    found = rows_of(path)
    assert [bool(r.error) for r in found] == [False, True]
    assert f"{path} is damaged or cut short after 1 samples" in found[1].error


@pytest.mark.parametrize("pack", [gzip, lzma, io])
def test_a_member_that_goes_on_after_the_end_is_damage(tmp_path: Path, pack: Any) -> None:
    path = tmp_path / "a.tar"
    with pack.open(path, "wb") as file:
        file.write(header("a.png", 4) + b"data".ljust(512, b"\0") + header("b.bin", 1 << 60) + bytes(2048))
    with within(150, seconds=10):
        found = rows_of(path)
    assert [bool(r.error) for r in found] == [False, True]
    assert f"{path} is damaged or cut short after 1 samples (it ends within a member)" in found[1].error


@pytest.mark.parametrize("pack", [gzip, bz2, lzma])
def test_a_tar_that_unpacks_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pack: Any) -> None:
    monkeypatch.setattr(members, "_LEAST_UNPACKED", 1 << 20)
    path = tmp_path / "a.tar.x"
    with pack.open(path, "wb") as file:
        file.write(header("a.png", 4) + b"data".ljust(512, b"\0") + header("big.bin", 200 << 20))
        for _ in range(200):
            file.write(bytes(1 << 20))
    found = rows_of(path)
    assert [bool(r.error) for r in found] == [False, True]
    assert "it unpacks to more than 200 times its size" in found[1].error


def test_a_member_that_is_too_large_is_told_with_its_tar(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(header("a.png", 65 << 20))
        for _ in range(66):
            file.write(bytes(1 << 20))
    assert rows_of(path)[0].error.startswith(f"{path}#a.png has 68,157,440 bytes; the most that is read is 67,108,864")


def test_pipes_in_a_folder_are_not_waited_for(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    for name in ("a.txt", "b.png", "c.tar", "d.parquet"):
        os.mkfifo(tmp_path / name)
    found = list(find_sources([tmp_path], tmp_path / "out", pictures=True).rows(Skip(), Unused()))
    assert [Path(r.key).name for r in found] == ["a.png"]
    assert f"{tmp_path}/a.txt: it is no regular file" in found[0].error
    (row,) = read_tar(tmp_path / "c.tar", Skip())
    assert f"{tmp_path}/c.tar is damaged or cut short after 0 samples (it is no regular file)" in row.error


# Parquet files


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found, number = found + bytes([number & 127 | 128]), number >> 7
    return found + bytes([number])


def test_a_parquet_file_of_a_billion_billion_rows_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"caption": [f"cat {i}" for i in range(20)]}), path)
    content = path.read_bytes()
    size = int.from_bytes(content[-8:-4], "little")
    # field 3 of the file and of its row group, and field 5 of the column: i64, zigzag
    footer = content[-8 - size : -8].replace(b"\x16" + varint(40), b"\x16" + varint(2 * 10**18))
    path.write_bytes(content[: -8 - size] + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    assert pq.read_metadata(path).num_rows == 10**18
    with within(150):
        (row,) = read_parquet(path, Skip(), pictures=False, column="caption")
    assert f"{path} is not a whole Parquet file (it announces 1,000,000,000,000,000,000 rows in" in row.error


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "a/../../secret.png", "a\0b"])
def test_a_parquet_file_names_no_pictures_that_lie_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"image": pa.array([{"bytes": None, "path": name}], kind)})
    pq.write_table(table, tmp_path / "in" / "a.parquet")
    (row,) = read_parquet(tmp_path / "in" / "a.parquet", Skip(), pictures=True)
    assert row.picture is None
    assert f"names {name!r}, which lies elsewhere" in row.error


# pictures


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("TIFF", "F", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", "I", {"compression": "tiff_adobe_deflate"}),
        ("PNG", "I;16", {}),
    ],
)
def test_a_small_file_of_many_pixels_takes_no_more_than_its_pixels(
    tmp_path: Path, kind: str, mode: str, options: dict[str, Any]
) -> None:
    path = tmp_path / "a"
    Image.new(mode, (5_000, 4_000)).save(path, kind, **options)
    assert path.stat().st_size < 200_000
    with within(260):
        assert pictures.read(path, OPENAI).size == (5_000, 4_000)


def test_numbers_are_stretched_alike_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = np.random.default_rng(1).normal(0, 1000, (50, 70)).astype(np.float32)
    numbers[3, 4], numbers[5, 6] = np.nan, np.inf
    file = io.BytesIO()
    Image.fromarray(numbers).save(file, "TIFF")
    whole = pictures.read(file.getvalue(), OPENAI).rgb
    monkeypatch.setattr(pictures, "_STRIP", 200)
    assert np.array_equal(pictures.read(file.getvalue(), OPENAI).rgb, whole)


# models


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("whole"), SMALL)


@pytest.fixture
def model(made: Path, tmp_path: Path) -> Path:
    """A model's folder whose files can be replaced."""
    shutil.copytree(made, tmp_path / "model", copy_function=os.link)
    return tmp_path / "model"


def refused(folder: Path, file: str, told: str = "") -> None:
    """Encoding by the model fails with the name of the file."""
    with within(300), pytest.raises(ModelError) as caught:
        encoder(folder).encode_texts(["a cat"])
    assert str(folder / file) in str(caught.value)
    assert told in str(caught.value)


def put(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer.json"])
@pytest.mark.parametrize(
    "content", [DEEP[0], DEEP[1], "", "\ufeff{", "[]", "null", '{"a": 1e999', "7" * 5000], ids=short
)
def test_a_json_of_odd_shape_is_refused(model: Path, file: str, content: str) -> None:
    put(model / file, content.encode())
    refused(model, file)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "tokenizer.json"])
def test_a_pipe_in_a_model_is_not_waited_for(model: Path, file: str) -> None:
    (model / file).unlink()
    os.mkfifo(model / file)
    refused(model, file)


def test_a_configuration_of_gigabytes_is_not_read(model: Path) -> None:
    put(model / "config.json", b"{")
    os.truncate(model / "config.json", 8 << 30)
    refused(model, "config.json", "it has 8,589,934,592 bytes, and 16,777,216 are the most that are read")


@pytest.mark.parametrize("number", [10**9, 10**12, 10**30, -1, 0, 1.5, True, "8", [8]])
@pytest.mark.parametrize("name", ["projection_dim", "max_position_embeddings", "vocab_size", "image_size"])
def test_sizes_that_no_model_has_are_refused_before_they_are_made(model: Path, name: str, number: Any) -> None:
    text = {"max_position_embeddings": 16, "vocab_size": 49408}
    vision = {"image_size": 16, "patch_size": 8}
    for each in ("config.json", "preprocessor_config.json"):
        put(model / each, (model / each).read_bytes())
    if name == "image_size":
        vision[name] = number
        change(model, "preprocessor_config.json", size=number, crop_size=number)
    elif name in text:
        text[name] = number
    change(model, "config.json", text_config=text, vision_config=vision)
    if name == "projection_dim":
        change(model, "config.json", projection_dim=number)
    refused(model, "preprocessor_config.json" if name == "image_size" else "config.json")


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e300", "1" + "0" * 400], ids=["nan", "inf", "-inf", "large", "huge"]
)
@pytest.mark.parametrize("name", ["image_mean", "image_std"])
def test_colours_that_are_no_numbers_are_refused(model: Path, name: str, number: str) -> None:
    put(model / "preprocessor_config.json", (model / "preprocessor_config.json").read_bytes())
    change(model, "preprocessor_config.json", **{name: [0.5, json.loads(number), 0.5]})
    refused(model, "preprocessor_config.json", "expected three numbers")


def tokenizer_with(model: Path, alter: Callable[[dict[str, Any]], None]) -> None:
    found = json.loads((model / "tokenizer.json").read_text())
    alter(found)
    put(model / "tokenizer.json", json.dumps(found).encode())


def test_a_tokenizer_that_contradicts_itself_is_refused(model: Path) -> None:
    def alter(found: dict[str, Any]) -> None:
        found["post_processor"]["special_tokens"] = {}

    tokenizer_with(model, alter)
    refused(model, "tokenizer.json")


@pytest.mark.parametrize("nested", [False, True])
def test_a_tokenizer_that_would_take_for_ever_over_a_long_text_is_refused(model: Path, nested: bool) -> None:
    def alter(found: dict[str, Any]) -> None:
        first, text, *rest = found["post_processor"]["single"]
        found["post_processor"]["single"] = [first, *[text] * 50, *rest]
        if nested:
            found["post_processor"] = {"type": "Sequence", "processors": [found["post_processor"]]}

    tokenizer_with(model, alter)
    refused(model, "tokenizer.json", "its post-processor gives a text 50 times over")


def test_a_tokenizer_that_makes_much_of_little_is_refused(model: Path) -> None:
    def alter(found: dict[str, Any]) -> None:
        step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}
        found["normalizer"] = {"type": "Sequence", "normalizers": [step] * 4}

    tokenizer_with(model, alter)
    refused(model, "tokenizer.json", "its normaliser makes 1,000,000,000,000 characters of one")


@pytest.mark.parametrize("where", ["../secret", "/etc/hostname", "link", "sub/../../secret", "/dev/zero"])
def test_weights_that_lie_outside_of_a_models_folder_are_not_read(model: Path, where: str) -> None:
    secret = np.arange(8, dtype=np.float32).tobytes()
    (model / "secret").write_bytes(secret)
    (model / "onnx" / "sub").mkdir()
    (model / "onnx" / "link").symlink_to("../secret")
    weight = TensorProto(name="w", data_type=1, dims=[8], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", where), ("offset", "0"), ("length", "32")):
        weight.external_data.add(key=key, value=value)
    given = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "length"])
    made = helper.make_tensor_value_info("text_embeds", TensorProto.FLOAT, ["n", 8])
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["float"], to=1),
        helper.make_node("ReduceSum", ["float"], ["sum"], keepdims=1),
        helper.make_node("Add", ["sum", "w"], ["text_embeds"]),
    ]
    graph = helper.make_graph(nodes, "g", [given], [made], [weight])
    whole = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    put(model / "onnx" / "text_model.onnx", b"")
    onnx.save(whole, model / "onnx" / "text_model.onnx")
    refused(model, "onnx/text_model.onnx", "cannot be loaded")


def test_a_folder_is_read_by_what_it_holds(model: Path) -> None:
    assert read_folder(model).dimension == 8
