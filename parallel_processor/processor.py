"""The public class: a :class:`Processor` holds one account's limits, and makes a run for each call.

::

    process_file ─> file_run.FileRun ──────────┐
    imap, map ───> iterables.NumberedRequests ─┼─> account.Account ─> run.Run ─> workers ─> transport
    submit ──────> submissions.Submissions ────┘   (limits, counts)
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from parallel_processor.engine.account import Account
from parallel_processor.engine.file_run import FileJob, FileRun
from parallel_processor.engine.iterables import NumberedRequests, ReorderBuffer
from parallel_processor.exceptions import (
    ConfigurationError,
    InterpreterEnds,
    ParallelProcessorError,
    RunStoppedError,
    StopRequested,
)
from parallel_processor.files.append_file import STDOUT
from parallel_processor.files.object_stores import StoredFile, is_url, local_path
from parallel_processor.files.requests_file import check_paths
from parallel_processor.files.sources import (
    Source,
    SourceLike,
    apart_from,
    find_save_path,
    find_sources,
)
from parallel_processor.models import Outcome, Request
from parallel_processor.options import Limits, Options, OutputFormat, Settings
from parallel_processor.providers.endpoints import check_key, check_url, tell_unused
from parallel_processor.report.snapshot import Snapshot
from parallel_processor.report.summary import Stats, Summary
from parallel_processor.tables.kinds import with_template

if TYPE_CHECKING:
    from typing_extensions import Unpack

StrPath = str | Path
RequestLike = Request | Mapping[str, Any]
"""A :class:`Request`, or a body, whose ``metadata`` is not sent and comes back with the outcome."""


class Processor:
    """Sends requests within the rate limits of one account. Threads that share it share these limits.

    ``settings`` are the fields of :class:`Options`. Between runs, a processor holds no socket or file, and
    no thread but the one that waits a second for the next :meth:`submit`. After a fork, the child's
    processor has its own limits, counts and connections.

    >>> with Processor(request_url=url, limits=Limits(requests_per_minute=6000)) as processor:
    ...     outcomes = processor.map({"model": "m", "input": text} for text in ["one", "two"])
    >>> [outcome.ok for outcome in outcomes]
    [True, True]
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, **settings: Unpack[Settings]
    ) -> None:
        self._options = Options(**settings)
        check_url(self._options)
        check_key(self._options)
        tell_unused(self._options)
        for key in self._options.keyring.rotating():
            key.fetch_first()
        self._clock = clock
        self._accounts: dict[int, Account] = {}  # by process
        _ = self._account  # made here: its clock begins now

    @property
    def _account(self) -> Account:
        """The account of this process. A forked child has a new one: copied locks may stay held."""
        pid = os.getpid()
        if pid not in self._accounts:  # setdefault is atomic: another thread may do the same
            self._accounts.setdefault(pid, Account(self._options, self._clock))
        return self._accounts[pid]

    @property
    def options(self) -> Options:
        """The settings, checked."""
        return self._options

    def imap_unordered(
        self, requests: Iterable[RequestLike], *, progress: bool | None = False
    ) -> Iterator[Outcome]:
        """Send ``requests`` and yield their outcomes as they come, failed ones included.

        A request is a body (a dict, whose ``metadata`` is not sent) or a :class:`Request`. The outcome's
        ``request.number`` is its position in the iterable, from 1. The thread that takes the outcomes
        reads the iterable, only as far ahead as the limits and ``max_workers`` allow. ``progress`` is as
        in :meth:`process_file`.

        After a fatal answer or :meth:`stop`, the outcomes of the requests in flight are yielded. Then
        :class:`RunStoppedError` is raised, after :meth:`stop` only if requests are left without an outcome.
        Closing the iterator early cancels the requests in flight.

        >>> with Processor(request_url=url) as processor:
        ...     for outcome in processor.imap_unordered([{"model": "m", "input": "text"}]):
        ...         print(outcome.request.number, outcome.ok)
        1 True
        """
        yield from self._outcomes(NumberedRequests(requests, self._options), progress)

    def imap(
        self, requests: Iterable[RequestLike], *, window: int = 4096, progress: bool | None = False
    ) -> Iterator[Outcome]:
        """Like :meth:`imap_unordered`, in the order of ``requests``.

        An outcome is kept until all before it have been yielded. ``window`` bounds memory, and with it the
        requests in flight: at most that many are in flight or kept.

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
        given = NumberedRequests(requests, self._options)
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

        This thread calls ``on_outcome`` with each outcome as it comes. If the run ends early, an
        exception is raised, as by :meth:`imap_unordered`. Its attribute ``outcomes`` has those so far.

        >>> with Processor(request_url=url) as processor:
        ...     outcomes = processor.map([{"model": "m", "input": "one"}, {"model": "m", "input": "two"}])
        >>> [len(outcome.embedding) > 0 for outcome in outcomes]
        [True, True]
        """
        given = NumberedRequests(requests, self._options)
        outcomes: list[Outcome] = []
        try:
            for outcome in self._outcomes(given, progress):
                outcomes.append(outcome)
                if on_outcome is not None:
                    on_outcome(outcome)
        except BaseException as error:
            # Any exception, KeyboardInterrupt too: the answers so far have been paid for.
            with contextlib.suppress(AttributeError, TypeError):  # a class may refuse attributes
                error.outcomes = tuple(sorted(outcomes, key=_number))  # type: ignore[attr-defined]
            raise
        return sorted(outcomes, key=_number)

    def submit(self, request: RequestLike) -> Future[Outcome]:
        """Queue one request, and return at once. Any thread may call it, also a future's callback.

        The future's result is the outcome, also of a request that failed. Its exception is what ended the
        run: :class:`RunStoppedError`, say. It can be cancelled until its request is sent. Leaving the
        ``with`` block waits for all futures.

        Queued requests are in memory: for many, prefer :meth:`imap_unordered`. All of them share one run.
        The thread that feeds it ends a second after the last request.

        >>> with Processor(request_url=url) as processor:
        ...     future = processor.submit({"model": "m", "input": "text"})
        ...     future.result().ok
        True
        """
        return self._account.submissions.submit(request)

    def process_file(
        self,
        requests_path: SourceLike,
        save_path: StrPath | None = None,
        *,
        errors_path: StrPath | None = None,
        overwrite: bool = False,
        keep_failures: bool = False,
        output_format: OutputFormat = "auto",
        model: str | None = None,
        ordered: bool = False,
        progress: bool | None = None,
        report_path: StrPath | None = None,
        on_outcome: Callable[[Outcome], object] | None = None,
        template: Mapping[str, Any] | StrPath | None = None,
        id_column: str | None = None,
        metadata_columns: Sequence[str] | str = (),
        delimiter: str | None = None,
    ) -> Summary:
        """Send every request of a file, and append its record to another file.

        A request with a good record in ``save_path`` is not sent again. Failed records are removed, and
        their requests are sent again.

        Args:
            requests_path: the requests, one a line, or as a JSON array; compressed or not; or a table
                (``.csv``, ``.tsv``, ``.parquet``) with a ``template``. A path, ``-`` for standard input, a
                pattern such as ``part-*.jsonl``, a URL of an object store, or a list of these; a file that
                is open for reading bytes; any other iterable of lines.
            save_path: the records; by default ``name_results.jsonl`` beside ``name.jsonl``. ``-`` is
                standard output. Compressed if the name ends with ``.gz`` or ``.zst``. With a URL of an
                object store, the records are in the working directory until the run has come to its end.
            errors_path: the records of failures, if they should not go to ``save_path``.
            overwrite: start afresh, without the old records.
            keep_failures: leave failed records as they are, and don't send their requests.
            output_format: the form of the records: ``"auto"`` for that of each line, ``"batch"`` for lines
                of a Batch output file (failures in ``errors_path``: of a Batch error file), ``"cookbook"``.
            model: the model of requests whose body names none.
            ordered: write the records in the order of the requests. An outcome is kept until all before it
                are there: 65,536 of them at most, or 64 MiB. Then no more is read.
            progress: ``True`` shows a bar on a terminal and in a notebook, and lines elsewhere; ``None``
                the bar only; ``False`` nothing.
            report_path: the report, a page if it ends with ``.html``, else JSON. It is written time and
                again while the run goes on, and however the run ends.
            on_outcome: called with each outcome that is on record, always by the writer's thread. An
                exception from it ends the run.
            template: the request of a table's row, or the path of a JSON file with it.
                :func:`open_table` explains it, and the last three arguments.

        Raises :class:`RunStoppedError` after a fatal answer, and :class:`ResultsFileError` or
        :class:`InputFileError` for a broken file. After another exception, such as ``KeyboardInterrupt``,
        requests in flight may end and are recorded, for ``drain_s`` (in a notebook for half a second).

        >>> with Processor(request_url=url) as processor:
        ...     summary = processor.process_file(f"{folder}/requests.jsonl", f"{folder}/results.jsonl")
        >>> summary.failed
        0
        """
        sources = find_sources(requests_path)
        job = FileJob(
            sources=sources,
            save=_output(save_path) or find_save_path(sources),
            errors=_output(errors_path),
            report=local_path(report_path) if report_path is not None else None,
            overwrite=overwrite,
            keep_failures=keep_failures,
            output_format=output_format,
            model=model,
            ordered=ordered,
            progress=progress,
            on_outcome=on_outcome,
        )
        sources = _checked_sources(job, template)
        table = with_template(sources, template, id_column, metadata_columns, delimiter)
        job = replace(job, sources=table)
        summary, cause = FileRun(job, self._options, self._account, self._clock).process()
        _raise_cause(cause, summary)
        return summary

    def set_limits(
        self, limits: Limits | None = None, limits_by_model: Mapping[str, Limits] | None = None
    ) -> None:
        """Have other limits from now on, also while runs go on; ``None`` leaves them as they are.

        Any thread may call it. No 60 seconds hold more than the highest limit that was in force in them.
        Other processors of the account in this process that share a limit have the new number, too. One
        that had another number, or none, and is brought to theirs shares nothing with them: both may send
        as much. A ``limiter`` takes a higher number two minutes after a process has last named the lower.

        >>> with Processor(request_url=url, limits=Limits(requests_per_minute=600)) as processor:
        ...     processor.set_limits(Limits(requests_per_minute=1200))
        ...     processor.stats().limits["requests"]
        1200.0
        """
        self._options = self._account.set_limits(limits, limits_by_model)

    def stats(self) -> Stats:
        """Where all runs of this processor stand, taken together, at this moment. Any thread may call it.

        >>> with Processor(request_url=url) as processor:
        ...     outcomes = processor.map([{"model": "m", "input": "text"}])
        ...     processor.stats().answered
        1
        """
        return self._account.stats()

    def snapshot(self) -> Snapshot:
        """What all runs have done until now, to be added up with other processors."""
        return self._account.snapshot()

    def _outcomes(
        self,
        given: NumberedRequests,
        progress: bool | None,
        ahead: Callable[[], float] | None = None,
    ) -> Iterator[Outcome]:
        account, started_at = self._account, self._clock()
        with account.run(ahead=ahead, stops=account.stops) as run:
            if progress is not False:
                run.displays.add(account.progress(run, given.fraction, progress))
            yield from run.outcomes(given)
            if run.stop_cause is not None:
                summary = account.summary(run, started_at, fraction=given.fraction())
                cause = run.stop_cause
                if isinstance(cause, InterpreterEnds):
                    return  # a traceback of a daemon thread would tell nobody anything
                if isinstance(cause, StopRequested) and summary.left != 0:
                    text = "the run was stopped before every request had its outcome"
                    cause = RunStoppedError(f"{text}: {cause}")
                _raise_cause(cause, summary)

    def stop(self, reason: str = "stopped by the caller") -> None:
        """End every run: nothing more is sent, and requests in flight may end (see ``drain_s``).

        Any thread may call it, but no signal handler. :meth:`process_file` returns as usual; its summary
        has the ``reason`` as ``stop_reason``. :meth:`imap_unordered` says what it raises.
        """
        self._account.stop(reason)

    def cancel(self, reason: str = "stopped by the caller") -> None:
        """Like :meth:`stop`, but the requests in flight are cancelled at once."""
        self._account.stop(reason, cancels=True)

    def __enter__(self) -> Processor:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for submitted requests, unless the block raised. In both cases stop every run.

        A run is cancelled if the block raised, or if nobody takes its outcomes any more.
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


def _output(path: StrPath | None) -> Path | StoredFile | None:
    """Where results or errors go."""
    if path is None:
        return None
    if str(path) == "-":
        return STDOUT
    return StoredFile(str(path)) if is_url(str(path)) else local_path(path)


def _checked_sources(job: FileJob, template: object) -> list[Source]:
    """The job's inputs without its outputs. Raise :class:`ConfigurationError` unless the files differ."""
    outputs, stored = (job.save, job.errors), StoredFile
    save, errors = (each.path if isinstance(each, stored) else each for each in outputs)
    names = (each.name if isinstance(each, stored) else each for each in outputs)
    sources = apart_from(job.sources, names)
    inputs = [source.path for source in sources if source.path is not None]
    assert save is not None
    template_path = Path(template) if isinstance(template, (str, Path)) else None
    check_paths(inputs, save, errors, job.report, template_path)
    return sources


def _number(outcome: Outcome) -> int:
    return outcome.request.number


def _raise_cause(cause: BaseException | None, summary: Summary) -> None:
    """Raise what ended the run, but no ``StopRequested``: after that, ``process_file`` returns as usual."""
    if cause is None or isinstance(cause, StopRequested):
        return
    if isinstance(cause, ParallelProcessorError):
        cause.summary = summary
    raise cause
