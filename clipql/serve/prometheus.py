"""Figures for Prometheus: requests, how long each stage took, what the indexes and the encoder did."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from clipql.encode.service import Encoders
from clipql.sql.session import Answer
from clipql.tables.registry import Registry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


# what a search counts of its work, in `Cost`
_WORK = ("rows_scanned", "codes_scanned", "lists_probed", "rows_rescored")


class _Now(Collector):
    """What is so at the moment, which is the same in all processes of a server."""

    def __init__(self, tables: Registry, requests: Callable[[], int]) -> None:
        self._tables, self._requests = tables, requests

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """As prometheus_client asks for it."""
        yield GaugeMetricFamily("clipql_requests_taken", "Requests running or waiting", self._requests())
        rows = GaugeMetricFamily("clipql_table_rows", "Rows of a table with vectors", labels=["table"])
        indexed = GaugeMetricFamily("clipql_index_rows", "Rows that an index covers", labels=["table", "index"])
        size = GaugeMetricFamily("clipql_index_bytes", "Bytes of an index", labels=["table", "index"])
        for table in self._tables.catalog.tables:
            rows.add_metric([table.full_name], table.rows)
            for entry in table.indexes:
                indexed.add_metric([table.full_name, entry.name], entry.rows)
                size.add_metric([table.full_name, entry.name], entry.bytes)
        yield from (rows, indexed, size)


def write_into(folder: str, process: int) -> None:
    """Have the figures that are made from now on lie in a folder, where those of all processes are summed up.

    A process goes on with what one of the same number has left, so that sums never fall.
    """
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
    values.ValueClass = values.MultiProcessValue(lambda: process)  # type: ignore[no-untyped-call]


class Metrics:
    """One server's figures, in a registry of their own. requests: how many run or wait. folder: of `write_into`."""

    def __init__(
        self, tables: Registry, encoders: Encoders, requests: Callable[[], int], folder: str | None = None
    ) -> None:
        self._registry = own = CollectorRegistry()
        self.requests = Counter("clipql_requests", "Requests", ["face", "status"], registry=own)
        self._stage = Histogram("clipql_stage_seconds", "Seconds by stage", ["stage"], buckets=_SECONDS, registry=own)
        self._searches = Counter("clipql_vector_searches", "Vector searches", ["kind", "index"], registry=own)
        self._work = Counter(
            "clipql_search_work", "Rows and codes compared with a query vector", ["what"], registry=own
        )
        # looking a label's up takes longer than counting
        self._stages = dict[str, Any]()
        self._searched = dict[tuple[str, str], Any]()
        self._kinds_of_work = [(what, self._work.labels(what)) for what in _WORK]
        self.bytes_sent = Counter("clipql_sent_bytes", "Bytes of results before compression", registry=own)
        by = ["function"]
        self._encoded = (
            Counter("clipql_encoded", "Texts and pictures encoded", by, registry=own),
            Counter("clipql_encoder_seconds", "Seconds of the encoder", by, registry=own),
            Counter("clipql_encoded_remembered", "Inputs whose vector was at hand", by, registry=own),
        )
        self._encoders, self._noted = encoders, dict[str, tuple[float, ...]]()
        self._noting = threading.Lock()
        self._shown = own
        if folder is not None:
            self._shown = CollectorRegistry()
            MultiProcessCollector(self._shown, folder)  # type: ignore[no-untyped-call]
        self._shown.register(_Now(tables, requests))
        self._note_encoders()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.took(name, time.perf_counter() - began)

    def took(self, name: str, seconds: float) -> None:
        """Note how long a stage took."""
        found = self._stages.get(name)
        if found is None:
            found = self._stages[name] = self._stage.labels(name)
        found.observe(seconds)

    def searched(self, answer: Answer) -> None:
        """Note the vector searches of a statement."""
        for step in answer.steps:
            index = step.plan.chosen.entry.kind if step.plan.chosen.index and step.plan.chosen.entry else "none"
            searches = self._searched.get(key := (step.kind, index))
            if searches is None:
                searches = self._searched[key] = self._searches.labels(*key)
            searches.inc()
            for what, counter in self._kinds_of_work:
                if count := getattr(step.cost, what):
                    counter.inc(count)
            for stage, seconds in step.cost.seconds.items():
                self.took(f"index {stage}", seconds)

        self._note_encoders()

    def _note_encoders(self) -> None:
        """What the encoders did since the last time, which they count themselves."""
        with self._noting:
            for function, tally in self._encoders.tallies.items():
                now = tally.encoded, tally.seconds, tally.remembered
                first, before = function not in self._noted, self._noted.get(function, (0.0, 0.0, 0.0))
                for counter, more, less in zip(self._encoded, now, before, strict=True):
                    if first or more != less:  # a search by a vector encodes nothing; zeros are shown, too
                        counter.labels(function).inc(more - less)
                self._noted[function] = now

    def text(self) -> bytes:
        """All figures as Prometheus reads them, of all processes of the server."""
        self._note_encoders()
        return generate_latest(self._shown)
