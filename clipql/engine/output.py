"""What ClickHouse gave for a statement."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from clipql.brief import Brief


@dataclass(frozen=True, repr=False)
class Output(Brief):
    """The bytes of a result in the format asked for, its rows, and what it took: seconds, rows and bytes read.

    table: the result instead of its bytes, for a caller that said it takes tables.
    """

    data: bytes = b""
    elapsed: float = 0.0
    rows: int = 0
    rows_read: int = 0
    bytes_read: int = 0
    table: pa.Table | None = None

    def arrow(self) -> pa.Table:
        """The result as an Arrow table; the query must have asked for ArrowStream."""
        if self.table is not None:
            return self.table
        if not self.data:
            return pa.table({})
        return pa.ipc.open_stream(pa.py_buffer(self.data)).read_all()
