"""Encoders in use by an open database: loaded once, their recent vectors remembered, reachable from SQL.

What must stay true: a model is loaded when a query first needs it, and never fetched from the network; the SQL
functions `_clipql_encode_text` and `_clipql_encode_image` answer for any row, at worst one by one: batches that were
encoded beforehand (`Batch`) only make them fast.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import xxhash
from numpy.typing import NDArray

from clipql.encode.base import Encoder, Picture, as_picture
from clipql.encode.names import DEFAULT_MODEL
from clipql.engine.embedded import Engine
from clipql.errors import EncodeError, ModelError, PictureError, QueryCancelled
from clipql.storage.catalog import Table

TEXT, IMAGE = "encode_text", "encode_image"
REMEMBERED = 4096  # vectors of words and pictures asked for last: 8 MB of 512 numbers each
# between the value of a call and the connection that it is made for; not of base64's letters
_OWNER = "|"
# how picture files begin; anything else that encode_image gets is a path
_PICTURES = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8[79]a|RIFF.{4}WEBP|BM.{4}\x00\x00\x00\x00|II\*\x00|MM\x00\*|\x00\x00\x00", re.DOTALL
)


def looks_like_picture(value: bytes) -> bool:
    """Whether bytes begin as the file of a picture does; what does not may be a path."""
    return _PICTURES.match(value) is not None


class Batch:
    """Vectors encoded beforehand for one statement, in a temporary file that goes when this does."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._file, name = tempfile.mkstemp(prefix="clipql-encoded-")
        os.unlink(name)
        weakref.finalize(self, os.close, self._file)
        self._width = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def add(self, keys: Sequence[bytes], vectors: NDArray[np.float32]) -> None:
        """Keep vectors (n, d), all of one length, under their keys."""
        self._width = vectors.shape[1] * 4
        data = np.ascontiguousarray(vectors).tobytes()
        while data:
            data = data[os.write(self._file, data) :]
        for key in keys:  # only now: another thread may look for the same text
            self._places[key] = len(self._places)

    def get(self, key: bytes) -> bytes | None:
        """The bytes of a vector, or None."""
        place = self._places.get(key)
        return None if place is None else os.pread(self._file, self._width, place * self._width)


@dataclass
class Tally:
    """What encoders did since the database was opened: texts or pictures encoded, the seconds that took, and how many
    more were remembered from before."""

    encoded: int = 0
    seconds: float = 0.0
    remembered: int = 0


class Encoders:
    """The encoders of one open database. tallies: what was done, by function.

    default: the model of `encode_text('…')` where neither the call nor the table says which; None for $CLIPQL_MODEL,
    and CLIP ViT-B/32 without that. files: whether encode_image may read files.
    """

    _current: ClassVar[Encoders | None] = None
    _registered: ClassVar[bool] = False

    def __init__(self, default: str | None = None) -> None:
        self.default = default or os.environ.get("CLIPQL_MODEL") or None
        self.files = True
        self.cached: Sequence[str] | None = None  # models of the cache that may be read; None for all
        self.engine: Engine | None = None
        self._encoders: dict[str, Encoder] = {}
        self._lock = threading.RLock()
        self.tallies = {TEXT: Tally(), IMAGE: Tally()}
        self._recent: OrderedDict[bytes, bytes] = OrderedDict()
        self._batches: weakref.WeakSet[Batch] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"Encoders(default={self.default!r}, open={sorted(self._encoders)})"

    def usual(self, tables: Iterable[Table]) -> str | None:
        """The model where nothing names one: the default, else the only one that filled columns of these tables."""
        models = {c.model for t in tables for c in t.columns if c.model}
        return self.default or (models.pop() if len(models) == 1 else None)

    def use(self, encoder: Encoder) -> None:
        """Have an encoder of one's own answer for its model name, and be the default."""
        with self._lock:
            self._encoders[encoder.model] = encoder
            self.default = encoder.model

    def encoder(self, model: str | None = None) -> Encoder:
        """The encoder of a model, by its name or its folder; None for the default. Raises ModelError."""
        name = model or self.default or DEFAULT_MODEL
        with self._lock:
            found = self._encoders.get(name)
            if found is None:
                from clipql.encode.clip import open_encoder

                found = open_encoder(name)
                self._encoders[name] = self._encoders.setdefault(found.model, found)
            return found

    def texts(self, texts: Sequence[str], model: str | None = None) -> NDArray[np.float32]:
        """Unit vectors of texts, float32 (n, d), those asked for lately out of memory. Raises ModelError."""
        encoder = self.encoder(model)
        keys = [_key(TEXT, encoder.model, t.encode("utf-8", "replace")) for t in texts]
        found = {k: self._remembered(k) for k in keys}
        missing = {k: t for k, t in zip(keys, texts, strict=True) if found[k] is None}
        with self._lock:
            self.tallies[TEXT].remembered += len(texts) - len(missing)
        if missing:
            with self._counted(TEXT, len(missing)):
                vectors_made = encoder.encode_texts(list(missing.values()))
            for key, vector in zip(missing, vectors_made, strict=True):
                found[key] = self._remember(key, vector)
        vectors = [np.frombuffer(found[k] or b"", np.float32) for k in keys]
        return np.stack(vectors) if vectors else np.empty((0, encoder.dimension), np.float32)

    def picture(self, picture: Picture, model: str | None = None) -> NDArray[np.float32]:
        """The unit vector of a picture, float32 (d,). Raises PictureError or ModelError."""
        encoder, picture = self.encoder(model), as_picture(picture)
        key = _key(IMAGE, encoder.model, _identity(picture))
        found = self._remembered(key)
        with self._lock:
            self.tallies[IMAGE].remembered += found is not None
        if found is None:
            with self._counted(IMAGE, 1):
                encoded = encoder.encode_pictures([picture])
            if encoded.errors[0] is not None:
                raise PictureError(encoded.errors[0])
            found = self._remember(key, encoded.vectors[0])
        return np.frombuffer(found, np.float32)

    @contextlib.contextmanager
    def _counted(self, function: str, inputs: int) -> Iterator[None]:
        """Count inputs that are encoded, and the time it takes."""
        began = time.perf_counter()
        yield
        with self._lock:
            self.tallies[function].encoded += inputs
            self.tallies[function].seconds += time.perf_counter() - began

    def batch(self) -> Batch:
        """A place for vectors that the SQL functions shall find; it lasts as long as it is held."""
        made = Batch()
        with self._lock:
            self._batches.add(made)
        return made

    def fill(self, batch: Batch, function: str, values: Sequence[bytes], model: str) -> None:
        """Encode values of one of the SQL functions into a batch; what cannot be encoded is left out."""
        encoder = self.encoder(model)
        wanted = {_key(function, encoder.model, v): v for v in values}
        wanted = {k: v for k, v in wanted.items() if k not in batch}
        if not wanted:
            return
        keys = list(wanted)
        if function == TEXT:
            with self._counted(TEXT, len(keys)):
                texts = encoder.encode_texts([v.decode("utf-8", "replace") for v in wanted.values()])
            batch.add(keys, texts)
            return
        with self._counted(IMAGE, len(keys)):
            encoded = encoder.encode_pictures([self.as_picture(v) for v in wanted.values()])
        good = [i for i, error in enumerate(encoded.errors) if error is None]
        if good:
            batch.add([keys[i] for i in good], encoded.vectors[good])

    def as_picture(self, value: bytes) -> bytes | Path:
        """What encode_image was given: the bytes of a picture, or a path. Raises PictureError for what may not be."""
        if looks_like_picture(value):
            return value
        shown = value[:200].decode("utf-8", "replace")
        if not self.files:
            raise PictureError(
                f"encode_image('{shown}'): this server reads no files for queries; send the picture itself"
            )
        if not value or b"\0" in value:
            raise PictureError(f"encode_image got {len(value)} bytes that are neither a picture nor a path")
        return Path(os.fsdecode(value)).expanduser()

    def answer(self, function: str, model: str, value: bytes) -> bytes:
        """One call of a SQL function: the bytes of the vector as Array(Float32)."""
        name = self.encoder(model or None).model
        key = _key(function, name, value)
        with self._lock:
            batches = list(self._batches)
        for batch in batches:
            found = batch.get(key)
            if found is not None:
                return found
        if function == TEXT:
            vector = self.texts([value.decode("utf-8", "replace")], name)[0]
        else:
            vector = self.picture(self.as_picture(value), name)
        return bytes(vector.tobytes())

    def register(self, engine: Engine) -> None:
        """Make the functions known to SQL, so that any statement that ClickHouse itself runs is right too."""
        Encoders._current, self.engine = self, engine
        if not Encoders._registered:
            engine.register(f"_clipql_{TEXT}", _encode_text, ["String", "String"], "String")
            engine.register(f"_clipql_{IMAGE}", _encode_image, ["String", "String"], "String")
            Encoders._registered = True
        for name in (TEXT, IMAGE):
            engine.run(f"CREATE OR REPLACE FUNCTION {name} AS (x) -> {call_sql(name, '', 'x')}")

    def close(self) -> None:
        """Let go of the models."""
        with self._lock:
            self._encoders.clear()
        if Encoders._current is self:
            Encoders._current = None

    def _remembered(self, key: bytes) -> bytes | None:
        with self._lock:
            found = self._recent.get(key)
            if found is not None:
                self._recent.move_to_end(key)
            return found

    def _remember(self, key: bytes, vector: NDArray[np.float32]) -> bytes:
        data = np.ascontiguousarray(vector, np.float32).tobytes()
        with self._lock:
            self._recent[key] = data
            while len(self._recent) > REMEMBERED:
                self._recent.popitem(last=False)
        return data


def call_sql(function: str, model: str, argument: str) -> str:
    """A call as SQL that ClickHouse runs by itself, row by row. model: '' for the default."""
    quoted = model.replace("\\", "\\\\").replace("'", "\\'")
    # a Python function takes UTF-8 text only and gives no arrays, hence base64 in and bytes out; and ClickHouse
    # looks between blocks whether a query was cancelled, where one of calls takes minutes, so they look themselves
    value = f"concat(base64Encode({argument}), '{_OWNER}', getSetting('log_comment'))"
    return f"reinterpret(assumeNotNull(_clipql_{function}('{quoted}', {value})), 'Array(Float32)')"


def _key(function: str, model: str, value: bytes) -> bytes:
    digest: bytes = xxhash.xxh3_128_digest(f"{function}\0{model}\0".encode() + value)
    return digest


def _identity(picture: bytes | Path) -> bytes:
    """What tells a picture from others: its bytes, or its path with the time and size of the file there."""
    if isinstance(picture, bytes):
        return picture
    try:
        found = picture.stat()
    except (OSError, ValueError):
        return os.fsencode(picture)
    return os.fsencode(picture.absolute()) + f"\0{found.st_mtime_ns}\0{found.st_size}".encode()


def _encode_text(model: str, value: str) -> bytes:
    return _answer(TEXT, model, value)


def _encode_image(model: str, value: str) -> bytes:
    return _answer(IMAGE, model, value)


def _answer(function: str, model: str, value: str) -> bytes:
    encoders = Encoders._current
    if encoders is None:
        raise ModelError("no clipql database is open")
    value, _, owner = value.partition(_OWNER)
    try:
        if owner and encoders.engine is not None:
            encoders.engine.check_tag(owner)
        return encoders.answer(function, model, base64.b64decode(value))
    except (EncodeError, QueryCancelled):
        raise
    except Exception as error:
        raise ModelError(f"{function}: {error}") from error
