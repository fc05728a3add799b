"""Tiny CLIP models with random weights, written as the files that a real one has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.encode_model import Shape, Tower, write
from clipql.encode.clip import ClipEncoder
from clipql.encode.folder import read_folder
from clipql.encode.onnx import OnnxTowers

# Lengths that no real model has, so that a number written into the code by hand would show
TINY = Shape(Tower(32, 2, 2), Tower(32, 2, 2), dimension=24, context=20, picture=48, patch=16)


def tiny(folder: Path, shape: Shape = TINY, *, name: str = "random/tiny", seed: int = 0) -> Path:
    """A folder that holds such a model."""
    return write(folder, shape, name=name, seed=seed)


def change(folder: Path, file: str, **values: Any) -> None:
    """Change a model's JSON file; None takes a value out."""
    found = json.loads((folder / file).read_text()) | values
    (folder / file).write_text(json.dumps({name: value for name, value in found.items() if value is not None}))


def encoder(folder: Path) -> ClipEncoder:
    """The encoder of a folder."""
    found = read_folder(folder)
    return ClipEncoder(found, OnnxTowers(found, threads=1))
