"""What travels through the house: a request goes down, a reply comes back, an outcome is kept."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A complete answer, whatever its status.

    ``body`` holds the bytes as they came, decompressed; ``data`` the same parsed as JSON, or ``None``
    with ``is_json`` false. ``headers`` look up their names without regard to case.
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
    FAILED = "failed"
    FATAL = "fatal"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How one attempt ended.

    ``error`` is the text for the record, ``kind`` its short label for counting, such as
    ``HTTP 500 server_error`` or ``timeout``; both are empty for an answer. ``retry_after_s`` is what
    the server asked for, in seconds; ``None`` where it asked for nothing.
    """

    verdict: Verdict
    reply: Reply | None = None
    kind: str = ""
    error: str = ""
    retry_after_s: float | None = None
    used_tokens: int | None = None


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
class Summary:
    """What a run did, counted in requests unless a name says otherwise.

    ``already_answered`` were in the results file before, as were ``already_failed`` if failures were to
    be kept; ``answered`` and ``failed`` are this run's;
    ``unanswered`` were started and given up, because the run stopped. ``attempts`` counts what was
    sent, ``retries`` the attempts after a first one, ``rate_limited`` the refusals among them,
    ``pauses`` the times when all sending stopped for one. ``used_tokens`` is the sum of what the
    answers' ``usage`` says, ``reserved_tokens`` of what was charged to the token limit.
    ``stop_reason`` is empty for a run that came to its end.
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
