"""Which ends of an attempt are tried again, and when; time is a number here."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.engine.retry import RETRIED, RetrySchedule, backoff_s
from parallel_processor.files.formats import made_request
from parallel_processor.models import Attempt, AttemptStatus
from parallel_processor.options import RetryPolicy
from parallel_processor.workers.pending import RetryState

REQUEST = made_request({"input": "hello"}, 1)
ANSWERED = Attempt(status=AttemptStatus.ANSWERED)
RETRY = Attempt(status=AttemptStatus.RETRY, kind="HTTP 500", error="HTTP 500: oops")
REJECTED = Attempt(status=AttemptStatus.RATE_LIMITED, kind="HTTP 429", error="HTTP 429: slower")


@dataclass
class Call:
    """One call of a ``Retrying``: the attempts that it gets, and what it did about them.

    ``attempt_s`` is how long each attempt takes, ``wait_s`` how long its place in the bucket did.
    """

    policy: RetryPolicy
    attempts: Iterable[Attempt]
    attempt_s: float = 0.0
    now_s: float = 0.0
    waits_s: list[float] = field(default_factory=list)
    told: list[tuple[Attempt, float]] = field(default_factory=list)
    retry_state: RetryState = field(default_factory=lambda: RetryState(request=REQUEST))

    def run(self) -> Attempt:
        """The attempt that the call ends with."""
        schedule = RetrySchedule(
            self.policy,
            tell=lambda _, attempt, seconds: self.told.append((attempt, seconds)),
            clock=lambda: self.now_s,
        )
        for attempt in self.attempts:
            self.now_s += self.attempt_s
            self.retry_state.note(attempt, self.now_s)
            seconds = schedule.retry_in_s(self.retry_state, attempt)
            if seconds is None:
                return attempt
            self.waits_s.append(seconds)
            self.now_s += seconds
        raise AssertionError("the schedule wants more attempts than there are")


FINAL = [Attempt(status=s, error="why") for s in AttemptStatus if s not in RETRIED]
MINUTES = RetryPolicy(rate_limit_deadline_s=100.0)


@pytest.mark.parametrize(
    ("policy", "attempts", "sent"),
    [
        # an answer, a failure, a fatal answer and a stop end the call at once
        *((RetryPolicy(), [end, RETRY], 1) for end in FINAL),
        # max_attempts counts the first attempt
        *((RetryPolicy(max_attempts=most), [RETRY] * 10, most) for most in (1, 2, 5)),
        # nothing follows an answer
        (RetryPolicy(), [RETRY, RETRY, ANSWERED, RETRY], 3),
        # rejections leave all of max_attempts to real failures
        (
            RetryPolicy(max_attempts=2),
            [*[REJECTED] * 50, RETRY, *[REJECTED] * 50, RETRY, RETRY],
            102,
        ),
        # rejected 0, 30, 60, 90 and 120 s after the first rejection, which starts the deadline
        (MINUTES, [RETRY, *[REJECTED] * 50], 6),
        # a deadline of 0 lets no rejected request wait
        (RetryPolicy(rate_limit_deadline_s=0.0), [REJECTED] * 5, 1),
    ],
)
def test_a_request_is_sent_so_often(
    policy: RetryPolicy, attempts: list[Attempt], sent: int
) -> None:
    """The call ends with its last attempt; what went wrong is kept, and no rejection has a backoff."""
    call = Call(policy, attempts, attempt_s=30.0 if policy is MINUTES else 0.0, now_s=1e6)
    assert call.run() is attempts[sent - 1]
    assert call.retry_state.sent == sent
    assert call.retry_state.errors == [each.error for each in attempts[:sent] if each.error]
    assert call.retry_state.failures == attempts[:sent].count(RETRY)
    assert len(call.waits_s) == sent - 1
    waits_s = zip(attempts, call.waits_s, strict=False)
    assert all(wait_s == 0.0 for attempt, wait_s in waits_s if attempt is REJECTED)


def test_a_clock_that_starts_at_zero_works() -> None:
    """A first rejection at time 0 starts the deadline there."""
    call = Call(RetryPolicy(rate_limit_deadline_s=50.0), [REJECTED, ANSWERED], now_s=49.0)
    call.retry_state.rejected_since_s = 0.0
    assert call.run() is ANSWERED


def test_before_each_wait_it_is_told() -> None:
    """Every retry is told with what failed and the wait before it; the last failure isn't."""
    call = Call(RetryPolicy(max_attempts=3), [RETRY, REJECTED, RETRY, RETRY])
    call.run()
    assert [attempt for attempt, _ in call.told] == [RETRY, REJECTED, RETRY]
    assert [seconds for _, seconds in call.told] == call.waits_s


@given(
    failures=st.integers(1, 2000),
    initial_s=st.floats(0, 100),
    max_s=st.floats(0, 1000),
    asked_s=st.none() | st.floats(0, 5000),
)
def test_backoff_keeps_its_bounds(
    failures: int, initial_s: float, max_s: float, asked_s: float | None
) -> None:
    """It is at most the doubled time and the maximum, at least what the server asked for."""
    policy = RetryPolicy(backoff_initial_s=initial_s, backoff_max_s=max_s)
    retry_state = RetryState(request=REQUEST, failures=failures)
    attempt = Attempt(status=AttemptStatus.RETRY, retry_after_s=asked_s)
    wait_s = backoff_s(policy, retry_state, attempt)
    longest = min(max_s, initial_s * 2.0 ** min(failures - 1, 60))
    asked = min(asked_s or 0.0, policy.rate_limit_deadline_s)
    assert asked <= wait_s <= max(longest, asked)


@pytest.mark.parametrize(("failures", "longest"), [(1, 1.0), (2, 2.0), (3, 4.0), (7, 60.0)])
def test_jitter_is_full(failures: int, longest: float) -> None:
    """The waits fill the whole range from 0 on, evenly."""
    retry_state = RetryState(request=REQUEST, failures=failures)
    waits = [backoff_s(RetryPolicy(), retry_state, RETRY) for _ in range(2000)]
    assert min(waits) < 0.05 * longest
    assert 0.95 * longest < max(waits) <= longest
    assert 0.45 * longest < sum(waits) / len(waits) < 0.55 * longest


def test_threads_share_one_object() -> None:
    """What threads ask at the same time, each for its request, they are told as if alone."""
    barrier = threading.Barrier(8)
    ends: dict[int, int] = {}
    schedule = RetrySchedule(
        RetryPolicy(max_attempts=8, backoff_initial_s=0.0),
        tell=lambda *_: barrier.wait(20),
        clock=float,
    )

    def call(fine_after: int) -> None:
        retry_state = RetryState(request=REQUEST)
        while True:
            attempt = ANSWERED if retry_state.sent == fine_after else RETRY
            retry_state.note(attempt, 0.0)
            if schedule.retry_in_s(retry_state, attempt) is None:
                break
        ends[fine_after] = retry_state.sent
        for _ in range(retry_state.sent, 8):  # keep step with the others
            barrier.wait(20)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == {number: number + 1 for number in range(8)}


def test_a_request_may_change_threads() -> None:
    """The thread that has it after a backoff is another one, and counts on."""
    schedule = RetrySchedule(RetryPolicy(max_attempts=3), tell=lambda *_: None, clock=float)
    retry_state, told = RetryState(request=REQUEST), []

    def one_attempt() -> None:
        retry_state.note(RETRY, 0.0)
        told.append(schedule.retry_in_s(retry_state, RETRY))

    for _ in range(3):
        thread = threading.Thread(target=one_attempt)
        thread.start()
        thread.join()
    assert [seconds is None for seconds in told] == [False, False, True]
