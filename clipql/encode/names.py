"""What a model is called: one canonical name for the vectors that can be compared with each other."""

from __future__ import annotations

DEFAULT_MODEL = "openai/clip-vit-base-patch32"

_OPENAI = {
    "openai/clip-vit-base-patch32": ("vit-b/32", "vit-b-32", "clip-vit-b-32", "clip-vit-base-patch32"),
    "openai/clip-vit-base-patch16": ("vit-b/16", "vit-b-16", "clip-vit-b-16", "clip-vit-base-patch16"),
    "openai/clip-vit-large-patch14": ("vit-l/14", "vit-l-14", "clip-vit-l-14", "clip-vit-large-patch14"),
    "openai/clip-vit-large-patch14-336": (
        "vit-l/14@336px",
        "vit-l-14-336",
        "vit-l/14-336",
        "clip-vit-large-patch14-336",
    ),
}
_LAION = {
    "laion/CLIP-ViT-B-32-laion2B-s34B-b79K": "vit-b-32/laion2b_s34b_b79k",
    "laion/CLIP-ViT-B-16-laion2B-s34B-b88K": "vit-b-16/laion2b_s34b_b88k",
    "laion/CLIP-ViT-L-14-laion2B-s32B-b82K": "vit-l-14/laion2b_s32b_b82k",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "vit-h-14/laion2b_s32b_b79k",
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k": "vit-bigg-14/laion2b_s39b_b160k",
}
# Text towers that were trained to give the vectors of another model
_SAME_SPACE = {"sentence-transformers/clip-ViT-B-32-multilingual-v1": "openai/clip-vit-base-patch32"}


def _aliases() -> dict[str, str]:
    found = {name.lower(): canonical for name, canonical in _SAME_SPACE.items()}
    for canonical, others in _OPENAI.items():
        found[canonical] = canonical
        for other in others:
            for written in (other, f"{other}/openai", f"{other}-quickgelu/openai", f"openai/{other}"):
                found[written] = canonical
            found[f"xenova/{other}"] = found[f"sentence-transformers/{other}"] = canonical
    for canonical, other in _LAION.items():
        found[canonical.lower()] = found[other] = found["xenova/" + canonical.lower().partition("/")[2]] = canonical
    return found


_ALIASES = _aliases()


def canonical(name: str) -> str:
    """The name that stands for the model's vectors, by which models are compared.

    `Xenova/clip-vit-base-patch32`, `ViT-B/32` (as clip-retrieval writes it) and `open_clip:ViT-B-32/openai` are all
    `openai/clip-vit-base-patch32`. A name that is not known stays as it is.
    """
    name = name.strip()
    return _ALIASES.get(name.lower().removeprefix("open_clip:").removeprefix("hf:"), name)
