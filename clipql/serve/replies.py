"""What ClickHouse's protocol says of a result, in the headers of its reply."""

from __future__ import annotations

import re
from collections.abc import Mapping

from starlette.requests import Request

from clipql.serve import compression
from clipql.sql.session import Answer

MEDIA = {
    "JSON": "application/json; charset=UTF-8", "JSONCompact": "application/json; charset=UTF-8",
    "JSONEachRow": "application/x-ndjson; charset=UTF-8", "CSV": "text/csv; charset=UTF-8; header=absent",
    "CSVWithNames": "text/csv; charset=UTF-8; header=present", "XML": "application/xml; charset=UTF-8",
    "TabSeparated": "text/tab-separated-values; charset=UTF-8", "Native": "application/octet-stream",
    "TabSeparatedWithNames": "text/tab-separated-values; charset=UTF-8", "Parquet": "application/octet-stream",
    "ArrowStream": "application/octet-stream", "RowBinary": "application/octet-stream",
}  # fmt: skip


def header(text: str) -> str:
    """Text as a header may have it."""
    return re.sub(r"[^\x20-\x7e]", "?", text)[:200]


def typed(format: str) -> dict[str, str]:
    """The headers of a format."""
    return {"Content-Type": MEDIA.get(format, "text/plain; charset=UTF-8"), "X-ClickHouse-Format": format}


def untyped() -> dict[str, str]:
    """The headers of a statement that gives no rows: clients tell by them that there is no result."""
    return {"Content-Type": "text/plain; charset=UTF-8"}


def shards(answer: Answer) -> dict[str, str]:
    """X-Clipql-Shards, of an answer that not all shards had a part in."""
    return {"X-Clipql-Shards": answer.shards} if answer.shards else {}


def indexes(answer: Answer) -> dict[str, str]:
    """X-Clipql-Indexes, of an INSERT whose rows are added to indexes in the background."""
    told = answer.indexes.encode("ascii", "backslashreplace").decode()
    return {"X-Clipql-Indexes": "".join(c if c.isprintable() else " " for c in told)} if told else {}


def counted(answer: Answer | None, params: Mapping[str, str]) -> dict[str, str]:
    """X-ClickHouse-Summary; and the last X-ClickHouse-Progress where it is asked for. answer: None where more is to
    come."""
    found = {"X-ClickHouse-Summary": summary(answer)}
    if wants_progress(params):
        found["X-ClickHouse-Progress"] = found["X-ClickHouse-Summary"]
    return found


def wants_progress(params: Mapping[str, str]) -> bool:
    """Whether a client asks for X-ClickHouse-Progress."""
    return params.get("send_progress_in_http_headers") in ("1", "true")


def held_back(params: Mapping[str, str], least: int) -> float:
    """Bytes of a result that are there before any is sent: all with wait_end_of_query=1, else buffer_size."""
    if params.get("wait_end_of_query") in ("1", "true"):
        return float("inf")
    asked = params.get("buffer_size", "")
    return max(least, int(asked[:9])) if asked.isascii() and asked.isdigit() else least


def summary(answer: Answer | None) -> str:
    """X-ClickHouse-Summary."""
    output = answer.output if answer else None
    told = {
        "read_rows": output.rows_read if output else 0,
        "read_bytes": output.bytes_read if output else 0,
        "written_rows": answer.rows or 0 if answer else 0,
        "written_bytes": 0,
        "total_rows_to_read": 0,
        "result_rows": output.rows if output else 0,
        "result_bytes": len(output.data) if output else 0,
        "elapsed_ns": int((answer.elapsed if answer else 0) * 1e9),
    }
    return "{" + ", ".join(f'"{name}": "{number}"' for name, number in told.items()) + "}"


def encoding(request: Request, params: Mapping[str, str]) -> str:
    """The Content-Encoding of the response: the first that the client names and the server knows."""
    if params.get("enable_http_compression") not in ("1", "true"):
        return ""
    accepted = [e.partition(";")[0].strip().lower() for e in request.headers.get("accept-encoding", "").split(",")]
    return next((e for e in compression.ENCODINGS if e in accepted), "")
