"""``export``: the results as a table."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import takewhile

from parallel_processor.cli.console import say, set_up_logging
from parallel_processor.cli.parser import PROGRAM, Flag, FlagParser
from parallel_processor.exceptions import ConfigurationError, ParallelProcessorError
from parallel_processor.tables.export import export_results

# fmt: off
_FLAGS = (
    Flag("columns", "", "NAMES",
          "such as custom_id,text,response.choices.0.finish_reason: columns of to_records, and paths that "
          "begin with metadata, request or response",
          default_text="all columns of to_records"),
    Flag("errors_filepath", "", "FILE", "the records of failed requests, if they have their own file"),
    Flag("overwrite", "", "", "replace the table if it exists"),
)
# fmt: on
_EPILOG = """exit codes:
  0    the table is there
  1    it could not be written, or the results not be read
  2    wrong usage"""


def build_export_parser() -> FlagParser:
    """The parser of ``export``, without the two paths that come first."""
    return FlagParser(
        f"{PROGRAM} export",
        {"flags": _FLAGS},
        usage=f"{PROGRAM} export RESULTS TABLE [--flag value ...]",
        description="Write the results as a table: TABLE ends with .csv, .tsv or .parquet.",
        epilog=_EPILOG,
    )


def export(words: Sequence[str]) -> int:
    """Run the subcommand; gives the exit code."""
    set_up_logging(logging.INFO)
    paths = list(takewhile(lambda word: not word.startswith("-"), words))
    parser = build_export_parser()
    flags = parser.parse(words[len(paths) :])
    if len(paths) != 2:
        parser.error("two files come first: the results, and the table (.csv, .tsv or .parquet)")
    results, table = paths
    try:
        count = export_results(
            results,
            table,
            errors_path=flags.errors_filepath,
            columns=flags.columns,
            overwrite=flags.overwrite,
        )
    except ConfigurationError as error:
        parser.error(str(error))
    except ParallelProcessorError as error:
        say(f"{parser.prog}: error: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    say(f"rows in {table}: {count:,}")
    return 0
