"""What travels through the house: a request goes down, a reply comes back, an outcome is kept."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Endpoint(enum.Enum):
    """What kind of answer a URL gives, which decides how a request's tokens are counted."""

    CHAT = "chat"
    RESPONSES = "responses"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    MODERATIONS = "moderations"
    MESSAGES = "messages"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request of a run.

    ``payload`` is the JSON text that is sent and recorded, byte for byte as it was read; ``body`` is
    the same, parsed. ``metadata_json`` is the cookbook's metadata column, which is echoed with the
    result and never sent. A request with a ``custom_id`` came from a Batch row and is recorded as
    one. ``number`` counts from 1: the line of the file, or the place in the iterable. ``flaw`` says
    why a line can't be sent; such a request becomes a failed record without any attempt. ``dropped``
    names the members that were left out, since they ask for an answer that isn't one JSON object.
    """

    body: Any
    payload: bytes = field(repr=False)
    number: int
    metadata_json: bytes | None = None
    custom_id: str | None = None
    url: str | None = None
    flaw: str | None = None
    dropped: frozenset[str] = frozenset()


class Cost(NamedTuple):
    """What an attempt is expected to cost in tokens, all in all, and the answer's part of it."""

    tokens: int
    output_tokens: int = 0


class Estimate(NamedTuple):
    """What is known of a request's tokens before it is sent.

    ``output_cap`` is the most that its answer may have, ``None`` if it names no cap;
    ``output_tokens`` what is reserved while nothing was learned. ``kind`` is what answers of the same
    length may be expected of: the endpoint and the model.
    """

    input_tokens: int
    output_cap: int | None = None
    output_tokens: int = 0
    kind: tuple[Endpoint, str] = (Endpoint.UNKNOWN, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A complete answer, whatever its status.

    ``body`` holds the bytes as they came, decompressed; ``data`` the same parsed as JSON, or ``None``
    with ``is_json`` false. the names in ``headers`` are in lower case.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    data: Any = field(default=None, repr=False)
    is_json: bool = False


class Verdict(enum.Enum):
    """What an attempt's end means for its request and for the run (see ``answers.py``)."""

    ANSWERED = "answered"
    RETRY = "retry"
    RATE_LIMITED = "rate limited"
    UNREACHABLE = "unreachable"
    LOST = "lost"  # with the worker process that had it under way
    FAILED = "failed"
    FATAL = "fatal"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What a server that turned an attempt away complained of.

    ``kind`` is the limit that it named, ``requests`` or ``tokens``, if any. ``steep`` says that the
    traffic rose too fast, ``overload`` that the server has too much to do, whoever it is from;
    ``hinted`` that it named a time to wait.
    """

    kind: str = ""
    steep: bool = False
    overload: bool = False
    hinted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How one attempt ended.

    ``error`` is the text for the record, ``kind`` its short label for counting, such as
    ``HTTP 500 server_error`` or ``timeout``; both are empty for an answer. ``retry_after_s`` is what
    the server asked for, in seconds; ``None`` where it asked for nothing. ``refusal`` is set if the
    server turned the attempt away, for its limits or its load. ``output_tokens`` is the answer's part
    of ``used_tokens``.
    """

    verdict: Verdict
    reply: Reply | None = None
    kind: str = ""
    error: str = ""
    retry_after_s: float | None = None
    refusal: Refusal | None = None
    used_tokens: int | None = None
    output_tokens: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one request.

    ``ok`` is true for an answer. A failure has one string per attempt in ``errors``, oldest first.
    ``unanswered`` marks a request that was given up because the run stopped: it has no record, and
    the next run sends it. ``attempts`` counts what was really sent.
    """

    request: Request
    ok: bool
    reply: Reply | None = None
    errors: tuple[str, ...] = ()
    error_kind: str = ""
    attempts: int = 0
    used_tokens: int | None = None
    unanswered: bool = False

    @property
    def response(self) -> Any:
        """The answer's parsed JSON; ``None`` where there is no answer."""
        return self.reply.data if self.reply is not None else None

    @property
    def error(self) -> str | None:
        """The last attempt's error; ``None`` for an answer."""
        return self.errors[-1] if self.errors and not self.ok else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitReport:
    """What one limit of a bucket was, and how much of it was used.

    ``name`` is what it counts in ``window_s`` seconds. ``configured`` is the ceiling, ``found`` what
    the server's headers said last, both ``None`` where there is none; ``tried_per_minute`` the rate
    that was found by trying, where they say nothing. ``changes`` are the times at which the found
    limit changed, in seconds from the run's start, with its new value. ``used`` counts what was
    charged (to a configured limit by all models under it), ``used_share`` relates it to what the
    limit in force allowed meanwhile. ``others_per_minute`` is what other clients of the account seem
    to take.
    """

    name: str
    window_s: float = 60.0
    configured: float | None = None
    found: float | None = None
    tried_per_minute: float | None = None
    changes: tuple[tuple[float, float], ...] = ()
    used: float = 0.0
    used_share: float | None = None
    others_per_minute: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketReport:
    """How the limits of one model and endpoint turned out.

    ``held_by`` has the seconds for which its requests waited, by what they waited for. ``admitted``
    counts attempts, ``refusals`` those that a limit turned away, ``pauses`` the times when sending
    stopped for one. ``in_flight_limit`` is the number in flight that suited the server, if one had to be
    found; ``peak_in_flight`` the largest there was.
    """

    url: str
    model: str
    held_by: Mapping[str, float] = field(default_factory=dict)
    admitted: int = 0
    refusals: int = 0
    pauses: int = 0
    in_flight_limit: float | None = None
    peak_in_flight: int = 0
    limits: tuple[LimitReport, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run did, counted in requests unless a name says otherwise.

    ``already_answered`` were in the results file before, as were ``already_failed`` if failures were to
    be kept; ``answered`` and ``failed`` are this run's;
    ``unanswered`` were started and given up, because the run stopped. ``attempts`` counts what was
    sent, ``retries`` the attempts after a first one, ``rate_limited`` the refusals among them,
    ``pauses`` the times when all sending stopped for one. ``used_tokens`` is the sum of what the
    answers' ``usage`` says, ``reserved_tokens`` of what was charged to the token limit.
    ``stop_reason`` is empty for a run that came to its end. ``held_by`` has the seconds for which the
    sending waited, by what it waited for; ``buckets`` tells the same of each limit.
    """

    already_answered: int = 0
    already_failed: int = 0
    answered: int = 0
    failed: int = 0
    unanswered: int = 0
    attempts: int = 0
    retries: int = 0
    rate_limited: int = 0
    pauses: int = 0
    used_tokens: int = 0
    reserved_tokens: int = 0
    elapsed_s: float = 0.0
    errors_by_kind: Mapping[str, int] = field(default_factory=dict)
    stop_reason: str = ""
    held_by: Mapping[str, float] = field(default_factory=dict)
    buckets: tuple[BucketReport, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """How much of each limit was admitted in the last 60 seconds, and what the first in line waits for.

    ``admitted`` and ``limits`` are keyed by quota name. ``span_s`` is how many seconds' worth of the
    limits ``admitted`` is to be held against: less than a minute for a young bucket. ``held_by`` is a
    quota's name, ``pause``, or empty when nobody waits.
    """

    admitted: Mapping[str, float]
    limits: Mapping[str, float]
    held_by: str
    span_s: float = 60.0
