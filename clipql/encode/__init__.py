"""Words and pictures to vectors: tokenizer, preprocessing, models and where their weights come from."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipql.encode.base import EncodedPictures, Encoder, Picture
    from clipql.encode.clip import open_encoder
    from clipql.encode.folder import ModelFolder, read_folder
    from clipql.encode.names import canonical
    from clipql.encode.prepare import preprocess
    from clipql.encode.tokenizer import tokenize

__all__ = [
    "EncodedPictures",
    "Encoder",
    "ModelFolder",
    "Picture",
    "canonical",
    "open_encoder",
    "preprocess",
    "read_folder",
    "tokenize",
]

_WHERE = {
    "EncodedPictures": "base",
    "Encoder": "base",
    "ModelFolder": "folder",
    "Picture": "base",
    "canonical": "names",
    "open_encoder": "clip",
    "preprocess": "prepare",
    "read_folder": "folder",
    "tokenize": "tokenizer",
}


def __getattr__(name: str) -> Any:
    # numpy and what is above it load only for those who use them
    if name in _WHERE:
        return getattr(import_module(f"clipql.encode.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
