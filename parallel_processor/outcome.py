"""What became of a request, for the program that asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from parallel_processor.display import html_table
from parallel_processor.exceptions import RequestFailedError
from parallel_processor.models import Reply, Request
from parallel_processor.replies import response_embeddings, response_text, response_usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one ``request``.

    ``ok`` is true for an answer, which is the ``reply``; a failure may have one, too. A failure has one
    string per attempt in ``errors``, oldest first, and ``error_kind`` is the last one's short label, such
    as ``timeout``. ``used_tokens`` is what the answer says; ``None`` if it doesn't.
    ``unanswered`` marks a request that was given up because the run stopped: it has no record, and
    the next run sends it. ``attempts`` counts what was really sent. ``latency_s`` are the seconds from
    the sending of the last attempt to the end of its answer; ``None`` if nothing was sent.
    ``deduplicated`` marks one that was not sent, since an equal request was, whose answer this is.

    >>> with Processor(request_url=url) as processor:
    ...     (outcome,) = processor.map([{"model": "m", "input": "text", "metadata": {"row": 7}}])
    >>> outcome.ok, outcome.attempts, outcome.metadata, len(outcome.embedding) > 0
    (True, 1, {'row': 7}, True)
    """

    request: Request
    ok: bool
    reply: Reply | None = None
    errors: tuple[str, ...] = ()
    error_kind: str = ""
    attempts: int = 0
    used_tokens: int | None = None
    latency_s: float | None = None
    unanswered: bool = False
    deduplicated: bool = False

    @property
    def response(self) -> Any:
        """The answer's parsed JSON; ``None`` where there is no answer."""
        return self.reply.data if self.reply is not None else None

    @property
    def text(self) -> str | None:
        """The answer's text (chat, responses, completions, messages); ``None`` where there is none."""
        return response_text(self.response) if self.ok else None

    @property
    def embedding(self) -> list[float] | None:
        """The answer's vector, of several inputs the first one's; ``None`` where there is none."""
        vectors = self.embeddings
        return vectors[0] if vectors else None

    @property
    def embeddings(self) -> list[list[float]] | None:
        """The answer's vectors in the order of the inputs; ``None`` where there is none."""
        return response_embeddings(self.response) if self.ok else None

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """The answer's ``usage`` object as the server wrote it; ``None`` where there is none."""
        return response_usage(self.response) if self.ok else None

    @property
    def error(self) -> str | None:
        """The last attempt's error; ``None`` for an answer."""
        return self.errors[-1] if self.errors and not self.ok else None

    @property
    def metadata(self) -> Any:
        """What came with the request and wasn't sent; ``None`` if nothing did."""
        return self.request.metadata

    @property
    def custom_id(self) -> str | None:
        """The ``custom_id`` of the request; ``None`` if it has none."""
        return self.request.custom_id

    def raise_for_error(self) -> None:
        """Do nothing for an answer; :class:`RequestFailedError` for a failure."""
        if not self.ok:
            raise RequestFailedError(self)

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
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
