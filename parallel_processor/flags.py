"""The flags of the command line, and what they mean as settings."""

from __future__ import annotations

import argparse
import logging
import re
from pathlib import Path
from typing import Any, NoReturn

from parallel_processor.limitsfile import read_limits_file
from parallel_processor.options import DEFAULT_REQUEST_URL, Limits, RetryPolicy

_EPILOG = """exit codes: 0 all answered, 1 some failed, 2 bad usage, 3 stopped by a fatal error,
130 interrupted, 143 terminated. Run the same command again to go on: answered requests are not sent again.
parallel-processor verify --help: the check that every line has its answer."""


# The settings whose flags are called otherwise; the cookbook's script gave them these names.
_FLAG_BY_SETTING = {
    "requests_per_minute": "--max_requests_per_minute",
    "tokens_per_minute": "--max_tokens_per_minute",
    "pause_s": "--seconds_to_pause_after_rate_limit_error",
    "request_timeout_s": "--request_timeout",
    "connect_timeout_s": "--connect_timeout",
    "drain_s": "--drain_seconds",
    "write_retry_s": "--write_retry_seconds",
    "token_encoding_name": "--token_encoding_name",
    "allow_plain_http": "--allow_plain_http",
    "request_url": "--request_url",
    "api_key": "--api_key",
    "max_attempts": "--max_attempts",
    "max_workers": "--max_workers",
    "max_response_bytes": "--max_response_bytes",
    "burst_seconds": "--burst_seconds",
    "headroom": "--headroom",
}
_SETTING = re.compile(rf"(?<![-\w])({'|'.join(_FLAG_BY_SETTING)})\b")


def with_flag_names(message: str) -> str:
    """``message`` with the names of flags in the place of those of settings."""
    return _SETTING.sub(lambda match: _FLAG_BY_SETTING[match[1]], message)


class FlagParser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage of two dozen flags before it."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is; exit code 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> FlagParser:
    """The flags; the first nine are those of the cookbook's script, with its defaults."""
    parser = FlagParser(
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
    add("--api_key", metavar="KEY",
        help="default: the variable OPENAI_API_KEY, which others can't see as they can this")  # fmt: skip
    add("--max_requests_per_minute", type=_limit, default=limits.requests_per_minute, metavar="N",
        help="default: %(default)g; inf for no limit, auto to find it")  # fmt: skip
    add("--max_tokens_per_minute", type=_limit, default=limits.tokens_per_minute, metavar="N",
        help="default: %(default)g; inf for no limit, auto to find it")  # fmt: skip
    add("--token_encoding_name", metavar="NAME",
        help="tiktoken's encoding for all requests (default: that of each request's model)")  # fmt: skip
    add("--max_attempts", type=int, default=retry.max_attempts, metavar="N",
        help="failed attempts before a request fails (default: %(default)d)")  # fmt: skip
    add("--logging_level", type=int, default=logging.INFO, metavar="N",
        help="40 final failures, 30 also retries and rate limits, 20 also start, pauses and end, "
        "10 also each request (default: %(default)d)")  # fmt: skip
    _add_limit_flags(parser, limits)
    _add_further_flags(parser, retry)
    return parser


def _add_limit_flags(parser: argparse.ArgumentParser, limits: Limits) -> None:
    add = parser.add_argument
    add("--limits", metavar="FILE", help="a JSON file with limits by model pattern")
    add("--headroom", type=float, default=limits.headroom, metavar="SHARE",
        help="of every limit, 0 to 0.9, that is left to others (default: %(default)g)")  # fmt: skip
    add("--token_accounting", choices=("auto", "reserve", "usage"), default="auto",
        help="whether the server's token limit charges what a request may use at most, or what its "
        "answer used (default: auto, by what is known of the host)")  # fmt: skip
    add("--burst_seconds", type=float, default=limits.burst_seconds, metavar="S",
        help="how many seconds' worth of a limit may go out at once (default: %(default)g)")  # fmt: skip


def _add_further_flags(parser: argparse.ArgumentParser, retry: RetryPolicy) -> None:
    add = parser.add_argument
    add("--errors_filepath", metavar="FILE", help="failures go here (default: to the results)")
    add("--max_workers", type=int, default=1000, metavar="N",
        help="most requests in flight (default: %(default)d, or what ulimit -n allows)")  # fmt: skip
    add("--processes", type=int, default=1, metavar="N",
        help="spread the workers over so many processes, for servers without limits that one core "
        "can't keep up with (default: %(default)d)")  # fmt: skip
    add("--seconds_to_pause_after_rate_limit_error", type=float, default=retry.pause_s, metavar="S",
        help="where the server doesn't say how long (default: %(default)g)")  # fmt: skip
    add("--request_timeout", type=float, default=600.0, metavar="S",
        help="for one whole exchange (default: %(default)g)")  # fmt: skip
    add("--connect_timeout", type=float, default=10.0, metavar="S", help="default: %(default)g")
    add("--max_response_bytes", type=int, default=64 * 1024 * 1024, metavar="N",
        help="a larger answer fails (default: %(default)d)")  # fmt: skip
    add("--drain_seconds", type=float, default=30.0, metavar="S",
        help="how long a stopped run waits for answers under way (default: %(default)g)")  # fmt: skip
    add("--write_retry_seconds", type=float, default=60.0, metavar="S",
        help="how long records that the disk refuses are tried again (default: %(default)g)")  # fmt: skip
    add("--api_key_file", metavar="FILE", help="a file with the key in it")
    add(
        "--allow_plain_http", action="store_true", help="let the key go to another host without TLS"
    )
    add("--report_filepath", metavar="FILE",
        help="what bound the run, when, and what to change: a page (FILE.html) or JSON")  # fmt: skip
    add("--metrics_port", type=_address, metavar="[HOST:]PORT",
        help="serve the run's figures to Prometheus, by default to this machine alone")  # fmt: skip
    add("--dedupe", action="store_true",
        help="send equal requests once, and record the answer for each")  # fmt: skip
    add("--no_progress", action="store_true", help="show no bar and no progress lines")
    add(
        "--overwrite",
        action="store_true",
        help="start afresh: what the results file holds is deleted",
    )
    add(
        "--keep_failures",
        action="store_true",
        help="leave failed records, and don't try them again",
    )


def _limit(text: str) -> float | str:
    try:
        return text if text == "auto" else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number, and neither inf nor auto"
        ) from None


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port from 0 to 65535, or HOST:PORT")
    return host.strip("[]") or "127.0.0.1", int(port)


def settings(flags: argparse.Namespace) -> dict[str, Any]:
    """The settings of a Processor that ``flags`` ask for, but for the key."""
    common = {"burst_seconds": flags.burst_seconds, "headroom": flags.headroom}
    by_model = read_limits_file(Path(flags.limits), **common) if flags.limits else {}
    return {
        "request_url": flags.request_url,
        "limits": Limits(
            requests_per_minute=flags.max_requests_per_minute,
            tokens_per_minute=flags.max_tokens_per_minute,
            **common,
        ),
        "limits_by_model": by_model,
        "token_accounting": flags.token_accounting,
        "retry": RetryPolicy(
            max_attempts=flags.max_attempts,
            pause_s=flags.seconds_to_pause_after_rate_limit_error,
        ),
        "max_workers": flags.max_workers,
        "processes": flags.processes,
        "request_timeout_s": flags.request_timeout,
        "connect_timeout_s": flags.connect_timeout,
        "max_response_bytes": flags.max_response_bytes,
        "drain_s": flags.drain_seconds,
        "write_retry_s": flags.write_retry_seconds,
        "allow_plain_http": flags.allow_plain_http,
        "token_encoding_name": flags.token_encoding_name,
        "dedupe": flags.dedupe,
    }
