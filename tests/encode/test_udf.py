"""encode_text and encode_image as a ClickHouse server runs them: pipes, rows, answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from fake_encoder import letters
from models import tiny
from numpy.typing import NDArray
from patience import LAST_NET_SECONDS
from PIL import Image

import clipql
from clipql.cli.entry import main
from clipql.encode.udf import array, read_lines, unescape

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("model"))


@contextmanager
def process(kind: str, *, batch: int = 256) -> Iterator[subprocess.Popen[bytes]]:
    """The loop that `clipql udf run` runs, over an encoder that needs no model; it logs its batches at the end."""
    script = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r})\n"
        "from fake_encoder import FakeEncoder\n"
        f"from clipql.encode.udf import serve_{kind} as serve\n"
        "encoder = FakeEncoder()\n"
        f"serve(encoder, 0, 1, lambda message: print(message, file=sys.stderr), batch={batch})\n"
        "print('batches', *encoder.batches, file=sys.stderr)\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe, stderr=pipe) as started:
        yield started
        if started.poll() is None:
            started.kill()


def vectors(lines: Sequence[bytes]) -> list[NDArray[np.float32]]:
    return [np.array(json.loads(line), np.float32) for line in lines]


def expect(lines: Sequence[bytes], texts: Sequence[str]) -> None:
    for found, text in zip(vectors(lines), texts, strict=True):
        np.testing.assert_array_equal(found, letters(text), err_msg=text)


def test_each_line_is_answered_before_the_next_one_comes() -> None:
    with process("texts") as running:
        assert running.stdin is not None
        assert running.stdout is not None
        for text in ("a cat", "", "ein Hündchen", "猫"):
            running.stdin.write(text.encode() + b"\n")
            running.stdin.flush()
            expect([running.stdout.readline()], [text])
        rest, log = running.communicate(timeout=LAST_NET_SECONDS)
        assert (rest, log, running.returncode) == (b"", b"batches 1 1 1 1\n", 0)


def test_lines_that_come_in_pieces_are_put_together() -> None:
    text = "a caption with ümlauts and a tab\t in it"
    sent = text.replace("\t", "\\t").encode() + b"\n"
    with process("texts") as running:
        assert running.stdin is not None
        assert running.stdout is not None
        for at in range(len(sent)):
            running.stdin.write(sent[at : at + 1])
            running.stdin.flush()
        expect([running.stdout.readline()], [text])
        running.stdin.write(b"no end")
        rest, _ = running.communicate(timeout=LAST_NET_SECONDS)
        expect([rest], ["no end"])


def test_thousands_of_lines_in_flight_are_answered_in_order() -> None:
    texts = [f"caption {i} " + "x" * (i % 97) for i in range(5_000)]
    with process("texts") as running:
        assert running.stdin is not None
        assert running.stdout is not None
        sent = "".join(t + "\n" for t in texts).encode()
        # ClickHouse writes and reads at the same time, and does not end the input after a block
        writer = threading.Thread(target=lambda: (running.stdin.write(sent), running.stdin.flush()))
        writer.start()
        answers = [running.stdout.readline() for _ in texts]
        writer.join()
        expect(answers, texts)
        _, log = running.communicate(timeout=LAST_NET_SECONDS)
    assert sum(int(size) for size in log.split()[1:]) == len(texts)


def test_what_has_come_goes_through_the_model_together() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"".join(b"%d\n" % i for i in range(1000)) + b"cut")
    batches = read_lines(reading, 256)
    assert [len(next(batches)) for _ in range(4)] == [256, 256, 256, 232]
    os.write(writing, b" short")
    os.close(writing)
    assert list(batches) == [[b"cut short"]]
    os.close(reading)


def test_null_bytes_that_are_no_text_and_escapes_are_answered_too() -> None:
    sent = [b"\\N", b"\xff\xfe", b"a\\nb\\\\c\\'d\\0", b"\\\\N"]
    with process("texts") as running:
        out, _ = running.communicate(b"".join(s + b"\n" for s in sent), timeout=LAST_NET_SECONDS)
    lines = out.splitlines()
    assert lines[0] == b"[]"
    expect(lines[1:], ["\ufffd\ufffd", "a\nb\\c'd\0", "\\N"])


def test_no_input_is_no_answer() -> None:
    with process("texts") as running:
        assert running.communicate(b"", timeout=LAST_NET_SECONDS)[0] == b""
        assert running.returncode == 0


def test_a_picture_that_cannot_be_read_is_an_empty_array_and_the_process_lives(tmp_path: Path) -> None:
    good = tmp_path / "a tab\tand ümlaut.png"
    Image.new("RGB", (8, 8), (200, 10, 10)).save(good)
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no picture")
    sent = [str(good).replace("\t", "\\t"), str(bad), str(tmp_path / "absent.png"), "", "\\N", "a\\0b"]
    with process("pictures") as running:
        assert running.stdin is not None
        assert running.stdout is not None
        for text in sent:
            running.stdin.write(text.encode() + b"\n")
        running.stdin.flush()
        first = [running.stdout.readline() for _ in sent]
        running.stdin.write(str(good).replace("\t", "\\t").encode() + b"\n")
        out, log = running.communicate(timeout=LAST_NET_SECONDS)
    assert first[1:] == [b"[]\n"] * 5
    assert len(vectors(first)[0]) == 16
    assert out == first[0]
    assert log.decode().startswith(f"{bad}: ")
    assert f"{tmp_path / 'absent.png'}: " in log.decode()


def test_what_clickhouse_escapes_comes_back_whole(db: clipql.Database) -> None:
    statement = "SELECT arrayJoin(arrayMap(i -> concat(char(i), '-', char(i), char(i + 1)), range(256)))"
    output = db.execute(statement, format="TabSeparated").output.data
    # ClickHouse's own line ends are the only ones that are not escaped
    found = [unescape(line) for line in output.split(b"\n")[:-1]]
    assert found == [bytes([i, ord("-"), i, (i + 1) % 256]) for i in range(256)]


def test_vectors_are_written_to_the_last_bit(db: clipql.Database) -> None:
    numbers = np.random.default_rng(0).standard_normal(512).astype(np.float32) * np.float32(1e-3)
    numbers[:4] = [0.0, -0.0, 1.0, np.finfo(np.float32).tiny]
    rows = db.sql(f"SELECT CAST('{array(numbers)[:-1].decode()}' AS Array(Float32)) AS v").rows
    np.testing.assert_array_equal(np.array(rows[0][0], np.float32), numbers)


def test_install_writes_what_the_server_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path
) -> None:
    folder = tmp_path / "for server"
    arguments = ["udf", "install", str(folder), "--model", str(tiny_model), "--pool-size", "2", "--timeout", "30"]
    assert main(arguments) == 0
    functions = ET.parse(folder / "encode_function.xml").getroot()
    assert functions.tag == "functions"
    shown = [{e.tag: (e.text or "").strip() for e in f} for f in functions]
    common = {
        "type": "executable_pool",
        "return_type": "Array(Float32)",
        "argument": "",
        "format": "TabSeparated",
        "execute_direct": "1",
        "pool_size": "2",
        "send_chunk_header": "0",
        "max_command_execution_time": "30",
        "command_read_timeout": "30000",
        "command_write_timeout": "30000",
        "command_termination_timeout": "5",
    }
    assert shown == [
        {"name": "encode_text", "command": "encode_text", "deterministic": "1", **common},
        {"name": "encode_image", "command": "encode_image", "deterministic": "0", **common},
    ]
    assert [a.text for a in functions.iterfind("function/argument/type")] == ["String", "String"]
    for name in ("encode_text", "encode_image"):
        assert os.access(folder / "user_scripts" / name, os.X_OK)
    output = capsys.readouterr().out
    assert f"<user_scripts_path>{folder}/user_scripts/</user_scripts_path>" in output
    assert f"    {tiny_model}\n" in output


# chDB is ClickHouse, and loads executable functions as the server does
_IN_CLICKHOUSE = """
import json, sys
import chdb
folder, *queries = sys.argv[1:]
settings = f"user_defined_executable_functions_config={folder}/*_function.xml&user_scripts_path={folder}/user_scripts"
connection = chdb.connect(f":memory:?{settings}")
print(json.dumps([json.loads(str(connection.query(q, "JSONCompact")))["data"] for q in queries]))
"""


def test_clickhouse_runs_the_functions(tmp_path: Path, tiny_model: Path) -> None:
    from clipql.encode.clip import open_encoder

    picture, bad = tmp_path / "red.png", tmp_path / "bad.png"
    Image.new("RGB", (40, 30), (200, 10, 10)).save(picture)
    bad.write_bytes(b"no picture")
    assert main(["udf", "install", str(tmp_path / "udf"), "--model", str(tiny_model)]) == 0
    queries = [
        "SELECT encode_text('a cat')",
        f"SELECT encode_image('{picture}'), encode_image('{bad}')",
        "SELECT count(), uniqExact(v), min(length(v)) FROM (SELECT encode_text('' || number % 50) v FROM numbers(999))",
        "SELECT cosineDistance(encode_text('tab\\t, line\\n, quote\\' and backslash \\\\N'), encode_text('a dog'))",
        "SELECT encode_text(assumeNotNull(materialize(toNullable('a cat')))) = encode_text('a cat')",
    ]
    command = [sys.executable, "-c", _IN_CLICKHOUSE, str(tmp_path / "udf"), *queries]
    # the server has neither our environment nor our folder
    done = subprocess.run(
        command, capture_output=True, text=True, cwd="/", env={"PATH": "/usr/bin:/bin"}, timeout=LAST_NET_SECONDS
    )
    assert done.returncode == 0, done.stderr
    texts, pictures, many, distance, same = json.loads(done.stdout)

    encoder = open_encoder(tiny_model)
    cat, escaped, dog = encoder.encode_texts(["a cat", "tab\t, line\n, quote' and backslash \\N", "a dog"])
    np.testing.assert_allclose(texts[0][0], cat, atol=1e-6)
    np.testing.assert_allclose(pictures[0][0], encoder.encode_pictures([picture]).vectors[0], atol=1e-6)
    assert pictures[0][1] == []
    assert [int(n) for n in many[0]] == [999, 50, encoder.dimension]
    np.testing.assert_allclose(distance[0][0], 1 - float(escaped @ dog), atol=1e-5)
    assert same[0][0] == 1


def test_a_model_that_is_not_there_ends_the_command_with_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "clipql", "udf", "run", "text", "--model", "nobody/nothing"]
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, input=b"a cat\n", capture_output=True, env=environment, timeout=LAST_NET_SECONDS)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"clipql: the model nobody/nothing is not on this machine")
