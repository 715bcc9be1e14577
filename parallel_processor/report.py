"""The report of a run as a file: the summary, and for each limit what became of it."""

from __future__ import annotations

import json
import logging
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from parallel_processor.figures import Summary
from parallel_processor.inputs import REPLACEMENT_SUFFIX

_log = logging.getLogger("parallel_processor")


def write_report(path: Path, summary: Summary) -> None:
    """Write ``summary`` to ``path`` as JSON, in one step: a reader sees a whole report or the last one.

    A report that can't be written costs a warning, not the run.
    """
    text = json.dumps(_plain(asdict(summary)), indent=2) + "\n"
    try:
        path = path.resolve()
        if path.exists() and not path.is_file():  # a pipe, or /dev/stdout
            path.write_text(text, "utf-8")
            return
        replacement = path.with_name(path.name + REPLACEMENT_SUFFIX)
        try:
            replacement.write_text(text, "utf-8")
            os.replace(replacement, path)
        finally:
            replacement.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or error
        _log.warning("can't write the report %s: %s", path, reason)


def _plain(value: Any) -> Any:
    """``value`` without infinities, which JSON doesn't have, and with readable figures."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
