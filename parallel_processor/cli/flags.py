"""The flags of the command: one table, from which come the parsers, ``--help`` and the settings.

A new flag is a row. Its type and default are those of the setting that it names. The cookbook's nine
flags keep their names, which are other than those of the settings.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn, cast, get_args

from parallel_processor import __version__
from parallel_processor.cli.actions import AndReplicas, Once
from parallel_processor.cli.headers import read_headers, read_query
from parallel_processor.cli.limits_file import read_limits_file
from parallel_processor.options import (
    Limits,
    Options,
    OutputFormat,
    RetryPolicy,
    Settings,
    TokenAccounting,
)

PROGRAM = "parallel-processor"
COMMANDS = {
    "verify": "check that every request has its answer",
    "to-batch": "make files of the requests to upload to a Batch API",
    "from-batch": "make a results file of what a Batch API sent back",
    "export": "write the results as a table, CSV or Parquet",
    "run-on-ray": "send the requests by several workers, on this machine or on a Ray cluster",
}
"""The subcommands, and what each does."""

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
  129  the terminal was closed (SIGHUP)
  130  interrupted by Ctrl-C (SIGINT)
  143  terminated by SIGTERM"""


def _reader(convert: Callable[[str], object], what: str) -> Callable[[str], object]:
    """Makes a value from text with ``convert``; the error says that the text is not ``what``."""

    def read(text: str) -> object:
        """The value; ``ArgumentTypeError`` if there is none."""
        try:
            return convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None

    return read


_limit = _reader(lambda text: text if text == "auto" else float(text), "a number, inf or auto")
READERS = {int: _reader(int, "a whole number"), float: _reader(float, "a number")}


def _split(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise ValueError
    return names


_names = _reader(_split, "names with a comma between each two, such as flex,default")


def _address(text: str) -> tuple[int, str]:
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535, or HOST:PORT")
    return int(port), host.strip("[]") or "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag."""

    name: str  # the flag, without its dashes
    setting: str  # the field of Options that it sets, such as limits.headroom; empty for none
    metavar: str  # what stands for the value in --help; empty for a switch
    help: str  # what it does, without its default
    own_default: object = None  # the default, if there is no setting that has one
    default_text: str = ""  # the default in words, if its value doesn't say enough
    read: Callable[[str], object] | None = None  # makes the value; None: by the default's type
    required: bool = False
    several: bool = False  # takes several values
    choices: tuple[str, ...] | None = None
    repeatable: bool = False  # each gives one more value
    is_single: bool = False  # given twice it is an error; else the last one counts
    action: type[argparse.Action] | None = (
        None  # what becomes of its values, if it is something else
    )

    def add_to(self, group: argparse._ArgumentGroup) -> None:
        """Make the flag known to a parser."""
        flag = f"--{self.name}"
        if not self.metavar and not self.choices:
            group.add_argument(flag, action="store_true", help=self.help)
            return
        is_plain = bool(self.setting) and not self.repeatable
        default = attrgetter(self.setting)(_DEFAULTS) if is_plain else self.own_default
        action = "append" if self.repeatable else "extend" if self.several else "store"
        group.add_argument(
            flag,
            action=self.action or (Once if self.is_single else action),
            metavar=self.metavar or None,
            type=self.read or READERS.get(type(default), str),
            default=default,
            required=self.required,
            choices=self.choices,
            nargs="+" if self.several else None,
            help=self._help(default),
        )

    def _help(self, default: object) -> str:
        text = self.default_text
        if not text and isinstance(default, (int, float, str)):
            text = f"{default:g}" if isinstance(default, float) else str(default)
        return f"{self.help} (default: {text})" if text else self.help


_DEFAULTS = Options()
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
              'a JSON file of limits by model, such as {"gpt-4o*": {"requests_per_minute": 500}}'),
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
    ),
    "output": (
        Flag("logging_level", "", "N",
              "what to log: 40 failed requests, 30 also retries and rate limits, 20 also start, pauses "
              "and end, 10 also each request", logging.INFO),
        Flag("no_progress", "", "", "show neither a bar nor progress lines"),
        Flag("report_filepath", "", "FILE",
              "write a report on what limited the run: a page (FILE.html) or JSON"),
        Flag("metrics_port", "", "[HOST:]PORT",
              "serve metrics to Prometheus; without HOST to this machine alone", read=_address),
    ),
}
TABLE_FLAGS = tuple(flag.name for flag in FLAGS["tables"])
# fmt: on

ROWS = [flag for flags in FLAGS.values() for flag in flags]
_FLAG_BY_FIELD = {row.setting.rpartition(".")[2]: f"--{row.name}" for row in ROWS if row.setting}
_FLAG_BY_FIELD["replica_urls"] = "--request_url"
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
    made[""]["replica_urls"] = getattr(flags, "replica_urls", ())
    parts = {"limits": Limits(**made["limits"]), "retry": RetryPolicy(**made["retry"])}
    return cast(Settings, made[""] | parts)


def table_arguments(flags: argparse.Namespace) -> dict[str, Any]:
    """What ``flags`` say of a table, as arguments of ``process_file`` and ``open_table``."""
    given = {name: getattr(flags, name) for name in TABLE_FLAGS}
    return given | {"metadata_columns": given["metadata_columns"] or ()}


# What argparse says, and what is said instead.
_PLAIN = {
    "the following arguments are required: ": "missing flag: ",
    "expected one argument": "a value is missing (write --flag=VALUE if it begins with -)",
    "argument --": "--",
}


class FlagParser(argparse.ArgumentParser):
    """A parser of flags in groups. Each error is one line, with the nearest name if one is unknown."""

    def __init__(self, program: str, flags: Mapping[str, Iterable[Flag]], **texts: Any) -> None:
        super().__init__(
            prog=program,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **texts,
        )
        self._known = {"-h", "--help", "--version"}
        self._with_value: set[str] = set()
        self.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
        for title, rows in flags.items():
            group = self.add_argument_group(title)
            for row in rows:
                row.add_to(group)
                self._known.add(f"--{row.name}")
                if row.metavar or row.choices:
                    self._with_value.add(f"--{row.name}")

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """The flags in ``words``; anything wrong ends the process with one line and exit code 2."""
        words = [_with_underscores(word) for word in words]
        if words and not words[0].startswith("-"):
            near = _nearest(words[0], ("--help", "--version", *COMMANDS))
            near = near or f"; did you mean --requests_filepath {words[0]}?"
            self.error(f"unknown command {words[0]!r}{near}")
        for before, word in zip(["", *words], words, strict=False):
            name = word.partition("=")[0]
            is_flag = re.fullmatch(r"--?[A-Za-z]\S*", name) and before not in self._with_value
            if is_flag and name not in self._known:
                self.error(f"unknown flag {name}{_nearest(name, self._known)}")
        flags, rest = self.parse_known_args(words)
        if rest:
            rule = "a value directly follows its flag, a command is first"
            self.error(f"unexpected {rest[0]!r}: {rule}")
        return flags

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is; exit code 2."""
        for theirs, ours in _PLAIN.items():
            message = message.replace(theirs, ours)
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _with_underscores(word: str) -> str:
    """``--max-attempts=3`` as ``--max_attempts=3``."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _nearest(word: str, known: Iterable[str]) -> str:
    found = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def build_parser() -> FlagParser:
    """The parser of the command itself."""
    return FlagParser(PROGRAM, FLAGS, usage=_USAGE, description=_DESCRIPTION, epilog=EPILOG)
