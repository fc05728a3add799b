"""The words of the emoji collection: what is held out, what the model is asked in training, and its tokenizer."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY = 2600  # tokens, the two ends included
COARSE = 0.35  # of the merges: the tokenizer that breaks words up, so that training sees pieces of words too
HELD_OUT = 500  # pairs of a keyword and an emoji that training never sees
OTHERS = 3  # emoji, at least, that keep a keyword when it is held out from one
TEMPLATES = ("{}", "a {}", "the {}", "{} emoji", "an emoji of {}", "a picture of {}", "a photo of a {}", "emoji: {}")
_TONE = re.compile(r"[,:]? ?(medium-|light |medium |dark )*(light |dark )?skin tone")
_PEOPLE = re.compile(r"\b(man|woman|person|men|women|people)\b")


@dataclass(frozen=True)
class Collection:
    """The shipped data. pictures: uint8 (n, 64, 64, 3); toned: bool (n,), a variant of another emoji in a skin tone;
    family: of each emoji, the same for those that differ in skin tone or sex alone."""

    keys: list[str]
    names: list[str]
    keywords: list[list[str]]
    captions: list[str]
    pictures: NDArray[np.uint8]
    toned: NDArray[np.bool_]
    family: list[str]


def read(folder: Path) -> Collection:
    """The collection of a folder with emoji.tar and emoji.parquet."""
    rows: list[dict[str, Any]] = pq.read_table(folder / "emoji.parquet").to_pylist()
    pictures = []
    with tarfile.open(folder / "emoji.tar") as tar:
        for row in rows:
            member = tar.extractfile(f"{row['key']}.png")
            assert member is not None
            with Image.open(io.BytesIO(member.read())) as image:
                pictures.append(np.asarray(image.convert("RGB")))
    names = [row["name"] for row in rows]
    return Collection(
        keys=[row["key"] for row in rows],
        names=names,
        keywords=[[word for word in row["keywords"] if "skin tone" not in word] for row in rows],
        captions=[row["caption"] for row in rows],
        pictures=np.stack(pictures),
        toned=np.array(["skin tone" in name for name in names]),
        family=[_PEOPLE.sub("", _TONE.sub("", name)).strip() for name in names],
    )


def words_of(text: str) -> set[str]:
    """The words of a text, in lower case."""
    return set(re.findall(r"\w+", text.lower()))


def _stems(text: str) -> set[str]:
    # `grin` in the place of `grinning face` would test no knowledge of meaning
    return {word[:4] for word in words_of(text)}


def hold_out(data: Collection, rng: np.random.Generator) -> list[tuple[int, str]]:
    """Pairs (row of an emoji, keyword) that training must not see; the keyword is not in the emoji's name.

    A pair is held out from the emoji's whole family, or its sisters would give it away.
    """
    families: dict[str, set[str]] = defaultdict(set)
    first: dict[str, int] = {}
    for row, family in enumerate(data.family):
        if not data.toned[row]:
            first.setdefault(family, row)
        families[family] |= set(data.keywords[row])
    holders = defaultdict(set)
    for family, keywords in families.items():
        for keyword in keywords:
            holders[keyword].add(family)
    pairs = [
        (family, keyword)
        for family in families
        for keyword in sorted(families[family])
        if not _stems(keyword) & _stems(family)
    ]
    plain = {family: data.keywords[row] for family, row in first.items()}
    chosen: list[tuple[int, str]] = []
    for at in rng.permutation(len(pairs)):
        family, keyword = pairs[at]
        if len(holders[keyword]) > OTHERS and len(chosen) < HELD_OUT and keyword in plain.get(family, ()):
            holders[keyword].remove(family)
            chosen.append((first[family], keyword))
    return sorted(chosen)


def _axes(rows: NDArray[np.float32], rank: int, rounds: int = 4) -> NDArray[np.float32]:
    """The first right singular vectors, (columns, rank), by subspace iteration: the whole SVD takes a minute."""
    axes = np.random.default_rng(0).standard_normal((rows.shape[1], rank), np.float32)
    for _ in range(rounds):
        axes, _ = np.linalg.qr(rows.T @ (rows @ axes))
    return axes


class Questions:
    """Draws texts that describe an emoji, and knows which other emoji they describe as well.

    terms: names, their words and keywords. has: float32 (emoji, terms), 1 where training may know that a term is true.
    likeness: float32 (emoji, k), and fold: (terms, k): how terms occur together, from a truncated SVD, so that a word
    of which one emoji is known also draws those that share its company.
    """

    def __init__(self, data: Collection, held_out: list[tuple[int, str]], rank: int = 160) -> None:
        gone = {(data.family[row], keyword) for row, keyword in held_out}
        self._data = data
        self.keywords = [
            [word for word in words if (family, word) not in gone]
            for words, family in zip(data.keywords, data.family, strict=True)
        ]
        every = [
            list(dict.fromkeys([name, *sorted(words_of(name)), *words]))
            for name, words in zip(data.names, self.keywords, strict=True)
        ]
        self.terms = {term: i for i, term in enumerate(sorted({term for terms in every for term in terms}))}
        self.of = [[self.terms[term] for term in terms] for terms in every]
        self.has = np.zeros((len(every), len(self.terms)), np.float32)
        for row, terms in enumerate(self.of):
            self.has[row, terms] = 1
        idf = np.log(len(every) / self.has.sum(axis=0)).astype(np.float32)
        weighted = self.has * idf
        weighted /= np.linalg.norm(weighted, axis=1, keepdims=True)
        self.fold = (idf[:, None] * _axes(weighted, rank)).astype(np.float32)
        likeness = self.has @ self.fold
        self.likeness = likeness / np.linalg.norm(likeness, axis=1, keepdims=True)

    def ask(self, row: int, rng: np.random.Generator) -> tuple[str, list[int]]:
        """A text about an emoji and the terms it is made of."""
        name, keywords = self._data.names[row], self.keywords[row]
        kind = rng.random()
        if kind < 0.22 or not keywords:
            return self._said(name, rng), [self.terms[name]]
        pool = [*sorted(words_of(name)), *keywords]
        count = 1 if kind < 0.65 else int(rng.integers(2, 5))
        words = [pool[i] for i in rng.permutation(len(pool))[:count]]
        terms = [self.terms[word] for word in words]
        joint = (" ", ", ", " and ", " with ")[int(rng.integers(4))]
        text = joint.join(words)
        if count == 1 and rng.random() < 0.1 and not text.endswith("s"):
            text += "s"
        return self._said(text, rng), terms

    def caption(self, row: int, rng: np.random.Generator) -> tuple[str, list[int]]:
        """An emoji's name and keywords in any order, as a caption has them, and the term of its name."""
        name, keywords = self._data.names[row], self.keywords[row]
        some = [keywords[i] for i in rng.permutation(len(keywords))]
        text = ", ".join([name, *(word for word in some if not words_of(word) <= words_of(name))])
        return text, [self.terms[name]]

    @staticmethod
    def _said(text: str, rng: np.random.Generator) -> str:
        return TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(text) if rng.random() < 0.35 else text


def make_tokenizers(data: Collection, learned: Path | None = None) -> tuple[Tokenizer, Tokenizer]:
    """CLIP's kind of byte-pair tokenizer, trained on the captions, and a coarser one for training.

    learned: a tokenizer.json whose merges to take instead: the trainer orders equally frequent ones by chance.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    _before(learner)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner.train_from_iterator(
        [*data.captions, *(text.format("") for text in TEMPLATES)],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
        ),
    )
    letters = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    merges = _merges(Tokenizer.from_file(str(learned)) if learned else learner)[: VOCABULARY - 2 - len(letters)]
    words = list(dict.fromkeys([*letters, *("".join(merge) for merge in merges)]))
    # The end's id must be the highest: CLIP's text tower reads the vector off the highest id
    ids = {word: i for i, word in enumerate([*words, START, END])}
    return _tokenizer(ids, merges), _tokenizer(ids, merges[: int(len(merges) * COARSE)])


def _merges(tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """The merges a tokenizer has learned, in order."""
    return [tuple(merge) for merge in json.loads(tokenizer.to_str())["model"]["merges"]]


def _before(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _tokenizer(ids: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE(ids, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END)
    )
    _before(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, ids[START]), (END, ids[END])]
    )
    tokenizer.add_special_tokens([AddedToken(end, normalized=False, special=True) for end in (START, END)])
    return tokenizer
