"""Texts to token ids: CLIP's own byte-pair tokenizer, which ships with clipql, and any model's tokenizer.json.

Nothing else imports `tokenizers`. What must stay true: every text gives at least its start and end token; time and
memory grow with the context, not with the text; a text is never refused. Lone surrogates, which no UTF-8 can hold, are
read as U+FFFD. Of a text far longer than the context only the beginning is read.
"""

from __future__ import annotations

import functools
import gzip
import json
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipql.encode.folder import ModelFolder
from clipql.errors import EncodeError, ModelError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

CONTEXT = 77  # of the models that OpenAI published; another model's is in its folder
START, END = "<|startoftext|>", "<|endoftext|>"
_MERGES = 49152 - 256 - 2  # what OpenAI uses of the file, which has more: 49,152 ids before the two ends
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_SURROGATE = re.compile("[\ud800-\udfff]")
_AT_ONCE = 4096  # texts: bounds what the library keeps of each token besides its id
# Characters that one character can become or come from in a normaliser (NFC joins up to three)
_SPREAD = 4
# Beyond what any tokenizer has: characters of a token, and characters that a normaliser makes of one
_LONGEST_TOKEN, _MOST_GROWTH = 1024, 4096


class TextTokenizer:
    """A tokenizer that cuts at its context and keeps the end token. Thread-safe. name: how errors call it."""

    def __init__(self, tokenizer: Tokenizer, context: int, name: str = "CLIP's own tokenizer") -> None:
        self._name = name
        tokenizer.no_padding()
        tokenizer.enable_truncation(context)
        self._tokenizer = tokenizer
        self.context = context
        self.vocabulary = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        longest = min(_LONGEST_TOKEN, max(map(len, tokenizer.get_vocab(with_added_tokens=True)), default=1))
        self._most_characters = context * longest * _SPREAD

    def __repr__(self) -> str:
        return f"TextTokenizer(context={self.context}, vocabulary={self.vocabulary})"

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The token ids of each text, at least its ends' and at most `context`."""
        return [ids for some in _blocks(texts) for ids in self._block(some)]

    def save(self, file: Path) -> None:
        """Write it as a tokenizer.json, which `load` and other libraries read."""
        self._tokenizer.save(str(file))

    def _block(self, texts: Sequence[str]) -> list[list[int]]:
        clean = [self._clean(text) for text in texts]
        try:
            return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(clean)]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the library, over a file that contradicts itself, is no Exception
            raise ModelError(f"{self._name} fails on a text ({error}); fetch the model anew") from error

    def _clean(self, text: str) -> str:
        if not isinstance(text, str):
            raise EncodeError(f"a text is {text!r}, of type {type(text).__name__}; expected a str")
        if len(text) > self._most_characters:
            # Runs of spaces are no tokens, so what follows them may still be within the context
            text = re.sub(r"\s+", " ", text)[: self._most_characters]
        return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _blocks(texts: Sequence[str]) -> Iterator[list[str]]:
    rest = iter(texts)
    while some := list(islice(rest, _AT_ONCE)):
        yield some


def load(folder: ModelFolder) -> TextTokenizer:
    """The tokenizer of a model's folder, checked against the model. Raises ModelError."""
    found = TextTokenizer(_read(folder.tokenizer), folder.context, str(folder.tokenizer))
    if found.vocabulary > folder.vocabulary:
        raise ModelError(
            f"{folder.tokenizer} has {found.vocabulary:,} tokens, but the text tower of {folder.model} knows "
            f"{folder.vocabulary:,} (vocab_size in config.json): the tokenizer is another model's"
        )
    [ids] = found(["a"])
    if not ids:
        raise ModelError(f"{folder.tokenizer} gives no token for 'a'; expected its ends at least")
    if folder.causal:
        end = folder.vocabulary - 1 if folder.end is None else folder.end
        if ids[-1] != end:
            raise ModelError(
                f"{folder.tokenizer} ends a text with token {ids[-1]}, but the text tower of {folder.model} expects "
                f"{end}: the tokenizer is another model's"
            )
    return found


def _read(file: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        if file.name != "vocab.json":
            return _bounded(Tokenizer.from_file(str(file)))
        vocabulary = json.loads(file.read_text(encoding="utf-8"))
        lines = (file.parent / "merges.txt").read_text(encoding="utf-8").splitlines()
        pairs = [pair for line in lines if len(pair := line.split()) == 2 and not line.startswith("#version")]
        return _byte_pairs(vocabulary, [(first, second) for first, second in pairs])
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises nothing narrower, and its panics are no Exceptions
        raise ModelError(f"{file} is no tokenizer: {error}; fetch the model anew") from error


def _bounded(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer. Raises ValueError for a normaliser by which a few words could fill the memory, and for a
    post-processor by which they could take for ever.
    """
    state = tokenizer.normalizer.__getstate__() if tokenizer.normalizer is not None else b"{}"
    waiting, growth = [json.loads(state)], 1
    while waiting:
        step = waiting.pop()
        waiting += step.get("normalizers") or ()
        growth *= max(1, *(len(step[name]) for name in ("content", "prepend") if isinstance(step.get(name), str)), 1)
    if growth > _MOST_GROWTH:
        raise ValueError(f"its normaliser makes {growth:,} characters of one")
    times = _times(tokenizer)
    if times > 1:
        raise ValueError(f"its post-processor gives a text {times:,} times over")
    return tokenizer


def _times(tokenizer: Tokenizer) -> int:
    """How often the template of a post-processor has a text in it: what is cut off it grows with the power of that."""
    state = tokenizer.post_processor.__getstate__() if tokenizer.post_processor is not None else b"{}"
    waiting, times = [json.loads(state)], 1
    while waiting:
        step = waiting.pop()
        waiting += step.get("processors") or ()
        times *= max(1, sum("Sequence" in piece for piece in step.get("single") or ()))
    return times


def _byte_pairs(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """CLIP's tokenizer over a vocabulary: spaces and case are lost, words end in </w>."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    if not {START, END} <= vocabulary.keys():
        raise ValueError(f"its vocabulary lacks {START} or {END}")
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])]
    )
    tokenizer.add_special_tokens([AddedToken(end, normalized=False, special=True) for end in (START, END)])
    return tokenizer


@functools.cache
def openai() -> TextTokenizer:
    """The tokenizer of OpenAI's models and of those trained after them, from the vocabulary that ships with clipql."""
    file = resources.files("clipql.data") / "clip" / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(file.read_bytes()).decode().split("\n")[1 : 1 + _MERGES]
    merges = [(first, second) for first, second in map(str.split, lines)]
    letters = _letters()
    words = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges), START, END]
    return TextTokenizer(_byte_pairs({word: i for i, word in enumerate(words)}, merges), CONTEXT)


def _letters() -> list[str]:
    """The 256 bytes as the letters that byte-level vocabularies write them with, in the order of CLIP's ids.

    Bytes that Latin-1 can print stand for themselves; the others are the letters from U+0100 on, and come last.
    """
    printed = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in printed] + [chr(256 + i) for i in range(256 - len(printed))]


def tokenize(texts: Sequence[str]) -> NDArray[np.int64]:
    """Token ids as the models that OpenAI published want them: int64 (len(texts), 77), zero-padded."""
    return pad(openai()(texts), CONTEXT)


def pad(tokens: Sequence[Sequence[int]], length: int, value: int = 0) -> NDArray[np.int64]:
    """Token ids as rows of one length."""
    rows = np.full((len(tokens), length), value, np.int64)
    for row, ids in zip(rows, tokens, strict=True):
        row[: len(ids)] = ids
    return rows
