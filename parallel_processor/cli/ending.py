"""How a run ends: what is said of it, and the exit code."""

from __future__ import annotations

import argparse
import logging

from parallel_processor.cli.console import say
from parallel_processor.exceptions import (
    InputFileError,
    ParallelProcessorError,
    RunStoppedError,
    StopCause,
)
from parallel_processor.report.advice import advice
from parallel_processor.report.summary import Summary, summary_text

_log = logging.getLogger("parallel_processor")


def tell(
    summary: Summary, error: ParallelProcessorError | None, flags: argparse.Namespace, where: str
) -> None:
    """Say what the run did, what to do next, and why it ended if it was stopped.

    At a level that hides the summary, the advice is in the log. ``where`` says where the results are.
    """
    again = _without(flags, "overwrite")
    found = advice(summary, again=again, resend=_without(flags, "overwrite", "keep_failures"))
    texts = [text.replace("`", "") for text in found]
    if flags.logging_level <= logging.INFO:
        say("\n".join([summary_text(summary, with_stop=False), where, *texts]))
        texts = []
    elif not (summary.stop_reason or summary.failed or summary.already_failed):
        texts = []  # what would be faster is no warning
    if reason := summary.stop_reason if error is None else str(error):
        texts = [f"stopped: {reason.rstrip('.')}.", *texts]
    if texts:
        _log.log(logging.WARNING if error is None else logging.ERROR, " ".join(texts))


def _without(flags: argparse.Namespace, *names: str) -> str:
    """Names the same command without the flags ``names``, as far as they were given."""
    given = [f"`--{name}`" for name in names if getattr(flags, name)]
    return f"the same command without {' and '.join(given)}" if given else "the same command"


def exit_code(summary: Summary, error: ParallelProcessorError | None, signal_number: int) -> int:
    """The exit code of a run that has a summary."""
    if isinstance(error, InputFileError):
        return 2
    if error is not None and error.stop_cause is StopCause.BUDGET:
        return 4
    if error is not None:
        return 3 if isinstance(error, RunStoppedError) else 1
    if signal_number:
        return 128 + signal_number
    return 1 if summary.failed or summary.already_failed else 0
