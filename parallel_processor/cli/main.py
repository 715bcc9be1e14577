# PYTHON_ARGCOMPLETE_OK
"""The command line: flags become a Processor, the end of its run becomes an exit code.

``--help`` lists the exit codes.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from parallel_processor.cli.batch import from_batch, to_batch
from parallel_processor.cli.commands import PARSERS, build_ray_parser, build_verify_parser
from parallel_processor.cli.console import say, set_up_logging, show
from parallel_processor.cli.ending import (
    Ending,
    check_summary_path,
    exit_code,
    forget_summary,
    tell,
    write_summary,
)
from parallel_processor.cli.environment import find_ca_bundle, find_key, find_keys_by_host, find_url
from parallel_processor.cli.flags import build_parser, settings, table_arguments, with_flag_names
from parallel_processor.cli.limits_file import watched
from parallel_processor.cli.parser import COMMANDS, PROGRAM
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
from parallel_processor.files.object_stores import (
    StoredFile,
    fetched,
    is_object,
    is_url,
    local_path,
)
from parallel_processor.files.requests_file import Place
from parallel_processor.files.sources import apart_from, find_save_path, find_sources, open_sources
from parallel_processor.files.verify import Verification, verify_results
from parallel_processor.options import Options, Settings
from parallel_processor.processor import Processor
from parallel_processor.report.prometheus import serve_metrics
from parallel_processor.report.summary import Summary
from parallel_processor.runtime.descriptors import raise_soft_limit
from parallel_processor.tables.kinds import with_template

_log = logging.getLogger("parallel_processor")
_YOUNG_OBJECTS = 10_000  # so many more of them before they are looked at


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; gives the exit code."""
    _complete()
    words = sys.argv[1:] if argv is None else argv
    commands = {"verify": _verify, "to-batch": to_batch, "from-batch": from_batch}
    if words and words[0] in commands:
        try:
            return commands[words[0]](words[1:])
        except KeyboardInterrupt:
            return 130
    if words[:1] == ["run-on-ray"]:
        # Imported here: the command itself starts sooner without.
        from parallel_processor.cli.on_ray import process_on_ray

        return _run(build_ray_parser().parse(words[1:]), process_on_ray, lambda flags: "")
    if words[:1] == ["plan"]:
        from parallel_processor.cli.plan import parse_plan, plan

        return _run(parse_plan(words[1:]), plan, lambda flags: "")
    if words[:1] == ["export"]:
        from parallel_processor.cli.export import export

        return export(words[1:])
    return _run(build_parser().parse(words), _process, _find_save)


def _find_save(flags: argparse.Namespace) -> str:
    return flags.save_filepath or str(find_save_path(find_sources(flags.requests_filepath)))


def _run(
    flags: argparse.Namespace,
    process: Callable[[argparse.Namespace, Settings], Ending],
    find_save: Callable[[argparse.Namespace], str],
) -> int:
    """Check the settings, and run ``process`` with them and without a key; gives the exit code.

    ``find_save`` finds out where its results go.
    """
    set_up_logging(flags.logging_level)
    raise_soft_limit(flags.max_workers)
    try:
        check_summary_path(flags, find_save)
    except ConfigurationError as error:
        return _usage_error(str(error)).code
    forget_summary(flags)
    ending = _ending(flags, process)
    write_summary(ending, flags)
    return ending.code


def _ending(
    flags: argparse.Namespace, process: Callable[[argparse.Namespace, Settings], Ending]
) -> Ending:
    try:
        made: Settings = settings(flags)
        made["request_url"] = find_url(flags)
        made["api_key"] = None  # a wrong setting is named before a missing key is
        made["ca_bundle"] = find_ca_bundle(flags)
        Options(**made)
        return process(flags, made)
    except (InputFileError, LimiterError, LimitsFileError) as error:
        return _usage_error(str(error))
    except ConfigurationError as error:
        return _usage_error(with_flag_names(str(error)))
    except KeyboardInterrupt:
        return Ending(130, _interrupted_by("SIGINT"))


def _usage_error(text: str) -> Ending:
    say(f"{PROGRAM}: error: {text}")
    return Ending(2, text)


def _complete() -> None:
    """Answer a shell that asks how a word goes on, which ends the process; do nothing otherwise."""
    if "_ARGCOMPLETE" not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:
        return
    start = int(os.environ["_ARGCOMPLETE"])  # that many words are the program's name
    for command in os.environ.get("COMP_LINE", "").split()[start : start + 1]:
        if command in PARSERS:
            os.environ["_ARGCOMPLETE"] = str(start + 1)
            argcomplete.autocomplete(PARSERS[command]())
    parser = build_parser()
    parser.add_argument("command", nargs="?", choices=list(COMMANDS))
    argcomplete.autocomplete(parser)


def _verify(words: Sequence[str]) -> int:
    """``verify``: exit code 0 only if every request has exactly one good record."""
    parser = build_verify_parser()
    flags = parser.parse(words)
    requests_paths = flags.requests_filepath
    save_path = flags.save_filepath or ""
    place: Place = "byte {}".format
    has_parts = local_path(save_path or "-").is_dir()
    try:
        if is_url(save_path):
            has_parts = not is_object(save_path)
        if has_parts:
            if len(requests_paths) > 1:
                raise ConfigurationError(
                    "parts in a folder are of one file of requests: name it alone"
                )
            # Imported here: the check of a file needs none of it.
            from parallel_processor.cluster.verify import verify_parts

            found = verify_parts(
                requests_paths[0],
                save_path,
                flags.errors_filepath,
                request_url=find_url(flags),
                allowed_hosts=flags.allow_host or (),
            )
        else:
            found, place = _compared(flags)
    except ParallelProcessorError as error:
        parser.error(str(error))
    counts = asdict(found) | {"conflicts": len(found.conflicts)}
    del counts["by_id"]  # the verdict tells it
    is_shown = show("\n".join(f"{name:>9} {count:,}" for name, count in counts.items()))
    for earlier, later in found.conflicts:
        pair = f"{place(earlier)} and {place(later)}"
        say(f"{pair} have the same custom_id but different requests")
    say(_verdict(found, is_table=bool(flags.template)))
    return 0 if found.ok and is_shown else 1


def _compared(flags: argparse.Namespace) -> tuple[Verification, Place]:
    """Compare a results file with its requests; also gives what names their places."""
    found, errors = find_sources(flags.requests_filepath), flags.errors_filepath
    save = flags.save_filepath or str(find_save_path(found))
    sources = apart_from(found, (save, errors))
    lines = open_sources(with_template(sources, **table_arguments(flags)))
    with fetched(save) as save_path, fetched(errors) if errors else nullcontext() as errors_path:
        result = verify_results(
            lines,
            save_path,
            errors_path,
            request_url=find_url(flags),
            model=flags.model,
            allowed_hosts=flags.allow_host or (),
        )
    return result, lines.place


def _verdict(found: Verification, *, is_table: bool) -> str:
    is_one = found.foreign == 1
    records = "1 record is of a request" if is_one else f"{found.foreign:,} records are of requests"
    foreign = f"; {records} that the file does not have" if found.foreign else ""
    if not found.ok:
        text = "not every line has exactly one answer" + foreign
        if found.missing and found.foreign:
            names = "--template, --id_column, --metadata_columns, --delimiter and --model"
            text += f": give the run's {names if is_table else '--model here, too, if it had one'}"
        return text
    text = "every line has its answer" + foreign
    if found.by_id:
        text += f"; {found.by_id:,} are taken by the ids of Batch records from elsewhere: "
        text += "give a run with these results --output_format batch"
    return text


def _interrupted_by(signal_name: str) -> str:
    return f"interrupted by {signal_name}"


def _stop(processor: Processor, signal_name: str) -> None:
    processor.stop(_interrupted_by(signal_name))
    _log.warning("%s: waiting for requests in flight; a second signal cancels them", signal_name)


def _cancel(processor: Processor, signal_name: str) -> None:
    processor.cancel(_interrupted_by(signal_name))
    _log.warning("%s: cancelling requests in flight", signal_name)


def _process(flags: argparse.Namespace, made: Settings) -> Ending:
    made["api_key"], made["api_keys"] = find_key(flags, made), find_keys_by_host(flags, made)
    made["prices"] = made.get("prices") or "auto"
    _collect_seldom()
    with (
        Processor(**made) as processor,
        SignalWatcher(
            on_first=lambda name: _stop(processor, name),
            on_second=lambda name: _cancel(processor, name),
        ) as watcher,
        serve_metrics(processor, *flags.metrics_port) if flags.metrics_port else nullcontext(),
        watched(Path(flags.limits), processor) if flags.limits else nullcontext(),
    ):
        if watcher.number:  # it came before there was anything to stop
            name = signal.Signals(watcher.number).name
            return Ending(128 + watcher.number, _interrupted_by(name))
        save_path = _find_save(flags)
        summary, error = _run_to_its_end(processor, flags)
        if summary is None:
            _log.error("%s", error)
            return Ending(2, str(error))
        if is_url(save_path) and (error is not None or summary.stop_reason):
            save_path = f"{StoredFile(save_path).path}, until the job is done"
        failures = f", failures in {flags.errors_filepath}" if flags.errors_filepath else ""
        tell(summary, error, flags, f"results are in {save_path}{failures}")
        code = exit_code(summary, error, watcher.number)
        return Ending(code, str(error or ""), summary, save_path)


def _collect_seldom() -> None:
    """Have Python look for cycles of garbage less often: there are hardly any, and each look takes time."""
    gc.freeze()  # what was imported stays
    gc.set_threshold(_YOUNG_OBJECTS, *gc.get_threshold()[1:])


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
            output_format=flags.output_format,
            model=flags.model,
            ordered=flags.ordered,
            progress=not flags.no_progress,
            report_path=flags.report_filepath,
            **table_arguments(flags),
        )
    except (RunStoppedError, ResultsFileError, WorkerProcessError) as error:
        return error.summary, error
    except InputFileError as error:
        if error.summary is None or not error.summary.attempts:
            raise
        return error.summary, error
    return summary, None
