"""Made-up reports of runs, as they come from real ones: with faults, under way, without limits, empty."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from parallel_processor.exceptions import StopCause
from parallel_processor.models import WaitCause
from parallel_processor.ratelimit.reports import BucketReport, LimitReport
from parallel_processor.report.histogram import BINS, bin_of
from parallel_processor.report.samples import RequestNote, RunReport, Sample
from parallel_processor.report.summary import Summary, counters_of

STARTED_AT = 1_767_600_000.0
URL = "https://api.example.com/v1/chat/completions"


@dataclass
class Moment:
    """What goes on in one second of a made-up run; rates are a second."""

    limit: float = math.inf
    token_limit: float = math.inf
    rate: float = 20.0
    latency_s: float = 1.2
    errors: Mapping[str, float] = field(default_factory=dict)
    waits: Mapping[WaitCause, float] = field(default_factory=dict)
    reserved: float = 900.0
    used: float = 410.0


def timeline(
    seconds: int, moment: Callable[[int], Moment], step: int = 1, seed: int = 1
) -> tuple[Sample, ...]:
    """The samples of a run in which each second is as ``moment`` says."""
    random, bins, errors, waited = Random(seed), [0] * BINS, Counter(), Counter()  # type: ignore
    now = Sample(at_s=0.0, limits={"requests": moment(0).limit, "tokens": moment(0).token_limit})
    samples = [now]
    for second in range(1, seconds + 1):
        its = moment(second)
        sent = round(its.rate * random.uniform(0.96, 1.03))
        failed = {kind: round(n * random.uniform(0.6, 1.4)) for kind, n in its.errors.items()}
        answered = max(sent - sum(failed.values()), 0)
        for _ in range(answered):
            bins[bin_of(its.latency_s * random.lognormvariate(0, 0.45))] += 1
        errors.update(failed)
        waited.update({cause: s * random.uniform(0.95, 1.0) for cause, s in its.waits.items()})
        now = Sample(
            at_s=float(second),
            attempts=now.attempts + sent,
            retries=now.retries + sum(failed.values()),
            rate_limited=now.rate_limited + sum(n for k, n in failed.items() if "429" in k),
            answered=now.answered + answered,
            failed=now.failed + (second % 40 == 0),
            reserved_tokens=now.reserved_tokens + round(sent * its.reserved),
            used_tokens=now.used_tokens + round(answered * its.used),
            in_flight=round(its.rate * its.latency_s * random.uniform(0.8, 1.2)),
            errors=dict(errors),
            waited_s=dict(waited),
            latencies=tuple(bins),
            limits={"requests": its.limit, "tokens": its.token_limit},
        )
        if second % step == 0 or second == seconds:
            samples.append(now)
    return tuple(samples)


def _summary(samples: tuple[Sample, ...], **more: object) -> Summary:
    """The summary that goes with the last sample."""
    last = samples[-1]
    waited_s = dict(sorted(last.waited_s.items(), key=lambda item: -item[1]))
    summary = Summary(**counters_of(last), elapsed_s=last.at_s, waited_s=waited_s)
    return replace(summary, **more)  # type: ignore[arg-type]


def _bucket(last: Sample, **more: Any) -> BucketReport:
    """The only model of a run, whose figures are those of the last sample."""
    figures = {
        "url": URL,
        "waited_s": last.waited_s,
        "admitted": last.attempts,
        "answered": last.answered,
        "reserved_tokens": last.reserved_tokens,
        "used_tokens": last.used_tokens,
    }
    return BucketReport(**(figures | more))


def _report(
    seconds: float, summary: Summary, timeline: tuple[Sample, ...], **more: Any
) -> RunReport:
    """The report of a run that took so long."""
    settings = {
        "fraction": 1.0,
        "requests_path": "requests.jsonl",
        "save_path": "requests_results.jsonl",
        "url": URL,
        "max_workers": 1000,
        "started_at": STARTED_AT,
        "written_at": STARTED_AT + seconds,
    }
    return RunReport(summary=summary, timeline=timeline, **(settings | more))


def _of_faulty(second: int) -> Moment:
    """A limit that halves at two minutes, 503s at four, a burst of 429s at five, a slow tail."""
    limit = 1200.0 if second < 120 else 600.0
    moment = Moment(limit=limit, token_limit=2e6, rate=limit / 60, waits={WaitCause.REQUESTS: 0.88})
    if 240 <= second < 262:
        moment.errors = {"HTTP 503 server_error": moment.rate * 0.6, "timeout": 0.6}
        moment.waits, moment.latency_s = {WaitCause.REQUESTS: 0.4, WaitCause.CONCURRENCY: 0.35}, 3.5
    if 300 <= second < 304:
        moment.errors = {"HTTP 429 rate_limit_exceeded": moment.rate * 0.8}
    if 304 <= second < 319:
        moment.rate, moment.waits = 0.0, {WaitCause.PAUSE: 1.0}
    if second >= 440:
        moment.rate, moment.waits, moment.latency_s = 1.0, {WaitCause.ANSWERS: 0.99}, 22.0
    if second % 50 == 0:
        moment.errors = {**moment.errors, "connection error": 2.0}
    return moment


def faulty() -> RunReport:
    """A run that had all sorts of trouble, and ended."""
    samples = timeline(480, _of_faulty, step=2)
    last = samples[-1]
    changes = ((0.4, 1200.0), (121.3, 600.0))
    requests = LimitReport(
        name="requests", found=600.0, changes=changes, used=float(last.attempts), used_share=0.972
    )
    tokens = LimitReport(
        name="tokens", found=2e6, used=float(last.reserved_tokens), used_share=0.412
    )
    bucket = _bucket(
        last,
        model="gpt-4o-mini",
        rejections=last.rate_limited,
        pauses=1,
        peak_in_flight=81,
        limits=(requests, tokens),
    )
    errors = {"HTTP 400 invalid_request_error": 9, "HTTP 503 server_error": 3}
    failures = [note(n, error=f"HTTP 400 invalid_request_error: {BAD_PART}") for n in range(9)]
    summary = _summary(samples, pauses=1, errors_by_kind=errors, buckets=(bucket,))
    folder = "/home/someone/evals/2026-01"
    return _report(
        480,
        summary,
        samples,
        requests_path=f"{folder}/requests.jsonl",
        save_path=f"{folder}/requests_results.jsonl",
        slowest=tuple(note(n, latency_s=61.2 - n * 2.7) for n in range(10)),
        failures=tuple(failures),
    )


BAD_PART = (
    "Invalid 'messages[1].content': string too long. Expected a string with maximum length "
    "1048576, but got a string with length 1310722 instead. (request id req_0123456789abcdef)"
)


def note(number: int, *, latency_s: float | None = 1.5, error: str = "") -> RequestNote:
    """A request that a report names."""
    return RequestNote(
        number=4711 + 1013 * number,
        custom_id=f"eval-{number:04}-question",
        model="gpt-4o-mini",
        attempts=1 + number % 3,
        latency_s=latency_s,
        error=error,
        kind=error.partition(":")[0],
    )


def empty() -> RunReport:
    """A run of an empty file."""
    paths = {"requests_path": "empty.jsonl", "save_path": "empty_results.jsonl"}
    return _report(0.02, Summary(elapsed_s=0.02), (Sample(at_s=0.0),), **paths)


def running() -> RunReport:
    """A run that is under way, slowed by reservations of tokens, with a limit typed too low."""
    waits = {WaitCause.TOKENS: 0.91, WaitCause.REQUESTS: 0.03}
    samples = timeline(
        95, lambda _: Moment(limit=1500, token_limit=1e6, rate=9, reserved=1850, waits=waits)
    )
    used = float(samples[-1].attempts)
    limits = (
        LimitReport(name="requests", configured=1500.0, used=used, used_share=0.35),
        LimitReport(name="tokens", configured=1e6, used=1.58e6, used_share=0.992),
        LimitReport(name="requests", found=5000.0, changes=((0.3, 5000.0),), used_share=0.1),
        LimitReport(name="tokens", found=4e6, changes=((0.3, 4e6),), used=1.58e6, used_share=0.25),
    )
    bucket = _bucket(samples[-1], model="gpt-4o", peak_in_flight=14, limits=limits)
    summary = _summary(samples, buckets=(bucket,), already_answered=12_400)
    slowest = tuple(note(n, latency_s=6.1 - n * 0.3) for n in range(5))
    return _report(95, summary, samples, is_running=True, fraction=0.37, slowest=slowest)


def unlimited() -> RunReport:
    """A run against a server of one's own, without limits."""
    waits = {WaitCause.CONCURRENCY: 0.05, WaitCause.INPUT: 0.1}
    samples = timeline(
        20, lambda s: Moment(rate=2400 if s > 3 else 600, latency_s=0.02, waits=waits, used=30)
    )
    url = "http://127.0.0.1:8000/v1/embeddings"
    in_flight = {"in_flight_limit": 48.0, "peak_in_flight": 64}
    bucket = _bucket(samples[-1], url=url, model="bge-m3", **in_flight)
    summary = _summary(samples, buckets=(bucket,), failed=0)
    return _report(20, summary, samples, url=url, max_workers=256)


def many_models(number: int = 10) -> RunReport:
    """A long run of several models that was stopped by an account without money."""
    samples = timeline(
        400, lambda _: Moment(limit=6000, token_limit=9e6, rate=84, waits={WaitCause.REQUESTS: 0.5})
    )
    samples = tuple(
        replace(s, at_s=s.at_s * 23, waited_s={k: v * 23 for k, v in s.waited_s.items()})
        for s in samples
    )
    buckets = tuple(
        BucketReport(
            url=URL,
            model=f"vendor/model-{n}-with-a-rather-long-name-2026-01-05",
            waited_s={WaitCause.REQUESTS: 9000.0 / (n + 1), WaitCause.TOKENS: 90.0 * n},
            admitted=9000 // (n + 1),
            rejections=n,
            pauses=n // 3,
            answered=8900 // (n + 1),
            reserved_tokens=9_000_000 // (n + 1),
            used_tokens=4_000_000 // (n + 1),
            peak_in_flight=50 + n,
            limits=(
                LimitReport(name="requests", configured=6000.0, used=33600.0, used_share=0.84),
                LimitReport(name="requests", found=500.0, used=9000.0 / (n + 1), used_share=0.9),
                LimitReport(name="requests", window_s=86400.0, found=1e5, used=9e3, used_share=0.1),
                LimitReport(name="tokens", tried_per_minute=123456.7, used=9e6 / (n + 1)),
            ),
        )
        for n in range(number)
    )
    reason = "HTTP 429 insufficient_quota: You exceeded your current quota, check your plan."
    stop = {"stop_reason": reason, "stop_cause": StopCause.QUOTA}
    summary = _summary(samples, buckets=buckets, unanswered=41, **stop)
    return _report(9200, summary, samples, fraction=0.58)


ALL = {make.__name__: make for make in (faulty, empty, running, unlimited, many_models)}
