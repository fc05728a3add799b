"""Hugging Face's cache of models on this machine, read without its library and without the network.

The layout is the library's own, so what other programs have fetched is found, and they find what clipql fetches:

    models--OWNER--NAME/refs/main             the commit that was fetched last
    models--OWNER--NAME/snapshots/COMMIT/     the files by their names, links to
    models--OWNER--NAME/blobs/DIGEST          what they hold

What must stay true: the environment is read at each call, never at import.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def cache_folder() -> Path:
    """Where models are kept: $HF_HUB_CACHE, else `hub` in $HF_HOME, else ~/.cache/huggingface/hub."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache"), "huggingface"
    )
    folder = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or os.path.join(home, "hub")
    return Path(os.path.expandvars(os.path.expanduser(folder)))


def repository_folder(repository: str) -> Path:
    """Where the cache keeps the files of `owner/name`."""
    return cache_folder() / ("models--" + repository.replace("/", "--"))


def snapshot(repository: str) -> Path | None:
    """The folder of the files of `owner/name` that were fetched last; None where there are none."""
    folder = repository_folder(repository)
    try:
        commit = (folder / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        commit = ""
    if re.fullmatch(r"[0-9a-f]{40}", commit) and (folder / "snapshots" / commit).is_dir():
        return folder / "snapshots" / commit
    try:
        found = [each for each in (folder / "snapshots").iterdir() if each.is_dir()]
    except OSError:
        return None
    return max(found, key=lambda each: each.stat().st_mtime, default=None)


def repository_of(snapshot_folder: Path) -> str | None:
    """The name of the model whose files a folder of the cache has; None for a folder elsewhere."""
    folder = snapshot_folder.absolute()
    if not folder.is_relative_to(cache_folder().absolute()) or folder.parent.name != "snapshots":
        return None
    return _name(folder.parents[1].name)


def cached_repositories() -> list[str]:
    """The names of all models in the cache, in alphabetical order; those that hold no CLIP too."""
    try:
        names = [each.name for each in cache_folder().iterdir() if each.name.startswith("models--")]
    except OSError:
        return []
    return sorted(_name(name) for name in names)


def _name(folder: str) -> str:
    return folder.removeprefix("models--").replace("--", "/", 1)
