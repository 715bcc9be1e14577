"""What is reserved for a request, and how it follows what answers turn out to use."""

from __future__ import annotations

from typing import Any

import pytest

from parallel_processor.formats import made_request
from parallel_processor.models import Cost, Endpoint, Request
from parallel_processor.options import Options
from parallel_processor.pricing import Pricing
from parallel_processor.tokens import TokenCounter

OPENAI = "https://api.openai.com/v1/chat/completions"
AZURE = "https://r.openai.azure.com/openai/v1/chat/completions"
GROQ = "https://api.groq.com/openai/v1/chat/completions"
ANTHROPIC = "https://api.anthropic.com/v1/messages"
LOCAL = "http://localhost:8000/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Say something."}]


def pricing(url: str = OPENAI, **settings: Any) -> Pricing:
    """What a processor of requests to ``url`` reserves."""
    return Pricing(Options(request_url=url, **settings))


def chat(**more: Any) -> Request:
    """A chat request."""
    return made_request({"model": "gpt-4o", "messages": MESSAGES, **more}, 1)


def cost(prices: Pricing, request: Request) -> Cost:
    """What an attempt is expected to be charged now."""
    return prices.cost(prices.estimate(request))


def learn(prices: Pricing, request: Request, *sizes: int) -> None:
    """Ten answers of each size."""
    for size in sizes:
        for _ in range(10):
            prices.learn(prices.estimate(request), size)


def test_the_cost_is_the_prompt_and_the_answers_part() -> None:
    """Both are told, since servers may limit them apart."""
    request = chat(max_tokens=100)
    prompt = TokenCounter().input_tokens(request.body, Endpoint.CHAT)
    assert prompt > 5
    assert cost(pricing(), request) == Cost(prompt + 100, 100)


@pytest.mark.parametrize(("n", "output"), [(1, 40), (3, 120)])
def test_a_request_without_a_cap_reserves_the_default(n: int, output: int) -> None:
    """As long as nothing is known, each answer is expected to have the default's length."""
    assert cost(pricing(default_output_tokens=40), chat(n=n)).output_tokens == output


@pytest.mark.parametrize("url", [OPENAI, AZURE, GROQ, LOCAL])
def test_a_request_without_a_cap_reserves_what_answers_used(url: str) -> None:
    """Everywhere, what nine of ten recent answers stayed within takes the default's place."""
    prices = pricing(url)
    learn(prices, chat(), 500)
    assert cost(prices, chat()).output_tokens == 500


@pytest.mark.parametrize("url", [OPENAI, AZURE, LOCAL])
def test_where_the_cap_is_charged_it_is_reserved(url: str) -> None:
    """OpenAI, Azure and who isn't known charge the most that a request may use, whatever it used."""
    prices = pricing(url)
    learn(prices, chat(max_tokens=4000), 10)
    assert prices.charges_use is False
    assert cost(prices, chat(max_tokens=4000)).output_tokens == 4000


def test_where_use_is_charged_a_high_cap_costs_what_answers_use() -> None:
    """A cap that is ten times too high doesn't leave nine tenths of the limit unused."""
    prices = pricing(GROQ)
    assert prices.charges_use is True
    assert cost(prices, chat(max_tokens=4000)).output_tokens == 4000  # nothing is known yet
    learn(prices, chat(max_tokens=4000), 30)
    assert cost(prices, chat(max_tokens=4000)).output_tokens == 30


def test_no_more_than_the_cap_is_reserved() -> None:
    """However long the answers of other requests were, the cap bounds this one's."""
    prices = pricing(GROQ)
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
    """What is known of the host counts only as long as nothing else is said."""
    prices = pricing(url, token_accounting=accounting)
    assert prices.charges_use is (output == 30)
    learn(prices, chat(), 30)
    assert cost(prices, chat(max_tokens=4000)).output_tokens == output


def test_what_was_learned_meanwhile_counts() -> None:
    """A request is counted once, and reserves what is known when it is sent."""
    prices = pricing(GROQ)
    estimate = prices.estimate(chat(max_tokens=4000))
    assert prices.cost(estimate).output_tokens == 4000
    learn(prices, chat(), 30)
    assert prices.cost(estimate) == Cost(estimate.input_tokens + 30, 30)


def test_models_and_endpoints_are_told_apart() -> None:
    """What one model writes says nothing of another, nor of the same one's other answers."""
    prices = pricing(GROQ)
    learn(prices, chat(), 500)
    assert cost(prices, chat(model="gpt-4o-mini")).output_tokens == 16
    row = Request(
        body={"model": "gpt-4o", "input": "Hi"},
        payload=b"",
        number=1,
        custom_id="a",
        url="https://api.groq.com/openai/v1/responses",
    )
    assert cost(prices, row).output_tokens == 16
    learn(prices, row, 70)
    assert cost(prices, row).output_tokens == 70
    assert cost(prices, chat()).output_tokens == 500


def test_an_embedding_has_no_output() -> None:
    """Whatever was learned, the prompt is all that an embedding costs."""
    prices = pricing("https://api.mistral.ai/v1/embeddings")
    request = made_request({"model": "e", "input": "Say something."}, 1)
    before = cost(prices, request)
    learn(prices, request, 0)
    assert cost(prices, request) == before == Cost(before.tokens, 0)


def test_an_anthropic_cap_is_not_reserved_once_answers_are_known() -> None:
    """``max_tokens`` is a must there, and says little."""
    prices = pricing(ANTHROPIC)
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
    prices = pricing(url)
    request = made_request({"contents": [{"parts": [{"text": "Say something."}]}]}, 1)
    learn(prices, request, 500)
    assert cost(prices, request).output_tokens == 500


@pytest.mark.parametrize(
    ("body", "model"),
    [
        ({"model": "gpt-4o"}, "gpt-4o"),
        ({"model": "m" * 256}, "m" * 256),
        ({"model": "m" * 257}, ""),
        ({"model": ""}, ""),
        ({"model": None}, ""),
        ({"model": 5}, ""),
        ({"model": ["gpt-4o"]}, ""),
        ({}, ""),
        ("a line that is none", ""),
        (None, ""),
    ],
)
def test_the_model_is_read_from_any_body(body: Any, model: str) -> None:
    """What isn't a name of a sensible length is none."""
    assert Request(body=body).model == model
