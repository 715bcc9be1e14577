"""What one run spends of a budget that others share."""

from __future__ import annotations

from pathlib import Path

import pytest

from parallel_processor.exceptions import StopCause, stop_cause_of
from parallel_processor.files.formats import made_request
from parallel_processor.models import Attempt, AttemptStatus, Endpoint, Estimate, Response, Upstream
from parallel_processor.options import Limits, Options
from parallel_processor.planning.budget import Budget, make_budget
from parallel_processor.planning.ledger import Ledger, ledger_path
from parallel_processor.planning.spending import Spending
from parallel_processor.ratelimit.token_bucket import TokenBucket
from parallel_processor.tokens.estimates import RequestKind
from parallel_processor.workers.pending import PendingRequest

URL = "https://api.openai.com/v1/chat/completions"
BUCKET = TokenBucket(Limits(), upstream=Upstream(URL), model="m")
KIND = RequestKind(Endpoint.CHAT, None, 16)


def pending(output: int) -> PendingRequest:
    """A request of one dollar for each token of output that it permits."""
    request = made_request({"model": "m"}, 1)
    estimate = Estimate(0, output, output, KIND)
    return PendingRequest(request=request, group=BUCKET, bucket=BUCKET, estimate=estimate)


def answered(tokens: int) -> Attempt:
    usage = {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens}
    response = Response(status=200, headers={}, body=b"", data={"usage": usage}, is_json=True)
    return Attempt(status=AttemptStatus.ANSWERED, response=response)


@pytest.fixture
def budget() -> Budget:
    """Ten dollars."""
    prices = {"m": {"input": 1, "output": 0, "per_request": 1}}
    made = make_budget(Options(request_url=URL, prices=prices, max_cost=10, max_total_tokens=100))
    assert made is not None
    return made


class Run:
    """A run, its error and how often it was woken."""

    def __init__(self, budget: Budget) -> None:
        self.errors: list[BaseException] = []
        self.woken = 0
        self.spending = Spending(budget, URL, self.errors.append)

    def wake(self) -> None:
        self.woken += 1

    def reserve(self, request: PendingRequest) -> bool:
        return self.spending.reserve(request, self.wake)


def test_what_doesnt_fit_waits_until_something_is_given_back(budget: Budget) -> None:
    """By this run or by another one of the processor."""
    one, other, first, second = Run(budget), Run(budget), pending(60), pending(60)
    assert one.reserve(first)
    assert not other.reserve(second)
    assert other.spending.is_short and not one.spending.is_short
    one.spending.ended(first, answered(30))
    assert other.woken == 1 and not other.spending.is_short
    assert other.reserve(second)
    assert not one.errors and not other.errors


def test_the_run_stops_once_nothing_is_in_flight_and_the_next_doesnt_fit(budget: Budget) -> None:
    """The message says by how much."""
    run, request = Run(budget), pending(60)
    assert run.reserve(request)
    run.spending.ended(request, answered(50))
    assert not run.reserve(pending(60))
    (error,) = run.errors
    assert str(error) == ("max_total_tokens is 100: 50 are used, and request 1 may use 60")
    assert stop_cause_of(error) is StopCause.BUDGET


def test_what_is_not_sent_after_all_costs_nothing(budget: Budget) -> None:
    """Others that wait are woken."""
    run, other = Run(budget), Run(budget)
    request = pending(100)
    assert run.reserve(request)
    assert not other.reserve(pending(100))
    run.spending.release(request)
    assert other.woken == 1
    assert budget.spent == budget.reserved == (0, 0)
    assert other.reserve(pending(100))


def test_attempts_that_never_come_back_count_in_full(budget: Budget, tmp_path: Path) -> None:
    """Nobody waits for them for ever, and the file beside the results has them."""
    run, other = Run(budget), Run(budget)
    run.spending.open(tmp_path / "out.jsonl", overwrite=False)
    run.spending.begin()
    assert run.reserve(pending(60))
    assert not other.reserve(pending(60))
    run.spending.close()
    assert other.woken == 1
    assert budget.spent == (1, 60) and budget.in_flight == 0
    assert Ledger(ledger_path(tmp_path / "out.jsonl"), budget.bound).before == (1, 60)


def test_a_job_that_stays_within_the_bound_is_not_slowed(budget: Budget, tmp_path: Path) -> None:
    """Whatever a kill wastes is left by the job. One that goes on for long is slowed again."""
    run, left = Run(budget), [0]
    run.spending.open(tmp_path / "out.jsonl", overwrite=False)
    run.spending.begin(lambda: (1, left[0]))
    first = pending(20)
    assert run.reserve(first)
    run.spending.ended(first, answered(5))
    left[0] = 5
    again = [pending(20) for _ in range(3)]
    assert all(map(run.reserve, again))
    for each in again:
        run.spending.ended(each, answered(5))
    left[0] = 30
    assert run.reserve(pending(20))
    assert not run.reserve(pending(20)) and not run.errors


def test_few_are_in_flight_that_a_kill_would_count_for_too_much(
    budget: Budget, tmp_path: Path
) -> None:
    """One always may be, and without a results file all that fit."""
    run = Run(budget)
    run.spending.open(tmp_path / "out.jsonl", overwrite=False)
    run.spending.begin()
    first = pending(20)
    assert run.reserve(first)
    assert not run.reserve(pending(20))
    assert run.spending.is_short and not run.errors
    run.spending.ended(first, answered(20))
    assert run.reserve(pending(20))
    run.spending.close()
    other = Run(budget)
    assert other.reserve(pending(20)) and other.reserve(pending(20))
