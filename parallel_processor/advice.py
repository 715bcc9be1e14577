"""What to change, as far as the figures of a run tell.

Each rule is a function from a report to a sentence or nothing. What the figures don't support is not said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

from parallel_processor.figures import BucketReport, RunReport
from parallel_processor.headline import (
    allowed_by,
    binding_limit,
    busy_share,
    elapsed_s,
    held_share,
    limit_text,
    main_cause,
)
from parallel_processor.models import CANT_BE_SENT
from parallel_processor.wording import count, kind_text, number_of, share_text

_MUCH = 1 / 3  # of the time
_LEAST_SHARE, _LEAST_COUNT = 0.02, 3  # of all attempts: errors below are chance
_LEAST_S = 10.0
_MANY_REFUSALS = 0.05
_RESERVED_TOO_MUCH = 3.0  # times what was used
_CLEARLY = 1.1  # times
_USED = 0.9  # of a limit
_FLAGS = {"requests": "--max_requests_per_minute", "tokens": "--max_tokens_per_minute"}
_SERVER_ERROR = re.compile(r"HTTP 5\d\d|overloaded|slow_down", re.IGNORECASE)
_OF_THE_REQUEST = re.compile(r"HTTP 4(?!0[138]\b|29\b)\d\d|can't be sent|invalid request")
_OWN_STOP = re.compile(r"interrupted|stopped by|the processor was closed", re.IGNORECASE)
_REMEDIES = (  # for a fatal answer, by its text
    (
        re.compile(r"quota|billing|credit|spend|insufficient|HTTP 402", re.IGNORECASE),
        "Put money into the account, or raise its spending limit",
    ),
    (
        re.compile(r"api.?key|authenti|permission|HTTP 40[13]", re.IGNORECASE),
        "Put the API key right (`--api_key_file`, or the variable `OPENAI_API_KEY`)",
    ),
    (
        re.compile(r"can't reach", re.IGNORECASE),
        "Check `--request_url`, the network, and whether the server runs",
    ),
    (re.compile(r"asks to wait"), "Wait for as long as the server asks"),
    (re.compile(r"can't write|no space", re.IGNORECASE), "Make room on the disk"),
)


def advice(report: RunReport) -> tuple[str, ...]:
    """What to change, the most urgent first, in plain text with code in backquotes; never empty."""
    rules = (_stopped, _failed, _refused, _timeouts, _server_errors, _raise_typed, _reserved)
    found = [text for rule in rules for text in rule(report)]
    found += [text for rule in (_workers, _machine, _others) for text in rule(report)]
    return tuple(found) or (_nothing(report),)


def _errors(report: RunReport) -> Mapping[str, int]:
    """The failed attempts by kind."""
    return report.timeline[-1].errors if report.timeline else {}


def _held(report: RunReport, *causes: str) -> float:
    """The share of the time that ``causes`` took; none of a run too short to tell."""
    return held_share(report, *causes) if elapsed_s(report) >= _LEAST_S else 0.0


def _is_frequent(report: RunReport, number: int) -> bool:
    return number >= max(_LEAST_COUNT, _LEAST_SHARE * report.summary.attempts)


def _stopped(report: RunReport) -> Iterator[str]:
    reason = report.summary.stop_reason
    if not reason or report.is_running:
        return
    if _OWN_STOP.search(reason):
        yield "Run the same command again to go on where it stopped."
        return
    remedy = next((text for words, text in _REMEDIES if words.search(reason)), "")
    remedy = remedy or "Put right what it stopped for"
    yield f"{remedy}, and run the same command again: it goes on where it stopped."


def _failed(report: RunReport) -> Iterator[str]:
    kinds = report.summary.errors_by_kind
    if lines := kinds.get(CANT_BE_SENT, 0):
        which = "line" if lines == 1 else f"{count(lines)} lines"
        yield f"Put the {which} right that can't be sent, for the reasons that are said below."
    failed = report.summary.failed - lines
    number = failed + report.summary.already_failed
    if not number:
        return
    which = "failed request" if number == 1 else f"{count(number)} failed requests"
    own = sum(n for kind, n in kinds.items() if _OF_THE_REQUEST.match(kind)) - lines
    again = "run the same command again once this run has ended" if report.is_running else ""
    again = again or "run the same command again"
    if own > failed / 2:
        yield (
            f"Look at the reasons of the {which} below and put them right in the file: the "
            f"server rejects what they say. Then {again}, and only they are sent."
        )
    else:
        yield (
            f"Look at the reasons of the {which} below, and {again}: "
            "only what has no answer is sent."
        )


def _refused(report: RunReport) -> Iterator[str]:
    """A limit that was typed too high, or one that others use as well."""
    summary = report.summary
    if summary.rate_limited < _LEAST_COUNT:
        return
    is_often = summary.rate_limited >= _MANY_REFUSALS * summary.attempts
    share = f"{share_text(summary.rate_limited / summary.attempts)} of the attempts were refused"
    bucket = max(summary.buckets, key=lambda b: b.refusals, default=BucketReport(url="", model=""))
    others = sum(li.others_per_minute or 0.0 for li in bucket.limits if li.name == "requests")
    paused = _held(report, "pause")
    for name, flag in _FLAGS.items():
        typed, allowed = _typed(bucket, name), _allowed(bucket, name, tried=is_often)
        if allowed * _CLEARLY < typed < math.inf:
            yield (
                f"Type what the server allows: `{flag} auto`, or {count(allowed)} instead of "
                f"{count(typed)}{_of(report, bucket)}. {share}."
            )
            return
    yield from _cut(report, bucket)
    if not is_often:
        return
    if others >= 1:
        yield (
            f"Leave others of the account their share with `--headroom 0.1`: {share}, and other "
            f"programs seem to send {count(round(others))} requests/min."
        )
    elif paused >= _MUCH:
        yield (
            f"Type a lower limit, or shorter `--seconds_to_pause_after_rate_limit_error` if the "
            f"server doesn't say how long to wait: {share}, and sending paused "
            f"{share_text(paused)} of the time."
        )


def _cut(report: RunReport, bucket: BucketReport) -> Iterator[str]:
    """A rate that refusals hold below what the server says."""
    for limit in bucket.limits:
        tried, allowed = limit.tried_per_minute, allowed_by(limit)
        if tried is None or not tried * _CLEARLY < allowed < math.inf:
            continue
        if _held(report, limit.name) >= _MUCH:
            of_what = f"{count(allowed)} {kind_text(limit.name)}/min{_of(report, bucket)}"
            yield (
                "Find out who else uses the account, and leave them a share (`--headroom`), or why the "
                f"server refuses: {count(report.summary.rate_limited)} refusals cut the rate to "
                f"{count(tried)} of {of_what}. It grows back by itself."
            )
        return


def _typed(bucket: BucketReport, name: str) -> float:
    """The limit ``name`` as it was typed, a minute; infinite if it wasn't."""
    typed = [li.configured for li in bucket.limits if li.name == name]
    return min((number for number in typed if number is not None), default=math.inf)


def _allowed(bucket: BucketReport, name: str, *, tried: bool = True) -> float:
    """What the server allows of it, a minute, by its headers or by trying; infinite if it's unknown."""
    own = [li for li in bucket.limits if li.name == name and li.window_s == 60.0]
    numbers = [li.tried_per_minute if li.found is None and tried else li.found for li in own]
    return min((number for number in numbers if number is not None), default=math.inf)


def _of(report: RunReport, bucket: BucketReport) -> str:
    is_one = len(report.summary.buckets) == 1 or not bucket.model
    return "" if is_one else f" for {bucket.model}"


def _timeouts(report: RunReport) -> Iterator[str]:
    errors = _errors(report)
    if _is_frequent(report, number := errors.get("timeout", 0)):
        yield (
            f"Raise `--request_timeout`, or ask for shorter answers: {count(number)} attempts took "
            "too long, and may have been charged all the same."
        )
    if _is_frequent(report, number := errors.get("connect timeout", 0)):
        yield (
            f"Raise `--connect_timeout`, or lower `--max_workers`: {count(number)} connections "
            "were not made in time."
        )


def _server_errors(report: RunReport) -> Iterator[str]:
    number = sum(n for kind, n in _errors(report).items() if _SERVER_ERROR.search(kind))
    if _is_frequent(report, number):
        yield (
            f"The server failed or was overloaded in {count(number)} attempts, which are tried again by "
            "themselves. If that lasts, ask its operator, or send less at a time (`--max_workers`)."
        )


def _raise_typed(report: RunReport) -> Iterator[str]:
    """A typed limit that held the run back, below what the server's headers say."""
    for name, flag in _FLAGS.items():
        buckets = report.summary.buckets
        if not buckets or _held(report, name) < _MUCH:
            continue
        bucket = max(buckets, key=lambda b: b.held_by.get(name, 0.0))
        typed, allowed = _typed(bucket, name), _allowed(bucket, name, tried=False)
        if typed * _CLEARLY < allowed < math.inf:
            yield (
                f"Raise `{flag}` to {count(allowed)}, or to `auto`: the server's headers allow "
                f"that{_of(report, bucket)}, and {count(typed)} was typed."
            )


def _reserved(report: RunReport) -> Iterator[str]:
    """Tokens that were reserved for answers which didn't use them."""
    summary = report.summary
    is_held = _held(report, "tokens", "output_tokens") >= _MUCH
    if is_held and summary.reserved_tokens > _RESERVED_TOO_MUCH * summary.used_tokens > 0:
        times = summary.reserved_tokens / summary.used_tokens
        yield (
            f"Lower `max_tokens` in the requests: {times:,.1f} times as many tokens were reserved as "
            "the answers used. If the server's limit charges what is used, `--token_accounting usage` "
            "does the same."
        )


def _workers(report: RunReport) -> Iterator[str]:
    if (share := _held(report, "max_workers")) >= _MUCH:
        most = f" above {count(report.max_workers)}" if report.max_workers else ""
        yield (
            f"Raise `--max_workers`{most}, and `ulimit -n` with it: {share_text(share)} of the time "
            "as many requests were in flight as may be."
        )


def _machine(report: RunReport) -> Iterator[str]:
    """The machine, where no limit binds."""
    machine = _held(report, "input", "token counting")
    is_limited = any(
        math.isfinite(number_of(limit)) for b in report.summary.buckets for limit in b.limits
    )
    is_busy = elapsed_s(report) >= _LEAST_S and main_cause(report) in ("", "token counting")
    if not is_limited and report.summary.attempts and is_busy:
        yield (
            f"Spread the sending over more cores with `--processes {2 * report.processes}`: there is no "
            f"limit, and the machine was busy {share_text(max(busy_share(report), machine))} of "
            "the time."
        )
    elif machine >= _MUCH:
        yield (
            f"Look at what else this machine does, and how fast the requests come: "
            f"{share_text(machine)} of the time nothing was ready to be sent."
        )


def _others(report: RunReport) -> Iterator[str]:
    if (share := _held(report, "disk")) >= _MUCH:
        yield (
            f"Write to a faster disk (`--save_filepath`): {share_text(share)} of the time records "
            "waited to be written."
        )
    if (share := _held(report, "consumer")) >= _MUCH:
        yield (
            f"Take the outcomes faster: {share_text(share)} of the time they waited for the program "
            "that takes them."
        )
    if (share := _held(report, "look-ahead")) >= _MUCH:
        yield (
            f"Mix the models in the file: {share_text(share)} of the time too many requests of one "
            "model stood in front of the others."
        )
    if (share := _held(report, "answers")) >= _MUCH and report.summary.answered >= 100:
        yield (
            f"Look at the slowest requests below: {share_text(share)} of the time all was sent, and "
            "only the last answers were missing."
        )


def _nothing(report: RunReport) -> str:
    """That there is nothing to change, and why."""
    cause = main_cause(report)
    found = binding_limit(report, cause)
    if cause == "in flight":
        return "Nothing to change: as much was in flight as the server can take."
    if found is None or (found[1].used_share or 0.0) < _USED:
        return "Nothing to change."
    return (
        f"Nothing to change: the limit of {limit_text(found[1])} was used. Only a higher one makes "
        "it faster."
    )
