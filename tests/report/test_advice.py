"""What to change: each rule speaks where the figures support it, and is silent where they don't."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import reports

from parallel_processor.cluster.tally import ClusterSummary
from parallel_processor.exceptions import StopCause
from parallel_processor.models import INVALID_REQUEST, WaitCause
from parallel_processor.ratelimit.reports import BucketReport, LimitReport
from parallel_processor.report.advice import advice, nothing_to_change
from parallel_processor.report.headline import headline
from parallel_processor.report.samples import RunReport
from parallel_processor.report.summary import Summary

URL = "https://api.example.com/v1/chat/completions"
REQUESTS, TOKENS = WaitCause.REQUESTS, WaitCause.TOKENS


def limit(name: str = "requests", **more: Any) -> LimitReport:
    """What a limit was."""
    return LimitReport(name=name, **more)


def run(*limits: LimitReport, rejections: int = 0, **more: Any) -> Summary:
    """A run of 100 s with 1,000 attempts and one model with these limits."""
    model = BucketReport(url=URL, model="m", limits=limits, rejections=rejections)
    figures = {"attempts": 1000, "answered": 1000, "elapsed_s": 100.0, "buckets": (model,)}
    return Summary(**(figures | {"rate_limited": rejections} | more))


def said(summary: Summary, **more: Any) -> str:
    """The headline of a run."""
    return headline(RunReport(summary=summary, started_at=0.0, written_at=100.0, **more))


TYPED = limit(configured=600.0, used_share=0.5)
LEASED = limit(configured=600.0, is_leased=True)
LOWERED = limit(configured=600.0, in_force=60.0)
UNTYPED = limit(configured=1500.0, is_default=True)
OF_PATTERN = limit(configured=300.0, pattern="gpt*")
TYPED_TOKENS = limit("tokens", configured=90_000.0)
WAITED = {REQUESTS: 90.0}
WAITED_FOR_TOKENS = {TOKENS: 50.0}


@pytest.mark.parametrize(
    ("summary", "start"),
    [
        (run(stop_cause=StopCause.KEY), "Set or correct the key or the login in the URL"),
        (run(stop_cause=StopCause.QUOTA), "Add credit to the account, raise its spending limit"),
        (
            run(stop_cause=StopCause.UNREACHABLE),
            "Check `--request_url`, the network and its proxy, and",
        ),
        (run(stop_cause=StopCause.SERVER_WAIT), "Wait for as long as the server asks, then run"),
        (run(stop_cause=StopCause.DISK), "Make room on the disk, or make the results writable"),
        (
            run(stop_cause=StopCause.PROCESSES),
            "Use fewer `--processes`, or allow more processes and",
        ),
        (
            run(stop_cause=StopCause.SETUP),
            "Correct what the message names, then run the command aga",
        ),
        (
            run(stop_cause=StopCause.EQUAL_FAILURES, failed=20, errors_by_kind={"HTTP 404": 20}),
            "Correct what the message names (or go on in spite of it with `--stop_after_equal_failur",
        ),
        (
            run(failed=5, errors_by_kind={"HTTP 429 rate_limit": 4}),  # nothing to correct
            "Look at the errors of the 5 failed requests, then run the same command again: it sends",
        ),
        (
            run(failed=5, errors_by_kind={"HTTP 302": 4, "timed out": 1}),  # the same each time
            "Look at the errors of the 5 failed requests. Correct what causes them, then run the sa",
        ),
        (run(stop_cause=StopCause.PROGRAM), "Correct the error that stopped the run, then run the"),
        (run(stop_cause=StopCause.CALLER), "Run the same command again: it continues where it"),
        (
            run(failed=5, errors_by_kind={"timed out": 4, "HTTP 404 not_found": 1}),
            "Look at the errors of the 5 failed requests. Correct what the server rejects, then run",
        ),
        (
            run(failed=5, errors_by_kind={"HTTP 500 server_error": 5}),  # nothing to correct
            "Look at the errors of the 5 failed requests, then run the same command again: it sends",
        ),
        (run(already_failed=1), "Look at the errors of the failed request, then run the same"),
        (
            run(failed=3, errors_by_kind={INVALID_REQUEST: 3}),
            "Correct the 3 invalid lines of the requests file (or give the flag, if their errors "
            "name one), then run the same command again",
        ),
        (
            run(failed=1, errors_by_kind={INVALID_REQUEST: 1}),
            "Correct the invalid line of the requests file (or give the flag, if its error names one), "
            "then run the same command again",
        ),
        (
            run(TYPED, limit(tried_per_minute=300.4), rejections=60),
            "Set `--max_requests_per_minute` to `auto` instead of 600. 6 % of the attempts were "
            "rejected (429 or 503).",
        ),
        (
            run(TYPED, limit(found=300.0), rejections=3),  # few are enough where a header says so
            "Set `--max_requests_per_minute` to `auto` or 300, which the server allows, instead of",
        ),
        (
            run(TYPED_TOKENS, limit("tokens", found=3e4), rejections=60),
            "Set `--max_tokens_per_minute` to `auto` or 30,000, which the server allows, instead",
        ),
        (
            run(limit(found=600.0, others_per_minute=200.2), rejections=60),
            "Leave other programs a share of the limit with `--headroom 0.1`: they seem to send 200",
        ),
        (
            run(TYPED, limit(found=5000.0), waited_s=WAITED),
            "Raise `--max_requests_per_minute` from 600 to 5,000 or `auto`: the server allows that.",
        ),
        (
            run(TYPED_TOKENS, limit("tokens", found=3e5), waited_s=WAITED_FOR_TOKENS),
            "Raise `--max_tokens_per_minute` from 90,000 to 300,000 or `auto`",
        ),
        (
            run(LEASED, limit(found=5000.0), waited_s=WAITED),
            "Raise `--max_requests_per_minute` from 600 to 5,000: the server allows that.",
        ),
        (
            run(LEASED, limit(found=300.0), rejections=3),
            "Set `--max_requests_per_minute` to about 300 instead of 600. ",
        ),
        (
            run(LOWERED, limit(found=9e4), waited_s=WAITED),
            "Raise the limit of 60 requests/min in the other processes that use the `--limiter`",
        ),
        (
            run(UNTYPED, limit(found=3e4), waited_s={REQUESTS: 0.5}, elapsed_s=5.0),
            "Set `--max_requests_per_minute` to 30,000 or `auto`: no limit was set, so the default of "
            "1,500 held, but the server allows that.",
        ),
        (
            run(TYPED, OF_PATTERN, limit(found=5000.0), waited_s=WAITED),
            "Raise the limit of `gpt*` in `--limits` from 300 to 5,000 or `auto`: the server allows",
        ),
        (
            run(OF_PATTERN, limit(found=100.0), rejections=60),
            "Set the limit of `gpt*` in `--limits` to `auto` or 100, which the server allows, instead",
        ),
        (
            run(waited_s=WAITED_FOR_TOKENS, reserved_tokens=4500, used_tokens=1000),
            "Lower `max_tokens` in the requests: 4.5 times as many tokens were reserved as used. If",
        ),
        (
            run(waited_s={WaitCause.MAX_WORKERS: 60.0}),
            "Allow more requests in flight (`--max_workers`, and `ulimit -n` if that is lower): 60 %",
        ),
        (run(waited_s={WaitCause.TOKEN_COUNTING: 80.0}), "Use more cores with `--processes`: 80 %"),
        (run(waited_s={WaitCause.DISK: 40.0}), "Write to a faster disk (`--save_filepath`): 40 %"),
        (run(waited_s={WaitCause.CONSUMER: 40.0}), "Read the outcomes faster: 40 % of the time"),
        (run(waited_s={WaitCause.LOOK_AHEAD: 40.0}), "Mix the models in the file: 40 % of the"),
    ],
)
def test_a_rule_speaks(summary: Summary, start: str) -> None:
    """Where the figures support it, its sentence is the only advice."""
    (text,) = advice(summary)
    assert text.startswith(start)
    assert text.endswith(".")


@pytest.mark.parametrize(
    "summary",
    [
        run(TYPED),
        run(stop_cause=StopCause.CALLER, left=0, left_is_exact=True),  # it was at its end
        run(TYPED, limit(tried_per_minute=300.0), rejections=40),
        run(TYPED, limit(tried_per_minute=590.0), rejections=60),
        run(TYPED, limit(found=300.0), rejections=2),
        run(limit(tried_per_minute=300.0), rejections=60, waited_s={WaitCause.PAUSE: 20.0}),
        run(limit(found=600.0, others_per_minute=200.2), rejections=40),
        run(limit(found=600.0, others_per_minute=0.4), rejections=60),
        run(TYPED, limit(found=5000.0), waited_s={REQUESTS: 20.0}),
        run(UNTYPED, limit(found=5000.0), waited_s={REQUESTS: 0.1}),
        run(UNTYPED, limit(found=1400.0), waited_s=WAITED),
        run(TYPED, limit(found=610.0), waited_s=WAITED),
        run(LOWERED, limit(found=300.0), rejections=3),
        run(TYPED, limit(tried_per_minute=5000.0), waited_s=WAITED),
        run(TYPED, limit(found=5000.0, window_s=86400.0), waited_s=WAITED),
        run(waited_s=WAITED, reserved_tokens=9000, used_tokens=1000),
        run(waited_s=WAITED_FOR_TOKENS, reserved_tokens=2900, used_tokens=1000),
        run(waited_s=WAITED_FOR_TOKENS, reserved_tokens=2900, used_tokens=0),
        run(waited_s={cause: 20.0 for cause in WaitCause if cause}),
        run(attempts=0, answered=0, buckets=()),
        run(waited_s={WaitCause.MAX_WORKERS: 4.0}, elapsed_s=5.0),
    ],
)
def test_the_rules_are_silent(summary: Summary) -> None:
    """Just below each threshold there is nothing to change."""
    assert advice(summary) == ()
    assert nothing_to_change(summary) == "Nothing."


def test_failures_that_a_setting_prevents_name_it() -> None:
    """Requests that failed with a timeout call for a longer one."""
    kinds = {"timeout": 20, "connect timeout": 1, "HTTP 500": 9}
    _, timeout, connect = advice(run(failed=30, errors_by_kind=kinds))
    assert timeout.startswith("Raise `--request_timeout`, or ask for shorter answers: 20 requests")
    assert connect.startswith("Raise `--connect_timeout`")


def test_a_limit_that_was_used_is_named() -> None:
    """Where the limit itself is the speed, that is said."""
    used = run(limit(found=1200.0, used_share=0.97), waited_s=WAITED)
    assert advice(used) == ()
    assert nothing_to_change(used).startswith("Nothing: the limit of 1,200 requests/min was used.")
    text = nothing_to_change(run(waited_s={WaitCause.CONCURRENCY: 90.0}))
    assert text == "Nothing: the server had as many requests in flight as it can take."


def test_a_model_is_named_among_several() -> None:
    """With several models it is said whose limit was set too low."""
    summary = run(TYPED, limit(found=5000.0), waited_s=WAITED)
    other = BucketReport(url=URL, model="other")
    assert " for m" not in advice(summary)[0]
    both = replace(summary, buckets=(*summary.buckets, other))
    assert advice(both)[0].endswith("the server allows that for m.")


def test_lines_that_cant_be_sent_are_not_called_rejected() -> None:
    """No server has seen them; what failed at the server is spoken of by itself."""
    first, second = advice(run(failed=8, errors_by_kind={INVALID_REQUEST: 3, "HTTP 400": 5}))
    assert first.startswith("Correct the 3 invalid lines")
    assert second.startswith("Look at the errors of the 5 failed requests.")


def test_no_line_is_to_be_corrected_where_its_length_counts() -> None:
    """The parts of several workers are of bytes: a longer line would move all that follow it."""
    told = advice(ClusterSummary(failed=3, errors_by_kind={INVALID_REQUEST: 3}))
    assert told[0].startswith("Send the 3 invalid lines, corrected, from a file of their own")
    assert "again" not in " ".join(told)


def test_a_stop_comes_first_and_names_the_command() -> None:
    """What stopped the run is the first thing to put right; the command may be another one."""
    stopped = run(TYPED, stop_cause=StopCause.KEY, failed=3, rejections=500)
    first, second, *_ = advice(stopped, again="this", resend="that")
    assert first.endswith("then run this again: it continues where it stopped.")
    assert second.endswith("then run that again: it sends only what has no answer.")


def test_a_running_run_is_not_run_again() -> None:
    """While it goes on, the advice is not to start it a second time."""
    running = run(failed=1, waited_s={WaitCause.DISK: 40.0})
    (text,) = advice(running, is_running=True)
    assert text.startswith("Write to a faster disk")


def test_a_stopped_run_names_one_command_to_go_on_with() -> None:
    """What is to be corrected besides is said without a second command."""
    kinds = {INVALID_REQUEST: 1, "HTTP 400": 2}
    stopped = run(stop_cause=StopCause.UNREACHABLE, failed=3, errors_by_kind=kinds)
    check, line, errors = advice(stopped)
    assert check.endswith("then run the same command again: it continues where it stopped.")
    assert line.startswith("Correct the invalid line of the requests file (or give the flag")
    assert line.endswith(" as well.")
    assert errors.endswith("Correct what the server rejects as well.")
    parts = ClusterSummary(
        failed=1, errors_by_kind={INVALID_REQUEST: 1}, stop_cause=StopCause.UNREACHABLE
    )
    assert advice(parts)[1].endswith("replaced by one of as many bytes.")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            said(run(limit(found=1200.0, used_share=0.974), waited_s={REQUESTS: 84.0})),
            "Sending waited 84 % of the time for the limit of 1,200 requests/min (97 % used).",
        ),
        (
            said(run(limit(found=1200.0), waited_s={REQUESTS: 84.0}), is_running=True),
            "Sending waited 84 % of the time so far for the limit of 1,200 requests/min.",
        ),
        (
            said(run(limit(window_s=86400.0, found=1200.0), TYPED, waited_s={REQUESTS: 84.0})),
            "Sending waited 84 % of the time for the limit of 1,200 requests/day.",
        ),
        (
            said(run(limit(found=300.0, tried_per_minute=224.0, used_share=0.76), waited_s=WAITED)),
            "Sending waited 90 % of the time for the limit of 300 requests/min, reduced to 224 "
            "after 429s (76 % used).",
        ),
        (
            said(run(waited_s={TOKENS: 60.0})),
            "Sending waited 60 % of the time for the token limit.",
        ),
        (
            said(run(waited_s={WaitCause.MAX_WORKERS: 60.0}), max_workers=1000),
            "Sending waited 60 % of the time for a free worker (max_workers is 1,000).",
        ),
        (
            said(run(waited_s={REQUESTS: 30.0})),
            "Sending was busy 70 % of the time, and waited 30 % of the time for the request limit.",
        ),
        (
            said(run(waited_s={REQUESTS: 9.0})),
            "Sending was busy 91 % of the time: it hardly waited.",
        ),
        (said(run()), "Sending was busy 100 % of the time: it hardly waited."),
        (said(run(attempts=0)), "Nothing was sent."),
        (said(run(attempts=0), is_running=True), "Nothing has been sent yet."),
    ],
)
def test_the_headline_says_what_limited_the_run(text: str, words: str) -> None:
    """It names the cause, its share of the time, and the limit with how much of it was used."""
    assert text == words


def test_the_headline_names_the_model_that_waited_longest() -> None:
    """Of several models with limits of their own the one that waited longest is named."""
    report = reports.many_models()
    slow = replace(report.summary.buckets[3], waited_s={REQUESTS: 9e9})
    buckets = (*report.summary.buckets[:3], slow)
    report = replace(
        report, summary=replace(report.summary, buckets=buckets, waited_s={REQUESTS: 9e3})
    )
    assert "100,000 requests/day" in headline(report)
    assert f"of {slow.model} (10 % used)" in headline(report)


@pytest.mark.parametrize(
    ("more", "start"),
    [
        ({"left": 99_980}, "Stopped with about 100,000 left. Sending was busy"),
        (
            {"left": 5, "left_is_exact": True, "stopped_models": ("a", "b")},
            "Stopped because of a, b with 5 left. Sending was busy",
        ),
        ({}, "Stopped. Sending was busy"),
    ],
)
def test_the_headline_of_a_stop_names_what_suffered(more: dict[str, Any], start: str) -> None:
    """The models, if it is not about all, and how many requests are left."""
    summary = run(stop_cause=StopCause.QUOTA, stop_reason="no money", **more)
    assert said(summary).startswith(start)
    assert said(summary, is_running=True).startswith("Sending")


def test_the_headline_names_the_model_that_waited_for_its_server() -> None:
    """Of several models, the one that waited longest."""
    waits = {WaitCause.PAUSE: 80.0}
    models = [BucketReport(url=URL, model=m, waited_s=w) for m, w in (("a", {}), ("b", waits))]
    summary = Summary(attempts=9, elapsed_s=100.0, waited_s=waits, buckets=tuple(models))
    assert said(summary).endswith("for a pause (429, timeouts, or a server that is not ready), b.")
