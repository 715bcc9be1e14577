"""What a driver and its workers tell each other. All of it can be pickled, and none of it holds a key."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from parallel_processor.cluster.blocks import Block
from parallel_processor.credentials.key_text import read_key_file
from parallel_processor.credentials.keyring import KeyLike
from parallel_processor.exceptions import (
    ConfigurationError,
    LimiterError,
    ParallelProcessorError,
    StopCause,
)
from parallel_processor.options import DefaultLimit, Limits, Settings
from parallel_processor.report.samples import RequestNote
from parallel_processor.report.snapshot import Snapshot


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySource:
    """Where each worker finds the key: in a variable of its environment, in a file, or by a command.

    Empty for no key. There may be several, one a line.
    """

    variable: str = ""
    file: str = ""
    command: str = ""
    host_variables: Mapping[str, str] = field(
        default_factory=dict
    )  # of keys for other hosts; empty for one that gets none
    secrets_variable: str = ""  # where headers, query and keys for other hosts are, as JSON
    login_variable: str = ""  # where the login of the URL is, if it has one
    limiter_variable: str = ""  # where the URL of the limiter is, if it has a password

    def read(self) -> KeyLike | None:
        """The key. Raises :class:`ConfigurationError` if it is not there."""
        if self.command:
            # Imported here: few need it.
            from parallel_processor.credentials.key_command import KeyCommand

            return KeyCommand(self.command)
        if self.file:
            return read_key_file(self.file, f"the key file {self.file} of a worker")
        if self.variable:
            keys = _variable(self.variable).splitlines()
            return keys[0] if len(keys) == 1 else keys
        return None

    def complete(self, settings: Settings) -> Settings:
        """``settings`` with what is secret of them; :class:`ConfigurationError` if there is no key."""
        found: Settings = {**settings, "api_key": self.read()}
        if self.secrets_variable:
            found |= cast(Settings, json.loads(_variable(self.secrets_variable)))
        by_host = {host: name and _variable(name) for host, name in self.host_variables.items()}
        if by_host:
            found["api_keys"] = {**found.get("api_keys", {}), **by_host}
        if self.login_variable:
            found["login"] = os.environ.get(self.login_variable)
        if self.limiter_variable:
            found["limiter"] = os.environ.get(self.limiter_variable)
        return found


def _variable(name: str) -> str:
    if value := os.environ.get(name, "").strip():
        return value
    raise ConfigurationError(f"the variable {name} is not set where a worker runs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What all workers need to know. ``settings`` have no key and no login."""

    source: str  # the requests file, a path or a URL
    folder: str  # of the output, a path or a URL
    errors: str = ""  # of the failures, likewise; empty if they stay in the parts
    run: str  # hexadecimal digits that no other run has
    settings: Settings
    key: KeySource = KeySource()
    upload_s: float = 5.0  # between two pieces of a journal on an object store


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a block. ``number`` is unique in the run."""

    block: Block
    number: int


class End(enum.Enum):
    """How an attempt at a block ended."""

    DONE = "done"  # its part is there
    STOPPED = "stopped"  # the driver stopped it; its journal is there
    FAILED = "failed"  # an error that may be gone at the next attempt
    LEFT_OUT = "left out"  # the server refuses a model for good: some lines have no record
    FATAL = "fatal"  # no attempt at any block can succeed


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockReport:
    """What became of an attempt."""

    attempt: Attempt
    end: End
    lines: int = 0  # of the part
    failed: int = 0  # of these, failures
    already: int = 0  # records that were there before this run began
    errors_by_kind: Mapping[str, int] = field(
        default_factory=dict
    )  # of the failures of this attempt
    notes: tuple[RequestNote, ...] = ()  # some of the failures
    error: str = ""  # what went wrong with the attempt, if anything did
    error_class: str = ""  # the name of its class in ``exceptions``
    stop_cause: StopCause = StopCause.NOTHING
    models: tuple[str, ...] = ()  # that were left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a worker is doing."""

    incarnation: str  # a worker that was started again has another one
    snapshot: Snapshot
    read_bytes: Mapping[int, int] = field(
        default_factory=dict
    )  # of each attempt under way, by number
    reading: frozenset[int] = frozenset()  # the attempts whose block is not read to its end
    log: tuple[tuple[int, str], ...] = ()  # what it logged since the last time: level and text


@dataclass(frozen=True, slots=True)
class Unfit:
    """A worker can't be made: a key that is not there, for example."""

    error_class: str  # its name in ``exceptions``; empty for any other error
    reason: str
    may_pass: bool = False  # a limiter that is away, say


def unfit(error: Exception) -> Unfit:
    """What to tell the driver of an error that keeps a worker from being made."""
    is_ours = isinstance(error, ParallelProcessorError)
    name = type(error).__name__
    may_pass = isinstance(error, LimiterError) and not error.is_lasting
    return Unfit(name if is_ours else "", str(error) if is_ours else f"{name}: {error}", may_pass)


def share(settings: Settings, workers: int) -> Settings:
    """The settings of one of ``workers``: its equal share of each limit, unless a limiter holds them."""
    if workers == 1 or settings.get("limiter") is not None:
        return settings
    limits = _part(settings.get("limits") or Limits(), workers)
    by_model = settings.get("limits_by_model", {})
    by_model = {pattern: _part(each, workers) for pattern, each in by_model.items()}
    return {**settings, "limits": limits, "limits_by_model": by_model}


def _part(limits: Limits, workers: int) -> Limits:
    names = [each.name for each in dataclasses.fields(limits) if each.name.endswith("_per_minute")]
    found = {name: getattr(limits, name) for name in names}
    parts = {
        name: (DefaultLimit if isinstance(limit, DefaultLimit) else float)(limit / workers)
        for name, limit in found.items()
        if not isinstance(limit, str)
    }
    return dataclasses.replace(limits, **parts)
