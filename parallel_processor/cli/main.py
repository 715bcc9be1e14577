# PYTHON_ARGCOMPLETE_OK
"""The command line: flags become a Processor, the end of its run becomes an exit code.

``--help`` lists the exit codes.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from parallel_processor.cli.flags import (
    COMMANDS,
    PROGRAM,
    build_parser,
    build_verify_parser,
    settings,
    with_flag_names,
)
from parallel_processor.cli.keys import read_key, read_key_file
from parallel_processor.cli.signals import SignalWatcher
from parallel_processor.exceptions import (
    ConfigurationError,
    InputFileError,
    LimiterError,
    LimitsFileError,
    ParallelProcessorError,
    ResultsFileError,
    RunStoppedError,
    WorkerProcessError,
)
from parallel_processor.files.requests_file import default_save_path
from parallel_processor.files.verify import Verification, verify_results
from parallel_processor.options import SYSTEM_STORE, Options, Settings, shown_url, without_login
from parallel_processor.processor import Processor
from parallel_processor.providers.endpoints import needs_key
from parallel_processor.report.advice import advice
from parallel_processor.report.progress import BarStream
from parallel_processor.report.prometheus import serve_metrics
from parallel_processor.report.summary import Summary, summary_text
from parallel_processor.runtime.descriptors import raise_soft_limit

_log = logging.getLogger("parallel_processor")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code."""
    _complete()
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["verify"]:
        return _verify(words[1:])
    flags = build_parser().parse(words)
    _set_up_logging(flags.logging_level)
    raise_soft_limit(flags.max_workers)
    try:
        made: Settings = settings(flags)
        made["api_key"] = None  # a wrong setting is named before a missing key is
        made["ca_bundle"] = _ca_bundle(flags)
        Options(**made)
        made["api_key"] = _key(flags)
        return _process(flags, made)
    except (InputFileError, LimiterError, LimitsFileError) as error:
        return _usage_error(str(error))
    except ConfigurationError as error:
        return _usage_error(with_flag_names(str(error)))
    except KeyboardInterrupt:
        return 130


def _usage_error(text: str) -> int:
    _say(f"{PROGRAM}: error: {text}")
    return 2


def _complete() -> None:
    """Answer a shell that asks how a word goes on, which ends the process; do nothing otherwise."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:
        return
    start = int(os.environ["_ARGCOMPLETE"])  # that many words are the program's name
    if os.environ.get("COMP_LINE", "").split()[start : start + 1] == ["verify"]:
        os.environ["_ARGCOMPLETE"] = str(start + 1)
        argcomplete.autocomplete(build_verify_parser())
    parser = build_parser()
    parser.add_argument("command", nargs="?", choices=list(COMMANDS))
    argcomplete.autocomplete(parser)


def _key(flags: argparse.Namespace) -> str | None:
    """The key from the flags, else from the environment; ``None`` if there is none and none is needed.

    A login in the URL was typed, so the variable, which nobody typed, gives way to it.
    """
    if flags.api_key and flags.api_key_file:
        raise ConfigurationError("give --api_key or --api_key_file, not both")
    has_login = without_login(flags.request_url)[1] is not None
    if flags.api_key_file:
        return read_key_file(flags.api_key_file)
    key = read_key(flags.api_key or "", "--api_key") or None
    if key is None and not has_login:
        key = read_key(os.environ.get("OPENAI_API_KEY", ""), "OPENAI_API_KEY") or None
    if key is None and not has_login and needs_key(flags.request_url):
        what = "needs a key: set OPENAI_API_KEY, or give --api_key_file"
        raise ConfigurationError(f"{shown_url(flags.request_url)} {what}")
    return key


def _ca_bundle(flags: argparse.Namespace) -> str | None:
    """Whose certificates to trust; ``None`` leaves it to requests, which reads two variables itself.

    If those are not set, OpenSSL's variables count, which name parts of the system's store.
    """
    typed: str | None = flags.ca_bundle
    if typed is not None or any(map(os.environ.get, ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"))):
        return typed
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        paths = os.environ.get(name, "")
        if any(map(os.path.exists, filter(None, paths.split(os.pathsep)))):
            return SYSTEM_STORE
        if paths:
            _log.warning("%s is ignored: %s is not there", name, paths)
    return None


def _verify(words: Sequence[str]) -> int:
    """``verify``: exit code 0 only if every request has exactly one good record."""
    parser = build_verify_parser()
    flags = parser.parse(words)
    requests_path = Path(flags.requests_filepath)
    try:
        found = verify_results(
            requests_path,
            flags.save_filepath or default_save_path(requests_path),
            flags.errors_filepath,
            request_url=flags.request_url,
        )
    except ParallelProcessorError as error:
        parser.error(str(error))
    counts = asdict(found) | {"conflicts": len(found.conflicts)}
    _print("\n".join(f"{name:>9} {count:,}" for name, count in counts.items()))
    for earlier, later in found.conflicts:
        _say(f"lines {earlier} and {later} have the same custom_id but different requests")
    _say(_verdict(found))
    return 0 if found.ok else 1


def _verdict(found: Verification) -> str:
    if not found.ok:
        return "not every line has exactly one answer"
    records = (
        "1 record is of a request"
        if found.foreign == 1
        else f"{found.foreign:,} records are of requests"
    )
    more = f"; {records} that the file does not have"
    return "every line has its answer" + (more if found.foreign else "")


def _set_up_logging(level: int) -> None:
    handler = logging.StreamHandler(BarStream())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    _log.addHandler(handler)
    _log.setLevel(level)
    _log.propagate = False


def _print(text: str) -> None:
    """Print to stdout, whose reader may have left."""
    try:
        print(text, flush=True)
    except OSError:  # else Python flushes again when it exits, and complains
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(text: str) -> None:
    """Print to stderr, which may be closed, or whose reader may have left."""
    try:
        if sys.stderr is not None:
            print(text, file=sys.stderr)
    except OSError:
        pass


def _stop(processor: Processor, signal_name: str) -> None:
    processor.stop(f"interrupted by {signal_name}")
    _log.warning("%s: waiting for requests in flight; a second signal cancels them", signal_name)


def _cancel(processor: Processor, signal_name: str) -> None:
    processor.cancel(f"interrupted by {signal_name}")
    _log.warning("%s: cancelling requests in flight", signal_name)


def _process(flags: argparse.Namespace, made: Settings) -> int:
    with (
        Processor(**made) as processor,
        SignalWatcher(
            on_first=lambda name: _stop(processor, name),
            on_second=lambda name: _cancel(processor, name),
        ) as watcher,
        serve_metrics(processor, *flags.metrics_port) if flags.metrics_port else nullcontext(),
    ):
        if watcher.number:  # it came before there was anything to stop
            return 128 + watcher.number
        summary, error = _run_to_its_end(processor, flags)
        if summary is None:
            _log.error("%s", error)
            return 2
        _tell(summary, error, flags)
        if isinstance(error, InputFileError):
            return 2
        if error is not None:
            return 3 if isinstance(error, RunStoppedError) else 1
        if watcher.number:
            return 128 + watcher.number
        return 1 if summary.failed or summary.already_failed else 0


def _tell(
    summary: Summary, error: ParallelProcessorError | None, flags: argparse.Namespace
) -> None:
    """Say what the run did, what to do next, and why it ended if it was stopped.

    At a level that hides the summary, the advice is in the log.
    """
    again = _without(flags, "overwrite")
    found = advice(summary, again=again, resend=_without(flags, "overwrite", "keep_failures"))
    texts = [text.replace("`", "") for text in found]
    if flags.logging_level <= logging.INFO:
        save_path = flags.save_filepath or default_save_path(Path(flags.requests_filepath))
        failures = f", failures in {flags.errors_filepath}" if flags.errors_filepath else ""
        where = f"results are in {save_path}{failures}"
        _say("\n".join([summary_text(summary, with_stop=False), where, *texts]))
        texts = []
    elif not (summary.stop_reason or summary.failed or summary.already_failed):
        texts = []  # what would be faster is no warning
    if reason := summary.stop_reason if error is None else str(error):
        texts = [f"stopped: {reason.rstrip('.')}.", *texts]
    if texts:
        _log.log(logging.WARNING if error is None else logging.ERROR, " ".join(texts))


def _without(flags: argparse.Namespace, *names: str) -> str:
    """Names the same command without the flags ``names``, as far as they were given."""
    given = [f"`--{name}`" for name in names if getattr(flags, name)]
    return f"the same command without {' and '.join(given)}" if given else "the same command"


def _run_to_its_end(
    processor: Processor, flags: argparse.Namespace
) -> tuple[Summary | None, ParallelProcessorError | None]:
    """The run's summary (``None`` if it could not begin), and the error that ended it, if one did."""
    try:
        summary = processor.process_file(
            flags.requests_filepath,
            flags.save_filepath,
            errors_path=flags.errors_filepath,
            overwrite=flags.overwrite,
            keep_failures=flags.keep_failures,
            progress=not flags.no_progress,
            report_path=flags.report_filepath,
        )
    except (RunStoppedError, ResultsFileError, WorkerProcessError) as error:
        return error.summary, error
    except InputFileError as error:
        if error.summary is None or not error.summary.attempts:
            raise
        return error.summary, error
    return summary, None
