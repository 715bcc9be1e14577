"""Uses of the public API that a checker must refuse; read by ``scripts/lint``, never run.

Each wrong line is marked. A mark that isn't needed is an error, so that what becomes right shows.
"""

# pyright: strict, reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from parallel_processor import (
    Limits,
    Options,
    Outcome,
    Processor,
    Request,
    RetryPolicy,
    Settings,
    Summary,
    process_api_requests_from_file,
    process_file,
    verify_results,
)


def settings_that_dont_exist(processor: Processor) -> None:
    """A name that is none, or that is the command's."""
    Processor(max_worker=5)  # type: ignore[call-arg]
    Processor(max_attempts=5)  # type: ignore[call-arg]
    Processor("https://api.example.com")  # type: ignore[arg-type, call-arg]
    process_file("in.jsonl", requests_per_minute=5)  # type: ignore[call-arg]
    process_file("in.jsonl", "out.jsonl", "errors.jsonl")  # type: ignore[call-arg]
    process_file()  # type: ignore[call-arg]
    processor.process_file("in.jsonl", api_key="key")  # type: ignore[call-arg]
    account: Settings = {"max_worker": 5}  # type: ignore[typeddict-unknown-key]
    account["limit"] = Limits()  # type: ignore[typeddict-unknown-key]
    Options(max_worker=5)  # type: ignore[call-arg]
    Limits(rpm=5)  # type: ignore[call-arg]
    Limits(5)  # type: ignore[call-arg]
    RetryPolicy(attempts=5)  # type: ignore[call-arg]


def values_of_another_type() -> None:
    """A limit that is text, limits that are a dict, an amount that is none."""
    Processor(max_workers="5")  # type: ignore[arg-type]
    Processor(limits={"requests_per_minute": 5})  # type: ignore[arg-type]
    Processor(limits_by_model={"gpt-*": 5})  # type: ignore[dict-item]
    Processor(token_accounting="used")  # type: ignore[arg-type]
    Processor(retry=5)  # type: ignore[arg-type]
    Processor(session_factory=5)  # type: ignore[arg-type]
    Processor(validate="schema")  # type: ignore[arg-type]
    process_file("in.jsonl", request_timeout_s="5")  # type: ignore[arg-type]
    process_file(5)  # type: ignore[arg-type]
    process_file("in.jsonl", progress="yes")  # type: ignore[arg-type]
    process_api_requests_from_file("in.jsonl", max_tokens_per_minute="much")  # type: ignore[arg-type]
    Limits(requests_per_minute="automatic")  # type: ignore[arg-type]
    Limits(input_tokens_per_minute="auto")  # type: ignore[arg-type]
    RetryPolicy(max_attempts=2.5)  # type: ignore[arg-type]
    account: Settings = {"api_key": b"key"}  # type: ignore[typeddict-item]
    account["processes"] = "2"  # type: ignore[typeddict-item]
    verify_results("in.jsonl", 5)  # type: ignore[arg-type]
    process_file("in.jsonl", output_format="jsonl")  # type: ignore[arg-type]


def requests_that_are_none(processor: Processor) -> None:
    """A text, a body alone, a number."""
    processor.imap_unordered(["a"])  # type: ignore[list-item]
    processor.imap_unordered({"input": "a"})  # type: ignore[dict-item]
    processor.imap_unordered(5)  # type: ignore[arg-type]
    processor.map("text")  # type: ignore[arg-type]
    processor.submit("text")  # type: ignore[arg-type]
    processor.submit([{"input": "a"}])  # type: ignore[arg-type]
    processor.imap([], window="all")  # type: ignore[arg-type]
    Request()  # type: ignore[call-arg]
    Request({"input": "a"})  # type: ignore[call-arg]


def what_comes_back_is_not_changed(outcome: Outcome, summary: Summary, limits: Limits) -> None:
    """Outcomes, figures and settings are frozen, and what may be missing isn't taken for granted."""
    outcome.ok = True  # type: ignore[misc]
    summary.answered = 5  # type: ignore[misc]
    summary.errors_by_kind["timeout"] = 1  # type: ignore[index]
    limits.headroom = 0.5  # type: ignore[misc]
    outcome.text.upper()  # type: ignore[union-attr]
    print(outcome.embedding[0])  # type: ignore[index]
    print(outcome.answer)  # type: ignore[attr-defined]
    print(summary.answers)  # type: ignore[attr-defined]
