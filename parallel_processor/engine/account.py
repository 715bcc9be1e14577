"""What the runs of a processor share in one process: the limits, what was learned, and the counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from parallel_processor.engine.credits import WRITER_SLACK, WriterSlack
from parallel_processor.engine.delivery import MakeSink, Recorded, Sink
from parallel_processor.engine.run import Run
from parallel_processor.engine.stops import OnLeftOut
from parallel_processor.engine.submissions import Submissions
from parallel_processor.exceptions import StopRequested, stop_cause_of
from parallel_processor.models import Outcome, Request, WaitCause
from parallel_processor.options import Limits, Options
from parallel_processor.planning.budget import make_budget
from parallel_processor.planning.costs import Costs
from parallel_processor.ratelimit.accounts import ACCOUNTS
from parallel_processor.ratelimit.registry import TokenBuckets
from parallel_processor.report.counters import Counts
from parallel_processor.report.limit_news import tell_changed
from parallel_processor.report.progress import Progress
from parallel_processor.report.snapshot import Snapshot, added, scaled
from parallel_processor.report.summary import Stats, Summary, cost_fields
from parallel_processor.runtime.forks import FORK_LOCK
from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.tokens.estimates import CostEstimator
from parallel_processor.upstreams.lanes import check_lanes
from parallel_processor.upstreams.routes import Routes

_Waits = Mapping[Hashable, Mapping[WaitCause, float]]


def _together(one: _Waits, other: _Waits) -> _Waits:
    return {**one, **{key: added(one.get(key, {}), waits) for key, waits in other.items()}}


def _sum(one: Costs | None, other: Costs | None) -> Costs | None:
    return one.plus(other) if one is not None and other is not None else one or other


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
        check_lanes(options)
        self.buckets = _make_buckets(options, clock)
        self.routes = Routes(options, self.buckets)
        self.estimator = CostEstimator(options)
        self._budget = make_budget(options)
        self.submissions = Submissions(self.run, options)
        self._lock = InterruptSafeLock()  # guards the fields below
        self._runs: dict[Run, float] = {}  # as they began, and when
        self._runs_s = self._busy_s = (
            0.0  # what runs took that are over: their sum, and without overlaps
        )
        self._busy_since_s = 0.0  # if there are runs
        self.stops = 0  # how often :meth:`stop` was called
        self._last_stop: Callable[[Run], None] = lambda run: None
        self._ended = Counts()  # of the runs that are over
        self._waited_s: Mapping[WaitCause, float] = {}  # by these runs
        self._waited_by_bucket: _Waits = {}  # the same, by token bucket
        self._costs: Costs | None = None  # what these runs have spent

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
            routes=self.routes,
            estimator=self.estimator,
            make_sink=make_sink and partial(self._sink, make_sink),
            on_begin=on_begin,
            on_cancel=on_cancel,
            on_left_out=on_left_out,
            ahead=ahead if make_sink is None else lambda: self._beside(run),
            is_wanted=is_wanted,
            parses_answers=parses_answers,
            slack=slack,
            clock=self._clock,
            budget=self._budget,
        )
        with self._lock:
            now = self._clock()
            self._busy_since_s = self._busy_since_s if self._runs else now
            self._runs[run] = now
            missed = self._last_stop if stops not in (None, self.stops) else None
        if missed is not None:
            missed(run)
        try:
            yield run
        finally:
            self._end(run)

    def _end(self, run: Run) -> None:
        """Keep the counts of a run that is over."""
        if run.bounds.bounded is not None:
            run.bounds.bounded.end()
        with self._lock:
            now = self._clock()
            self._runs_s += now - self._runs.pop(run)
            self._busy_s += 0.0 if self._runs else now - self._busy_since_s
            self._ended += run.counters.counts().at_end()
            self._waited_s = added(self._waited_s, run.wait_times.overall())
            by_bucket = run.wait_times.by_bucket()
            self._waited_by_bucket = _together(self._waited_by_bucket, by_bucket)
            self._costs = _sum(self._costs, run.bounds.costs())
        self._wake_readers()

    def _beside(self, run: Run) -> float:
        """How many requests ``run`` may read beside those that are left of older runs over files.

        So the last requests of one file and the first ones of the next share ``max_workers``. For the
        reader, which takes no lock.
        """
        rest = 0
        for each in tuple(self._runs):
            if each is run:
                break
            rest += 0 if each.yields_outcomes else each.credits.rest
        return run.credits.beside(rest) if rest else math.inf

    def _sink(
        self, make_sink: MakeSink, recorded: Recorded, stop: Callable[[BaseException], None]
    ) -> Sink:
        """The sink that ``make_sink`` makes; what it records makes room for other runs."""

        def record(outcomes: list[Outcome], on_record: bool, size_bytes: int) -> None:
            recorded(outcomes, on_record, size_bytes)
            self._wake_readers()

        return make_sink(record, stop)

    def _wake_readers(self) -> None:
        """A run has fewer requests left: another one may read more."""
        if len(self._runs) > 1:
            for run in self.runs():
                run.waker.set()

    def stop(self, reason: str, *, cancels: bool = False) -> None:
        """Stop the runs of all calls that have begun; with ``cancels``, cancel their requests in flight."""
        cause = StopRequested(reason)

        def stop(run: Run) -> None:
            (run.cancel if cancels else run.stop)(cause)

        with self._lock:
            self.stops, self._last_stop = self.stops + 1, stop
        for run in self.runs():
            stop(run)

    def set_limits(
        self, limits: Limits | None, limits_by_model: Mapping[str, Limits] | None
    ) -> Options:
        """Have these limits from now on, those that are given; the settings with them."""
        given = {"limits": limits, "limits_by_model": limits_by_model}
        with self._lock:
            before = self._options
            changes = {name: value for name, value in given.items() if value is not None}
            self._options = replace(before, **changes)  # type: ignore[arg-type]
            # What is read from now on may wait until a limit of tokens comes.
            self.estimator.guesses = False
            self.buckets.change_limits(self._options)
            options = self._options
        tell_changed(before, options)
        return options

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
            in_flight=lambda: run.credits.in_flight,
            fraction=fraction,
            show=show,
            clock=self._clock,
            costs=run.bounds.costs,
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
            **cost_fields(run.bounds.costs(), run.counters.counts(), fraction),
        )

    def snapshot(self) -> Snapshot:
        """What all runs have done until this moment. Where runs overlap, their waits are a mean."""
        with self._lock:
            now = self._clock()
            counts, waited_s, in_flight = self._ended, self._waited_s, 0
            by_bucket, costs = self._waited_by_bucket, self._costs
            for run in self._runs:
                counts += run.counters.counts()
                waited_s = added(waited_s, run.wait_times.overall(now))
                by_bucket = _together(by_bucket, run.wait_times.by_bucket())
                in_flight += run.credits.in_flight
                costs = _sum(costs, run.bounds.costs())
            runs_s = self._runs_s + sum(now - began_at for began_at in self._runs.values())
            busy_s = self._busy_s + (now - self._busy_since_s if self._runs else 0.0)
        share = min(busy_s / runs_s, 1.0) if runs_s > 0 else 1.0
        return Snapshot(
            counts=counts,
            in_flight=in_flight,
            waited_s=scaled(waited_s, share),
            usage=self.buckets.usage(),
            buckets=self.buckets.reports(
                self._made_at, lambda bucket: scaled(by_bucket.get(bucket, {}), share)
            ),
            costs=costs,
        )

    def stats(self) -> Stats:
        """The counts of all runs together, at this moment."""
        with self._lock:
            runs = len(self._runs)
        return self.snapshot().stats(runs)
