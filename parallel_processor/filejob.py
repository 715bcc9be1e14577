"""One file's requests through the limits, and their records into another."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from parallel_processor.account import Account
from parallel_processor.appendfile import AppendFile
from parallel_processor.exceptions import StopRequested
from parallel_processor.formats import read_requests
from parallel_processor.inputs import RequestsFile
from parallel_processor.models import Request
from parallel_processor.options import Options, shown_url
from parallel_processor.outcome import Outcome
from parallel_processor.report import LiveReport, Notes
from parallel_processor.results import unanswered
from parallel_processor.resume import open_files, prepare
from parallel_processor.run import Run
from parallel_processor.samples import RunReport, Sample
from parallel_processor.summary import Summary, counters_of
from parallel_processor.writer import ResultWriter

_log = logging.getLogger("parallel_processor")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileJob:
    """What to do with a file; names as in ``Processor.process_file``."""

    source: Path
    save: Path
    errors: Path | None = None
    report: Path | None = None
    overwrite: bool = False
    keep_failures: bool = False
    progress: bool | None = None
    on_outcome: Callable[[Outcome], object] | None = None


class FileRun:
    """One run over a file. For one thread, which comes back once everything is on record."""

    def __init__(
        self,
        job: FileJob,
        options: Options,
        account: Account,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job = job
        self._options = options
        self._account = account
        self._clock = clock
        self._started_at = clock()
        self._started_at_s = time.time()
        self._notes = Notes()
        self._process_id = os.getpid()

    def process(self) -> tuple[Summary, BaseException | None]:
        """The summary, and what stopped the run, if anything did."""
        job = self._job
        with (
            RequestsFile(job.source) as lines,
            self._account.run() as run,
            open_files(job.save, job.errors) as files,
        ):
            report = self._live_report(job.report, run, lines) if job.report is not None else None
            try:
                self._process(run, lines, files)
            finally:
                if report is not None:
                    report.finish()
            return self._account.summary(run, self._started_at), run.stop_cause

    def _process(self, run: Run, lines: RequestsFile, files: list[AppendFile]) -> None:
        def check() -> None:
            if run.stop_cause is not None:
                raise run.stop_cause

        job = self._job
        try:
            answered = prepare(
                files, overwrite=job.overwrite, keep_failures=job.keep_failures, check=check
            )
        except StopRequested:  # nothing was changed yet
            return
        run.displays.add(self._account.progress(run, lines.fraction, job.progress))
        _log.info("sending %s to %s", lines.path, _target(self._options))
        requests = unanswered(
            read_requests(lines, self._options.request_url),
            answered,
            run.counters,
            lambda: run.stop_cause is not None,
        )
        self._feed_to_writer(run, requests, files)

    def _feed_to_writer(
        self, run: Run, requests: Iterator[Request], files: list[AppendFile]
    ) -> None:
        writer = ResultWriter(
            *files,
            on_written=lambda outcomes, on_record: self._note(run, outcomes, on_record),
            on_failure=run.stop,
            write_retry_s=self._options.write_retry_s,
            clock=self._clock,
        )
        try:
            run.sink, run.on_cut = writer.put, writer.give_up
            run.reads_values = self._job.on_outcome is not None
            for _ in run.outcomes(requests):
                raise AssertionError("a run with a sink yields nothing")
        finally:
            if os.getpid() == self._process_id:  # a fork has no such thread
                writer.close()

    def _note(self, run: Run, outcomes: list[Outcome], on_record: bool) -> None:
        """Outcomes are on record, or never will be: tell everyone. The writer's thread calls this."""
        if on_record and self._job.report is not None:
            self._notes.add(outcomes)
        if on_record and self._job.on_outcome is not None:
            self._call_back(run, outcomes, self._job.on_outcome)
        run.recorded(outcomes, on_record)

    def _call_back(
        self, run: Run, outcomes: list[Outcome], on_outcome: Callable[[Outcome], object]
    ) -> None:
        """What a caller's function raises ends the run; it has its outcomes all the same."""
        for outcome in outcomes:
            try:
                on_outcome(outcome)
            except BaseException as error:
                if os.getpid() != self._process_id:  # it has forked, and that is the child's end
                    raise
                run.stop(error)

    def _live_report(self, path: Path, run: Run, lines: RequestsFile) -> LiveReport:
        report = LiveReport(
            path,
            sample=lambda: self._sample(run),
            tell=lambda timeline, is_running: self._report(run, lines, timeline, is_running),
            clock=self._clock,
        )
        run.displays.add(report)
        return report

    def _report(
        self, run: Run, lines: RequestsFile, timeline: tuple[Sample, ...], is_running: bool
    ) -> RunReport:
        job, options = self._job, self._options
        return RunReport(
            summary=self._account.summary(run, self._started_at),
            started_at=self._started_at_s,
            told_at=time.time(),
            is_running=is_running,
            fraction=lines.fraction(),
            requests_path=str(job.source),
            save_path=str(job.save),
            url=shown_url(options.request_url),
            max_workers=options.max_workers,
            processes=options.processes,
            timeline=timeline,
            slowest=self._notes.slowest(),
            failures=self._notes.failures(),
        )

    def _sample(self, run: Run) -> Sample:
        counts, now = run.counters.counts(), self._clock()
        return Sample(
            at_s=now - self._started_at,
            in_flight=run.in_flight,
            errors=counts.errors,
            held_by=run.ledger.overall(now),
            latencies=counts.latencies,
            limits=self._account.buckets.usage().limits,
            **counters_of(counts),
        )


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
