"""How chDB is given Arrow tables, which a statement reads as `Python(name)`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa


def with_tables(raw: Any, tables: Mapping[str, pa.Table], *, stream: bool = False) -> Callable[..., Any]:
    """chDB finds `Python(name)` among the local variables of its caller: make a caller that has just these."""

    def call(sql: str, format: str, params: Mapping[str, str]) -> Any:
        scope: dict[str, Any] = {"_run": raw.send_query if stream else raw.query, **tables}
        scope.update(_sql=sql, _format=format, _params=dict(params))
        return eval("_run(_sql, _format, params=_params)", scope)

    return call
