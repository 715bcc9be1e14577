"""The public class: a Processor owns an account's limits, and makes a run for each file or iterable."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from parallel_processor.engine.account import Account
from parallel_processor.engine.file_run import FileJob, FileRun
from parallel_processor.engine.iterables import NumberedRequests, ReorderBuffer
from parallel_processor.exceptions import (
    ConfigurationError,
    ParallelProcessorError,
    RunStoppedError,
    StopRequested,
)
from parallel_processor.files.requests_file import check_paths, default_save_path
from parallel_processor.models import Outcome, Request
from parallel_processor.options import Options, Settings
from parallel_processor.providers.endpoints import check_key
from parallel_processor.report.summary import Stats, Summary

if TYPE_CHECKING:
    from typing_extensions import Unpack

StrPath = str | Path
RequestLike = Request | Mapping[str, Any]
"""What can be sent: a body, whose ``metadata`` is taken out and comes back, or a :class:`Request`."""


class Processor:
    """Sends requests through the limits of one account. Threads may share it, and then its limits.

    ``settings`` are those of :class:`Options`. Between runs it holds no thread, socket or file. After a
    fork the child's has limits, counts and connections of its own.

    >>> with Processor(request_url=url, limits=Limits(requests_per_minute=6000)) as processor:
    ...     outcomes = processor.map({"model": "m", "input": text} for text in ["one", "two"])
    >>> [outcome.ok for outcome in outcomes]
    [True, True]
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, **settings: Unpack[Settings]
    ) -> None:
        self._options = Options(**settings)
        check_key(self._options)
        self._clock = clock
        self._accounts: dict[int, Account] = {}  # by process
        _ = self._account

    @property
    def _account(self) -> Account:
        """The account of this process. A fork gets a new one: locks that it has copied may stay held."""
        pid = os.getpid()
        account = self._accounts.get(pid)
        if account is None:  # setdefault is atomic, if another thread does the same
            account = self._accounts.setdefault(pid, Account(self._options, self._clock))
        return account

    @property
    def options(self) -> Options:
        """The settings, as they were checked."""
        return self._options

    def imap_unordered(
        self, requests: Iterable[RequestLike], *, progress: bool | None = False
    ) -> Iterator[Outcome]:
        """Send ``requests`` and yield their outcomes as they come, failed ones included.

        A request is a body (a dict, of which ``metadata`` is taken out and not sent) or a
        :class:`Request`; its outcome has its place in the iterable as ``request.number``, from 1. The
        iterable is read by the thread that takes the outcomes, only as far as the limits and
        ``max_workers`` allow. ``progress`` as in :meth:`process_file`. A fatal answer raises
        :class:`RunStoppedError` once everything under way has been yielded; closing the iterator early
        gives up what is under way.

        >>> with Processor(request_url=url) as processor:
        ...     for outcome in processor.imap_unordered([{"model": "m", "input": "text"}]):
        ...         print(outcome.request.number, outcome.ok)
        1 True
        """
        yield from self._outcomes(NumberedRequests(requests, self._options.request_url), progress)

    def imap(
        self,
        requests: Iterable[RequestLike],
        *,
        window: int = 4096,
        progress: bool | None = False,
    ) -> Iterator[Outcome]:
        """Like :meth:`imap_unordered`, in the order of ``requests``.

        An outcome waits for those before it. At most ``window`` requests are under way or waiting so,
        which bounds memory; it should be larger than what is in flight.

        >>> with Processor(request_url=url) as processor:
        ...     bodies = ({"model": "m", "input": str(number)} for number in range(3))
        ...     [outcome.request.body["input"] for outcome in processor.imap(bodies)]
        ['0', '1', '2']
        """
        if type(window) is not int or window < 1:
            raise ConfigurationError(f"window must be a whole number above 0, not {window!r}")
        return self._in_order(requests, window, progress)

    def _in_order(
        self, requests: Iterable[RequestLike], window: int, progress: bool | None
    ) -> Iterator[Outcome]:
        given = NumberedRequests(requests, self._options.request_url)
        order = ReorderBuffer(given, window)
        try:
            for outcome in self._outcomes(given, progress, order.room):
                yield from order.add(outcome)
        except Exception:
            yield from order.rest()
            raise
        yield from order.rest()

    def map(
        self,
        requests: Iterable[RequestLike],
        *,
        on_outcome: Callable[[Outcome], object] | None = None,
        progress: bool | None = False,
    ) -> list[Outcome]:
        """The outcomes of all ``requests``, in their order, failed ones included.

        ``on_outcome`` is called by this thread with each outcome as it comes. What ends the run early,
        :meth:`stop` included, raises; the ``outcomes`` of what is raised are those that there are.

        >>> with Processor(request_url=url) as processor:
        ...     outcomes = processor.map([{"model": "m", "input": "one"}, {"model": "m", "input": "two"}])
        >>> [len(outcome.embedding) > 0 for outcome in outcomes]
        [True, True]
        """
        given = NumberedRequests(requests, self._options.request_url)
        outcomes: list[Outcome] = []
        try:
            for outcome in self._outcomes(given, progress):
                outcomes.append(outcome)
                if on_outcome is not None:
                    on_outcome(outcome)
            outcomes.sort(key=_number)
            if len(outcomes) < given.read or not given.is_over:
                raise RunStoppedError("the run was stopped before every request had its outcome")
        except BaseException as error:
            _attach(error, tuple(sorted(outcomes, key=_number)))
            raise
        return outcomes

    def submit(self, request: RequestLike) -> Future[Outcome]:
        """Have one request sent, and come back at once. Any thread may call it, callbacks included.

        The future's result is the outcome, also of a request that failed; its exception what ended the
        run: :class:`RunStoppedError`, say. Until it is sent it can be cancelled. Requests wait in memory:
        for many, :meth:`imap_unordered` is the better way. All that were submitted share one run, which a
        thread feeds that ends a second after the last of them. Leaving the ``with`` block waits for them.

        >>> with Processor(request_url=url) as processor:
        ...     future = processor.submit({"model": "m", "input": "text"})
        ...     future.result().ok
        True
        """
        return self._account.submissions.submit(request)

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
        on_outcome: Callable[[Outcome], object] | None = None,
    ) -> Summary:
        """Send every request of a file, and append its record to another.

        Requests that have a good record in ``save_path`` are not sent again; failed records are
        dropped, and their requests sent again, unless ``keep_failures`` leaves both as they are.
        ``overwrite`` starts afresh. ``save_path`` defaults to ``{requests_path}_results.jsonl``;
        failures go there too, or to ``errors_path``. ``progress``: ``True`` shows a bar on a terminal
        and in a notebook and lines elsewhere, ``None`` the bar only, ``False`` nothing. ``report_path``
        gets the report, as a page if it ends with ``.html``, else as JSON, time and again while the run
        goes on, and however it ends. ``on_outcome`` is called with each outcome once that is on record,
        always from one thread, the writer's; what it raises ends the run.

        Raises :class:`RunStoppedError` after a fatal answer, :class:`ResultsFileError` and
        :class:`InputFileError` for broken files. An exception from outside, such as
        ``KeyboardInterrupt``, passes through once the answers under way are on record, in a notebook
        after half a second.

        >>> with Processor(request_url=url) as processor:
        ...     summary = processor.process_file(f"{folder}/requests.jsonl", f"{folder}/results.jsonl")
        >>> summary.failed
        0
        """
        source = Path(requests_path)
        job = FileJob(
            source=source,
            save=Path(save_path) if save_path is not None else default_save_path(source),
            errors=Path(errors_path) if errors_path is not None else None,
            report=Path(report_path) if report_path is not None else None,
            overwrite=overwrite,
            keep_failures=keep_failures,
            progress=progress,
            on_outcome=on_outcome,
        )
        check_paths(job.source, job.save, job.errors, job.report)
        run = FileRun(job, self._options, self._account, self._clock)
        summary, cause = run.process()
        _raise_cause(cause, summary)
        return summary

    def stats(self) -> Stats:
        """Where all runs of this processor stand, taken together, at this moment. Any thread may ask.

        >>> with Processor(request_url=url) as processor:
        ...     outcomes = processor.map([{"model": "m", "input": "text"}])
        ...     processor.stats().answered
        1
        """
        return self._account.stats()

    def _outcomes(
        self,
        given: NumberedRequests,
        progress: bool | None,
        ahead: Callable[[], float] | None = None,
    ) -> Iterator[Outcome]:
        account, started_at = self._account, self._clock()
        with account.run(ahead=ahead) as run:
            if progress is not False:
                run.displays.add(account.progress(run, given.fraction, progress))
            yield from run.outcomes(given)
            if run.stop_cause is not None:
                _raise_cause(run.stop_cause, account.summary(run, started_at))

    def stop(self, reason: str = "stopped by the caller") -> None:
        """End every run: nothing more is sent, what is in flight may end (see ``drain_s``).

        Any thread may call it, a signal handler may not. Files return as usual, with a ``stop_reason``.
        """
        for run in self._account.runs():
            run.stop(StopRequested(reason))

    def cancel(self, reason: str = "stopped by the caller") -> None:
        """Like :meth:`stop`, but what is in flight is given up at once."""
        for run in self._account.runs():
            run.cancel(StopRequested(reason))

    def __enter__(self) -> Processor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for what was submitted, unless an exception came; then stop every run.

        What nobody is left to take is given up at once.
        """
        account, is_clean = self._account, kind is None
        try:
            if is_clean:
                account.submissions.close()
        except BaseException:
            is_clean = False
            raise
        finally:
            for run in account.runs():
                run.stop(StopRequested("the processor was closed"))
                if run.yields_outcomes or not is_clean:
                    run.cancel(StopRequested("the processor was closed"))
            account.submissions.close()


def _number(outcome: Outcome) -> int:
    return outcome.request.number


def _attach(error: BaseException, outcomes: tuple[Outcome, ...]) -> None:
    """Set ``error.outcomes``, also of exceptions that are not ours.

    ``except`` gets the exception as it was raised, Ctrl-C or the iterable's own, and that is where a
    program looks for the outcomes that it has paid for. A class that refuses attributes goes without.
    """
    with contextlib.suppress(AttributeError, TypeError):
        error.outcomes = outcomes  # type: ignore[attr-defined]


def _raise_cause(cause: BaseException | None, summary: Summary) -> None:
    """Raise what ended the run, if the server or the disk did. A run that was told to stop just ends."""
    if cause is None or isinstance(cause, StopRequested):
        return
    if isinstance(cause, ParallelProcessorError):
        cause.summary = summary
    raise cause
