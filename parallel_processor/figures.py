"""What a run tells of itself: its figures at one moment, over time, and at its end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from parallel_processor.display import html_table


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReport:
    """What one limit of a bucket was, and how much of it was used.

    ``name`` is what it counts in ``window_s`` seconds. ``configured`` is the ceiling, ``found`` what
    the server's headers said last, both ``None`` where there is none; ``tried_per_minute`` the rate
    that was found by trying, where they say nothing. ``changes`` are the times at which the found
    limit changed, in seconds from the run's start, with its new value. ``used`` counts what was
    charged (to a configured limit by all models under it), ``used_share`` relates it to what the
    limit in force allowed meanwhile. ``others_per_minute`` is what other clients of the account seem
    to take.

    >>> limits = Limits(requests_per_minute=600)
    >>> summary = process_file(f"{folder}/requests.jsonl", request_url=url, limits=limits)
    >>> (bucket,) = summary.buckets
    >>> for limit in bucket.limits:
    ...     print(f"{limit.used:g} of {limit.configured:g} {limit.name} in {limit.window_s:g} s")
    3 of 600 requests in 60 s
    9 of 125000 tokens in 60 s
    """

    name: str
    window_s: float = 60.0
    configured: float | None = None
    found: float | None = None
    tried_per_minute: float | None = None
    changes: tuple[tuple[float, float], ...] = ()
    used: float = 0.0
    used_share: float | None = None
    others_per_minute: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketReport:
    """How the limits of one model and endpoint turned out.

    ``url`` and ``model`` say whose; either is empty where it makes no difference. ``held_by`` has the
    seconds for which its requests waited, by what they waited for. ``admitted`` counts attempts,
    ``refusals`` those that a limit turned away, ``pauses`` the times when sending stopped for one.
    ``reserved_tokens`` were charged to its limits, ``used_tokens`` were used by the ``answered`` ones.
    ``in_flight_limit`` is the number in flight that suited the server, if one had to be found;
    ``peak_in_flight`` the largest there was. ``limits`` has a report of each.

    >>> summary = process_file(f"{folder}/requests.jsonl", request_url=url)
    >>> for bucket in summary.buckets:
    ...     print(bucket.model, bucket.admitted, "sent,", bucket.refusals, "refused")
    text-embedding-3-small 3 sent, 0 refused
    """

    url: str
    model: str
    held_by: Mapping[str, float] = field(default_factory=dict)
    admitted: int = 0
    refusals: int = 0
    pauses: int = 0
    answered: int = 0
    reserved_tokens: int = 0
    used_tokens: int = 0
    in_flight_limit: float | None = None
    peak_in_flight: int = 0
    limits: tuple[LimitReport, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run did, counted in requests unless a name says otherwise.

    ``already_answered`` were in the results file before, as were ``already_failed`` if failures were to
    be kept; ``answered`` and ``failed`` are this run's;
    ``unanswered`` were started and given up, because the run stopped. ``deduplicated`` of the answered and
    failed were not sent, since an equal request was. ``attempts`` counts what was
    sent, ``retries`` the attempts after a first one, ``rate_limited`` the refusals among them,
    ``pauses`` the times when all sending stopped for one. ``used_tokens`` is the sum of what the
    answers' ``usage`` says, ``reserved_tokens`` of what was charged to the token limit.
    ``elapsed_s`` are the seconds from start to end, and ``errors_by_kind`` counts the failed requests by
    how their last attempt ended. ``stop_reason`` is empty for a run that came to its end. ``held_by`` has
    the seconds for which the sending waited, by what it waited for; ``buckets`` tells the same of each
    limit.

    >>> summary = process_file(f"{folder}/requests.jsonl", request_url=url)
    >>> summary.answered, summary.failed, summary.attempts, summary.errors_by_kind
    (3, 0, 3, {})
    """

    already_answered: int = 0
    already_failed: int = 0
    answered: int = 0
    failed: int = 0
    unanswered: int = 0
    deduplicated: int = 0
    attempts: int = 0
    retries: int = 0
    rate_limited: int = 0
    pauses: int = 0
    used_tokens: int = 0
    reserved_tokens: int = 0
    elapsed_s: float = 0.0
    errors_by_kind: Mapping[str, int] = field(default_factory=dict)
    stop_reason: str = ""
    held_by: Mapping[str, float] = field(default_factory=dict)
    buckets: tuple[BucketReport, ...] = ()

    def __str__(self) -> str:
        """What there is to say, a line each."""
        return "\n".join(f"{name}: {value}" for name, value in self._rows())

    def _repr_html_(self) -> str:
        """The same as a notebook shows it."""
        return html_table("Summary", self._rows())

    def _rows(self) -> Iterator[tuple[str, str]]:
        yield "answered", f"{self.answered:,}"
        yield "failed", f"{self.failed:,}"
        rest = ("unanswered", "already_answered", "already_failed", "deduplicated", "attempts")
        for name in (*rest, "retries", "rate_limited", "pauses", "used_tokens", "reserved_tokens"):
            if count := getattr(self, name):
                yield name.replace("_", " "), f"{count:,}"
        yield "seconds", f"{self.elapsed_s:,.1f}"
        for cause, seconds in sorted(self.held_by.items(), key=lambda wait: -wait[1]):
            if seconds >= 0.01 * self.elapsed_s:
                yield f"held back by {cause}", f"{seconds:,.1f} s"
        for kind, count in self.errors_by_kind.items():
            yield kind, f"{count:,}"
        if self.stop_reason:
            yield "stopped", self.stop_reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How much of each limit was admitted in the last 60 seconds, and what the first in line waits for.

    ``admitted`` and ``limits`` are keyed by quota name. ``span_s`` is how many seconds' worth of the
    limits ``admitted`` is to be held against: less than a minute for a young bucket. ``held_by`` is a
    quota's name, ``pause``, or empty when nobody waits.
    """

    admitted: Mapping[str, float]
    limits: Mapping[str, float]
    held_by: str
    span_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Where a run stood at one moment, ``at_s`` seconds after its start.

    All counts are since the start, so that the difference of two samples tells what was between them.
    ``errors`` has the failed attempts by kind, the refusals of a rate limit among them; ``held_by`` the
    seconds waited by cause; ``latencies`` how many answers took how long, in the bins of
    ``latencies.py``. ``in_flight`` is the number at that moment, and ``limits`` what was in force then, a
    minute, by name (infinite where there is none).
    """

    at_s: float
    attempts: int = 0
    retries: int = 0
    rate_limited: int = 0
    answered: int = 0
    failed: int = 0
    reserved_tokens: int = 0
    used_tokens: int = 0
    in_flight: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    held_by: Mapping[str, float] = field(default_factory=dict)
    latencies: tuple[int, ...] = ()
    limits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestNote:
    """One request that the report names: one of the slowest, or one that failed.

    ``number`` is its line in the file. ``latency_s`` is that of its last attempt, ``None`` if none was
    timed; ``error`` is that attempt's, empty for an answer.
    """

    number: int
    custom_id: str | None = None
    model: str = ""
    attempts: int = 0
    latency_s: float | None = None
    error: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """All that is known of a run, while it goes on (``is_running``) or at its end.

    ``started_at`` and ``told_at`` are seconds since 1970. ``fraction`` is the share of the input that has
    been read. ``timeline`` has its samples, at most some hundreds, the first at the start; ``slowest`` the
    answers that took longest, and ``failures`` the failed requests that came last, both longest or
    latest first. ``url`` is where the requests go, without what may be secret.
    """

    summary: Summary
    started_at: float
    told_at: float
    is_running: bool = False
    fraction: float | None = None
    requests_path: str = ""
    save_path: str = ""
    url: str = ""
    max_workers: int = 0
    processes: int = 1
    timeline: tuple[Sample, ...] = ()
    slowest: tuple[RequestNote, ...] = ()
    failures: tuple[RequestNote, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Where a processor stands, all its runs together, those that have ended included.

    ``read``, ``answered``, ``failed``, ``unanswered``, ``deduplicated``, ``attempts``, ``retries``,
    ``rate_limited``, ``pauses``, ``used_tokens`` and ``reserved_tokens`` are counts since the processor was
    made, as in :class:`Summary`; ``errors`` are the failed attempts by kind. ``runs`` are under way now,
    ``in_flight`` the requests that were sent and have no answer yet.
    ``requests_per_minute`` and ``tokens_per_minute`` went out in the last 60 seconds (of a younger
    processor, as a rate), ``limits`` has what may (infinite where there is no limit). ``held_by`` is what
    sending waits for at this moment, empty if for nothing. ``latency_s`` has the percentiles 50, 95 and
    99 of the answers' latency in seconds, to 9 %, and is empty while there are no answers.

    >>> with Processor(request_url=url) as processor:
    ...     outcomes = processor.map([{"model": "m", "input": "text"}])
    ...     stats = processor.stats()
    >>> stats.answered, stats.in_flight, sorted(stats.latency_s)
    (1, 0, [50, 95, 99])
    """

    runs: int = 0
    read: int = 0
    answered: int = 0
    failed: int = 0
    unanswered: int = 0
    deduplicated: int = 0
    in_flight: int = 0
    attempts: int = 0
    retries: int = 0
    rate_limited: int = 0
    pauses: int = 0
    used_tokens: int = 0
    reserved_tokens: int = 0
    errors: Mapping[str, int] = field(default_factory=dict)
    requests_per_minute: float = 0.0
    tokens_per_minute: float = 0.0
    limits: Mapping[str, float] = field(default_factory=dict)
    held_by: str = ""
    latency_s: Mapping[int, float] = field(default_factory=dict)
