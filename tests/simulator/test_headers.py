"""How the simulator tells its limits, to the letter, in each provider's style."""

from __future__ import annotations

import pytest

from parallel_processor.simulator.headers import HEADER_STYLES, LimitHeaders
from parallel_processor.simulator.quotas import QuotaLevel

WALL_S = 1_755_780_000.25  # 2025-08-21T12:40:00.25Z

LEVELS = (
    QuotaLevel(name="requests", limit=600, level=590.9, reset_s=0.91),
    QuotaLevel(name="tokens", limit=30_000, level=28_400, reset_s=3.2),
    QuotaLevel(name="input-tokens", limit=20_000, level=18_500, reset_s=4.5),
    QuotaLevel(name="output-tokens", limit=5_000, level=-1_000, reset_s=72),
    QuotaLevel(name="requests-per-day", limit=14_400, level=14_370, reset_s=180),
)

OPENAI = """\
x-ratelimit-limit-requests: 600
x-ratelimit-remaining-requests: 590
x-ratelimit-reset-requests: 910ms
x-ratelimit-limit-tokens: 30000
x-ratelimit-remaining-tokens: 28400
x-ratelimit-reset-tokens: 3.2s
"""

PROJECT = """\
x-ratelimit-limit-requests: 600
x-ratelimit-remaining-requests: 590
x-ratelimit-reset-requests: 910ms
x-ratelimit-limit-tokens: 300000
x-ratelimit-remaining-tokens: 298400
x-ratelimit-reset-tokens: 320ms
x-ratelimit-limit-project-tokens: 30000
x-ratelimit-remaining-project-tokens: 28400
x-ratelimit-reset-project-tokens: 3.2s
"""

AZURE = """\
x-ratelimit-limit-requests: 600
x-ratelimit-remaining-requests: 590
x-ratelimit-reset-requests: 1
x-ratelimit-limit-tokens: 30000
x-ratelimit-remaining-tokens: 28400
x-ratelimit-reset-tokens: 4
"""

AZURE_UNKNOWN = """\
x-ratelimit-limit-requests: -1
x-ratelimit-remaining-requests: -1
x-ratelimit-reset-requests: 0
x-ratelimit-limit-tokens: -1
x-ratelimit-remaining-tokens: -1
x-ratelimit-reset-tokens: 0
"""

ANTHROPIC = """\
anthropic-ratelimit-requests-limit: 600
anthropic-ratelimit-requests-remaining: 590
anthropic-ratelimit-requests-reset: 2025-08-21T12:40:02Z
anthropic-ratelimit-tokens-limit: 30000
anthropic-ratelimit-tokens-remaining: 28000
anthropic-ratelimit-tokens-reset: 2025-08-21T12:40:04Z
anthropic-ratelimit-input-tokens-limit: 20000
anthropic-ratelimit-input-tokens-remaining: 19000
anthropic-ratelimit-input-tokens-reset: 2025-08-21T12:40:05Z
anthropic-ratelimit-output-tokens-limit: 5000
anthropic-ratelimit-output-tokens-remaining: 0
anthropic-ratelimit-output-tokens-reset: 2025-08-21T12:41:13Z
"""

GROQ = """\
x-ratelimit-limit-tokens: 30000
x-ratelimit-remaining-tokens: 28400
x-ratelimit-reset-tokens: 3.2s
x-ratelimit-limit-requests: 14400
x-ratelimit-remaining-requests: 14370
x-ratelimit-reset-requests: 3m0s
"""

MISTRAL = """\
x-ratelimit-limit-req-minute: 600
x-ratelimit-remaining-req-minute: 590
x-ratelimit-limit-tokens-minute: 30000
x-ratelimit-remaining-tokens-minute: 28400
x-ratelimit-tokens-query-cost: 123
"""

SECONDS = "Retry-After: 20\r\n"
MILLISECONDS = "retry-after-ms: 19500\r\n"


def levels(style: str, shown: tuple[QuotaLevel, ...] = LEVELS) -> str:
    """Write levels in a style, as lines without CR."""
    text = LimitHeaders(style, wall=lambda: WALL_S).levels(shown, 123)
    assert text.count("\r\n") == text.count("\n")
    return text.replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("style", "limits", "wait"),
    [
        ("openai", OPENAI, SECONDS + MILLISECONDS),
        ("project", PROJECT, SECONDS + MILLISECONDS),
        ("azure", AZURE, SECONDS + MILLISECONDS),
        ("azure_unknown", AZURE_UNKNOWN, ""),
        ("anthropic", ANTHROPIC, SECONDS),
        ("groq", GROQ, SECONDS),
        ("mistral", MISTRAL, SECONDS),
        ("none", "", SECONDS + MILLISECONDS),
    ],
)
def test_each_style_has_its_own_words(style: str, limits: str, wait: str) -> None:
    """Names, units and rounding are the provider's. Some tell the wait in milliseconds, one never."""
    assert levels(style) == limits
    assert LimitHeaders(style).wait(19.5) == wait


@pytest.mark.parametrize("style", HEADER_STYLES)
def test_only_what_is_limited_is_told(style: str) -> None:
    """Without limits there are no headers, but for the style that never knows."""
    assert levels(style, ()) == (AZURE_UNKNOWN if style == "azure_unknown" else "")


def test_an_age_is_still_a_date() -> None:
    """A debt of millennia is paid at the end of the year 9999."""
    debt = QuotaLevel(name="requests", limit=1, level=-1e12, reset_s=6e13)
    assert "reset: 9999-12-31T23:59:59Z" in levels("anthropic", (debt,))
