"""What a check found, as values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clipql.brief import Brief
from clipql.storage.places import Held

RESTORE = "it cannot be rebuilt: restore it from a backup"


@dataclass(frozen=True, repr=False)
class Finding(Brief):
    """One thing that is damaged.

    what: 'folder', 'manifest', 'segment', 'index', 'row file', 'MergeTree', 'rows', 'definition' or 'database'. table:
    its full name, '' where it is none's. problem: what was seen. statement: the SQL that makes it anew, None where only
    a backup helps.
    """

    what: str
    table: str
    problem: str
    statement: str | None = None

    def __str__(self) -> str:
        remedy = f"rebuild it: {self.statement}" if self.statement else RESTORE
        where = f"{self.table}, {self.what}" if self.table else self.what
        return f"{where}: {self.problem}; {remedy}"


@dataclass(frozen=True, repr=False)
class CheckReport(Brief):
    """What was checked, and what of it is damaged. bytes: of the files that were read and hashed. held: what snapshots
    of readers hold. notes: what is as it shall be and may be worth knowing, such as rows without vectors.
    """

    path: Path
    deep: bool
    tables: int
    rows: int
    files: int
    bytes: int
    seconds: float
    findings: tuple[Finding, ...]
    held: Held | None = None
    notes: tuple[str, ...] = ()

    @property
    def damaged(self) -> bool:
        """Whether anything is damaged."""
        return bool(self.findings)

    def __str__(self) -> str:
        whole = (
            f"{self.path}: {self.tables} tables, {self.rows:,} rows; {self.files} files, {self.bytes / 1e6:,.1f} MB, "
            f"read in {self.seconds:.1f} s"
        )
        end = f"; damaged: {len(self.findings)}" if self.damaged else "; nothing is damaged"
        lines = [*map(str, self.findings), whole + end, *self.notes]
        if self.held and self.held.snapshots:
            who = "snapshot of a reader holds" if self.held.snapshots == 1 else "snapshots of readers hold"
            lines.append(f"{self.held.snapshots} {who} {self.held.bytes / 1e6:,.1f} MB that nothing else needs")
        return "\n".join(lines)
