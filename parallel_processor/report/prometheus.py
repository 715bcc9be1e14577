"""The figures of a processor for Prometheus. Each scrape asks for them anew.

``prometheus_client`` is an extra (``pip install '.[metrics]'`` in a clone), and imported when used.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import urlsplit

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.ratelimit.reports import BucketReport
from parallel_processor.report.summary import COUNTER_TEXTS, Stats

_log = logging.getLogger("parallel_processor")
_GAUGES = {
    "runs": "Runs under way",
    "in_flight": "Requests sent that have no answer yet",
    "requests_per_minute": "Requests sent in the last 60 seconds",
    "tokens_per_minute": "Tokens charged in the last 60 seconds",
}
_OF_TIERS = {
    "admitted": "Attempts that were sent to a service tier",
    "answered": "Attempts that a service tier answered",
    "moved_on": "Requests that went on to the next tier or to the fallback",
    "downgraded": "Answers that came from another tier than was asked for",
    "used_tokens": "Tokens that the answers of a service tier used",
}

_OF_COSTS = {
    "cost": "US dollars that the answers have cost, of models that have a price",
    "answers": "Answers that say what they used, counted where prices are",
}


class HasStats(Protocol):
    """A :class:`Processor`, or anything else that has such figures."""

    def stats(self) -> Stats:
        """The figures of this moment."""
        ...


@contextmanager
def serve_metrics(processor: HasStats, port: int, host: str = "127.0.0.1") -> Iterator[int]:
    """While the block runs, serve the figures of ``processor`` at ``http://host:port/metrics``.

    Gives the port; 0 asks for a free one. Raises :class:`ConfigurationError` if the address can't be
    used, or ``prometheus_client`` is not installed.

    >>> from urllib.request import urlopen
    >>> with Processor(request_url=url) as processor, serve_metrics(processor, 0) as port:
    ...     page = urlopen(f"http://127.0.0.1:{port}/metrics").read().decode()
    >>> "parallel_processor_answered_total 0.0" in page
    True
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        text = "metrics need prometheus_client: pip install prometheus_client"
        raise ConfigurationError(text) from None
    registry = CollectorRegistry()
    registry.register(_Collector(processor))
    try:
        server, thread = start_http_server(port, host, registry)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(f"can't serve metrics at {host}:{port}: {error}") from None
    try:
        _log.info("metrics are at http://%s:%d/metrics", host, server.server_port)
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Collector:
    """Answers prometheus_client's scrapes, each in a thread of its own."""

    def __init__(self, processor: HasStats) -> None:
        self._processor = processor

    def collect(self) -> Iterator[Any]:
        """Every metric, all of the same moment."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        stats = self._processor.stats()
        for name, text in COUNTER_TEXTS.items():
            yield CounterMetricFamily(_full(name), text, value=getattr(stats, name))
        for name, text in _GAUGES.items():
            yield GaugeMetricFamily(_full(name), text, value=getattr(stats, name))
        for name, text, values in _by_upstream(stats):
            family = CounterMetricFamily(_full(name), text, labels=["upstream"])
            yield _filled(family, values)
        errors = CounterMetricFamily(_full("errors"), "Failed attempts by kind", labels=["kind"])
        yield _filled(errors, stats.errors)
        for name, text, label, values in _labelled(stats):
            yield _filled(GaugeMetricFamily(_full(name), text, labels=[label]), values)
        for name, value in (("cost_dollars", "cost"), ("answered_with_usage", "answers")):
            text = _OF_COSTS[value]
            family = CounterMetricFamily(_full(name), text, labels=["model", "tier"])
            for each in stats.costs:
                family.add_metric([each.model, each.tier], getattr(each, value) or 0.0)
            yield family
        for name, text in _OF_TIERS.items():
            family = CounterMetricFamily(_full(f"tier_{name}"), text, labels=["model", "tier"])
            yield _filled_by_tier(family, name, stats.buckets)


def _labelled(stats: Stats) -> Iterator[tuple[str, str, str, Mapping[str, float]]]:
    """The gauges that have several values: name, text, label, and the values by label."""
    yield "limit_per_minute", "What may be sent in a minute", "kind", stats.limits
    quantiles = {f"{percent / 100:g}": s for percent, s in stats.latency_s.items()}
    yield "latency_seconds", "Latency of the answers so far", "quantile", quantiles
    waiting_for = {str(stats.waiting_for): 1.0} if stats.waiting_for else {}
    yield "waiting_for", "What sending waits for now", "cause", waiting_for


def _by_upstream(stats: Stats) -> Iterator[tuple[str, str, Mapping[str, float]]]:
    """The counters of each host, and of each of several keys: name, text, and the values."""
    sent: dict[str, float] = {}
    answered: dict[str, float] = {}
    for bucket in stats.buckets:
        host = urlsplit(bucket.url).netloc or "other"
        upstream = f"{host} key {bucket.key + 1}" if bucket.key else host
        sent[upstream] = sent.get(upstream, 0.0) + bucket.admitted
        answered[upstream] = answered.get(upstream, 0.0) + bucket.answered
    yield "upstream_attempts", "Attempts sent to a server with one key", sent
    yield "upstream_answers", "Attempts that it answered", answered


def _filled(family: Any, values: Mapping[str, float]) -> Any:
    for value_of, value in values.items():
        family.add_metric([value_of], value)
    return family


def _filled_by_tier(family: Any, name: str, buckets: Sequence[BucketReport]) -> Any:
    """What each tier of each model did, and each model with a fallback; replicas are added up."""
    sums: Counter[tuple[str, str]] = Counter()
    for bucket in buckets:
        if bucket.tier or bucket.moved_on:
            sums[bucket.model, bucket.tier] += getattr(bucket, name)
    for labels, value in sums.items():
        family.add_metric(labels, value)
    return family


def _full(name: str) -> str:
    return f"parallel_processor_{name}"
