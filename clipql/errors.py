"""Every error clipql raises, one tree.

    ClipqlError
    ├── QueryError                 the engine refused a statement: `code` and `name` are ClickHouse's
    │   ├── UnknownTable
    │   ├── UnknownColumn
    │   ├── ReadOnly               a statement that writes, in a database that was opened to be read
    │   └── QueryCancelled
    │       └── ServerEnding       by a server that is told to end: ask again
    ├── VectorError                a vector of the wrong length, type or content
    ├── UnsupportedStatement       SQL that a vector column cannot take part in
    ├── IngestError                a part that cannot be taken in, with file and row
    ├── DownloadError              files that cannot be fetched, with their address
    ├── VectorIndexError                an index that cannot be built, read or used as asked
    ├── DeviceError                a GPU that is not there, or fails
    ├── EncodeError                words or pictures that cannot be turned into vectors
    │   ├── ModelError             a model that is not there, not whole, or cannot be run
    │   ├── ModelMismatch          vectors of two models compared
    │   └── PictureError           a file that is no picture, is broken, or is too large
    ├── ClusterError               shards that cannot be reached, or do not fit together
    │   ├── ReplicaUnavailable     a replica of a shard, or all of them, cannot be reached
    │   └── ReplicaDamaged         a replica of a shard is not what the shard map says
    ├── ServerError                a server that cannot start, or that a client cannot reach
    └── StorageError               the database folder
        ├── DatabaseLocked         another process has it open
        ├── DatabaseVersion        written by a newer clipql
        ├── DatabaseDamaged        a file is missing, cut short or altered
        ├── NotADatabase           a folder that clipql did not make
        └── DiskFull

Catch `ClipqlError` to catch all. A message says what was seen, what was expected and what to do.
The error of the library underneath, if there is one, is kept as `__cause__`.
"""

from __future__ import annotations


class ClipqlError(Exception):
    """Base class of every error that clipql raises."""


class QueryError(ClipqlError):
    """ClickHouse refused a statement.

    `code` is ClickHouse's error number (62 for a syntax error), `name` its name (`SYNTAX_ERROR`); 0 and "" where
    clipql itself refused.
    """

    def __init__(self, message: str, *, code: int = 0, name: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.name = name


class UnknownTable(QueryError):
    """The statement names a table that is not there."""


class UnknownColumn(QueryError):
    """The statement names a column or an identifier that is not there."""


class ReadOnly(QueryError):
    """The statement, or call, would write, and the database was opened with read_only=True. Code 164, READONLY."""

    def __init__(self, what: str, folder: object) -> None:
        super().__init__(
            f"{what} writes, and {folder} was opened to be read: open it without read_only", code=164, name="READONLY"
        )


class QueryCancelled(QueryError):
    """The query was stopped, by Ctrl-C, `cancel()` or a limit."""


class ServerEnding(QueryCancelled):
    """The query was stopped because its server was told to end: it may be sent again, to the next one."""


class VectorError(ClipqlError):
    """A vector of the wrong length, of the wrong type, or with NaN or infinity in it."""


class UnsupportedStatement(ClipqlError):
    """SQL that cannot be carried out on a table with vector columns."""


class IngestError(ClipqlError):
    """A LAION part that cannot be taken in; the message names the file and, where there is one, the row."""


class DownloadError(ClipqlError):
    """Files that cannot be fetched as asked; the message names the address."""


class VectorIndexError(ClipqlError):
    """An index that cannot be built, read, or used as asked."""


class DeviceError(ClipqlError):
    """A device that vectors are to be compared on, and that is not there or fails; the message says what there is."""


class EncodeError(ClipqlError):
    """Words or pictures that cannot be turned into vectors."""


class ModelError(EncodeError):
    """A model that is not there, not whole, or cannot be run."""


class ModelMismatch(EncodeError):
    """A vector column and a query vector that come from two models; the message names both."""


class PictureError(EncodeError):
    """A file that is no picture, is cut short or broken, or has more pixels than the limit."""


class ClusterError(ClipqlError):
    """Shards that cannot be reached, or do not fit together."""


class ReplicaUnavailable(ClusterError):
    """A replica of a shard, or every replica of one, cannot be reached."""


class ReplicaDamaged(ClusterError):
    """A replica of a shard has other files, parts or columns than the shard map says; the message says what to do."""


class ServerError(ClipqlError):
    """A server that cannot start, or that a client cannot reach."""


class IndexWarning(UserWarning):
    """An index does not reach the recall that searches ask for by default: exact scans answer instead. No error."""


class StorageError(ClipqlError):
    """The database folder cannot be used as it is."""


class DatabaseLocked(StorageError):
    """Another process, or another folder in this process, holds the engine."""


class DatabaseVersion(StorageError):
    """The folder was written by a newer clipql."""


class DatabaseDamaged(StorageError):
    """A file of the database is missing, cut short or altered."""


class NotADatabase(StorageError):
    """The folder holds something that clipql did not make."""


class DiskFull(StorageError):
    """The disk, or the quota, has no room for what was to be written."""
