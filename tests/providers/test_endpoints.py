"""What a URL tells about its provider."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.models import Endpoint
from parallel_processor.options import Options
from parallel_processor.providers.dialects import endpoint_of
from parallel_processor.providers.endpoints import (
    auth_headers,
    charges_reservation,
    check_key,
    check_url,
    needs_key,
    resolve_url,
    sent_headers,
    tell_unused,
    url_advice,
)

KEY = "sk-test-1234567890"
BEARER = {"Authorization": f"Bearer {KEY}"}
ANTHROPIC = {"x-api-key": KEY, "anthropic-version": "2023-06-01"}
AZURE = "https://r.openai.azure.com/openai/deployments/d/chat/completions?api-version=2024-10-21"
OPENAI = "https://api.openai.com/v1/chat/completions"
GEMINI = "https://generativelanguage.googleapis.com/v1beta"
GEMINI_CHAT = f"{GEMINI}/openai/chat/completions"


def test_a_header_may_replace_one_that_is_not_the_keys() -> None:
    """Anthropic's version, besides a key; the key's own header may not."""
    url = "https://api.anthropic.com/v1/messages"
    newer = Options(request_url=url, api_key=KEY, headers={"Anthropic-Version": "2024-01-01"})
    check_key(newer)
    assert sent_headers(newer, url, KEY) == {"x-api-key": KEY, "Anthropic-Version": "2024-01-01"}
    with pytest.raises(ConfigurationError, match="the header x-api-key"):
        check_key(Options(request_url=url, api_key=KEY, headers={"X-Api-Key": "other"}))


@pytest.mark.parametrize(
    "host",
    ["https://api.openai.com", "http://localhost:8000", "http://[::1]:80/proxy", "https://H"],
)
@pytest.mark.parametrize("suffix", ["", "/", "?api-version=2024-10-21", "/?a=/v1/embeddings"])
@pytest.mark.parametrize(
    ("path", "endpoint"),
    [
        ("/v1/chat/completions", Endpoint.CHAT),
        ("/openai/deployments/d/chat/completions", Endpoint.CHAT),
        ("/v1beta/openai/chat/completions", Endpoint.CHAT),
        ("/V1/Chat/Completions", Endpoint.CHAT),
        ("/v1/completions", Endpoint.COMPLETIONS),
        ("/v1/responses", Endpoint.RESPONSES),
        ("/openai/v1/embeddings", Endpoint.EMBEDDINGS),
        ("/v1/moderations", Endpoint.MODERATIONS),
        ("/v1/messages", Endpoint.MESSAGES),
        ("/v1/messages/count_tokens", Endpoint.UNKNOWN),
        ("/v1beta/models/gemini-2.5-pro:generateContent", Endpoint.GENERATE_CONTENT),
        ("/v1/audio-completions", Endpoint.UNKNOWN),
        ("", Endpoint.UNKNOWN),
    ],
)
def test_the_end_of_the_path_names_the_endpoint(
    host: str, path: str, suffix: str, endpoint: Endpoint
) -> None:
    """Host, prefix, query, case and a slash at the end don't matter."""
    assert endpoint_of(host + path + suffix) is endpoint


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        (OPENAI, BEARER),
        (AZURE, {"api-key": KEY}),
        ("https://gateway.example/openai/deployments/d/embeddings", {"api-key": KEY}),
        ("https://r.openai.azure.com/openai/v1/responses", {"api-key": KEY}),
        ("https://R.OpenAI.Azure.com/openai/v1/responses", {"api-key": KEY}),
        ("https://r.services.ai.azure.com/openai/v1/chat/completions", {"api-key": KEY}),
        ("https://openai.azure.com.evil.example/v1/embeddings", BEARER),
        ("https://api.anthropic.com/v1/messages", ANTHROPIC),
        ("http://localhost:4000/v1/messages", ANTHROPIC),
        ("https://notanthropic.com/v1/chat/completions", BEARER),
        (f"{GEMINI}/models/g:generateContent", {"x-goog-api-key": KEY}),
        (GEMINI_CHAT, BEARER),
        ("https://api.groq.com/openai/v1/chat/completions", BEARER),
        ("http://localhost:11434/v1/chat/completions", BEARER),
    ],
)
def test_the_key_goes_into_the_providers_header(url: str, headers: dict[str, str]) -> None:
    """Azure, Anthropic and Gemini have headers of their own; all others take a bearer token."""
    assert auth_headers(url, KEY) == headers
    without_key = {name: value for name, value in headers.items() if KEY not in value}
    assert auth_headers(url, None) == auth_headers(url, "") == without_key


def test_a_login_is_the_authorization_header() -> None:
    """Besides a key that has a header of its own, and in place of none."""
    basic = {"Authorization": "Basic bWU6c8O2cGFzcw=="}
    assert auth_headers(OPENAI, None, "me:söpass") == basic
    assert auth_headers(AZURE, KEY, "me:söpass") == basic | {"api-key": KEY}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"request_url": "https://me:pass@h.example/v1/embeddings"}, None),
        ({"request_url": AZURE, "login": "me:pass", "api_key": KEY}, None),
        (
            {"request_url": "https://me:pass@h.example/v1", "api_key": KEY},
            "can't get both the login in the URL and the api_key",
        ),
        (
            {"request_url": "http://me:pass@h.example/v1/embeddings"},
            "would get the login in plain text",
        ),
    ],
)
def test_a_login_counts_as_a_key(settings: dict[str, str], words: str | None) -> None:
    """It is guarded as a key is; both together are refused where they are for one header."""
    options: Any = settings
    if words is None:
        check_key(Options(**options))
        return
    with pytest.raises(ConfigurationError, match=words) as caught:
        check_key(Options(**options))
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (OPENAI, ""),
        ("https://h.example/v1", "names no endpoint: a request URL ends in /chat/completions"),
        ("https://h.example/", "names no endpoint"),
        ("https://h.example", "names no endpoint"),
        ("http://localhost:11434/api", "names no endpoint"),
        ("https://h.example/openai/deployments/d?api-version=1", "names no endpoint"),
        ("http://localhost:11434/api/chat", ""),
        (f"{GEMINI}/models/g:generateContent", ""),
        ("http://h.example/chat/completions", "most have /v1/chat/completions"),
        ("http://h.example/v1/v1/embeddings", "has /v1 twice"),
    ],
)
def test_a_url_that_no_server_knows_is_explained(url: str, words: str) -> None:
    """A base URL and its kin are told; of a URL that may be right nothing is said."""
    advice = url_advice(url)
    assert words in advice if words else advice == ""


LOOPBACK = ("localhost:8443", "api.localhost", "127.0.0.1", "[::1]:8443")


@pytest.mark.parametrize(
    ("url", "needed"),
    [
        (OPENAI, True),
        (AZURE, True),
        ("https://10.0.0.1/v1/embeddings", True),
        ("https://localhost.example/v1/embeddings", True),
        *((f"http://{host}/v1/embeddings", False) for host in ("10.0.0.1:8000", "gpu-box")),
        *((f"https://{host}/v1/embeddings", False) for host in LOOPBACK),
    ],
)
def test_local_servers_need_no_key(url: str, needed: bool) -> None:
    """A loopback host and plain http go without a key."""
    assert needs_key(url) is needed


@pytest.mark.parametrize(
    ("url", "charged"),
    [
        (OPENAI, True),
        (AZURE, True),
        ("http://localhost:8000/v1/chat/completions", True),
        ("https://fakeapi.groq.com.example/openai/v1/chat/completions", True),
        ("https://api.anthropic.com/v1/messages", False),
        ("https://api.groq.com/openai/v1/chat/completions", False),
        ("https://api.mistral.ai/v1/chat/completions", False),
        (GEMINI_CHAT, False),
    ],
)
def test_who_charges_the_reserved_maximum(url: str, charged: bool) -> None:
    """OpenAI, Azure and unknown hosts charge the reserved maximum; some charge what was used."""
    assert charges_reservation(url) is charged


@pytest.mark.parametrize(
    ("request_url", "relative", "url"),
    [
        (OPENAI, None, OPENAI),
        (OPENAI, "", OPENAI),
        (OPENAI, "/v1/chat/completions", OPENAI),
        (OPENAI, "/chat/completions", OPENAI),
        (OPENAI, "/v1/embeddings", "https://api.openai.com/v1/embeddings"),
        (OPENAI, "/embeddings", "https://api.openai.com/v1/embeddings"),
        (OPENAI, "v1/embeddings", "https://api.openai.com/v1/embeddings"),
        (OPENAI, "/v1/completions", "https://api.openai.com/v1/completions"),
        (OPENAI, "/completions", "https://api.openai.com/v1/completions"),
        (OPENAI, "/v1/some/thing", "https://api.openai.com/v1/some/thing"),
        (OPENAI + "/", "/v1/chat/completions", OPENAI + "/"),
        (OPENAI, "https://api.openai.com/v1/responses", "https://api.openai.com/v1/responses"),
        (OPENAI, "//api.openai.com/v1/responses", "https://api.openai.com/v1/responses"),
        (OPENAI, "https://API.openai.com:443/v1/x", "https://api.openai.com/v1/x"),
        ("https://API.h/v1/embeddings", "https://api.h/v1/x", "https://API.h/v1/x"),
        ("http://h:80/v1/embeddings", "http://me:pw@h/v1/x", "http://h:80/v1/x"),
        ("https://h", "/v1/embeddings", "https://h/v1/embeddings"),
        ("https://h/v1", "/v1/embeddings", "https://h/v1/embeddings"),
        ("https://h/gw/v1/", "/v1/embeddings", "https://h/gw/v1/embeddings"),
        ("https://h/gw", "/v1/embeddings", "https://h/gw/v1/embeddings"),
        ("http://h/gw/v1/chat/completions", "/v1/embeddings", "http://h/gw/v1/embeddings"),
        ("http://h/gw/v1/chat/completions", "/gw/v1/embeddings", "http://h/gw/v1/embeddings"),
        ("http://h/chat/completions", "/v1/chat/completions", "http://h/chat/completions"),
        (GEMINI_CHAT, "/v1/chat/completions", GEMINI_CHAT),
        (AZURE, "/chat/completions", AZURE),
        (AZURE, "/v1/chat/completions", AZURE),
        (AZURE, "/openai/deployments/d/chat/completions", AZURE),
        (AZURE, "/v1/embeddings", AZURE.replace("chat/completions", "embeddings")),
        (OPENAI, "/v1/embeddings?a=b", "https://api.openai.com/v1/embeddings?a=b"),
    ],
)
def test_a_batch_row_names_an_endpoint(request_url: str, relative: str, url: str | None) -> None:
    """What a gateway or a deployment puts before the endpoint is kept."""
    assert resolve_url(request_url, relative) == (url or relative)


@pytest.mark.parametrize(
    "relative",
    [
        "https://evil.example/v1/chat/completions",
        "//evil.example/v1/chat/completions",
        "http://api.openai.com/v1/chat/completions",
        "https://api.openai.com:8443/v1/chat/completions",
        "https://api.openai.com@evil.example/",
        "https://api.openai.com\\@evil.example/",
        "https://[::1/v1",
        "file:///etc/passwd",
        "javascript:1",
    ],
)
def test_another_host_is_rejected(relative: str) -> None:
    """No key goes to another host, port or scheme."""
    with pytest.raises(ValueError):
        resolve_url(OPENAI, relative)


def test_a_rejected_url_is_shown_without_its_secrets() -> None:
    """Its row's record has the text."""
    with pytest.raises(ValueError, match="'https://h.example/v1' is on another host") as caught:
        resolve_url(OPENAI, "https://me:secret@h.example/v1?key=secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["request_url", "replica_urls", "fallback_url"])
def test_no_model_is_a_host(name: str) -> None:
    """Which would get no key, and could be any."""
    url = "https://{model}.region.models.ai.azure.com/v1/chat/completions"
    settings: Any = {name: [url] if name == "replica_urls" else url}
    with pytest.raises(ConfigurationError, match="can't have {model} in its host"):
        check_url(Options(**settings))


@pytest.mark.parametrize("name", ["request_url", "replica_urls", "fallback_url"])
def test_only_the_model_is_filled_in(name: str) -> None:
    """Another place would be sent as it stands."""
    url = "https://h.example/v1/models/{modle}/embeddings"
    settings: Any = {name: [url] if name == "replica_urls" else url}
    with pytest.raises(ConfigurationError, match="has {modle}, which nothing takes the place of"):
        check_url(Options(**settings))


@pytest.mark.parametrize("name", ["replica_urls", "fallback_url"])
def test_further_urls_are_of_the_same_endpoint(name: str) -> None:
    """As far as it is known: both are named if they differ."""
    other = "https://h.example/v1/messages?key=secret"

    def check(url: str) -> None:
        settings: Any = {name: [url] if name == "replica_urls" else url}
        check_url(Options(request_url=OPENAI, **settings))

    check("https://h.example/v1/Chat/completions/")
    check("https://h.example/any")
    with pytest.raises(
        ConfigurationError, match=f"{name} https://h.example/v1/messages takes"
    ) as caught:
        check(other)
    assert OPENAI in str(caught.value) and "secret" not in str(caught.value)


def test_what_is_of_no_use_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """A key for a host that is nowhere named, a host without a key, and a time without a function."""
    plain: dict[str, Any] = {"request_url": OPENAI, "api_key": KEY}
    other = {
        "fallback_url": "https://f.example/v1/x",
        "replica_urls": ["https://r.example:444/v1/x"],
    }
    hosts = {"f.example": "f", "r.example:444": "r", "api.openai.com": KEY, "g.example": "g"}
    local = ["g.example", "127.0.0.1:8000", "api.openai.com"]
    tell_unused(Options(**plain, **other, api_keys=hosts, allowed_hosts=local))
    tell_unused(Options(request_url=OPENAI, api_key=lambda: KEY, api_key_ttl_s=5))
    assert caplog.messages == []
    tell_unused(Options(**plain, api_keys={"gateway.exmaple": "x"}, allowed_hosts=["h.example"]))
    tell_unused(Options(**plain, api_key_ttl_s=5))
    assert [text.partition(":")[0] for text in caplog.messages] == [
        "the key for gateway.exmaple is not used",
        "h.example is allowed, but has no key",
        "--api_key_ttl (api_key_ttl_s) is not used",
    ]


@given(st.text())
def test_no_row_leads_to_another_host(relative: str) -> None:
    """Whatever a row's url is, the host is the request URL's, or the row is rejected."""
    try:
        url = resolve_url(OPENAI, relative)
    except ValueError:
        return
    assert url.startswith("https://api.openai.com/")
