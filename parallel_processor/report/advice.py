"""What to change about a run, as far as its figures tell. The page and the command show the same.

A rule is a function from a summary to sentences. It decides by values, never by the text of a message.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from parallel_processor.exceptions import StopCause
from parallel_processor.models import INVALID_REQUEST, WaitCause
from parallel_processor.ratelimit.reports import BucketReport
from parallel_processor.report.headline import binding_limit, held_share, main_cause
from parallel_processor.report.summary import Summary
from parallel_processor.report.wording import count, limit_text, share_text

_MUCH = 1 / 3  # of the time
_SOME = 0.05  # of the time
_LEAST_S = 10.0  # a shorter run is too short to classify its waits
_LEAST_REJECTIONS = 3
_OFTEN = 0.05  # of the attempts
_RESERVED_TOO_MUCH = 3.0  # times what was used
_CLEARLY = 1.1  # times
_USED = 0.9  # of a limit
_FLAGS = {
    WaitCause.REQUESTS: "--max_requests_per_minute",
    WaitCause.TOKENS: "--max_tokens_per_minute",
}
_REMEDIES: Mapping[StopCause, str] = {
    StopCause.KEY: "Set or correct the key or the login in the URL, or clear up what the message says of "
    "the account",
    StopCause.QUOTA: "Add credit to the account, raise its spending limit, or wait for its quota",
    StopCause.UNREACHABLE: "Check `--request_url`, the network and its proxy, and whether the server runs",
    StopCause.SETUP: "Correct what the message names",
    StopCause.EQUAL_FAILURES: "Correct what the message names (or go on in spite of it with "
    "`--stop_after_equal_failures 0`)",
    StopCause.SERVER_WAIT: "Wait for as long as the server asks",
    StopCause.BUDGET: "Raise the bound that the message names",
    StopCause.PRICE: "Name a file with the model's price (`--prices`)",
    StopCause.DISK: "Make room on the disk, or make the results writable",
    StopCause.PROCESSES: "Use fewer `--processes`, or allow more processes and threads (`ulimit -u`, a "
    "container's limit of pids)",
    StopCause.PROGRAM: "Correct the error that stopped the run",
}
_NO_WORKERS = (
    "Correct what the message names, and use fewer `--num_workers` or `--max_workers` if processes or "
    "memory ran out"
)
_BY_WAIT: Mapping[WaitCause, str] = {
    WaitCause.MAX_WORKERS: "Allow more requests in flight (`--max_workers`, and `ulimit -n` if that is "
    "lower): {} of the time all workers were busy.",
    WaitCause.TOKEN_COUNTING: "Use more cores with `--processes`: {} of the time tokens were counted.",
    WaitCause.BUDGET: "Give the requests a `max_tokens` closer to what answers use: {} of the time, what "
    "those in flight may cost left no room in the budget for the next.",
    WaitCause.DISK: "Write to a faster disk (`--save_filepath`): {} of the time it was waited for.",
    WaitCause.CONSUMER: "Read the outcomes faster: {} of the time they waited to be read.",
    WaitCause.LOOK_AHEAD: "Mix the models in the file: {} of the time one model blocked the others.",
}
# What fails in the same way each time, if neither the requests nor the command are changed.
_LASTING = re.compile(
    r"HTTP (?:3|4(?!08|09|25|29|98))\d\d|answer too large|unexpected stream|unreadable answer"
)
_BY_FAILURE: Mapping[str, str] = {
    "answer too large": "Raise `--max_response_bytes`, or ask for shorter answers",
    "timeout": "Raise `--request_timeout`, or ask for shorter answers",
    "connect timeout": "Raise `--connect_timeout`, or lower `--max_workers`",
}


def advice(
    summary: Summary, *, is_running: bool = False, again: str = "the same command", resend: str = ""
) -> tuple[str, ...]:
    """What to change, the most urgent first; empty if the figures suggest nothing. Code is in backquotes.

    ``again`` names the command that continues the run, ``resend`` the one that also sends failed requests
    again, if that is another one.
    """
    found = []
    if not is_running:
        resend = resend or again
        found = [*_stopped(summary, again, resend)]
        found += _failed(summary, resend, is_told=bool(found) and resend == again)
    for rule in (_too_high, _shared, _lowered, _too_low, _reserved, _waits):
        found += rule(summary)
    return tuple(found)


def nothing_to_change(summary: Summary) -> str:
    """What to say where :func:`advice` is empty."""
    cause = main_cause(summary)
    found = binding_limit(summary, cause)
    if cause is WaitCause.CONCURRENCY:
        return "Nothing: the server had as many requests in flight as it can take."
    if found is None or (found[1].used_share or 0.0) < _USED:
        return "Nothing."
    faster = "Only a higher one is faster"
    if cause is not WaitCause.REQUESTS and summary.reserved_tokens > summary.used_tokens:
        faster += ", or a `max_tokens` in the requests that is closer to what the answers use"
    return f"Nothing: the limit of {limit_text(found[1])} was used. {faster}."


def _stopped(summary: Summary, again: str, resend: str) -> Iterator[str]:
    cause = summary.stop_cause
    is_done = summary.left == 0 and summary.left_is_exact
    if cause is StopCause.NOTHING and summary.left and summary.lines_keep_places:
        yield (
            f"Look at why blocks were set aside, then run {again} again: it sends what is left of them."
        )
    if cause is StopCause.NOTHING or (is_done and cause is StopCause.CALLER):
        return
    if cause is StopCause.READER_LEFT:
        yield (
            "Keep the program running that reads the results, or write them to a file: a pipe keeps no "
            "record of what was answered, so the next run sends everything again."
        )
        return
    remedy = _REMEDIES.get(cause)
    if cause is StopCause.PROCESSES and summary.lines_keep_places:
        remedy = _NO_WORKERS
    start = f"{remedy}, then run" if remedy else "Run"
    command = resend if cause is StopCause.EQUAL_FAILURES else again  # some of them are on record
    if cause in (StopCause.SETUP, StopCause.EQUAL_FAILURES):
        command = command.replace("the same command", "the command", 1)  # it may have to change
    yield f"{start} {command} again: it continues where it stopped."


def _failed(summary: Summary, again: str, *, is_told: bool) -> Iterator[str]:
    """What to do about failures. ``is_told`` says that the user was told to run ``again`` already."""
    if summary.stop_cause is StopCause.EQUAL_FAILURES:
        return  # the failures are what stopped it
    kinds = summary.errors_by_kind
    lines = kinds.get(INVALID_REQUEST, 0)
    failed = summary.failed + summary.already_failed - lines
    then = f", then run {again} again: it sends only what has no answer."
    if is_told:
        then = " as well."
    if lines:
        invalid = _number(lines, "invalid line")
        errors = "its error names" if lines == 1 else "their errors name"
        step = f"Correct the {invalid} of the requests file (or give the flag, if {errors} one)"
        if summary.lines_keep_places:
            step = (
                f"Send the {invalid}, corrected, from a file of their own: in this one a line may only "
                "be replaced by one of as many bytes"
            )
        is_alone = summary.lines_keep_places or (failed > 0 and not is_told)
        yield f"{step}." if is_alone else f"{step}{then}"
    if failed > 0:
        look = f"Look at the errors of the {_number(failed, 'failed request')}"
        lasting = [kind for kind in kinds if _LASTING.match(kind)]
        if not lasting:
            yield f"{look}{then}"
        elif any(kind.startswith("HTTP 4") for kind in lasting):
            yield f"{look}. Correct what the server rejects{then}"
        else:
            yield f"{look}. Correct what causes them{then}"
    for kind, remedy in _BY_FAILURE.items():
        if number := kinds.get(kind, 0):
            yield f"{remedy}: {_number(number, 'request')} failed with a {kind}."


def _too_high(summary: Summary) -> Iterator[str]:
    """A limit that was set higher than what the server allows."""
    if summary.rate_limited < _LEAST_REJECTIONS:
        return
    none = BucketReport(url="", model="")
    bucket = max(summary.buckets, key=lambda b: b.rejections, default=none)
    for cause in _FLAGS:
        typed, allowed = _typed(bucket, cause), _allowed(bucket, cause, tried=_is_often(summary))
        if allowed * _CLEARLY < typed < math.inf:
            place = _place(bucket, cause)
            number = ""  # what was found by trying is no more than a guess
            if _allowed(bucket, cause) < math.inf:
                number = f" or {count(allowed)}, which the server allows{_of(summary, bucket)},"
            step = f"Set {place} to `auto`{number} instead of {count(typed)}"
            if _is_leased(bucket, cause):
                step = f"Set {place} to about {count(allowed)} instead of {count(typed)}"
            yield f"{step}. {_rejections(summary)}."
            return


def _shared(summary: Summary) -> Iterator[str]:
    """A limit that other programs use as well."""
    limits = [limit for bucket in summary.buckets for limit in bucket.limits]
    others = sum(li.others_per_minute or 0.0 for li in limits if li.name == WaitCause.REQUESTS)
    if others >= 1 and _is_often(summary):
        yield (
            f"Leave other programs a share of the limit with `--headroom 0.1`: they seem to send "
            f"{count(round(others))} requests/min. {_rejections(summary)}."
        )


def _lowered(summary: Summary) -> Iterator[str]:
    """A limit that slowed the run, and that another process of the account has set."""
    for cause in _FLAGS:
        found = [li for bucket in summary.buckets for li in bucket.limits if li.name == cause]
        lowered = [li for li in found if li.in_force is not None]
        if not lowered or _share(summary, cause) < _MUCH:
            continue
        lowest = min(lowered, key=lambda li: li.in_force or 0.0)
        yield (
            f"Raise the limit of {limit_text(lowest, lowest.in_force)} in the other processes that use "
            f"the `--limiter`, or run two minutes after their end: the lowest limit that any of them "
            f"names holds for all, here in the place of {count(lowest.configured or 0.0)}."
        )


def _too_low(summary: Summary) -> Iterator[str]:
    """A limit that slowed the run, and is lower than what the server's headers say.

    One that nobody set is named however short the run was.
    """
    for cause in _FLAGS:
        if not summary.buckets or held_share(summary, cause) < _SOME:
            continue
        bucket = max(summary.buckets, key=lambda b: b.waited_s.get(cause, 0.0))
        typed, allowed = _typed(bucket, cause), _allowed(bucket, cause)
        if not typed * _CLEARLY < allowed < math.inf:
            continue
        place, of = _place(bucket, cause), _of(summary, bucket)
        choice = count(allowed) + ("" if _is_leased(bucket, cause) else " or `auto`")
        if any(li.is_default and li.name == cause for li in bucket.limits):
            yield (
                f"Set {place} to {choice}: no limit was set, so the default of "
                f"{count(typed)} held, but the server allows that{of}."
            )
        elif _share(summary, cause) >= _MUCH:
            yield (f"Raise {place} from {count(typed)} to {choice}: the server allows that{of}.")


def _reserved(summary: Summary) -> Iterator[str]:
    """Tokens that were reserved for answers which did not use them."""
    waited = _share(summary, WaitCause.TOKENS, WaitCause.OUTPUT_TOKENS)
    times = summary.reserved_tokens / summary.used_tokens if summary.used_tokens else 0.0
    if times > _RESERVED_TOO_MUCH and waited >= _MUCH:
        yield (
            f"Lower `max_tokens` in the requests: {times:,.1f} times as many tokens were reserved "
            "as used. If the server charges only used tokens, set `--token_accounting usage`."
        )


def _waits(summary: Summary) -> Iterator[str]:
    """What the run waited for, other than its limits."""
    for cause, remedy in _BY_WAIT.items():
        if (share := _share(summary, cause)) >= _MUCH:
            if summary.lines_keep_places:  # several workers
                remedy = remedy.replace("--processes", "--num_workers")
            yield remedy.format(share_text(share))


def _share(summary: Summary, *causes: WaitCause) -> float:
    """The share of the time that ``causes`` took; 0 for a run that is too short to classify."""
    return held_share(summary, *causes) if summary.elapsed_s >= _LEAST_S else 0.0


def _is_often(summary: Summary) -> bool:
    return summary.rate_limited >= max(_LEAST_REJECTIONS, _OFTEN * summary.attempts)


def _rejections(summary: Summary) -> str:
    share = summary.rate_limited / max(summary.attempts, 1)
    return f"{share_text(share)} of the attempts were rejected (429 or 503)"


def _typed(bucket: BucketReport, cause: WaitCause) -> float:
    """The limit that the user set, a minute; infinite without one, or if a lower one is in force."""
    own = (li for li in bucket.limits if li.name == cause and li.in_force is None)
    typed = [li.configured for li in own]
    return min((number for number in typed if number is not None), default=math.inf)


def _is_leased(bucket: BucketReport, cause: WaitCause) -> bool:
    """True if processes share the limit that the user set: then it can't be ``auto``."""
    return any(li.is_leased for li in bucket.limits if li.name == cause)


def _place(bucket: BucketReport, cause: WaitCause) -> str:
    """Where the lowest limit is set that the user set."""
    typed = [li for li in bucket.limits if li.name == cause and li.configured is not None]
    lowest = min(typed, key=lambda li: li.configured or 0.0)
    if lowest.pattern is None:
        return f"`{_FLAGS[cause]}`"
    return f"the limit of `{lowest.pattern}` in `--limits`"


def _allowed(bucket: BucketReport, cause: WaitCause, *, tried: bool = False) -> float:
    """What the server's headers allow a minute, or what was found by trying; infinite if unknown."""
    own = [li for li in bucket.limits if li.name == cause and li.window_s == 60.0]
    numbers = [li.tried_per_minute if li.found is None and tried else li.found for li in own]
    return min((number for number in numbers if number is not None), default=math.inf)


def _of(summary: Summary, bucket: BucketReport) -> str:
    return f" for {bucket.model}" if len(summary.buckets) > 1 and bucket.model else ""


def _number(number: int, what: str) -> str:
    return what if number == 1 else f"{count(number)} {what}s"
