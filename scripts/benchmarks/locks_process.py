"""The command with its locks counted: ``python -m benchmarks.locks_process REPORT FLAG...``.

``threading.Lock`` and ``threading.RLock`` are exchanged before the package is imported, and give a lock
that counts where the package makes it, directly or as part of a condition or an event. All others are as
before. ``REPORT`` becomes a JSON object: acquisitions by ``module:line``. What isn't counted: locks of
other packages, of C code (queues), of worker processes, and a condition's own that its wait takes back.
"""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

PACKAGE = "parallel_processor"


class CountingLock:
    """A lock that counts how often it was acquired, under itself."""

    def __init__(self, lock: Any, place: str) -> None:
        self._lock, self.place = lock, place
        self.count = 0  # guarded by _lock

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As that of a lock."""
        acquired: bool = self._lock.acquire(blocking, timeout)
        if acquired:
            self.count += 1
        return acquired

    def release(self) -> None:
        """As that of a lock."""
        self._lock.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def __getattr__(self, name: str) -> Any:
        """The rest, such as what a condition asks of a lock that can be taken twice."""
        return getattr(self._lock, name)


def place_in_package() -> str | None:
    """Where the package makes a lock just now, ``None`` if somebody else does."""
    frame = sys._getframe(2)
    while frame.f_globals.get("__name__") == "threading" and frame.f_back is not None:
        frame = frame.f_back
    name = str(frame.f_globals.get("__name__", ""))
    if name.partition(".")[0] != PACKAGE:
        return None
    return f"{name.removeprefix(f'{PACKAGE}.')}:{frame.f_lineno}"


def counting(make: Callable[[], Any], made: list[CountingLock]) -> Callable[[], Any]:
    """``make``, but for the package with a count; each such lock is added to ``made``."""

    def make_lock() -> Any:
        place = place_in_package()
        if place is None:
            return make()
        lock = CountingLock(make(), place)
        made.append(lock)
        return lock

    return make_lock


def main() -> int:
    """Run the command, and report."""
    report = Path(sys.argv[1])
    made: list[CountingLock] = []
    threading.Lock = counting(threading.Lock, made)  # type: ignore[assignment]
    threading.RLock = counting(threading.RLock, made)  # type: ignore[assignment]
    from parallel_processor.cli.main import main as command

    code = command(sys.argv[2:])
    counts: Counter[str] = Counter()
    for lock in made:
        counts[lock.place] += lock.count
    report.write_text(json.dumps(counts), "utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
