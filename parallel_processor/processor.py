"""The composition: a Processor has the limits, and makes a run for each file or iterable."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from parallel_processor.appendfile import AppendFile
from parallel_processor.buckets import Buckets
from parallel_processor.exceptions import (
    ConfigurationError,
    ParallelProcessorError,
    StopRequested,
)
from parallel_processor.figures import Summary
from parallel_processor.formats import made_request, read_requests
from parallel_processor.inputs import RequestsFile, check_paths, default_save_path
from parallel_processor.models import Request
from parallel_processor.options import Options, shown_url
from parallel_processor.outcome import Outcome
from parallel_processor.pricing import Pricing
from parallel_processor.progress import Progress
from parallel_processor.providers import exposes_key, needs_key
from parallel_processor.report import write_report
from parallel_processor.results import open_files, prepare, unanswered
from parallel_processor.run import Run
from parallel_processor.settings import Settings
from parallel_processor.writer import ResultWriter

if TYPE_CHECKING:
    from typing_extensions import Unpack

_log = logging.getLogger("parallel_processor")

StrPath = str | Path


class Processor:
    """Sends requests through the limits of one account. Threads may share it, and then its limits.

    ``settings`` are those of :class:`Options`. Between runs it holds no thread, socket or file.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, **settings: Unpack[Settings]
    ) -> None:
        options = self._options = Options(**settings)
        _check_key(options)
        self._clock = clock
        self._buckets = Buckets(options, clock)
        self._pricing = Pricing(options)
        self._lock = threading.Lock()  # guards _runs
        self._runs: set[Run] = set()

    @property
    def options(self) -> Options:
        """The settings, as they were checked."""
        return self._options

    def imap_unordered(self, requests: Iterable[Request | Mapping[str, Any]]) -> Iterator[Outcome]:
        """Send ``requests`` and yield their outcomes as they come, failed ones included.

        A request is a body (a dict, of which ``metadata`` is taken out and not sent) or a
        :class:`Request`. The iterable is read by the thread that takes the outcomes, only as far as
        the limits and ``max_workers`` allow. A fatal answer raises :class:`RunStoppedError` once
        everything under way has been yielded; closing the iterator early gives up what is under way.
        """
        started_at = self._clock()
        with self._run() as run:
            url = self._options.request_url
            made = (made_request(each, number, url) for number, each in enumerate(requests, 1))
            yield from run.outcomes(made)
            _raise_cause(run, self._summary(run, started_at))

    def process_file(
        self,
        requests_path: StrPath,
        save_path: StrPath | None = None,
        *,
        errors_path: StrPath | None = None,
        overwrite: bool = False,
        keep_failures: bool = False,
        progress: bool | None = None,
        report_path: StrPath | None = None,
    ) -> Summary:
        """Send every request of a file, and append its record to another.

        Requests that have a good record in ``save_path`` are not sent again; failed records are
        dropped, and their requests sent again, unless ``keep_failures`` leaves both as they are.
        ``overwrite`` starts afresh. ``save_path`` defaults to ``{requests_path}_results.jsonl``;
        failures go there too, or to ``errors_path``. ``progress``: ``True`` shows a bar on a terminal
        and in a notebook and lines elsewhere, ``None`` the bar only, ``False`` nothing. The summary is
        also written to ``report_path``, however the run ends, as JSON.

        Raises :class:`RunStoppedError` after a fatal answer, :class:`ResultsFileError` and
        :class:`InputFileError` for broken files. An exception from outside, such as
        ``KeyboardInterrupt``, passes through once the answers under way are on record.
        """
        source = Path(requests_path)
        save = Path(save_path) if save_path is not None else default_save_path(source)
        errors = Path(errors_path) if errors_path is not None else None
        report = Path(report_path) if report_path is not None else None
        check_paths(source, save, errors, report)
        started_at = self._clock()
        with RequestsFile(source) as lines, self._run() as run, open_files(save, errors) as files:
            try:
                self._process(run, lines, files, overwrite, keep_failures, progress)
            finally:
                summary = self._summary(run, started_at)
                if report is not None:
                    write_report(report, summary)
            _raise_cause(run, summary)
        return summary

    def _process(
        self,
        run: Run,
        lines: RequestsFile,
        files: list[AppendFile],
        overwrite: bool,
        keep_failures: bool,
        show: bool | None,
    ) -> None:
        def check() -> None:
            if run.stop_cause is not None:
                raise run.stop_cause

        try:
            answered = prepare(files, overwrite=overwrite, keep_failures=keep_failures, check=check)
        except StopRequested:  # nothing was changed yet
            return
        run.progress = Progress(
            run.counters,
            usage=self._buckets.usage,
            waits=lambda: run.ledger.overall(self._clock()),
            fraction=lines.fraction,
            show=show,
            clock=self._clock,
        )
        _log.info("sending %s to %s", lines.path, _target(self._options))
        requests = unanswered(
            read_requests(lines, self._options.request_url),
            answered,
            run.counters,
            lambda: run.stop_cause is not None,
        )
        self._feed_to_writer(run, requests, files)

    def _summary(self, run: Run, started_at: float) -> Summary:
        return run.counters.summary(
            self._clock() - started_at,
            str(run.stop_cause) if run.stop_cause is not None else "",
            held_by=run.ledger.overall(),
            buckets=self._buckets.reports(started_at, run.ledger.of_bucket),
        )

    def _feed_to_writer(
        self, run: Run, requests: Iterator[Request], files: list[AppendFile]
    ) -> None:
        writer = ResultWriter(
            *files,
            on_written=run.recorded,
            on_failure=run.stop,
            write_retry_s=self._options.write_retry_s,
            clock=self._clock,
        )
        try:
            run.sink, run.on_cut = writer.put, writer.give_up
            for _ in run.outcomes(requests):
                raise AssertionError("a run with a sink yields nothing")
        finally:
            writer.close()

    def stop(self, reason: str = "stopped by the caller") -> None:
        """End every run: nothing more is sent, what is in flight may end (see ``drain_s``).

        Any thread may call it, a signal handler may not. The runs return as usual, their summary's
        ``stop_reason`` set.
        """
        for run in self._active():
            run.stop(StopRequested(reason))

    def cut(self, reason: str = "stopped by the caller") -> None:
        """Like :meth:`stop`, but what is in flight is given up at once."""
        for run in self._active():
            run.cut(StopRequested(reason))

    def _active(self) -> list[Run]:
        with self._lock:
            return list(self._runs)

    @contextmanager
    def _run(self) -> Iterator[Run]:
        run = Run(self._options, buckets=self._buckets, pricing=self._pricing, clock=self._clock)
        with self._lock:
            self._runs.add(run)
        try:
            yield run
        finally:
            with self._lock:
                self._runs.discard(run)

    def __enter__(self) -> Processor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop every run; what nobody is left to take is given up at once."""
        for run in self._active():
            run.stop(StopRequested("the processor was closed"))
            if run.sink is None:
                run.cut(StopRequested("the processor was closed"))


def _check_key(options: Options) -> None:
    """A key where one is needed, and only where nobody can read it on its way."""
    url = shown_url(options.request_url)
    if options.api_key:
        if exposes_key(options.request_url) and not options.allow_plain_http:
            raise ConfigurationError(
                f"{url} would get the api_key in plain text: use https, or allow_plain_http, or no key"
            )
    elif options.session_factory is None and needs_key(url):
        raise ConfigurationError(f"{url} needs an api_key")


def _target(options: Options) -> str:
    """Where the requests go, and how fast; a query may hold a key."""
    limits = options.limits.by_kind.items()
    bounds = [f"{limit:,.0f} {name} a minute" for name, limit in limits if limit < math.inf]
    url = shown_url(options.request_url)
    if options.limits_by_model:
        bounds.append(f"what the limits of {len(options.limits_by_model)} model patterns say")
    if bounds:
        return f"{url}, at most {' and '.join(bounds)}"
    return f"{url}, as fast as it allows" if options.limits.is_auto else f"{url}, without a limit"


def _raise_cause(run: Run, summary: Summary) -> None:
    """A run that the server or the disk ended raises that; one that was told to stop just ends."""
    cause = run.stop_cause
    if cause is None or isinstance(cause, StopRequested):
        return
    if isinstance(cause, ParallelProcessorError):
        cause.summary = summary
    raise cause
