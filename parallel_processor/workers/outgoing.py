"""What is sent for a request, and what its answer must hold."""

from __future__ import annotations

import contextlib
import logging

from parallel_processor.models import MODEL_PLACE, Request, Upstream, destination
from parallel_processor.options import shown_url
from parallel_processor.providers.answers import Expected, count_inputs
from parallel_processor.providers.dialects import endpoint_of, tier_spelling, url_model
from parallel_processor.providers.endpoints import streams_unasked
from parallel_processor.providers.jsontext import dump, members, with_member, without

_log = logging.getLogger("parallel_processor")
_MODEL = frozenset({"model"})
_MOST_PLAIN = 1024


class Outgoing:
    """Completes the requests of one run. Any thread may call it.

    The record has the request as it was read. What is sent has the service tier and the model of the
    upstream, and lacks the model if the URL has it, or a place for it. Ollama's own endpoints are told in
    it not to stream, as they do if they are not told.
    """

    def __init__(self, request_url: str) -> None:
        self._url = request_url
        self._plain: set[str] = set()  # URLs where a body needs no change
        self._warnings = [
            '%s streams by default: requests are sent with "stream": false, which their records lack'
        ]

    def expected(self, request: Request, upstream: Upstream) -> Expected:
        """What is known of the answer of ``upstream`` to ``request``."""
        url = upstream.url or request.url or self._url
        if url not in self._plain:
            url = destination(request, upstream, self._url)
        return Expected(url, count_inputs(request.body), request.is_row)

    def payload(self, request: Request, upstream: Upstream) -> bytes:
        """The bytes to send to ``upstream``."""
        url, payload = upstream.url or request.url or self._url, request.payload
        if url in self._plain and not (upstream.tier or upstream.model):
            return payload  # as mostly
        body = request.body
        has_model = MODEL_PLACE in url or endpoint_of(url).has_model_in_path
        if not has_model and not streams_unasked(url) and len(self._plain) < _MOST_PLAIN:
            self._plain.add(url)
        if has_model and body is not None and "model" in body:
            payload = without(members(payload.decode()), _MODEL).encode()
        if upstream.tier or upstream.model:
            payload = _for_lane(payload, url, upstream)
        if not streams_unasked(url) or body is None or "stream" in body:
            return payload
        if self._warnings:
            with contextlib.suppress(IndexError):  # another thread was faster
                _log.warning(self._warnings.pop(), shown_url(url))
        start = payload.rstrip()[:-1].rstrip()
        return start + (b", " if len(body) else b"") + b'"stream": false}'


def _for_lane(payload: bytes, url: str, upstream: Upstream) -> bytes:
    """``payload`` with the tier and the model of ``upstream``; every other byte stays as it is."""
    added = tier_spelling(url, upstream.tier)
    has_model = MODEL_PLACE in url or endpoint_of(url).has_model_in_path or url_model(url)
    if upstream.model and not has_model:
        added = {"model": upstream.model, **added}
    text = payload.decode()
    for name, value in added.items():
        text = with_member(text, name, dump(value).decode())
    return text.encode()
