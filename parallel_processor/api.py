"""The functions: one call for a file, with our names or the cookbook's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from parallel_processor.files.sources import SourceLike
from parallel_processor.models import Outcome
from parallel_processor.options import (
    DEFAULT_REQUEST_URL,
    DEFAULT_REQUESTS_PER_MINUTE,
    DEFAULT_TOKENS_PER_MINUTE,
    Limit,
    Limits,
    OutputFormat,
    RetryPolicy,
    Settings,
)
from parallel_processor.processor import Processor, StrPath
from parallel_processor.report.summary import Summary

if TYPE_CHECKING:
    from typing_extensions import Unpack


def process_file(
    requests_path: SourceLike,
    save_path: StrPath | None = None,
    *,
    errors_path: StrPath | None = None,
    overwrite: bool = False,
    keep_failures: bool = False,
    output_format: OutputFormat = "auto",
    model: str | None = None,
    ordered: bool = False,
    progress: bool | None = None,
    report_path: StrPath | None = None,
    on_outcome: Callable[[Outcome], object] | None = None,
    template: Mapping[str, Any] | StrPath | None = None,
    id_column: str | None = None,
    metadata_columns: Sequence[str] | str = (),
    delimiter: str | None = None,
    **settings: Unpack[Settings],
) -> Summary:
    """Send every request of a file through the limits; :meth:`Processor.process_file` in one call.

    Calls for one account share each limit that they set alike, also if they follow each other.
    ``settings`` are those of :class:`Options`: ``request_url``, ``api_key``, ``limits``, ``retry``,
    ``max_workers`` …

    >>> limits = Limits(requests_per_minute=1500, tokens_per_minute=125_000)
    >>> summary = process_file(f"{folder}/requests.jsonl", request_url=url, limits=limits)
    >>> summary.answered, summary.failed
    (3, 0)

    The same call again sends what has no answer yet:

    >>> process_file(f"{folder}/requests.jsonl", request_url=url, limits=limits).already_answered
    3

    A table has a request in each row, made by a ``template`` (see :func:`open_table`):

    >>> from pathlib import Path
    >>> _ = Path(f"{folder}/prompts.csv").write_text("id,prompt\\n7,Say hello\\n8,Say goodbye\\n")
    >>> template = {"model": "text-embedding-3-small", "input": "{{prompt}}"}
    >>> process_file(f"{folder}/prompts.csv", template=template, id_column="id", request_url=url).answered
    2
    """
    with Processor(**settings) as processor:
        return processor.process_file(
            requests_path,
            save_path,
            errors_path=errors_path,
            overwrite=overwrite,
            keep_failures=keep_failures,
            output_format=output_format,
            model=model,
            ordered=ordered,
            progress=progress,
            report_path=report_path,
            on_outcome=on_outcome,
            template=template,
            id_column=id_column,
            metadata_columns=metadata_columns,
            delimiter=delimiter,
        )


def process_api_requests_from_file(
    requests_filepath: StrPath,
    save_filepath: StrPath | None = None,
    request_url: str = DEFAULT_REQUEST_URL,
    api_key: str | None = None,
    max_requests_per_minute: Limit = DEFAULT_REQUESTS_PER_MINUTE,
    max_tokens_per_minute: Limit = DEFAULT_TOKENS_PER_MINUTE,
    token_encoding_name: str | None = None,
    max_attempts: int = 5,
    logging_level: int = logging.INFO,
) -> Summary:
    """The cookbook's function under its own names, without its event loop: call it, don't await it.

    ``logging_level`` sets that of the logger ``parallel_processor``; the root logger stays as it is.

    >>> process_api_requests_from_file(
    ...     requests_filepath=f"{folder}/requests.jsonl",
    ...     save_filepath=f"{folder}/results.jsonl",
    ...     request_url=url,
    ...     api_key="",
    ...     max_requests_per_minute=3000 * 0.5,
    ...     max_tokens_per_minute=250_000 * 0.5,
    ...     token_encoding_name="cl100k_base",
    ...     max_attempts=5,
    ...     logging_level=40,
    ... ).answered
    3
    """
    logging.getLogger("parallel_processor").setLevel(logging_level)
    return process_file(
        requests_filepath,
        save_filepath,
        request_url=request_url,
        api_key=api_key,
        limits=Limits(
            requests_per_minute=max_requests_per_minute, tokens_per_minute=max_tokens_per_minute
        ),
        retry=RetryPolicy(max_attempts=max_attempts),
        token_encoding_name=token_encoding_name,
    )
