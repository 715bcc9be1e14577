"""What became of a request, for the program that sent it."""

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

    Attributes:
        request: the request.
        ok: true for an answer, false for a failure.
        reply: the complete response; a failure may have one, too.
        errors: the errors of a failure, one string per attempt, oldest first.
        error_kind: the last error's short label, such as ``timeout``.
        attempts: how many attempts were really sent.
        used_tokens: what the response says; ``None`` if it doesn't.
        latency_s: seconds from sending the last attempt to the end of its response; ``None`` if
            none was sent.
        unanswered: the request was given up because the run stopped. It has no record, and the next
            run sends it.
        deduplicated: this request was not sent, because an equal one was, whose response this is.

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
        """The response's parsed JSON; ``None`` if there is no response."""
        return self.reply.data if self.reply is not None else None

    @property
    def text(self) -> str | None:
        """The response's text (chat, responses, completions, messages); ``None`` if it has none."""
        return response_text(self.response) if self.ok else None

    @property
    def embedding(self) -> list[float] | None:
        """The response's vector, the first one of several inputs; ``None`` if it has none."""
        vectors = self.embeddings
        return vectors[0] if vectors else None

    @property
    def embeddings(self) -> list[list[float]] | None:
        """The response's vectors in the order of the inputs; ``None`` if it has none."""
        return response_embeddings(self.response) if self.ok else None

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """The response's ``usage`` object as the server wrote it; ``None`` if it has none."""
        return response_usage(self.response) if self.ok else None

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
