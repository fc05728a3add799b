"""Every setting of the engine that the network may give has been looked at: a new engine's are not taken unseen."""

from __future__ import annotations

from pathlib import Path

from clipql.serve import allowed
from tests.serve.conftest import Running

TAKEN = Path(__file__).parent / "taken_settings.txt"


def test_each_setting_that_is_taken_from_the_network_is_one_that_somebody_has_looked_at(server: Running) -> None:
    rows = server.sql("SELECT DISTINCT name, type FROM system.settings FORMAT TSV").text.splitlines()
    taken = {name for name, type in (row.split("\t") for row in rows) if allowed.setting(name, type)}
    known = set(TAKEN.read_text().split())
    assert len(known) > 1_000
    assert sorted(taken - known) == [], (
        "the engine has settings that nobody has looked at. Does one reach out of the server, change how a statement "
        "is read, or make a limit void? Then refuse it in clipql/serve/allowed.py; else add it to taken_settings.txt"
    )
    assert sorted(known - taken) == [], "no longer taken, or no longer there: take it out of taken_settings.txt"
