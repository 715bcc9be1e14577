"""The parsers of the subcommands: rows of the table of flags, and flags of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from parallel_processor.cli.flags import EPILOG, FLAGS, PROGRAM, READERS, ROWS, Flag, FlagParser

_VERIFY_EPILOG = """exit codes:
  0    every request has exactly one answer; records of other requests do no harm
  1    some have none, or more than one, or share a custom_id with another request
  2    wrong usage"""
# fmt: off
_RAY_FLAGS = (
    Flag("address", "", "HOST", "the Ray cluster: auto, or the address of its head",
          default_text="none: Ray is started on this machine, for this run"),
    Flag("num_workers", "", "N", "how many workers send",
          default_text="one for each CPU", read=READERS[int]),
    Flag("block_bytes", "", "N", "how much of the requests file a worker gets at a time",
          default_text="what suits the file, at most 16 MiB", read=READERS[int]),
)
_NOT_ON_RAY = ("errors_filepath", "metrics_port", "output_format", "model")
# fmt: on


def build_verify_parser() -> FlagParser:
    """The parser of ``verify``, which has some of the same flags."""
    names = ("requests_filepath", "save_filepath", "errors_filepath", "request_url", "model")
    return FlagParser(
        f"{PROGRAM} verify",
        {"flags": [row for row in ROWS if row.name in names]},
        usage=f"{PROGRAM} verify --requests_filepath FILE [--flag value ...]",
        description="Check that the results have exactly one answer for every request.",
        epilog=_VERIFY_EPILOG,
    )


def build_ray_parser() -> FlagParser:
    """The parser of ``run-on-ray``, which has nearly all flags of the command, and some of its own."""
    flags: dict[str, Sequence[Flag]] = {"workers": _RAY_FLAGS}
    flags |= {
        title: [_for_parts(row) for row in rows if row.name not in _NOT_ON_RAY]
        for title, rows in FLAGS.items()
    }
    return FlagParser(
        f"{PROGRAM} run-on-ray",
        flags,
        usage=f"{PROGRAM} run-on-ray --requests_filepath FILE [--flag value ...]",
        description="Send a JSONL file of LLM API requests by several workers, under one account's limits.",
        epilog=EPILOG,
    )


def _for_parts(row: Flag) -> Flag:
    if row.name == "save_filepath":
        return replace(row, metavar="FOLDER", help="the parts", default_text="{requests}_results")
    return row
