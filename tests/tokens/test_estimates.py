"""What is reserved for a request, and how it follows what responses used."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.files.formats import made_request
from parallel_processor.models import Attempt, AttemptStatus, Endpoint, Request, Response
from parallel_processor.options import Limits, Options
from parallel_processor.tokens.counter import TokenCounter
from parallel_processor.tokens.estimates import Cost, CostEstimator, RequestKind

OPENAI = "https://api.openai.com/v1/chat/completions"
AZURE = "https://r.openai.azure.com/openai/v1/chat/completions"
GROQ = "https://api.groq.com/openai/v1/chat/completions"
MISTRAL = "https://api.mistral.ai/v1/chat/completions"
ANTHROPIC = "https://api.anthropic.com/v1/messages"
LOCAL = "http://localhost:8000/v1/chat/completions"
REAL_TIMEOUT_S = 20.0  # after which a test that hangs fails
MESSAGES = [{"role": "user", "content": "Say something."}]


def estimator(url: str = OPENAI, **settings: Any) -> CostEstimator:
    """What a processor of requests to ``url`` reserves."""
    return CostEstimator(Options(request_url=url, **settings))


def chat(**more: Any) -> Request:
    return made_request({"model": "gpt-4o", "messages": MESSAGES, **more}, 1)


def cost(prices: CostEstimator, request: Request) -> Cost:
    """What an attempt is expected to be charged now."""
    return prices.cost(prices.estimate(request))


def learn(prices: CostEstimator, request: Request, *sizes: int) -> None:
    """Ten answers of each size."""
    for size in sizes:
        for _ in range(10):
            prices.estimate(request).kind.answered(size)


def test_the_cost_is_the_prompt_and_the_answers_part() -> None:
    """Both are given, because servers may limit them separately."""
    request = chat(max_tokens=100)
    prompt = TokenCounter().input_tokens(request.body, Endpoint.CHAT)
    assert prompt > 5
    assert cost(estimator(), request) == Cost(prompt + 100, 100)


@pytest.mark.parametrize(("n", "output"), [(1, 40), (3, 120)])
def test_a_request_without_a_cap_reserves_the_default(n: int, output: int) -> None:
    """Before anything is learned, each response is expected to have the default length."""
    assert cost(estimator(default_output_tokens=40), chat(n=n)).output_tokens == output


@pytest.mark.parametrize("url", [OPENAI, AZURE, GROQ, LOCAL])
def test_a_request_without_a_cap_reserves_what_answers_used(url: str) -> None:
    """Everywhere, the 90th percentile of recent responses replaces the default."""
    prices = estimator(url)
    learn(prices, chat(), 500)
    assert cost(prices, chat()).output_tokens == 500


@pytest.mark.parametrize("url", [OPENAI, AZURE, LOCAL])
def test_where_the_cap_is_charged_it_is_reserved(url: str) -> None:
    """OpenAI, Azure and unknown hosts charge the most that a request may use."""
    prices = estimator(url)
    learn(prices, chat(max_tokens=4000), 10)
    assert cost(prices, chat(max_tokens=4000)).output_tokens == 4000


def test_where_use_is_charged_a_high_cap_costs_what_answers_use() -> None:
    """A cap that is ten times too high doesn't leave nine tenths of the limit unused."""
    prices = estimator(GROQ)
    assert cost(prices, chat(max_tokens=4000)).output_tokens == 4000  # nothing is known yet
    learn(prices, chat(max_tokens=4000), 30)
    assert cost(prices, chat(max_tokens=4000)).output_tokens == 30


def test_no_more_than_the_cap_is_reserved() -> None:
    """However long the answers of other requests were, the cap bounds this one's."""
    prices = estimator(GROQ)
    learn(prices, chat(), 500)
    assert cost(prices, chat(max_tokens=20)).output_tokens == 20
    assert cost(prices, chat(max_tokens=0)).output_tokens == 0


@pytest.mark.parametrize(
    ("url", "accounting", "output"),
    [
        *((OPENAI, "usage", 30), (OPENAI, "reserve", 4000), (OPENAI, "auto", 4000)),
        *((GROQ, "usage", 30), (GROQ, "reserve", 4000), (GROQ, "auto", 30)),
    ],
)
def test_the_setting_has_the_last_word(url: str, accounting: Any, output: int) -> None:
    """An explicit setting overrides what is known about the host."""
    prices = estimator(url, token_accounting=accounting)
    learn(prices, chat(), 30)
    assert cost(prices, chat(max_tokens=4000)).output_tokens == output


def test_what_was_learned_meanwhile_counts() -> None:
    """A request's tokens are counted once; the cost is what is known when it is sent."""
    prices = estimator(GROQ)
    estimate = prices.estimate(chat(max_tokens=4000))
    assert prices.cost(estimate).output_tokens == 4000
    learn(prices, chat(), 30)
    assert prices.cost(estimate) == Cost(estimate.input_tokens + 30, 30)


def test_models_and_endpoints_are_told_apart() -> None:
    """Nothing learned for one model or endpoint is used for another."""
    prices = estimator(GROQ)
    learn(prices, chat(), 500)
    assert cost(prices, chat(model="gpt-4o-mini")).output_tokens == 16
    url = "https://api.groq.com/openai/v1/responses"
    row = Request(body={"model": "gpt-4o", "input": "Hi"}, number=1, custom_id="a", url=url)
    assert cost(prices, row).output_tokens == 16
    learn(prices, row, 70)
    assert cost(prices, row).output_tokens == 70
    assert cost(prices, chat()).output_tokens == 500


def test_an_embedding_has_no_output() -> None:
    """Whatever was learned, the prompt is all that an embedding costs."""
    prices = estimator("https://api.mistral.ai/v1/embeddings")
    request = made_request({"model": "e", "input": "Say something."}, 1)
    before = cost(prices, request)
    learn(prices, request, 0)
    assert cost(prices, request) == before == Cost(before.tokens, 0)


def test_an_anthropic_cap_is_not_reserved_once_answers_are_known() -> None:
    """``max_tokens`` is required there, and so says little."""
    prices = estimator(ANTHROPIC)
    request = made_request({"model": "c", "max_tokens": 8192, "messages": MESSAGES}, 1)
    learn(prices, request, 200, 300)
    assert cost(prices, request).output_tokens == 300


@pytest.mark.parametrize(
    "url",
    [
        "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-pro:generateContent",
        "http://localhost:11434/api/chat",
    ],
)
def test_an_unknown_endpoint_without_a_cap_learns_too(url: str) -> None:
    """A request that names no cap gets what recent answers used, whatever its endpoint is called."""
    prices = estimator(url)
    request = made_request({"contents": [{"parts": [{"text": "Say something."}]}]}, 1)
    learn(prices, request, 500)
    assert cost(prices, request).output_tokens == 500


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ({"model": "gpt-4o"}, "gpt-4o"),
        ({"model": "m" * 256}, "m" * 256),
        *(({"model": odd}, "") for odd in ("m" * 257, "", None, 5, ["gpt-4o"])),
        *((odd, "") for odd in ({}, "a line that is none", None)),
    ],
)
def test_the_model_is_read_from_any_body(body: Any, model: str) -> None:
    """What isn't a name of a sensible length is none."""
    assert Request(body=body).model == model


# What is learned from answers


def learned(sizes: list[int]) -> int | None:
    """What is expected after answers of these sizes."""
    found = RequestKind(Endpoint.CHAT, None, 16)
    for size in sizes:
        found.answered(size)
    return found.expected_output


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], None),
        ([5] * 9, None),
        ([5] * 10, 5),
        ([0] * 10, 0),
        ([100, *[10] * 8, 20], 20),
        ([100, 90, *[10] * 8], 90),
        ([1000] * 500 + [10] * 200, 10),
        ([10] * 500 + [1000] * 200, 1000),
    ],
)
def test_nine_of_ten_answers_are_what_is_expected(sizes: list[int], expected: int | None) -> None:
    """Nine are too few to tell, one long one in ten is left out, and 200 new ones replace the old."""
    assert learned(sizes) == expected


@given(st.lists(st.integers(0, 10**6), min_size=10, max_size=400))
def test_nine_of_ten_recent_answers_stay_within_it(sizes: list[int]) -> None:
    """It is the least that nine of ten of the newest 200 stayed within, as of the last full ten."""
    recent = sizes[: len(sizes) // 10 * 10][-200:]
    expected = learned(sizes)
    assert expected in recent
    assert sum(size <= expected for size in recent) >= 0.9 * len(recent)
    assert sum(size < expected for size in recent) < 0.9 * len(recent)


def kinds(prices: CostEstimator, *models: str) -> list[RequestKind]:
    """What was learned of chat requests to these models."""
    return [prices.estimate(chat(model=model)).kind for model in models]


def test_models_are_told_apart() -> None:
    """Each has its own expectation, at each of its endpoints."""
    prices = estimator()
    a, b = kinds(prices, "a", "b")
    c = prices.estimate(replace(chat(model="a"), url=ANTHROPIC)).kind
    for _ in range(10):
        a.answered(5)
        b.answered(500)
        c.answered(50)
    assert kinds(prices, "a", "b") == [a, b]
    assert [each.expected_output for each in (a, b, c)] == [5, 500, 50]


def test_no_more_than_256_models_are_learned() -> None:
    """A file that names a new model in each line takes no memory; known models go on learning."""
    prices, models = estimator(), [str(number) for number in range(300)]
    for kind in kinds(prices, *models):
        for _ in range(10):
            kind.answered(7)
    found = kinds(prices, "0", "255", "256", "299")
    assert [each.expected_output for each in found] == [7, 7, None, None]
    for _ in range(200):
        found[0].answered(9)
    assert kinds(prices, "0")[0].expected_output == 9


def test_threads_lose_no_answer() -> None:
    """Ten threads that note one answer each make an expectation."""
    found, start = [RequestKind(Endpoint.CHAT, None, 16) for _ in range(200)], threading.Barrier(10)

    def note(size: int) -> None:
        start.wait(REAL_TIMEOUT_S)
        for kind in found:
            kind.answered(size)

    with ThreadPoolExecutor(10) as pool:
        for noted in [pool.submit(note, size) for size in range(10)]:
            noted.result(REAL_TIMEOUT_S)
    assert {kind.expected_output for kind in found} == {8}


# Prompts that nothing limits.


def test_prompts_are_guessed_once_a_hundred_were_counted() -> None:
    """The guess is the share of tokens in the bytes so far; of the output it is what is usual."""
    prices = estimator(default_output_tokens=40)
    requests = [chat(messages=[{"role": "user", "content": "word " * n}]) for n in range(1, 101)]
    assert prices.guess(requests[0], "gpt-4o") is None
    counted = [prices.estimate(request).input_tokens for request in requests]
    assert prices.guess(requests[0], "gpt-4o-mini") is None
    guesses = [prices.guess(request, "gpt-4o") for request in requests]
    assert all(guess is not None and guess.output_tokens == 40 for guess in guesses)
    guessed = sum(guess.input_tokens for guess in guesses if guess is not None)
    assert guessed == pytest.approx(sum(counted), rel=0.02)
    embeddings = Request(
        body={"input": "x"}, payload=b"{}", url="https://api.openai.com/v1/embeddings"
    )
    for _ in range(100):
        prices.estimate(embeddings)
    guess = prices.guess(embeddings, "")
    assert guess is not None
    assert prices.cost(guess).output_tokens == 0


def test_each_prompt_is_counted_where_limits_may_come() -> None:
    """What is read ahead has its own maximum by then."""
    prices = estimator(limits_by_model={"*": Limits(requests_per_minute=600)})
    for _ in range(100):
        prices.estimate(chat())
    assert prices.guess(chat(), "gpt-4o") is None


def test_what_is_guessed_and_counted_learns_from_the_same_answers() -> None:
    """Both are of one kind."""
    prices = estimator(LOCAL)
    counted = [prices.estimate(chat()) for _ in range(100)]
    guess = prices.guess(chat(), "gpt-4o")
    assert guess is not None
    assert guess.kind is counted[0].kind
    for _ in range(10):
        guess.kind.answered(77)
    assert prices.cost(counted[0]).output_tokens == prices.cost(guess).output_tokens == 77


def test_cached_tokens_are_not_charged_where_they_do_not_count() -> None:
    """Groq's usage counts them in the prompt, but its limit doesn't; OpenAI's limit counts all."""
    usage = {"prompt_tokens": 900, "prompt_tokens_details": {"cached_tokens": 640}}
    response = Response(status=200, headers={}, body=b"", data={"usage": usage}, is_json=True)
    attempt = Attempt(
        status=AttemptStatus.ANSWERED, response=response, used_tokens=1000, output_tokens=100
    )
    for url, charged in ((GROQ, 360), (MISTRAL, 1000), (OPENAI, None)):
        prices = estimator(url)
        estimate = prices.estimate(chat(max_tokens=4000))
        assert prices.charge(estimate, 5000.0, attempt) == charged
