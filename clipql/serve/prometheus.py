"""Figures for Prometheus: requests, how long each stage took, what the indexes and the encoder did."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from clipql.encode.service import Encoders
from clipql.sql.session import Answer
from clipql.tables.registry import Registry

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


# what a search counts of its work, in `Cost`
_WORK = ("rows_scanned", "codes_scanned", "lists_probed", "rows_rescored")


class _Encoded(Collector):
    """What the encoders did, which they count themselves."""

    def __init__(self, encoders: Encoders) -> None:
        self._encoders = encoders

    def collect(self) -> Iterator[CounterMetricFamily]:
        """As prometheus_client asks for it."""
        encoded = CounterMetricFamily("clipql_encoded", "Texts and pictures encoded", labels=["function"])
        seconds = CounterMetricFamily("clipql_encoder_seconds", "Seconds of the encoder", labels=["function"])
        kept = CounterMetricFamily("clipql_encoded_remembered", "Inputs whose vector was at hand", labels=["function"])
        for function, tally in self._encoders.tallies.items():
            encoded.add_metric([function], tally.encoded)
            seconds.add_metric([function], tally.seconds)
            kept.add_metric([function], tally.remembered)
        yield from (encoded, seconds, kept)


class Metrics:
    """One server's figures, in a registry of their own. requests: how many run or wait."""

    def __init__(self, tables: Registry, encoders: Encoders, requests: Callable[[], int]) -> None:
        self._registry = own = CollectorRegistry()
        self.requests = Counter("clipql_requests", "Requests", ["face", "status"], registry=own)
        self._stage = Histogram("clipql_stage_seconds", "Seconds by stage", ["stage"], buckets=_SECONDS, registry=own)
        self._searches = Counter("clipql_vector_searches", "Vector searches", ["kind", "index"], registry=own)
        self._work = Counter(
            "clipql_search_work", "Rows and codes compared with a query vector", ["what"], registry=own
        )
        self.bytes_sent = Counter("clipql_sent_bytes", "Bytes of results before compression", registry=own)
        Gauge("clipql_requests_taken", "Requests running or waiting", registry=own).set_function(requests)
        self._rows = Gauge("clipql_table_rows", "Rows of a table with vectors", ["table"], registry=own)
        self._indexed = Gauge("clipql_index_rows", "Rows that an index covers", ["table", "index"], registry=own)
        self._size = Gauge("clipql_index_bytes", "Bytes of an index", ["table", "index"], registry=own)
        self._tables = tables
        own.register(_Encoded(encoders))

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
        self._stage.labels(name).observe(seconds)

    def searched(self, answer: Answer) -> None:
        """Note the vector searches of a statement."""
        for step in answer.steps:
            index = step.plan.chosen.entry.kind if step.plan.chosen.index and step.plan.chosen.entry else "none"
            self._searches.labels(step.kind, index).inc()
            for what in _WORK:
                self._work.labels(what).inc(getattr(step.cost, what))
            for stage, seconds in step.cost.seconds.items():
                self.took(f"index {stage}", seconds)

    def text(self) -> bytes:
        """All figures as Prometheus reads them."""
        for gauge in (self._rows, self._indexed, self._size):
            gauge.clear()
        for table in self._tables.catalog.tables:
            self._rows.labels(table.full_name).set(table.rows)
            for entry in table.indexes:
                self._indexed.labels(table.full_name, entry.name).set(entry.rows)
                self._size.labels(table.full_name, entry.name).set(entry.bytes)
        return generate_latest(self._registry)
