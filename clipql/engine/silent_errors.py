"""What went wrong in ClickHouse without a word: chDB ends a streamed insert as if nothing had been, where its last step
fails. `system.errors` counts the errors of each kind, and has the last message of each.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from clipql.engine.embedded import Engine


class Silent(NamedTuple):
    """An error that nobody was told of: ClickHouse's code, name and message."""

    code: int
    name: str
    message: str


def counts(engine: Engine) -> Mapping[int, int]:
    """How many errors of each code there were so far."""
    found = engine.arrow("SELECT code, value FROM system.errors")
    return dict(zip(found.column(0).to_pylist(), found.column(1).to_pylist(), strict=True))


def since(engine: Engine, before: Mapping[int, int], first: str = "") -> Silent:
    """The last error of those that came after `before` was counted. first: the name of a kind that goes before others.
    Of code 0 where there is none.
    """
    noted = engine.arrow(
        "SELECT code, name, toValidUTF8(last_error_message) AS message, value FROM system.errors "
        "ORDER BY last_error_time DESC"
    ).to_pylist()
    found = [Silent(e["code"], e["name"], e["message"]) for e in noted if e["value"] > before.get(e["code"], 0)]
    found.sort(key=lambda each: each.name != first)
    return found[0] if found else Silent(0, "", "no error was noted")
