"""What to change: each rule speaks where the figures support it, and is silent where they don't."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import reports

from parallel_processor.advice import advice
from parallel_processor.figures import BucketReport, LimitReport, RunReport, Sample, Summary
from parallel_processor.headline import headline

URL = "https://api.example.com/v1/chat/completions"


def limit(name: str = "requests", **more: Any) -> LimitReport:
    """What a limit was."""
    return LimitReport(name=name, **more)


def run(
    *limits: LimitReport, errors: dict[str, int] | None = None, bucket: Any = None, **more: Any
) -> RunReport:
    """A run of 100 s with 1,000 attempts and one model with these limits."""
    own = {
        name: more.pop(name) for name in ("max_workers", "is_running", "processes") if name in more
    }
    model = BucketReport(url=URL, model="m", limits=limits, **(bucket or {}))
    figures = {"attempts": 1000, "answered": 1000, "elapsed_s": 100.0, "buckets": (model,), **more}
    timeline = (Sample(at_s=0.0), Sample(at_s=100.0, errors=errors or {}))
    summary = Summary(**figures)
    return RunReport(summary=summary, started_at=0.0, told_at=100.0, timeline=timeline, **own)


TYPED = limit(configured=600.0, used_share=0.5)
NOTHING = ("Nothing to change.",)
HELD = {"requests": 90.0}
KEY = "HTTP 401 invalid_api_key: Incorrect API key provided."
SPOILED = {"HTTP 400 invalid_request_error": 5}


@pytest.mark.parametrize(
    ("report", "start"),
    [
        (run(TYPED, stop_reason=KEY), "Put the API key right (`--api_key_file`"),
        (
            run(TYPED, stop_reason="HTTP 429 insufficient_quota: You exceeded"),
            "Put money into the account",
        ),
        (
            run(TYPED, stop_reason="can't reach h: connection error"),
            "Check `--request_url`, the network",
        ),
        (
            run(TYPED, stop_reason="the server asks to wait 3,600 s: x"),
            "Wait for as long as the server",
        ),
        (
            run(TYPED, stop_reason="can't write out.jsonl: No space left"),
            "Make room on the disk, and run",
        ),
        (
            run(TYPED, stop_reason="something else"),
            "Put right what it stopped for, and run the same",
        ),
        (run(TYPED, stop_reason="interrupted by SIGINT"), "Run the same command again to go on"),
        (run(TYPED, failed=5, errors_by_kind=SPOILED), "Look at the reasons of the 5 failed"),
        (
            run(TYPED, failed=1, errors_by_kind={"timeout": 1}),
            "Look at the reasons of the failed r",
        ),
        (run(TYPED, already_failed=1), "Look at the reasons of the failed request below, and run"),
        (
            run(TYPED, limit(tried_per_minute=300.4), rate_limited=60, bucket={"refusals": 60}),
            "Type what the server allows: `--max_requests_per_minute auto`, or 300 instead of 600.",
        ),
        (
            run(
                *(limit("tokens", configured=9e4), limit("tokens", found=3e4)),
                rate_limited=60,
                bucket={"refusals": 60},
            ),
            "Type what the server allows: `--max_tokens_per_minute auto`, or 30,000 instead of 90,",
        ),
        (
            run(limit(found=600.0, others_per_minute=200.2), rate_limited=60),
            "Leave others of the account their share with `--headroom 0.1`: 6 % of the attempts",
        ),
        (
            run(TYPED, rate_limited=60, held_by={"pause": 45.0}),
            "Type a lower limit, or shorter `--seconds_to_pause_after_rate_limit_error`",
        ),
        (run(TYPED, errors={"timeout": 20}), "Raise `--request_timeout`"),
        (run(TYPED, errors={"connect timeout": 20}), "Raise `--connect_timeout`"),
        (
            run(
                TYPED,
                errors={"HTTP 503 server_error": 9, "HTTP 500": 11},
                bucket={"peak_in_flight": 81},
            ),
            "The server failed or was overloaded in 20 attempts, which are tried again",
        ),
        (
            run(TYPED, limit(found=5000.0), held_by=HELD),
            "Raise `--max_requests_per_minute` to 5,000, or to `auto`: the server's headers allow",
        ),
        (
            run(
                *(limit("tokens", configured=1000.0), limit("tokens", found=3000.0)),
                held_by={"tokens": 50.0},
            ),
            "Raise `--max_tokens_per_minute` to 3,000",
        ),
        (
            run(TYPED, held_by={"tokens": 50.0}, reserved_tokens=4500, used_tokens=1000),
            "Lower `max_tokens` in the requests: 4.5 times as many tokens were reserved",
        ),
        (
            run(TYPED, held_by={"max_workers": 60.0}, max_workers=64),
            "Raise `--max_workers` above 64, and `ulimit -n` with it: 60 % of the time",
        ),
        (run(), "Spread the sending over more cores with `--processes 2`: there is no limit"),
        (run(processes=2), "Spread the sending over more cores with `--processes 4`"),
        (run(held_by={"token counting": 80.0}), "Spread the sending over more cores"),
        (run(held_by={"input": 80.0}), "Look at what else this machine does"),
        (run(TYPED, held_by={"disk": 40.0}), "Write to a faster disk (`--save_filepath`): 40 %"),
        (run(TYPED, held_by={"consumer": 40.0}), "Take the outcomes faster: 40 % of the time"),
        (run(TYPED, held_by={"look-ahead": 40.0}), "Mix the models in the file: 40 % of the time"),
        (run(TYPED, held_by={"answers": 40.0}), "Look at the slowest requests below: 40 %"),
    ],
)
def test_a_rule_speaks(report: RunReport, start: str) -> None:
    """Where the figures support it, its sentence is the only advice."""
    (text,) = advice(report)
    assert text.startswith(start)
    assert text.endswith(".")


@pytest.mark.parametrize(
    "report",
    [
        run(TYPED),
        run(TYPED, stop_reason=KEY, is_running=True),
        run(TYPED, limit(tried_per_minute=300.0), rate_limited=40, bucket={"refusals": 40}),
        run(TYPED, limit(tried_per_minute=590.0), rate_limited=60, bucket={"refusals": 60}),
        run(limit(tried_per_minute=300.0), rate_limited=60, held_by={"pause": 20.0}),
        run(TYPED, errors={"timeout": 19, "connect timeout": 19, "HTTP 500": 19}),
        run(TYPED, errors={"HTTP 429 rate_limit_exceeded": 500}),
        run(TYPED, limit(found=5000.0), held_by={"requests": 20.0}),
        run(TYPED, limit(found=610.0), held_by=HELD),
        run(TYPED, limit(tried_per_minute=5000.0), held_by=HELD),
        run(TYPED, limit(found=5000.0, window_s=86400.0), held_by=HELD),
        run(TYPED, held_by=HELD, reserved_tokens=9000, used_tokens=1000),
        run(TYPED, held_by={"tokens": 50.0}, reserved_tokens=2900, used_tokens=1000),
        run(TYPED, held_by={"tokens": 50.0}, reserved_tokens=2900, used_tokens=0),
        run(TYPED, held_by={"max_workers": 20.0, "disk": 20.0, "consumer": 20.0}),
        run(TYPED, held_by={"look-ahead": 20.0, "answers": 20.0, "input": 20.0}),
        run(TYPED, held_by={"answers": 90.0}, answered=10),
        run(attempts=0, answered=0, buckets=()),
        run(elapsed_s=5.0),
        run(TYPED, held_by={"max_workers": 4.0}, elapsed_s=5.0),
    ],
)
def test_the_rules_are_silent(report: RunReport) -> None:
    """Just below each threshold there is nothing to change."""
    assert advice(report) == NOTHING


def test_a_limit_that_was_used_is_named() -> None:
    """Where the limit itself is the speed, that is said."""
    (text,) = advice(run(limit(found=1200.0, used_share=0.97), held_by=HELD))
    assert text.startswith("Nothing to change: the limit of 1,200 requests/min was used.")
    (text,) = advice(run(held_by={"in flight": 90.0}))
    assert text == "Nothing to change: as much was in flight as the server can take."


def test_a_model_is_named_among_several() -> None:
    """With several models it is said whose limit was typed too low."""
    report = run(TYPED, limit(found=5000.0), held_by=HELD)
    other = BucketReport(url=URL, model="other")
    both = replace(report.summary, buckets=(*report.summary.buckets, other))
    assert " for m" not in advice(report)[0]
    assert "allow that for m, and 600 was typed" in advice(replace(report, summary=both))[0]


def test_lines_that_cant_be_sent_are_not_called_rejected() -> None:
    """No server has seen them; what failed at the server is spoken of by itself."""
    unsent = run(TYPED, failed=3, errors_by_kind={"can't be sent": 3})
    assert advice(unsent) == (
        "Put the 3 lines right that can't be sent, for the reasons that are said below.",
    )
    both = run(TYPED, failed=8, errors_by_kind={"can't be sent": 3} | SPOILED)
    first, second = advice(both)
    assert first.startswith("Put the 3 lines right")
    assert second.startswith("Look at the reasons of the 5 failed requests below and put them right")


def test_few_refusals_are_enough_where_the_server_says_less_than_was_typed() -> None:
    """Three of them in a thousand, with a header that names half of what was typed."""
    told = run(TYPED, limit(found=300.0), rate_limited=3, bucket={"refusals": 3})
    assert advice(told)[0].startswith("Type what the server allows: `--max_requests_per_minute auto`, ")
    silent = run(TYPED, limit(found=300.0), rate_limited=2, bucket={"refusals": 2})
    assert advice(silent) == NOTHING


def test_a_rate_that_refusals_cut_is_told_beside_the_limit() -> None:
    """The share that was used is of what the server allows, not of what was tried."""
    few = {"refusals": 5}
    held = run(limit(found=300.0, tried_per_minute=224.0), rate_limited=5, held_by=HELD, bucket=few)
    (text,) = advice(held)
    assert "5 refusals cut the rate to 224 of 300 requests/min" in text
    assert advice(replace(held, summary=replace(held.summary, held_by={}))) != (text,)
    cut = limit(found=300.0, tried_per_minute=224.0, used_share=0.76)
    assert headline(run(cut, held_by=HELD)) == (
        "Held back 90 % of the time by refusals, which cut the limit of 300 requests/min to 224 "
        "(76 % of it used)."
    )


def test_a_stop_comes_first() -> None:
    """What stopped the run is the first thing to put right."""
    first, second, *_ = advice(run(TYPED, stop_reason=KEY, failed=3, rate_limited=500))
    assert first.startswith("Put the API key right")
    assert second.startswith("Look at the reasons")


def test_what_the_server_rejects_is_for_the_file() -> None:
    """Requests that are wrong are to be changed, the others only to be sent again."""
    (wrong,) = advice(run(TYPED, failed=5, errors_by_kind=SPOILED))
    (unlucky,) = advice(run(TYPED, failed=5, errors_by_kind={"HTTP 429 x": 3, "HTTP 408": 2}))
    assert "put them right in the file" in wrong
    assert "put them right in the file" not in unlucky


def test_a_running_run_is_not_run_again() -> None:
    """While it goes on, nobody is told to start it a second time."""
    (text,) = advice(run(TYPED, failed=1, is_running=True))
    assert "once this run has ended" in text


@pytest.mark.parametrize(
    ("report", "text"),
    [
        (
            run(limit(found=1200.0, used_share=0.974), held_by={"requests": 84.0}),
            "Held back 84 % of the time by the limit of 1,200 requests/min (97 % of it used).",
        ),
        (
            run(limit(found=1200.0), held_by={"requests": 84.0}, is_running=True),
            "Held back 84 % of the time so far by the limit of 1,200 requests/min.",
        ),
        (
            run(limit(window_s=86400.0, found=1200.0), TYPED, held_by={"requests": 84.0}),
            "Held back 84 % of the time by the limit of 1,200 requests/day.",
        ),
        (run(held_by={"pause": 60.0}), "Held back 60 % of the time by a pause."),
        (run(held_by={"tokens": 60.0}), "Held back 60 % of the time by the limit of tokens."),
        (
            run(held_by={"max_workers": 60.0}, max_workers=1000),
            "Held back 60 % of the time by max_workers: at most 1,000 requests may be in flight.",
        ),
        (
            run(held_by={"answers": 60.0}),
            "All was sent, and the last answers were waited for, 60 % of the time.",
        ),
        (
            run(held_by={"requests": 30.0}),
            "Busy sending 70 % of the time, and held back 30 % by the limit of requests.",
        ),
        (
            run(held_by={"requests": 9.0}),
            "Busy sending 91 % of the time: hardly anything held it back.",
        ),
        (run(attempts=0), "Nothing was sent."),
        (run(attempts=0, is_running=True), "Nothing has been sent yet."),
    ],
)
def test_the_headline_says_what_bound_the_run(report: RunReport, text: str) -> None:
    """It names the cause, its share of the time, and the limit with how much of it was used."""
    assert headline(report) == text


def test_the_headline_names_the_model_that_waited_longest() -> None:
    """Of several models with limits of their own the one that waited longest is named."""
    report = reports.many_models()
    slow = replace(report.summary.buckets[3], held_by={"requests": 9e9})
    buckets = (*report.summary.buckets[:3], slow)
    report = replace(
        report, summary=replace(report.summary, buckets=buckets, held_by={"requests": 9000.0})
    )
    assert "100,000 requests/day" in headline(report)
    assert f"of {slow.model} (10 % of it used)" in headline(report)
