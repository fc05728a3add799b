"""What a server allows, as its options say. Frozen: no request changes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from clipql.serve.layout import Layout
from clipql.serve.picture_addresses import PictureAddresses
from clipql.serve.picture_files import Folders, PictureFiles
from clipql.serve.sandbox import State


@dataclass(frozen=True)
class Limits:
    """How much one request may take, and how many may run.

    seconds: of a query. memory: bytes of a query within ClickHouse. rows: of a result. k: rows of one search.
    statement: bytes of SQL, without the data of an INSERT; tokens: its words. body: bytes of a request, as it comes and
    unpacked; json: of a request's JSON; bodies: of all requests together, 429 beyond. running, waiting: requests at
    work and in the queue; 429 beyond. connections: open at once; beyond, those that wait longest for a request are
    closed. head: bytes of a request's address and headers, each. head_seconds: that they may take. stall: seconds that
    a client may leave a result unread or a body unsent; pace: bytes of a body a second, at least. grace: seconds that
    what runs may take after SIGTERM. pixels: of a picture to be shown small.
    """

    seconds: int = 60
    memory: int = 4 << 30
    rows: int = 10_000_000
    k: int = 1_000
    statement: int = 256 << 10
    tokens: int = 50_000
    body: int = 256 << 20
    json: int = 16 << 20
    bodies: int = 1 << 30
    running: int = 8
    waiting: int = 64
    connections: int = 512
    head: int = 64 << 10
    head_seconds: int = 10
    stall: int = 30
    pace: int = 16 << 10
    grace: int = 1
    pixels: int = 64_000_000
    sessions: int = 1_000


@dataclass(frozen=True)
class Options:
    """What a server is told at its start. token: None where none is asked for. hosts: names it goes by, besides
    addresses and localhost. pictures: folders whose pictures it may show small; None for any that a row names.
    folder: what relative paths in rows are relative to. sandbox: what of the kernel protects the process. opener: who
    opens pictures, where the process itself may not. layout: who lays out maps; None for nobody. origins: sites whose
    pages may ask what clip-retrieval's front asks. fetch_from: whether pictures at addresses may be fetched, and if so,
    hosts that may be in a private network; fetcher: who does it. models: of the cache, that the process may read; None
    where nothing keeps it from looking."""

    token: str | None = None
    write: bool = False
    hosts: tuple[str, ...] = ()
    pictures: tuple[Path, ...] | None = None
    limits: Limits = Limits()
    folder: Path = field(default_factory=Path.cwd)
    sandbox: State = field(default_factory=State)
    opener: PictureFiles | None = None
    layout: Layout | None = None
    origins: tuple[str, ...] = ()
    fetch_from: tuple[str, ...] | None = None
    fetcher: PictureAddresses | None = None
    models: tuple[str, ...] | None = None

    def picture_folders(self, database: Path) -> Folders:
        """Where pictures of rows may lie: of a database that the network writes, only in folders that were named."""
        roots = self.pictures if self.pictures is not None or not self.write else ()
        return Folders((self.folder, database.parent), roots)
