"""What a driver and its workers tell each other. All of it can be pickled, and none of it holds a key."""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from parallel_processor.cluster.blocks import Block
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
    """Where each worker finds the key: in a variable of its environment, or in a file. Empty for no key."""

    variable: str = ""
    file: str = ""
    login_variable: str = ""  # where the login of the URL is, if it has one
    limiter_variable: str = ""  # where the URL of the limiter is, if it has a password

    def read(self) -> str | None:
        """The key. Raises :class:`ConfigurationError` if it is not there."""
        if self.variable:
            key = os.environ.get(self.variable, "").strip()
            if not key:
                raise ConfigurationError(
                    f"the variable {self.variable} is not set where a worker runs"
                )
            return key
        if self.file:
            try:
                return Path(self.file).read_text("utf-8-sig").strip()
            except (OSError, ValueError) as error:
                raise ConfigurationError(
                    f"a worker can't read the key file {self.file}: {error}"
                ) from None
        return None

    def complete(self, settings: Settings) -> Settings:
        """``settings`` with key, login and limiter; :class:`ConfigurationError` if there is no key."""
        found: Settings = {**settings, "api_key": self.read()}
        if self.login_variable:
            found["login"] = os.environ.get(self.login_variable)
        if self.limiter_variable:
            found["limiter"] = os.environ.get(self.limiter_variable)
        return found


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
