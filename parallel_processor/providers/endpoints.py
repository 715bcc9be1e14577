"""What a URL says about its provider: the kind of endpoint, the header for the key, the way of charging."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Callable
from functools import lru_cache
from urllib.parse import urljoin, urlsplit

from parallel_processor.credentials.checks import is_secret_name
from parallel_processor.credentials.urls import host_of
from parallel_processor.exceptions import ConfigurationError
from parallel_processor.models import Endpoint
from parallel_processor.options import Options, shown_url, without_login

_AZURE = ("openai.azure.com", "services.ai.azure.com", "cognitiveservices.azure.com")
_GEMINI = "generativelanguage.googleapis.com"

_TOKEN = re.compile(r"eyJ[-\w]+\.[-\w]+\.[-\w]+")  # a JSON Web Token
# The path of a base URL, to which a client library would add the endpoint.
_BASE = re.compile(r"|.*/(?:v[0-9]\w*|api|openai|deployments/[^/]+)")

# Providers whose limits count the tokens that a response used. OpenAI and Azure count the most that it
# may use. An unknown provider is taken for one of the latter: that never exceeds a limit.
_CHARGES_USE = ("anthropic.com", "api.groq.com", "api.mistral.ai", _GEMINI)

# The variables of the environment that hold a provider's key, by its hosts.
_KEY_VARIABLES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    # The cookbook's script takes Azure's key from OpenAI's variable.
    (_AZURE, ("AZURE_OPENAI_API_KEY", "OPENAI_API_KEY")),
    (("openai.com",), ("OPENAI_API_KEY",)),
    (("anthropic.com",), ("ANTHROPIC_API_KEY",)),
    ((_GEMINI,), ("GEMINI_API_KEY", "GOOGLE_API_KEY")),
    (("aiplatform.googleapis.com",), ()),
    (("groq.com",), ("GROQ_API_KEY",)),
    (("mistral.ai",), ("MISTRAL_API_KEY",)),
    (("deepseek.com",), ("DEEPSEEK_API_KEY",)),
    (("x.ai",), ("XAI_API_KEY",)),
    (("openrouter.ai",), ("OPENROUTER_API_KEY",)),
    (("together.xyz", "together.ai"), ("TOGETHER_API_KEY",)),
    (("fireworks.ai",), ("FIREWORKS_API_KEY",)),
    (("cohere.com", "cohere.ai"), ("CO_API_KEY", "COHERE_API_KEY")),
    (("voyageai.com",), ("VOYAGE_API_KEY",)),
    (("jina.ai",), ("JINA_API_KEY",)),
    (("moonshot.ai", "moonshot.cn"), ("MOONSHOT_API_KEY",)),
    (("aliyuncs.com",), ("DASHSCOPE_API_KEY",)),
    (("bigmodel.cn",), ("ZHIPUAI_API_KEY", "ZAI_API_KEY")),
    (("z.ai",), ("ZAI_API_KEY",)),
    (("amazonaws.com", "api.aws"), ("AWS_BEARER_TOKEN_BEDROCK",)),
    (("cerebras.ai",), ("CEREBRAS_API_KEY",)),
    (("perplexity.ai",), ("PERPLEXITY_API_KEY",)),
    (("nvidia.com",), ("NVIDIA_API_KEY",)),
    (("huggingface.co", "hf.space"), ("HF_TOKEN",)),
    (("deepinfra.com",), ("DEEPINFRA_API_KEY", "DEEPINFRA_TOKEN")),
)


def key_variables_of(url: str) -> tuple[str, ...] | None:
    """The variables that hold the key of the provider of ``url``; ``None`` for an unknown provider."""
    host = _host(url)
    return next((names for hosts, names in _KEY_VARIABLES if is_host(host, *hosts)), None)


def _host(url: str) -> str:
    return urlsplit(url).hostname or ""


def is_host(host: str, *names: str) -> bool:
    """True if ``host`` is one of ``names``, or a subdomain of one."""
    return any(host == name or host.endswith("." + name) for name in names)


@lru_cache(maxsize=256)
def endpoint_of(url: str) -> Endpoint:
    """The kind of endpoint, by the end of the URL's path on any host; ``UNKNOWN`` for any other end."""
    return Endpoint.of_path(urlsplit(url).path)


@lru_cache(maxsize=256)
def streams_unasked(url: str) -> bool:
    """True for Ollama's own endpoints, which stream unless the request says ``"stream": false``."""
    return urlsplit(url).path.rstrip("/").lower().endswith(("/api/chat", "/api/generate"))


def basic_auth(login: str) -> str:
    """The ``Authorization`` header of ``login``, which is ``user:password`` (RFC 7617)."""
    return "Basic " + base64.b64encode(login.encode()).decode()


def auth_headers(url: str, api_key: str | None, login: str | None = None) -> dict[str, str]:
    """The headers that carry ``api_key`` and ``login`` to ``url``. Without them, no header holds one.

    * Azure's hosts and deployments: ``api-key``, but for a token of Entra.
    * Anthropic's host, and the Messages API on any host: ``x-api-key`` and ``anthropic-version``.
    * Gemini's native API: ``x-goog-api-key``.
    * All others: a bearer token.

    A login is the ``Authorization`` header, unless a bearer token is.
    """
    parts, host = urlsplit(url), _host(url)
    anthropic = is_host(host, "anthropic.com") or endpoint_of(url) is Endpoint.MESSAGES
    headers = {"anthropic-version": "2023-06-01"} if anthropic else {}
    if login:
        headers["Authorization"] = basic_auth(login)
    if not api_key:
        return headers
    is_azure = "/deployments/" in parts.path or is_host(host, *_AZURE)
    if is_azure and not _TOKEN.fullmatch(api_key):
        headers["api-key"] = api_key
    elif anthropic:
        headers["x-api-key"] = api_key
    elif is_host(host, _GEMINI) and "/openai/" not in parts.path:
        headers["x-goog-api-key"] = api_key
    else:
        headers["Authorization"] = f"Bearer {api_key}"
    return headers


def is_loopback(url: str) -> bool:
    """True for a server on this machine."""
    host = _host(url)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def needs_key(url: str) -> bool:
    """False for a loopback host and for plain ``http``: local servers need no key."""
    return urlsplit(url).scheme != "http" and not is_loopback(url)


def is_exposed(url: str, options: Options) -> bool:
    """True if what is sent to ``url`` would cross a network in plain text, and nobody permitted that."""
    is_plain = urlsplit(url).scheme == "http" and not is_loopback(url)
    return is_plain and not options.allow_plain_http


def sent_headers(options: Options, url: str, key: str | None) -> dict[str, str]:
    """What proves to ``url`` who sends: ``key``, and on the options' own host their login and headers."""
    if not options.keyring.is_own(url):
        return auth_headers(url, key)
    if options.auth_header and key:
        headers = auth_headers(url, None, options.login)
        name, _, prefix = options.auth_header.partition(":")
        added = {name: f"{prefix.strip()} {key}".strip(), **options.headers}
    else:
        headers, added = auth_headers(url, key, options.login), dict(options.headers)
    replaced = {name.lower() for name in added}
    return {n: v for n, v in headers.items() if n.lower() not in replaced} | added


def check_key(options: Options) -> None:
    """Raise :class:`ConfigurationError` if a key is missing, or would cross a network without TLS.

    A login counts as a key, and so do headers and parameters whose names say so. Two of them that are for
    the same header are refused.
    """
    url, login = options.request_url, options.login
    has_key = bool(options.keyring.keys(url))
    secrets = [name for name in (*options.headers, *options.query) if is_secret_name(name)]
    if not has_key and not login and not secrets:
        if options.session_factory is None and needs_key(url):
            raise ConfigurationError(
                f"{shown_url(url)} needs an api_key, or a session_factory that logs in"
            )
    elif is_exposed(url, options):
        what = "api_key" if has_key else "login" if login else secrets[0]
        raise ConfigurationError(
            f"{shown_url(url)} would get the {what} in plain text: use https, set"
            " allow_plain_http, or give no key"
        )
    _check_one_header(options, has_key)


def _check_one_header(options: Options, has_key: bool) -> None:
    """Raise if two of key, login and headers are for one header."""
    url, login, key = options.request_url, options.login, "key" if has_key else None
    keys_header = options.auth_header or next(iter(auth_headers(url, key) if key else {}), "")
    name = keys_header.partition(":")[0].lower() if key else ""
    if key and login and name == "authorization":
        raise ConfigurationError(
            f"{shown_url(url)} can't get both the login in the URL and the api_key: each is the"
            " Authorization header; give one of them"
        )
    given = {each.lower() for each in options.headers}
    for what, header in (("api_key", name), ("login in the URL", "authorization" if login else "")):
        if header and header in given:
            raise ConfigurationError(
                f"{shown_url(url)} can't get both the {what} and the header {header}: each is the same"
                " header; give one of them"
            )


HostRule = Callable[[str], str]
"""Tells why no request may go to a URL on another host; empty if one may."""


def own_host_only(url: str) -> str:
    """The rule where no other host is allowed."""
    host = host_of(url).removesuffix(":443")
    return f"on another host than the request URL: --allow_host {host} permits it (allowed_hosts)"


def host_rule(options: Options) -> HostRule:
    """The rule of ``options``: their own host, and those that they allow."""
    keyring = options.keyring
    if not keyring.allowed_hosts:
        return own_host_only

    def rule(url: str) -> str:
        """Why no request may go to ``url``."""
        if host_of(url) not in keyring.allowed_hosts:
            return own_host_only(url)
        if keyring.keys(url) and is_exposed(url, options):
            return "without TLS, and its host would get a key in plain text: use https"
        return ""

    return rule


def charges_reservation(url: str) -> bool:
    """True if the provider charges the reserved maximum, whatever the response used."""
    return not is_host(_host(url), *_CHARGES_USE)


def url_advice(url: str) -> str:
    """How ``url`` should end, for a server that knows no such place; empty if it names an endpoint."""
    shown, path = shown_url(url), urlsplit(url).path.rstrip("/").lower()
    if _BASE.fullmatch(path):
        return (
            f"{shown} names no endpoint: a request URL ends in /chat/completions, /responses, "
            "/embeddings or the like, mostly behind /v1"
        )
    endpoint = endpoint_of(url).value
    if endpoint and path == endpoint:
        return f"{shown} has a path that few servers know: most have /v1{endpoint}"
    return f"{shown} has /v1 twice" if "/v1/v1/" in path else ""


def resolve_url(request_url: str, relative: str | None, rule: HostRule = own_host_only) -> str:
    """The URL of a Batch row: its endpoint on the host of ``request_url``.

    What precedes the endpoint in ``request_url`` replaces the ``/v1`` of the row. So under
    ``http://host/proxy/v1/chat/completions`` the row's ``/v1/embeddings`` becomes
    ``http://host/proxy/v1/embeddings``, and an Azure deployment stays in the path.

    Raises ``ValueError`` for an absolute URL on another host, unless ``rule`` permits it.
    """
    if not relative:
        return request_url
    base, row = urlsplit(without_login(request_url)[0]), urlsplit(relative)
    if row.netloc or row.scheme:
        target = urlsplit(without_login(urljoin(request_url, relative))[0])
        if (target.scheme, target.netloc.lower()) != (base.scheme, base.netloc.lower()):
            is_http = target.scheme in ("http", "https") and target.hostname
            why = rule(target.geturl()) if is_http else "no http or https URL"
            if why:
                raise ValueError(f"its url {without_login(relative)[0]!r} is {why}")
        return target.geturl()
    path, base_path = "/" + row.path.lstrip("/"), base.path.rstrip("/")
    endpoint = Endpoint.of_path(base_path)
    stem = base_path[: len(base_path) - len(endpoint.value)]  # what precedes the endpoint
    if base_path.lower().endswith(path.lower()) and Endpoint.of_path(path) is endpoint:
        path = base.path
    elif path.startswith("/v1/") and (endpoint.value or stem.endswith("/v1")):
        path = stem + path[len("/v1") :]
    elif not path.startswith(stem + "/"):
        path = stem + path
    return base._replace(path=path, query=row.query or base.query).geturl()
