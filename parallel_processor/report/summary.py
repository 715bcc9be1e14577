"""What a run did, and what all runs of a processor did: figures for programs, and the same as text.

:class:`RunCounts` is the one list of counters. :class:`Summary`, :class:`Stats`, a sample of the report
and the metrics take their counters from it. A new counter is a field here, and the line in
``counters.py`` that counts it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from parallel_processor.exceptions import StopCause
from parallel_processor.models import WaitCause
from parallel_processor.planning.costs import Costs, ModelCost
from parallel_processor.ratelimit.reports import BucketReport
from parallel_processor.report.wording import bucket_text, cost_name, money, round_text
from parallel_processor.runtime.notebook import html_table

_MAX_BUCKETS = 10  # in the text, the busiest
_MAX_NAMES = 5
_LEAST_RATE_S = 60.0  # a shorter run has no rate: its burst counts for the time before


def _counter(text: str) -> Any:
    """A field that counts what ``text`` says. The metrics publish the text."""
    return field(default=0, metadata={"text": text})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCounts:
    """The counters of a run; each has its explanation beside it."""

    answered: int = _counter("Requests that have an answer")
    failed: int = _counter("Requests that failed for good")
    unanswered: int = _counter("Requests that were given up because a run stopped")
    deduplicated: int = _counter("Requests that were not sent because an equal one was")
    attempts: int = _counter("Attempts that were sent")
    retries: int = _counter("Attempts after a request's first one")
    rate_limited: int = _counter("Attempts that a rate limit rejected")
    pauses: int = _counter("Times when sending paused")
    used_tokens: int = _counter("Tokens that the answers say were used")
    reserved_tokens: int = _counter("Tokens that were reserved before sending")


COUNTER_TEXTS: Mapping[str, str] = {
    each.name: each.metadata["text"] for each in dataclasses.fields(RunCounts)
}
"""The names of the counters, each with its explanation."""


def counters_of(counts: RunCounts) -> dict[str, Any]:
    """The counters by name, as the other classes take them."""
    return {name: getattr(counts, name) for name in COUNTER_TEXTS}


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary(RunCounts):
    """What a run did.

    Attributes:
        answered: requests of this run that have an answer.
        failed: requests of this run that failed for good.
        unanswered: requests that were started and given up, because the run stopped.
        deduplicated: requests not sent because an equal one was; they count as answered or failed.
        attempts: what was sent.
        retries: the attempts after a request's first one.
        rate_limited: the attempts that a rate limit rejected.
        pauses: how often sending paused.
        used_tokens: the sum of what the answers' ``usage`` says.
        reserved_tokens: the sum of what was charged to the token limit before sending.
        already_answered: requests that the results file had an answer for.
        already_failed: requests that the results file had a failure for, which was kept.
        left: requests without a record, such as those that a stop left unsent; ``None`` if unknown.
        left_is_exact: false if ``left`` is estimated from the part of the input that was read.
        elapsed_s: seconds from the start to the end.
        errors_by_kind: the failed requests by how their last attempt ended.
        stop_reason: why the run ended early, as text; empty if it did not.
        stop_cause: the same as a value that a program can compare.
        stopped_models: the models that the stop is about; empty if it is about all.
        waited_s: the seconds for which sending waited, by cause.
        buckets: a report of the limits of each model.
        cost: US dollars that the answers of this run have cost, of models that have a price; ``None`` if
            money is not counted.
        expected_cost: what the whole job will have cost, earlier runs included; ``None`` if unknown.
        cost_before: what earlier runs with the same results have spent. Only known with a budget.
        uncertain_cost: what attempts may have cost besides, which don't say what they used. Likewise.
        costs: what the answers of each model and service tier have cost.
        lines_keep_places: whether lines are known by their bytes, so that none may grow or shrink.

    >>> summary = process_file(f"{folder}/requests.jsonl", request_url=url)
    >>> summary.answered, summary.failed, summary.attempts, summary.errors_by_kind
    (3, 0, 3, {})
    """

    lines_keep_places: ClassVar[bool] = False
    already_answered: int = 0
    already_failed: int = 0
    left: int | None = None
    left_is_exact: bool = False
    elapsed_s: float = 0.0
    errors_by_kind: Mapping[str, int] = field(default_factory=dict)
    stop_reason: str = ""
    stop_cause: StopCause = StopCause.NOTHING
    stopped_models: tuple[str, ...] = ()
    waited_s: Mapping[WaitCause, float] = field(default_factory=dict)
    buckets: tuple[BucketReport, ...] = ()
    cost: float | None = None
    expected_cost: float | None = None
    cost_before: float = 0.0
    uncertain_cost: float = 0.0
    costs: tuple[ModelCost, ...] = ()

    def __str__(self) -> str:
        """The summary as lines for a person."""
        return summary_text(self)

    def _repr_html_(self) -> str:
        """The same as a table, which a notebook shows."""
        return html_table("Summary", self.rows())

    def rows(self, *, with_stop: bool = True) -> Iterator[tuple[str, str]]:
        """The lines of the summary, each as a name and a text."""
        yield "requests", self._requests()
        yield (
            "attempts",
            f"{self.attempts:,}{self._rate(self.attempts)}, {self.retries:,} of them retries, "
            f"{self.rate_limited:,} rejected (429 or 503); pauses: {self.pauses:,}",
        )
        yield (
            "tokens",
            f"{self.reserved_tokens:,} reserved{self._rate(self.reserved_tokens)}, "
            f"{self.used_tokens:,} used by the answers",
        )
        yield from self._money()
        for kind, count in self.errors_by_kind.items():
            yield f"failed with {kind}", f"{count:,}"
        busiest = sorted(self.buckets, key=lambda bucket: -bucket.admitted)[:_MAX_BUCKETS]
        for bucket in busiest:
            if bucket.admitted:
                yield bucket_text(bucket, self.elapsed_s, busiest)
        if self.stop_reason and with_stop:
            yield "stopped", self.stop_reason

    def _money(self) -> Iterator[tuple[str, str]]:
        """What was spent, and for which models."""
        if self.cost is None:
            return
        priced = [each for each in self.costs if each.cost is not None]
        if priced or self.cost_before:
            words = [f"{money(self.cost)} for the answers"]
            words += [f"{money(self.cost_before)} before"] if self.cost_before else []
            if self.uncertain_cost:
                words.append(f"up to {money(self.uncertain_cost)} for attempts that didn't say")
            if self.left and self.expected_cost is not None:
                words.append(f"about {money(self.expected_cost)} in all")
            yield "cost", ", ".join(words)
        for each in priced if len(self.costs) > 1 else ():
            tokens = f"{each.input_tokens:,} input and {each.output_tokens:,} output tokens"
            yield f"cost of {cost_name(each)}", f"{money(each.cost or 0.0)} for {tokens}"
        unpriced = sorted({cost_name(each) for each in self.costs if each.cost is None})
        if unpriced:
            more = [f"{len(unpriced) - _MAX_NAMES:,} more"] if len(unpriced) > _MAX_NAMES else []
            yield "no price known for", ", ".join([*unpriced[:_MAX_NAMES], *more])

    def _requests(self) -> str:
        counts = {
            "answered before": self.already_answered,
            "failed before": self.already_failed,
            "not sent because an equal one was": self.deduplicated,
            "given up": self.unanswered,
        }
        words = [f"{self.answered:,} answered", f"{self.failed:,} failed"]
        words += [f"{count:,} {name}" for name, count in counts.items() if count]
        if self.stop_reason or self.left:
            words.append(self.left_text or "the rest not sent")
        return f"{', '.join(words)} in {self.elapsed_s:,.1f} s"

    @property
    def left_text(self) -> str:
        """How many requests are left, in words; empty if that is unknown."""
        if self.left is None:
            return ""
        return (
            f"{self.left:,} left" if self.left_is_exact else f"about {round_text(self.left)} left"
        )

    def _rate(self, count: int) -> str:
        """What ``count`` comes to a minute, for a run that is long enough to have a rate."""
        if self.elapsed_s < _LEAST_RATE_S:
            return ""
        return f" ({count * 60 / self.elapsed_s:,.0f} a minute)"


def cost_fields(costs: Costs | None, counts: Any, fraction: float | None) -> dict[str, Any]:
    """The fields of a :class:`Summary` about money, of a run with these ``counts``."""
    if costs is None:
        return {}
    left, ended = counts.left(fraction), counts.answered + counts.failed
    expected = None
    if left is not None and (ended or not left):
        spent = costs.total + costs.uncertain
        expected = costs.before + spent + (spent / ended * left if left else 0.0)
    return {
        "cost": costs.total,
        "expected_cost": expected,
        "cost_before": costs.before,
        "uncertain_cost": costs.uncertain,
        "costs": costs.models,
    }


def summary_text(summary: Summary, *, with_stop: bool = True) -> str:
    """The summary as lines for a person; without the reason for a stop where that is shown already."""
    return "\n".join(f"{name}: {value}" for name, value in summary.rows(with_stop=with_stop))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats(RunCounts):
    """Where a processor stands: all its runs together, those that have ended included.

    ``answered``, ``failed``, ``unanswered``, ``deduplicated``, ``attempts``, ``retries``, ``rate_limited``,
    ``pauses``, ``used_tokens`` and ``reserved_tokens`` are counters as in :class:`Summary`, since the
    processor was made.

    Attributes:
        read: requests that were read.
        runs: runs that are under way.
        in_flight: requests that were sent and have no answer yet.
        errors: the failed attempts by kind.
        requests_per_minute: the attempts of the last 60 seconds; of a younger processor, as a rate.
        tokens_per_minute: the tokens charged in the last 60 seconds, likewise.
        limits: what may be sent a minute, by the name of the quota; infinite where there is no limit.
        waiting_for: what sending waits for at this moment; empty if for nothing.
        latency_s: the percentiles 50, 95 and 99 of the answers' latency in seconds, exact to 9 %.
            Empty while there are no answers.
        buckets: a report of each token bucket: of each model, endpoint and key.
        cost: US dollars that the answers have cost, of models that have a price; ``None`` if money is not
            counted.
        costs: what the answers of each model and service tier have cost.

    >>> with Processor(request_url=url) as processor:
    ...     outcomes = processor.map([{"model": "m", "input": "text"}])
    ...     stats = processor.stats()
    >>> stats.answered, stats.in_flight, sorted(stats.latency_s)
    (1, 0, [50, 95, 99])
    """

    runs: int = 0
    read: int = 0
    in_flight: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    limits: Mapping[str, float] = field(default_factory=dict)
    waiting_for: WaitCause = WaitCause.NOTHING
    latency_s: Mapping[int, float] = field(default_factory=dict)
    buckets: tuple[BucketReport, ...] = ()
    cost: float | None = None
    costs: tuple[ModelCost, ...] = ()
