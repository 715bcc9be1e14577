"""One job from its flags to its summary, with whatever engine it is given."""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from parallel_processor import exceptions
from parallel_processor.cluster.blocks import Block, BlockLines
from parallel_processor.cluster.driver import Driver, Engine, Fatal
from parallel_processor.cluster.folders import (
    Folder,
    LocalFolder,
    everywhere,
    input_size,
    open_folder,
    open_input,
)
from parallel_processor.cluster.job import Job, KeySource
from parallel_processor.cluster.parts import check_parts, failures_in, read_state
from parallel_processor.cluster.plan import (
    Plan,
    check_folders,
    clean,
    default_folder,
    empty,
    look_at_input,
    make_plan,
)
from parallel_processor.cluster.tally import ClusterSummary, Tally
from parallel_processor.exceptions import (
    ParallelProcessorError,
    ResultsFileError,
    RunStoppedError,
    StopCause,
)
from parallel_processor.files.append_file import AppendFile
from parallel_processor.options import Options, Settings, shown_url
from parallel_processor.report.progress import Displays, Progress
from parallel_processor.report.report_file import LiveReport
from parallel_processor.report.samples import RunReport, Sample
from parallel_processor.report.summary import Stats
from parallel_processor.report.wording import counted

_log = logging.getLogger("parallel_processor")
_LOCK = "driver.lock"

MakeEngine = Callable[[Job, int], AbstractContextManager[Engine]]
"""Makes an engine with so many workers for a job, which have the limits of the job together.

At the end of the ``with`` block the workers are gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterJob:
    """What to do with a file. ``settings`` are those of each worker, but for the limits.

    Attributes:
        requests_path: the requests, a path or a URL of an object store.
        save_path: the folder of the output, a path or a URL.
        errors_path: the folder of the failures, likewise; empty if they stay in the parts.
        workers: how many to use; fewer if there are fewer blocks.
        key: where the workers find the key.
        block_bytes: the size of new blocks; ``None`` takes a size that suits the file and the workers.
    """

    requests_path: str
    save_path: str | None = None
    errors_path: str = ""
    workers: int
    settings: Settings
    key: KeySource = KeySource()
    overwrite: bool = False
    keep_failures: bool = False
    progress: bool | None = None
    report_path: Path | None = None
    block_bytes: int | None = None
    upload_s: float = 5.0

    @property
    def folder(self) -> str:
        """Where the output goes."""
        return self.save_path or default_folder(self.requests_path)


class ClusterRun:
    """One run of a job. Any thread may call :meth:`stop`; the rest is for the caller's."""

    def __init__(self, job: ClusterJob, clock: Callable[[], float] = time.monotonic) -> None:
        self._job, self._clock = job, clock
        self._options = Options(**job.settings)
        self._started_at, self._started_at_s = clock(), time.time()
        self._driver: Driver | None = None
        self._tally: Tally | None = None
        self._stop: tuple[str, bool] | None = None  # what was asked before there was a driver

    def stop(self, reason: str, *, cancels: bool = False) -> None:
        """Send nothing more; what is in flight may end, unless it is cancelled."""
        self._stop = (reason, cancels)
        if self._driver is not None:
            self._driver.stop(reason, cancels=cancels)

    def stats(self) -> Stats:
        """What all workers have done until now, as they have told. Any thread may call it."""
        tally, driver = self._tally, self._driver
        return tally.snapshot().stats(int(driver is not None)) if tally is not None else Stats()

    def process(
        self, make_engine: MakeEngine, *, workers: int | None = None, shares_limits: bool = False
    ) -> ClusterSummary:
        """Send what has no record yet. Raises as ``Processor.process_file`` does.

        ``workers`` is used in the place of the job's, if it is given. ``shares_limits`` says that the
        engine's workers have one limiter.
        """
        job = self._job if workers is None else dataclasses.replace(self._job, workers=workers)
        check_folders(job.folder, job.errors_path)
        size = input_size(job.requests_path)
        is_compressed = look_at_input(job.requests_path, size)
        folder = open_folder(job.folder)
        errors = open_folder(job.errors_path) if job.errors_path else None
        with ExitStack() as stack:
            self._lock(folder, stack)
            state = read_state(folder)
            if job.overwrite:
                empty(folder, state, errors)
                state = read_state(folder)
            plan = make_plan(
                state,
                size,
                workers=job.workers,
                block_bytes=job.block_bytes,
                keep_failures=job.keep_failures,
                is_compressed=is_compressed,
            )
            check_parts(folder, state, self._lines, self._options)
            has_limiter = shares_limits or job.settings.get("limiter") is not None
            kept = state.failed if job.keep_failures else ()
            already_failed = sum(failures_in(folder, block, errors) for block in kept)
            tally = self._tally = Tally(
                plan.total_bytes,
                shares_limits=has_limiter,
                already_failed=already_failed,
                blocks_before=len(state.done) + len(kept),
            )
            driver = self._drive(make_engine, job.workers, plan, tally) if plan.count else None
            clean(folder, read_state(folder), errors)
        summary = self._summary(tally, driver)
        if driver is not None and driver.fatal is not None:
            raise _exception(driver.fatal, summary)
        return summary

    def _lines(self, block: Block) -> BlockLines:
        path = self._job.requests_path
        return BlockLines(open_input(path), block, path)

    def _lock(self, folder: Folder, stack: ExitStack) -> None:
        """Refuse a second driver for the folder, where that can be told."""
        if isinstance(folder, LocalFolder):
            folder.path.mkdir(parents=True, exist_ok=True)
            path = folder.path / _LOCK
            try:
                lock = AppendFile(path)
            except ResultsFileError as error:
                text = str(error).replace("name another results file", "name another folder")
                raise ResultsFileError(text) from None
            stack.callback(lock.close)
            stack.callback(path.unlink, missing_ok=True)

    def _drive(self, make_engine: MakeEngine, most: int, plan: Plan, tally: Tally) -> Driver:
        job, workers = self._job, min(most, plan.count)
        made = Job(
            source=everywhere(job.requests_path),
            folder=everywhere(job.folder),
            errors=everywhere(job.errors_path),
            run=uuid.uuid4().hex[:12],
            settings=job.settings,
            key=job.key,
            upload_s=job.upload_s,
        )
        _log.info(
            "sending %s to %s: %s, %s",
            *(job.requests_path, shown_url(self._options.request_url)),
            *(counted(plan.count, "block"), counted(workers, "worker")),
        )
        displays = Displays(self._clock)
        with make_engine(made, workers) as engine:
            driver = Driver(
                engine, plan.blocks(), tally, drain_s=self._options.drain_s, clock=self._clock
            )
            self._driver = driver
            if self._stop is not None:
                driver.stop(self._stop[0], cancels=self._stop[1])
            report = self._show(displays, tally, driver)
            try:
                displays.start()
                driver.run()
            finally:
                displays.close()
                if report is not None:
                    report.finish()
        return driver

    def _show(self, displays: Displays, tally: Tally, driver: Driver) -> LiveReport | None:
        displays.add(
            Progress(
                tally,
                usage=tally.usage,
                waits=tally.waits,
                in_flight=tally.in_flight,
                fraction=tally.fraction,
                show=self._job.progress,
                clock=self._clock,
            )
        )
        if self._job.report_path is None:
            return None
        report = LiveReport(
            self._job.report_path,
            sample=lambda: tally.snapshot().sample(self._clock() - self._started_at),
            tell=lambda timeline, is_running: self._report(tally, driver, timeline, is_running),
            clock=self._clock,
        )
        displays.add(report)
        return report

    def _report(
        self, tally: Tally, driver: Driver, timeline: tuple[Sample, ...], is_running: bool
    ) -> RunReport:
        return RunReport(
            summary=self._summary(tally, driver),
            started_at=self._started_at_s,
            written_at=time.time(),
            is_running=is_running,
            fraction=tally.fraction(),
            requests_path=self._job.requests_path,
            save_path=self._job.folder,
            url=shown_url(self._options.request_url),
            max_workers=self._options.max_workers,
            processes=self._options.processes,
            timeline=timeline,
            failures=tuple(tally.notes),
        )

    def _summary(self, tally: Tally, driver: Driver | None) -> ClusterSummary:
        fatal = driver.fatal if driver is not None else None
        cause = StopCause.CALLER if driver is not None and driver.stop_reason else StopCause.NOTHING
        return tally.summary(
            self._clock() - self._started_at,
            stop_reason=fatal.text if fatal else driver.stop_reason if driver is not None else "",
            stop_cause=fatal.stop_cause if fatal else cause,
            models=fatal.models if fatal else (),
        )


def _exception(fatal: Fatal, summary: ClusterSummary) -> ParallelProcessorError:
    """What a worker has raised, raised here."""
    kind = getattr(exceptions, fatal.error_class, ParallelProcessorError)
    if kind is RunStoppedError:
        error: ParallelProcessorError = RunStoppedError(
            fatal.text, fatal.stop_cause, models=fatal.models
        )
    else:
        error = kind(fatal.text)
    error.summary = summary
    return error
