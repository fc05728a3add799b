"""The encoder of words and pictures of a CLIP model, over whatever runs its two networks.

What must stay true: answers are in the order of what was asked; memory is bounded by the batches, not by how much is
asked at once; nothing is loaded before it is needed.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from clipql.encode import pictures as files
from clipql.encode import prepare, tokenizer
from clipql.encode.base import EncodedPictures, Encoder, Picture
from clipql.encode.folder import ModelFolder
from clipql.encode.onnx import OnnxTowers, cores
from clipql.errors import ModelError, PictureError

TEXTS = 8192  # sorted by length together
_AHEAD = 2  # batches of pictures that are decoded while the model runs another


class Towers(Protocol):
    """The two networks of a model, and what runs them.

    How much at once it is fastest with: tokens of a batch of texts, padding included; pictures of a batch; texts of a
    call that fill such batches. running: what each tower that is loaded computes in.
    """

    tokens: int
    picture_batch: int
    text_batch: int
    running: dict[str, str]

    def masks_text(self) -> bool:
        """Whether the text tower is told which tokens are padding. Raises ModelError."""

    def text(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        """Token ids (n, length), 1 in `mask` where they are real, to vectors (n, dimension). Raises ModelError."""

    def pictures(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Preprocessed pictures (n, 3, height, width) to vectors (n, dimension). Raises ModelError."""


class ClipEncoder:
    """Words and pictures to vectors of a CLIP model. Thread-safe."""

    def __init__(
        self, folder: ModelFolder, towers: Towers, *, decoders: int | None = None, max_pixels: int = files.MAX_PIXELS
    ) -> None:
        self.folder = folder
        self._towers = towers
        self._decoders = decoders or cores()
        self._max_pixels = max_pixels
        self._lock = threading.Lock()
        self._tokenizer: tokenizer.TextTokenizer | None = None

    def __repr__(self) -> str:
        return f"ClipEncoder({self.model!r}, {self.dimension} numbers, {self._towers!r})"

    @property
    def model(self) -> str:
        """The model's canonical name."""
        return self.folder.model

    @property
    def dimension(self) -> int:
        """Length of its vectors."""
        return self.folder.dimension

    @property
    def running(self) -> dict[str, str]:
        """What each tower that is loaded runs in, such as `{"text": "int8"}`."""
        return dict(self._towers.running)

    @property
    def picture_batch(self) -> int:
        """Pictures that are best given to the networks together."""
        return self._towers.picture_batch

    @property
    def text_batch(self) -> int:
        """Texts that are best given to `encode_texts` together."""
        return self._towers.text_batch

    def load(self) -> None:
        """Load both towers and the tokenizer, and check them against each other. Raises ModelError."""
        self.encode_texts([""])
        self._vectors(self._towers.pictures(np.zeros((1, 3, *self.folder.pictures.crop), np.float32)))

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (len(texts), dimension), float32. Raises ModelError, and EncodeError for what is no str."""
        found = np.empty((len(texts), self.dimension), np.float32)
        for first in range(0, len(texts), TEXTS):
            self._encode_block(texts[first : first + TEXTS], found[first : first + TEXTS])
        return found

    def _encode_block(self, texts: Sequence[str], out: NDArray[np.float32]) -> None:
        tokens = self._tokens()(texts)
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        # Where a token sees only those before it and the vector is read off the end token, or where the tower is told
        # what is padding, no text needs more room than the longest beside it. Other towers were trained with a full row
        cut = self.folder.causal or self._towers.masks_text()
        for batch in _batches(
            [max(1, len(tokens[i])) if cut else self.folder.context for i in order], self._towers.tokens
        ):
            rows = order[batch]
            length = max(1, len(tokens[rows[-1]])) if cut else self.folder.context
            ids = tokenizer.pad([tokens[i] for i in rows], length, self.folder.pad)
            mask = tokenizer.pad([[1] * len(tokens[i]) for i in rows], length)
            out[rows] = self._vectors(self._towers.text(ids, mask))

    def _tokens(self) -> tokenizer.TextTokenizer:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = tokenizer.load(self.folder)
            return self._tokenizer

    def encode_pictures(self, pictures: Sequence[Picture]) -> EncodedPictures:
        """Unit vectors of pictures; a bad one is an entry in `errors` and never an exception. Raises ModelError."""
        found = list(self.encode_stream(pictures))
        return EncodedPictures(
            np.concatenate([some.vectors for some in found] or [np.empty((0, self.dimension), np.float32)]),
            tuple(error for some in found for error in some.errors),
            tuple(size for some in found for size in some.sizes),
        )

    def encode_stream(self, pictures: Iterable[Picture], *, batch: int | None = None) -> Iterator[EncodedPictures]:
        """As `encode_pictures`, `batch` pictures at a time, by default `picture_batch`.

        While the model runs one batch, threads decode the next two; no more than that is taken from `pictures` ahead.
        """
        batch = batch or self.picture_batch
        rest = iter(pictures)
        waiting: deque[_Decoding] = deque()
        with ThreadPoolExecutor(self._decoders, thread_name_prefix="clipql-decode") as pool:
            try:
                while True:
                    while len(waiting) <= _AHEAD and (some := list(islice(rest, batch))):
                        waiting.append(self._decode(some, pool))
                    if not waiting:
                        return
                    yield self._encode_decoded(waiting.popleft())
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _decode(self, some: Sequence[Picture], pool: ThreadPoolExecutor) -> _Decoding:
        pixels = np.zeros((len(some), 3, *self.folder.pictures.crop), np.float32)
        return _Decoding(
            pixels, [pool.submit(self._fill, row, picture) for row, picture in zip(pixels, some, strict=True)]
        )

    def _fill(self, out: NDArray[np.float32], picture: Picture) -> tuple[int, int] | str:
        try:
            return prepare.fill(out, picture, self.folder.pictures, max_pixels=self._max_pixels)
        except PictureError as error:
            return str(error)

    def _encode_decoded(self, decoding: _Decoding) -> EncodedPictures:
        found = [future.result() for future in decoding.sizes]
        good = [i for i, each in enumerate(found) if not isinstance(each, str)]
        vectors = np.zeros((len(found), self.dimension), np.float32)
        if good:
            pixels = decoding.pixels if len(good) == len(found) else decoding.pixels[good]
            vectors[good] = self._vectors(self._towers.pictures(pixels))
        return EncodedPictures(
            vectors,
            tuple(each if isinstance(each, str) else None for each in found),
            tuple((0, 0) if isinstance(each, str) else each for each in found),
        )

    def _vectors(self, found: NDArray[np.float32]) -> NDArray[np.float32]:
        lengths = np.linalg.norm(found, axis=1, keepdims=True)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise ModelError(
                f"{self.folder.path} gave a vector of length {float(lengths.min())}: its numbers overflow or are all "
                "zero; take its files of another precision, or fetch the model anew"
            )
        return np.asarray(found / lengths, np.float32)


class _Decoding:
    """A batch on its way from the threads that decode it: `sizes` are done when `pixels` (n, 3, h, w) are filled."""

    def __init__(self, pixels: NDArray[np.float32], sizes: list[Future[tuple[int, int] | str]]) -> None:
        self.pixels = pixels
        self.sizes = sizes


def _batches(lengths: Sequence[int], tokens: int) -> Iterator[slice]:
    """Runs of ascending lengths whose padded rows hold at most so many tokens, at least one row each."""
    first = 0
    for i, length in enumerate(lengths):
        if i > first and (i + 1 - first) * length > tokens:
            yield slice(first, i)
            first = i
    if lengths:
        yield slice(first, len(lengths))


def open_encoder(
    model: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    precision: str | None = None,
    device: str = "cpu",
) -> Encoder:
    """An encoder by its model's name or folder; its networks are loaded when they are first used.

    threads: of the model, all cores by default. precision: see `read_folder`; without one, the forms that `clipql model
    optimize` made are used where there are any; on another device than the CPU, `bfloat16` (the default on a GPU),
    `float16` or `float32`. device: `cpu`, or `cuda` and its like, which need the extra clipql[torch] and a folder with
    model.safetensors. Raises ModelError.
    """
    from clipql.encode import models

    if device == "cpu":
        found = models.find(model, precision=precision)
        return ClipEncoder(found, OnnxTowers(found, threads=threads, optimized=precision is None))
    from clipql.encode.torch_clip import TorchTowers

    folder = models.find(model, safetensors=True)
    return ClipEncoder(folder, TorchTowers(folder, device=device, precision=precision))
