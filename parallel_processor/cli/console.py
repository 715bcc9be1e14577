"""What the command prints: text for people on stderr, text for programs on stdout, and the log."""

from __future__ import annotations

import logging
import os
import sys

from parallel_processor.report.progress import BarStream

_log = logging.getLogger("parallel_processor")


def set_up_logging(level: int) -> None:
    """Log to stderr, above the progress bar."""
    handler = logging.StreamHandler(BarStream())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _log.addHandler(handler)
    _log.setLevel(level)
    _log.propagate = False


def show(text: str) -> None:
    """Print to stdout, whose reader may have left."""
    try:
        print(text, flush=True)
    except OSError:  # else Python flushes again when it exits, and complains
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """Print to stderr, which may be closed, or whose reader may have left."""
    try:
        if sys.stderr is not None:
            print(text, file=sys.stderr)
    except OSError:
        pass
