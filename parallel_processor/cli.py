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
from pathlib import Path

from parallel_processor.descriptors import raise_soft_limit
from parallel_processor.exceptions import (
    ConfigurationError,
    InputFileError,
    ParallelProcessorError,
    ResultsFileError,
    RunStoppedError,
)
from parallel_processor.inputs import default_save_path
from parallel_processor.models import Summary
from parallel_processor.options import DEFAULT_REQUEST_URL, Limits, RetryPolicy
from parallel_processor.processor import Processor
from parallel_processor.progress import BarStream, summary_text
from parallel_processor.providers import needs_key
from parallel_processor.signals import SignalWatcher

_log = logging.getLogger("parallel_processor")
_EPILOG = """exit codes: 0 all answered, 1 some failed, 2 bad usage, 3 stopped by a fatal error,
130 interrupted. Run the same command again to go on: answered requests are not sent again."""


def build_parser() -> argparse.ArgumentParser:
    """The flags; the first nine are those of the cookbook's script, with its defaults."""
    parser = argparse.ArgumentParser(
        prog="parallel-processor",
        description="Send a JSONL file of LLM API requests through an account's rate limits.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    limits, retry = Limits(), RetryPolicy()
    add = parser.add_argument
    add("--requests_filepath", required=True, metavar="FILE", help="the requests, a JSONL file")
    add("--save_filepath", metavar="FILE", help="the results (default: {requests}_results.jsonl)")
    add("--request_url", default=DEFAULT_REQUEST_URL, metavar="URL", help="default: %(default)s")
    add("--api_key", metavar="KEY", help="default: the variable OPENAI_API_KEY")
    add("--max_requests_per_minute", type=float, default=limits.requests_per_minute, metavar="N",
        help="default: %(default)g; inf for no limit")  # fmt: skip
    add("--max_tokens_per_minute", type=float, default=limits.tokens_per_minute, metavar="N",
        help="default: %(default)g; inf for no limit")  # fmt: skip
    add("--token_encoding_name", metavar="NAME",
        help="tiktoken's encoding for all requests (default: that of each request's model)")  # fmt: skip
    add("--max_attempts", type=int, default=retry.max_attempts, metavar="N",
        help="failed attempts before a request fails (default: %(default)d)")  # fmt: skip
    add("--logging_level", type=int, default=logging.INFO, metavar="N",
        help="40 final failures, 30 also retries and rate limits, 20 also start, pauses and end, "
        "10 also each request (default: %(default)d)")  # fmt: skip
    _add_further_flags(parser, limits, retry)
    return parser


def _add_further_flags(parser: argparse.ArgumentParser, limits: Limits, retry: RetryPolicy) -> None:
    add = parser.add_argument
    add("--errors_filepath", metavar="FILE", help="failures go here (default: to the results)")
    add("--max_workers", type=int, default=1000, metavar="N",
        help="most requests in flight (default: %(default)d, or what ulimit -n allows)")  # fmt: skip
    add("--burst_seconds", type=float, default=limits.burst_seconds, metavar="S",
        help="how many seconds' worth of a limit may go out at once (default: %(default)g)")  # fmt: skip
    add("--seconds_to_pause_after_rate_limit_error", type=float, default=retry.pause_s, metavar="S",
        help="where the server doesn't say how long (default: %(default)g)")  # fmt: skip
    add("--request_timeout", type=float, default=600.0, metavar="S",
        help="for one whole exchange (default: %(default)g)")  # fmt: skip
    add("--connect_timeout", type=float, default=10.0, metavar="S", help="default: %(default)g")
    add("--no_progress", action="store_true", help="show no bar and no progress lines")
    add("--overwrite", action="store_true", help="start afresh, whatever the results file holds")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code."""
    parser = build_parser()
    arguments = [_with_underscores(word) for word in (sys.argv[1:] if argv is None else argv)]
    flags = parser.parse_args(arguments)
    _set_up_logging(flags.logging_level)
    flags.api_key = flags.api_key or os.environ.get("OPENAI_API_KEY", "").strip() or None
    if flags.api_key is None and needs_key(flags.request_url):
        parser.error(f"{flags.request_url} needs a key: set OPENAI_API_KEY, or give --api_key")
    raise_soft_limit(flags.max_workers)
    try:
        return _process(flags)
    except (ConfigurationError, InputFileError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        return 130
    finally:
        _let_go_of_stderr()


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


def _say(text: str) -> None:
    """Print to stderr, which may be closed, or a pipe that nobody reads any more."""
    try:
        if sys.stderr is not None:
            print(text, file=sys.stderr)
    except OSError:
        pass


def _let_go_of_stderr() -> None:
    """What a broken pipe has not taken would make Python's own flush fail, with exit code 120."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _stop(processor: Processor, signal_name: str) -> None:
    processor.stop(f"interrupted by {signal_name}")
    _log.warning("%s: waiting for what is in flight; another one gives it up", signal_name)


def _cut(processor: Processor, signal_name: str) -> None:
    processor.cut(f"interrupted by {signal_name}")
    _log.warning("%s: giving up what is in flight", signal_name)


def _process(flags: argparse.Namespace) -> int:
    with (
        Processor(
            request_url=flags.request_url,
            api_key=flags.api_key,
            limits=Limits(
                requests_per_minute=flags.max_requests_per_minute,
                tokens_per_minute=flags.max_tokens_per_minute,
                burst_seconds=flags.burst_seconds,
            ),
            retry=RetryPolicy(
                max_attempts=flags.max_attempts,
                pause_s=flags.seconds_to_pause_after_rate_limit_error,
            ),
            max_workers=flags.max_workers,
            request_timeout_s=flags.request_timeout,
            connect_timeout_s=flags.connect_timeout,
            token_encoding_name=flags.token_encoding_name,
        ) as processor,
        SignalWatcher(
            on_first=lambda name: _stop(processor, name),
            on_second=lambda name: _cut(processor, name),
        ) as watcher,
    ):
        summary, error = _run_to_its_end(processor, flags)
    if summary is None:
        _log.error("%s", error)
        return 2
    if flags.logging_level <= logging.INFO:
        limits = {"requests": flags.max_requests_per_minute, "tokens": flags.max_tokens_per_minute}
        save_path = flags.save_filepath or default_save_path(Path(flags.requests_filepath))
        _say(f"{summary_text(summary, limits)}\nresults are in {save_path}")
    if error is not None:
        _log.error("stopped: %s. Run the same command again once that is put right.", error)
        return 3 if isinstance(error, RunStoppedError) else 1
    if watcher.number:
        _log.warning("%s. Run the same command again to go on.", summary.stop_reason)
        return 128 + watcher.number
    return 1 if summary.failed else 0


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
            progress=not flags.no_progress,
        )
    except (RunStoppedError, ResultsFileError) as error:
        return error.summary, error
    return summary, None
