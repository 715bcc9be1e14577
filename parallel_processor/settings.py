"""The settings as keyword arguments: what a type checker holds a call against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict

from parallel_processor.options import Limits, RetryPolicy


class Settings(TypedDict, total=False):
    """The fields of :class:`Options` as a dict, of which any may be missing.

    It is what ``Processor(**settings)`` and ``process_file(..., **settings)`` take, for programs that
    keep the settings of an account in one place. Nothing is checked before they are used.

    >>> account: Settings = {"request_url": url, "max_workers": 4}
    >>> process_file(f"{folder}/requests.jsonl", **account).failed
    0
    """

    request_url: str
    api_key: str | None
    limits: Limits
    limits_by_model: Mapping[str, Limits]
    token_accounting: Literal["auto", "reserve", "usage"]
    retry: RetryPolicy
    max_workers: int
    processes: int
    request_timeout_s: float
    connect_timeout_s: float
    max_response_bytes: int
    drain_s: float
    write_retry_s: float
    allow_plain_http: bool
    token_encoding_name: str | None
    default_output_tokens: int
    session_factory: Callable[[], Any] | None
    validate: Callable[[Any], object] | None
    dedupe: bool
