"""What the runs of a processor share in one process: the limits, what was learned, and the counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from parallel_processor.engine.credits import WRITER_SLACK, WriterSlack
from parallel_processor.engine.delivery import MakeSink
from parallel_processor.engine.run import Run
from parallel_processor.engine.stops import OnLeftOut
from parallel_processor.engine.submissions import Submissions
from parallel_processor.exceptions import StopRequested, stop_cause_of
from parallel_processor.models import Request, WaitCause
from parallel_processor.options import Options
from parallel_processor.ratelimit.accounts import ACCOUNTS
from parallel_processor.ratelimit.registry import TokenBuckets
from parallel_processor.report.counters import Counts
from parallel_processor.report.histogram import percentiles_s
from parallel_processor.report.progress import Progress
from parallel_processor.report.snapshot import Snapshot, added
from parallel_processor.report.summary import Stats, Summary, counters_of
from parallel_processor.runtime.forks import FORK_LOCK
from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.tokens.estimates import CostEstimator


def _make_buckets(options: Options, clock: Callable[[], float]) -> TokenBuckets:
    if options.limiter is None:
        return TokenBuckets(options, clock, ACCOUNTS)
    with FORK_LOCK:
        from parallel_processor.limiter.accounts import leased_buckets
    return leased_buckets(options, clock)


class Account:
    """The limits of one account, and the runs that share them. Any thread may call it."""

    def __init__(self, options: Options, clock: Callable[[], float]) -> None:
        self._options, self._clock, self._made_at = options, clock, clock()
        self.buckets = _make_buckets(options, clock)
        self.estimator = CostEstimator(options)
        self.submissions = Submissions(self.run, options.request_url, options.dedupe)
        self._lock = InterruptSafeLock()  # guards the fields below
        self._runs: set[Run] = set()
        self.stops = 0  # how often :meth:`stop` was called
        self._last_stop: Callable[[Run], None] = lambda run: None
        self._ended = Counts()  # of the runs that are over
        self._waited_s: Mapping[WaitCause, float] = {}  # by these runs

    @contextmanager
    def run(
        self,
        *,
        make_sink: MakeSink | None = None,
        on_begin: Callable[[], None] | None = None,
        on_cancel: Callable[[], None] | None = None,
        on_left_out: OnLeftOut | None = None,
        ahead: Callable[[], float] | None = None,
        is_wanted: Callable[[Request], bool] | None = None,
        parses_answers: bool = True,
        slack: WriterSlack = WRITER_SLACK,
        stops: int | None = None,
    ) -> Iterator[Run]:
        """A new run, which is over at the end of the block. The arguments are those of :class:`Run`.

        ``stops`` is ``self.stops`` at the begin of the caller's call. A later stop is for this run, too.
        """
        run = Run(
            self._options,
            buckets=self.buckets,
            estimator=self.estimator,
            make_sink=make_sink,
            on_begin=on_begin,
            on_cancel=on_cancel,
            on_left_out=on_left_out,
            ahead=ahead,
            is_wanted=is_wanted,
            parses_answers=parses_answers,
            slack=slack,
            clock=self._clock,
        )
        with self._lock:
            self._runs.add(run)
            missed = self._last_stop if stops not in (None, self.stops) else None
        if missed is not None:
            missed(run)
        try:
            yield run
        finally:
            with self._lock:
                self._runs.discard(run)
                self._ended += run.counters.counts().at_end()
                self._waited_s = added(self._waited_s, run.wait_times.overall())

    def stop(self, reason: str, *, cancels: bool = False) -> None:
        """Stop the runs of all calls that have begun; with ``cancels``, cancel their requests in flight."""
        cause = StopRequested(reason)

        def stop(run: Run) -> None:
            (run.cancel if cancels else run.stop)(cause)

        with self._lock:
            self.stops, self._last_stop = self.stops + 1, stop
        for run in self.runs():
            stop(run)

    def runs(self) -> list[Run]:
        """The runs that are not over."""
        with self._lock:
            return list(self._runs)

    def progress(
        self, run: Run, fraction: Callable[[], float | None], show: bool | None
    ) -> Progress:
        """A progress display of ``run``; ``fraction`` is the share of its input that has been read."""
        return Progress(
            run.counters,
            usage=self.buckets.usage,
            waits=lambda: run.wait_times.overall(self._clock()),
            in_flight=lambda: run.in_flight,
            fraction=fraction,
            show=show,
            clock=self._clock,
        )

    def summary(self, run: Run, started_at: float, *, fraction: float | None = None) -> Summary:
        """What ``run``, which began at ``started_at`` of the clock, has done so far.

        ``fraction`` is the share of its input that has been read; ``None`` if unknown.
        """
        now = self._clock()
        return run.counters.summary(
            now - started_at,
            fraction=fraction,
            stop_reason=str(run.stop_cause) if run.stop_cause is not None else "",
            stop_cause=stop_cause_of(run.stop_cause),
            stopped_models=getattr(run.stop_cause, "models", ()),
            waited_s=run.wait_times.overall(now),
            buckets=self.buckets.reports(started_at, run.wait_times.of_bucket),
        )

    def snapshot(self) -> Snapshot:
        """What all runs have done until this moment."""
        now = self._clock()
        with self._lock:
            counts, waited_s, in_flight = self._ended, self._waited_s, 0
            for run in self._runs:
                counts += run.counters.counts()
                waited_s = added(waited_s, run.wait_times.overall(now))
                in_flight += run.in_flight
        return Snapshot(
            counts=counts,
            in_flight=in_flight,
            waited_s=waited_s,
            usage=self.buckets.usage(),
            buckets=self.buckets.reports(self._made_at, lambda bucket: {}),
        )

    def stats(self) -> Stats:
        """The counts of all runs together, at this moment."""
        with self._lock:
            runs = len(self._runs)
        found = self.snapshot()
        counts, in_flight, usage = found.counts, found.in_flight, found.usage
        a_minute = 60.0 / max(usage.span_s, 1.0)
        latencies = percentiles_s(counts.latencies)
        return Stats(
            runs=runs,
            in_flight=in_flight,
            requests_per_minute=usage.admitted["requests"] * a_minute,
            tokens_per_minute=usage.admitted["tokens"] * a_minute,
            limits=usage.limits,
            waiting_for=usage.waiting_for,
            latency_s={each: s for each, s in latencies.items() if s is not None},
            read=counts.read,
            errors=counts.errors,
            **counters_of(counts),
        )
