"""What a statement returns: rows, columns, Arrow, a DataFrame, and what it took."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from clipql.brief import LINE
from clipql.engine.python_values import converter, python_columns, python_values

if TYPE_CHECKING:
    import pandas as pd

    from clipql.sql.planning.work import Step

SHOWN_ROWS, SHOWN_BYTES = 50, 20_000


@dataclass(frozen=True, repr=False)
class Stats:
    """What a statement took: seconds in all, rows and bytes that ClickHouse read, and each vector search's step.

    shards: how many shards answered, as 3/4, where there are shards. indexes: after an INSERT, how far the indexes of
    its table are that are brought up to date in the background; empty where none is.
    """

    elapsed: float
    rows_read: int = 0
    bytes_read: int = 0
    searches: tuple[Step, ...] = ()
    shards: str | None = None
    indexes: str = ""

    def __repr__(self) -> str:
        shards = f", shards {self.shards}" if self.shards else ""
        kinds = ", ".join(f"{s.kind} of {s.plan.searched}" for s in self.searches)
        read = f"{self.rows_read:,} rows and {self.bytes_read:,} bytes read by ClickHouse"
        line = f"Stats({self.elapsed:.3f} s, {read}{shards}{'; ' + kinds if kinds else ''})"
        return line if len(line) <= LINE else f"{line[: LINE - 2]}…)"

    @property
    def rows_scanned(self) -> int:
        """Vectors compared with a query vector, in all searches."""
        return sum(s.cost.rows_scanned for s in self.searches)


class Result:
    """The result of one statement, held in memory.

    `text` is set instead of rows where the statement had a FORMAT clause of its own.
    """

    def __init__(
        self, table: pa.Table, stats: Stats, text: bytes | None = None, types: Mapping[str, str] | None = None
    ) -> None:
        """types: ClickHouse's of the columns that Arrow does not tell apart, such as DateTime and UInt32, by name."""
        self._table, self.stats, self._text, self._types = table, stats, text, types or {}

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self._table.column_names)

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """The rows as tuples of Python's own types: datetimes, addresses, the names of an Enum, tuples, dicts of maps.

        Text that is not UTF-8 is bytes, Array(Float32) a list.
        """
        values = python_columns(self._table, self._types)
        return list(zip(*values, strict=True)) if values else []

    @property
    def text(self) -> str:
        """What the statement's own FORMAT clause produced."""
        return (self._text or b"").decode("utf-8", "replace")

    @property
    def data(self) -> bytes:
        """What the statement's own FORMAT clause produced, as bytes."""
        return self._text or b""

    def arrow(self) -> pa.Table:
        """The result as an Arrow table."""
        return self._table

    def df(self) -> pd.DataFrame:
        """The result as a pandas DataFrame; what pandas has no type for is as in `rows`."""
        import pandas as pd

        columns = [
            _series(column, self._types.get(name, ""))
            for name, column in zip(self._table.column_names, self._table.columns, strict=True)
        ]
        frame: pd.DataFrame = pd.concat(columns, axis=1) if columns else pd.DataFrame()
        frame.columns = pd.Index(self._table.column_names)
        return frame

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)

    def __repr__(self) -> str:
        if self._text is not None:
            more = f"\n… {len(self._text):,} bytes in all" if len(self._text) > SHOWN_BYTES else ""
            return self._text[:SHOWN_BYTES].decode("utf-8", "replace") + more
        shown = self._first()
        cells = [list(self.columns), *([_short(v) for v in row] for row in shown)]
        widths = [max(len(row[i]) for row in cells) for i in range(len(self.columns))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        shards = f", shards {self.stats.shards}" if self.stats.shards else ""
        return "\n".join([*lines, f"({len(self):,} rows, {self.stats.elapsed:.3f} s{shards})"])

    def _first(self) -> list[tuple[Any, ...]]:
        return Result(self._table.slice(0, SHOWN_ROWS), self.stats, types=self._types).rows

    def _repr_html_(self) -> str:
        """A table for notebooks; every value is escaped."""
        head = "".join(f"<th>{html.escape(c)}</th>" for c in self.columns)
        body = "".join(_html_row(row) for row in self._first())
        more = f", the first {SHOWN_ROWS} shown" if len(self) > SHOWN_ROWS else ""
        caption = f"{len(self):,} rows in {self.stats.elapsed:.3f} s{more}"
        return f"<table><caption>{caption}</caption><tr>{head}</tr>{body}</table>"


def _html_row(row: Sequence[Any]) -> str:
    return "<tr>" + "".join(f"<td>{html.escape(_short(v))}</td>" for v in row) + "</tr>"


def _series(column: pa.ChunkedArray, kind: str) -> pd.Series[Any]:
    import pandas as pd

    if re.fullmatch(r"(?:Nullable\()?DateTime(\('[^']*'\))?\)?", kind) and pa.types.is_uint32(column.type):
        zone = re.search(r"'([^']*)'", kind)
        stamps = column.cast(pa.int64()).cast(pa.timestamp("s", zone[1] if zone else "UTC"))
        made: pd.Series[Any] = stamps.to_pandas()
        return made
    if not (converter(kind) if kind else pa.types.is_map(column.type)):
        try:
            column.validate(full=True)  # pandas would fail over text that is not UTF-8 when it is looked at
            made = column.to_pandas()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
        else:
            return made
    return pd.Series(python_values(column, kind), dtype=object)


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)) and len(value) > 8:
        first = (f"{v:.4g}" if isinstance(v, float) else _short(v) for v in value[:4])
        return f"[{', '.join(first)}, … {len(value)} in all]"
    if isinstance(value, bytes) and len(value) > 40:
        return f"{value[:40]!r}… {len(value):,} bytes"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = " ".join(text.splitlines())
    return text if len(text) <= 120 else text[:119] + "…"
