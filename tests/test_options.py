"""Every setting is checked when it is made, and is a keyword argument of the same name."""

from __future__ import annotations

import dataclasses
import inspect
import math
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from parallel_processor import Processor, Settings, options, process_file
from parallel_processor.exceptions import ConfigurationError
from parallel_processor.options import Limits, Options, RetryPolicy

SETTINGS = (Limits, RetryPolicy, Options)
NUMBERS = {
    Limits: (
        *("requests_per_minute", "tokens_per_minute"),
        *("input_tokens_per_minute", "output_tokens_per_minute", "burst_seconds", "headroom"),
    ),
    RetryPolicy: ("backoff_initial_s", "backoff_max_s", "pause_s", "rate_limit_deadline_s"),
    Options: ("request_timeout_s", "connect_timeout_s", "drain_s"),
}
WHOLE = {
    RetryPolicy: ("max_attempts",),
    Options: ("max_workers", "max_response_bytes", "default_output_tokens"),
}
MAY_BE_ZERO = {
    *("backoff_initial_s", "backoff_max_s", "pause_s", "rate_limit_deadline_s"),
    *("drain_s", "default_output_tokens", "headroom"),
}
MAY_BE_INFINITE = {
    *("requests_per_minute", "tokens_per_minute", "rate_limit_deadline_s", "drain_s"),
    *("input_tokens_per_minute", "output_tokens_per_minute"),
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
    "value", ["5", None, True, [1], math.nan, -1, -math.inf, pytest.param(10**400, id="huge")]
)
def test_what_is_no_amount_is_refused(kind: Any, name: str, value: Any) -> None:
    """The message names the field and the value."""
    if name in {n for names in WHOLE.values() for n in names} and value == 10**400:
        value = 1e9  # a whole number of any size will do, but no float
    if name == "pause_s" and value is None:
        value = "none"  # it may be left to the program
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
        (Limits, "headroom", 0.9),
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


def test_a_limit_may_be_found_out() -> None:
    """Only that on requests or on tokens; no other word stands for a limit."""
    for name in NUMBERS[Limits][:2]:
        assert getattr(Limits(**{name: "auto"}), name) == "auto"
        for word in ("AUTO", "inf", ""):
            assert refused(Limits, name, word).endswith(f"a number, inf or auto, not {word!r}")
    for name in NUMBERS[Limits][2:]:
        assert refused(Limits, name, "auto") == f"{name} must be a number, not 'auto'"


@pytest.mark.parametrize(
    ("requests", "tokens", "is_auto"),
    [
        *((1500, 125_000, False), (math.inf, math.inf, False)),
        *(("auto", 125_000, True), (math.inf, "auto", True), ("auto", "auto", True)),
    ],
)
def test_limits_say_whether_something_is_found_out(
    requests: Any, tokens: Any, is_auto: bool
) -> None:
    """One word is enough."""
    assert Limits(requests_per_minute=requests, tokens_per_minute=tokens).is_auto is is_auto


def test_the_ceilings_are_by_what_they_count() -> None:
    """In the order of a request's costs; what has no number has no maximum."""
    limits = Limits(
        requests_per_minute="auto",
        tokens_per_minute=600,
        input_tokens_per_minute=400,
        output_tokens_per_minute=200,
    )
    assert list(limits.by_kind) == ["requests", "tokens", "input_tokens", "output_tokens"]
    assert list(limits.by_kind.values()) == [math.inf, 600, 400, 200]
    assert list(Limits().by_kind.values()) == [1500, 125_000, math.inf, math.inf]


def test_headroom_is_taken_off_every_ceiling() -> None:
    """What is left to others counts for what was typed as well."""
    limits = Limits(
        requests_per_minute=100,
        tokens_per_minute=math.inf,
        input_tokens_per_minute=1000,
        output_tokens_per_minute=10,
        headroom=0.25,
    )
    assert list(limits.by_kind.values()) == [75, math.inf, 750, 7.5]
    assert limits.requests_per_minute == 100


@pytest.mark.parametrize(
    "value",
    [
        *(None, 5, "gpt-4o*", [("gpt-4o*", Limits())], {"gpt-4o*": 500}, {5: Limits()}),
        *({"gpt-4o*": None}, {"good": Limits(), "bad": {"requests_per_minute": 5}}),
    ],
)
def test_limits_by_model_are_limits_by_pattern(value: Any) -> None:
    """The message names the field and the value."""
    message = refused(Options, "limits_by_model", value)
    assert message == f"limits_by_model must be a Limits for each pattern, not {value!r}"


def test_limits_by_model_are_there_in_their_order() -> None:
    """No limits by default; those that are given stay as they are."""
    assert Options().limits_by_model == {}
    by_model = {"b*": Limits(requests_per_minute=5), "a*": Limits(), "": Limits()}
    assert list(Options(limits_by_model=by_model).limits_by_model.items()) == list(by_model.items())


def test_token_accounting_is_one_of_three() -> None:
    """The message names the choice."""
    assert Options().token_accounting == "auto"
    for choice in ("auto", "reserve", "usage"):
        assert Options(token_accounting=choice).token_accounting == choice
    for value in ("used", "", None, True, []):
        message = refused(Options, "token_accounting", value)
        assert message == f"token_accounting must be auto, reserve or usage, not {value!r}"


_URLS = "https://api.openai.com/v1 http://localhost:8000/v1 HTTPS://h http://[::1]:80/x?y=z"


@pytest.mark.parametrize("url", _URLS.split())
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


@pytest.mark.parametrize(
    ("url", "bare", "login"),
    [
        ("https://me:p%40ss@h:8443/v1?a=b", "https://h:8443/v1?a=b", "me:p@ss"),
        ("https://token@h/v1", "https://h/v1", "token:"),
        ("https://a@b:pass@[::1]/v1", "https://[::1]/v1", "a@b:pass"),
        ("https://@h/v1", "https://h/v1", None),
        ("https://h/v1/@me", "https://h/v1/@me", None),
    ],
)
def test_a_login_is_taken_out_of_the_url(url: str, bare: str, login: str | None) -> None:
    """So it can't get into a log, a record or a report; another copy of the options has it, too."""
    options = dataclasses.replace(Options(request_url=url))
    assert (options.request_url, options.login) == (bare, login)
    assert "pass" not in repr(options) and "ss@" not in repr(options)


def test_a_login_of_its_own_outranks_the_urls() -> None:
    """A program may give it without quoting it for a URL."""
    options = Options(request_url="https://a:b@h/v1", login="me:pass")
    assert (options.request_url, options.login) == ("https://h/v1", "me:pass")


@pytest.mark.parametrize("url", ["https://me:se/cret@h/v1", "https://me:s@e/cret@h/v1"])
def test_a_url_that_its_password_breaks_does_not_show_it(url: str) -> None:
    """A slash must be written as %2F; the error shows no part of the password."""
    with pytest.raises(ConfigurationError) as caught:
        Options(request_url=url)
    assert "cret" not in str(caught.value) and "me:" not in str(caught.value)


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
    """The script's flags without a value mean the same here, but for the pause, which is found."""
    options = Options()
    assert options.request_url == "https://api.openai.com/v1/embeddings"
    assert (options.limits.requests_per_minute, options.limits.tokens_per_minute) == (1500, 125_000)
    assert (options.retry.max_attempts, options.retry.pause_s) == (5, None)


# Settings: the same names as keyword arguments


def test_the_settings_are_the_options() -> None:
    """Every field of ``Options`` is a setting of the same type, in the same order, and nothing else is."""
    wanted = get_type_hints(Options, vars(options))
    assert list(get_type_hints(Settings).items()) == list(wanted.items())


def test_any_setting_may_be_missing() -> None:
    """No setting is required, since each option has a default."""
    assert Settings.__required_keys__ == frozenset()
    assert Settings.__optional_keys__ == set(Settings.__annotations__)


@pytest.mark.parametrize("function", [Processor, process_file])
def test_the_settings_are_the_keyword_arguments(function: object) -> None:
    """A function that takes settings takes these; its own parameters have other names."""
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    assert parameters["settings"].annotation == "Unpack[Settings]"
    assert not set(parameters) & set(Settings.__annotations__)


def test_type_checkers_may_read_the_package() -> None:
    """The marker of PEP 561 is beside the modules, in the wheel too."""
    assert Path(inspect.getfile(Processor)).with_name("py.typed").is_file()
