"""What an attempt may cost, and what it did cost."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from parallel_processor.models import (
    Attempt,
    AttemptStatus,
    Endpoint,
    Estimate,
    Rejection,
    Response,
)
from parallel_processor.planning.costs import Spent
from parallel_processor.planning.prices import find_prices
from parallel_processor.planning.tariff import Asked, Tariff, may_be_charged
from parallel_processor.providers.usage import Use
from parallel_processor.tokens.estimates import RequestKind

URL = "https://api.openai.com/v1/chat/completions"
ASKED = Asked(URL, "m")
TABLE = {
    "m@flex": {"input": 0.5, "output": 5},
    "m@priority": {"input": 2, "output": 20},
    "m": {"input": 1, "output": 10},
    "dear": {"input": 3, "output": 30},
}


def tariff() -> Tariff:
    return Tariff(find_prices(TABLE), URL)


def estimate(tokens: int, cap: int | None, *, charges_use: bool = False) -> Estimate:
    kind = RequestKind(Endpoint.CHAT, None, 16, charges_use=charges_use)
    return Estimate(tokens, cap, 16, kind)


def response(data: Any, status: int = 200, *, parsed: bool = True) -> Response:
    body = json.dumps(data).encode()
    return Response(
        status=status, headers={}, body=body, data=data if parsed else None, is_json=True
    )


def test_the_most_is_what_the_request_permits() -> None:
    """Another tokenizer may make twice the tokens, until answers have shown what it makes."""
    made = tariff()
    assert made.most(ASKED, estimate(1000, 100)).tokens == 1100 + 100
    assert made.most(ASKED, estimate(1000, 100, charges_use=True)).tokens == 2000 + 100
    for _ in range(10):
        made.learn(ASKED, estimate(1000, 100), Use(1330, 1250, 80), Spent(0.001, 1330))
    assert made.most(ASKED, estimate(1000, 100, charges_use=True)).tokens == 1313 + 100
    assert made.most(ASKED, estimate(1000, 100)).cost == pytest.approx(0.001313 + 0.001)
    assert made.usual(Asked(URL, "n")) == Spent()
    assert made.usual(ASKED) == Spent(pytest.approx(0.001), pytest.approx(1330))


def test_an_answer_that_is_longer_than_its_maximum_is_remembered() -> None:
    """Some servers don't count a model's reasoning towards the maximum."""
    made = tariff()
    made.learn(ASKED, estimate(10, 100), Use(260, 10, 250), Spent())
    assert made.most(ASKED, estimate(0, 100)).tokens == 250


def test_a_prompt_that_is_not_told_has_what_was_counted() -> None:
    """As many tokens as it may have had."""
    made = tariff()
    use = made.with_prompt(Use(80, 0, 80), ASKED, estimate(1000, 100))
    assert use == Use(1180, 1100, 80)
    assert made.with_prompt(Use(90, 10, 80), ASKED, estimate(1000, 100)) == Use(90, 10, 80)


def test_without_a_maximum_the_largest_answer_is_reserved(caplog: pytest.LogCaptureFixture) -> None:
    """At least 4,096 tokens; that is said once a model."""
    made = tariff()
    with caplog.at_level(logging.WARNING):
        assert made.most(ASKED, estimate(0, None)).tokens == 4096
        made.learn(ASKED, estimate(10, None), Use(9010, 10, 9000), Spent())
        most = made.most(ASKED, estimate(0, None))
        assert most.tokens == 9000
    for _ in range(10):
        assert made.likely(Asked(URL, "n"), estimate(0, None), most) == most
        made.learn(Asked(URL, "n"), estimate(10, None), Use(110, 10, 100), Spent())
    assert made.likely(Asked(URL, "n"), estimate(0, None), most).tokens == 200
    assert made.likely(Asked(URL, "n"), estimate(0, 150), most) == most
    assert made.likely(ASKED, estimate(0, None), most) == most
    assert len(caplog.records) == 1
    assert "for m name no maximum of output tokens: the budget reserves 4,096" in caplog.text


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [
        (Attempt(status=AttemptStatus.ANSWERED, response=response({})), True),
        (Attempt(status=AttemptStatus.RETRY, kind="timeout", latency_s=3.0), True),
        (Attempt(status=AttemptStatus.LOST), True),
        (Attempt(status=AttemptStatus.STOPPED, latency_s=0.1), True),  # cancelled
        (Attempt(status=AttemptStatus.STOPPED), False),  # never sent
        (Attempt(status=AttemptStatus.UNREACHABLE, latency_s=0.1), False),
        (Attempt(status=AttemptStatus.RETRY, response=response({}, 500)), False),
        (Attempt(status=AttemptStatus.RETRY, response=response({}, 504)), True),
        (Attempt(status=AttemptStatus.RETRY, response=response({}, 200)), True),  # no answer
        (Attempt(status=AttemptStatus.RATE_LIMITED, response=response({}, 200)), False),
        (
            Attempt(status=AttemptStatus.RETRY, response=response({}, 503), rejection=Rejection()),
            False,
        ),
        (ValueError("a bug"), True),
    ],
)
def test_what_may_have_been_charged_counts(
    attempt: Attempt | BaseException, expected: bool
) -> None:
    """What was refused or never sent costs nothing; where nobody can tell, it costs all."""
    assert may_be_charged(attempt) is expected


def test_the_dearer_of_the_tiers_counts() -> None:
    """Some servers say that the default tier answered whatever they charge (earendil-works/pi#3307)."""
    made = tariff()

    def output(asked: str, answered: str) -> float:
        price = made.price(Asked(URL, "m", asked), answered)
        assert price is not None
        return price.rates().output

    assert [output("flex", "flex"), output("flex", ""), output("flex", "default")] == [5, 5, 10]
    assert [output("priority", "default"), output("", "priority")] == [20, 20]


def test_a_record_costs_what_the_dearer_of_its_models_does() -> None:
    """A Batch record has no request, and an answer that nobody parsed is read as far as needed."""
    usage = {"usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}}
    made = tariff()
    assert made.of_record("m", response(usage)) == Spent(pytest.approx(0.0002), 110)
    assert made.of_record("m", response({"model": "dear"} | usage)).cost == pytest.approx(0.0006)
    assert made.of_record("", response({"model": "m"} | usage)).cost == pytest.approx(0.0002)
    assert made.of_record("", response(usage)) == Spent(0.0, 110)
    long = response({"model": "m", "service_tier": "flex"} | usage, parsed=False)
    assert made.of_record("", long).cost == pytest.approx(0.0001)
    assert made.of_record("m", response(usage), "flex").cost == pytest.approx(0.0001)
    assert made.of_record("m", response({"id": "a"})) == Spent()
