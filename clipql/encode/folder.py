"""What a model's folder holds, read from its own files: nothing here loads a network or a tokenizer.

The folders are those of Hugging Face exports to ONNX (`Xenova/clip-vit-base-patch32` and its like):

    config.json                 shapes: dimension, context, vocabulary
    preprocessor_config.json    what is done to a picture
    tokenizer.json              or vocab.json and merges.txt
    onnx/text_model.onnx        or text_model_quantized.onnx, …_fp16, …_int8; also without the folder `onnx`
    onnx/vision_model.onnx
    model.safetensors           instead of the two, for the torch extra

What must stay true: every length a caller needs is a field of `ModelFolder`, and comes from these files.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipql.brief import Brief
from clipql.encode.names import canonical
from clipql.errors import ModelError
from clipql.storage.files import read_plain

__all__ = ["ModelFolder", "PictureShape", "canonical", "read_folder"]

# What a config.json may leave out, because transformers writes only what differs from its classes' defaults
_CLIP_TEXT = {"max_position_embeddings": 77, "vocab_size": 49408}
_CLIP_VISION = {"image_size": 224}
_CLIP_PROJECTION = 512

# The suffixes of files by precision, in the order in which they are tried
_SUFFIXES = {"fp32": ("",), "fp16": ("_fp16",), "int8": ("_int8", "_quantized", "_uint8")}
_ANY = ("", "_quantized", "_int8", "_uint8", "_fp16")
SAFETENSORS = "model.safetensors"
# What no model comes near to: more would be asked of memory before the networks say that they are others
_LARGEST_CONFIG = 16 << 20
_MOST, _LARGEST_COLOUR = 1 << 24, 1e6
_LONGEST_VECTOR, _LONGEST_TEXT, _LARGEST_PICTURE = 1 << 16, 1 << 15, 1 << 11


@dataclass(frozen=True)
class PictureShape:
    """What a model wants done to a picture.

    resize: length of the shorter edge, or (height, width) to which it is squeezed; crop: (height, width) cut from the
    middle; resample: Pillow's number of the filter (3 is bicubic); mean, std: of each of R, G, B, on the scale 0 to 1.
    """

    resize: int | tuple[int, int]
    crop: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int


@dataclass(frozen=True, repr=False)
class ModelFolder(Brief):
    """A model's files and shapes.

    model: canonical name. text, vision: the networks' files (one and the same where they are safetensors). tokenizer:
    tokenizer.json, or vocab.json with merges.txt beside it. dimension: length of the vectors. context: most tokens of
    a text, those at its ends included. vocabulary: token ids are below it. end: id of the token that ends a text, None
    where the files do not say. pad: id of the padding. causal: whether a token sees only those before it and the
    vector is read off the end token, so that nothing after a text's last token matters.
    """

    path: Path
    model: str
    text: Path
    vision: Path
    tokenizer: Path
    dimension: int
    context: int
    vocabulary: int
    pictures: PictureShape
    end: int | None
    pad: int
    causal: bool
    precision: str


def read_folder(
    path: str | os.PathLike[str], model: str | None = None, *, precision: str | None = None, safetensors: bool = False
) -> ModelFolder:
    """Read what a model's folder says of itself.

    model: its name, if the folder's own is not wanted. precision: `fp32`, `fp16`, `int8`, or what follows
    `text_model_` in the file names; the best of those there by default. safetensors: look for model.safetensors
    instead of ONNX files. Raises ModelError.
    """
    path = Path(path)
    if not path.is_dir():
        raise ModelError(f"{path} is not a folder; expected one with config.json, a tokenizer and ONNX files")
    config = _json(path / "config.json")
    kind = str(config.get("model_type", ""))
    text = _section(config, "text_config", path)
    vision = _section(config, "vision_config", path)
    is_clip = kind in ("clip", "")
    if is_clip:
        text, vision = {**_CLIP_TEXT, **text}, {**_CLIP_VISION, **vision}
    files = (path / SAFETENSORS,) * 2 if safetensors else _networks(path, precision)
    _present(
        files[0],
        "the weights that PyTorch needs; put that file there, or leave the device at cpu, which takes ONNX files",
    )
    dimension = config.get("projection_dim", text.get("projection_dim", _CLIP_PROJECTION if is_clip else None))
    _agreeing(path, config, text, vision)
    return ModelFolder(
        path=path,
        model=canonical(model or _own_name(path, config)),
        text=files[0],
        vision=files[1],
        tokenizer=_tokenizer_file(path),
        dimension=_length(path, "projection_dim", dimension, most=_LONGEST_VECTOR),
        context=_context(path, config, text),
        vocabulary=_length(path, "text_config.vocab_size", text.get("vocab_size", config.get("vocab_size"))),
        pictures=_picture_shape(path, vision.get("image_size")),
        end=_end(text),
        pad=0 if is_clip else _pad(path, text.get("pad_token_id") or config.get("pad_token_id") or 0),
        causal=is_clip,
        precision="safetensors" if safetensors else _precision_of(files[0]),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_plain(path, most=_LARGEST_CONFIG, follow=True))
    except FileNotFoundError:
        raise ModelError(
            f"{path} is missing; a model's folder has config.json, preprocessor_config.json, tokenizer.json, "
            "onnx/text_model.onnx and onnx/vision_model.onnx"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}; fetch the model anew") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a JSON {type(found).__name__}; expected an object")
    return found


def _section(config: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    found = config.get(name) or {}
    if not isinstance(found, dict):
        raise ModelError(f"{path / 'config.json'}: {name} is {found!r}; expected an object")
    return found


def _length(path: Path, name: str, value: object, file: str = "config.json", most: int = _MOST) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{path / file}: {name} is {reprlib.repr(value)}; expected a whole number above 0")
    if value > most:
        raise ModelError(f"{path / file}: {name} is {reprlib.repr(value)}; {most:,} is the most there can be")
    return value


def _present(path: Path, what: str) -> None:
    if not path.is_file():
        raise ModelError(f"{path} is missing: {what}")


def _networks(path: Path, precision: str | None) -> tuple[Path, Path]:
    suffixes = _ANY if precision is None else _SUFFIXES.get(precision, (f"_{precision}",))
    for suffix in suffixes:
        for folder in (path / "onnx", path):
            pair = folder / f"text_model{suffix}.onnx", folder / f"vision_model{suffix}.onnx"
            there = [each.is_file() for each in pair]
            if all(there):
                return pair
            if any(there):
                have, lack = pair if there[0] else pair[::-1]
                raise ModelError(f"{lack} is missing, though {have.name} is there; fetch the model anew")
    seen = sorted(each.name for each in (*path.glob("*.onnx"), *path.glob("onnx/*.onnx"))) or ["no ONNX file"]
    if (path / SAFETENSORS).is_file():
        seen.append(f"{SAFETENSORS} (which needs the extra clipql[torch])")
    wanted = "" if precision is None else f" in precision {precision}"
    names = " or ".join(f"text_model{suffix}.onnx" for suffix in suffixes)
    raise ModelError(f"{path} holds {', '.join(seen)}; expected {names} and the vision_model beside it{wanted}")


def _precision_of(file: Path) -> str:
    return file.stem.removeprefix("text_model").lstrip("_") or "fp32"


def _tokenizer_file(path: Path) -> Path:
    if (path / "tokenizer.json").is_file():
        return path / "tokenizer.json"
    if not (path / "vocab.json").is_file():
        raise ModelError(f"{path / 'tokenizer.json'} is missing, and so is vocab.json: one of them is needed")
    _present(path / "merges.txt", "vocab.json, which is there, needs it")
    return path / "vocab.json"


def _own_name(path: Path, config: dict[str, Any]) -> str:
    said = config.get("_name_or_path")
    # Exports also keep the folder they were made in there, which names nothing
    if isinstance(said, str) and re.fullmatch(r"[\w.-]+/[\w.@-]+", said) and not said.startswith("."):
        return said
    cached = path.absolute().parent
    if cached.name == "snapshots" and cached.parent.name.startswith("models--"):  # Hugging Face's cache
        return cached.parent.name.removeprefix("models--").replace("--", "/")
    return path.absolute().name


def _agreeing(path: Path, config: dict[str, Any], text: dict[str, Any], vision: dict[str, Any]) -> None:
    """Refuse towers whose vectors have different lengths."""
    said = {
        name: section["projection_dim"]
        for name, section in (("projection_dim", config), ("text_config", text), ("vision_config", vision))
        if "projection_dim" in section
    }
    if "projection_dim" in said:
        # Old exports keep their towers' default of 512 beside the real projection_dim, which rules
        return
    if len(set(said.values())) > 1:
        shown = ", ".join(f"{name} {value}" for name, value in said.items())
        raise ModelError(f"{path / 'config.json'}: projection_dim differs between the towers: {shown}")


def _context(path: Path, config: dict[str, Any], text: dict[str, Any]) -> int:
    """Positions of the text tower, or the tokenizer's limit where that is lower, since tables may have spare rows."""
    positions = text.get("max_position_embeddings", config.get("max_position_embeddings"))
    found = _length(path, "text_config.max_position_embeddings", positions, most=_LONGEST_TEXT)
    beside = path / "tokenizer_config.json"
    limit = _json(beside).get("model_max_length") if beside.is_file() else None
    if isinstance(limit, int) and limit >= 1:  # a float of 1e30 means that there is none
        found = min(found, limit)
    if found < 3:
        raise ModelError(f"{path / 'config.json'}: a context of {found} tokens; expected at least 3")
    return found


def _end(text: dict[str, Any]) -> int | None:
    found = text.get("eos_token_id")
    # 2 was written by mistake into every early CLIP config; its graphs read the vector off the highest id
    return found if isinstance(found, int) and found != 2 else None


def _pad(path: Path, value: object) -> int:
    if type(value) is not int or not 0 <= value < _MOST:
        raise ModelError(f"{path / 'config.json'}: pad_token_id is {reprlib.repr(value)}; expected a token's id")
    return value


def _picture_shape(path: Path, image_size: object) -> PictureShape:
    file = "preprocessor_config.json"
    config = _json(path / file)
    fallback = config.get("crop_size", image_size)
    resize = _edges(path, "size", config.get("size", fallback))
    crop = _edges(path, "crop_size", fallback) if config.get("do_center_crop", True) else resize
    if isinstance(resize, int) and min(_pair(crop)) > resize:
        raise ModelError(f"{path / file}: crop_size {crop} is larger than size {resize}")
    if isinstance(image_size, int) and _pair(crop) != (image_size, image_size):
        raise ModelError(
            f"{path / file}: pictures come out as {_pair(crop)}, but config.json's vision_config.image_size is "
            f"{image_size}: the two files are of different models"
        )
    resample = config.get("resample", 3)
    if resample not in range(6):
        raise ModelError(f"{path / file}: resample is {resample!r}; expected Pillow's number of a filter, 0 to 5")
    return PictureShape(
        resize, _pair(crop), _colours(path, config, "image_mean"), _colours(path, config, "image_std"), int(resample)
    )


def _edges(path: Path, name: str, value: object) -> int | tuple[int, int]:
    file = "preprocessor_config.json"
    if isinstance(value, dict) and "shortest_edge" in value:
        value = value["shortest_edge"]
    if isinstance(value, dict):
        height, width = (
            _length(path, f"{name}.{edge}", value.get(edge), file, _LARGEST_PICTURE) for edge in ("height", "width")
        )
        return height, width
    return _length(path, name, value, file, _LARGEST_PICTURE)


def _pair(edges: int | tuple[int, int]) -> tuple[int, int]:
    return (edges, edges) if isinstance(edges, int) else edges


def _colours(path: Path, config: dict[str, Any], name: str) -> tuple[float, float, float]:
    value = config.get(name)
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 3 or not all(isinstance(n, int | float) and abs(n) <= _LARGEST_COLOUR for n in numbers):
        raise ModelError(
            f"{path / 'preprocessor_config.json'}: {name} is {reprlib.repr(value)}; expected three numbers"
        )
    if name == "image_std" and min(numbers) <= 0:
        raise ModelError(f"{path / 'preprocessor_config.json'}: {name} is {value!r}; expected numbers above 0")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])
