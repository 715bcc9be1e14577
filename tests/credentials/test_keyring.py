"""Which keys are for which host, and the checks of what says so."""

from __future__ import annotations

from typing import Any

import pytest

from parallel_processor.credentials.checks import is_secret_name
from parallel_processor.credentials.key_command import KeyCommand
from parallel_processor.credentials.key_text import read_key
from parallel_processor.credentials.urls import host_of, with_query
from parallel_processor.exceptions import ConfigurationError
from parallel_processor.options import Options

URL = "https://api.openai.com/v1/embeddings"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://H.example/v1", "h.example:443"),
        ("http://h.example", "h.example:80"),
        ("https://h.example:8443/v1?a=b", "h.example:8443"),
        ("https://me:pass@h.example/v1", "h.example:443"),
        ("http://[::1]:80/x", "::1:80"),
        ("https://evil.example\\@h.example/", ""),
        ("https://h.example:99999/", ""),
        ("https://[::1/", ""),
        ("https:///v1", ""),
    ],
)
def test_a_server_is_a_host_and_a_port(url: str, host: str) -> None:
    """Upper case and a login don't matter; another port is another server."""
    assert host_of(url) == host


@pytest.mark.parametrize(
    ("host", "url", "has_key"),
    [
        ("h.example", "https://h.example/v1", True),
        ("h.example", "http://h.example/v1", True),
        ("H.Example", "https://h.eXample:443/v1", True),
        ("h.example", "https://h.example:8443/v1", False),
        ("h.example:8443", "https://h.example:8443/v1", True),
        ("h.example:8443", "https://h.example/v1", False),
        ("h.example", "https://a.h.example/v1", False),
        ("h.example", "https://h.example.evil/v1", False),
        ("h.example", "https://h.example@evil.example/v1", False),
        ("h.example", "https://h.example./v1", False),
        ("[::1]:8000", "http://[::1]:8000/v1", True),
    ],
)
def test_a_key_is_for_its_host_alone(host: str, url: str, has_key: bool) -> None:
    """No subdomain, no other port, and nothing that only looks like it."""
    keyring = Options(api_key="own", api_keys={host: "other"}).keyring
    assert keyring.keys(url) == (("other",) if has_key else ())
    assert keyring.keys(URL) == ("own",)


def test_the_key_of_a_host_outranks_the_common_one() -> None:
    """It was named for it."""
    keyring = Options(api_key="own", api_keys={"api.openai.com": ["a", "b", "a"]}).keyring
    assert keyring.keys(URL) == ("a", "b")


def test_keys_are_told_apart_for_their_limits() -> None:
    """By host, by number, and functions by their names."""

    def function() -> str:
        return "key"

    several = Options(api_key=["a", "b"], api_keys={"h": "c"}).keyring
    assert several.identity(URL, 0) != several.identity(URL, 1)
    assert several.identity(URL) == b"a\0b"
    assert several.identity("https://h/v1") == b"c"
    assert several.identity("https://other/v1") == b""
    one, other = (Options(api_key=each).keyring.identity(URL) for each in (function, lambda: "k"))
    assert one != other


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"api_key": ["a", " b"]}, "each api_key must be printable ASCII"),
        ({"api_key": []}, "there must be one"),
        ({"api_key": ["sk-\u00e9"]}, "each api_key must be printable ASCII"),
        ({"api_keys": ["a"]}, "api_keys must be a key for each host"),
        ({"api_keys": {"https://h": "a"}}, "api_keys must name hosts as HOST or HOST:PORT"),
        ({"api_keys": {"h/v1": "a"}}, "api_keys must name hosts as HOST or HOST:PORT"),
        ({"api_keys": {"": "a"}}, "api_keys must name hosts as HOST or HOST:PORT"),
        ({"api_keys": {"h": "a\n"}}, "api_keys must be printable ASCII"),
        ({"allowed_hosts": "h"}, "allowed_hosts must be a list of hosts"),
        ({"allowed_hosts": ["h:99999"]}, "allowed_hosts must name hosts"),
        ({"allowed_hosts": ["me@h"]}, "allowed_hosts must name hosts"),
        ({"headers": {"X": 5}}, "headers must be a text for each name"),
        ({"headers": {"X Y": "a"}}, "headers has a name that no header can have: 'X Y'"),
        ({"headers": {"X": "secret\r\nY: b"}}, "headers has a value for X that can't be sent"),
        ({"headers": {"X": "a", "x": "b"}}, "headers has a name twice"),
        ({"headers": {"content-LENGTH": "5"}}, "it belongs to the message itself"),
        ({"query": {"": "a"}}, "query must be a text for each name"),
        ({"query": {"a": 5}}, "query must be a text for each name"),
        ({"auth_header": "X Y"}, "auth_header must be NAME or NAME: PREFIX"),
        ({"auth_header": ""}, "auth_header must be NAME or NAME: PREFIX"),
        ({"auth_header": 5}, "auth_header must be NAME or NAME: PREFIX"),
        ({"api_key_ttl_s": 0}, "api_key_ttl_s must be above 0"),
    ],
)
def test_what_cannot_work_is_refused(settings: dict[str, Any], words: str) -> None:
    """The message names the setting, and no key."""
    with pytest.raises(ConfigurationError) as caught:
        Options(**settings)
    assert words in str(caught.value)
    assert "secret" not in str(caught.value)


def test_no_secret_is_in_the_repr() -> None:
    """Neither a key, nor a header, nor a parameter."""
    options = Options(
        api_key=lambda: "secret",
        api_keys={"h": "secret"},
        headers={"X-Key": "secret"},
        query={"code": "secret"},
    )
    assert "secret" not in repr(options)


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        # github/copilot-sdk issue 355, NousResearch/hermes-agent 57038, Aider-AI/aider issue 2755
        *(("Ocp-Apim-Subscription-Key", True), ("CF-Access-Client-Secret", True)),
        *(("x-portkey-virtual-key", True), ("cf-aig-authorization", True)),
        # superset-sh/superset pull request 3956, lathe-cli/lathe issue 17
        *(("x-api-key", True), ("api_key", True), ("Cookie", True), ("X-Auth-Token", True)),
        *(("code", True), ("sig", True), ("subscription-key", True)),
        *(("CF-Access-Client-Id", False), ("X-Team", False), ("api-version", False)),
        *(("OpenAI-Organization", False), ("anthropic-version", False), ("X-Encoding", False)),
    ],
)
def test_the_name_of_a_header_says_whether_it_is_secret(name: str, is_secret: bool) -> None:
    """The headers of gateways, as people ask for them, and the parameters of URLs."""
    assert is_secret_name(name) is is_secret


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h/v1", "https://h/v1?api-version=2024-10-21&a=%26+b"),
        ("https://h/v1?x=1", "https://h/v1?x=1&api-version=2024-10-21&a=%26+b"),
        ("https://h/v1?api-version=1", "https://h/v1?api-version=1&a=%26+b"),
        ("https://h/v1?api-version=", "https://h/v1?api-version=&a=%26+b"),
    ],
)
def test_a_query_is_added_to_what_a_url_has(url: str, expected: str) -> None:
    """What the URL says itself stays."""
    assert with_query(url, {"api-version": "2024-10-21", "a": "& b"}) == expected


def test_the_place_of_a_key_is_known() -> None:
    """That of a flag, a variable or a setting; a key's own text says nothing."""
    command = KeyCommand("echo key")
    other: Any = {"h.example": command, "g.example": ["a", "b"], "f.example": lambda: "f"}
    keyring = Options(api_key=read_key("sk", "OPENAI_API_KEY"), api_keys=other).keyring
    found = {host: keyring.place(f"https://{host}.example/v1", int(host == "g")) for host in "hgfx"}
    assert found == {
        "h": "--api_key_command",
        "g": "api_keys, g.example:443, key 2",
        "f": "the function api_key",
        "x": "",
    }
    assert keyring.place(URL, 0) == "OPENAI_API_KEY"
    assert Options(api_key="sk").keyring.place(URL, 0) == "api_key"
