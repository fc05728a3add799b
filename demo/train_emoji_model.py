"""Train the small CLIP that ships with clipql on the emoji collection that ships with it, and measure it.

    python demo/train_emoji_model.py clipql/data/emoji [--tokenizer FILE] [--text-steps 2200] [--out FOLDER]

First the text tower learns together with one free vector a picture, which costs no look at a picture; then the vision
tower learns to give those vectors. What must stay true: nothing that is held out is ever a positive in training (it
counts as wrong there, like everything that is not known to be right).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from emoji_towers import CONTEXT, DIMENSION, MEAN, STD, TextTower, VisionTower, export
from emoji_words import Collection, Questions, hold_out, make_tokenizers, read
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

SEED = 20
SHORT, SHORT_TOKENS = 256, 12  # texts of a batch of names and keywords, and what is kept of each
LONG, LONG_EVERY = 64, 6  # texts of a batch of captions, which is every sixth
PICTURES = 128
TEXT_RATE, TABLE_RATE, PICTURE_RATE = 2e-3, 1e-3, 3e-3
ALIKE = 0.5  # of the target goes to emoji whose words keep similar company, the rest to those the text is true of
ALIKE_SCALE, SCALE = 14.0, 20.0  # of cosines, before softmax


def main() -> None:
    """Train, export, measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--text-steps", type=int, default=2200)
    parser.add_argument("--picture-steps", type=int, default=900)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json to take, in place of learning one")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(SEED)
    data = read(arguments.data)
    held_out = hold_out(data, rng)
    questions = Questions(data, held_out)
    fine, coarse = make_tokenizers(data, arguments.tokenizer)
    text, vision = TextTower(fine.get_vocab_size(with_added_tokens=True)), VisionTower()
    print(f"{len(data.names):,} emoji, {len(questions.terms):,} terms, {len(held_out)} pairs held out")
    began = time.monotonic()
    table = train_words(text, questions, (fine, coarse), arguments.text_steps, rng)
    train_pictures(vision, data, table, arguments.picture_steps, rng)
    seconds = time.monotonic() - began
    folder = arguments.out or arguments.data / "model"
    export(folder, text, vision, fine)
    lines = ",\n".join(json.dumps([data.keys[row], word]) for row, word in held_out)
    (folder / "held_out.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    found = measure(folder, data, held_out, fine)
    (folder / "metrics.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))
    print(f"trained in {seconds:.0f} s")


def train_words(
    text: TextTower, questions: Questions, tokenizers: tuple[Tokenizer, Tokenizer], steps: int, rng: np.random.Generator
) -> Tensor:
    """Pull every text to the vectors of the pictures it is true of; gives those, float32 (pictures, DIMENSION)."""
    count = len(questions.of)
    table = torch.nn.Parameter(torch.from_numpy(questions.likeness[:, :DIMENSION].copy()))
    groups = [
        {"params": list(text.parameters()), "lr": TEXT_RATE, "weight_decay": 0.02},
        {"params": [table], "lr": TABLE_RATE, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, [TEXT_RATE, TABLE_RATE], total_steps=steps, pct_start=0.1)
    has = torch.from_numpy(questions.has).T.contiguous()
    for step in range(steps):
        captions = step % LONG_EVERY == LONG_EVERY - 1
        rows = rng.permutation(count)[: LONG if captions else SHORT]
        asked = [questions.caption(row, rng) if captions else questions.ask(row, rng) for row in rows]
        target, true = targets(asked, torch.from_numpy(rows), has, questions)
        spelt = tokenizers[0] if rng.random() < 0.8 else tokenizers[1]
        ids = tokenized([said for said, _ in asked], spelt, CONTEXT if captions else SHORT_TOKENS)
        with torch.autocast("cpu", torch.bfloat16):
            words = text(ids)
        words, places = functional.normalize(words.float(), dim=1), functional.normalize(table, dim=1)
        loss = -(target * (SCALE * words @ places.T).log_softmax(1)).sum(1).mean()
        if captions:  # and every picture to its captions
            right = true[:, rows].T
            to_texts = (SCALE * places[rows] @ words.T).log_softmax(1)
            loss = loss - (right / right.sum(1, keepdim=True) * to_texts).sum(1).mean()
        _step(loss, optimiser, schedule)
        if step % 100 == 0 or step == steps - 1:
            print(f"words {step}: loss {loss.item():.3f}", flush=True)
    return functional.normalize(table.detach(), dim=1)


def train_pictures(vision: VisionTower, data: Collection, table: Tensor, steps: int, rng: np.random.Generator) -> None:
    """Teach the vision tower the vectors of `table`, (pictures, DIMENSION), from pictures a little changed."""
    pixels = normalised(data.pictures).contiguous(memory_format=torch.channels_last)
    vision.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(vision.parameters(), lr=PICTURE_RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, PICTURE_RATE, total_steps=steps, pct_start=0.1)
    order: list[int] = []
    for step in range(steps):
        if len(order) < PICTURES:
            order = rng.permutation(len(pixels)).tolist()
        rows, order = order[:PICTURES], order[PICTURES:]
        with torch.autocast("cpu", torch.bfloat16):
            seen = vision(augmented(pixels[rows]))
        seen = functional.normalize(seen.float(), dim=1)
        near = (seen * table[rows]).sum(1).mean()
        loss = functional.cross_entropy(SCALE * seen @ table.T, torch.tensor(rows)) + 4 * (1 - near)
        _step(loss, optimiser, schedule)
        if step % 100 == 0 or step == steps - 1:
            print(f"pictures {step}: loss {loss.item():.3f}, cosine {near.item():.3f}", flush=True)


def _step(loss: Tensor, optimiser: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler) -> None:
    optimiser.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([weight for group in optimiser.param_groups for weight in group["params"]], 1.0)
    optimiser.step()
    schedule.step()


def targets(
    asked: list[tuple[str, list[int]]], own: Tensor, has: Tensor, questions: Questions
) -> tuple[Tensor, Tensor]:
    """Where each text should lead, (texts, pictures), rows of sum 1; and 1 where it is true of the picture.

    has: (terms, pictures).
    """
    true = torch.stack([has[some].amin(0) for _, some in asked])
    true[torch.arange(len(asked)), own] = 1
    fold = torch.from_numpy(questions.fold)
    folded = functional.normalize(torch.stack([fold[some].sum(0) for _, some in asked]), dim=1)
    alike = (ALIKE_SCALE * folded @ torch.from_numpy(questions.likeness).T).softmax(1)
    return (1 - ALIKE) * true / true.sum(1, keepdim=True) + ALIKE * alike, true


def normalised(pictures: NDArray[np.uint8]) -> Tensor:
    """uint8 (n, edge, edge, 3) → float32 (n, 3, edge, edge), as preprocessor_config.json has it."""
    scaled = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    return (scaled - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def augmented(pixels: Tensor) -> Tensor:
    """Each picture a little turned, moved, scaled, and of other brightness."""
    count = len(pixels)
    angle = (torch.rand(count) - 0.5) * 2 * math.radians(10)
    scale = 1 + (torch.rand(count) - 0.5) * 0.3
    shift = (torch.rand(count, 2) - 0.5) * 0.2
    turn = torch.stack([angle.cos() * scale, -angle.sin() * scale, angle.sin() * scale, angle.cos() * scale], 1)
    where = torch.cat([turn.view(count, 2, 2), shift[:, :, None]], 2)
    white = ((1 - torch.tensor(MEAN)) / torch.tensor(STD))[None, :, None, None]
    grid = functional.affine_grid(where, list(pixels.shape), align_corners=False)
    moved = functional.grid_sample(pixels - white, grid, padding_mode="zeros", align_corners=False) + white
    return moved * (1 + (torch.rand(count, 1, 1, 1) - 0.5) * 0.2) + (torch.rand(count, 1, 1, 1) - 0.5) * 0.2


def tokenized(texts: list[str], tokenizer: Tokenizer, most: int = CONTEXT) -> Tensor:
    """Token ids, padded with 0 to the longest; the end is kept where a text is cut."""
    every = [encoding.ids for encoding in tokenizer.encode_batch(texts)]
    ids = [each if len(each) <= most else [*each[: most - 1], each[-1]] for each in every]
    rows = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.int64)
    for row, each in zip(rows, ids, strict=True):
        row[: len(each)] = torch.tensor(each)
    return rows


def measure(folder: Path, data: Collection, held_out: list[tuple[int, str]], tokenizer: Tokenizer) -> dict[str, float]:
    """Recall of the exported files. Keywords are looked for among the emoji in their plain skin tone."""
    text = onnxruntime.InferenceSession(str(folder / "onnx" / "text_model.onnx"))
    vision = onnxruntime.InferenceSession(str(folder / "onnx" / "vision_model.onnx"))
    pictures = _unit(vision.run(None, {"pixel_values": normalised(data.pictures).numpy()})[0])

    def encode(texts: list[str]) -> NDArray[np.float32]:
        return _unit(text.run(None, {"input_ids": tokenized(texts, tokenizer).numpy()})[0])

    captions, names = encode(data.captions), encode(data.names)
    own = np.arange(len(data.names))
    plain = np.flatnonzero(~data.toned)
    rows = np.array([row for row, _ in held_out])
    scores = encode([keyword for _, keyword in held_out]) @ pictures[plain].T
    place = {int(row): at for at, row in enumerate(plain)}
    target = scores[np.arange(len(rows)), [place[int(row)] for row in rows]]
    ranks = (scores > target[:, None]).sum(axis=1)
    # Others of which the keyword is as true are no mistakes: leave them out of the ranking
    other = [[keyword in data.keywords[int(row)] for row in plain] for _, keyword in held_out]
    unjust = ((scores > target[:, None]) & np.array(other)).sum(axis=1)
    return {
        "emoji": len(data.names),
        "caption_to_picture_recall_at_1": _share(_ranks(captions, pictures, own) < 1),
        "caption_to_picture_recall_at_10": _share(_ranks(captions, pictures, own) < 10),
        "name_to_picture_recall_at_1": _share(_ranks(names, pictures, own) < 1),
        "name_to_picture_recall_at_10": _share(_ranks(names, pictures, own) < 10),
        "picture_to_caption_recall_at_1": _share(_ranks(pictures, captions, own) < 1),
        "picture_to_caption_recall_at_10": _share(_ranks(pictures, captions, own) < 10),
        "held_out_pairs": len(held_out),
        "held_out_among": len(plain),
        "held_out_keyword_finds_its_emoji_in_top_10": _share(ranks < 10),
        "the_same_not_counting_others_with_the_keyword": _share(ranks - unjust < 10),
    }


def _ranks(queries: NDArray[np.float32], found: NDArray[np.float32], own: NDArray[np.int64]) -> NDArray[np.int64]:
    scores = queries @ found.T
    return (scores > scores[np.arange(len(own)), own][:, None]).sum(axis=1)


def _share(hits: NDArray[np.bool_]) -> float:
    return round(float(hits.mean()), 4)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
