"""Checks that the parts of a folder have one record for each line of the requests file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import suppress

from parallel_processor.cluster.blocks import BlockLines, uncovered
from parallel_processor.cluster.folders import Folder, input_size, open_folder, open_input
from parallel_processor.cluster.parts import part_name, read_state
from parallel_processor.cluster.plan import check_folders
from parallel_processor.files.identity import Record
from parallel_processor.files.verify import Verification, records_in, verify_lines
from parallel_processor.options import DEFAULT_REQUEST_URL, Options

_MAX_CONFLICTS = 100


def verify_parts(
    requests_path: str,
    folder_path: str,
    errors_path: str | None = None,
    *,
    request_url: str = DEFAULT_REQUEST_URL,
    allowed_hosts: Sequence[str] = (),
) -> Verification:
    """Compare the parts in a folder with the requests, block by block; lines without a part are missing.

    ``errors_path`` is the folder of the failures, if they have one; without it, these are missing.
    ``conflicts`` are numbers of bytes, from 1: a record is of its block alone, so that equal ids in two
    blocks do no harm. It takes about 300 bytes of memory for each line of a block.

    Raises :class:`InputFileError` if the parts don't fit the file, and :class:`ConfigurationError` if a
    folder is a file.
    """
    check_folders(folder_path, errors_path or "")
    options = Options(request_url=request_url, allowed_hosts=allowed_hosts)
    folder, size = open_folder(folder_path), input_size(requests_path)
    errors = open_folder(errors_path) if errors_path else None
    state = read_state(folder)
    covered = sorted(state.done | state.failed)
    total = Verification(lines=0, answered=0, failed=0, missing=0, doubled=0, torn=0, foreign=0)
    gaps = list(uncovered(covered, size))
    for block in sorted([*covered, *gaps]):
        files: list[tuple[Folder, str]] = []
        if block in covered:
            files = [(folder, part_name(block, failed=block in state.failed))]
        if block in state.failed and errors is not None:
            files.append((errors, part_name(block)))

        def records(files: list[tuple[Folder, str]] = files) -> Iterator[Record | None]:
            return _records(files)

        lines = BlockLines(open_input(requests_path), block, requests_path)
        total = _added(total, verify_lines(lines, records, options))
    return total


def _records(files: list[tuple[Folder, str]]) -> Iterator[Record | None]:
    for folder, name in files:
        with suppress(FileNotFoundError), folder.open(name) as file:
            yield from records_in(file)


def _added(one: Verification, other: Verification) -> Verification:
    names = [each.name for each in dataclasses.fields(Verification) if each.name != "conflicts"]
    sums = {name: getattr(one, name) + getattr(other, name) for name in names}
    return Verification(**sums, conflicts=(*one.conflicts, *other.conflicts)[:_MAX_CONFLICTS])
