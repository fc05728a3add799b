"""How far a search looks: lists, rows that are compared, and when a row is given up unseen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clipql.errors import VectorIndexError
from clipql.index.ivf.knobs import DEFAULT_RECALL, KNOBS, Curves, Setting

# deviations of a code's error allowed for before a row is given up unseen: for the last hundredth of recall, which
# settings that compare many rows are for, more
SLACK, WIDE_SLACK, MANY_RESCORED = 4.5, 6.0, 60
# where lists have become more since recall was measured, more are looked into: by this power of the ratio
MORE_LISTS = 0.75
# more lists for more rows, or for fewer that a filter lets through: by this power of how many times ten they
# are, or as many as these rows would fill, times this factor and the root of the lists of a search for ten, or the most
DEEPER, FILLED, MOST_FILLED = 0.3, 6.0, 40.0
# the share of their lists that foreign queries start from then: they have more than they need of those rows
FOREIGN_START = 0.75
# rows to compare for k rows instead of the ten that recall is measured at: by this power of how many times ten
DEEPER_ROWS = 0.8


@dataclass(frozen=True)
class Depth:
    """Settings of one index. lists, rows, placed: how many there are, the last of them in lists. more_rows,
    more_lists: times as many as when recall was measured.
    """

    curves: Curves
    lists: int
    rows: int
    placed: int
    more_rows: float
    more_lists: float

    def setting(self, kind: str, knobs: Mapping[str, float]) -> Setting:
        """What a query of a kind and its knobs ask for. Raises VectorIndexError for what is no knob."""
        unknown = sorted(set(knobs) - set(KNOBS))
        if unknown:
            raise VectorIndexError(f"an ivf index has no knob {unknown[0]!r}; it has {', '.join(KNOBS)}")
        recall = float(knobs.get("recall", DEFAULT_RECALL))
        if not 0 < recall <= 1:
            raise VectorIndexError(f"recall is {recall}; it is more than 0 and at most 1")
        for name in ("nprobe", "rescore"):
            if name in knobs and not knobs[name] >= 1:
                raise VectorIndexError(f"{name} is {knobs[name]}; it is at least 1")
        if "nprobe" in knobs and "rescore" in knobs:
            return Setting(int(knobs["nprobe"]), int(knobs["rescore"]))
        picked = self.curves.setting(kind, recall, self.lists)
        # measured when there were fewer rows: as many more seem to be as near as the k-th
        rows = round(picked.rescore * self.more_rows)
        probed = min(self.lists, round(picked.nprobe * self.more_lists**MORE_LISTS))
        return Setting(int(knobs.get("nprobe", probed)), int(knobs.get("rescore", rows)))

    def widened(
        self, nprobe: int, k: int, matching: int, kind: str = "", knobs: Mapping[str, float] | None = None
    ) -> int:
        """More lists for more rows asked or fewer allowed: the k nearest of a tenth are spread like ten times k. One
        row more than the ten that recall is measured at takes none. kind, knobs: of the query; lists that it tells by
        itself are its own number, whatever its kind.

        A search of few lists needs so many more as hold a multiple of these rows; one of many, which are spread over
        far more lists already, needs fewer, as measured (docs/ivf.md).
        """
        share = max(1, matching) / self.rows
        deeper = max(1.0, k / 11) / share
        if deeper <= 1:
            return max(1, min(self.lists, nprobe))
        told = knobs is not None and "nprobe" in knobs
        start = FOREIGN_START * nprobe if kind == "foreign" and not told else nprobe
        filled = k / share / max(1.0, self.placed / self.lists)
        more = min(MOST_FILLED, FILLED * start**0.5) * filled
        return max(1, min(self.lists, int(max(nprobe, start * deeper**DEEPER, start + more))))


def compared(rescore: int, k: int, knobs: Mapping[str, float] | None) -> int:
    """The rows to compare for k, where so many are for ten, unless they are told; for one row more, no more."""
    deeper = 1.0 if knobs and "rescore" in knobs else max(1.0, k / 11) ** DEEPER_ROWS
    return max(round(rescore * deeper), 3 * k)


def slack_of(setting: Setting) -> float:
    """Deviations of a code's error to allow for."""
    return WIDE_SLACK if setting.rescore > MANY_RESCORED else SLACK
