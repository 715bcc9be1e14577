"""Runs whose server is a function."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from services import NO_LIMITS

from parallel_processor.engine.run import Run
from parallel_processor.files.formats import made_request
from parallel_processor.models import Outcome, Request
from parallel_processor.options import Limits, Options, RetryPolicy
from parallel_processor.ratelimit.registry import TokenBuckets
from parallel_processor.tokens.estimates import CostEstimator
from parallel_processor.upstreams.routes import Routes

URL = "http://127.0.0.1:1/v1/embeddings"

Answer = Callable[[dict[str, Any]], "tuple[int, Any]"]


def ok(body: dict[str, Any]) -> tuple[int, Any]:
    """Answer everything."""
    return 200, {"answer": body["n"], "embedding": [1.0]}


class _Adapter(HTTPAdapter):
    """Answers by calling a function with the request's body."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    def send(self, request: Any, **settings: Any) -> requests.Response:
        status, content = self._answer(json.loads(request.body))
        raw = urllib3.HTTPResponse(
            body=io.BytesIO(json.dumps(content).encode()), status=status, preload_content=False
        )
        return self.build_response(request, raw)


def sessions_of(answer: Answer) -> Callable[[], requests.Session]:
    """A factory of sessions whose server is ``answer``."""

    def session() -> requests.Session:
        made = requests.Session()
        made.mount("http://", _Adapter(answer))
        return made

    return session


def run_with(answer: Answer, limits: Limits = NO_LIMITS, **settings: Any) -> Run:
    """A run whose server is ``answer``."""
    retry = settings.pop("retry", RetryPolicy(backoff_initial_s=0.0))
    parts = {name: settings.pop(name) for name in ("make_sink",) if name in settings}
    options = Options(
        request_url=URL, limits=limits, retry=retry, session_factory=sessions_of(answer), **settings
    )
    return Run(
        options,
        routes=Routes(options, TokenBuckets(options)),
        estimator=CostEstimator(options),
        **parts,
    )


def bodies(count: int) -> Iterator[Request]:
    """So many requests, numbered."""
    for number in range(1, count + 1):
        yield made_request({"n": number}, number)


def numbers(outcomes: Iterable[Outcome]) -> list[int]:
    """The numbers of the requests, sorted."""
    return sorted(outcome.request.number for outcome in outcomes)
