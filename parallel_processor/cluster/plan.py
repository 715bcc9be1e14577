"""What is left to do: the blocks that the output's folder has no part for."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from parallel_processor.cluster.blocks import Block, cut, text_of, uncovered
from parallel_processor.cluster.folders import Folder, LocalFolder, open_input
from parallel_processor.cluster.parts import JOURNALS, State, part_name, read_state
from parallel_processor.exceptions import ConfigurationError, InputFileError
from parallel_processor.files.shape import why_not_in_blocks, why_not_jsonl

_HEAD_BYTES = 256 * 1024
_LEAST_BLOCK_BYTES, _MOST_BLOCK_BYTES = 4 * 1024, 16 * 1024 * 1024
_BLOCKS_A_WORKER = 8  # so that all workers end at about the same time


def default_folder(requests_path: str) -> str:
    """``name_results`` beside ``name.jsonl``."""
    head, slash, name = requests_path.rpartition("/")
    return f"{head}{slash}{PurePosixPath(name).stem.removesuffix('.jsonl')}_results"


def look_at_input(path: str, size: int) -> bool:
    """Check that the file is JSONL as a whole; true if it is compressed, and so is one block.

    Raises :class:`InputFileError` for another format. Reads its beginning alone.
    """
    try:
        with open_input(path) as file:
            text, is_compressed = text_of(file, path)
            head = text.read(_HEAD_BYTES)
    except OSError as error:
        raise InputFileError(
            f"can't read {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    is_whole = len(head) < _HEAD_BYTES if is_compressed else len(head) >= size
    where = Path(path)
    reason = why_not_jsonl(head, is_whole, where) or why_not_in_blocks(head, where)
    if reason is not None:
        raise InputFileError(reason)
    return is_compressed


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The blocks of one run. ``redo`` are those that have a journal, or a part with failures."""

    redo: Sequence[Block]
    gaps: Sequence[Block]  # between them and the parts that are done
    block_bytes: int

    @property
    def total_bytes(self) -> int:
        """The size of all blocks together."""
        return sum(each.size for each in (*self.redo, *self.gaps))

    @property
    def count(self) -> int:
        """The number of blocks."""
        return len(self.redo) + sum(-(-gap.size // self.block_bytes) for gap in self.gaps)

    def blocks(self) -> Iterator[Block]:
        """The blocks in the file's order, made as they are taken."""
        fresh = (block for gap in self.gaps for block in cut(gap, self.block_bytes))
        return heapq.merge(self.redo, fresh)


def make_plan(
    state: State,
    size: int,
    *,
    workers: int,
    block_bytes: int | None,
    keep_failures: bool,
    is_compressed: bool,
) -> Plan:
    """What ``state`` leaves of a file of ``size`` bytes. Its parts may have any sizes.

    Raises :class:`InputFileError` if they don't fit the file.
    """
    redo = [] if keep_failures else sorted(state.failed)
    kept = [*state.done, *(state.failed if keep_failures else ())]
    try:
        list(uncovered([*kept, *redo], size))
    except InputFileError as error:
        text = f"{error}. Name another folder, or start afresh with --overwrite"
        raise InputFileError(text) from None
    for block in sorted({each.block for each in state.journals} - {*kept, *redo}):
        others = (*kept, *redo)
        if block.end <= size and all(b.end <= block.start or block.end <= b.start for b in others):
            redo.append(block)
    gaps = list(uncovered([*kept, *redo], size))
    if is_compressed and any(gap.size < size for gap in gaps):
        raise InputFileError(
            "the parts are of another file: this one is compressed, and one block. Name another folder, or "
            "start afresh with --overwrite"
        )
    left = sum(each.size for each in (*redo, *gaps))
    wanted = block_bytes or -(-left // (workers * _BLOCKS_A_WORKER))
    chosen = wanted if block_bytes else min(max(wanted, _LEAST_BLOCK_BYTES), _MOST_BLOCK_BYTES)
    return Plan(redo=sorted(redo), gaps=gaps, block_bytes=size if is_compressed else chosen)


def clean(folder: Folder, state: State, errors: Folder | None = None) -> None:
    """Remove what no run will use: journals of blocks that are done, and failures likewise.

    ``errors`` is the folder that has the failures, if it is another one.
    """
    journals = folder.within(JOURNALS)
    for each in state.journals:
        if each.block in state.done:
            journals.remove(each.name)
    if errors is not None:
        for block in read_state(errors).done & state.done:
            errors.remove(part_name(block))
    for home in (folder, journals, errors):
        if isinstance(home, LocalFolder):
            home.remove_unfinished()
    if isinstance(journals, LocalFolder) and not journals.names() and journals.path.is_dir():
        journals.path.rmdir()


def empty(folder: Folder, state: State, errors: Folder | None = None) -> None:
    """Remove all parts and journals, for a fresh start. Other files stay."""
    if errors is not None:
        for block in read_state(errors).done:
            errors.remove(part_name(block))
    for block in state.done | state.failed:
        for failed in (False, True):
            folder.remove(part_name(block, failed=failed))
    for each in state.journals:
        folder.within(JOURNALS).remove(each.name)


def check_folders(path: str, errors_path: str) -> None:
    """Raise :class:`ConfigurationError` if a file is where a folder should be, or both are the same."""
    for each, name in ((path, "results"), (errors_path, "failures")):
        if each and "://" not in each and Path(each).exists() and not Path(each).is_dir():
            raise ConfigurationError(
                f"{each} is a file: the {name} of several workers need a folder"
            )
    if errors_path and errors_path.rstrip("/") == path.rstrip("/"):
        raise ConfigurationError(f"{path} is the folder of the results: failures need another one")
