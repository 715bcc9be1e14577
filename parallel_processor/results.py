"""The results files of a job: opened and locked, and read for what is answered already."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from parallel_processor.appendfile import AppendFile
from parallel_processor.resume import AnsweredRequests, prepare_results

_log = logging.getLogger("parallel_processor")


@contextmanager
def open_files(save: Path, errors: Path | None) -> Iterator[list[AppendFile]]:
    """The results file, and the errors file if there is one, locked for this process."""
    with ExitStack() as stack:
        files = []
        for path in [save] if errors is None else [save, errors]:
            files.append(AppendFile(path))
            stack.callback(files[-1].close)
        yield files


def prepare(
    files: list[AppendFile], *, overwrite: bool, keep_failures: bool, check: Callable[[], None]
) -> AnsweredRequests:
    """What is answered already; afterwards the files hold only records that stay.

    ``check`` is called now and then, and raises to end it.
    """
    answered = AnsweredRequests()
    for file in files:
        if overwrite and file.is_regular:
            file.cut(0)
        else:
            prepare_results(file, keep_failures=keep_failures, answered=answered, check=check)
    if answered.answered:
        _log.info("%s has %s answers", files[0].path, f"{answered.answered:,}")
    if answered.failed:
        what = "stay as they are" if keep_failures else "are sent again"
        _log.info("%s requests that failed before %s", f"{answered.failed:,}", what)
    if answered.foreign:
        _log.warning("%s lines of the results are no records; they stay", f"{answered.foreign:,}")
    return answered
