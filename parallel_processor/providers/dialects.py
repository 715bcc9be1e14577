"""The providers: one table, with what differs between them. To add one, add a row to ``PROVIDERS``.

The host of a URL names its provider. Any other host may be a gateway, a proxy or a server at home, which
may speak any dialect: there the form of the URL's path tells how to log in. What an answer means is read
the same way on every host, by its form (``answers.py``, ``usage.py``, ``errors.py``, ``limit_headers.py``).

A row is ``tried`` where a server that others wrote was asked. All other rows are taken from the provider's
documentation and from public reports. The tests try each against the simulator, which has its own table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from parallel_processor.contents import response_tier
from parallel_processor.models import MODEL_PLACE, Endpoint

_SECOND_S, _MINUTE_S, _DAY_S = 1.0, 60.0, 86_400.0
_TOKENS = ("tokens", "input-tokens", "output-tokens")
_NOTHING: Mapping[str, Any] = MappingProxyType({})


class Auth(NamedTuple):
    """The header that carries a key."""

    header: str = "Authorization"
    prefix: str = "Bearer "
    takes_tokens: bool = False  # a JSON Web Token goes as a bearer token instead


BEARER = Auth()
_API_KEY = Auth("api-key", "", takes_tokens=True)
_X_API_KEY = Auth("x-api-key", "")
_GOOG_API_KEY = Auth("x-goog-api-key", "")
_JSON_WEB_TOKEN = re.compile(r"eyJ[\w-]+\.[\w-]+\.[\w-]*")


class MostInputs(NamedTuple):
    """How many inputs of embeddings one request may have, and how many tokens; infinite if nobody says."""

    inputs: float = math.inf
    tokens: float = math.inf


class Provider(NamedTuple):
    """One provider, or one kind of server."""

    name: str
    urls: tuple[str, ...]  # where requests go; {model} is the request's model
    hosts: tuple[str, ...] = ()  # a name stands for its subdomains, too; * for any letters
    keys: tuple[str, ...] = ()  # the environment variables for its key, in the order they are tried
    auth: Auth | None = None  # None: by the form of the URL
    headers: Mapping[str, str] = _NOTHING  # that every request has
    charges_use: bool = False  # its token limit counts what an answer used, not the most it may use
    counts_cache: bool = True  # and in it the cached tokens of usage.prompt_tokens_details
    windows_s: Mapping[str, float] = (
        _NOTHING  # of limits whose headers don't name it, by their kind
    )
    tiers: Mapping[str, str] = (
        _NOTHING  # its words for default, flex and priority, if they are others
    )
    tier_header: str = ""  # asks for a tier in place of a member of the body; it is not sent
    is_strict: bool = False  # it refuses a body without what its endpoint needs
    most_inputs: MostInputs = MostInputs()
    tried: str = ""  # the server of others that was asked; empty: taken from documentation alone


_MOCK = "a mock, aimock 1.43"
_VERSION = {"anthropic-version": "2023-06-01"}
_EVERY_MINUTE = dict.fromkeys(("requests", *_TOKENS), _MINUTE_S)
_AZURE = "https://RESOURCE.openai.azure.com/openai"
_GEMINI = "https://generativelanguage.googleapis.com/v1beta"
_GEMINI_TIERS = {"default": "standard"}
_VERTEX = "https://aiplatform.googleapis.com/v1/projects/PROJECT/locations/global"
_BEDROCK = "https://bedrock-runtime.REGION.amazonaws.com"


def _hosted(
    name: str,
    *urls: str,
    hosts: tuple[str, ...] = (),
    keys: tuple[str, ...] = (),
    auth: Auth | None = BEARER,
    **rest: Any,
) -> Provider:
    """The row of a provider at the hosts of its URLs, if no others are given."""
    hosts = hosts or tuple({urlsplit(url).hostname or "": None for url in urls})
    return Provider(name, urls, hosts, keys, auth, **rest)


PROVIDERS: tuple[Provider, ...] = (
    _hosted(
        "OpenAI",
        "https://api.openai.com/v1/chat/completions",
        "https://api.openai.com/v1/responses",
        "https://api.openai.com/v1/embeddings",
        "https://api.openai.com/v1/completions",
        "https://api.openai.com/v1/moderations",
        "https://api.openai.com/v1/images/generations",
        hosts=("openai.com",),
        keys=("OPENAI_API_KEY",),
        is_strict=True,
        most_inputs=MostInputs(2048, 300_000),
        tried=_MOCK,
    ),
    _hosted(  # with a key, or an Entra token
        "Azure OpenAI",
        f"{_AZURE}/v1/chat/completions",
        f"{_AZURE}/deployments/{{model}}/chat/completions?api-version=2024-10-21",
        hosts=(
            *("openai.azure.com", "services.ai.azure.com", "cognitiveservices.azure.com"),
            *("openai.azure.us", "openai.azure.cn"),
        ),
        keys=("AZURE_OPENAI_API_KEY", "AZURE_API_KEY"),
        auth=_API_KEY,
        windows_s=_EVERY_MINUTE,
        most_inputs=MostInputs(2048),
        tried=_MOCK,
    ),
    _hosted(
        "Azure AI models",
        "https://MODEL.REGION.models.ai.azure.com/v1/chat/completions",
        hosts=("azure.com",),
        keys=("AZURE_AI_API_KEY", "AZURE_API_KEY"),
        windows_s=_EVERY_MINUTE,
    ),
    _hosted(
        "Anthropic",
        "https://api.anthropic.com/v1/messages",
        hosts=("anthropic.com",),
        keys=("ANTHROPIC_API_KEY",),
        auth=_X_API_KEY,
        headers=_VERSION,
        charges_use=True,
        tiers={"default": "standard_only", "priority": "auto"},
        is_strict=True,
        tried=_MOCK,
    ),
    _hosted(  # its own API has a header of its own
        "Gemini",
        f"{_GEMINI}/models/{{model}}:generateContent",
        f"{_GEMINI}/models/{{model}}:embedContent",
        f"{_GEMINI}/models/{{model}}:batchEmbedContents",
        f"{_GEMINI}/openai/chat/completions",
        keys=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        auth=None,
        charges_use=True,
        tiers=_GEMINI_TIERS,
        most_inputs=MostInputs(100),
        tried=_MOCK,
    ),
    _hosted(  # with a token of an hour: gcloud auth print-access-token
        "Vertex AI",
        f"{_VERTEX}/publishers/google/models/{{model}}:generateContent",
        f"{_VERTEX}/endpoints/openapi/chat/completions",
        hosts=(
            *("aiplatform.googleapis.com", "*-aiplatform.googleapis.com"),
            "aiplatform.*.rep.googleapis.com",
        ),
        tier_header="X-Vertex-AI-LLM-Shared-Request-Type",
        tried=_MOCK,
    ),
    _hosted(
        "Bedrock",
        f"{_BEDROCK}/model/{{model}}/converse",
        f"{_BEDROCK}/openai/v1/chat/completions",
        hosts=(
            *("bedrock-runtime*.amazonaws.com", "bedrock-mantle.*.api.aws"),
            *("*.bedrock-runtime.*.vpce.amazonaws.com", "bedrock-runtime.*.amazonaws.com.cn"),
        ),
        keys=("AWS_BEARER_TOKEN_BEDROCK",),
        tried=_MOCK,
    ),
    _hosted(
        "Groq",
        "https://api.groq.com/openai/v1/chat/completions",
        keys=("GROQ_API_KEY",),
        charges_use=True,
        counts_cache=False,
        windows_s={"requests": _DAY_S, **dict.fromkeys(("req", *_TOKENS), _MINUTE_S)},
        tiers={"default": "on_demand", "priority": "performance"},
    ),
    _hosted(
        "Mistral",
        "https://api.mistral.ai/v1/chat/completions",
        "https://api.mistral.ai/v1/embeddings",
        hosts=("mistral.ai",),
        keys=("MISTRAL_API_KEY",),
        charges_use=True,
        most_inputs=MostInputs(512, 16_384),
    ),
    _hosted("DeepSeek", "https://api.deepseek.com/chat/completions", keys=("DEEPSEEK_API_KEY",)),
    _hosted("xAI", "https://api.x.ai/v1/chat/completions", keys=("XAI_API_KEY",)),
    _hosted(
        *("OpenRouter", "https://openrouter.ai/api/v1/chat/completions"),
        keys=("OPENROUTER_API_KEY",),
        tried=_MOCK,
    ),
    _hosted(
        "Together",
        "https://api.together.xyz/v1/chat/completions",
        "https://api.together.xyz/v1/embeddings",
        hosts=("api.together.xyz", "api.together.ai"),
        keys=("TOGETHER_API_KEY",),
        windows_s={"rate": _SECOND_S, "token": _SECOND_S},
    ),
    _hosted(
        *("Fireworks", "https://api.fireworks.ai/inference/v1/chat/completions"),
        keys=("FIREWORKS_API_KEY",),
    ),
    _hosted(
        *("Cohere", "https://api.cohere.com/v2/chat", "https://api.cohere.com/v2/embed"),
        hosts=("api.cohere.com", "api.cohere.ai"),
        keys=("CO_API_KEY", "COHERE_API_KEY"),
        most_inputs=MostInputs(96),
        tried=_MOCK,
    ),
    _hosted(
        *("Voyage", "https://api.voyageai.com/v1/embeddings"),
        hosts=("api.voyageai.com", "ai.mongodb.com"),
        keys=("VOYAGE_API_KEY",),
        most_inputs=MostInputs(1000, 120_000),
    ),
    _hosted("Jina", "https://api.jina.ai/v1/embeddings", keys=("JINA_API_KEY",)),
    _hosted(
        *("Moonshot", "https://api.moonshot.ai/v1/chat/completions"),
        hosts=("api.moonshot.ai", "api.moonshot.cn"),
        keys=("MOONSHOT_API_KEY",),
    ),
    _hosted(
        *("Qwen", "https://dashscope-intl.aliyuncs.com/compatible-mode/v1/chat/completions"),
        hosts=("dashscope.aliyuncs.com", "dashscope-*.aliyuncs.com"),
        keys=("DASHSCOPE_API_KEY",),
        most_inputs=MostInputs(10),
    ),
    _hosted(
        *("Zhipu", "https://open.bigmodel.cn/api/paas/v4/chat/completions"),
        hosts=("open.bigmodel.cn", "api.z.ai"),
        keys=("ZAI_API_KEY", "ZHIPUAI_API_KEY"),
    ),
    Provider(
        "Ollama",
        ("http://localhost:11434/v1/chat/completions", "http://localhost:11434/api/chat"),
        hosts=("ollama.com",),
        keys=("OLLAMA_API_KEY",),
        tried=_MOCK,
    ),
    Provider("vLLM", ("http://localhost:8000/v1/chat/completions",)),
    Provider("SGLang", ("http://localhost:30000/v1/chat/completions",)),
    Provider("llama.cpp", ("http://localhost:8080/v1/chat/completions",)),
    Provider(
        "TGI", ("http://localhost:8080/v1/chat/completions", "http://localhost:8080/generate")
    ),
    Provider("TEI", ("http://localhost:8080/embed", "http://localhost:8080/rerank")),
    Provider(
        "LiteLLM",
        (
            "http://localhost:4000/v1/chat/completions",
            "http://localhost:4000/v1/messages",
            "http://localhost:4000/v1beta/models/{model}:generateContent",
        ),
        tried="its proxy 1.108",
    ),
)
_OTHER = Provider("", (), keys=("OPENAI_API_KEY",))

# How a key goes to a host that no row has, and what else is sent there.
_AUTH_OF_FORM: Mapping[Endpoint, Auth] = {
    Endpoint.MESSAGES: _X_API_KEY,
    Endpoint.GENERATE_CONTENT: _GOOG_API_KEY,
    Endpoint.EMBED_CONTENT: _GOOG_API_KEY,
    Endpoint.BATCH_EMBED_CONTENTS: _GOOG_API_KEY,
}
KEY_HEADERS = frozenset(
    auth.header.lower()
    for auth in (BEARER, *_AUTH_OF_FORM.values(), *(row.auth for row in PROVIDERS))
    if auth
)
"""The headers that carry a key, in lower case."""
_MODEL_IN_PATH = re.compile(
    r"/(?:models|tunedModels|endpoints)/([^/:]+):|/deployments/([^/]+)/|/model/([^/]+)/",
    re.IGNORECASE,
)
_STREAMS = {  # endpoints that do nothing else, and what to use instead
    ":streamgeneratecontent": ":generateContent",
    "/converse-stream": "/converse",
    "/invoke-with-response-stream": "/invoke",
}


@lru_cache(maxsize=256)
def endpoint_of(url: str) -> Endpoint:
    """The kind of endpoint, by the end of the URL's path on any host; ``UNKNOWN`` for any other end."""
    return Endpoint.of_path(urlsplit(url).path)


@lru_cache(maxsize=256)
def provider_at(host: str) -> Provider:
    """The provider of ``host``, a name in lower case; a row without a name for a host that none has."""
    host = host.removesuffix(".")  # of a name that is complete
    return next(
        (row for row in PROVIDERS if any(_is_host(host, each) for each in row.hosts)), _OTHER
    )


def provider_of(url: str) -> Provider:
    """The provider of the URL's host."""
    return provider_at(urlsplit(url).hostname or "")


def _is_host(host: str, name: str) -> bool:
    return fnmatchcase(host, name) if "*" in name else host == name or host.endswith("." + name)


def auth_of(url: str, api_key: str = "") -> Auth:
    """The header in which ``api_key`` goes to ``url``.

    An unknown host with an Azure deployment in the path is a gateway before one. Azure takes a JSON Web
    Token, such as Entra's, as a bearer token.
    """
    auth = provider_of(url).auth or _AUTH_OF_FORM.get(endpoint_of(url))
    if "/deployments/" in urlsplit(url).path:
        auth = _API_KEY
    auth = auth or BEARER
    return BEARER if auth.takes_tokens and _JSON_WEB_TOKEN.fullmatch(api_key) else auth


def headers_of(url: str) -> Mapping[str, str]:
    """What a request to ``url`` has in its headers besides a key."""
    return _VERSION if endpoint_of(url) is Endpoint.MESSAGES else provider_of(url).headers


def key_variables_of(url: str) -> tuple[str, ...]:
    """The environment variables that may hold the key for ``url``, in the order they are tried.

    Empty for a provider that knows only tokens of an hour; OpenAI's for a host that isn't known.
    """
    return provider_of(url).keys


@lru_cache(maxsize=256)
def url_model(url: str) -> str:
    """The model, or Azure's deployment, in the URL's path; empty if there is none, or ``{model}``."""
    found = _MODEL_IN_PATH.search(urlsplit(url).path)
    name = unquote(next(filter(None, found.groups()), "")) if found else ""
    return "" if name == MODEL_PLACE else name


def stream_refusal(url: str) -> str:
    """Why ``url`` can't be used, if its endpoint does nothing but stream; empty if it can."""
    path = urlsplit(url).path.rstrip("/").lower()
    ways = (way for end, way in _STREAMS.items() if path.endswith(end))
    way = next(ways, "")
    return way and f"it streams its answers, which can't be recorded: use {way}"


def tier_spelling(url: str, tier: str) -> dict[str, Any]:
    """The members of a body that ask for ``tier`` at ``url``: ``default``, ``flex``, ``priority``, or the
    provider's own word. None where a header asks for it.
    """
    provider = provider_of(url)
    if not tier or provider.tier_header:
        return {}
    word, endpoint = provider.tiers.get(tier, tier), endpoint_of(url)
    if endpoint is Endpoint.CONVERSE:
        return {"serviceTier": {"type": word}}
    if endpoint is Endpoint.GENERATE_CONTENT and not provider.name:
        word = _GEMINI_TIERS.get(word, word)  # Gemini's API behind a gateway
    return {"service_tier": word}


_TIER_HEADER = "x-gemini-service-tier"
_ANSWERED_TIERS = {
    **dict.fromkeys(("standard", "on_demand", "on-demand", "standard_only"), "default"),
    "performance": "priority",
    "on_demand_flex": "flex",
    "on_demand_priority": "priority",
}


def answered_tier(headers: Mapping[str, str], data: Any) -> str:
    """The tier that answered, as ``default``, ``flex``, ``priority`` or the provider's own word.

    ``headers`` have names in lower case, ``data`` is the answer. Empty if the answer doesn't say.
    """
    mentions = getattr(headers, "mention", None)  # those that nobody has parsed yet have it
    word = headers.get(_TIER_HEADER) if mentions is None or mentions(_TIER_HEADER) else None
    word = (word or response_tier(data) or "").lower()
    return _ANSWERED_TIERS.get(word, word)
