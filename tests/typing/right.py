"""Uses of the public API with the types that a checker must find; read by ``scripts/lint``, never run."""

# pyright: strict

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallel_processor import (
    BucketReport,
    ConfigurationError,
    InputFileError,
    LimitReport,
    Limits,
    Options,
    Outcome,
    ParallelProcessorError,
    Processor,
    Request,
    RequestFailedError,
    Response,
    ResultsFileError,
    RetryPolicy,
    RunStoppedError,
    Settings,
    Stats,
    Summary,
    Verification,
    WaitCause,
    WorkerProcessError,
    export_results,
    open_table,
    process_api_requests_from_file,
    process_file,
    read_requests,
    read_results,
    response_embeddings,
    response_text,
    serve_metrics,
    to_records,
    verify_results,
)

if TYPE_CHECKING:
    from typing_extensions import assert_type

URL = "https://api.example.com/v1/embeddings"
ACCOUNT: Settings = {"request_url": URL, "api_key": "key", "limits": Limits(headroom=0.1)}


def files(folder: Path) -> None:
    """Paths are strings or ``Path``; settings are named, or come as a dict."""
    assert_type(process_file("in.jsonl"), Summary)
    assert_type(process_file("in.csv", template={"input": "{{a}}"}, id_column="b"), Summary)
    process_file(folder / "in.parquet", template=folder / "t.json", metadata_columns=["a"])
    with open_table("in.tsv", "t.json", metadata_columns="a,b", delimiter=";") as table:
        verify_results(table, "out.jsonl")
        process_file("in.jsonl", "out.jsonl")
    process_file(open_table("in.csv", {"input": "{{a}}"}), "out.jsonl", **ACCOUNT)
    assert_type(export_results("out.jsonl", folder / "out.csv", columns=["text"]), int)
    assert_type(process_file(folder / "in.jsonl", folder / "out.jsonl", **ACCOUNT), Summary)
    process_file(
        "in.jsonl",
        errors_path=folder / "errors.jsonl",
        report_path="report.json",
        overwrite=True,
        keep_failures=False,
        progress=None,
        api_key=os.environ.get("KEY"),
        max_workers=5,
    )
    assert_type(process_api_requests_from_file("in.jsonl", max_requests_per_minute=1e3), Summary)
    process_api_requests_from_file("in.jsonl", "out.jsonl", URL, "key", 1500, "auto", None, 5, 20)
    verification = verify_results("in.jsonl", folder / "out.jsonl", request_url=URL)
    assert_type(verification, Verification)
    assert_type(verification.ok, bool)
    assert_type(verification.missing, int)


def programs() -> None:
    """A processor takes bodies and requests from anything that can be iterated over."""
    with Processor(**ACCOUNT) as processor:
        assert_type(processor, Processor)
        assert_type(processor.options, Options)
        processor.set_limits(Limits(requests_per_minute=5), {"gpt*": Limits(headroom=0.5)})
        processor.set_limits(limits_by_model={})
        assert_type(processor.imap_unordered([{"input": "a"}]), Iterator[Outcome])
        processor.imap_unordered({"input": text} for text in "abc")
        processor.imap_unordered([Request(body={"input": "a"}), {"input": "b"}])
        assert_type(processor.process_file("in.jsonl", progress=False), Summary)
        assert_type(
            processor.imap(({"input": text} for text in "abc"), window=10), Iterator[Outcome]
        )
        assert_type(processor.map([{"input": "a"}], progress=True), list[Outcome])
        processor.map([Request(body={}, metadata=3, custom_id="a", url="/v1/x")], on_outcome=print)
        future = processor.submit({"input": "a"})
        assert_type(future, Future[Outcome])
        assert_type(future.result(5).ok, bool)
        assert_type(processor.stats(), Stats)
        assert_type(processor.stats().latency_s, Mapping[int, float])
        with serve_metrics(processor, 0) as port:
            assert_type(port, int)
        processor.stop("enough")
        processor.cancel()
    Processor(clock=lambda: 0.0, processes=2, session_factory=dict, dedupe=True)
    Processor(validate=lambda response: response["data"][0])


def results(path: Path) -> None:
    """A results file gives outcomes, and outcomes give rows."""
    read = read_results(path, errors_path="errors.jsonl")
    assert_type(read, Iterator[Outcome])
    assert_type(to_records(read), list[dict[str, Any]])
    process_file(path, on_outcome=lambda outcome: print(outcome.text))
    process_file(path, output_format="batch", model="m")
    assert_type(read_requests(path, output_format="cookbook", model="m"), Iterator[Request])
    assert_type(verify_results(path, "results.jsonl", model="m"), Verification)
    assert_type(response_text({}), str | None)
    assert_type(response_embeddings({}), list[list[float]] | None)


def outcomes(outcome: Outcome) -> None:
    """What an outcome has may be missing, which a checker says."""
    assert_type(outcome.ok, bool)
    assert_type(outcome.request, Request)
    assert_type(outcome.raw_response, Response | None)
    assert_type(outcome.response, Any)
    assert_type(outcome.text, str | None)
    assert_type(outcome.embedding, list[float] | None)
    assert_type(outcome.embeddings, list[list[float]] | None)
    assert_type(outcome.usage, Mapping[str, Any] | None)
    assert_type(outcome.error, str | None)
    assert_type(outcome.errors, tuple[str, ...])
    assert_type(outcome.custom_id, str | None)
    assert_type(outcome.latency_s, float | None)
    assert_type(outcome.used_tokens, int | None)
    if outcome.raw_response is not None:
        assert_type(outcome.raw_response.status, int)
        assert_type(outcome.raw_response.headers, Mapping[str, str])
    try:
        outcome.raise_for_error()
    except RequestFailedError as error:
        assert_type(error.outcome, Outcome)


def settings() -> None:
    """Limits are numbers or ``auto``; what isn't named has a default."""
    limits = Limits(requests_per_minute="auto", tokens_per_minute=math.inf, burst_seconds=1)
    retry = RetryPolicy(max_attempts=3, pause_s=1)
    options = Options(limits=limits, limits_by_model={"gpt-*": limits}, retry=retry)
    assert_type(options.limits.headroom, float)
    assert_type(options.retry.max_attempts, int)
    assert_type(options.api_keys, Mapping[str, str | Sequence[str] | Callable[[], str]])
    account: Settings = {}
    account["retry"] = retry
    account["token_accounting"] = "usage"
    assert_type(account.get("max_workers"), int | None)


def figures(summary: Summary) -> None:
    """Figures are numbers, by name where there are several."""
    assert_type(summary.answered, int)
    assert_type(summary.elapsed_s, float)
    assert_type(summary.errors_by_kind, Mapping[str, int])
    for bucket in summary.buckets:
        assert_type(bucket, BucketReport)
        assert_type(bucket.waited_s, Mapping[WaitCause, float])
        for limit in bucket.limits:
            assert_type(limit, LimitReport)
            assert_type(limit.found, float | None)


def errors() -> None:
    """All have one base, and those that the standard library has a word for are that, too."""
    try:
        process_file("in.jsonl")
    except RunStoppedError as error:
        assert_type(error.summary, Summary | None)
    except (InputFileError, ResultsFileError) as error:
        as_os_error: OSError = error
        assert_type(as_os_error.errno, int | None)
    except ConfigurationError as error:
        as_value_error: ValueError = error
        print(as_value_error)
    except (WorkerProcessError, ParallelProcessorError) as error:
        assert_type(error.summary, Summary | None)
