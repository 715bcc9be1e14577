"""Prices: of a file in either form, of genai-prices, and for a service tier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.planning.prices import Price, Prices, find_prices

URL = "https://api.openai.com/v1/chat/completions"


def priced(entries: Any, model: str, tier: str = "", url: str = URL) -> Price | None:
    prices = find_prices(entries)
    assert prices is not None
    return prices.of(url, model, tier)


def test_the_first_pattern_that_a_model_matches_counts() -> None:
    """A price is per million tokens, and cached tokens are part of the prompt."""
    table = {
        "gpt-4o*": {"input": 2.5, "output": 10, "cached_input": 1.25},
        "gpt-*": {"input": 1, "output": 1},
    }
    price = priced(table, "gpt-4o-mini")
    assert price is not None
    assert price.cost(1000, 100) == pytest.approx(0.0035)
    assert price.cost(1000, 100, cached_tokens=400) == pytest.approx(0.003)
    other = priced(table, "gpt-5")
    assert other is not None
    assert other.cost(1_000_000, 0) == 1.0
    assert priced(table, "claude-none-such") is None


def test_a_pattern_with_a_service_tier_comes_before_those_without() -> None:
    """A dearer tier without a price of its own has none; a cheaper one costs what the model does."""
    table = {
        "m*": {"input": 2, "output": 0},
        "m*@flex": {"input": 1, "output": 0},
        "dear@priority": {"input": 4, "output": 0},
        "dear": {"input": 2, "output": 0},
    }
    flex, scale = priced(table, "m", "flex"), priced(table, "m", "scale")
    assert flex is not None and flex.cost(1_000_000, 0) == 1
    assert scale is not None and scale.cost(1_000_000, 0) == 2
    assert priced(table, "m", "priority") is None
    dear = priced(table, "dear", "priority")
    assert dear is not None and dear.cost(1_000_000, 0) == 4


def test_litellms_table_is_read_as_it_is(tmp_path: Path) -> None:
    """The entry of the host's provider counts, long prompts and service tiers cost what it says."""
    path = tmp_path / "model_prices_and_context_window.json"
    entries = {
        "sample_spec": {"litellm_provider": "one of …", "input_cost_per_token": 0.0},
        "fallback_generalizations": {"rules": []},
        "g": {"litellm_provider": "openai", "input_cost_per_token": 1e-6},
        "groq/g": {"litellm_provider": "groq", "input_cost_per_token": 2e-6},
        "latest": {"alias_of": "groq/g"},
        "image": {"litellm_provider": "openai", "output_cost_per_image": 0.04},
        "long": {
            "litellm_provider": "openai",
            "input_cost_per_token": 1e-6,
            "output_cost_per_token": 2e-6,
            "output_cost_per_token_flex": 1e-6,
            "input_cost_per_token_above_200k_tokens": 3e-6,
            "input_cost_per_token_flex": 5e-7,
        },
        "staged": {
            "litellm_provider": "dashscope",
            "tiered_pricing": [
                {"input_cost_per_token": 1e-6, "output_cost_per_token": 0, "range": [0, 256e3]},
                {"input_cost_per_token": 4e-6, "output_cost_per_token": 0, "range": [256e3, 1e6]},
            ],
        },
    }
    path.write_text("\ufeff" + json.dumps(entries), "utf-8")  # a mark that editors write

    def cost(model: str, tokens: int, tier: str = "", url: str = URL) -> float:
        price = priced(path, model, tier, url)
        assert price is not None
        return price.cost(tokens, 0) / tokens * 1e6

    assert cost("g", 10) == pytest.approx(1)
    assert cost("g", 10, url="https://api.groq.com/openai/v1/chat/completions") == pytest.approx(2)
    assert cost("latest", 10) == pytest.approx(2)
    assert priced(path, "image") is None
    assert priced(path, "sample_spec") is None
    assert [cost("long", n) for n in (200_000, 200_001)] == [pytest.approx(1), pytest.approx(3)]
    assert cost("long", 10, "flex") == pytest.approx(0.5)
    assert [cost("staged", n) for n in (10, 300_000)] == [pytest.approx(1), pytest.approx(4)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "must be an object of prices by model pattern"),
        ("{", "can't read the prices in"),
        ('{"m": 2}', "the price of 'm' must be an object such as"),
        ('{"m": {"input": 1}}', "the price of 'm' lacks 'output' (0 if there is none"),
        ('{"m": {"input": 1, "output": 2, "outputs": 3}}', "has the unknown name 'outputs'"),
        ('{"m": {"input": "1", "output": 2}}', "'input' must be a number from 0, not '1'"),
        ('{"m": {"input": 1, "output": -2}}', "'output' must be a number from 0, not -2"),
        ('{"m": {"input": NaN, "output": 2}}', "'input' must be a number from 0, not nan"),
        ('{"m": {"input": 1, "output": 2}, "m": {}}', "'m' is there twice"),
        ('{"m": {"input": 2.5e-6, "output": 0}}', "'input' must be US dollars per million tokens"),
        (
            '{"m": {"litellm_provider": "a", "input_cost_per_token": 2.5}}',
            "'input_cost_per_token' must be US dollars per token, not 2.5",
        ),
        (
            '{"m": {"litellm_provider": "a", "input_cost_per_token": "1"}}',
            "'input_cost_per_token' must be a number from 0, not '1'",
        ),
        (
            '{"m": {"litellm_provider": "a", "input_cost_per_request": -1}}',
            "'input_cost_per_request' must be a number from 0, not -1",
        ),
        (
            '{"m": {"litellm_provider": "a", "input_cost_per_token_above_200k_tokens": "y"}}',
            "'input_cost_per_token_above_200k_tokens' must be a number from 0, not 'y'",
        ),
        (
            '{"m": {"litellm_provider": "a", "alias_of": ["m"]}}',
            "'alias_of' must be a name, not ['m']",
        ),
        (
            '{"m": {"litellm_provider": "a", "tiered_pricing": [5]}}',
            "'tiered_pricing' must be objects with a \"range\" of two numbers, not 5",
        ),
        (
            '{"m": {"litellm_provider": "a", "tiered_pricing": [{"range": "x"}]}}',
            "must be objects with a \"range\" of two numbers, not {'range': 'x'}",
        ),
        (
            '{"m": {"litellm_provider": "a", "tiered_pricing": [{"input_cost_per_token": -1}]}}',
            "'input_cost_per_token' must be a number from 0, not -1",
        ),
    ],
)
def test_a_wrong_file_is_refused_with_the_name_of_the_entry(
    text: str, words: str, tmp_path: Path
) -> None:
    """The message says what the entry may hold."""
    path = tmp_path / "prices.json"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigurationError) as raised:
        find_prices(path)
    assert str(path) in str(raised.value)
    assert words in str(raised.value)


def test_the_most_that_a_request_costs_has_the_dearest_use_of_a_cache() -> None:
    """A prompt that is written to a cache costs more than one that is not."""
    table = {"m": {"input": 3, "output": 15, "cached_input": 0.3, "cache_write": 3.75}}
    price = priced(table, "m")
    assert price is not None
    assert price.most(1_000_000, 0) == 3.75
    assert price.cost(1_000_000, 0, cache_write_tokens=1_000_000) == 3.75


def test_genai_prices_knows_the_models_of_hosts_and_of_gateways() -> None:
    """A provider's host has its own models alone; elsewhere the model's name tells the price."""
    pytest.importorskip("genai_prices")
    prices = Prices(uses_package=True)
    known, gateway = prices.of(URL, "gpt-4o-mini"), prices.of("http://127.0.0.1:1/v1/x", "gpt-4o")
    assert known is not None and known.cost(1_000_000, 1_000_000) == pytest.approx(0.75)
    assert gateway is not None
    assert prices.of("https://api.anthropic.com/v1/messages", "gpt-4o") is None
    assert prices.of(URL, "no-such-model") is None
    assert prices.of(URL, "gpt-4.1-2025-04-14", "priority") != prices.of(URL, "gpt-4.1-2025-04-14")
    assert prices.of(URL, "text-embedding-3-small", "priority") is None
    long = prices.of("https://generativelanguage.googleapis.com/v1beta/x", "gemini-2.5-pro")
    assert long is not None and long.rates(300_000).input == 2 * long.rates(1000).input
