"""The parsers of the subcommands: rows of the table of flags, and flags of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast, get_args

from parallel_processor.batches.split import MOST_BYTES, MOST_LINES
from parallel_processor.cli.export import build_export_parser
from parallel_processor.cli.flags import EPILOG, FLAGS, ROWS, TABLE_FLAGS
from parallel_processor.cli.parser import PROGRAM, READERS, Flag, FlagParser
from parallel_processor.cli.plan import build_plan_parser
from parallel_processor.options import OutputFormat

_VERIFY_EPILOG = """exit codes:
  0    every request has exactly one answer; records of other requests do no harm
  1    some have none, or more than one, or share a custom_id with another request
  2    wrong usage"""
# fmt: off
_FOR_VERIFY = {
    "save_filepath": {"help": "the results, or the folder of their parts"},
    "errors_filepath": {
        "help": "the records of failed requests, or the folder of their parts, if the run had that flag",
        "default_text": "they are in the results",
    },
}
_RAY_FLAGS = (
    Flag("address", "", "HOST:PORT", "the Ray cluster: auto, or the address of its head",
          default_text="none: Ray is started on this machine, for this run"),
    Flag("num_workers", "", "N", "how many workers send",
          default_text="one for each CPU", read=READERS[int]),
    Flag("block_bytes", "", "N", "how much of the requests file a worker gets at a time",
          default_text="what suits the file, at most 16 MiB", read=READERS[int]),
)
_ON_RAY: Mapping[str, Mapping[str, object]] = {  # what a flag is there, if that differs
    "requests_filepath": {"help": "the requests, one JSON object a line: a path that each worker can "
                                  "read, or a URL such as s3://BUCKET/NAME", "repeatable": False,
                          "is_single": True},
    "save_filepath": {"metavar": "FOLDER", "help": "the folder of the results' parts, a path or a URL",
                      "default_text": "{requests}_results"},
    "errors_filepath": {"metavar": "FOLDER", "help": "a folder for the records of failed requests",
                        "default_text": "they stay in the parts"},
    "overwrite": {"help": "delete the parts in the folder, and send everything again"},
    "api_key": {"help": "the key; without --address alone"},
    "api_key_file": {"help": "a file on each node with the key in it, or with several, one a line"},
    "ca_bundle": {"help": "whose certificates to trust: a file or directory of authorities on each node, "
                          "or system for its operating system's"},
    "limits": {"help": 'a JSON file of limits by model, such as {"gpt-4o*": {"requests_per_minute": 500}}; '
                       "it is read once, at the start"},
    "limiter": {"default_text": "an actor on the Ray cluster, for all jobs there"},
    "stop_after_equal_failures": {"help": "stop if N requests of a model in one block fail alike before "
                                          "one is answered; 0 for never"},
    "max_workers": {"help": "most requests in flight of each worker; ulimit -n may allow fewer"},
    "processes": {"help": "processes of each worker, 1 to 64; --num_workers does the same and more"},
    "dedupe": {"help": "send equal requests of one block once, and record the answer for each"},
    "metrics_port": {"help": "serve metrics of all workers together to Prometheus; without HOST to this "
                             "machine alone"},
}
_NOT_ON_RAY = ("output_format", "model", "ordered", *TABLE_FLAGS)
_TO_BATCH_FLAGS = (
    Flag("requests_filepath", "", "FILE", "the requests, one JSON object a line; - for standard input, a "
         "pattern, or a URL; may be given several times", required=True, repeatable=True),
    Flag("save_filepath", "", "FILE.jsonl", "where to: FILE-001.jsonl, FILE-002.jsonl …",
         default_text="{requests}_batch.jsonl"),
    Flag("request_url", "", "URL", "the endpoint of requests that name none, as /v1/chat/completions"),
    Flag("model", "", "NAME", "the model of requests that name none"),
    Flag("max_lines", "", "N", "most lines of a file, and most inputs of embeddings in it", MOST_LINES),
    Flag("max_bytes", "", "N", "most bytes of a file", MOST_BYTES),
    Flag("overwrite", "", "", "replace the files that an earlier command has written"),
)
_FROM_BATCH_FLAGS = (
    Flag("batch_filepath", "", "FILE", "the output and error files of the batches", required=True,
         several=True),
    Flag("save_filepath", "", "FILE", "the results", required=True),
    Flag("requests_filepath", "", "FILE", "the requests, as they were given to to-batch; the results get "
         "their order", repeatable=True),
    Flag("output_format", "", "", "the form of the results: that of each request (auto), lines of a "
         "Batch output file (batch), or the cookbook's arrays", "auto", choices=get_args(OutputFormat)),
    Flag("model", "", "NAME", "the model of requests that name none"),
    Flag("overwrite", "", "", "replace the results file"),
)
# fmt: on
_TO_BATCH_EPILOG = """A file has one model and one endpoint. Ids are checked to be unique. Nothing is sent.

exit codes:
  0    the files are written
  1    they could not be written
  2    wrong usage, or lines that can't be uploaded: nothing was written"""
_FROM_BATCH_EPILOG = """Each request gets one record: its answer if a file has one, else its failure. Then
parallel-processor with this results file sends what has no answer yet.

exit codes:
  0    every request has its answer
  1    some have none, or some lines were no results of any request
  2    wrong usage"""


def build_verify_parser() -> FlagParser:
    """The parser of ``verify``, which has some of the same flags."""
    names = (
        "requests_filepath",
        "save_filepath",
        "errors_filepath",
        "request_url",
        "allow_host",
        "model",
        *TABLE_FLAGS,
    )
    return FlagParser(
        f"{PROGRAM} verify",
        {
            "flags": [
                replace(row, **cast(Any, _FOR_VERIFY.get(row.name, {})))
                for row in ROWS
                if row.name in names
            ]
        },
        usage=f"{PROGRAM} verify --requests_filepath FILE [--flag value ...]",
        description="Check that the results have exactly one answer for every request.",
        epilog=_VERIFY_EPILOG,
    )


def build_to_batch_parser() -> FlagParser:
    """The parser of ``to-batch``."""
    return FlagParser(
        f"{PROGRAM} to-batch",
        {"flags": _TO_BATCH_FLAGS},
        usage=f"{PROGRAM} to-batch --requests_filepath FILE [--flag value ...]",
        description="Make files of the requests to upload to OpenAI's Batch API, or to one like it.",
        epilog=_TO_BATCH_EPILOG,
    )


def build_from_batch_parser() -> FlagParser:
    """The parser of ``from-batch``."""
    return FlagParser(
        f"{PROGRAM} from-batch",
        {"flags": _FROM_BATCH_FLAGS},
        usage=f"{PROGRAM} from-batch --batch_filepath FILE [FILE ...] --save_filepath FILE",
        description="Make one results file of the output and error files of batches.",
        epilog=_FROM_BATCH_EPILOG,
    )


def build_ray_parser() -> FlagParser:
    """The parser of ``run-on-ray``, which has nearly all flags of the command, and some of its own."""
    flags: dict[str, Sequence[Flag]] = {"workers": _RAY_FLAGS}
    flags |= {
        title: [
            replace(row, **cast(Any, _ON_RAY.get(row.name, {})))
            for row in rows
            if row.name not in _NOT_ON_RAY
        ]
        for title, rows in FLAGS.items()
        if title != "tables"
    }
    return FlagParser(
        f"{PROGRAM} run-on-ray",
        flags,
        usage=f"{PROGRAM} run-on-ray --requests_filepath FILE [--flag value ...]",
        description="Send a JSONL file of LLM API requests by several workers, under one account's "
        "limits.\nRun the same command again after any stop: answered requests are not sent again.",
        epilog=EPILOG.replace(
            "some requests failed, or", "some requests failed, blocks were set aside, or"
        ),
    )


PARSERS = {
    "plan": build_plan_parser,
    "verify": build_verify_parser,
    "to-batch": build_to_batch_parser,
    "from-batch": build_from_batch_parser,
    "export": build_export_parser,
    "run-on-ray": build_ray_parser,
}
"""What makes the parser of each subcommand."""
