"""Send LLM API requests as fast as an account's rate limits permit, from synchronous Python.

:func:`process_file` sends a JSONL file and appends the answers to another. The same call again sends only
what has no answer yet. :class:`Processor` sends what a program iterates over, and threads may share it.
:class:`Limits` are numbers, ``math.inf`` for none, or ``"auto"`` to find them.

>>> from parallel_processor import Limits, Processor
>>> limits = Limits(requests_per_minute=6000, tokens_per_minute="auto")
>>> with Processor(request_url=url, limits=limits) as processor:
...     outcomes = processor.map({"model": "m", "input": text} for text in ["one", "two"])
>>> [outcome.ok for outcome in outcomes]
[True, True]
"""

from __future__ import annotations

import logging as _logging
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from parallel_processor.runtime.forks import load_here as _load

if _TYPE_CHECKING:
    from parallel_processor.api import plan_file, process_api_requests_from_file, process_file
    from parallel_processor.contents import response_embeddings, response_text
    from parallel_processor.exceptions import (
        ConfigurationError,
        InputFileError,
        LimiterError,
        ParallelProcessorError,
        RequestFailedError,
        ResultsFileError,
        RunStoppedError,
        StopCause,
        WorkerProcessError,
    )
    from parallel_processor.files.formats import read_requests
    from parallel_processor.files.records import read_results
    from parallel_processor.files.verify import Verification, verify_results
    from parallel_processor.models import Outcome, Request, Response, WaitCause
    from parallel_processor.options import Limits, Options, RetryPolicy, Settings
    from parallel_processor.planning.costs import ModelCost
    from parallel_processor.planning.plan import Plan
    from parallel_processor.processor import Processor
    from parallel_processor.ratelimit.reports import BucketReport, LimitReport
    from parallel_processor.report.frames import to_records
    from parallel_processor.report.prometheus import serve_metrics
    from parallel_processor.report.summary import Stats, Summary
    from parallel_processor.tables.export import export_results
    from parallel_processor.tables.sources import open_table

__all__ = [
    "BucketReport",
    "ConfigurationError",
    "InputFileError",
    "LimitReport",
    "LimiterError",
    "Limits",
    "ModelCost",
    "Options",
    "Outcome",
    "Plan",
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
    "export_results",
    "open_table",
    "plan_file",
    "process_api_requests_from_file",
    "process_file",
    "read_requests",
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
    *("report.prometheus", "files.records", "files.formats", "files.verify", "processor", "api"),
    *("tables.sources", "tables.export", "planning.costs", "planning.plan"),
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
