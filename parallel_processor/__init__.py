"""Pushes a million LLM API requests through an account's rate limits, from ordinary synchronous Python.

``process_file`` does a JSONL file, ``Processor`` whatever your program iterates over. See the README.
"""

from __future__ import annotations

import logging as _logging
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from parallel_processor.runtime.forks import load as _load

if _TYPE_CHECKING:
    from parallel_processor.api import process_api_requests_from_file, process_file
    from parallel_processor.exceptions import (
        ConfigurationError,
        InputFileError,
        ParallelProcessorError,
        RequestFailedError,
        ResultsFileError,
        RunStoppedError,
        StopCause,
        WorkerProcessError,
    )
    from parallel_processor.files.records import read_results
    from parallel_processor.files.verify import Verification, verify_results
    from parallel_processor.models import (
        Outcome,
        Request,
        Response,
        WaitCause,
        response_embeddings,
        response_text,
    )
    from parallel_processor.options import Limits, Options, RetryPolicy, Settings
    from parallel_processor.processor import Processor
    from parallel_processor.ratelimit.reports import BucketReport, LimitReport
    from parallel_processor.report.frames import to_records
    from parallel_processor.report.prometheus import serve_metrics
    from parallel_processor.report.summary import Stats, Summary

__all__ = [
    "BucketReport",
    "ConfigurationError",
    "InputFileError",
    "LimitReport",
    "Limits",
    "Options",
    "Outcome",
    "ParallelProcessorError",
    "Processor",
    "Response",
    "Request",
    "RequestFailedError",
    "ResultsFileError",
    "RetryPolicy",
    "RunStoppedError",
    "Stats",
    "Settings",
    "StopCause",
    "Summary",
    "Verification",
    "WaitCause",
    "WorkerProcessError",
    "process_api_requests_from_file",
    "process_file",
    "read_results",
    "to_records",
    "response_embeddings",
    "response_text",
    "serve_metrics",
    "verify_results",
]
__version__ = "0.1.0"

# Without any logging set up, Python would print warnings and errors to stderr.
_logging.getLogger(__name__).addHandler(_logging.NullHandler())

# Where the public names are. A name is looked for in this order, and the modules behind it stay unloaded.
_MODULES = [
    *("exceptions", "options", "models", "ratelimit.reports", "report.summary", "report.frames"),
    *("report.prometheus", "files.records", "files.verify", "processor", "api"),
]


def __getattr__(name: str) -> _Any:
    """Import a public name when it is first used: a worker process, which needs none, starts sooner."""
    if name in __all__:
        for module in _MODULES:
            names = vars(_load(f"{__name__}.{module}"))
            if name in names:
                return globals().setdefault(name, names[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
