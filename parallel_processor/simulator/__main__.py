"""`python -m parallel_processor.simulator`: one simulated server, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.simulator.faults import FAULT_KINDS
from parallel_processor.simulator.options import DEFAULT_ERRORS, SimulatorOptions
from parallel_processor.simulator.server import Simulator

_SWITCH_INTERVAL_S = 0.05
"""How long a thread keeps the interpreter while others want it. Few requests take that long, so
each is answered in one go; at Python's 5 ms, a thousand threads at times double the cost of one."""

_FLAGS: tuple[tuple[str, type, str], ...] = (
    ("host", str, "address to listen on"),
    ("port", int, "port to listen on; 0 takes a free one"),
    ("requests_per_minute", float, "request limit (default: none)"),
    ("tokens_per_minute", float, "token limit (default: none)"),
    ("latency_s", float, "seconds that an answer takes"),
    ("latency_jitter", float, "share, 0 to 1, by which the latency varies up and down"),
    ("error_rate", float, "share, 0 to 1, of the distinct requests that fail"),
    ("error_attempts", int, "how often such a request fails before it succeeds; 0: always"),
    ("stall_s", float, "seconds after which a stalled connection is closed"),
    ("seed", int, "seed of the faults and latencies"),
    ("api_key", str, "the only key that is accepted (default: any, or none)"),
    ("spend_limit", int, "answers after which the account is out of money (default: never)"),
    ("embedding_dimensions", int, "length of the vectors"),
    ("token_encoding_name", str, "tiktoken encoding that tokens are counted in"),
    ("default_output_tokens", int, "charge for an answer whose request names no maximum"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop, and return the exit code."""
    parser = _parser()
    given = vars(parser.parse_args(arguments))
    if isinstance(given.get("errors"), str):
        kinds = (kind.strip() for kind in given["errors"].split(","))
        given["errors"] = tuple(kind for kind in kinds if kind)
    try:
        options = SimulatorOptions(**given)
    except ConfigurationError as error:
        parser.error(str(error))
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        return _serve(Simulator(options))
    except OSError as error:
        print(f"{parser.prog}: can't listen on {options.host}: {error}", file=sys.stderr)
        return 1


def _serve(simulator: Simulator) -> int:
    with simulator:
        try:
            signal.signal(signal.SIGTERM, _interrupt)
            print(f"listening on {simulator.url}", flush=True)
            threading.Event().wait()
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return 0


def _interrupt(number: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m parallel_processor.simulator",
        description="An OpenAI-like server with real rate limits and no model behind it.",
        argument_default=argparse.SUPPRESS,
    )
    defaults = {field.name: field.default for field in fields(SimulatorOptions)}
    for name, kind, text in _FLAGS:
        shown = "" if defaults[name] is None else f" (default: {defaults[name]})"
        parser.add_argument(*_spellings(name), dest=name, type=kind, help=text + shown)
    parser.add_argument(
        *_spellings("reject_oversize"),
        dest="reject_oversize",
        action="store_true",
        help="refuse for good what is above the whole token limit; else it waits for a full bucket",
    )
    parser.add_argument(
        "--errors",
        metavar="KIND,…",
        help=f"kinds of fault (default: {','.join(DEFAULT_ERRORS)}; "
        f"also: {','.join(sorted(FAULT_KINDS.difference(DEFAULT_ERRORS)))})",
    )
    return parser


def _spellings(name: str) -> list[str]:
    """Return a flag with underscores, and with dashes if that differs."""
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}")))


if __name__ == "__main__":
    sys.exit(main())
