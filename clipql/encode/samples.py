"""Captions and pictures with which forms of a model are measured: of lengths and kinds that collections have.

What must stay true: the same ones at every call.
"""

from __future__ import annotations

import numpy as np

CAPTIONS = (
    "cat",
    "a dog",
    "red shoes",
    "mountain lake at dawn",
    "a photo of two people on bicycles",
    "Vintage leather sofa, brown, 3-seater, free delivery",
    "how to fold a fitted sheet in five easy steps (with pictures)",
    "IMG_4032.JPG",
    "Sunset over the harbour of a small fishing town, boats in the foreground, oil on canvas",
    "women's running shoes size 38",
    "Kitchen with white cabinets and an island made of oak",
    "a black and white drawing of a horse",
    "the last chapter - book cover",
    "Happy Birthday!!! card with balloons",
    "10 best restaurants near the old market square, with prices and opening hours for the summer of 2019",
    "stock vector of blue waves on a white background",
    "a close-up of a bee on a yellow flower",
    "portrait of an old man with a beard, looking out of a window into the rain",
    "Logo design for a coffee company",
    "airplane wing above clouds",
    "map of the northern railway lines in 1911",
    "Wireless mouse 2.4 GHz, silent, black",
    "a child who is holding a kite on the beach while the sun goes down behind the pier",
    "pasta with tomatoes and basil",
    "Handmade ceramic mug, green glaze, dishwasher safe, ideal gift for tea lovers and for those who drink coffee",
    "football players celebrate after the final whistle",
    "interior of a gothic cathedral",
    "a screenshot of a weather app",
    "Lot 217: silver teapot, London, circa 1890, weight 610 grams, slight dents to the lid and the handle",
    "snow-covered trees",
    "wedding invitation template with gold frame",
    "ein rotes Haus am See",
    "un chat noir sur un toit",
    "una ciudad de noche vista desde el aire",
    "собака бежит по траве",
    "東京の夜景",
    "قارب صغير في البحر",
    "graph of monthly sales by region",
    "a bowl of ramen with a boiled egg and spring onions on a wooden table",
    "person in a yellow raincoat walking through a forest",
    "New 2021 electric SUV parked in front of a modern house",
    "macro photograph of water drops on a leaf",
    "DIY shelf made from old pallets",
    "crowd at an open-air concert, stage lights, smoke",
    "a giraffe eats leaves from a tall tree in the savanna",
    "set of 6 cotton towels in grey",
    "the Eiffel Tower seen from below",
    "empty swimming pool with cracked tiles, abandoned hotel, overgrown with ivy and moss, seen through broken glass",
)
_KINDS, _SIZE = 24, 256


def pictures() -> list[bytes]:
    """PPM files of drawn scenes: soft and sharp shapes, fine and coarse grain, bright and dark."""
    return [_picture(seed) for seed in range(_KINDS)]


def _picture(seed: int) -> bytes:
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:_SIZE, 0:_SIZE].astype(np.float32) / _SIZE
    ends = random.uniform(0, 255, (3, 3))
    scene = ends[0] * (1 - y[..., None]) + ends[1] * y[..., None] + (ends[2] - 128) * x[..., None] * 0.5
    for _ in range(int(random.integers(1, 14))):
        centre, radius = random.uniform(0, 1, 2), random.uniform(0.03, 0.4)
        far = np.abs(np.stack([x - centre[0], y - centre[1]])) / radius
        distance = np.hypot(*far) if random.random() < 0.6 else far.max(0)  # discs and squares
        soft = np.clip((1 - distance) * random.choice([2.0, 40.0]), 0, 1)[..., None]
        scene = scene * (1 - soft) + random.uniform(0, 255, 3) * soft
    if seed % 3 == 0:  # stripes
        scene += (60 * np.sin(random.uniform(20, 200) * (x + random.uniform(-1, 1) * y)))[..., None]
    scene += random.normal(0, random.choice([1.0, 12.0, 40.0]), (_SIZE, _SIZE, 1))
    pixels: bytes = np.clip(scene, 0, 255).astype(np.uint8).tobytes()
    return b"P6 %d %d 255\n" % (_SIZE, _SIZE) + pixels
