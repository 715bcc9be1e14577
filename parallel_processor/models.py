"""The values that pass between stages: a request goes down, a response comes back, an outcome is kept."""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

from parallel_processor.contents import (
    response_embeddings,
    response_text,
    response_tier,
    response_usage,
)
from parallel_processor.exceptions import RequestFailedError, StopCause
from parallel_processor.runtime.notebook import html_table

INVALID_REQUEST = "invalid request"
"""The kind of failure of a request that has an ``invalid_reason``."""
OVER_BUDGET = "over budget"
"""The kind of failure of a request that the whole budget has no room for."""
_MAX_MODEL_CHARS = 256  # a longer text is no name


class Endpoint(enum.Enum):
    """What kind of answer a URL gives, which decides how tokens are counted. The value ends its path."""

    CHAT = "/chat/completions"  # before "/completions", which also ends it
    RESPONSES = "/responses"
    COMPLETIONS = "/completions"
    EMBEDDINGS = "/embeddings"
    MODERATIONS = "/moderations"
    IMAGES = "/images/generations"
    MESSAGES = "/messages"  # Anthropic
    GENERATE_CONTENT = ":generatecontent"  # Gemini, Vertex
    EMBED_CONTENT = ":embedcontent"
    BATCH_EMBED_CONTENTS = ":batchembedcontents"
    CONVERSE = "/converse"  # Bedrock
    COHERE_CHAT = "/v2/chat"
    COHERE_EMBED = "/v2/embed"
    OLLAMA_CHAT = "/api/chat"
    OLLAMA_GENERATE = "/api/generate"
    OLLAMA_EMBED = "/api/embed"
    RERANK = "/rerank"  # Cohere, Voyage, Jina, TEI
    TEI_EMBED = "/embed"  # after all others that end so
    TGI_GENERATE = "/generate"
    UNKNOWN = ""

    @property
    def has_model_in_path(self) -> bool:
        """True if the URL names the model, and the body doesn't."""
        return self in _WITH_MODEL_IN_PATH

    @property
    def is_behind_v1(self) -> bool:
        """True for the APIs of OpenAI's and Anthropic's, which are mostly behind ``/v1``."""
        return self in _BEHIND_V1

    @classmethod
    def of_path(cls, path: str) -> Endpoint:
        """The endpoint whose URLs have a path that ends as ``path`` does; upper case is ignored."""
        return _endpoint_at(path.rstrip("/").lower())


@functools.lru_cache(maxsize=1024)
def _endpoint_at(path: str) -> Endpoint:
    return next(endpoint for endpoint in Endpoint if path.endswith(endpoint.value))


_BEHIND_V1 = {
    *(Endpoint.CHAT, Endpoint.RESPONSES, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS),
    *(Endpoint.MODERATIONS, Endpoint.IMAGES, Endpoint.MESSAGES),
}
_WITH_MODEL_IN_PATH = {
    *(Endpoint.GENERATE_CONTENT, Endpoint.EMBED_CONTENT, Endpoint.BATCH_EMBED_CONTENTS),
    Endpoint.CONVERSE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of a run.

    Attributes (set by the program):
        body: the JSON to send.
        metadata: comes back with the outcome; it isn't sent.
        custom_id: makes the record a row of the Batch API, with this id.
        url: if it isn't the processor's: a path (``/v1/embeddings``), or a URL on the same host.

    Attributes (set by the package):
        payload: the JSON text that is sent and recorded, byte for byte as it was read.
        metadata_json: the text of ``metadata``, the cookbook's column.
        number: counts from 1: the line of the file, or the place in the iterable.
        invalid_reason: why the request can't be sent. It becomes a failed record without an attempt.
        dropped: members that were left out, since they ask for a response that isn't one JSON object;
            and a note if numbers of the metadata that JSON doesn't know became null.

    >>> request = Request(body={"model": "m", "input": "text"}, metadata={"row": 7}, custom_id="a")
    >>> with Processor(request_url=url) as processor:
    ...     for outcome in processor.imap_unordered([request]):
    ...         print(outcome.request.metadata, outcome.request.custom_id, outcome.ok)
    {'row': 7} a True
    """

    body: Any
    payload: bytes = field(default=b"", repr=False)
    number: int = 0
    metadata: Any = None
    metadata_json: bytes | None = field(default=None, repr=False)
    custom_id: str | None = None
    url: str | None = None
    invalid_reason: str | None = None
    dropped: frozenset[str] = frozenset()

    @property
    def model(self) -> str:
        """The model that the body names; empty if it names none."""
        return model_name(self.body)

    @property
    def is_row(self) -> bool:
        """True if its record is a line of a Batch file, which tells every answer from an error."""
        return self.custom_id is not None


def model_name(body: Any) -> str:
    """The model that ``body`` names; empty if it names none, or no string of at most 256 characters."""
    # A dict first: the check of an ABC takes ten times as long.
    model = body.get("model") if isinstance(body, (dict, Mapping)) else None
    return model if isinstance(model, str) and len(model) <= _MAX_MODEL_CHARS else ""


class Upstream(NamedTuple):
    """Where a request is sent, and as what: a request goes where its token bucket is."""

    url: str = ""  # empty for the request's own URL, else that of the options
    key: int = 0  # which of the keys for its host
    tier: str = ""  # the service tier to ask for; empty leaves the request as it is
    model: str = ""  # in place of the model that the request names; empty leaves it


MODEL_PLACE = "{model}"
"""Stands in a URL for the model of each request, which then is not in what is sent."""


def destination(request: Request, upstream: Upstream, request_url: str) -> str:
    """Where ``request`` is sent: the URL of ``upstream``, else its own, else ``request_url``.

    The model that is asked for takes the place of ``{model}`` in it.
    """
    url = upstream.url or request.url or request_url
    return filled_url(url, upstream.model or request.model) if MODEL_PLACE in url else url


@functools.lru_cache(maxsize=1024)
def filled_url(url: str, model: str) -> str:
    """``url`` with ``model``, quoted, in the place of ``{model}``."""
    return url.replace(MODEL_PLACE, quote(model.removeprefix("models/"), safe=""))


class Estimate(NamedTuple):
    """What is known about a request's tokens before it is sent."""

    input_tokens: int  # the tokens of its prompt
    output_cap: int | None = None  # the most output that it may get; None if it names no cap
    output_tokens: int = 0  # the output to reserve as long as nothing was learned from responses
    kind: Any = None  # a RequestKind: what was learned of similar requests; None if nothing will be


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """A complete response, whatever its ``status``.

    Attributes:
        status: the HTTP status code.
        headers: names are in lower case.
        body: the bytes as they came, decompressed.
        data: the body parsed as JSON; ``None`` if ``is_json`` is false.
        is_json: the body is JSON.

    >>> with Processor(request_url=url) as processor:
    ...     (outcome,) = processor.imap_unordered([{"model": "m", "input": "text"}])
    >>> outcome.raw_response.status, outcome.raw_response.data["object"]
    (200, 'list')
    """

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    data: Any = field(default=None, repr=False)
    is_json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReading:
    """One limit as the headers of one answer show it, as of when the server admitted that request.

    ``None`` stands for what the headers don't say.
    """

    name: str  # requests, tokens, input_tokens or output_tokens; in_flight for requests at once
    limit: float  # how many the server allows in window_s
    remaining: float | None  # how many are left. It may be rounded and, rarely, above the limit
    reset_s: float | None  # seconds until a bucket is full, or a fixed window ends
    window_s: float  # the length of the window in seconds; 0 for in_flight, which has none


def refill_s(limit: float, remaining: float, window_s: float) -> float:
    """Seconds until a bucket is full that refills ``limit`` in ``window_s`` all the time."""
    return max(0.0, (limit - remaining) / limit) * window_s


class WaitCause(str, enum.Enum):
    """What a run, or the head of a bucket's queue, waits for. A member equals its value, a string.

    >>> summary = process_file(f"{folder}/requests.jsonl", request_url=url)
    >>> summary.waited_s.get(WaitCause.REQUESTS, 0.0) < summary.elapsed_s
    True
    """

    NOTHING = ""
    REQUESTS = "requests"  # the limit of requests
    TOKENS = "tokens"
    INPUT_TOKENS = "input_tokens"
    OUTPUT_TOKENS = "output_tokens"
    LIMITER = "limiter"  # the server that holds the limits of several processes is away
    PAUSE = "pause"  # the server rejected a request and asked to wait
    CONCURRENCY = "in flight"  # the server takes no more requests at once
    MAX_WORKERS = "max_workers"  # as many requests are in flight as the setting permits
    DISK = "disk"  # records wait to be written
    CONSUMER = "consumer"  # outcomes wait for the program that reads them
    INPUT = "input"  # the requests file or iterable has not delivered the next request
    TOKEN_COUNTING = "token counting"
    LOOK_AHEAD = "look-ahead"  # the read-ahead buffer is full of requests for other buckets
    ANSWERS = "answers"  # everything is sent; the last answers are under way
    BUDGET = (
        "budget"  # the next request could exceed it, unless those in flight cost less than they may
    )

    __str__ = str.__str__  # the value, in every Python version


class AttemptStatus(enum.Enum):
    """What an attempt's end means for its request and for the run (see ``providers/responses.py``)."""

    ANSWERED = "answered"
    RETRY = "retry"
    RATE_LIMITED = "rate limited"
    UNREACHABLE = "unreachable"
    NOT_READY = (
        "not ready"  # the server loads a model or restarts: it was reached, and must be waited for
    )
    LOST = "lost"  # with the worker process that had it under way
    FAILED = "failed"
    MODEL_SPENT = "model spent"  # no request for this model will be answered; others may
    FATAL = "fatal"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """Why a server turned an attempt away."""

    kind: str = ""  # the limit that the server named, requests or tokens; empty if it named none
    limit: float | None = (
        None  # how many a minute the text names; with concurrency, how many in flight
    )
    concurrency: bool = False  # too many requests were in flight; the rate was not the reason
    ramp_too_fast: bool = False  # the traffic rose too fast
    overload: bool = False  # the server has too much to do, for this client or for others
    has_retry_after: bool = False  # the server said how long to wait


@dataclass(slots=True, kw_only=True)  # frozen ones take three times as long to make
class Attempt:
    """How one attempt ended."""

    status: AttemptStatus  # what that means for the request and for the run
    response: Response | None = None  # the complete answer; None if there is none
    kind: str = ""  # a short label, such as HTTP 500 server_error; empty for a good answer
    error: str = ""  # the text for the record; empty for a good answer
    retry_after_s: float | None = None  # how long the server asked to wait; None if it didn't
    stop_cause: StopCause = StopCause.NOTHING  # why it stops the run, if its status is FATAL
    rejection: Rejection | None = None  # set if the server turned it away, for limits or load
    used_tokens: int | None = None  # what the answer says was used; None if it says nothing
    output_tokens: int | None = None  # the answer's part of used_tokens
    readings: Sequence[LimitReading] = ()  # the limits in the answer's headers, each a LimitReading
    sent_at_s: float = 0.0  # on the machine's monotonic clock; 0 if that is not known
    latency_s: float | None = None  # from sending to the answer's end; None if nothing was sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one ``request``.

    Attributes:
        request: the request.
        ok: true for an answer, false for a failure.
        raw_response: the complete response; a failure may have one, too.
        errors: the errors of a failure, one string per attempt, oldest first.
        error_kind: the last error's short label, such as ``timeout``.
        attempts: how many attempts were really sent.
        used_tokens: what the response says; ``None`` if it doesn't.
        latency_s: seconds from sending the last attempt to the end of its response; ``None`` if
            none was sent.
        unanswered: the run stopped before it was answered. It has no record; the next run sends it.
        deduplicated: this request was not sent, because an equal one was, whose response this is.

    >>> with Processor(request_url=url) as processor:
    ...     (outcome,) = processor.map([{"model": "m", "input": "text", "metadata": {"row": 7}}])
    >>> outcome.ok, outcome.attempts, outcome.metadata, len(outcome.embedding) > 0
    (True, 1, {'row': 7}, True)
    """

    request: Request
    ok: bool
    raw_response: Response | None = None
    errors: tuple[str, ...] = ()
    error_kind: str = ""
    attempts: int = 0
    used_tokens: int | None = None
    latency_s: float | None = None
    unanswered: bool = False
    deduplicated: bool = False

    @property
    def response(self) -> Any:
        """The response's parsed JSON; ``None`` if there is no response."""
        return self.raw_response.data if self.raw_response is not None else None

    @property
    def text(self) -> str | None:
        """The response's text; ``None`` if it has none, or is of an endpoint that isn't known."""
        return response_text(self.response) if self.ok else None

    @property
    def embedding(self) -> list[float] | None:
        """The response's vector, the first one of several inputs; ``None`` if it has none."""
        return vectors[0] if (vectors := self.embeddings) else None

    @property
    def embeddings(self) -> list[list[float]] | None:
        """The response's vectors in the order of the inputs; ``None`` if it has none."""
        return response_embeddings(self.response) if self.ok else None

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """The response's ``usage`` object as the server wrote it; ``None`` if it has none."""
        return response_usage(self.response) if self.ok else None

    @property
    def service_tier(self) -> str | None:
        """The service tier that answered, as the response names it; ``None`` if it doesn't."""
        return response_tier(self.response) if self.ok else None

    @property
    def error(self) -> str | None:
        """The last attempt's error; ``None`` for an answer."""
        return self.errors[-1] if self.errors and not self.ok else None

    @property
    def metadata(self) -> Any:
        """The metadata that came with the request; they are not sent. ``None`` if there were none."""
        return self.request.metadata

    @property
    def custom_id(self) -> str | None:
        """The ``custom_id`` of the request; ``None`` if it has none."""
        return self.request.custom_id

    def raise_for_error(self) -> None:
        """Raise :class:`RequestFailedError` for a failure. Do nothing for an answer."""
        if not self.ok:
            raise RequestFailedError(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        vectors = self.embeddings or []
        shapes = ", ".join(str(len(vector)) for vector in vectors[:10])
        rows = {
            "custom_id": self.custom_id,
            "metadata": self.metadata,
            "request": self.request.body,
            "text": self.text,
            "embeddings": f"{len(vectors):,} of {shapes} numbers" if vectors else None,
            "response": self.response if self.text is None and not vectors else None,
            "errors": "\n".join(self.errors),
            "attempts": self.attempts,
            "tokens": self.used_tokens,
            "latency": f"{self.latency_s:.3g} s" if self.latency_s is not None else None,
        }
        end = "answered" if self.ok else "unanswered" if self.unanswered else "failed"
        return html_table(f"Request {self.request.number}: {end}", rows.items())
