"""What the command prints: text for people on stderr, text for programs on stdout, and the log."""

from __future__ import annotations

import errno
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


def show(text: str) -> bool:
    """Print to stdout, whose reader may have left. False if it can't be printed, which is said."""
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        print(text, flush=True)
    except OSError as error:
        if sys.stdout is not None:  # else Python flushes again when it exits, and complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            say(f"error: can't write to standard output: {error.strerror}")
            return False
    return True


def say(text: str) -> None:
    """Print to stderr, which may be closed, or whose reader may have left."""
    try:
        if sys.stderr is not None:
            print(text, file=sys.stderr)
    except OSError:
        pass
