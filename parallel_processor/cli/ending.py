"""How a run ends: what is said of it, to people and to programs, and the exit code."""

from __future__ import annotations

import argparse
import fnmatch
import glob
import logging
import os
from collections.abc import Callable, Iterator, Sequence
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
from parallel_processor.files.object_stores import is_url, local_path
from parallel_processor.files.sources import find_sources
from parallel_processor.report.advice import advice
from parallel_processor.report.report_file import summary_json, write_whole
from parallel_processor.report.summary import Summary, summary_text

_log = logging.getLogger("parallel_processor")
_STDOUT = "-"
_BOUNDS = (StopCause.BUDGET, StopCause.PRICE)
_FILES = (
    *("report_filepath", "template", "api_key_file", "limits", "json_schema", "prices"),
    "ca_bundle",
)


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of a command: its exit code, and of a run what it did and where that is."""

    code: int
    error: str = ""  # what ended it early, if that isn't in the summary
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
    real = os.path.realpath(path)
    if any(os.path.realpath(local_path(each)) == real for each in _other_files(flags, outputs)):
        raise ConfigurationError(f"--summary_json {path} is another file of this command, too")
    for name in _requests(flags):
        if _matches(real, name):
            text = f"--summary_json {path} has a name that --requests_filepath {name} matches"
            raise ConfigurationError(f"{text}: the next run would take it for requests")
    if os.path.isdir(real):
        raise ConfigurationError(f"--summary_json {path} is a directory")
    if not os.path.isdir(os.path.dirname(real)):
        raise ConfigurationError(f"the directory of --summary_json {path} does not exist")


def _other_files(flags: argparse.Namespace, outputs: Sequence[str | None]) -> Iterator[str]:
    """The files that the command reads and writes. What a pattern stands for is looked up."""
    for name in _requests(flags):
        yield name
        if not is_url(name):
            with suppress(ParallelProcessorError):
                yield from (source.name for source in find_sources(name))
    yield from filter(None, outputs)
    yield from filter(None, (getattr(flags, name, None) for name in _FILES))
    yield from (header[1:] for header in flags.header or () if header.startswith("@"))


def _matches(path: str, pattern: str) -> bool:
    """True if ``pattern`` is one and will match ``path``, which need not be there yet."""
    local = str(local_path(pattern))
    if is_url(pattern) or not glob.has_magic(local) or os.path.exists(local):
        return False
    folder, name = os.path.split(local)
    if not fnmatch.fnmatch(os.path.basename(path), name):
        return False
    folders = glob.glob(local, recursive=True) if name == "**" else []
    folders += glob.glob(folder, recursive=True) if folder else [os.curdir]
    return os.path.dirname(path) in map(os.path.realpath, folders)


def forget_summary(flags: argparse.Namespace) -> None:
    """Delete the summary of an earlier run: a process that is killed leaves none."""
    path = flags.summary_json
    if path not in (None, _STDOUT) and os.path.isfile(path):
        with suppress(OSError):  # it is said when the new one can't be written
            os.unlink(os.path.realpath(path))


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
        error=ending.error or (ending.summary.stop_reason if ending.summary else ""),
        requests_filepath=_requests(flags),
        save_filepath=ending.save_path or flags.save_filepath,
        errors_filepath=flags.errors_filepath,
        report_filepath=flags.report_filepath,
    )
    if flags.summary_json == _STDOUT:
        show(line)
    else:
        write_whole(Path(flags.summary_json), line + "\n", "summary", level=logging.ERROR)


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
