"""The model of growing shards, and its plot."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bench import child

SCAN_SECONDS = 0.8  # of the whole simulated table, on one shard
MODELLED = (64, 512)
CLIENTS = 16


@dataclass(frozen=True)
class Model:
    """What a query takes: its share of the scan, and what the process that asks does, of which `each` for a shard."""

    fixed: float
    each: float

    def latency(self, shards: float) -> float:
        """Seconds a query."""
        return SCAN_SECONDS / shards + self.fixed + self.each * shards

    def throughput(self, shards: float) -> float:
        """Queries a second of the clients, through one process that asks one shard after the other."""
        return min(CLIENTS / self.latency(shards), 1 / (self.fixed + self.each * shards))


def draw(latency: dict[int, float], throughput: dict[int, float], model: Model) -> None:
    """Write docs/img/bench-cluster.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    shards = np.geomspace(1, max(MODELLED), 100)
    left.loglog(shards, [1000 * model.latency(n) for n in shards], "--", color="tab:orange", label="model")
    left.loglog(list(latency), [1000 * s for s in latency.values()], "o", color="tab:blue", label="measured")
    left.set(ylabel="ms a query", title=f"latency of a scan of {SCAN_SECONDS} s in shards")
    right.loglog(shards, [model.throughput(n) for n in shards], "--", color="tab:orange", label="model, one process")
    right.loglog(list(throughput), list(throughput.values()), "o", color="tab:blue", label="measured")
    right.set(ylabel="queries/s", title=f"throughput of {CLIENTS} clients")
    for axes, steps in ((left, (50, 100, 200, 400, 800)), (right, (2, 5, 10, 20, 50, 100, 200))):
        axes.set_xlabel("shards")
        axes.set_xticks([*latency, *MODELLED], [str(n) for n in (*latency, *MODELLED)])
        axes.set_yticks(steps, [str(n) for n in steps])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(child.ROOT / "docs" / "img" / "bench-cluster.png", dpi=120)
    pyplot.close(figure)
