"""A run over a file: its requests are sent, and their records go into another file."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from parallel_processor.engine.account import Account
from parallel_processor.engine.credits import ORDERED_SLACK, WRITER_SLACK, WriterSlack
from parallel_processor.engine.delivery import Recorded, Sink
from parallel_processor.engine.run import Run
from parallel_processor.exceptions import (
    ConfigurationError,
    InputFileError,
    ResultsFileError,
    StopRequested,
)
from parallel_processor.files.append_file import AppendFile
from parallel_processor.files.custom_ids import arranged, refusing_wrong_api
from parallel_processor.files.formats import requests_of, tell_notes
from parallel_processor.files.input_order import RequestOrder
from parallel_processor.files.object_stores import StoredFile
from parallel_processor.files.requests_file import Place, RequestLines, line_place
from parallel_processor.files.resume import AnsweredRequests, open_files, prepare
from parallel_processor.files.sources import Source, open_sources
from parallel_processor.files.writer import InputOrder, ResultWriter
from parallel_processor.models import Outcome, Request
from parallel_processor.options import Options, OutputFormat, shown_url
from parallel_processor.report.counters import Counters
from parallel_processor.report.report_file import Highlights, LiveReport
from parallel_processor.report.samples import RunReport, Sample
from parallel_processor.report.summary import Summary, counters_of

_log = logging.getLogger("parallel_processor")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileJob:
    """What to do with a file. The fields are the arguments of ``Processor.process_file``."""

    sources: Sequence[Source]
    save: Path | StoredFile
    errors: Path | StoredFile | None = None
    report: Path | None = None
    overwrite: bool = False
    keep_failures: bool = False
    output_format: OutputFormat = "auto"
    model: str | None = None
    ordered: bool = False
    progress: bool | None = None
    on_outcome: Callable[[Outcome], object] | None = None

    def __post_init__(self) -> None:
        if self.output_format not in (names := get_args(OutputFormat)):
            text = f"{', '.join(names[:-1])} or {names[-1]}"
            raise ConfigurationError(f"output_format must be {text}, not {self.output_format!r}")
        if self.model is not None and not (isinstance(self.model, str) and self.model):
            raise ConfigurationError(f"model must be a name, not {self.model!r}")


class FileRun:
    """One run over a file. For one thread; :meth:`process` returns once everything is on record."""

    def __init__(
        self, job: FileJob, options: Options, account: Account, clock: Callable[[], float]
    ) -> None:
        self._job, self._options = job, options
        self._account, self._clock = account, clock
        self._stops = account.stops
        self._started_at, self._started_at_s = clock(), time.time()
        self._highlights = Highlights()

    def process(self) -> tuple[Summary, BaseException | None]:
        """The summary, and what stopped the run, if anything did."""
        job = self._job
        save, errors = _local(job.save), _local(job.errors) if job.errors is not None else None
        with open_sources(job.sources) as lines, open_files(save, errors) as files:
            stored = _stored(job, files)
            for store, file in stored if not job.overwrite else ():
                store.fetch(file)
            output = _Output(files, job, self._highlights, self._options.write_retry_s, self._clock)
            with self._account.run(
                make_sink=output.open,
                on_begin=output.start,
                on_cancel=output.give_up,
                parses_answers=job.on_outcome is not None,
                slack=output.slack,
                stops=self._stops,
            ) as run:
                report = self._live_report(job.report, run, lines) if job.report else None
                try:
                    self._process(run, lines, files, output)
                except InputFileError as error:  # found when requests had been sent
                    error.summary = self._account.summary(run, self._started_at)
                    raise
                finally:
                    if report is not None:
                        report.finish()
                summary, cause = self._summary(run, lines), run.stop_cause
            if cause is None:
                _put(stored, summary)
            return summary, cause

    def _summary(self, run: Run, lines: RequestLines) -> Summary:
        return self._account.summary(run, self._started_at, fraction=lines.fraction())

    def _process(
        self, run: Run, lines: RequestLines, files: list[AppendFile], output: _Output
    ) -> None:
        job = self._job
        try:
            answered = self._answered(run, lines, files)
        except StopRequested:  # nothing was changed yet
            return
        run.displays.add(self._account.progress(run, lines.fraction, job.progress))
        _log.info("sending %s to %s", lines.name, _target(self._options))
        requests = requests_of(lines, self._options, job.model, is_sent=True)
        requests = refusing_wrong_api(requests, self._options.request_url, lines.place)
        requests = arranged(requests, job.output_format, lines.place)
        order = RequestOrder()
        is_noted = job.ordered and bool(answered.answered or answered.failed)
        if is_noted:  # what is there may be out of order
            requests = order.noting(requests)
        requests = unanswered(
            requests, answered, run.counters, lambda: run.stop_cause is not None, lines.place
        )
        try:
            with run.waking(_Interrupt(lines)):
                for _ in run.outcomes(output.expecting(requests)):
                    raise AssertionError("a run with a sink yields nothing")
        finally:
            try:
                output.close()
            except KeyboardInterrupt:  # it may have come before anything was done
                output.close()
                raise
            finally:
                if run.bounds.bounded is not None:
                    run.bounds.bounded.close()
        if is_noted and run.stop_cause is None:
            order.restore(files)

    def _answered(self, run: Run, lines: RequestLines, files: list[AppendFile]) -> AnsweredRequests:
        """What is answered, after a repair of ``files``. Raises what stops the run meanwhile."""

        def check() -> None:
            if run.stop_cause is not None:
                raise run.stop_cause

        job, spending = self._job, run.bounds.bounded
        if spending is not None and files[0].is_regular:
            spending.open(files[0].path, overwrite=job.overwrite)
        answered = prepare(
            files,
            overwrite=job.overwrite,
            keep_failures=job.keep_failures,
            check=check,
            on_answer=None if spending is None else spending.add_record,
        )
        if spending is not None:
            spending.begin(lambda: run.counters.counts().ended_and_left(lines.fraction()))
        if job.keep_failures:
            run.bounds.failures.add(answered.failed)
        may_refuse = answered.has_ids_alone and job.output_format != "batch"
        if may_refuse and all(source.size_bytes is not None for source in job.sources):
            with open_sources(job.sources) as lines:
                requests = requests_of(lines, self._options, job.model)
                answered.check_lines(requests, lines.place, check)
        return answered

    def _live_report(self, path: Path, run: Run, lines: RequestLines) -> LiveReport:
        report = LiveReport(
            path,
            sample=lambda: self._sample(run),
            tell=lambda timeline, is_running: self._report(run, lines, timeline, is_running),
            clock=self._clock,
        )
        run.displays.add(report)
        return report

    def _report(
        self, run: Run, lines: RequestLines, timeline: tuple[Sample, ...], is_running: bool
    ) -> RunReport:
        job, options = self._job, self._options
        return RunReport(
            summary=self._summary(run, lines),
            started_at=self._started_at_s,
            written_at=time.time(),
            is_running=is_running,
            fraction=lines.fraction(),
            requests_path=lines.name,
            save_path=job.save.name if isinstance(job.save, StoredFile) else str(job.save),
            url=shown_url(options.request_url),
            max_workers=options.max_workers,
            processes=options.processes,
            timeline=timeline,
            slowest=self._highlights.slowest(),
            failures=self._highlights.failures(),
        )

    def _sample(self, run: Run) -> Sample:
        counts, now = run.counters.counts(), self._clock()
        return Sample(
            at_s=now - self._started_at,
            in_flight=run.credits.in_flight,
            errors=counts.errors,
            waited_s=run.wait_times.overall(now),
            latencies=counts.latencies,
            limits=self._account.buckets.usage().limits,
            **counters_of(counts),
        )


class _Interrupt:
    """Ends the wait for the next line when the run stops."""

    def __init__(self, lines: RequestLines) -> None:
        self.set = lines.interrupt


def _local(path: Path | StoredFile) -> Path:
    return path.path if isinstance(path, StoredFile) else path


def _stored(job: FileJob, files: Sequence[AppendFile]) -> list[tuple[StoredFile, AppendFile]]:
    """The files that belong on an object store."""
    pairs = zip((job.save, job.errors), files, strict=False)
    return [(store, file) for store, file in pairs if isinstance(store, StoredFile)]


def _put(stored: Sequence[tuple[StoredFile, AppendFile]], summary: Summary) -> None:
    """Put the finished files on their stores."""
    try:
        for store, file in stored:
            store.put(file)
    except ResultsFileError as error:
        error.summary = summary
        raise


class _Output:
    """Writes the outcomes of one run. The run calls :meth:`open`, once, for its sink.

    The report's ``highlights`` and the job's ``on_outcome`` get the outcomes that are on record.
    """

    def __init__(
        self,
        files: list[AppendFile],
        job: FileJob,
        highlights: Highlights,
        write_retry_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._files, self._write_retry_s, self._clock = files, write_retry_s, clock
        self._highlights = highlights if job.report is not None else None
        self._on_outcome = job.on_outcome
        self._process_id = os.getpid()
        keeps_text = self._highlights is not None or self._on_outcome is not None
        self._order = InputOrder(keeps_text=keeps_text) if job.ordered else None
        self._writer: ResultWriter | None = None

    def open(self, recorded: Recorded, stop: Callable[[BaseException], None]) -> Sink:
        """The sink: a writer that calls ``recorded`` for what is on record, and ``stop`` if it fails."""

        def note_and_record(outcomes: list[Outcome], on_record: bool, size_bytes: int) -> None:
            if on_record:
                self._note(outcomes, stop)
            recorded(outcomes, on_record, size_bytes)

        is_noted = self._highlights is not None or self._on_outcome is not None
        self._writer = ResultWriter(
            *self._files,
            on_written=note_and_record if is_noted else recorded,
            on_failure=stop,
            write_retry_s=self._write_retry_s,
            order=self._order,
            clock=self._clock,
        )
        return self._writer.put

    def start(self) -> None:
        """Start the writer's thread: what can't be recorded is not sent."""
        if self._writer is not None:
            self._writer.start()

    def _note(self, outcomes: list[Outcome], stop: Callable[[BaseException], None]) -> None:
        """Pass on the outcomes that are on record. The writer's thread calls this."""
        if self._highlights is not None:
            self._highlights.add(outcomes)
        if self._on_outcome is None:
            return
        for outcome in outcomes:
            try:
                self._on_outcome(outcome)
            except BaseException as error:  # the run ends; the other outcomes are passed on as well
                if os.getpid() != self._process_id:  # on_outcome has forked, and this is the child
                    raise
                stop(error)

    @property
    def slack(self) -> WriterSlack:
        """What may wait for the writer."""
        return (
            WRITER_SLACK if self._order is None else replace(ORDERED_SLACK, on_unanswered=self.skip)
        )

    def expecting(self, requests: Iterator[Request]) -> Iterator[Request]:
        """Pass on ``requests``, and note their order if the records are to have it."""
        if (order := self._order) is None:
            yield from requests
            return
        for request in requests:
            order.expect(request.number)
            yield request

    def skip(self, number: int) -> None:
        """This request will have no record."""
        if self._writer is not None:
            self._writer.skip(number)

    def give_up(self) -> None:
        """Don't try failed writes again."""
        if self._writer is not None:
            self._writer.give_up()

    def close(self) -> None:
        """Write what is left. A second call does nothing."""
        if (
            self._writer is not None and os.getpid() == self._process_id
        ):  # a fork has no such thread
            self._writer.close()


def unanswered(
    requests: Iterator[Request],
    answered: AnsweredRequests,
    counters: Counters,
    is_over: Callable[[], bool],
    place: Place = line_place,
) -> Iterator[Request]:
    """The requests that have no answer yet. Logs once what had to be left out of some."""
    noted: set[str] = set()
    has_records = not answered.is_empty or not answered.kept_failures.is_empty
    for request in requests:
        if has_records:
            if is_over():
                return
            if answered.take(request):
                counters.skipped()
                continue
            if answered.kept_failures.take(request):
                counters.skipped(failed=True)
                continue
            answered.check_id(request, place(request.number))
        if request.dropped:
            tell_notes(request, noted, place)
        yield request


def _target(options: Options) -> str:
    """Where the requests go, and how fast, for the log. The URL's query may hold a key: it is left out."""
    limits = options.limits.by_kind.items()
    bounds = [f"{limit:,.0f} {name} a minute" for name, limit in limits if limit < math.inf]
    url = shown_url(options.request_url)
    if options.replica_urls:
        url += f" and {len(options.replica_urls)} more (each has the limits for itself)"
    if options.limits_by_model:
        bounds.append(f"what the limits of {len(options.limits_by_model)} model patterns say")
    if bounds:
        return f"{url}, at most {' and '.join(bounds)}"
    return f"{url}, as fast as it allows" if options.limits.is_auto else f"{url}, without a limit"
