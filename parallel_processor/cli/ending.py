"""How a run ends: what is said of it, to people and to programs, and the exit code."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from parallel_processor.cli.console import say, show
from parallel_processor.cli.flags import with_flag_names
from parallel_processor.exceptions import (
    ConfigurationError,
    InputFileError,
    ParallelProcessorError,
    RunStoppedError,
    StopCause,
)
from parallel_processor.files.append_file import STDOUT
from parallel_processor.report.advice import advice
from parallel_processor.report.report_file import summary_json, write_whole
from parallel_processor.report.summary import Summary, summary_text

_log = logging.getLogger("parallel_processor")
_STDOUT = "-"
_BOUNDS = (StopCause.BUDGET, StopCause.PRICE)
_FILES = ("report_filepath", "template", "api_key_file", "limits", "json_schema", "prices")


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of a command: its exit code, and of a run what it did and where that is."""

    code: int
    error: str = ""  # what ended it early, if anything did
    summary: Summary | None = None  # None if no run began
    save_path: str = ""  # the results file, or the folder of parts


def check_summary_path(
    flags: argparse.Namespace, find_save: Callable[[argparse.Namespace], str]
) -> None:
    """Raise :class:`ConfigurationError` if ``--summary_json`` is where something else is.

    ``find_save`` finds out where the results go, or raises what the run will.
    """
    path = flags.summary_json
    if path is None:
        return
    outputs = [flags.errors_filepath]
    with suppress(ParallelProcessorError):
        outputs.append(find_save(flags))
    if path == _STDOUT:
        if not {_STDOUT, str(STDOUT)}.isdisjoint(outputs):
            raise ConfigurationError("--summary_json - and records can't both be standard output")
        return
    files = [*_requests(flags), *outputs, *(getattr(flags, name, None) for name in _FILES)]
    real = os.path.realpath(path)
    if any(os.path.realpath(each) == real for each in files if each):
        raise ConfigurationError(f"--summary_json {path} is another file of this command, too")
    if os.path.isdir(real):
        raise ConfigurationError(f"--summary_json {path} is a directory")
    if not os.path.isdir(os.path.dirname(real)):
        raise ConfigurationError(f"the directory of --summary_json {path} does not exist")


def _requests(flags: argparse.Namespace) -> list[str]:
    given = flags.requests_filepath
    return [given] if isinstance(given, str) else list(given)


def write_summary(ending: Ending, flags: argparse.Namespace) -> None:
    """Write the line of ``--summary_json``, if that was asked for."""
    if flags.summary_json is None:
        return
    line = summary_json(
        ending.summary,
        exit_code=ending.code,
        error=ending.error,
        requests_filepath=_requests(flags),
        save_filepath=ending.save_path or flags.save_filepath,
        errors_filepath=flags.errors_filepath,
        report_filepath=flags.report_filepath,
    )
    if flags.summary_json == _STDOUT:
        show(line)
    else:
        write_whole(Path(flags.summary_json), line + "\n", "summary")


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
        if summary.stop_cause in _BOUNDS:  # whose names are those of settings
            reason = with_flag_names(reason)
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
    if error is not None and error.stop_cause in _BOUNDS:
        return 4
    if error is not None:
        return 3 if isinstance(error, RunStoppedError) else 1
    if signal_number:
        return 128 + signal_number
    return 1 if summary.failed or summary.already_failed else 0
