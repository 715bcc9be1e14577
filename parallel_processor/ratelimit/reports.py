"""What became of each limit in a run, and how much of it is used at one moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from parallel_processor.models import WaitCause


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReport:
    """What one limit of a bucket was, and how much of it was used.

    Attributes:
        name: what the limit counts, such as ``requests`` or ``input_tokens``.
        window_s: the seconds in which it counts.
        configured: the limit that the user set, or the default; ``None`` without one.
        is_default: nobody set ``configured``.
        in_force: the lower limit that holds in its place, because another process of the account set it
            at the same ``limiter``; ``None`` without one.
        is_leased: other processes share it by the ``limiter``, so that it must be a number.
        pattern: the models that ``configured`` is for; ``None`` for all that have no limits of their own.
        found: the limit that the server's headers named last; ``None`` without one.
        tried_per_minute: the rate that was found by trying, where the headers name no limit.
        changes: when the limit was found or set, in seconds from the run's start, and its value then.
            Of a limit that the user set, empty while it is the first one.
        used: what was charged. For a configured limit that is the sum of all models under it.
        used_share: ``used`` as a share of what the limits in force allowed.
        others_per_minute: what other clients of the account seem to use.

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
    is_default: bool = False
    in_force: float | None = None
    is_leased: bool = False
    pattern: str | None = None
    found: float | None = None
    tried_per_minute: float | None = None
    changes: tuple[tuple[float, float], ...] = ()
    used: float = 0.0
    used_share: float | None = None
    others_per_minute: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketReport:
    """What became of the limits of one model and endpoint.

    Attributes:
        url: the endpoint; empty where it makes no difference.
        model: the model; empty where it makes no difference.
        key: which of the keys for its host, counted from 0.
        tier: the service tier that its requests ask for; empty if the run doesn't choose one.
        waited_s: the seconds for which its requests waited, by cause.
        admitted: the attempts that were sent.
        rejections: the attempts that the server rejected for a limit.
        pauses: how often sending paused.
        answered: the attempts that got an answer.
        moved_on: the requests that went on to the next tier or to the fallback.
        downgraded: the answers that came from another tier than was asked for.
        reserved_tokens: the tokens that were charged to its limits before sending.
        used_tokens: the tokens that the answers used.
        in_flight_limit: the number of concurrent requests that the server sustains; ``None`` if unknown.
        peak_in_flight: the largest number of concurrent requests.
        limits: a report of each limit.

    >>> summary = process_file(f"{folder}/requests.jsonl", request_url=url)
    >>> for bucket in summary.buckets:
    ...     print(bucket.model, bucket.admitted, "sent,", bucket.rejections, "rejected")
    text-embedding-3-small 3 sent, 0 rejected
    """

    url: str
    model: str
    key: int = 0
    tier: str = ""
    waited_s: Mapping[WaitCause, float] = field(default_factory=dict)
    admitted: int = 0
    rejections: int = 0
    pauses: int = 0
    answered: int = 0
    moved_on: int = 0
    downgraded: int = 0
    reserved_tokens: int = 0
    used_tokens: int = 0
    in_flight_limit: float | None = None
    peak_in_flight: int = 0
    limits: tuple[LimitReport, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How much of each limit was admitted in the last 60 seconds.

    Attributes:
        admitted: what was admitted, by the name of the quota.
        limits: what is allowed a minute, by the name of the quota.
        waiting_for: what the first request in the queue waits for.
        span_s: the seconds that ``admitted`` covers; less than 60 for a new bucket.
    """

    admitted: Mapping[str, float]
    limits: Mapping[str, float]
    waiting_for: WaitCause
    span_s: float = 60.0
