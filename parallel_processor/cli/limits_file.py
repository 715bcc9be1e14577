"""A file of limits by model: ``{"gpt-4o*": {"requests_per_minute": 500, "tokens_per_minute": 30000}}``.

The first pattern that a model matches counts. All models of one pattern share its limits. The value
of a limit is a number (a ceiling), ``"auto"`` (find it), or ``"inf"`` or ``null`` (no limit). A limit on
requests or tokens that is left out is found.
"""

from __future__ import annotations

import errno
import json
import logging
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from parallel_processor.exceptions import ConfigurationError, LimitsFileError
from parallel_processor.options import Limits
from parallel_processor.processor import Processor
from parallel_processor.runtime.stop import WakeEvent
from parallel_processor.runtime.threads import InterruptSafeThread

_log = logging.getLogger("parallel_processor")
_EVERY_S = 1.0
_NAMES = ("requests_per_minute", "tokens_per_minute")
_PART_NAMES = ("input_tokens_per_minute", "output_tokens_per_minute")


def read_limits_file(path: Path, *, waits: bool = True, **common: float) -> dict[str, Limits]:
    """The limits in ``path`` by pattern, in the file's order; ``common`` is set for all of them.

    ``path`` may be a pipe, unless ``waits`` is false: then no other process can hold this one up. Raises
    :class:`LimitsFileError`, which names the entry that is wrong and what it may hold.
    """
    try:
        text = (path.read_bytes() if waits else _bytes_of_file(path)).decode("utf-8-sig")
        entries = json.loads(text, object_pairs_hook=_without_duplicates)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise LimitsFileError(f"can't read the limits in {path}: {reason}") from None
    if not isinstance(entries, dict):
        example = f'{{"gpt-4o*": {{"{_NAMES[0]}": 500}}}}'
        what = f"an object of limits by model pattern, such as {example}"
        raise LimitsFileError(f"{path} must be {what}")
    return {pattern: _limits(path, pattern, entry, common) for pattern, entry in entries.items()}


def _bytes_of_file(path: Path) -> bytes:
    """What ``path`` holds. Raises ``OSError`` for a pipe, whose other end may have nobody."""
    file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(file, "rb") as opened:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "it is no file any more")
        return opened.read()


class LimitsWatch:
    """Has the limits of a processor follow those in a file. For one thread.

    It compares what is in the file: a new time alone changes nothing, and another file in its place may.
    """

    def __init__(self, path: Path, processor: Processor) -> None:
        self._path, self._processor = path, processor
        self._wrong = ""  # what was wrong with the file at the last look
        self._is_told = False

    def look(self) -> None:
        """Look at the file once. A wrong one changes nothing.

        That is told once the next look finds the same: the file may have been half written.
        """
        own = self._processor.options.limits
        common = {"burst_seconds": own.burst_seconds, "headroom": own.headroom}
        try:
            limits = read_limits_file(self._path, waits=False, **common)
        except LimitsFileError as error:
            is_same, self._wrong = str(error) == self._wrong, str(error)
            if is_same and not self._is_told:
                _log.warning("%s; the limits of before hold", self._wrong.rstrip("."))
            self._is_told = is_same
            return
        self._wrong, self._is_told = "", False
        # In another order, another pattern may be the first that a model matches.
        if list(limits.items()) != list(self._processor.options.limits_by_model.items()):
            self._processor.set_limits(limits_by_model=limits)


@contextmanager
def watched(path: Path, processor: Processor) -> Iterator[None]:
    """While the block runs, look at the file of limits every second, in a thread of its own.

    A pipe can be read only once: it isn't watched.
    """
    if not path.is_file():
        yield
        return
    watch, end = LimitsWatch(path, processor), WakeEvent()

    def look() -> None:
        while not end.wait(_EVERY_S):
            watch.look()

    thread = InterruptSafeThread(look, "parallel-processor-limits")
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(_EVERY_S)  # it may hang in a mount that does


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    duplicate = next((name for name in names if names.count(name) > 1), None)
    if duplicate is not None:
        raise ValueError(f"{duplicate!r} is there twice")
    return dict(pairs)


def _limits(path: Path, pattern: str, entry: Any, common: dict[str, float]) -> Limits:
    where = f"{path}: the limits of {pattern!r}"
    if re.search(r"[\w*?]", pattern) is None:
        raise LimitsFileError(
            f"{where} are those of no model: name one, or a pattern such as gpt-4o*"
        )
    if not isinstance(entry, dict):
        raise LimitsFileError(f'{where} must be an object such as {{"{_NAMES[0]}": 500}}')
    known = _NAMES + _PART_NAMES
    unknown = [name for name in entry if name not in known]
    if unknown:
        known_names = f"known are {', '.join(known)}"
        raise LimitsFileError(f"{where} have the unknown name {unknown[0]!r}; {known_names}")
    values: dict[str, Any] = dict.fromkeys(_NAMES, "auto")
    for name, value in entry.items():
        values[name] = math.inf if value in (None, "inf") else value
    try:
        return Limits(**values, **common)
    except ConfigurationError as error:
        raise LimitsFileError(f"{where}: {error}") from None
