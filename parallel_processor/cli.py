"""The command line: flags become options, the run's end becomes an exit code.

Exit codes: 0 all answered, 1 some failed or the disk did, 2 bad usage, 3 stopped by a fatal answer,
130 interrupted, 143 terminated.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path

from parallel_processor.descriptors import raise_soft_limit
from parallel_processor.exceptions import (
    ConfigurationError,
    InputFileError,
    LimitsFileError,
    ParallelProcessorError,
    ResultsFileError,
    RunStoppedError,
    WorkerProcessError,
)
from parallel_processor.flags import FlagParser, build_parser, settings, with_flag_names
from parallel_processor.inputs import default_save_path
from parallel_processor.metrics import serve_metrics
from parallel_processor.models import CANT_BE_SENT, WaitCause
from parallel_processor.options import DEFAULT_REQUEST_URL, Limits, Options, shown_url
from parallel_processor.processor import Processor
from parallel_processor.progress import BarStream
from parallel_processor.providers import needs_key
from parallel_processor.signals import SignalWatcher
from parallel_processor.summary import Summary, summary_text
from parallel_processor.verify import verify_results

_log = logging.getLogger("parallel_processor")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code."""
    words = [_with_underscores(word) for word in (sys.argv[1:] if argv is None else argv)]
    if words[:1] == ["verify"]:
        return _verify(words[1:])
    flags = build_parser().parse_args(words)
    _set_up_logging(flags.logging_level)
    raise_soft_limit(flags.max_workers)
    try:
        Options(**settings(flags))  # first of all, whatever the key
        return _process(flags, _key(flags))
    except (ConfigurationError, InputFileError) as error:
        text = str(error) if isinstance(error, LimitsFileError) else with_flag_names(str(error))
        _say(f"parallel-processor: error: {text}")
        return 2
    except KeyboardInterrupt:
        return 130


def _key(flags: argparse.Namespace) -> str | None:
    if flags.api_key and flags.api_key_file:
        raise ConfigurationError("give --api_key or --api_key_file, not both")
    key = flags.api_key or os.environ.get("OPENAI_API_KEY", "").strip() or None
    if flags.api_key_file:
        try:
            key = Path(flags.api_key_file).read_text("utf-8").strip()
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"can't read the key in {flags.api_key_file}: {error}"
            ) from None
        if not key:
            raise ConfigurationError(f"there is no key in {flags.api_key_file}")
    if key is None and needs_key(flags.request_url):
        raise ConfigurationError(
            f"{shown_url(flags.request_url)} needs a key: set OPENAI_API_KEY, or give --api_key"
        )
    return key


def _verify(words: list[str]) -> int:
    """``verify``: exit code 0 only if every line has exactly one good record."""
    parser = FlagParser(
        prog="parallel-processor verify",
        description="Check that a results file has one good record for every line of the requests.",
        allow_abbrev=False,
    )
    parser.add_argument("--requests_filepath", required=True, metavar="FILE")
    parser.add_argument("--save_filepath", metavar="FILE", help="default: {requests}_results.jsonl")
    parser.add_argument("--errors_filepath", metavar="FILE")
    parser.add_argument("--request_url", default=DEFAULT_REQUEST_URL, metavar="URL")
    flags = parser.parse_args(words)
    requests_path = Path(flags.requests_filepath)
    try:
        found = verify_results(
            requests_path,
            flags.save_filepath or default_save_path(requests_path),
            flags.errors_filepath,
            request_url=flags.request_url,
        )
    except ParallelProcessorError as error:
        parser.error(str(error))
    _print("\n".join(f"{name:>9} {count:,}" for name, count in asdict(found).items()))
    _say("every line has its answer" if found.ok else "not every line has exactly one answer")
    return 0 if found.ok else 1


def _with_underscores(word: str) -> str:
    """``--max-attempts=3`` as ``--max_attempts=3``."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _set_up_logging(level: int) -> None:
    handler = logging.StreamHandler(BarStream())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _log.addHandler(handler)
    _log.setLevel(level)
    _log.propagate = False


def _print(text: str) -> None:
    """Print to stdout, which may be a pipe that nobody reads any more."""
    try:
        print(text, flush=True)
    except OSError:  # Python would try again at its end, and say so
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str) -> None:
    """Print to stderr, which may be closed, or a pipe that nobody reads any more."""
    try:
        if sys.stderr is not None:
            print(text, file=sys.stderr)
    except OSError:
        pass


def _stop(processor: Processor, signal_name: str) -> None:
    processor.stop(f"interrupted by {signal_name}")
    _log.warning("%s: waiting for the answers under way; once more gives them up", signal_name)


def _cut(processor: Processor, signal_name: str) -> None:
    processor.cut(f"interrupted by {signal_name}")
    _log.warning("%s: giving up the answers under way", signal_name)


def _process(flags: argparse.Namespace, api_key: str | None) -> int:
    with (
        Processor(api_key=api_key, **settings(flags)) as processor,
        SignalWatcher(
            on_first=lambda name: _stop(processor, name),
            on_second=lambda name: _cut(processor, name),
        ) as watcher,
        _metrics(processor, flags.metrics_port),
    ):
        summary, error = _run_to_its_end(processor, flags)
        if summary is None:
            _log.error("%s", error)
            return 2
        if flags.logging_level <= logging.INFO:
            _say(_ending(summary, flags, processor.options.limits))
        return _exit_code(summary, error, flags, watcher)


def _metrics(
    processor: Processor, address: tuple[str, int] | None
) -> AbstractContextManager[object]:
    """What serves metrics while the run goes on, if they are wanted."""
    if address is None:
        return nullcontext()
    host, port = address
    return serve_metrics(processor, port, host)


def _exit_code(
    summary: Summary,
    error: ParallelProcessorError | None,
    flags: argparse.Namespace,
    watcher: SignalWatcher,
) -> int:
    """The exit code, with a word on what to do next."""
    again = "Run the same command again"
    if flags.overwrite:
        again += ", without --overwrite,"
    if error is not None:
        _log.error("stopped: %s. %s once that is put right.", str(error).rstrip("."), again)
        return 3 if isinstance(error, RunStoppedError) else 1
    if watcher.number:
        _log.warning("%s. %s to go on.", summary.stop_reason, again)
        return 128 + watcher.number
    unsent = summary.errors_by_kind.get(CANT_BE_SENT, 0)
    if unsent:
        _log.warning("Lines that can't be sent: %s. Put them right first.", f"{unsent:,}")
    if summary.failed > unsent:
        _log.warning("%s to send the failed requests once more.", again)
    return 1 if summary.failed or summary.already_failed else 0


def _ending(summary: Summary, flags: argparse.Namespace, limits: Limits) -> str:
    save_path = flags.save_filepath or default_save_path(Path(flags.requests_filepath))
    text = f"{summary_text(summary, with_stop=False)}\nresults are in {save_path}"
    if _may_reserve_too_much(summary) and flags.token_accounting == "auto":
        text += (
            "\nthe answers used far fewer tokens than were reserved for them: if the server's limit "
            "charges what is used, --token_accounting usage is faster"
        )
    return f"{text}, failures in {flags.errors_filepath}" if flags.errors_filepath else text


def _may_reserve_too_much(summary: Summary) -> bool:
    """True if a token limit held the run back for reservations that the answers didn't use."""
    waited_s = summary.held_by.get(WaitCause.TOKENS, 0.0)
    return (
        waited_s > summary.elapsed_s / 3 and summary.reserved_tokens > 3 * summary.used_tokens > 0
    )


def _run_to_its_end(
    processor: Processor, flags: argparse.Namespace
) -> tuple[Summary | None, ParallelProcessorError | None]:
    """The run's summary, ``None`` if it could not begin; and what stopped it, if anything did."""
    try:
        summary = processor.process_file(
            flags.requests_filepath,
            flags.save_filepath,
            errors_path=flags.errors_filepath,
            overwrite=flags.overwrite,
            keep_failures=flags.keep_failures,
            progress=not flags.no_progress,
            report_path=flags.report_filepath,
        )
    except (RunStoppedError, ResultsFileError, WorkerProcessError) as error:
        return error.summary, error
    return summary, None
