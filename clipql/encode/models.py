"""Where models come from: folders, the Hugging Face cache, the model in the package, and the hub.

What must stay true: `find` never uses the network, so that no query waits for 600 MB; `pull` asks only for files that
it names, never for a pickle.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files as resources
from pathlib import Path
from typing import TYPE_CHECKING

from clipql.encode.cache import REPOSITORY, cache_folder, cached_repositories, snapshot
from clipql.encode.folder import ModelFolder, read_folder
from clipql.encode.names import DEFAULT_MODEL, canonical
from clipql.errors import ModelError

if TYPE_CHECKING:
    from clipql.encode.hub import Progress, RemoteFile, Repository

BUNDLED = "clipql/emoji"
SAFETENSORS = "safetensors"

# Where the ONNX files are of models whose own repository has none
EXPORTS = {
    "openai/clip-vit-base-patch32": "Xenova/clip-vit-base-patch32",
    "openai/clip-vit-base-patch16": "Xenova/clip-vit-base-patch16",
    "openai/clip-vit-large-patch14": "Xenova/clip-vit-large-patch14",
    "openai/clip-vit-large-patch14-336": "Xenova/clip-vit-large-patch14-336",
}
_NETWORKS = ("text_model", "vision_model")
_NEEDED = ("config.json", "preprocessor_config.json")
_OPTIONAL = ("tokenizer_config.json", "special_tokens_map.json", "README.md", "LICENSE", "LICENSE.md")
# the endings of files by precision, best first
_ENDINGS = {"fp32": ("",), "fp16": ("_fp16",), "int8": ("_int8", "_quantized", "_uint8")}
_ANY = ("", "_quantized", "_int8", "_uint8", "_fp16")


@dataclass(frozen=True)
class Installed:
    """A model that is on this machine. place: `cache` or `bundled`; model: what it says of itself."""

    name: str
    place: str
    model: ModelFolder


def find(
    model: str | os.PathLike[str] | None = None, *, precision: str | None = None, safetensors: bool = False
) -> ModelFolder:
    """A model's files on this machine.

    model: a folder, a name on Hugging Face, `clipql/emoji` (the small one in the package), or None for $CLIPQL_MODEL
    and without that for openai/clip-vit-base-patch32. precision: `fp32`, `fp16` or `int8`; the best there is by
    default. safetensors: look for model.safetensors (the torch extra) instead of ONNX files. Raises ModelError, which
    says how to get a model that is not there.
    """
    model = _asked(model)
    if isinstance(model, Path):
        return read_folder(model, precision=precision, safetensors=safetensors)
    if model == BUNDLED:
        return _bundled(precision)
    problem: ModelError | None = None
    for repository in _sources(model, safetensors=safetensors):
        there = snapshot(repository)
        if there is None:
            continue
        try:
            return read_folder(there, canonical(model), precision=precision, safetensors=safetensors)
        except ModelError as error:
            problem = problem or error
    raise ModelError(_missing(model, SAFETENSORS if safetensors else precision, problem)) from problem


def pull(model: str | None = None, *, precision: str | None = None, progress: Progress | None = None) -> ModelFolder:
    """Fetch a model from the hub into the Hugging Face cache, or continue a fetch that was cut short.

    Files that are there are checked against the hub's digests. precision: as in `find`, or `safetensors` for the
    torch extra. HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and HF_HUB_DOWNLOAD_TIMEOUT are honoured.
    Raises ModelError.
    """
    from clipql.encode import hub

    wanted = _asked(model)
    if isinstance(wanted, Path):
        raise ModelError(f"{wanted} is a folder of this machine; only a name on Hugging Face can be pulled")
    safetensors = precision == SAFETENSORS
    if wanted == BUNDLED or hub.offline():
        return find(wanted, precision=None if safetensors else precision, safetensors=safetensors)
    name = _sources(wanted, safetensors=safetensors)[0]
    if not REPOSITORY.fullmatch(name):
        raise ModelError(f"{wanted!r} is neither a folder nor a name on Hugging Face, such as {DEFAULT_MODEL}")
    source = hub.repository(name)
    there = hub.fetch(source, _needed(source, precision), progress)
    return read_folder(there, canonical(wanted), precision=None if safetensors else precision, safetensors=safetensors)


def installed(among: Sequence[str] | None = None) -> list[Installed]:
    """The models that are on this machine: the bundled one first, then the cache's CLIP models by name.

    among: names to look for in the cache, by a process that may not list it; None for all.
    """
    found = []
    with contextlib.suppress(ModelError):  # an installation without its data
        found.append(Installed(BUNDLED, "bundled", _bundled(None)))
    for repository in cached_repositories() if among is None else among:
        there = snapshot(repository)
        if there is None:
            continue
        for safetensors in (False, True):
            try:
                found.append(Installed(repository, "cache", read_folder(there, repository, safetensors=safetensors)))
                break
            except ModelError:  # language models and the like, which other programs keep there
                continue
    return found


def model_files(model: ModelFolder) -> list[Path]:
    """The files of a model that count: its two networks, their data beside them, configuration and tokenizer."""
    wanted = [*_NEEDED, *_OPTIONAL, "tokenizer.json", "vocab.json", "merges.txt"]
    found = [model.path / name for name in wanted if (model.path / name).is_file()]
    for network in dict.fromkeys((model.text, model.vision)):
        found += [network, *sorted(network.parent.glob(network.name + "[_.]data*"))]
    return found


def licence(model: ModelFolder) -> str | None:
    """The licence that the front matter of the model's README names, or None."""
    try:
        text = (model.path / "README.md").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    front = re.match(r"\s*---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    said = re.search(r"^license:[ \t]*['\"]?([^\s'\"]+)", front[1], re.MULTILINE) if front else None
    return said[1] if said else None


def _asked(model: str | os.PathLike[str] | None) -> str | Path:
    """A folder as a Path, a name as it was given."""
    model = model or os.environ.get("CLIPQL_MODEL") or DEFAULT_MODEL
    if not isinstance(model, str) or model.startswith(("/", "./", "../", "~")) or model in (".", ".."):
        return Path(model).expanduser()
    return Path(model) if model != BUNDLED and Path(model).is_dir() else model


def _sources(name: str, *, safetensors: bool = False) -> tuple[str, ...]:
    """The repositories that may have a model's files, likeliest first."""
    owner = name.partition("/")[0].lower()
    # ViT-B/32 and open_clip's names look like repositories and are none
    if not REPOSITORY.fullmatch(name) or owner.startswith("vit-") or owner == "openai":
        name = canonical(name)
    export = EXPORTS.get(name)
    if export is None:
        return (name,)
    return (name, export) if safetensors else (export, name)


def _bundled(precision: str | None) -> ModelFolder:
    folder = Path(str(resources("clipql.data"))) / "emoji" / "model"
    if not folder.is_dir():
        raise ModelError(f"the model {BUNDLED} is not in this installation: {folder} is missing; install clipql anew")
    return read_folder(folder, BUNDLED, precision=precision)


def _missing(model: str, precision: str | None, problem: ModelError | None) -> str:
    from clipql.encode import hub

    source = _sources(model, safetensors=precision == SAFETENSORS)[0]
    option = f" --precision {precision}" if precision else ""
    what = f"the model {model} is not on this machine"
    if problem is not None and snapshot(source) is not None:
        what = f"the model {model} on this machine is not usable: {problem}"
    if hub.offline():
        how = "HF_HUB_OFFLINE is set, so it cannot be pulled; unset it, or"
    else:
        how = f"Run `clipql model pull {model}{option}`. Without a network,"
    return (
        f"{what} (looked in {cache_folder()}). {how} fetch {', '.join(_NEEDED)}, tokenizer.json, "
        f"{' and '.join(_wanted_networks(precision))} of {hub.endpoint()}/{source} elsewhere, put them into a folder "
        "here as they are, and give that folder as the model (--model FOLDER, or CLIPQL_MODEL=FOLDER)"
    )


def _needed(source: Repository, precision: str | None) -> list[RemoteFile]:
    """The files to fetch of those that a repository has, the small ones first. Raises ModelError."""
    by_name = {file.path: file for file in source.files}
    lacking = [name for name in _NEEDED if name not in by_name]
    tokenizer = ["tokenizer.json"] if "tokenizer.json" in by_name else ["vocab.json", "merges.txt"]
    lacking += [name for name in tokenizer if name not in by_name]
    networks = _networks_of(by_name.__contains__, precision)
    if networks is None:
        lacking += _wanted_networks(precision)
    if lacking:
        raise ModelError(
            f"{source.name} lacks {', '.join(lacking)}; it has {_shown(list(by_name))}. clipql needs a CLIP exported "
            "to ONNX with its text and vision models apart, such as Xenova/clip-vit-base-patch32"
        )
    beside = [
        name for name in by_name if any(re.fullmatch(re.escape(n) + r"[_.]data(_\d+)?", name) for n in networks or ())
    ]
    chosen = [*_NEEDED, *(name for name in _OPTIONAL if name in by_name), *tokenizer, *(networks or ()), *beside]
    return [by_name[name] for name in chosen]


def _networks_of(there: Callable[[str], bool], precision: str | None) -> list[str] | None:
    """The names of the two networks' files, or None where there is no such pair."""
    if precision == SAFETENSORS:
        return ["model.safetensors"] if there("model.safetensors") else None
    endings = _ANY if precision is None else _ENDINGS.get(precision, (f"_{precision}",))
    for ending in endings:
        for folder in ("onnx/", ""):
            pair = [f"{folder}{network}{ending}.onnx" for network in _NETWORKS]
            if all(map(there, pair)):
                return pair
    return None


def _wanted_networks(precision: str | None) -> list[str]:
    if precision == SAFETENSORS:
        return ["model.safetensors"]
    ending = _ENDINGS.get(precision or "fp32", (f"_{precision}",))[0]
    return [f"onnx/{network}{ending}.onnx" for network in _NETWORKS]


def _shown(names: Sequence[str]) -> str:
    weights = [name for name in names if name.endswith((".onnx", ".safetensors", ".bin", ".pt"))]
    some = sorted(weights or names)
    return ", ".join(some[:8]) + (f" and {len(some) - 8} more" if len(some) > 8 else "") or "no file"
