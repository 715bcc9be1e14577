"""``run-on-ray``: the command's flags, for workers on Ray."""

from __future__ import annotations

import argparse
import logging
from contextlib import nullcontext
from pathlib import Path

from parallel_processor.cli.ending import Ending, exit_code, tell
from parallel_processor.cli.environment import (
    KEY_VARIABLE,
    fallback_hosts,
    find_key,
    find_keys_by_host,
    key_places,
    key_variable,
    known_here,
    replica_variables,
)
from parallel_processor.cli.signals import SignalWatcher
from parallel_processor.cluster.job import KeySource
from parallel_processor.cluster.on_ray import OnRay
from parallel_processor.exceptions import (
    ConfigurationError,
    InputFileError,
    ParallelProcessorError,
    ResultsFileError,
    RunStoppedError,
    WorkerProcessError,
)
from parallel_processor.files.requests_file import plain_stem
from parallel_processor.options import DEFAULT_REQUEST_URL, Settings, without_login
from parallel_processor.report.prometheus import serve_metrics
from parallel_processor.report.summary import Summary
from parallel_processor.tables.kinds import is_table

_PACKED = (".gz", ".zst")
_log = logging.getLogger("parallel_processor")


def process_on_ray(flags: argparse.Namespace, made: Settings) -> Ending:
    """Run the job."""
    _check_requests(flags.requests_filepath)
    for path in filter(None, (flags.save_filepath, flags.errors_filepath)):
        _check_folder(path)
    job = _job(flags, made)
    with (
        SignalWatcher(
            on_first=lambda name: _stop(job, name), on_second=lambda name: _cancel(job, name)
        ) as watcher,
        serve_metrics(job, *flags.metrics_port) if flags.metrics_port else nullcontext(),
    ):
        error: ParallelProcessorError | None = None
        summary: Summary
        try:
            summary = job.process()
        except (RunStoppedError, ResultsFileError, WorkerProcessError, InputFileError) as raised:
            if raised.summary is None:
                if isinstance(raised, InputFileError):
                    raise
                _log.error("%s", raised)
                return Ending(2, str(raised))
            error, summary = raised, raised.summary
        failures = (
            f", failures in those of {flags.errors_filepath}" if flags.errors_filepath else ""
        )
        tell(summary, error, flags, f"results are in the parts of {job.folder}{failures}")
        code = exit_code(summary, error, watcher.number)
        code = code or int(bool(getattr(summary, "blocks_set_aside", ())))
        return Ending(code, str(error or ""), summary, str(job.folder))


def _job(flags: argparse.Namespace, made: Settings) -> OnRay:
    key = KeySource()
    if flags.address is None:
        made["api_key"], made["api_keys"] = find_key(flags, made), find_keys_by_host(flags, made)
    else:
        key = _key_source(flags, made.get("request_url", DEFAULT_REQUEST_URL))
    return OnRay(
        flags.requests_filepath,
        flags.save_filepath,
        errors_path=flags.errors_filepath,
        address=flags.address,
        num_workers=flags.num_workers,
        key=key,
        overwrite=flags.overwrite,
        keep_failures=flags.keep_failures,
        progress=not flags.no_progress,
        report_path=flags.report_filepath,
        block_bytes=flags.block_bytes,
        **made,
    )


def _check_requests(path: str) -> None:
    if is_table(path):
        raise ConfigurationError(f"{path} is a table, which run-on-ray doesn't take: only JSONL")


def _check_folder(path: str) -> None:
    name = Path(path)
    if name.suffix.lower() in _PACKED and not name.is_dir():
        raise ConfigurationError(
            f"{path} has the name of a compressed file, but run-on-ray writes a folder of parts, which are "
            f"not compressed: name a folder, such as {path.partition(name.name)[0]}{plain_stem(name)}"
        )


def _key_source(flags: argparse.Namespace, url: str) -> KeySource:
    """Where workers on a cluster find the keys: the names of variables or of a file, or a command.

    ``url`` is the request URL.
    """
    has_password = flags.limiter and "@" in flags.limiter
    if has_password or without_login(url)[1] is not None:
        raise ConfigurationError(
            "a login in --request_url or a password in --limiter would be visible to everybody who can see "
            "the cluster: leave it out. All jobs on the cluster share their limits without --limiter"
        )
    if flags.api_key:
        raise ConfigurationError(
            "a key in a flag would be visible to everybody who can see the cluster: set "
            f"{KEY_VARIABLE} on its nodes, or give --api_key_file with a file that is there"
        )
    hosts = (*(flags.allow_host or ()), *fallback_hosts(flags))
    by_host = {host: name for host in hosts for name in known_here(host)}
    by_host |= replica_variables(flags) | dict(key_places(flags))
    if flags.api_key_command:
        return KeySource(command=flags.api_key_command, host_variables=by_host)
    if flags.api_key_file:
        return KeySource(file=flags.api_key_file, host_variables=by_host)
    return KeySource(variable=key_variable(flags, url), host_variables=by_host)


def _stop(job: OnRay, signal_name: str) -> None:
    job.stop(f"interrupted by {signal_name}")
    _log.warning("%s: waiting for requests in flight; a second signal cancels them", signal_name)


def _cancel(job: OnRay, signal_name: str) -> None:
    job.stop(f"interrupted by {signal_name}", cancels=True)
    _log.warning("%s: cancelling requests in flight", signal_name)
