"""What the REST API makes of rows: values as JSON has them, near-duplicates, places in the plane. Plain functions."""

from __future__ import annotations

import datetime
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray


def projected(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Places in the plane, (n, 2) within [-1, 1], by the two directions in which the vectors (n, d) differ most."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0)
    values, directions = np.linalg.eigh(centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred)
    if len(centred) < centred.shape[1]:
        places = directions[:, ::-1][:, :2] * np.sqrt(np.maximum(values[::-1][:2], 0))
    else:
        places = centred @ directions[:, ::-1][:, :2]
    if places.shape[1] < 2:
        places = np.hstack([places, np.zeros((len(places), 2 - places.shape[1]))])
    # eigenvectors have no sign of their own: the farthest point is on the positive side
    for axis in range(2):
        if places[np.abs(places[:, axis]).argmax(), axis] < 0:
            places[:, axis] *= -1
    largest = np.abs(places).max()
    scaled: NDArray[np.float64] = places / largest if largest > 0 else places
    return scaled


def folded(vectors: NDArray[np.float32], rows: NDArray[np.int64], least: float) -> dict[int, int]:
    """Which earlier row each row repeats, by the cosine of their vectors."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    kept: list[int] = []
    found: dict[int, int] = {}
    for at in range(len(rows)):
        alike = unit[kept] @ unit[at] if kept else np.empty(0)
        if len(alike) and alike.max() >= least:
            found[int(rows[at])] = int(rows[kept[int(alike.argmax())]])
        else:
            kept.append(at)
    return found


def plain(value: Any) -> Any:
    """A value as JSON has them: whole numbers that JavaScript cannot hold become text, and so do dates."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, int):
        return value if abs(value) < 1 << 53 else str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (datetime.date, datetime.datetime, datetime.time)):
        return value.isoformat()
    return str(value)
