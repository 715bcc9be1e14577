"""Keys are removed from texts, and nothing else is."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.credentials.redact import Redactor

KEY = "sk-proj-Ab3dEfGh1jKlMn0pQrStUvWxYz"


@pytest.mark.parametrize(
    "key", [KEY, "0123456789abcdef", "a.b+c/d==(x)[y]", "key with spaces", "EMPTY"]
)
@pytest.mark.parametrize(
    "text", ["{}", "Bearer {}", "key={}&a=b", '"{}"', "a {} b {} c", "\\n{}\\n"]
)
def test_the_key_is_replaced_wherever_it_stands(key: str, text: str) -> None:
    """Any key, alone or between other characters."""
    shown = Redactor(key)(text.replace("{}", key))
    assert key not in shown
    assert "[redacted]" in shown


@pytest.mark.parametrize("written", [quote_plus, quote])
def test_a_parameter_is_replaced_as_it_stands_in_a_url(written: Callable[[str], str]) -> None:
    """Servers that don't know a path repeat it with its query."""
    secret = 'ab/cd+ef==Z "q'
    assert Redactor(secret)(f"no /v1?code={written(secret)}&a=b") == "no /v1?code=[redacted]&a=b"


@pytest.mark.parametrize(
    "shown",
    [
        f"Incorrect API key provided: {KEY[:8]}{'*' * 20}{KEY[-4:]}. You can find your key at x",
        f"Incorrect API key provided: {KEY[:4]}***{KEY[-4:]}",
        f"Your api key: ****{KEY[-4:]} is invalid",
        f"key …{KEY[-4:]} is invalid",
        f"key ...{KEY[-4:]} is invalid",
        f"key {KEY[:8]}... is invalid",
        f"key {KEY[:4]}…{KEY[-4:]} is invalid",
    ],
)
def test_a_shown_part_of_the_key_is_replaced(shown: str) -> None:
    """The first and the last characters, with asterisks or dots for the rest."""
    text = Redactor(KEY)(shown)
    assert "[redacted]" in text
    assert KEY[:4] not in text
    assert KEY[-4:] not in text


@pytest.mark.parametrize(
    "other",
    [
        *("sk-1234567890abcdef", "sk-ant-api03-abc_DEF-123", "sk-or-v1-0123456789abcdef"),
        *("sk-svcacct-********************wxyz", "sk-" + "a" * 37, "xai-1234567890"),
        *("pk-lf-1234567890", "gsk_1234567890abcdef", "AIzaSyA1234567890abcdefghijklmnopqrstuv"),
        *("Bearer abcdef0123456789", "bearer  eyJhbGciOi.eyJzdWIi0iIx.c2ln+/=~"),
        "BEARER\tabcdefgh********",
    ],
)
@pytest.mark.parametrize("redactor", [Redactor(None), Redactor(""), Redactor(KEY)])
@pytest.mark.parametrize("around", ["{}", "key: {}", "({})", "key_{}", "'{}'", "a\\n{}", "{}, b"])
def test_what_looks_like_a_key_is_replaced(other: str, redactor: Redactor, around: str) -> None:
    """Anybody's key, with or without a key of one's own."""
    text = redactor(around.replace("{}", other))
    assert text == around.replace("{}", "[redacted]")


@pytest.mark.parametrize("key", [None, "", KEY, "test-key-0123456789", "EMPTY", "x"])
@pytest.mark.parametrize(
    "text",
    [
        *("", "task-1234567890", "sk-ip", "risk-assessment-2024", "disk-1234567890"),
        *("sk-learn-like", "key-performance-indicator-1", "monkey-1234567890", "bearer token"),
        *("Bearer authentication", "…", ".", "test.", "a test_results_2.jsonl", "x1 axe 2x"),
        *("**bold** *text*", "wait...", "**********"),
        "Rate limit reached for gpt-4o in organization org-abc123 on tokens per min (TPM)",
        "sk-" + "a" * 36,
        *("req_0123456789abcdef", "chatcmpl-0123456789abcdef", '{"a": [1, 2.5e10, null]}'),
    ],
)
def test_ordinary_text_stays(key: str | None, text: str) -> None:
    """Words that only resemble a key, or contain a short one, are left alone."""
    assert Redactor(key)(text) == text


KEYS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40)


@given(KEYS, st.text(), st.text())
def test_no_text_hides_the_key(key: str, before: str, after: str) -> None:
    """The key never survives, whatever stands around it."""
    if key not in "[redacted]":
        assert key not in Redactor(key)(f"{before}{key}{after}").replace("[redacted]", " ")


@pytest.mark.parametrize(
    "text",
    [
        *("*", "…", ".", "*…", "sk-p", "sk-pa", "sk-", "sk-.", "bearer ", "bearer\t\n", "AIza"),
        *("gsk_", "a", "\\n", "sk-p*", KEY[:-1], KEY[-4:], "." + KEY[-4:-1], "*" + KEY[-4:-1]),
    ],
)
def test_a_megabyte_takes_no_time(text: str) -> None:
    """No pattern reads the same character again and again."""
    redact = Redactor(KEY)
    started_at = time.process_time()
    redact(text * (1_000_000 // len(text)) + "!")
    redact("sk-" + text * (1_000_000 // len(text)))
    redact("bearer " + text * (1_000_000 // len(text)))
    assert time.process_time() - started_at < 3


def test_every_secret_of_a_login_is_replaced() -> None:
    """The password and the header that carries it, whole or masked; a missing one changes nothing."""
    redact = Redactor(None, "hunter2-hunter2", "bWU6aHVudGVyMi1odW50ZXIy", "")
    text = "got hunter2-hunter2, Basic bWU6aHVudGVyMi1odW50ZXIy and hunt...ter2"
    assert redact(text) == "got [redacted], Basic [redacted] and [redacted]"


def test_secrets_that_come_and_go_are_replaced() -> None:
    """What a key was before it expired is as secret as what it is."""
    keys = ["first-0123456789"]
    redact = Redactor("fixed-0123456789", more=lambda: keys)
    assert redact("first-0123456789 second-0123456789") == "[redacted] second-0123456789"
    keys.append("second-0123456789")
    text = "first-0123456789 second-0123456789 fixed-0123456789"
    assert redact(text) == "[redacted] [redacted] [redacted]"
