"""What the place of a request says: the endpoint, the model, and the dialect in which it is answered."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from functools import lru_cache
from urllib.parse import unquote

from parallel_processor.models import Endpoint
from parallel_processor.simulator.dialects import DIALECTS, Dialect

_NATIVE = {
    Endpoint.MESSAGES: "anthropic",
    Endpoint.GENERATE_CONTENT: "gemini",
    Endpoint.EMBED_CONTENT: "gemini",
    Endpoint.BATCH_EMBED_CONTENTS: "gemini",
    Endpoint.CONVERSE: "bedrock",
    Endpoint.COHERE_CHAT: "cohere",
    Endpoint.COHERE_EMBED: "cohere",
    Endpoint.OLLAMA_CHAT: "ollama",
    Endpoint.OLLAMA_GENERATE: "ollama",
    Endpoint.OLLAMA_EMBED: "ollama",
    Endpoint.RERANK: "tei",
    Endpoint.TEI_EMBED: "tei",
    Endpoint.TGI_GENERATE: "tgi",
}
_COMPATIBLE = {"gemini": "gemini-openai", "vertex": "vertex-openai"}
_MODEL = re.compile(r"/models/([^/:]+):|/deployments/([^/]+)/|/model/([^/]+)/", re.IGNORECASE)


@lru_cache(maxsize=256)
def endpoint_at(path: str) -> Endpoint:
    """Return the endpoint that a path ends with."""
    return Endpoint.of_path(path)


@lru_cache(maxsize=256)
def dialect_of(host: str, path: str, option: str = "auto") -> Dialect:
    """Return the dialect that a server speaks: as told, else by its host, else by the path."""
    if option != "auto":
        return DIALECTS[option]
    host, endpoint = host.partition(":")[0].lower(), endpoint_at(path)
    found = next(
        (row for row in DIALECTS.values() if any(fnmatchcase(host, each) for each in row.hosts)),
        None,
    )
    if found is None:
        name = "azure" if "/deployments/" in path else _NATIVE.get(endpoint, "openai")
        return DIALECTS[name]
    is_native = endpoint in _NATIVE
    return found if is_native else DIALECTS[_COMPATIBLE.get(found.name, found.name)]


def model_in(path: str) -> str:
    """Return the model that a path names; empty if it names none."""
    found = _MODEL.search(path)
    return unquote(next(filter(None, found.groups()))) if found else ""
