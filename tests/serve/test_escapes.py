"""What SQL from the network must not do: every attempt of escapes.txt is sent to a real server, and is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import pytest

from clipql.serve import allowed
from tests.serve.conftest import Reply, Running, fill, start, stop

SECRET = "the canary sings"
# 404: a file's name, which is no table's
REFUSED = (400, 403, 404, 421)
# the errors of the guard, of its settings and of SQL that is none; None where there is no statement yet
GUARDED = ("497", "164", "452", "73", "62", "115", "456", None)
# what else may refuse: values that are expressions (344) and settings that are no value (27) by ClickHouse, pictures
# that are paths by the encoder (36), names that are no table's (60, 47), and what asks another server (43)
OTHERS = ("344", "27", "36", "60", "47", "43")


@dataclass(frozen=True)
class Attempt:
    """One line of the table."""

    name: str
    how: str
    text: str


def attempts() -> list[Attempt]:
    """All lines of the table."""
    text = (Path(__file__).parent / "escapes.txt").read_text(encoding="utf-8")
    lines = [line.split("\t") for line in text.splitlines() if line and not line.startswith("#")]
    return [Attempt(n, h, json.loads('"' + t.replace('"', '\\"') + '"')) for n, h, t in lines]


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that may write, with a secret beside its database."""
    folder = tmp_path_factory.mktemp("exposed")
    fill(folder)
    secrets = folder / "secrets"
    secrets.mkdir()
    for name in ("canary", "canary.csv"):
        (secrets / name).write_text(f"{SECRET}\n")
        (folder / name).write_text(f"{SECRET}\n")
    running = start(folder, "--write", environment={"CLIPQL_MODEL": "clipql/emoji"})
    assert running.sql("CREATE TABLE plain (a String) ENGINE = MergeTree ORDER BY a").status == 200
    assert running.sql("INSERT INTO plain VALUES ('kept')").status == 200
    yield running
    stop(running)


def send(server: Running, attempt: Attempt) -> Reply:
    """Send an attempt as its line says."""
    secrets = server.folder / "secrets"
    text = attempt.text.replace("{canary}", str(secrets / "canary")).replace("{folder}", str(secrets))
    text = text.replace("{port}", str(server.port))
    if attempt.how == "params":
        sql, _, given = text.partition("&")
        return server.ask("/", sql, **dict(parse_qsl(given, keep_blank_values=True)))
    if attempt.how == "session":
        *first, last = text.split(";; ")
        for sql in first:
            server.sql(sql, session_id=attempt.name)
        return server.sql(last, session_id=attempt.name)
    if attempt.how == "header":
        sql, _, header = text.partition("|")
        name, _, value = header.partition(": ")
        return server.ask("/", sql, headers={name: value})
    return server.ask("/", query=text) if attempt.how == "get" else server.sql(text)


def test_the_table_of_attempts_is_long_and_each_has_a_name_of_its_own() -> None:
    names = [a.name for a in attempts()]
    assert len(names) >= 200
    assert len(set(names)) == len(names)
    assert {a.how for a in attempts()} == {"sql", "get", "params", "header", "session"}


def test_every_attempt_is_refused_and_tells_nothing(exposed: Running) -> None:
    secrets = exposed.folder / "secrets"
    wrong = []
    others: dict[str, list[str]] = {}
    for attempt in attempts():
        reply = send(exposed, attempt)
        by = reply.headers.get("x-clickhouse-exception-code")
        if by not in GUARDED:
            others.setdefault(str(by), []).append(attempt.name)
        if reply.status not in REFUSED or SECRET in reply.body.decode("utf-8", "replace"):
            wrong.append(f"{attempt.name}: {reply.status} {reply.text[:200]}")
    assert wrong == [], "\n".join(wrong)
    assert set(others) <= set(OTHERS), others
    assert sum(map(len, others.values())) <= 30, others  # the guard is what refuses
    for folder in (secrets, exposed.folder):
        assert {p.name: p.read_text() for p in folder.glob("canary*")} == dict.fromkeys(
            ("canary", "canary.csv"), f"{SECRET}\n"
        )
    assert sorted(p.name for p in secrets.iterdir()) == ["canary", "canary.csv"]
    assert exposed.sql("SELECT a FROM plain").text == "kept\n"
    assert exposed.sql("SELECT count() FROM laion").text == "300\n"
    tables = exposed.sql("SELECT name FROM system.tables WHERE database = 'default' ORDER BY name").text.split()
    assert tables == ["laion", "pictures", "plain"]
    assert exposed.sql("SELECT 1").text == "1\n"


def test_what_reaches_the_network_or_files_is_on_no_list() -> None:
    for name in ("aiGenerate", "aiEmbed", "aiClassify", "aiTranslate", "file", "getServerSetting", "reverseDNSQuery",
                 "catboostEvaluate", "dictGet", "joinGet", "hostName", "fileIf", "evalMLMethod"):  # fmt: skip
        assert not allowed.function(name), name


def test_harmless_statements_pass(exposed: Running) -> None:
    wrong = []
    lines = (Path(__file__).parent / "harmless.txt").read_text(encoding="utf-8").splitlines()
    for sql in (line for line in lines if not line.startswith("#")):
        reply = exposed.sql(sql)
        if reply.status != 200:
            wrong.append(f"{sql[:100]}: {reply.status} {reply.text[:200]}")
    assert wrong == [], "\n".join(wrong)
    assert exposed.sql("SELECT a FROM plain").text == "kept\n"


def test_a_statement_of_bytes_that_are_no_text_is_refused(exposed: Running) -> None:
    for data in (b"SELECT '\xff\xfe'", b"\xff\xfeS\x00E\x00L\x00", b"SELECT 1\x00", b"SELECT \xc0\xaffile('x')"):
        assert exposed.ask("/", data).status == 400


def test_a_reading_server_refuses_every_write(reader: Running) -> None:
    for sql in ("INSERT INTO laion VALUES (1)", "CREATE TABLE x (a Int8) ENGINE = Memory", "DROP TABLE laion",
                "ALTER TABLE laion DELETE WHERE 1", "DELETE FROM laion WHERE 1", "TRUNCATE TABLE laion"):  # fmt: skip
        reply = reader.ask("/", sql, headers={"X-ClickHouse-Key": "open sesame"})
        assert (reply.status, reply.headers["x-clickhouse-exception-code"]) == (403, "164")
    for format in ("JSON", "CSV", "Null", "Parquet"):
        sql = f"WITH 1 AS x INSERT INTO laion SELECT * FROM laion FORMAT {format}"
        reply = reader.ask("/", sql, headers={"X-ClickHouse-Key": "open sesame"})
        assert (reply.status, reply.headers["x-clickhouse-exception-code"]) == (403, "497")
