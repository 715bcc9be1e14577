"""`python -m parallel_processor.simulator`: one simulated server, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any, NoReturn

from parallel_processor.simulator.flags import PROGRAM, parse_flags
from parallel_processor.simulator.server import Simulator

_SWITCH_INTERVAL_S = 0.05
"""How long a thread keeps the interpreter while others want it. Few requests take that long, so
each is answered in one go; at Python's 5 ms, a thousand threads at times double the cost of one."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop, and return the exit code."""
    options = parse_flags(arguments)
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    try:
        return _serve(Simulator(options))
    except OSError as error:
        print(f"{PROGRAM}: can't listen on {options.host}: {error}", file=sys.stderr)
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


if __name__ == "__main__":
    sys.exit(main())
