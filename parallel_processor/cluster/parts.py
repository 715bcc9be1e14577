"""The output of a job: a folder with one part for each block that is done.

::

    part-START-END.jsonl           the records of a block, in the order of its lines
    part-START-END.failed.jsonl    the same, with failures among them; the next run tries these again
    journals/START-END.RUN-N…      what attempt N of run RUN has on record so far

If failures have a folder of their own, the part ``.failed.jsonl`` has the other records, and the failures
of the block are in ``part-START-END.jsonl`` there.

The names are the only state: what the parts do not cover is left to do, whatever the size of its blocks. A
range that has a journal is a block again, so that its records are used.

A journal is a results file of ``Processor.process_file``. Each attempt has its own: one that was given
up may still live, and must disturb nobody. The next attempt begins its journal with the good records of all
journals of its block, each once. ``process_file`` resumes from them as from any results file: a torn
line is no record, and a failure is sent again. A part is the block's lines joined with the journal. While a
line has no record, there is no part. It is created in one step; a part that is there already stays.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from typing import BinaryIO, NamedTuple

from parallel_processor.cluster.blocks import Block, BlockLines
from parallel_processor.cluster.folders import Folder, LocalFolder
from parallel_processor.exceptions import InputFileError
from parallel_processor.files.formats import requests_of
from parallel_processor.files.identity import identity, read_record
from parallel_processor.models import Request
from parallel_processor.options import Options

JOURNALS = "journals"
_MOST_LOOKS = 200  # at parts of an object store
_DIGITS = 15  # of a place: enough for a petabyte
_RANGE = rf"(\d{{{_DIGITS}}})-(\d{{{_DIGITS}}})"
_PART = re.compile(rf"part-{_RANGE}(\.failed)?\.jsonl")
_JOURNAL = re.compile(rf"{_RANGE}\.([0-9a-f]+)-(\d+)(?:\.\d+)?\.jsonl")


def part_name(block: Block, *, failed: bool = False) -> str:
    """The name of a block's part; ``failed`` if there are failures in it."""
    return f"part-{_range(block)}{'.failed' if failed else ''}.jsonl"


def journal_name(block: Block, run: str, attempt: int, piece: int | None = None) -> str:
    """The name of an attempt's journal, or of a piece of it, where files can't grow."""
    end = f".{piece:06d}.jsonl" if piece is not None else ".jsonl"
    return f"{_range(block)}.{run}-{attempt}{end}"


def _range(block: Block) -> str:
    return f"{block.start:0{_DIGITS}d}-{block.end:0{_DIGITS}d}"


class JournalName(NamedTuple):
    """The name of a journal, or of a piece of one, taken apart."""

    block: Block
    run: str
    attempt: int
    name: str


@dataclass(frozen=True, slots=True)
class State:
    """What a folder has."""

    done: frozenset[Block] = frozenset()  # blocks whose part has no failures
    failed: frozenset[Block] = frozenset()  # blocks whose part has failures
    journals: tuple[JournalName, ...] = ()


def read_state(folder: Folder) -> State:
    """What the folder has. Files with other names are left alone."""
    parts = [match for name in folder.names() if (match := _PART.fullmatch(name))]
    done = {Block(int(match[1]), int(match[2])) for match in parts if not match[3]}
    failed = {Block(int(match[1]), int(match[2])) for match in parts if match[3]}
    return State(frozenset(done), frozenset(failed - done), read_journals(folder.within(JOURNALS)))


def read_journals(folder: Folder) -> tuple[JournalName, ...]:
    """The journals in their folder."""
    found = [(name, _JOURNAL.fullmatch(name)) for name in folder.names()]
    return tuple(
        JournalName(Block(int(each[1]), int(each[2])), each[3], int(each[4]), name)
        for name, each in found
        if each
    )


def check_parts(
    folder: Folder, state: State, open_lines: Callable[[Block], BlockLines], options: Options
) -> None:
    """Raise :class:`InputFileError` if a line before a part was changed, which moved the bytes of the part.

    Of a part that another part follows directly, the first line is compared; of any other part, all lines.
    A failure is not compared: its line may have been corrected by one of as many bytes. On an object
    store, where each look takes a while, at most 200 of the first kind are looked at.
    """
    blocks = sorted(state.done | state.failed)
    every = 1 if isinstance(folder, LocalFolder) else -(-len(blocks) // _MOST_LOOKS) or 1
    for number, block in enumerate(blocks):
        is_followed = number + 1 < len(blocks) and blocks[number + 1].start == block.end
        if is_followed and number % every:
            continue
        with (
            folder.open(part_name(block, failed=block in state.failed)) as part,
            open_lines(block) as lines,
        ):
            requests = map(identity, requests_of(lines, options, None))
            most = 1 if is_followed else None
            records = filter(None, map(read_record, part))
            if block in state.failed:
                good = islice((record.identity for record in records if record.ok), most)
                fits = all(each in requests for each in good)  # in the same order
            else:
                pairs = zip_longest((record.identity for record in records), requests)
                fits = all(one == other for one, other in islice(pairs, most))
            if not fits:
                raise InputFileError(
                    f"the part from byte {block.start} is not of the lines there: {lines.name} was "
                    "changed. Lines may be added at its end alone. Undo the change; or name another folder "
                    "for this file, or give --overwrite, and everything is sent again"
                )


class Place(NamedTuple):
    """Where a record is."""

    file: int
    start: int
    size: int


@dataclass(slots=True)
class Records:
    """The records of several files, by the identity of their requests. For one thread.

    It takes about 300 bytes a record.
    """

    files: list[BinaryIO] = field(default_factory=list)
    _good: dict[bytes, list[Place]] = field(default_factory=dict)
    _failed: dict[bytes, list[Place]] = field(default_factory=dict)
    _seen: Counter[bytes] = field(default_factory=Counter)

    def add(self, file: BinaryIO) -> int:
        """Add what ``file`` has and the files before it don't; how many good records those are.

        Records that are equal byte for byte in two files are copies: one attempt took over from the other.
        """
        self.files.append(file)
        here: Counter[bytes] = Counter()
        number, start, added = len(self.files) - 1, 0, 0
        for line in file:
            place, start = Place(number, start, len(line)), start + len(line)
            record = read_record(line) if line.endswith(b"\n") else None
            if record is None or record.ok is None:
                continue
            digest = hashlib.blake2b(line, digest_size=12).digest()
            here[digest] += 1
            if here[digest] > self._seen[digest]:
                self._seen[digest] += 1
                added += record.ok
                (self._good if record.ok else self._failed).setdefault(record.identity, []).append(
                    place
                )
        return added

    def take(self, request: Request) -> Match | None:
        """Where the record of ``request`` is, a good one if there is one. It is used up."""
        key = identity(request)
        for records, ok in ((self._good, True), (self._failed, False)):
            if places := records.get(key):
                return Match(request.number, places.pop(0), ok)
        return None

    def read(self, place: Place) -> bytes:
        """The record at ``place``, with its line end."""
        file = self.files[place.file]
        file.seek(place.start)
        return file.read(place.size)

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()


class Match(NamedTuple):
    """A line and its record."""

    number: int  # the line's place in the requests file
    place: Place  # of its record
    ok: bool


def match(lines: BlockLines, options: Options, records: Records) -> Iterator[Match | None]:
    """The record of each line in their order; ``None`` for a line that has none. Reads no record yet."""
    with lines:
        for request in requests_of(lines, options, None):
            yield records.take(request)


def commit(
    folder: Folder,
    block: Block,
    matches: Sequence[Match],
    records: Records,
    errors: Folder | None = None,
) -> None:
    """Create the part of a block in which each line has a record.

    A part without failures replaces one with failures, and stays if it is there already. Failures go to
    ``errors``, if that is a folder of their own.
    """
    chunks = (records.read(found.place) for found in matches)
    if all(found.ok for found in matches):
        folder.create(part_name(block), chunks)
        folder.remove(part_name(block, failed=True))
        if errors is not None:
            errors.remove(part_name(block))
    elif part_name(block) not in folder.names():
        if errors is not None:
            failures = (records.read(found.place) for found in matches if not found.ok)
            errors.create(part_name(block), failures, replace=True)
            chunks = (records.read(found.place) for found in matches if found.ok)
        folder.create(part_name(block, failed=True), chunks, replace=True)


def failures_in(folder: Folder, block: Block, errors: Folder | None = None) -> int:
    """How many failures the part of a block with failures has, those in ``errors`` included."""
    found = 0
    for home, name in ((folder, part_name(block, failed=True)), (errors, part_name(block))):
        if home is None:
            continue
        with suppress(FileNotFoundError), home.open(name) as file:
            records = map(read_record, file)
            found += sum(record is not None and record.ok is False for record in records)
    return found
