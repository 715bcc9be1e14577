"""What the headers of an answer tell about the account's limits."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from requests.structures import CaseInsensitiveDict

from parallel_processor.models import LimitReading
from parallel_processor.providers import limit_headers
from parallel_processor.providers.limit_headers import IN_EVERY_LIMIT
from parallel_processor.ratelimit.remaining import looks_refilled

MINUTE, DAY = 60.0, 86_400.0
NOW = 1_755_780_000.0  # 2025-08-21T12:40:00Z
DATE = "Thu, 21 Aug 2025 12:40:00 GMT"


def now() -> float:
    return NOW


def read_limits(headers: Mapping[str, str], *args: Any, **more: Any) -> tuple[LimitReading, ...]:
    """What they show; whatever shows a limit has the word for which a head is searched before."""
    readings = limit_headers.read_limits(headers, *args, **more)
    assert not readings or any(IN_EVERY_LIMIT in name.lower() for name in headers)
    return readings


def reading(
    name: str,
    limit: float,
    remaining: float | None = None,
    reset_s: float | None = None,
    window_s: float = MINUTE,
) -> LimitReading:
    return LimitReading(
        name=name,
        limit=limit,
        remaining=remaining,
        reset_s=None if reset_s is None else pytest.approx(reset_s),
        window_s=window_s,
    )


def openai(kind: str, limit: object, remaining: object, reset: str) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{kind}": str(limit),
        f"x-ratelimit-remaining-{kind}": str(remaining),
        f"x-ratelimit-reset-{kind}": reset,
    }


def read_one(kind: str, limit: object, remaining: object, reset: str) -> LimitReading:
    (only,) = read_limits(openai(kind, limit, remaining, reset), now=now)
    return only


def anthropic(kind: str, limit: int, remaining: int, reset: str) -> dict[str, str]:
    prefix = f"anthropic-ratelimit-{kind}"
    return {
        f"{prefix}-limit": str(limit),
        f"{prefix}-remaining": str(remaining),
        f"{prefix}-reset": reset,
    }


# --- the providers' styles ---


def test_openai_with_a_projects_limits() -> None:
    """A project's limit is a further reading of the same name."""
    headers = {
        **openai("requests", 500, 499, "120ms"),
        **openai("tokens", 150_000, 149_984, "6ms"),
        **openai("project-tokens", 60_000, 57_000, "3s"),
        **openai("project-requests", 100, 99, "600ms"),
    }
    assert read_limits(headers) == (
        reading("requests", 500, 499, 0.12),
        reading("tokens", 150_000, 149_984, 0.006),
        reading("tokens", 60_000, 57_000, 3),
        reading("requests", 100, 99, 0.6),
    )


OPENAIS_MANUAL = openai("requests", 60, 59, "1s") | openai("tokens", 150_000, 149_984, "6m0s")
AZURES_MANUAL = openai("requests", 60, 59, "10") | openai("tokens", 150_000, 149_984, "300")
AZURES_READINGS = (reading("requests", 60, 59, 10), reading("tokens", 150_000, 149_984, 300))
GROQ = openai("requests", 14_400, 14_370, "2m59.56s") | openai("tokens", 18_000, 17_997, "7.66s")
GROQS_READINGS = (
    *(reading("requests", 14_400, 14_370, 179.56, DAY), reading("tokens", 18_000, 17_997, 7.66)),
)
TWELVE_HOURS = openai("tokens", 1000, 500, "43200")
NEGATIVE = openai("requests", -1, -1, "0") | openai("tokens", 1000, -1, "-1")


@pytest.mark.parametrize(
    ("host", "headers", "readings"),
    [
        # The example of OpenAI's own page is a minute's, although its reset is made up.
        (
            "",
            OPENAIS_MANUAL,
            (reading("requests", 60, 59, 1), reading("tokens", 150_000, 149_984, 360)),
        ),
        # Azure sends bare seconds. Its limits are a minute's, whatever the reset.
        ("", AZURES_MANUAL, AZURES_READINGS),
        ("name.openai.azure.com", AZURES_MANUAL, AZURES_READINGS),
        ("name.services.ai.azure.com", AZURES_MANUAL, AZURES_READINGS),
        ("name.openai.azure.com", TWELVE_HOURS, (reading("tokens", 1000, 500, 43_200),)),
        ("", TWELVE_HOURS, (reading("tokens", 1000, 500, 43_200, DAY),)),
        # A negative limit is none; a negative rest is unknown.
        ("name.openai.azure.com", NEGATIVE, (reading("tokens", 1000),)),
        # Groq's requests are per day and its tokens per minute, behind a gateway too.
        ("api.groq.com", GROQ, GROQS_READINGS),
        ("", GROQ, GROQS_READINGS),
        # A limit without further headers is per minute.
        ("", {"x-ratelimit-limit-tokens": "1000"}, (reading("tokens", 1000),)),
        ("", {"x-ratelimit-remaining-tokens": "1000"}, ()),
        ("", {"x-ratelimit-limit-req-minute": "0"}, ()),
        ("", {"content-type": "application/json", "date": DATE, "retry-after": "2"}, ()),
        ("", {}, ()),
    ],
)
def test_headers_in_openais_words(
    host: str, headers: dict[str, str], readings: tuple[LimitReading, ...]
) -> None:
    """The host decides the window where it is known; otherwise the numbers do."""
    assert read_limits(headers, host) == readings
    assert read_limits(CaseInsensitiveDict(headers), host) == readings


def test_anthropic() -> None:
    """Timestamps are held against the server's clock; the priority tier's limits are no readings."""
    headers = {
        "Date": DATE,
        **anthropic("requests", 1000, 994, "2025-08-21T12:40:01Z"),
        **anthropic("tokens", 540_000, 14_000, "2025-08-21T12:40:59Z"),
        **anthropic("input-tokens", 450_000, 0, "2025-08-21T12:41:18Z"),
        **anthropic("output-tokens", 90_000, 14_000, "2025-08-21T14:40:51+02:00"),
        "anthropic-priority-input-tokens-limit": "1000",
        "anthropic-ratelimit-unified-limit": "1000",
    }
    assert read_limits(headers, "api.anthropic.com", now=lambda: NOW + 7200) == (
        reading("requests", 1000, 994, 1),
        reading("tokens", 540_000, 14_000, 59),
        reading("input_tokens", 450_000, 0, 78),
        reading("output_tokens", 90_000, 14_000, 51),
    )


@pytest.mark.parametrize("date", [{}, {"date": "yesterday"}])
def test_without_the_servers_clock_ours_is_taken(date: dict[str, str]) -> None:
    """A clock that is hours off still makes no day's limit of a minute's, nor a wait below zero."""
    headers = date | anthropic("requests", 1000, 994, "2025-08-21T12:40:01Z")
    for clock, reset_s in ((NOW, 1), (NOW - 7200, 7201), (NOW + 7200, 0)):
        assert read_limits(headers, now=lambda clock=clock: clock) == (
            reading("requests", 1000, 994, reset_s),
        )


def test_groqs_windows_are_known() -> None:
    """At its host the windows are the same whatever the numbers say."""
    headers = openai("requests", 1000, 1000, "0s") | openai("tokens", 8000, 8000, "12h")
    assert [each.window_s for each in read_limits(headers, "api.groq.com")] == [DAY, MINUTE]


def test_mistral() -> None:
    """The unit is in the name, and there are no resets."""
    headers = {
        "x-ratelimit-limit-tokens-minute": "5000000",
        "x-ratelimit-remaining-tokens-minute": "4999911",
        "x-ratelimit-tokens-query-cost": "52",
        "x-ratelimit-limit-req-minute": "720",
        "x-ratelimit-remaining-req-minute": "717",
    }
    assert read_limits(headers, "api.mistral.ai") == (
        reading("tokens", 5_000_000, 4_999_911),
        reading("requests", 720, 717),
    )


def test_units_in_names() -> None:
    """Cerebras and SambaNova put the window's unit behind OpenAI's names; a month is none of ours."""
    headers = {
        **openai("requests-day", 14_400, 14_399, "33011"),
        **openai("requests-hour", 900, 899, "11.3"),
        **openai("requests-minute", 30, 29, "11.3"),
        **openai("tokens-second", 1000, 900, "0.1"),
        **openai("tokens-month", 1000, 900, "1"),
    }
    assert read_limits(headers) == (
        reading("requests", 14_400, 14_399, 33_011, DAY),
        reading("requests", 900, 899, 11.3, 3600),
        reading("requests", 30, 29, 11.3),
        reading("tokens", 1000, 900, 0.1, 1),
    )


@pytest.mark.parametrize(("wait_s", "window_s"), [(0, MINUTE), (60, MINUTE), (300, DAY)])
def test_openrouter(wait_s: int, window_s: float) -> None:
    """The reset is a Unix time in milliseconds; the minute's limit and the day's show alike."""
    headers = {
        "X-RateLimit-Limit": "20",
        "X-RateLimit-Remaining": "0",
        "X-RateLimit-Reset": str(int((NOW + wait_s) * 1000)),
    }
    expected = (reading("requests", 20, 0, wait_s, window_s),)
    assert read_limits(headers, "openrouter.ai", now=now) == expected
    assert read_limits({"date": DATE} | headers, now=lambda: NOW + 7200) == expected


@pytest.mark.parametrize("reset", [None, "", "30", "1755780030", "30s", "2025-08-21T12:40:30Z"])
def test_a_limit_of_an_unknown_window_is_no_reading(reset: str | None) -> None:
    """Any gateway may send these names, and count in any window."""
    headers = {"x-ratelimit-limit": "100", "x-ratelimit-remaining": "99"}
    if reset is not None:
        headers["x-ratelimit-reset"] = reset
    assert read_limits(headers, now=now) == ()


def test_mistrals_other_windows() -> None:
    """Some accounts have limits of ten seconds and of five minutes."""
    headers = {
        "x-ratelimit-limit-req-10-second": "60",
        "x-ratelimit-remaining-req-10-second": "59",
        "x-ratelimit-limit-tokens-5-minute": "8000",
        "x-ratelimit-remaining-tokens-5-minute": "7000",
        "x-ratelimit-limit-tokens-5": "1",
    }
    assert read_limits(headers, "api.mistral.ai") == (
        reading("requests", 60, 59, None, 10),
        reading("tokens", 8000, 7000, None, 300),
    )


@pytest.mark.parametrize("host", ["api.fireworks.ai", "gateway.example"])
def test_fireworks(host: str) -> None:
    """Its limits are of tokens a second, of the prompt and of what is generated."""
    headers = {
        "x-ratelimit-limit-tokens-prompt": "60000",
        "x-ratelimit-remaining-tokens-prompt": "59000",
        "x-ratelimit-limit-tokens-cache-adjusted-prompt": "15000",
        "x-ratelimit-limit-tokens-generated": "600",
    }
    assert read_limits(headers, host) == (
        reading("input_tokens", 60000, 59000, None, 1),
        reading("output_tokens", 600, None, None, 1),
    )


@pytest.mark.parametrize("host", ["api.together.xyz", "api.together.ai"])
def test_together(host: str) -> None:
    """All of its limits are per second, the dynamic ones too."""
    headers = {
        "x-ratelimit-limit": "10",
        "x-ratelimit-remaining": "9",
        "x-ratelimit-reset": "1",
        "x-ratelimit-limit-dynamic": "0.5",
        "x-ratelimit-remaining-dynamic": "0",
        "x-tokenlimit-limit": "3000",
        "x-tokenlimit-remaining": "2990",
        "x-tokenlimit-limit-dynamic": "1500",
        "x-tokenlimit-remaining-dynamic": "1490",
    }
    assert read_limits(headers, host) == (
        reading("requests", 10, 9, 1, 1),
        reading("requests", 0.5, 0, None, 1),
        reading("tokens", 3000, 2990, None, 1),
        reading("tokens", 1500, 1490, None, 1),
    )
    assert read_limits(headers, f"not-{host}") == ()


LITELLM = {
    "x-ratelimit-api_key-limit-requests": "120",
    "x-ratelimit-api_key-remaining-requests": "119",
    "x-ratelimit-model_per_key-limit-tokens": "9000",
    "x-ratelimit-model_per_key-remaining-tokens": "8000",
    "x-ratelimit-team_member-limit-max_parallel_requests": "4",
    "x-ratelimit-team_member-remaining-max_parallel_requests": "3",
    "x-litellm-key-rpm-limit": "200",
    "x-litellm-key-tpm-limit": "None",
    "x-litellm-key-max-budget": "10.0",
    "llm_provider-x-ratelimit-limit-requests": "5",
}


def test_litellms_limits_of_a_key_are_of_fixed_minutes() -> None:
    """Each scope's limits are read, and what runs at once has no window; unset ones are left out."""
    assert read_limits(LITELLM, now=now) == (
        reading("requests", 120, 119),
        reading("tokens", 9000, 8000),
        reading("in_flight", 4, 3, window_s=0.0),
        reading("requests", 200),
    )


KONG = {
    "X-RateLimit-Limit-Minute": "60",
    "X-RateLimit-Remaining-Minute": "59",
    "X-RateLimit-Limit-Hour": "1000",
    "RateLimit-Limit": "60",
    "RateLimit-Remaining": "59",
    "RateLimit-Reset": "41",
}


def test_kongs_names_have_their_window() -> None:
    """The unit ends the name; the IETF's fields beside them say nothing more."""
    assert read_limits(KONG, now=now) == (
        reading("requests", 60, 59),
        reading("requests", 1000, window_s=3600),
    )


@pytest.mark.parametrize(
    ("headers", "readings"),
    [
        (
            {
                "RateLimit-Policy": '"burst";q=100;w=60, "daily";q=1000;w=86400;pk=:x:',
                "RateLimit": '"burst";r=50;t=30',
            },
            (reading("requests", 100, 50, 30), reading("requests", 1000, window_s=DAY)),
        ),
        (
            {
                "RateLimit-Policy": "10;w=1, 100;w=60",
                "RateLimit-Limit": "100",
                "RateLimit-Remaining": "7",
                "RateLimit-Reset": "12",
            },
            (reading("requests", 10, window_s=1), reading("requests", 100, 7, 12)),
        ),
        ({"RateLimit-Policy": '"bytes";q=100;w=60;qu="content-bytes"'}, ()),
        ({"RateLimit-Policy": '"open";q=100'}, ()),
        ({"RateLimit-Policy": '"none";q=0;w=60, x;;=, ";q=5'}, ()),
        ({"RateLimit-Limit": "100", "RateLimit-Remaining": "7", "RateLimit-Reset": "12"}, ()),
    ],
)
def test_the_ietfs_policies_need_a_window(
    headers: dict[str, str], readings: tuple[LimitReading, ...]
) -> None:
    """Quota and window of a policy make a reading; a limit alone may be of any window."""
    assert read_limits(headers, now=now) == readings


@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("mapping", [dict, CaseInsensitiveDict])
def test_names_compare_without_regard_to_case(
    spell: type[str], mapping: type[Mapping[str, str]]
) -> None:
    """Neither the spelling nor the kind of mapping matters, and other headers don't either."""
    headers = {
        "date": DATE,
        "content-type": "application/json",
        **openai("tokens", 40_000, 39_972, "42ms"),
        **anthropic("requests", 50, 49, "2025-08-21T12:40:02Z"),
    }
    spelled = mapping({spell(name): value for name, value in headers.items()})
    assert read_limits(spelled) == (
        reading("tokens", 40_000, 39_972, 0.042),
        reading("requests", 50, 49, 2),
    )


# --- garbage ---

GARBAGE = ["", " ", "abc", "-1", "-0.5", "1e999", "nan", "inf", "9" * 400, "1,000", "9" * 19]


@pytest.mark.parametrize("text", ["0", *GARBAGE])
def test_a_limit_that_is_no_positive_number_gives_no_reading(text: str) -> None:
    """The other limits are read all the same."""
    headers = openai("requests", text, 1, "1s") | openai("tokens", 10, 9, "6s")
    assert read_limits(headers) == (reading("tokens", 10, 9, 6),)


@pytest.mark.parametrize("text", [*GARBAGE, "9999999h", "9999-01-01T00:00:00Z"])
def test_what_is_unclear_is_unknown(text: str) -> None:
    """A limit is read without what remains and without its reset."""
    headers = openai("tokens", 10, text, text)
    (only,) = read_limits(headers, now=now)
    assert (only.limit, only.remaining, only.reset_s, only.window_s) == (10, None, None, MINUTE)


VALUES = st.one_of(
    st.sampled_from([*GARBAGE, "0", "1", "500", "6m0s", "8.64s", "60", "2025-08-21T12:40:59Z"]),
    st.sampled_from(['"a";q=9;w=60', "9;w=60, 1;w=0", '"a";r=1;t=99', '"a";q=1e400;w=60']),
    st.floats().map(str),
    st.integers().map(str),
    st.text(max_size=20),
    st.from_regex(r"[-+0-9a-zA-Z:,. ]*"),
)
NAMES = st.one_of(
    st.sampled_from(
        [
            *("date", "Date", "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"),
            *("x-tokenlimit-limit", "x-tokenlimit-remaining", "x-ratelimit-limit-dynamic"),
            *openai("requests", 1, 1, ""),
            *openai("tokens", 1, 1, ""),
            *openai("project-tokens", 1, 1, ""),
            *openai("tokens-day", 1, 1, ""),
            *anthropic("requests", 1, 1, ""),
            *anthropic("output-tokens", 1, 1, ""),
            *LITELLM,
            *KONG,
            *("RateLimit", "RateLimit-Policy"),
        ]
    ),
    st.text(max_size=20),
)
HOSTS = st.sampled_from(["", "api.groq.com", "x.openai.azure.com", "api.together.ai", "a b"])


@given(st.dictionaries(NAMES, VALUES, max_size=12), HOSTS)
def test_no_headers_raise(headers: dict[str, str], host: str) -> None:
    """Whatever the server sends, every reading is finite, and its limit and window are positive."""
    for each in read_limits(headers, host, now=now):
        assert 0 < each.limit < math.inf
        assert each.remaining is None or 0 <= each.remaining < math.inf
        assert each.reset_s is None or 0 <= each.reset_s < math.inf
        assert each.window_s > 0 or each.name == "in_flight"
        assert not each.window_s or looks_refilled(each) in (True, False, None)


# --- windows ---


@pytest.mark.parametrize(
    ("kind", "limit", "remaining", "reset", "window_s", "refilled"),
    [
        ("requests", 500, 499, "120ms", MINUTE, None),
        ("tokens", 1_500_000, 1_495_621, "4m12.172s", DAY, True),
        ("requests", 10_000, 9_999, "8.64s", DAY, True),
        ("tokens", 200_000, 199_978, "6ms", MINUTE, None),
        ("tokens", 10_000, 9_481, "3.114s", MINUTE, True),
        ("requests", 10_000, 9_999, "6ms", MINUTE, None),
        ("tokens", 10_000_000, 9_999_737, "1ms", MINUTE, None),
        ("requests", 2_000, 740, "15h7m12s", DAY, True),  # Groq's
        ("requests", 2_000, 1_998, "1m26.4s", DAY, True),
        ("requests", 200, 199, "7m12s", DAY, True),
        ("requests", 200, 0, "24h0m0s", DAY, True),
        ("tokens", 150_000, 75_000, "30s", MINUTE, True),
    ],
)
def test_published_dumps(
    kind: str, limit: int, remaining: int, reset: str, window_s: float, refilled: bool | None
) -> None:
    """Buckets that refill all the time, a minute's and a day's."""
    only = read_one(kind, limit, remaining, reset)
    assert (only.window_s, looks_refilled(only)) == (window_s, refilled)


@pytest.mark.parametrize(
    ("limit", "remaining", "reset"),
    [
        (500, 499, "55s"),  # the formula gives 27,500 s
        (500, 250, "1m0s"),
        (14_400, 14_399, "6s"),  # a day's refill to the second, as a fixed window shows it too
        (10_000, 9_999, "9"),
        (10_000, 9_999, "8.9s"),
        (10_000, 0, "8.64s"),
        (60_000, 0, "1m30s"),  # in debt
        (60_000, 0, "9m59s"),
        (1000, 1000, "1m1s"),  # rounded up
        (1000, 900, "9m0s"),
        (1000, 1001, "42.5s"),
        (30_000_000, 29_999_999, "3ms"),
    ],
)
def test_what_may_be_a_minutes_limit_is_none_of_a_day(
    limit: int, remaining: int, reset: str
) -> None:
    """Fixed windows, buckets in debt and rounded values don't slow a run down a thousandfold."""
    assert read_one("tokens", limit, remaining, reset).window_s == MINUTE


@given(st.integers(1, 10**9), st.floats(0, 1), st.integers(0, 61), st.sampled_from(["{}", "{}s"]))
def test_whole_seconds_up_to_a_minute_are_no_day(
    limit: int, share: float, seconds: int, form: str
) -> None:
    """However much remains, the reset of a fixed minute is never taken for a day's."""
    only = read_one("requests", limit, int(limit * share), form.format(seconds))
    assert only.window_s == MINUTE


def test_fixed_minutes_with_fractions_hardly_ever_pass_for_a_day() -> None:
    """In a busy run, less than one response in ten thousand looks like a day's by chance."""
    dice = random.Random(1)
    wrong = answers = 0
    for limit in (500, 10_000, 150_000, 2_000_000):
        for _ in range(50):
            for used in range(0, limit, limit // 250):
                reset_s = 60 * (1 - used / limit) * dice.uniform(0.5, 1)
                only = read_one("tokens", limit, limit - used, f"{reset_s:.3f}s")
                wrong += only.window_s != MINUTE
                answers += 1
    assert wrong <= answers / 10_000


@given(st.integers(10, 10**7), st.floats(0.01, 0.99), st.sampled_from([MINUTE, DAY]))
def test_the_refill_of_a_bucket_tells_its_window(limit: int, share: float, window_s: float) -> None:
    """A hundredth of the limit in use is enough, with what remains rounded down and the reset to 1 ms."""
    used = limit * share
    reset_s = used * window_s / limit
    only = read_one("requests", limit, math.floor(limit - used), f"{reset_s:.3f}s")
    assert only.window_s == window_s
    assert looks_refilled(only) is not False


@given(st.floats(600.1, DAY), st.integers(1, 10**7), st.integers(0, 10**7))
def test_above_ten_minutes_it_is_a_day(reset_s: float, limit: int, remaining: int) -> None:
    """A reset at the end of a fixed day is recognised, whatever remains."""
    assert read_one("requests", limit, remaining, f"{reset_s:.1f}").window_s == DAY


@pytest.mark.parametrize(
    ("limit", "remaining", "reset_s", "refilled"),
    [
        (500, 499, 55, False),
        (500, 250, 55, False),
        (500, 250, 30.9, True),
        (500, 250, 31.5, False),
        (500, 250, 32, None),  # a timestamp rounded up, a clock rounded down
        (500, 250, 33, False),
        (500, 0, 60, True),
        (500, 0, 30, False),
        (500, 0, 90, True),  # in debt, which no fixed window is
        (500, 499, 90, None),  # neither
        (500, 500, 0, None),
        (500, 499, 1, None),
        (20, 18, 3.6, None),  # 18.8 remain
        (20, 18, 1.5, False),
        (500, None, 30, None),
        (500, 250, None, None),
    ],
)
def test_buckets_and_fixed_windows(
    limit: float, remaining: float | None, reset_s: float | None, refilled: bool | None
) -> None:
    """The reset follows what is used, or it doesn't, or both would look alike."""
    only = LimitReading(
        name="requests", limit=limit, remaining=remaining, reset_s=reset_s, window_s=MINUTE
    )
    assert looks_refilled(only) is refilled


@given(st.sampled_from(["requests", "tokens"]), st.floats(0, 1), st.floats(0, 1))
def test_anthropics_rounding_makes_no_fixed_window(kind: str, share: float, second: float) -> None:
    """Thousands of tokens, a timestamp rounded up and a clock rounded down are still a bucket's."""
    limit = 20_000
    used = limit * share
    remaining = math.floor(limit - used) if kind == "requests" else round(limit - used, -3)
    full_s = math.ceil(second + used * MINUTE / limit)
    reset = f"2025-08-21T12:{40 + full_s // 60}:{full_s % 60:02}Z"
    (only,) = read_limits({"date": DATE, **anthropic(kind, limit, int(remaining), reset)})
    assert looks_refilled(only) is not False


@pytest.mark.parametrize(("remaining", "refilled"), [(15_000, None), (15_001, False)])
def test_tokens_rounded_to_thousands(remaining: float, refilled: bool | None) -> None:
    """Where what remains may be rounded, a reset within that is no fixed window's."""
    only = LimitReading(
        name="tokens", limit=20_000, remaining=remaining, reset_s=12.2, window_s=MINUTE
    )
    assert looks_refilled(only) is refilled
