"""An encoder that is a pool of encoders on the machines of a Ray: what `clipql embed --ray` works with.

What must stay true: vectors come out in the order of what went in, whichever process made them; a process that dies is
started again by Ray, and what it was doing is done again.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipql.cluster import ray_actors
from clipql.encode.base import EncodedPictures, Encoder, Picture
from clipql.errors import ModelError

# batches on their way for each process, so that none waits for the next
AHEAD = 2
START_SECONDS = 600.0


class EncoderActor:
    """One encoder in a process of its own."""

    def __init__(self, make: Callable[[], Encoder]) -> None:
        self._make = make
        self._made: Encoder | None = None

    def _encoder(self) -> Encoder:
        if self._made is None:  # here, so that an error comes back as itself
            self._made = self._make()
        return self._made

    def about(self) -> tuple[str, int]:
        """Its model and the length of its vectors."""
        return self._encoder().model, self._encoder().dimension

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As `Encoder.encode_texts`."""
        return self._encoder().encode_texts(texts)

    def pictures(self, pictures: Sequence[Picture]) -> EncodedPictures:
        """As `Encoder.encode_pictures`."""
        return self._encoder().encode_pictures(pictures)


class PooledEncoder:
    """An `Encoder` of `count` processes; files of pictures must lie where all machines can read them.

    make: makes one encoder; all must be of one model. count: None for one a GPU, or one a processor core where there
    are no GPUs. Close it after use. Raises ClusterError, ModelError.
    """

    def __init__(self, make: Callable[[], Encoder], count: int | None = None) -> None:
        gpus, cores = ray_actors.resources()
        self._actors = ray_actors.pool(EncoderActor, count or int(gpus) or max(1, int(cores)), make, gpu=gpus > 0)
        try:
            about = {ray_actors.result(a.about.remote(), START_SECONDS) for a in self._actors}
        except BaseException:
            self.close()
            raise
        if len(about) > 1:
            self.close()
            raise ModelError(f"the machines have different models: {', '.join(sorted(m for m, _ in about))}")
        self._about: tuple[str, int] = about.pop()
        self._turn = itertools.cycle(self._actors)

    @property
    def model(self) -> str:
        """The model's canonical name."""
        return self._about[0]

    @property
    def dimension(self) -> int:
        """Length of its vectors."""
        return self._about[1]

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (len(texts), dimension), each process a share of the texts. Raises ModelError."""
        shares = _shares(texts, len(self._actors))
        running = [next(self._turn).texts.remote(share) for share in shares]
        found = [ray_actors.result(r) for r in running]
        return np.concatenate(found) if found else np.empty((0, self.dimension), np.float32)

    def encode_pictures(self, pictures: Sequence[Picture]) -> EncodedPictures:
        """Unit vectors of pictures, each process a share of them. Raises ModelError."""
        shares = _shares(pictures, len(self._actors))
        return _joined(
            [ray_actors.result(r) for r in [next(self._turn).pictures.remote(s) for s in shares]], self.dimension
        )

    def encode_stream(self, pictures: Iterator[Picture], *, batch: int) -> Iterator[EncodedPictures]:
        """Vectors of pictures batch by batch and in order, while further batches are on their way."""
        running: deque[Any] = deque()
        while taken := list(itertools.islice(pictures, batch)):
            running.append(next(self._turn).pictures.remote(taken))
            if len(running) >= AHEAD * len(self._actors):
                yield ray_actors.result(running.popleft())
        while running:
            yield ray_actors.result(running.popleft())

    def close(self) -> None:
        """Stop the processes."""
        ray_actors.stop_pool(self._actors)


def _shares(items: Sequence[Any], count: int) -> list[Sequence[Any]]:
    size = -(-len(items) // count) if items else 0
    return [items[i : i + size] for i in range(0, len(items), size)] if size else []


def _joined(found: Sequence[EncodedPictures], dimension: int) -> EncodedPictures:
    if not found:
        return EncodedPictures(np.empty((0, dimension), np.float32), (), ())
    return EncodedPictures(
        np.concatenate([f.vectors for f in found]),
        tuple(e for f in found for e in f.errors),
        tuple(s for f in found for s in f.sizes),
    )
