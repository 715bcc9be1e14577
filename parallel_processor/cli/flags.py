"""The flags of the command: one table, from which come the parsers, ``--help`` and the settings.

A new flag is a row. Its type and default are those of the setting that it names. The cookbook's nine
flags keep their names, which are other than those of the settings.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, get_args

from parallel_processor.cli.actions import AndReplicas
from parallel_processor.cli.headers import read_headers, read_query
from parallel_processor.cli.json_schema import read_schema
from parallel_processor.cli.limits_file import read_limits_file
from parallel_processor.cli.parser import COMMANDS, PROGRAM, READERS, Flag, FlagParser, reader
from parallel_processor.options import Limits, OutputFormat, RetryPolicy, Settings, TokenAccounting

_USAGE = f"""{PROGRAM} --requests_filepath FILE [--flag value ...]
       {PROGRAM} COMMAND [--flag value ...]"""
_DESCRIPTION = """Send a JSONL file of LLM API requests, as fast as the account's rate limits permit.
Run the same command again after any stop: answered requests are not sent again.

commands:
""" + "\n".join(f"  {name:<10} {text} ({name} --help)" for name, text in COMMANDS.items())
EPILOG = """In the name of a flag, - and _ are the same.

exit codes:
  0    every request has an answer
  1    some requests failed, or the results could not be written
  2    wrong usage, or the run could not begin
  3    stopped: wrong key, no money or quota, no server, equal failures, or a set-up
       that can't work (certificate, proxy, URL)
  4    stopped: what is left would exceed the budget (--max_cost and the like)
  129  the terminal was closed (SIGHUP)
  130  interrupted by Ctrl-C (SIGINT)
  143  terminated by SIGTERM"""


_count = reader(lambda text: text if text == "auto" else int(text), "a whole number or auto")
_limit = reader(lambda text: text if text == "auto" else float(text), "a number, inf or auto")


def _split(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ValueError
    return names


_names = reader(_split, "names with a comma between each two, such as flex,default")


def _address(text: str) -> tuple[int, str]:
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535, or HOST:PORT")
    return int(port), host.strip("[]") or "127.0.0.1"


_S = "SECONDS"
_ACCOUNTING = get_args(TokenAccounting)

# fmt: off
FLAGS: Mapping[str, tuple[Flag, ...]] = {
    "files": (
        Flag("requests_filepath", "", "FILE",
              "the requests, one JSON object a line; - for standard input, a pattern such as "
              "'part-*.jsonl', or a URL such as s3://bucket/file; may be given several times",
              required=True, repeatable=True),
        Flag("save_filepath", "", "FILE",
              "the results; - for standard output, compressed if it ends with .gz or .zst, or a URL",
              default_text="{requests}_results.jsonl; - with -"),
        Flag("errors_filepath", "", "FILE", "the records of failed requests",
              default_text="they go to the results"),
        Flag("output_format", "", "", "the form of the results: that of each line (auto), lines of a Batch "
             "output and error file (batch), or the cookbook's arrays", "auto",
             choices=get_args(OutputFormat)),
        Flag("model", "", "NAME", "the model of requests that name none"),
        Flag("ordered", "", "", "write the results in the order of the requests"),
        Flag("overwrite", "", "", "delete what the results file holds, and send everything again"),
        Flag("keep_failures", "", "", "keep the records of failed requests, and don't try them again"),
    ),
    "tables": (
        Flag("template", "", "FILE", "the request of each row of a CSV, TSV or Parquet file: JSON with "
              "{{column}} in its texts"),
        Flag("id_column", "", "NAME", "the column that is the custom_id of a row's request"),
        Flag("metadata_columns", "", "NAMES", "columns that come back with the results, such as a,b"),
        Flag("delimiter", "", "CHARACTER", "what separates the fields of a CSV file",
              default_text="a comma, in .tsv a tab"),
    ),
    "service": (
        Flag("request_url", "request_url", "URL",
              "where to send the requests, with {model} in it where a URL names the model; without it, "
              "to the embeddings of $OPENAI_BASE_URL, if that is set; given several times, they are "
              "servers of the same models: each has the limits for itself, and one that fails is left "
              "alone for a while",
              read=lambda text: text, action=AndReplicas),
        Flag("api_key", "api_key", "KEY", "the key",
             default_text="the variable of the URL's provider, such as $OPENAI_API_KEY; a key on the "
             "command line is visible to other users"),
        Flag("api_key_file", "", "FILE", "a file with the key in it, or with several, one a line"),
        Flag("api_key_command", "", "COMMAND",
             "a command that prints the key, such as 'az account get-access-token'; it is run again when "
             "the key has expired, without a shell"),
        Flag("api_key_ttl", "api_key_ttl_s", _S, "run that command again after so long, too",
             default_text="only when the key is refused"),
        Flag("auth_header", "auth_header", "NAME[: PREFIX]",
             "the header for the key, such as api-key or 'Authorization: Token'",
             default_text="that of the URL's provider"),
        Flag("header", "headers", "'NAME: VALUE'",
             "a header to send, or @FILE for those in the lines of a file, which other users can't see; "
             "may be given several times", repeatable=True),
        Flag("query", "query", "NAME=VALUE",
             "a parameter to add to the URL, such as api-version=2024-10-21; may be given several times",
             repeatable=True),
        Flag("allow_host", "allowed_hosts", "HOST[:PORT]",
             "another host that the url of a row may name; may be given several times", repeatable=True),
        Flag("api_key_for", "api_keys", "HOST=VARIABLE",
             "the variable that has the key for that host; may be given several times",
             default_text="the one of its provider", repeatable=True),
        Flag("service_tier", "service_tiers", "NAMES",
              "the service tiers to ask for, the cheapest first, such as flex,default: what one has no "
              "capacity for goes on to the next", read=_names, default_text="as each request says"),
        Flag("tier_patience", "tier_patience_s", _S,
              "how long a request may wait for a tier before it goes on to the next"),
        Flag("fallback_model", "fallback_model", "NAME",
              "the model to send what has failed for good to"),
        Flag("fallback_url", "fallback_url", "URL", "where to send what has failed for good"),
        Flag("ca_bundle", "ca_bundle", "FILE",
              "whose certificates to trust: a file or directory of authorities, or system for the "
              "operating system's", default_text="$REQUESTS_CA_BUNDLE, $SSL_CERT_FILE, else certifi's"),
        Flag("allow_plain_http", "allow_plain_http", "",
              "let the key go to another machine without encryption"),
    ),
    "limits": (
        Flag("max_requests_per_minute", "limits.requests_per_minute", "N",
              "request limit; inf for none, auto to find it", read=_limit),
        Flag("max_tokens_per_minute", "limits.tokens_per_minute", "N",
              "token limit; inf for none, auto to find it", read=_limit),
        Flag("max_input_tokens_per_minute", "limits.input_tokens_per_minute", "N",
              "limit on input tokens alone, for accounts that have one", default_text="none"),
        Flag("max_output_tokens_per_minute", "limits.output_tokens_per_minute", "N",
              "limit on output tokens alone, for accounts that have one", default_text="none"),
        Flag("limits", "limits_by_model", "FILE",
              'a JSON file of limits by model, such as {"gpt-4o*": {"requests_per_minute": 500}}; it is '
              "read again when it changes, so that a run follows it"),
        Flag("limiter", "limiter", "URL",
              "the Redis or Valkey server that holds these limits for all processes and hosts that name "
              "it (redis://HOST:PORT/DB, rediss://, unix://)", default_text="they hold for this process"),
        Flag("account", "account", "NAME",
              "what the account is called there: who names it alike shares the limits, and so do several "
              "servers and keys",
              default_text="the host of the URL and a hash of the key"),
        Flag("headroom", "limits.headroom", "SHARE",
              "share of every limit, 0 to 0.9, that is left to other programs"),
        Flag("burst_seconds", "limits.burst_seconds", _S,
              "how many seconds' worth of a limit may go out at once, at most 60"),
        Flag("token_accounting", "token_accounting", "",
              "what the server's token limit charges: the most that a request may use (reserve), what "
              "its answer used (usage), or what is known of the host (auto)", choices=_ACCOUNTING),
        Flag("token_encoding_name", "token_encoding_name", "NAME",
              "tiktoken encoding to count the tokens of all requests in",
              default_text="that of each request's model"),
        Flag("default_output_tokens", "default_output_tokens", "N",
              "tokens to reserve for an answer if its request names no maximum"),
    ),
    "budget": (
        Flag("max_cost", "max_cost", "DOLLARS", "stop before more is spent, in US dollars; earlier runs "
              "with the same results count, too", default_text="none"),
        Flag("max_total_tokens", "max_total_tokens", "N", "the same for tokens, of prompts and answers",
              default_text="none"),
        Flag("max_seconds", "max_seconds", _S, "stop so early that what is in flight ends in time",
              default_text="none"),
        Flag("max_failures", "max_failures", "N", "stop once more requests have failed for good, or a "
              "larger share of them, such as 5%%", default_text="none", read=str),
        Flag("prices", "prices", "FILE", 'what tokens cost, in US dollars per million: JSON such as '
              '{"gpt-4o*": {"input": 2.5, "output": 10}}, or LiteLLM\'s table',
              default_text="those of genai-prices, where that is installed"),
    ),
    "retries and timeouts": (
        Flag("max_attempts", "retry.max_attempts", "N",
              "failed attempts after which a request fails; 429s and outages don't count"),
        Flag("backoff_initial_seconds", "retry.backoff_initial_s", _S,
              "longest wait before the first retry; it doubles with each one"),
        Flag("backoff_max_seconds", "retry.backoff_max_s", _S, "longest wait before any retry"),
        Flag("seconds_to_pause_after_rate_limit_error", "retry.pause_s", _S,
              "pause after a 429 that doesn't say how long", read=READERS[float],
              default_text="1 at first, up to 15 while nothing is answered"),
        Flag("rate_limit_deadline_seconds", "retry.rate_limit_deadline_s", _S,
              "longest wait for a rate limit (a longer one that the server asks for stops the run), "
              "or for a server in an outage"),
        Flag("request_timeout", "request_timeout_s", _S,
              "for one whole exchange, however slowly the answer arrives"),
        Flag("connect_timeout", "connect_timeout_s", _S, "for the connection alone"),
        Flag("max_response_bytes", "max_response_bytes", "N", "an answer that is larger fails"),
        Flag("json_schema", "", "FILE",
              "a JSON Schema: an answer whose text is no JSON that holds it is a failed attempt, and tried "
              "again; it may be in its response_format"),
        Flag("stop_after_equal_failures", "stop_after_equal_failures", "N",
              "stop if N requests of a model fail alike before one is answered; 0 for never"),
        Flag("drain_seconds", "drain_s", _S, "how long a stopped run waits for requests in flight"),
        Flag("write_retry_seconds", "write_retry_s", _S,
              "how long to try again to write records, if the disk is full or fails"),
    ),
    "performance": (
        Flag("max_workers", "max_workers", "N",
              "most requests in flight; ulimit -n may allow fewer"),
        Flag("processes", "processes", "N",
              "processes to spread the workers over, 1 to 64, for a server without limits that one "
              "core can't keep up with"),
        Flag("dedupe", "dedupe", "", "send equal requests once, and record the answer for each"),
        Flag("pack_inputs", "pack_inputs", "N|auto",
              "send the inputs of N embeddings, moderations or completions as one request; auto for as "
              "many as the limits make useful", default_text="one input a request", read=_count),
    ),
    "output": (
        Flag("logging_level", "", "N",
              "what to log: 40 failed requests, 30 also retries and rate limits, 20 also start, pauses "
              "and end, 10 also each request", logging.INFO),
        Flag("no_progress", "", "", "show neither a bar nor progress lines"),
        Flag("report_filepath", "", "FILE",
              "write a report on what limited the run: a page (FILE.html) or JSON"),
        Flag("summary_json", "", "FILE",
              "write what the summary says, the exit code and the paths as one line of JSON, however the "
              "run ends; - for standard output"),
        Flag("metrics_port", "", "[HOST:]PORT",
              "serve metrics to Prometheus; without HOST to this machine alone", read=_address),
    ),
}
TABLE_FLAGS = tuple(flag.name for flag in FLAGS["tables"])
# fmt: on

ROWS = [flag for flags in FLAGS.values() for flag in flags]
_FLAG_BY_FIELD = {row.setting.rpartition(".")[2]: f"--{row.name}" for row in ROWS if row.setting}
_FLAG_BY_FIELD |= {"replica_urls": "--request_url"}
_FLAG_BY_FIELD |= {"sample": "--sample", "latency_s": "--latency"}  # of plan
# A field's name that is a word of its own is meant only where a value is refused.
_FIELD = "|".join(name if "_" in name else f"{name}(?= must )" for name in _FLAG_BY_FIELD)
_FIELD_IN_TEXT = re.compile(rf"(?<!\S)({_FIELD})(?![\w./])")


def with_flag_names(message: str) -> str:
    """``message`` with the names of flags in place of those of settings."""
    return _FIELD_IN_TEXT.sub(lambda match: _FLAG_BY_FIELD[match[1]], message)


def settings(flags: argparse.Namespace) -> Settings:
    """The settings that ``flags`` ask for, as keyword arguments of :class:`Options`."""
    made: dict[str, dict[str, Any]] = {"": {}, "limits": {}, "retry": {}}
    for row in ROWS:
        if row.setting:
            part, _, name = row.setting.rpartition(".")
            made[part][name] = getattr(flags, row.name)
    made[""] |= {"headers": read_headers(flags.header), "query": read_query(flags.query)}
    made[""] |= {"allowed_hosts": tuple(flags.allow_host or ()), "api_keys": {}}
    if flags.limits:
        common = {name: made["limits"][name] for name in ("burst_seconds", "headroom")}
        made[""]["limits_by_model"] = read_limits_file(Path(flags.limits), **common)
    if flags.json_schema:
        made[""]["validate"] = read_schema(flags.json_schema)
    made[""]["replica_urls"] = getattr(flags, "replica_urls", ())
    parts = {"limits": Limits(**made["limits"]), "retry": RetryPolicy(**made["retry"])}
    return cast(Settings, made[""] | parts)


def table_arguments(flags: argparse.Namespace) -> dict[str, Any]:
    """What ``flags`` say of a table, as arguments of ``process_file`` and ``open_table``."""
    given = {name: getattr(flags, name) for name in TABLE_FLAGS}
    return given | {"metadata_columns": given["metadata_columns"] or ()}


def build_parser() -> FlagParser:
    """The parser of the command itself."""
    return FlagParser(PROGRAM, FLAGS, usage=_USAGE, description=_DESCRIPTION, epilog=EPILOG)
