"""Knobs, and which of them reach a recall: curves measured at build, one for each kind of query.

A caption's vector and a picture's vector lie apart, and captions need more lists for the same recall. Which kind a
query is shows in its likeness to the mean of either column. An index built without captions knows only its own rows:
a query unlike nearly all of them is foreign, and is given more than the curve of the queries that stood in for captions
says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipql.index.ivf.geometry import Floats, unit_vector

KNOBS = ("nprobe", "rescore", "recall")
# The curves are measured on a few hundred queries, and the setting is the first that reaches what is asked: new queries
# would miss it as often as not. So a fifth fewer misses are asked of the curve
CAREFUL = 0.8
DEFAULT_RECALL = 0.95
FOREIGN_LISTS, FOREIGN_ROWS = 4, 2


@dataclass(frozen=True)
class Setting:
    """nprobe: lists scanned. rescore: rows kept by their codes and compared exactly, at most."""

    nprobe: int
    rescore: int


@dataclass(frozen=True)
class Point:
    """recall@10 measured at a setting, and its cost in codes read (a rescored row counts as many)."""

    setting: Setting
    recall: float
    cost: float


def careful(recall: float) -> float:
    """The recall to ask of a curve, so that new queries get the recall that was asked for."""
    return 1 - CAREFUL * (1 - recall)


KEPT_SETTINGS = 256


@dataclass(frozen=True)
class Curves:
    """image, text: points measured with held-out stored rows and with captions, or with what stood in for them.

    image_mean, text_mean: unit float32 (d,), text_mean None where there were no captions. familiar: the likeness to
    image_mean that nearly every stored row has.
    apart: whether the means tell nearly every row from nearly every caption.
    """

    image: Sequence[Point]
    text: Sequence[Point]
    image_mean: Floats
    text_mean: Floats | None
    familiar: float
    apart: bool = True
    _known: dict[tuple[str, float, int], Setting] = field(default_factory=dict, compare=False, repr=False)
    _doubts: dict[tuple[str, float], str] = field(default_factory=dict, compare=False, repr=False)

    def kind_of(self, query: Floats) -> str:
        """'text', 'image', 'either' (the two lie too close to tell), or 'foreign' (unlike the stored rows, with no
        captions to compare with).
        """
        return self.kind_of_unit(unit_vector(query))

    def kind_of_unit(self, query: Floats) -> str:
        """The same of a query of length 1, or of zeros."""
        like_image = float(query.dot(self.image_mean))
        if self.text_mean is not None and self.text:
            if not self.apart:
                return "either"
            return "text" if float(query.dot(self.text_mean)) > like_image else "image"
        return "image" if like_image >= self.familiar else "foreign"

    def kinds(self) -> Sequence[str]:
        """The kinds of query whose recall was measured."""
        return [kind for kind in ("image", "text", "foreign") if kind == "image" or self._points(kind)]

    def _points(self, kind: str) -> Sequence[Point]:
        """What was measured for a kind; where there were no captions, 'text' holds what stood in for them."""
        if kind == "image":
            return self.image
        return self.text if (kind == "text") == (self.text_mean is not None) else []

    def doubtful(self, recall: float) -> bool:
        """Whether queries of some kind cannot be promised a recall."""
        if self.text_mean is not None and self.text:
            told = ("text", "image") if self.apart else ("either",)
        else:
            told = ("image", "foreign")
        return any(self.doubt(kind, recall) for kind in told)

    def doubt(self, kind: str, recall: float) -> str:
        """Why a query of a kind cannot be promised a recall; empty if it can."""
        told = self._doubts.get((kind, recall))
        if told is None:
            if len(self._doubts) >= KEPT_SETTINGS:
                self._doubts.clear()
            told = self._doubts[kind, recall] = self._doubted(kind, recall)
        return told

    def _doubted(self, kind: str, recall: float) -> str:
        for one in ("image", "text") if kind == "either" else (kind,):
            points = self._points(one)
            best = max((p.recall for p in points), default=None)
            if best is None:
                return f"no recall could be measured for {one} queries"
            if best < recall:
                return f"{one} queries reach a recall of {best:.3f} and {recall:g} is asked"
        return ""

    def pick(self, query: Floats, recall: float, lists: int) -> Setting:
        """The cheapest setting that reaches a recall, and a little more, by the curve of the query's kind.

        Every list for 1; where no measured point is enough, twice the widest.
        """
        return self.setting(self.kind_of(query), recall, lists)

    def setting(self, kind: str, recall: float, lists: int) -> Setting:
        """The same for a kind of query."""
        if kind == "either":
            a, b = self._of("image", self.image, recall, lists), self._of("text", self.text, recall, lists)
            return Setting(max(a.nprobe, b.nprobe), max(a.rescore, b.rescore))
        return self._of(kind, self.image if kind == "image" else self.text, recall, lists)

    def _of(self, kind: str, points: Sequence[Point], recall: float, lists: int) -> Setting:
        """The setting for a kind of query; each is worked out once, as that takes half as long as a search."""
        known = self._known.get((kind, recall, lists))
        if known is None:
            if len(self._known) >= KEPT_SETTINGS:
                self._known.clear()
            known = self._known[kind, recall, lists] = self._worked_out(kind, points, recall, lists)
        return known

    def _worked_out(self, kind: str, points: Sequence[Point], recall: float, lists: int) -> Setting:
        if not points:
            return Setting(min(lists, 64), 400)
        widest = max(points, key=lambda p: (p.setting.nprobe, p.setting.rescore)).setting
        if recall >= 1:
            return Setting(lists, 4 * widest.rescore)
        chosen = cheapest(points, careful(recall)) or Setting(2 * widest.nprobe, 2 * widest.rescore)
        if kind == "foreign":
            chosen = Setting(FOREIGN_LISTS * chosen.nprobe, FOREIGN_ROWS * chosen.rescore)
        return Setting(min(lists, chosen.nprobe), chosen.rescore)

    def to_meta(self) -> dict[str, Any]:
        def table(points: Sequence[Point]) -> list[dict[str, float]]:
            return [
                {"nprobe": p.setting.nprobe, "rescore": p.setting.rescore, "recall": p.recall, "cost": p.cost}
                for p in points
            ]

        return {
            "image": table(self.image),
            "text": table(self.text),
            "image_mean": self.image_mean.tolist(),
            "text_mean": None if self.text_mean is None else self.text_mean.tolist(),
            "familiar": self.familiar,
            "apart": self.apart,
        }

    @staticmethod
    def from_meta(meta: Mapping[str, Any]) -> Curves:
        def points(table: Sequence[Mapping[str, Any]]) -> list[Point]:
            return [
                Point(Setting(int(p["nprobe"]), int(p["rescore"])), float(p["recall"]), float(p["cost"])) for p in table
            ]

        told = meta["curves"]
        text_mean = told["text_mean"]
        return Curves(
            points(told["image"]),
            points(told["text"]),
            np.array(told["image_mean"], np.float32),
            None if text_mean is None else np.array(text_mean, np.float32),
            float(told["familiar"]),
            bool(told.get("apart", True)),
        )


def cheapest(points: Sequence[Point], recall: float) -> Setting | None:
    """The cheapest setting on or between measured points; None if no point reaches this recall.

    Between two numbers of lists recall is taken to grow with their logarithm.
    """
    best: tuple[float, Setting] | None = None
    for rescore in sorted({p.setting.rescore for p in points}):
        curve = sorted((p for p in points if p.setting.rescore == rescore), key=lambda p: p.setting.nprobe)
        enough = next((i for i, p in enumerate(curve) if p.recall >= recall), None)
        if enough is None:
            continue
        above, below = curve[enough], curve[max(0, enough - 1)]
        share = (recall - below.recall) / (above.recall - below.recall) if above.recall > below.recall else 1.0
        nprobe = math.ceil(below.setting.nprobe * (above.setting.nprobe / below.setting.nprobe) ** share)
        cost = below.cost + (above.cost - below.cost) * share
        if best is None or cost < best[0]:
            best = cost, Setting(nprobe, rescore)
    return None if best is None else best[1]


def reached(points: Sequence[Point], recall: float) -> float:
    """The recall measured at the cheapest point that reaches the one asked for, or the highest there is."""
    enough = [p for p in points if p.recall >= recall]
    return min(enough, key=lambda p: p.cost).recall if enough else max(p.recall for p in points)
