"""The server's logs: one JSON object a line, on standard error."""

from __future__ import annotations

import json
import logging
import sys
import time

# which of a server's processes this is, where there are many
_PROCESS: dict[str, str] = {}


def name_process(name: str) -> None:
    """Have each line of this process bear its name."""
    _PROCESS["process"] = name


class _Lines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **_PROCESS,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def event(name: str, **fields: str) -> None:
    """Write a line before the logs are set up."""
    now = time.time()
    when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    told = {"time": when, "level": "info", "event": name, **_PROCESS, **fields}
    sys.stderr.write(json.dumps(told, ensure_ascii=False) + "\n")
    sys.stderr.flush()


def log_to_stderr(level: str) -> None:
    """Send the server's logs to standard error, as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    for name in ("clipql.serve", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper() if name == "clipql.serve" else logging.WARNING)
