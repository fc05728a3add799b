"""Labels for regions of a projection: a word or two from the captions there, told apart from those elsewhere.

Regions are clusters of places, at three levels; words are weighed by c-TF-IDF (Grootendorst, "BERTopic", 2022,
https://arxiv.org/abs/2203.05794). What must stay true: a word that one or two captions alone have is no label; two
regions of a level have two names.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LEVELS = (10, 40, 160)  # regions
MOST_CAPTIONS = 30_000
_LEAST_ROWS, _LEAST_SHARE, _FEWEST = 25, 0.1, 3  # rows of a region; share and number of its captions with the word
_LONGEST, _WORDS = 24, 60  # letters of a word; words of a caption that are looked at
_TRIED, _NEARLY = 8, 0.6  # words for a name; the share of the best one's weight that a second word has
_EVERYWHERE = 0.4  # the share of all captions from which on a word tells nothing
_ENGLISH = (  # words that only join others, in the language of most captions
    "a an and are as at be but by for from he her his i in into is it its my no not of off on or our out over she so "
    "that the their there these they this to under up us was we were what when which who with without you your"
)
_JOINING = frozenset(_ENGLISH.split())
_WORD = re.compile(r"[^\W\d_][\w'’-]+")


@dataclass(frozen=True)
class Label:
    """Words at a place; level 0 is of the largest regions."""

    x: float
    y: float
    text: str
    level: int


def labels(
    places: NDArray[np.float32], captions: Sequence[str | None], check: Callable[[], None] = lambda: None
) -> tuple[Label, ...]:
    """Labels of the regions of places, float32 (n, 2), by their captions. check: called often, may raise to stop it."""
    from clipql.index import kmeans  # loads the compiler

    has = np.array([bool(caption) for caption in captions], np.bool_)
    texts = [caption for caption in captions if caption]
    points = np.ascontiguousarray(places[has], np.float32)
    caption_of, word_of, words = _words(texts, check)
    everywhere = np.bincount(word_of, minlength=len(words))
    found: list[Label] = []
    for level, most in enumerate(LEVELS):
        k = min(most, len(points) // _LEAST_ROWS)
        if k < 1 or (level and k == min(LEVELS[level - 1], len(points) // _LEAST_ROWS)):
            break
        centres = kmeans.train(points, k, check=check)
        region = kmeans.nearest(points, centres, 1)[0][:, 0].astype(np.int64)
        check()
        named = _named(region[caption_of], word_of, words, everywhere, np.bincount(region, minlength=k), len(texts))
        for at, text in named:
            members = points[region == at]
            # the middle of a bent region may be empty: the label goes to the member that is nearest to it
            x, y = members[((members - members.mean(axis=0)) ** 2).sum(axis=1).argmin()]
            found.append(Label(round(float(x), 4), round(float(y), 4), text, level))
    return tuple(found)


def _words(texts: Sequence[str], check: Callable[[], None]) -> tuple[NDArray[np.int64], NDArray[np.int64], list[str]]:
    """Pairs of a caption and a word in it, each once, as two arrays of numbers; and the words."""
    numbers: dict[str, int] = {}
    captions: list[int] = []
    found: list[int] = []
    for at, text in enumerate(texts):
        if at % 1000 == 0:
            check()
        here = {w for w in _WORD.findall(text[:1000].lower())[:_WORDS] if len(w) <= _LONGEST and w not in _JOINING}
        found.extend(numbers.setdefault(word, len(numbers)) for word in sorted(here))
        captions.extend([at] * len(here))
    return np.array(captions, np.int64), np.array(found, np.int64), list(numbers)


def _named(
    region: NDArray[np.int64],
    word: NDArray[np.int64],
    words: Sequence[str],
    everywhere: NDArray[np.int64],
    sizes: NDArray[np.int64],
    captions: int,
) -> list[tuple[int, str]]:
    """Regions by number with their words, the largest first. region, word: of each pair."""
    average = len(word) / max(1, len(sizes))
    pairs, rows = np.unique(region * len(words) + word, return_counts=True) if len(word) else (word, word)
    at, which = np.divmod(pairs, max(1, len(words)))
    good = (rows >= np.maximum(_FEWEST, _LEAST_SHARE * sizes[at])) & (everywhere[which] <= _EVERYWHERE * captions)
    score = rows / np.maximum(1, sizes[at]) * np.log1p(average / np.maximum(1, everywhere[which]))
    found: list[tuple[int, str]] = []
    taken: set[frozenset[str]] = set()
    for number in np.argsort(-sizes, kind="stable"):
        mine = np.flatnonzero(good & (at == number))
        best = mine[np.argsort(-score[mine], kind="stable")][:_TRIED]
        told = _told_apart([words[which[one]] for one in best], score[best], taken)
        if told:
            taken.add(frozenset(told.split()))
            found.append((int(number), told))
    return found


def _told_apart(words: Sequence[str], score: NDArray[np.float64], taken: Collection[frozenset[str]]) -> str:
    """The name of a region by its words, the best first, of which no other of its level has the same; empty without."""
    if not words:
        return ""
    first = words[0]
    good = [word for word, weight in zip(words[1:], score[1:], strict=True) if weight >= _NEARLY * score[0]]
    others = [word for word in words[1:] if not word.startswith(first[:4])]
    best = next((word for word in others if word in good), None)
    wanted = [f"{first} {best}" if best else first, *(f"{first} {other}" for other in others), first, *good]
    numbered = (f"{first} {n}" for n in itertools.count(2))
    return next(name for name in itertools.chain(wanted, numbered) if frozenset(name.split()) not in taken)
