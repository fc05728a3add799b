"""Words and pictures to vectors on a GPU: are they the CPU's vectors, how much faster is it, what do its errors say.

python -m bench.encode_gpu [--device cuda:1]

Needs a GPU that PyTorch calls cuda, the extra clipql[torch] and onnx. It writes 1.2 GB into bench/data and takes two
minutes.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import child, data
from bench.encode_speed import CAPTIONS, in_turns, jpeg
from bench.results import Comparison, Line, at_least, median

TEXTS, PICTURES = 512, 64  # on the CPU, and compared
MANY_TEXTS, MANY_PICTURES = 10_000, 512  # on the GPU
ROUNDS = 3
TOKENS = 16  # of each text that a tower gets alone, about what captions have
BARS = {"float32": 0.9999, "float16": 0.999, "bfloat16": 0.99}
EMBED, API, TOWER, READY = "clipql embed", "the encoder", "the tower alone", "what comes before it, alone"
MODEL_HOW = "A model of ViT-B/32's shape with random weights; {gpu}, {cores} processor cores, PyTorch {torch}."
AGREEMENT_HOW = f"""\
{MODEL_HOW} The vectors of {TEXTS} different web captions and {PICTURES} JPEGs on the GPU beside those that PyTorch
gives on the CPU in float32. Random weights put all vectors near each other (the mean cosine of two different captions
is {{apart_texts:.3f}}, of two pictures {{apart_pictures:.3f}}), so it is also counted whose nearest is itself."""
SPEED_HOW = f"""\
{MODEL_HOW} The GPU runs PyTorch in bfloat16 on {MANY_TEXTS:,} web captions and {MANY_PICTURES:,} JPEGs, the CPU ONNX
Runtime in float32 on {TEXTS} and {PICTURES} of them, each in the batches that suit it. JPEGs are of 400 × 400 to
1024 × 683 pixels, {{kilobytes:.0f}} KB on average, in memory; `clipql embed` reads them as files and writes parts. A
tower alone gets {TOKENS} tokens a text, or pixels that are ready. {ROUNDS} rounds in turns, medians."""


def agreement(device: str) -> Comparison:
    """The smallest cosine to the CPU's vectors in each precision."""
    found = child.run(measure_agreement, model=str(model()), device=device)
    lines = [
        Line(
            f"{kind} in {precision}: the smallest cosine to the CPU's float32",
            f"{cosine:.6f}; nearest to themselves {own:.1%}",
            f"at least {BARS[precision]}",
            cosine >= BARS[precision],
        )
        for kind, precision, cosine, own in found["lines"]
    ]
    return Comparison("encode-gpu-agreement", "A GPU's vectors", AGREEMENT_HOW.format(**found), tuple(lines))


def speed(device: str) -> Comparison:
    """Captions and images a second on the GPU against the CPU."""
    found = child.run(measure_speed, model=str(model()), device=device)
    rates = {name: found["counts"][name] / median(seconds) for name, seconds in found["seconds"].items()}
    lines = []
    for kind, noun in (("captions", "captions/s"), ("pictures", "images/s")):
        for way in (EMBED, API, TOWER):
            gpu, cpu = rates[f"{kind}, {way}, gpu"], rates[f"{kind}, {way}, cpu"]
            lines.append(at_least(f"{kind}, {way}", f"{gpu:,.0f} {noun}; CPU {cpu:,.0f}", gpu / cpu, 1))
        before = rates[f"{kind}, {READY}"]
        lines.append(Line(f"{kind}, {READY}", f"{before:,.0f} {noun}"))
    return Comparison(
        "encode-gpu-speed", "A GPU's speed", SPEED_HOW.format(**found), tuple(lines), raw=found["seconds"]
    )


def errors(device: str) -> Comparison:
    """What is said where the device is not there, or too small."""
    found = child.run(measure_errors, model=str(model()), device=device)
    lines = [
        Line(work, message, f"a ModelError with {wanted!r}", kind == "ModelError" and wanted in message)
        for work, kind, message, wanted in found["lines"]
    ]
    lines.append(
        Line("the same batch when there is memory again", found["after"], "vectors", found["after"] == "vectors")
    )
    return Comparison("encode-gpu-errors", "A GPU's errors", MODEL_HOW.format(**found), tuple(lines))


def model() -> Path:
    """The model's folder, made if it is not there: model.safetensors, and ONNX files of its shape for the CPU."""
    folder = data.FOLDER / "vit-b-32-torch"
    whole = folder / "whole"
    if not whole.exists():
        data.clear(folder)
        child.run(make, folder=str(folder))
        whole.touch()
    return folder


def make(folder: str) -> None:
    """In a child: write the model."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from bench import encode_model

    encode_model.write(Path(folder), name="random/vit-b-32")
    torch.manual_seed(0)
    # the end token's real id: the default of old configurations, 2, is read differently
    CLIPModel(CLIPConfig(text_config={"eos_token_id": 49407})).save_pretrained(folder)


def measure_agreement(model: str, device: str) -> dict[str, Any]:
    """In a child: the smallest cosines, and how many are nearest to their own."""
    from clipql.encode import open_encoder

    captions, files = _captions(TEXTS), [jpeg(seed) for seed in range(PICTURES)]
    expected = _vectors(_by_torch_on_cpu(model), captions, files)
    lines = []
    for precision in BARS:
        found = _vectors(open_encoder(model, device=device, precision=precision), captions, files)
        for kind, ours, theirs in zip(("captions", "pictures"), found, expected, strict=True):
            own = (ours @ theirs.T).argmax(1) == np.arange(len(ours))
            lines.append((kind, precision, float((ours * theirs).sum(1).min()), float(own.mean())))
    apart = [float((each @ each.T)[np.triu_indices(len(each), 1)].mean()) for each in expected]
    return {"lines": lines, "apart_texts": apart[0], "apart_pictures": apart[1], **_machine(device)}


def _vectors(encoder: Any, captions: list[str], files: list[bytes]) -> tuple[Any, Any]:
    return encoder.encode_texts(captions), encoder.encode_pictures(files).vectors


def _by_torch_on_cpu(model: str) -> Any:
    from clipql.encode.clip import ClipEncoder
    from clipql.encode.folder import read_folder
    from clipql.encode.torch_clip import TorchTowers

    folder = read_folder(Path(model), safetensors=True)
    return ClipEncoder(folder, TorchTowers(folder, device="cpu"))


def measure_speed(model: str, device: str) -> dict[str, Any]:
    """In a child: seconds of every way, in turns."""
    from clipql.encode import open_encoder, preprocess, read_folder, tokenizer

    shape = read_folder(Path(model)).pictures
    captions = _captions(MANY_TEXTS)
    some = [jpeg(seed) for seed in range(PICTURES)]
    files = [some[i % PICTURES] for i in range(MANY_PICTURES)]
    ready = np.stack([preprocess(file, shape) for file in some])
    machine = _machine(device)
    calls: dict[str, Callable[[], Any]] = {}
    counts: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(machine["cores"]) as pool:
        for way, encoder, texts, pictures in (
            ("gpu", open_encoder(model, device=device), captions, files),
            ("cpu", open_encoder(model), captions[:TEXTS], some),
        ):
            inputs = _inputs(Path(place) / way, texts, pictures)
            outputs = _outputs(Path(place) / f"{way}-out")
            for kind, values in (("captions", texts), ("pictures", pictures)):
                counts |= {f"{kind}, {each}, {way}": len(values) for each in (EMBED, API, TOWER)}
            calls |= {
                f"captions, {EMBED}, {way}": partial(_embed, encoder, inputs / "captions.txt", outputs),
                f"captions, {API}, {way}": partial(encoder.encode_texts, texts),
                f"captions, {TOWER}, {way}": partial(_text_tower, encoder, len(texts)),
                f"pictures, {EMBED}, {way}": partial(_embed, encoder, inputs / "pictures", outputs),
                f"pictures, {API}, {way}": partial(encoder.encode_pictures, pictures),
                f"pictures, {TOWER}, {way}": partial(_picture_tower, encoder, ready, len(pictures)),
            }
        calls |= {
            f"captions, {READY}": partial(tokenizer.openai(), captions),
            f"pictures, {READY}": lambda: list(pool.map(lambda file: preprocess(file, shape).shape, files)),
        }
        counts |= {f"captions, {READY}": MANY_TEXTS, f"pictures, {READY}": MANY_PICTURES}
        seconds = in_turns(calls, ROUNDS)
    return {"seconds": seconds, "counts": counts, "kilobytes": float(np.mean([len(f) for f in some])) / 1000, **machine}


def _inputs(folder: Path, texts: list[str], pictures: list[bytes]) -> Path:
    (folder / "pictures").mkdir(parents=True)
    (folder / "captions.txt").write_text("".join(" ".join(text.split()) + "\n" for text in texts), encoding="utf-8")
    for number, picture in enumerate(pictures):
        (folder / "pictures" / f"{number:05}.jpg").write_bytes(picture)
    return folder


def _outputs(folder: Path) -> Iterator[Path]:
    """A new folder each time."""
    number = 0
    while True:
        number += 1
        yield folder / str(number)


def _embed(encoder: Any, source: Path, outputs: Iterator[Path]) -> None:
    from clipql.encode.embed import embed_captions, embed_pictures

    (embed_pictures if source.is_dir() else embed_captions)([source], next(outputs), encoder=encoder)


def _text_tower(encoder: Any, count: int) -> None:
    towers = encoder._towers
    rows = towers.tokens // TOKENS
    ids = np.full((rows, TOKENS), 320, np.int64)
    ids[:, 0], ids[:, -1] = 49406, 49407
    for first in range(0, count, rows):
        towers.text(ids[: count - first], np.ones_like(ids[: count - first]))


def _picture_tower(encoder: Any, ready: Any, count: int) -> None:
    towers = encoder._towers
    for first in range(0, count, towers.picture_batch):
        towers.pictures(ready[: min(towers.picture_batch, count - first)])


def measure_errors(model: str, device: str) -> dict[str, Any]:
    """In a child: messages."""
    import torch

    from clipql.encode import open_encoder

    index = torch.device(device).index or 0
    total = torch.cuda.get_device_properties(index).total_memory
    captions = [" ".join(["a photograph of a dog beside another dog"] * 12)] * MANY_TEXTS

    def limit(size: float) -> None:  # of what PyTorch takes in this process
        torch.cuda.set_per_process_memory_fraction(min(1.0, size / total), index)

    def first(device: str) -> Any:
        return open_encoder(model, device=device).encode_texts(["a dog"])

    absent = f"cuda:{max(7, torch.cuda.device_count())}"
    lines = [_told("a device that is not there", lambda: first(absent), "name one")]
    limit(16e6)
    lines.append(_told("no room for the weights", lambda: first(device), "end other programs"))
    limit(total)
    encoder = open_encoder(model, device=device)
    encoder.encode_texts(["a dog"])
    limit(torch.cuda.memory_reserved(index) + 16e6)
    lines.append(_told("no room for a batch", lambda: encoder.encode_texts(captions), "smaller batch"))
    limit(total)
    after = "vectors" if np.isfinite(encoder.encode_texts(captions)).all() else "none"
    return {"lines": lines, "after": after, **_machine(device)}


def _told(work: str, call: Callable[[], Any], wanted: str) -> tuple[str, str, str, str]:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - which error it is, is the question
        return work, type(error).__name__, str(error), wanted
    return work, "nothing", "no error", wanted


def _captions(count: int) -> list[str]:
    """Different web captions, in an order that is always the same."""
    import pyarrow.parquet as pq

    captions = list(dict.fromkeys(pq.read_table(CAPTIONS).column("TEXT").to_pylist()))
    order = np.random.default_rng(0).permutation(len(captions))
    return [captions[i] for i in np.resize(order, count)]


def _machine(device: str) -> dict[str, Any]:
    import torch

    from clipql.encode.onnx import cores

    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return {"gpu": gpu, "cores": cores(), "torch": torch.__version__}


def main() -> None:
    """Measure all and print them."""
    from bench import encode_gpu  # by its name, under which a child finds its functions; this is __main__

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", help="PyTorch's name of the GPU (default: cuda)")
    device = parser.parse_args().device
    try:
        import torch

        if not torch.cuda.is_available():
            parser.error(f"PyTorch {torch.__version__} sees no GPU here")
    except ImportError:
        parser.error("PyTorch is not installed: pip install clipql[torch] onnx")
    for compare in (encode_gpu.agreement, encode_gpu.speed, encode_gpu.errors):
        found = compare(device)
        print(f"\n{found.title}. {found.how}", flush=True)
        for line in found.lines:
            met = {True: "met", False: "MISSED", None: ""}[line.met]
            print(line.work, line.measured, line.bar, met, sep=" | ", flush=True)


if __name__ == "__main__":
    main()
