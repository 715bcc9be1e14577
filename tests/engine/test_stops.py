"""What ends a run early: failures that are all alike, and models that are left out."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from runs import bodies, numbers, ok, run_with
from services import NO_LIMITS, in_background, threads

from parallel_processor.engine.stops import EqualFailures, reason_of
from parallel_processor.exceptions import RunStoppedError, StopCause
from parallel_processor.files.formats import made_request
from parallel_processor.models import Attempt, AttemptStatus, Request, Response, Upstream
from parallel_processor.options import Limits
from parallel_processor.ratelimit.state import Reservation
from parallel_processor.ratelimit.token_bucket import TokenBucket

MANY = 100_000


def failure(status: int, text: str, kind: str = "") -> Attempt:
    """A request that failed for good."""
    response = Response(status=status, headers={}, body=b"")
    kind = kind or f"HTTP {status}"
    return Attempt(
        status=AttemptStatus.FAILED, response=response, kind=kind, error=f"{kind}: {text}"
    )


def bucket_of(url: str = "https://host/v1/chat/completions") -> TokenBucket:
    """The bucket of a model of which nothing is in flight."""
    return TokenBucket(NO_LIMITS, upstream=Upstream(url), model="m")


def stopped_by(
    attempts: list[Attempt],
    bucket: TokenBucket | None = None,
    *,
    most: int = 5,
    validates: bool = False,
    answered_before: bool = False,
) -> RunStoppedError | None:
    """What the failures of these attempts lead to."""
    failures = EqualFailures(most, validates=validates, answered_before=lambda: answered_before)
    model = bucket or bucket_of()
    found = [failures.failed(model, attempt) for attempt in attempts]
    return next((error for error in found if error is not None), None)


WRONG_URL = [failure(404, f"no route, trace {n:08x}") for n in range(5)]
ALIKE = [failure(400, "max_tokens is no known parameter")] * 5


@pytest.mark.parametrize(
    ("attempts", "how"),
    [
        (WRONG_URL, {}),
        (ALIKE, {}),
        ([failure(404, f"at 12:00:{n}") for n in range(5)], {}),  # a number that says nothing
        ([failure(404, "a"), failure(404, "b")] * 5, {}),  # two gateways, two texts
        (ALIKE, {"validates": True}),
        (WRONG_URL, {"answered_before": True}),
    ],
)
def test_failures_that_are_alike_stop_the_run(attempts: list[Attempt], how: Any) -> None:
    """Ids and numbers make no difference, and the message has the model and the last error."""
    error = stopped_by(attempts, **how)
    assert error is not None and error.stop_cause is StopCause.EQUAL_FAILURES
    assert error.models == ("m",)
    assert str(error).startswith("the first 5 requests for m failed alike, and none was answered: ")


@pytest.mark.parametrize(
    ("attempts", "how"),
    [
        (ALIKE[1:], {}),
        (ALIKE, {"most": 0}),
        ([failure(400, f"{n + 9000} tokens are more than 8192") for n in range(9)], {}),
        ([failure(400, "filtered", "HTTP 400 content_filter")] * 9, {}),
        ([failure(403, "the input was flagged by moderation")] * 9, {}),
        ([failure(400, "系统检测到输入内容包含不安全或敏感内容")] * 9, {}),
        ([failure(400, "maximum context length is 8192 tokens")] * 9, {}),
        ([failure(413, "the request is too large")] * 9, {}),
        (ALIKE, {"answered_before": True}),  # what failed before, and fails again
        ([failure(404, chr(97 + n % 26) * (n // 26 + 1)) for n in range(60)] * 5, {}),
    ],
)
def test_failures_of_requests_by_themselves_stop_nothing(attempts: list[Attempt], how: Any) -> None:
    """What is refused for its contents says nothing of the others, and a bound of 0 is none."""
    assert stopped_by(attempts, bucket_of(), **how) is None


def test_an_answer_ends_the_count() -> None:
    """A model that has answered isn't looked at any more."""
    bucket, reservation = bucket_of(), Reservation(1.0)
    bucket.enqueue(reservation)
    bucket.ended(reservation, answered=True)
    assert stopped_by(ALIKE, bucket) is None


def test_what_is_in_flight_may_still_be_answered() -> None:
    """Nothing more is admitted until it has ended; then the run stops."""
    bucket, places = bucket_of(), [Reservation(1.0) for _ in range(3)]
    failures = EqualFailures(2, validates=False, answered_before=lambda: False)
    for place in places:
        bucket.enqueue(place)
    found = []
    for place in places:
        bucket.ended(place)
        found.append(failures.failed(bucket, ALIKE[0]))
        if len(found) == 2:
            late = Reservation(1.0)
            assert not bucket.enqueue(late)
            bucket.cancel(late)
    assert found[:2] == [None, None] and found[2] is not None
    assert bucket.enqueue(Reservation(1.0))  # for the next run


@pytest.mark.parametrize(
    ("url", "end"),
    [
        ("https://host/v1", "https://host/v1 names no endpoint: a request URL ends in /chat/comp"),
        (
            "https://u:p@host/v1/embeddings?key=k",
            "Check the URL https://host/v1/embeddings and the",
        ),
    ],
)
def test_a_url_that_is_not_there_is_named(url: str, end: str) -> None:
    """The message says how a URL should end, or that the model may be wrong, and shows no secret."""
    assert f". {end}" in str(stopped_by(WRONG_URL, bucket_of(url)))


def test_a_reason_has_no_ids() -> None:
    """Request ids, hexadecimal ones and dates are left out; the numbers of a rejected request stay."""
    texts = ["ray 8f3ad91c22 (request id req_12)", "ray 77aa0921bf (request id req_13)"]
    assert len({reason_of(failure(404, text)) for text in texts}) == 1
    assert len({reason_of(failure(400, f"{n} tokens")) for n in (1, 2)}) == 2


# Whole runs


@pytest.mark.parametrize("limits", [NO_LIMITS, Limits(requests_per_minute=1e6)])
@pytest.mark.parametrize("status", [400, 401, 402, 404, 405])
def test_a_hundred_thousand_lines_cost_a_hundred_requests(status: int, limits: Limits) -> None:
    """Whatever fails them all, the run stops before it has sent more."""
    answer = status, {"error": {"message": "no such parameter"}}
    run = run_with(lambda body: answer, limits)
    outcomes = list(run.outcomes(bodies(MANY)))
    assert isinstance(run.stop_cause, RunStoppedError)
    assert run.counters.counts().attempts <= 100
    assert all(not outcome.ok for outcome in outcomes)
    assert threads() == []


def test_a_slow_answer_is_waited_for_before_equal_failures_stop_the_run() -> None:
    """A file whose bad lines fail sooner than its good ones are answered goes on."""
    gate = threading.Event()

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if body["n"] % 2:
            if body["n"] >= 39:
                gate.set()
            return 400, {"error": {"message": "no such parameter"}}
        gate.wait(20)
        return ok(body)

    run = run_with(answer, max_workers=40)
    outcomes = list(run.outcomes(bodies(500)))
    assert run.stop_cause is None
    assert sum(outcome.ok for outcome in outcomes) == 250


SPENT = (
    429,
    {
        "error": {
            "code": 429,
            "message": "you exceeded your quota",
            "details": [{"violations": [{"quotaId": "GenerateRequestsPerDayPerModel-FreeTier"}]}],
        }
    },
)


def of_models(*names: str) -> Iterator[Request]:
    """A request for each of these models."""
    for number, name in enumerate(names, 1):
        yield made_request({"n": number, "model": name}, number)


def spent_for(name: str) -> Any:
    """A server where the day's quota of one model is used up."""
    return lambda body: SPENT if body["model"] == name else ok(body)


def test_a_spent_model_leaves_the_others_alone() -> None:
    """Its requests are neither sent nor failed, in whatever number they are read; the end names it."""
    names = ["a"] * 5000 + ["b"] * 300 + ["a", "b"] * 100
    run = run_with(spent_for("a"), max_workers=20)
    outcomes = list(run.outcomes(of_models(*names)))
    assert numbers(outcomes) == [n for n, name in enumerate(names, 1) if name == "b"]
    counts = run.counters.counts()
    assert counts.read == len(names) and counts.failed == 0 and counts.attempts <= 400 + 60
    error = run.stop_cause
    assert isinstance(error, RunStoppedError) and error.stop_cause is StopCause.QUOTA
    assert error.models == ("a",)
    assert str(error).startswith("requests for a are left unanswered: HTTP 429")
    assert threads() == []


def test_a_spent_model_is_not_sent_while_its_end_is_being_logged() -> None:
    """A slow log handler holds one worker up, and no other sends one more request for that model."""
    all_of_b = threading.Event()
    answered = itertools.count(1)

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        if body["model"] == "a":
            return SPENT
        if next(answered) == 400:
            all_of_b.set()
        return ok(body)

    class Slow(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "left unanswered" in record.getMessage():
                all_of_b.wait(20)

    handler, log = Slow(), logging.getLogger("parallel_processor")
    log.addHandler(handler)
    try:
        run = run_with(answer, max_workers=20)
        list(run.outcomes(of_models(*["a"] * 2000, *["b"] * 400)))
    finally:
        log.removeHandler(handler)
    assert all_of_b.is_set() and run.counters.counts().attempts <= 400 + 60


def test_two_spent_models_are_both_named() -> None:
    """The run that has nothing left to send ends by itself."""
    run = run_with(lambda body: SPENT, max_workers=4)
    join = in_background(lambda: list(run.outcomes(of_models(*["a", "b"] * 50))))
    join()
    assert isinstance(run.stop_cause, RunStoppedError)
    assert sorted(run.stop_cause.models) == ["a", "b"]
