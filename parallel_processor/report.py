"""The report of a run as a file: a page for people, or JSON for programs, by the ending of its name."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from parallel_processor.figures import RunReport, Sample
from parallel_processor.inputs import REPLACEMENT_SUFFIX
from parallel_processor.latencies import percentile_s

_log = logging.getLogger("parallel_processor")
_PAGE_ENDINGS = (".html", ".htm")
_LAST_S = 253_402_300_799.0  # the end of the year 9999, for clocks that go wrong
_PERCENTILES = (50, 95, 99)


def write_report(path: Path, report: RunReport) -> None:
    """Write ``report`` to ``path``, in one step: a reader sees a whole report or the last one.

    A report that can't be written costs a warning, not the run.
    """
    text = _page(report) if path.suffix.lower() in _PAGE_ENDINGS else _json(report)
    try:
        path = path.resolve()
        if path.exists() and not path.is_file():  # a pipe, or /dev/stdout
            if not report.is_running:
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


def _page(report: RunReport) -> str:
    from parallel_processor.page import page_text  # for those alone who want one

    return page_text(report)


def _json(report: RunReport) -> str:
    """The summary's fields, and what else a report has; times as ISO 8601, in UTC."""
    found = _plain(asdict(report.summary))
    for name in ("is_running", "fraction", "requests_path", "save_path", "url", "max_workers"):
        found[name] = _plain(getattr(report, name))
    found["processes"] = report.processes
    for name in ("started_at", "told_at"):
        moment = datetime.fromtimestamp(min(getattr(report, name), _LAST_S), timezone.utc)
        found[name] = moment.isoformat(timespec="milliseconds")
    found["slowest"] = [_plain(asdict(note)) for note in report.slowest]
    found["failures"] = [_plain(asdict(note)) for note in report.failures]
    found["timeline"] = [_sample(sample) for sample in report.timeline]
    return json.dumps(found, indent=2) + "\n"


def _sample(sample: Sample) -> Mapping[str, Any]:
    """A sample with its latencies as the percentiles, so far, in the place of the bins."""
    found: dict[str, Any] = _plain(asdict(sample))
    latencies = {str(each): percentile_s(sample.latencies, each) for each in _PERCENTILES}
    return found | {"latencies": _plain(latencies)}


def _plain(value: Any) -> Any:
    """``value`` without infinities, which JSON doesn't have, and with readable figures."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
