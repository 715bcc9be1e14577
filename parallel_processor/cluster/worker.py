"""What each worker does: it sends one block after the other by ``Processor.process_file``.

A worker knows nothing of other workers, or of the engine that runs it. Its limits are those of its one
``Processor``. An engine calls :meth:`BlockWorker.run` in a thread of its own for each attempt, and the
other methods meanwhile. Two attempts overlap: while the last requests of a block are in flight, the next
block is read, so that no block waits for the slowest request of the one before.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import uuid
from collections import deque
from contextlib import suppress

from parallel_processor.cluster.blocks import Block, BlockLines
from parallel_processor.cluster.folders import Folder, open_folder, open_input
from parallel_processor.cluster.job import Attempt, BlockReport, End, Job, Standing
from parallel_processor.cluster.journals import Journal
from parallel_processor.cluster.parts import Match, Records, commit, match, part_name
from parallel_processor.exceptions import (
    InputFileError,
    ParallelProcessorError,
    RunStoppedError,
    stop_cause_of,
)
from parallel_processor.files.records import read_outcome
from parallel_processor.processor import Processor
from parallel_processor.report.report_file import request_note
from parallel_processor.report.samples import RequestNote
from parallel_processor.report.summary import Summary
from parallel_processor.runtime.locks import InterruptSafeLock

_MAX_NOTES = 20
_MAX_LOG = 100  # messages that are kept for the driver
_REQUEST = re.compile(r"^(|[\d,]+ more like this: )request (\d+)\b")


class _Log(logging.Handler):
    """Keeps what is logged until the driver asks."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._records: deque[tuple[int, str]] = deque(maxlen=_MAX_LOG)

    def emit(self, record: logging.LogRecord) -> None:
        text = _REQUEST.sub(r"\1the request at byte \2", record.getMessage())
        self._records.append((record.levelno, text))

    def taken(self) -> tuple[tuple[int, str], ...]:
        """What was logged since the last call."""
        return tuple(self._records.popleft() for _ in range(len(self._records)))


class BlockWorker:
    """Sends blocks. Any thread may call any method."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._folder = open_folder(job.folder)
        self._errors = open_folder(job.errors) if job.errors else None
        self._processor = Processor(**job.key.complete(job.settings))
        self._incarnation = f"{uuid.uuid4().hex}-{os.getpid()}"
        self._lock = InterruptSafeLock()  # guards the fields below
        self._lines: dict[int, BlockLines] = {}  # what is being read, by attempt
        self._retaken = 0  # records of lost attempts of this run, which count as answered already
        self._stops = 0
        self._log = _Log()
        logging.getLogger("parallel_processor").addHandler(self._log)

    def run(self, attempt: Attempt) -> BlockReport:
        """Send what is left of a block, and create its part. Raises nothing."""
        try:
            return self._run(attempt)
        except ParallelProcessorError as error:
            done = _line_count(self._folder, part_name(attempt.block))
            if (
                done is not None
            ):  # another attempt has created the part meanwhile, and removed journals
                return BlockReport(attempt=attempt, end=End.DONE, lines=done)
            return _report_of(attempt, error)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            return BlockReport(attempt=attempt, end=End.FAILED, error=text)

    def standing(self) -> Standing:
        """How far it is."""
        with self._lock:
            lines, retaken = dict(self._lines), self._retaken
        snapshot = self._processor.snapshot()
        already = max(snapshot.counts.already_answered - retaken, 0)
        counts = dataclasses.replace(snapshot.counts, already_answered=already)
        return Standing(
            incarnation=self._incarnation,
            snapshot=dataclasses.replace(snapshot, counts=counts),
            read_bytes={number: each.read_bytes for number, each in lines.items()},
            reading=frozenset(number for number, each in lines.items() if not each.is_read),
            log=self._log.taken(),
        )

    def stop(self, reason: str, *, cancels: bool = False) -> None:
        """End the attempts that are under way. What is in flight may end, unless it is cancelled."""
        with self._lock:
            self._stops += 1
        (self._processor.cancel if cancels else self._processor.stop)(reason)

    def close(self) -> None:
        """End what is under way at once."""
        self.stop("the worker was closed", cancels=True)
        logging.getLogger("parallel_processor").removeHandler(self._log)

    def _run(self, attempt: Attempt) -> BlockReport:
        stops = self._stops
        done = _line_count(self._folder, part_name(attempt.block))
        if done is not None:
            return BlockReport(attempt=attempt, end=End.DONE, lines=done)
        lines = self._open(attempt.block)
        with self._lock:
            self._lines[attempt.number] = lines
        try:
            with Journal(self._folder, self._job, attempt) as journal:
                already = self._take_over(attempt.block, journal)
                if self._stops != stops:
                    return BlockReport(attempt=attempt, end=End.STOPPED)
                with journal.uploading():
                    summary = self._processor.process_file(lines, journal.path, progress=False)
                if summary.stop_reason and summary.left != 0:
                    return BlockReport(attempt=attempt, end=End.STOPPED, error=summary.stop_reason)
                return self._commit(attempt, journal, summary, already)
        finally:
            with self._lock:
                del self._lines[attempt.number]

    def _open(self, block: Block) -> BlockLines:
        return BlockLines(open_input(self._job.source), block, self._job.source)

    def _take_over(self, block: Block, journal: Journal) -> int:
        """Begin the journal with the good records of earlier attempts; how many are of earlier runs."""
        sources: list[tuple[str, Folder, str]] = [("", self._folder, part_name(block, failed=True))]
        sources += [(found.run, journal.folder, found.name) for found in journal.earlier()]
        records, already, retaken = Records(), 0, 0
        try:
            for run, folder, name in sorted(sources, key=lambda each: each[0] == self._job.run):
                with suppress(FileNotFoundError):  # another attempt has created the part meanwhile
                    count = records.add(folder.open(name))
                    retaken += count if run == self._job.run else 0
                    already += count if run != self._job.run else 0
            if already + retaken:
                found = match(self._open(block), self._processor.options, records)
                good = (records.read(each.place) for each in found if each is not None and each.ok)
                journal.begin(good)
        finally:
            records.close()
        with self._lock:
            self._retaken += retaken
        return already

    def _commit(
        self, attempt: Attempt, journal: Journal, summary: Summary, already: int
    ) -> BlockReport:
        records = Records()
        try:
            records.add(journal.path.open("rb"))
            found = list(match(self._open(attempt.block), self._processor.options, records))
            matches = [each for each in found if each is not None]
            if len(matches) < len(found):
                text = f"{len(found) - len(matches)} lines have no record"
                return BlockReport(attempt=attempt, end=End.FAILED, error=text)
            commit(self._folder, attempt.block, matches, records, self._errors)
            notes = _notes(matches, records)
        finally:
            records.close()
        journal.remove_all()
        return BlockReport(
            attempt=attempt,
            end=End.DONE,
            lines=len(matches),
            failed=sum(not each.ok for each in matches),
            already=already,
            errors_by_kind=summary.errors_by_kind,
            notes=notes,
        )


def _report_of(attempt: Attempt, error: ParallelProcessorError) -> BlockReport:
    """The report of an attempt that ``error`` has ended."""
    models = error.models if isinstance(error, RunStoppedError) else ()
    end = End.LEFT_OUT if models else End.FATAL
    if isinstance(error, InputFileError) and isinstance(error.__cause__, OSError):
        end = End.FAILED  # a network, say
    return BlockReport(
        attempt=attempt,
        end=end,
        error=str(error),
        error_class=type(error).__name__,
        stop_cause=stop_cause_of(error),
        models=models,
    )


def _line_count(folder: Folder, name: str) -> int | None:
    """How many lines a file has; ``None`` if it is not there."""
    try:
        with folder.open(name) as file:
            return sum(1 for _ in file)
    except FileNotFoundError:
        return None


def _notes(matches: list[Match], records: Records) -> tuple[RequestNote, ...]:
    """The first failures, as the report names them."""
    failures = [found for found in matches if not found.ok][:_MAX_NOTES]
    outcomes = [read_outcome(records.read(found.place), found.number) for found in failures]
    return tuple(request_note(outcome) for outcome in outcomes if outcome is not None)
