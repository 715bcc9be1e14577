"""The report file of a run: a page for people, or JSON for programs, by the ending of its name.

The thread of the displays takes samples, and writes the file again from time to time.
"""

from __future__ import annotations

import heapq
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from parallel_processor.files.append_file import replace_file
from parallel_processor.models import Outcome
from parallel_processor.report.histogram import percentiles_s
from parallel_processor.report.samples import RequestNote, RunReport, Sample, Timeline
from parallel_processor.report.summary import Summary
from parallel_processor.runtime.locks import InterruptSafeLock

_log = logging.getLogger("parallel_processor")
_PAGE_ENDINGS = (".html", ".htm")
_LAST_S = 253_402_300_799.0  # the end of the year 9999: a wrong clock may say more
_WRITE_INTERVAL_S = 10.0
_SHARE_OF_TIME = 0.01  # that writing may take
_MAX_SLOWEST = 20
_MAX_FAILURES = 100
_MAX_ERROR_CHARS = 300


class LiveReport:
    """The report of one run. For one thread at a time.

    Args:
        sample: takes a sample of the run.
        tell: makes the report from the samples; its second argument is true while the run goes on.
    """

    def __init__(
        self,
        path: Path,
        *,
        sample: Callable[[], Sample],
        tell: Callable[[tuple[Sample, ...], bool], RunReport],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._sample = sample
        self._tell = tell
        self._clock = clock
        self._timeline = Timeline()
        self._write_at = clock() + _WRITE_INTERVAL_S
        self._timeline.add(sample())
        self.due_at = clock() + self._timeline.interval_s

    def refresh(self) -> None:
        """Take a sample, and write the file if that is due."""
        self._timeline.add(self._sample())
        now = self._clock()
        self.due_at = now + self._timeline.interval_s
        if now >= self._write_at:
            self._write(is_running=True)
            took_s = self._clock() - now
            self._write_at = now + max(_WRITE_INTERVAL_S, took_s / _SHARE_OF_TIME)

    def close(self) -> None:
        """Take no more samples. :meth:`finish` writes the report once all is known."""
        self.due_at = math.inf

    def finish(self) -> None:
        """Write the report of a run that has ended, whatever ended it."""
        self._timeline.add(self._sample())
        self._write(is_running=False)

    def _write(self, *, is_running: bool) -> None:
        write_report(self._path, self._tell(tuple(self._timeline.samples), is_running))


class Highlights:
    """Picks the requests that the report names out of all outcomes. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = InterruptSafeLock()  # guards both
        self._slowest: list[tuple[float, int, RequestNote]] = []  # a heap
        self._failures: deque[RequestNote] = deque(maxlen=_MAX_FAILURES)

    def add(self, outcomes: Iterable[Outcome]) -> None:
        """Look at ``outcomes``, which are on record."""
        with self._lock:
            for outcome in outcomes:
                if not outcome.ok:
                    self._failures.append(request_note(outcome))
                elif (latency_s := outcome.latency_s) is not None:
                    is_full = len(self._slowest) >= _MAX_SLOWEST
                    if not is_full or latency_s > self._slowest[0][0]:
                        # The number, which is unique, keeps the heap from comparing notes.
                        entry = (latency_s, -outcome.request.number, request_note(outcome))
                        (heapq.heapreplace if is_full else heapq.heappush)(self._slowest, entry)

    def slowest(self) -> tuple[RequestNote, ...]:
        """The answers that took longest, the longest first."""
        with self._lock:
            entries = sorted(self._slowest, key=lambda entry: entry[:2], reverse=True)
        return tuple(note for _, _, note in entries)

    def failures(self) -> tuple[RequestNote, ...]:
        """The requests that failed last, the latest first."""
        with self._lock:
            return tuple(reversed(self._failures))


def request_note(outcome: Outcome) -> RequestNote:
    """What the report says of one request. The text of its last error is cut off at a bound."""
    return RequestNote(
        number=outcome.request.number,
        custom_id=outcome.request.custom_id,
        model=outcome.request.model,
        attempts=outcome.attempts,
        latency_s=outcome.latency_s,
        error=(outcome.error or "")[:_MAX_ERROR_CHARS],
        kind=outcome.error_kind,
    )


def write_report(path: Path, report: RunReport) -> None:
    """Write ``report`` to ``path``, in one step: a reader sees the whole new report or the old one.

    If the report can't be written, a warning is logged and the run goes on.
    """
    text = _page(report) if path.suffix.lower() in _PAGE_ENDINGS else _json(report)
    write_whole(path, text, "report", is_last=not report.is_running)


def write_whole(
    path: Path, text: str, what: str, *, is_last: bool = True, level: int = logging.WARNING
) -> None:
    """Have ``path`` hold ``text`` and nothing else. A pipe gets the last text only.

    If that fails, a line in the log, at ``level``, names ``what`` can't be written.
    """
    try:
        path = path.resolve()
        if not path.exists() or path.is_file():
            replace_file(path, text.encode())
        elif is_last:
            path.write_bytes(text.encode())
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = getattr(error, "strerror", None) or error
        _log.log(level, "can't write the %s %s: %s", what, path, reason)


def summary_json(summary: Summary | None, **more: Any) -> str:
    """``more`` and the summary's fields, as one line of JSON; ``None`` is a run that did nothing."""
    return json.dumps(more | _plain(asdict(summary or Summary())))


def _page(report: RunReport) -> str:
    # Imported only for a page: without one, a run starts sooner.
    from parallel_processor.report.html.page import page_text

    return page_text(report)


def _json(report: RunReport) -> str:
    """The summary's fields, and the other fields of the report. Times are ISO 8601, in UTC."""
    found: dict[str, Any] = _plain(asdict(report))
    found = found.pop("summary") | found
    for name in ("started_at", "written_at"):
        moment = datetime.fromtimestamp(min(getattr(report, name), _LAST_S), timezone.utc)
        found[name] = moment.isoformat(timespec="milliseconds")
    found["timeline"] = [_sample(sample) for sample in report.timeline]
    return json.dumps(found, indent=2) + "\n"


def _sample(sample: Sample) -> Mapping[str, Any]:
    """A sample with percentiles in the place of the bins."""
    found: dict[str, Any] = _plain(asdict(sample))
    return found | {"latencies": _plain(dict(percentiles_s(sample.latencies)))}


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it: no infinities, floats rounded, enumerations as their values."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return value
