"""Figures and causes in words, as the progress line, the summary and the page show them."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from parallel_processor.models import WaitCause
from parallel_processor.planning.costs import ModelCost
from parallel_processor.ratelimit.reports import BucketReport, LimitReport

_MILLION = 1e6
_LEAST_SHARE = 0.01  # of the time: a cause that took less is not named
_CAUSE_TEXTS: Mapping[WaitCause, str] = {
    WaitCause.NOTHING: "nothing",
    WaitCause.REQUESTS: "the request limit",
    WaitCause.TOKENS: "the token limit",
    WaitCause.INPUT_TOKENS: "the input token limit",
    WaitCause.OUTPUT_TOKENS: "the output token limit",
    WaitCause.LIMITER: "the limiter, which can't be reached",
    WaitCause.PAUSE: "a pause (429, timeouts, or a server that is not ready)",
    WaitCause.CONCURRENCY: "the limit of requests in flight",
    WaitCause.MAX_WORKERS: "a free worker (max_workers)",
    WaitCause.DISK: "the disk",
    WaitCause.CONSUMER: "the program that reads the outcomes",
    WaitCause.INPUT: "the input or the CPU",
    WaitCause.TOKEN_COUNTING: "token counting (CPU)",
    WaitCause.LOOK_AHEAD: "other models' requests (read-ahead is full)",
    WaitCause.ANSWERS: "the last answers",
    WaitCause.BUDGET: "what answers under way leave of the budget",
}


def cause_text(cause: WaitCause) -> str:
    """What a run waits for."""
    return _CAUSE_TEXTS[cause]


def waits_text(waited_s: Mapping[WaitCause, float], elapsed_s: float, most: int = 3) -> str:
    """What was waited for, the longest first: ``84 % the request limit, 3 % the disk``."""
    shares = [
        f"{share_text(min(seconds / elapsed_s, 1.0))} {cause_text(cause)}"
        for cause, seconds in sorted(waited_s.items(), key=lambda item: -item[1])
        if elapsed_s > 0 and seconds >= _LEAST_SHARE * elapsed_s
    ]
    return ", ".join(shares[:most]) or cause_text(WaitCause.NOTHING)


def count(number: float) -> str:
    """``number`` with thousands separators; a small one with its decimals."""
    if not math.isfinite(number):
        return "no limit"
    return f"{number:,.0f}" if abs(number) >= 100 or number == int(number) else f"{number:.3g}"


def counted(number: int, what: str) -> str:
    """``number`` of ``what``: 1 block, 1,200 blocks."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def round_text(number: float) -> str:
    """``number`` with two digits that count."""
    return f"{float(f'{number:.2g}'):,.0f}"


def money(dollars: float) -> str:
    """``dollars`` as $1,234, $12.34 or $0.00123."""
    if abs(dollars) >= 1000:
        return f"${dollars:,.0f}"
    return f"${dollars:.2f}" if abs(dollars) >= 1 or not dollars else f"${dollars:.3g}"


def cost_name(cost: ModelCost) -> str:
    """What a model's costs are called."""
    return (cost.model or "requests without a model") + (f" ({cost.tier})" if cost.tier else "")


def tick_text(number: float) -> str:
    """``number`` as short as it can be written exactly."""
    if abs(number) >= 10 * _MILLION:
        return f"{number / _MILLION:,.10g} M"
    if number == int(number):
        return f"{number:,.0f}"
    return f"{number:.10g}"


def clock_text(seconds: float) -> str:
    """``seconds`` as 1:02:03."""
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    return f"{minutes // 60:,}:{minutes % 60:02}:{rest:02}"


def latency_text(seconds: float | None) -> str:
    """``seconds`` as 1.23 s, or 0:01:40 from 100 s on."""
    if seconds is None:
        return ""
    return clock_text(seconds) if seconds >= 100 else f"{seconds:.3g} s"


def share_text(share: float) -> str:
    """``share`` as 84 %."""
    if math.isnan(share):
        return "?"
    return f"{share * 100:.0f} %" if share >= 0.01 or share <= 0 else "< 1 %"


def moment_text(when: float) -> str:
    """``when``, in seconds since 1970, in local time and in UTC."""
    here, utc = time.localtime(when), time.gmtime(when)
    if here.tm_gmtoff == 0:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", utc)
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", here) + time.strftime(" (%H:%M:%S UTC)", utc)


def kind_text(name: str) -> str:
    """What a limit counts: ``input_tokens`` as input tokens."""
    return name.replace("_", " ")


def window_text(window_s: float) -> str:
    """The unit of a limit's time: min, day, 90 s."""
    whole = {1.0: "s", 60.0: "min", 3600.0: "h", 86400.0: "day"}
    return whole.get(window_s, f"{window_s:,g} s")


def number_of(limit: LimitReport) -> float:
    """What the limit allows in its window: the least of what is known of it."""
    tried = limit.tried_per_minute
    return min(allowed_by(limit), math.inf if tried is None else tried)


def allowed_by(limit: LimitReport) -> float:
    """What the user or another process set or the server says; infinite if none of them is known.

    Of several the least.
    """
    numbers = (limit.configured, limit.in_force, limit.found)
    return min((number for number in numbers if number is not None), default=math.inf)


def limit_text(limit: LimitReport, number: float | None = None) -> str:
    """The limit, or ``number`` of its kind: 1,200 requests/min."""
    number = number_of(limit) if number is None else number
    return f"{count(number)} {kind_text(limit.name)}/{window_text(limit.window_s)}"


def bucket_name(bucket: BucketReport, among: Sequence[BucketReport] = ()) -> str:
    """The model, or the endpoint where it has no name; both if the model has several of ``among``.

    If ``among`` has several hosts or keys, the one that it is.
    """
    _, host, path, *_ = urlsplit(bucket.url)
    others = [each for each in among if each.model == bucket.model]
    name = bucket.model or path or "all"
    name += bucket.tier and f"@{bucket.tier}"
    if any(urlsplit(each.url).netloc not in (host, "") for each in among) and host:
        name += f" at {host}"
        others = [each for each in others if urlsplit(each.url).netloc == host]
    if bucket.model and any(each.url != bucket.url for each in others):
        name += f" ({path or 'other URLs'})"
    if any(each.url == bucket.url and each.key != bucket.key for each in others):
        name += f" with key {bucket.key + 1}"
    return name


def _counts_text(bucket: BucketReport, among: Sequence[BucketReport]) -> str:
    """The attempts and requests of a bucket; empty if it is the only one and had all of them."""
    is_alone = all(each is bucket or not each.admitted for each in among)
    if is_alone and not (bucket.tier or bucket.moved_on):
        return ""
    failed, share = max(0, bucket.admitted - bucket.answered), _share_of_alike(bucket, among)
    text = f"{bucket.admitted:,} sent{share}, {bucket.answered:,} answered, {failed:,} failed"
    text += f"; {counted(bucket.moved_on, 'request')} moved on" if bucket.moved_on else ""
    text += f"; {bucket.downgraded:,} answered by another tier" if bucket.downgraded else ""
    return f"{text}; {bucket.used_tokens:,} tokens" if bucket.used_tokens else text


def _share_of_alike(bucket: BucketReport, among: Sequence[BucketReport]) -> str:
    """Of what several servers or keys were sent for its model, the share; empty for a single one."""
    path = urlsplit(bucket.url).path
    alike = [
        each
        for each in among
        if (each.model, each.tier) == (bucket.model, bucket.tier)
        and (each.key or urlsplit(each.url).path == path)
    ]
    sent = sum(each.admitted for each in alike)
    if len({(each.url, each.key) for each in alike}) < 2 or not sent:
        return ""
    return f" ({share_text(bucket.admitted / sent)})"


def bucket_text(
    bucket: BucketReport, elapsed_s: float, among: Sequence[BucketReport] = ()
) -> tuple[str, str]:
    """The bucket's name, and in one line what its requests waited for and what its limits were."""
    words = [text] if (text := _counts_text(bucket, among)) else []
    words.append(f"waited for {waits_text(bucket.waited_s, elapsed_s)}")
    words += [_outcome_text(limit, bucket) for limit in _tightest(bucket.limits)]
    if (
        bucket.in_flight_limit is not None
        and bucket.peak_in_flight >= bucket.in_flight_limit > 0 < bucket.answered
    ):
        words.append(f"limited to {bucket.in_flight_limit:,.0f} requests in flight")
    return bucket_name(bucket, among), "; ".join(words)


def _tightest(limits: Sequence[LimitReport]) -> Sequence[LimitReport]:
    """Of the configured and the found limit of one kind, the lower one."""
    kept: dict[tuple[str, float], LimitReport] = {}
    for limit in limits:
        key = (limit.name, limit.window_s)
        if key not in kept or number_of(limit) < number_of(kept[key]):
            kept[key] = limit
    return tuple(kept.values())


def _outcome_text(limit: LimitReport, bucket: BucketReport) -> str:
    """A limit of ``bucket``, where it comes from, and how much of it was used."""
    allowed, tried = allowed_by(limit), limit.tried_per_minute
    if math.isinf(allowed):
        none = f"no limit of {kind_text(limit.name)}"
        if tried is None or not bucket.answered:
            return none
        return (
            f"{limit_text(limit)} found by trying"
            if bucket.rejections
            else f"{none} met up to {count(tried)}/min"
        )
    text = limit_text(limit, allowed) + (" found" if limit.configured is None else "")
    if limit.in_force is not None and limit.in_force == allowed:
        text += f", which another process set, instead of {count(limit.configured or 0.0)}"
    if tried is not None and tried < allowed:
        text += f", reduced to {count(tried)} after rejections (429)"
    if limit.used_share is not None:
        number = len(limit.changes) - 1  # the first one is how it began
        changes = f", changed {number} time{'' if number == 1 else 's'}" if number > 0 else ""
        text += f" ({share_text(min(limit.used_share, 1.0))} used{changes})"
    return text
