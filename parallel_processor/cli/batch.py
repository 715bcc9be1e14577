"""``to-batch`` and ``from-batch``: files for a Batch API, and what it sends back. Nothing is sent."""

from __future__ import annotations

import glob
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from parallel_processor.batches.merge import Merged, merge
from parallel_processor.batches.split import split
from parallel_processor.cli.commands import build_from_batch_parser, build_to_batch_parser
from parallel_processor.cli.console import say, set_up_logging, show
from parallel_processor.cli.flags import with_flag_names
from parallel_processor.exceptions import (
    ConfigurationError,
    InputFileError,
    ParallelProcessorError,
    ResultsFileError,
)
from parallel_processor.files.requests_file import plain_stem
from parallel_processor.files.sources import STDIN


def to_batch(words: Sequence[str]) -> int:
    """Write the files to upload, and say what is in each; gives the exit code."""
    parser = build_to_batch_parser()
    flags = parser.parse(words)
    set_up_logging(logging.INFO)
    names = flags.requests_filepath
    save = Path(flags.save_filepath) if flags.save_filepath else _beside(names)
    if save is None:
        parser.error("the requests are no single file: name the files with --save_filepath")
    for name in ("max_lines", "max_bytes"):
        if getattr(flags, name) < 1:
            parser.error(f"--{name} must be at least 1")
    try:
        made = split(
            names,
            save,
            request_url=flags.request_url,
            model=flags.model,
            max_lines=flags.max_lines,
            max_bytes=flags.max_bytes,
            overwrite=flags.overwrite,
        )
    except ConfigurationError as error:
        parser.error(with_flag_names(str(error)))
    except (InputFileError, ResultsFileError) as error:
        say(f"{parser.prog}: error: {error}")
        return 2 if isinstance(error, InputFileError) else 1
    if not made:
        say(f"{', '.join(names)} has no requests: nothing was written")
    for file in made:
        size = f"{file.size_bytes / 1e6:,.1f} MB"
        show(f"{file.path}: {file.lines:,} lines, {size}, {file.model}, {file.endpoint}")
    return 0


def _beside(names: Sequence[str]) -> Path | None:
    """``name_batch.jsonl`` beside the only file, if it is one of this machine."""
    path = Path(names[0])
    is_file = len(names) == 1 and names[0] != STDIN and "://" not in names[0]
    if not is_file or (glob.has_magic(names[0]) and not path.exists()):
        return None
    return path.parent / f"{plain_stem(path)}_batch.jsonl"


def from_batch(words: Sequence[str]) -> int:
    """Write the results file, and say what is in it; gives the exit code."""
    parser = build_from_batch_parser()
    flags = parser.parse(words)
    set_up_logging(logging.INFO)
    try:
        merged = merge(
            [Path(path) for path in flags.batch_filepath],
            Path(flags.save_filepath),
            requests_path=flags.requests_filepath,
            model=flags.model,
            output_format=flags.output_format,
            overwrite=flags.overwrite,
        )
    except ParallelProcessorError as error:
        parser.error(str(error))
    _tell(merged, flags.save_filepath)
    return 0 if merged.ok else 1


def _tell(merged: Merged, save_path: str) -> None:
    counts = asdict(merged)
    first_torn = counts.pop("first_torn")
    show("\n".join(f"{name:>9} {count:,}" for name, count in counts.items()))
    if first_torn:
        say(f"{first_torn} is no result, and was left out, as are others like it")
    say(f"results are in {save_path}")
