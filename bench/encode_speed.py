"""Words and pictures to vectors on the CPU: what cutting texts saves, and whether decoding hides behind the model.

python -m bench.encode_speed
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bench import child, data
from bench.results import Comparison, Line, Plot, at_least, median

ROUNDS = 5
CAPTIONS = child.ROOT / "tests" / "data" / "captions" / "web_10000.parquet"
TEXTS, PADDED_TEXTS, BATCH = 512, 96, 16
SIZES = ((640, 480), (480, 640), (800, 600), (500, 333), (1024, 683), (400, 400))
PICTURES = 48
OURS, INT8, PADDED, LOOP, MODEL = "clipql", "clipql, int8", "padded to 77", "Pillow, then the model", "the model alone"
OPTIMIZED, PHRASE = "clipql, optimized", "a phrase as it is typed, optimized"
TYPED = "two red boats in a small harbour at night"
NEAR = 0.995
MODEL_HOW = "A model of ViT-B/32's shape with random weights, float32, by ONNX Runtime on all cores."
TEXT_HOW = f"""\
{MODEL_HOW} Real web captions, {{mean:.1f}} tokens long on average: clipql takes {TEXTS} at once, sorts them and cuts
each batch to its longest; the other way pads {PADDED_TEXTS} of the same to 77 tokens, 32 a batch. int8 is the same
network with its matrices quantised by ONNX Runtime (`quantize_dynamic`), optimized what `clipql model optimize` keeps
({{form}}). The phrase is `{TYPED}`, encoded anew at each letter, alone. {ROUNDS} rounds in turns, medians."""
PICTURE_HOW = f"""\
{MODEL_HOW} {PICTURES} JPEGs of 400 × 400 to 1024 × 683 pixels, {{kilobytes:.0f}} KB on average. The plain loop decodes,
resizes and normalises {BATCH} pictures with Pillow and numpy and then runs the model, and so on; the model alone gets
pixels that are ready. Optimized is what `clipql model optimize` keeps ({{form}}). {ROUNDS} rounds in turns, medians."""


def text(rows: int = 0) -> Comparison:
    """Captions a second against padding to 77."""
    found = child.run(measure_text, model=str(model()))
    speed = _speed(found)
    return Comparison(
        "encode-text",
        "Encoding captions",
        TEXT_HOW.format(mean=found["mean"], form=found["form"]),
        (
            at_least(
                "encoding captions, ViT-B/32 shape",
                f"{speed[OURS]:.0f} captions/s; padded to 77 {speed[PADDED]:.0f}",
                speed[OURS] / speed[PADDED],
                4,
            ),
            Line(
                "the same in int8: the smallest cosine to float32",
                f"{found['cosine']:.4f}, at {speed[INT8]:.0f} captions/s",
                "at least 0.99",
                found["cosine"] >= 0.99,
            ),
            at_least(
                "the same, optimized, against float32",
                f"{speed[OPTIMIZED]:.0f} captions/s; float32 {speed[OURS]:.0f}",
                speed[OPTIMIZED] / speed[OURS],
                3,
            ),
            _near(found["near"]),
            Line(
                "a phrase at each letter, optimized, 95 of 100 of them within",
                f"{1000 * found['slow']:.1f} ms; median {1000 / speed[PHRASE]:.1f} ms",
                "at most 5 ms",
                found["slow"] <= 0.005,
            ),
        ),
        Plot(
            "encode-text",
            "Encoding web captions, ViT-B/32 shape",
            "captions/s, median",
            {name: each for name, each in speed.items() if name != PHRASE},
            (OURS, INT8, OPTIMIZED),
        ),
        found["seconds"],
    )


def pictures(rows: int = 0) -> Comparison:
    """Pictures a second against a plain loop and against the model alone."""
    found = child.run(measure_pictures, model=str(model()))
    speed = _speed(found)
    share = speed[MODEL] / speed[OURS]
    return Comparison(
        "encode-pictures",
        "Encoding pictures",
        PICTURE_HOW.format(kilobytes=found["bytes"] / 1000, form=found["form"]),
        (
            at_least(
                "encoding JPEGs of web size, ViT-B/32 shape",
                f"{speed[OURS]:.1f} images/s; plain loop {speed[LOOP]:.1f}",
                speed[OURS] / speed[LOOP],
                1,
            ),
            Line(
                "the same against the model's own time",
                f"{speed[MODEL]:.1f} images/s by the model alone: {share:.2f} times its time",
                "at most 1.2 times",
                share <= 1.2,
            ),
            at_least(
                "the same, optimized, against float32",
                f"{speed[OPTIMIZED]:.1f} images/s; float32 {speed[OURS]:.1f}",
                speed[OPTIMIZED] / speed[OURS],
                2,
            ),
            _near(found["near"]),
        ),
        Plot("encode-pictures", "Encoding JPEGs of web size, ViT-B/32 shape", "images/s, median", speed),
        found["seconds"],
    )


def _near(cosine: float) -> Line:
    return Line("the smallest cosine of that to float32", f"{cosine:.4f}", f"at least {NEAR}", cosine >= NEAR)


def _speed(found: dict[str, Any]) -> dict[str, float]:
    return {name: found["counts"][name] / median(seconds) for name, seconds in found["seconds"].items()}


def model() -> Path:
    """The model's folder with its forms, made if they are not there (1 GB)."""
    folder = data.FOLDER / "vit-b-32"
    whole = folder / "whole"
    if not whole.exists():
        data.clear(folder)
        child.run(make, folder=str(folder))
        whole.touch()
    if not (folder / "clipql-optimized" / "forms.json").exists():
        child.run(optimize, folder=str(folder))
    return folder


def optimize(folder: str) -> None:
    """In a child: have the model's forms made and measured."""
    from clipql.encode.optimize import optimize

    optimize(folder)


def make(folder: str) -> None:
    """In a child: write the model."""
    from onnxruntime.quantization import quantize_dynamic

    from bench import encode_model

    onnx = encode_model.write(Path(folder), name="random/vit-b-32") / "onnx"
    for tower in ("text", "vision"):
        quantize_dynamic(
            onnx / f"{tower}_model.onnx", onnx / f"{tower}_model_int8.onnx", op_types_to_quantize=["MatMul"]
        )


def measure_text(model: str) -> dict[str, Any]:
    """In a child: seconds of both ways, in turns."""
    import pyarrow.parquet as pq

    from clipql.encode import open_encoder, tokenizer

    encoder, session = _both(Path(model), "text")
    small, _ = _both(Path(model), "text", precision="int8")
    captions = pq.read_table(CAPTIONS).column("TEXT").to_pylist()
    captions = [captions[i] for i in np.random.default_rng(0).permutation(len(captions))[:TEXTS]]
    padded = tokenizer.tokenize(captions[:PADDED_TEXTS])

    def at_full_length() -> None:
        for first in range(0, PADDED_TEXTS, 32):
            session.run(None, {"input_ids": padded[first : first + 32]})

    form = open_encoder(model)
    letters = [TYPED[:end] for end in range(1, 1 + len(TYPED))]
    waits: list[float] = []

    def type_it() -> None:
        for some in letters:
            began = time.perf_counter()
            form.encode_texts([some])
            waits.append(time.perf_counter() - began)

    mean = float(np.mean([len(ids) for ids in tokenizer.openai()(captions)]))
    seconds = in_turns(
        {
            OURS: lambda: encoder.encode_texts(captions),
            INT8: lambda: small.encode_texts(captions),
            PADDED: at_full_length,
            OPTIMIZED: lambda: form.encode_texts(captions),
            PHRASE: type_it,
        }
    )
    cosine = float((encoder.encode_texts(captions) * small.encode_texts(captions)).sum(1).min())
    near = float((encoder.encode_texts(captions) * form.encode_texts(captions)).sum(1).min())
    counts = {OURS: TEXTS, INT8: TEXTS, PADDED: PADDED_TEXTS, OPTIMIZED: TEXTS, PHRASE: len(letters)}
    told = {"mean": mean, "cosine": cosine, "near": near, "form": form.running["text"]}
    return {"seconds": seconds, "counts": counts, "slow": float(np.quantile(waits[len(letters) :], 0.95)), **told}


def measure_pictures(model: str) -> dict[str, Any]:
    """In a child: seconds of the three, in turns."""
    from clipql.encode import open_encoder, preprocess

    encoder, session = _both(Path(model), "vision")
    form = open_encoder(model)
    files = [jpeg(seed) for seed in range(PICTURES)]
    ready = np.stack([preprocess(file) for file in files])

    def alone() -> None:
        for first in range(0, PICTURES, BATCH):
            session.run(None, {"pixel_values": ready[first : first + BATCH]})

    def loop() -> None:
        for first in range(0, PICTURES, BATCH):
            session.run(None, {"pixel_values": np.stack([_plainly(file) for file in files[first : first + BATCH]])})

    seconds = in_turns(
        {
            OURS: lambda: encoder.encode_pictures(files),
            LOOP: loop,
            MODEL: alone,
            OPTIMIZED: lambda: form.encode_pictures(files),
        }
    )
    counts = dict.fromkeys(seconds, PICTURES)
    near = float((encoder.encode_pictures(files).vectors * form.encode_pictures(files).vectors).sum(1).min())
    told = {"near": near, "form": form.running["vision"]}
    return {"seconds": seconds, "counts": counts, "bytes": float(np.mean([len(file) for file in files])), **told}


def _both(folder: Path, tower: str, precision: str = "fp32") -> tuple[Any, Any]:
    """Our encoder, and the network in a session with ONNX Runtime's own settings."""
    import onnxruntime

    from clipql.encode.clip import ClipEncoder
    from clipql.encode.folder import read_folder
    from clipql.encode.onnx import OnnxTowers

    found = read_folder(folder, precision=precision)
    session = onnxruntime.InferenceSession(folder / "onnx" / f"{tower}_model.onnx", providers=["CPUExecutionProvider"])
    return ClipEncoder(found, OnnxTowers(found)), session


def jpeg(seed: int) -> bytes:
    """A picture with large shapes and fine grain, so that it has a photograph's size."""
    from PIL import Image

    random = np.random.default_rng(seed)
    size = SIZES[seed % len(SIZES)]
    shapes = Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = random.normal(0, 8, (size[1], size[0], 1))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(shapes) + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _plainly(file: bytes) -> np.ndarray[Any, Any]:
    """Preprocessing as every tutorial has it."""
    from PIL import Image

    from clipql.encode.prepare import OPENAI

    image = Image.open(io.BytesIO(file)).convert("RGB")
    scale = 224 / min(image.size)
    image = image.resize((int(image.width * scale + 1e-6), int(image.height * scale + 1e-6)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
    return ((pixels - np.float32(OPENAI.mean)) / np.float32(OPENAI.std)).transpose(2, 0, 1)


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of each call in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(1 + rounds):  # the first loads and warms
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def main() -> None:
    """Measure both and print them."""
    from bench import encode_speed  # by its name, under which a child finds its functions; this is __main__

    for compare in (encode_speed.text, encode_speed.pictures):
        for line in compare().lines:
            print(
                line.work,
                line.measured,
                line.bar,
                {True: "met", False: "MISSED", None: ""}[line.met],
                sep=" | ",
                flush=True,
            )


if __name__ == "__main__":
    main()
