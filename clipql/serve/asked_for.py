"""What a client of ClickHouse's protocol may ask to be told of its statement beside the result: the page does.

`X-Clipql-Tell: progress` has what the statement reads be told at `/api/progress/{query_id}` while it runs, as a browser
sees no header before the last. `X-Clipql-Tell: origins` has the reply say in `X-Clipql-Origins` where columns of the
result come from: `{"sources": [{"database": …, "table": …, "table_id": …}], "columns": [[0, "_row"], null, …]}`, a
source and its column for each column of the result; columns of one source are of the same row of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from clipql.sql.recognition.column_origins import Origin
from clipql.tables.registry import ROW

TELL = "x-clipql-tell"
# letters of a header, which clients and proxies limit
LONGEST = 4_000


def tells(request: Request, what: str) -> bool:
    """Whether the client of a request asks for it."""
    return what in [word.strip() for word in request.headers.get(TELL, "").split(",")]


def origins(found: Sequence[Origin | None]) -> dict[str, str]:
    """X-Clipql-Origins; of a result of very many columns the row numbers alone."""
    rows = [one if one and one.column == ROW else None for one in found]
    texts = (_told(columns) for columns in (found, rows) if any(columns))
    text = next((text for text in texts if len(text) <= LONGEST), "")
    return {"X-Clipql-Origins": text} if text else {}


def _told(found: Sequence[Origin | None]) -> str:
    known = list(dict.fromkeys((one.source, one.table) for one in found if one))
    sources = [{"database": t.database, "table": t.name, "table_id": t.id} for _, t in known]
    columns: list[Any] = [[known.index((one.source, one.table)), one.column] if one else None for one in found]
    return json.dumps({"sources": sources, "columns": columns}, separators=(",", ":"))
