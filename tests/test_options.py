"""Every setting is checked when it is made."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.options import Limits, Options, RetryPolicy

SETTINGS = (Limits, RetryPolicy, Options)
NUMBERS = {
    Limits: ("requests_per_minute", "tokens_per_minute", "burst_seconds"),
    RetryPolicy: ("backoff_initial_s", "backoff_max_s", "pause_s", "rate_limit_deadline_s"),
    Options: ("request_timeout_s", "connect_timeout_s", "drain_s"),
}
WHOLE = {
    RetryPolicy: ("max_attempts",),
    Options: ("max_workers", "max_response_bytes", "default_output_tokens"),
}
MAY_BE_ZERO = {
    *("backoff_initial_s", "backoff_max_s", "pause_s", "rate_limit_deadline_s"),
    *("drain_s", "default_output_tokens"),
}
MAY_BE_INFINITE = {
    *("requests_per_minute", "tokens_per_minute", "rate_limit_deadline_s", "drain_s"),
}


def fields(table: dict[Any, tuple[str, ...]]) -> list[Any]:
    """The class and name of every field in the table."""
    return [pytest.param(kind, name, id=name) for kind, names in table.items() for name in names]


def refused(kind: Any, name: str, value: Any) -> str:
    """What is said against the value."""
    with pytest.raises(ConfigurationError) as caught:
        kind(**{name: value})
    return str(caught.value)


@pytest.mark.parametrize(("kind", "name"), fields(NUMBERS) + fields(WHOLE))
@pytest.mark.parametrize(
    "value",
    ["5", None, True, [1], math.nan, -1, -math.inf, pytest.param(10**400, id="huge")],
)
def test_what_is_no_amount_is_refused(kind: Any, name: str, value: Any) -> None:
    """The message names the field and the value."""
    if name in {n for names in WHOLE.values() for n in names} and value == 10**400:
        value = 1e9  # a whole number of any size will do, but no float
    message = refused(kind, name, value)
    assert message.startswith(f"{name} must be ")
    assert message.endswith(f"not {value!r}")


@pytest.mark.parametrize(("kind", "name"), fields(NUMBERS) + fields(WHOLE))
def test_zero_is_allowed_where_it_makes_sense(kind: Any, name: str) -> None:
    """No limit and no timeout can be nothing; a wait can."""
    if name in MAY_BE_ZERO:
        assert getattr(kind(**{name: 0}), name) == 0
    else:
        assert refused(kind, name, 0).endswith("not 0")


@pytest.mark.parametrize(("kind", "name"), fields(NUMBERS))
def test_infinity_is_allowed_where_it_makes_sense(kind: Any, name: str) -> None:
    """A limit may be switched off; what the system has to wait for may not."""
    if name in MAY_BE_INFINITE:
        assert getattr(kind(**{name: math.inf}), name) == math.inf
    else:
        assert refused(kind, name, math.inf).endswith("not inf")


@pytest.mark.parametrize(
    ("kind", "name", "most"),
    [
        (Limits, "burst_seconds", 60),
        (RetryPolicy, "backoff_max_s", 1_000_000),
        (RetryPolicy, "pause_s", 1_000_000),
        (Options, "request_timeout_s", 1_000_000),
        (Options, "connect_timeout_s", 1_000_000),
    ],
)
def test_upper_bounds(kind: Any, name: str, most: float) -> None:
    """The bound itself is allowed, more isn't."""
    assert getattr(kind(**{name: most}), name) == most
    assert refused(kind, name, most + 1).endswith(f"not {most + 1!r}")


@pytest.mark.parametrize(
    "url",
    [
        "https://api.openai.com/v1/chat/completions",
        "http://localhost:8000/v1",
        "HTTPS://h",
        "http://[::1]:80/x?y=z",
    ],
)
def test_urls_that_work(url: str) -> None:
    """Any host, http or https."""
    assert Options(request_url=url).request_url == url


@pytest.mark.parametrize(
    "url",
    [
        *("", "api.openai.com/v1", "/v1", "ftp://h/", "https://", "https:///v1", "file:///x"),
        *("https://[::1/v1", "https://h:99999/", "https://h:x/", "https://h/\n", "https://a b/"),
        *(None, 5, b"https://h/"),
    ],
)
def test_urls_that_cannot_work_are_refused(url: Any) -> None:
    """The message names the field and the value."""
    message = refused(Options, "request_url", url)
    assert message == f"request_url must be an http:// or https:// URL, not {url!r}"


def test_a_key_in_a_url_is_not_shown() -> None:
    """The query, where it may be, is left out of the message."""
    assert "secret" not in refused(Options, "request_url", "htps://h/v1?key=secret")


@pytest.mark.parametrize("key", ["key\n", " key", "key ", "k\u00e9y", "k\0y", "\t", b"key", 5])
def test_keys_that_cannot_be_sent_are_refused(key: Any) -> None:
    """The message names the field, and never the key."""
    message = refused(Options, "api_key", key)
    assert message == "api_key must be printable ASCII without spaces around it"


def test_a_key_is_not_in_the_repr() -> None:
    """Options can be logged."""
    assert "secret" not in repr(Options(api_key="secret-1234567890"))
    assert Options(api_key="").api_key == ""
    assert Options().api_key is None


@pytest.mark.parametrize(
    ("name", "value"), [("limits", None), ("limits", {}), ("retry", 5), ("session_factory", "s")]
)
def test_parts_have_their_types(name: str, value: Any) -> None:
    """The message names the field and the value."""
    message = refused(Options, name, value)
    assert message.startswith(f"{name} must be a")
    assert message.endswith(f"not {value!r}")


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_are_frozen_and_keyword_only(kind: Any) -> None:
    """A setting that was checked stays as it was."""
    settings = kind()
    for field in dataclasses.fields(kind):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(settings, field.name, 1)
    with pytest.raises(TypeError):
        kind(1)
    assert settings == kind()


def test_the_defaults_are_the_cookbooks() -> None:
    """The script's flags without a value mean the same here."""
    options = Options()
    assert options.request_url == "https://api.openai.com/v1/embeddings"
    assert (options.limits.requests_per_minute, options.limits.tokens_per_minute) == (1500, 125_000)
    assert (options.retry.max_attempts, options.retry.pause_s) == (5, 15)
