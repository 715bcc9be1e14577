"""The journal of one attempt: where ``process_file`` writes its records until the block is done."""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from parallel_processor.cluster.folders import Folder, LocalFolder
from parallel_processor.cluster.job import Attempt, Job
from parallel_processor.cluster.parts import JOURNALS, JournalName, journal_name, read_journals
from parallel_processor.exceptions import ResultsFileError

_log = logging.getLogger("parallel_processor")


class Journal:
    """A file in the output's folder. For one thread.

    On an object store files can't grow. There the journal is a file of this machine. What was added to
    it becomes an object of its own every ``upload_s`` seconds (:meth:`uploading`).
    """

    def __init__(self, folder: Folder, job: Job, attempt: Attempt) -> None:
        self.folder = folder.within(JOURNALS)
        self._job, self._attempt = job, attempt
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if isinstance(self.folder, LocalFolder):
            self.folder.path.mkdir(parents=True, exist_ok=True)
            home = self.folder.path
        else:
            self._temporary = tempfile.TemporaryDirectory(prefix="parallel-processor-")
            home = Path(self._temporary.name)
        self.path = home / journal_name(attempt.block, job.run, attempt.number)
        self._uploaded_bytes = self._pieces = 0

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        if self._temporary is not None:
            self._temporary.cleanup()

    def earlier(self) -> list[JournalName]:
        """The journals of other attempts at the block, in their order."""
        block = self._attempt.block
        found = [each for each in read_journals(self.folder) if each.block == block]
        mine = (self._job.run, self._attempt.number)
        return [each for each in found if (each.run, each.attempt) != mine]

    def begin(self, records: Iterable[bytes]) -> None:
        """Write the first ``records``, before anything else is in the journal."""
        with self.path.open("xb") as file:
            file.writelines(records)

    def remove_all(self) -> None:
        """Remove this journal and those of earlier attempts: the block has its part.

        A later attempt of the run is under way: this one was given up, because its worker seemed lost.
        """
        block, number, run = self._attempt.block, self._attempt.number, self._job.run
        for found in read_journals(self.folder):
            if found.block == block and (found.run != run or found.attempt <= number):
                self.folder.remove(found.name)

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """While the block runs, and at its end, upload what is new."""
        if self._temporary is None:
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(
            target=self._upload_until, args=[ended], name="parallel-processor-upload", daemon=True
        )
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _upload_until(self, ended: threading.Event) -> None:
        is_over = False
        while not is_over:
            is_over = ended.wait(self._job.upload_s)
            try:
                self._upload()
            except (OSError, ResultsFileError) as error:  # it is tried again
                _log.warning("can't upload a journal: %s", error)

    def _upload(self) -> None:
        """Upload the whole lines that are new, as one more piece."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._uploaded_bytes)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        if data:
            attempt, run = self._attempt, self._job.run
            name = journal_name(attempt.block, run, attempt.number, self._pieces)
            self.folder.create(name, [data])
            self._pieces += 1
            self._uploaded_bytes += len(data)
