"""The functions: one call for a file, with our names or the cookbook's."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallel_processor.exceptions import ConfigurationError, ResultsFileError
from parallel_processor.files.append_file import STDOUT
from parallel_processor.files.object_stores import found_results
from parallel_processor.files.sources import (
    Source,
    SourceLike,
    apart_from,
    find_save_path,
    find_sources,
)
from parallel_processor.models import Outcome
from parallel_processor.options import (
    DEFAULT_REQUEST_URL,
    DEFAULT_REQUESTS_PER_MINUTE,
    DEFAULT_TOKENS_PER_MINUTE,
    MOST_PROCESSES,
    Limit,
    Limits,
    Options,
    OutputFormat,
    RetryPolicy,
    Settings,
)
from parallel_processor.processor import Processor, StrPath
from parallel_processor.report.summary import Summary
from parallel_processor.runtime.forks import load_here
from parallel_processor.tables.kinds import with_template

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from parallel_processor.planning.plan import Plan


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


def plan_file(
    requests_path: SourceLike,
    save_path: StrPath | None = None,
    *,
    errors_path: StrPath | None = None,
    overwrite: bool = False,
    keep_failures: bool = False,
    output_format: OutputFormat = "auto",
    model: str | None = None,
    template: Mapping[str, Any] | StrPath | None = None,
    id_column: str | None = None,
    metadata_columns: Sequence[str] | str = (),
    delimiter: str | None = None,
    sample: int | None = None,
    seed: int = 0,
    latency_s: float = 1.0,
    **settings: Unpack[Settings],
) -> Plan:
    """What :func:`process_file` would take with the same arguments. Nothing is sent, and no file changes.

    Args:
        sample: count the tokens of so many requests of each model and URL, and estimate those of the
            others by their size. ``None`` counts all.
        seed: chooses which.
        latency_s: how long an answer takes.
        settings: those of the run. So many ``processes`` read the file; by default one for each CPU.
            Without ``prices``, those of genai-prices count, if it is installed.

    Raises what :func:`process_file` raises for the files.

    >>> plan = plan_file(f"{folder}/requests.jsonl", request_url=url)
    >>> plan.requests, plan.bad.count, plan.reserved_tokens, plan.forecast.seconds < 10
    (3, 0, 9, True)
    """
    planning = load_here("parallel_processor.planning.planner")  # a run needs none of it
    settings.setdefault("processes", min(os.cpu_count() or 1, MOST_PROCESSES))
    settings["prices"] = settings.get("prices") or "auto"
    options = Options(**settings)
    named = find_sources(requests_path)
    results = _results(named, save_path, errors_path)
    sources = apart_from(named, results)
    with _to_read(results) as paths:
        found: Plan = planning.make_plan(
            with_template(sources, template, id_column, metadata_columns, delimiter),
            replace(options, processes=1),
            results=[] if overwrite else paths,
            keep_failures=keep_failures,
            output_format=output_format,
            model=model,
            sample=sample,
            seed=seed,
            latency_s=latency_s,
            processes=1 if template is not None else options.processes,
        )
    return found


@contextmanager
def _to_read(results: Sequence[StrPath]) -> Iterator[list[Path]]:
    """The results files, on this machine. Raises :class:`ResultsFileError` if a run can't write one."""
    with ExitStack() as stack:
        found = [stack.enter_context(found_results(str(path))) for path in results]
        paths = [path for path in found if path is not None]
        for path in paths:
            if path.is_dir() or not path.parent.is_dir():
                number = errno.EISDIR if path.is_dir() else errno.ENOENT
                raise ResultsFileError(f"can't write {path}: {os.strerror(number)}")
        yield paths


def _results(
    requests: Sequence[Source], save_path: StrPath | None, errors_path: StrPath | None
) -> list[StrPath]:
    """The results and the errors of earlier runs, as they are named; none where there can be none."""
    if save_path is None:
        with suppress(ConfigurationError):  # a run would need a name, and a plan doesn't
            save_path = find_save_path(requests)
    named = (save_path, errors_path)
    return [each for each in named if each is not None and str(each) not in ("-", str(STDOUT))]


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
