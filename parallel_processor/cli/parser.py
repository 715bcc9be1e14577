"""A parser of flags that are rows of a table: its texts, its errors, and the defaults of the settings."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NoReturn

from parallel_processor import __version__
from parallel_processor.cli.actions import Once
from parallel_processor.options import Options

PROGRAM = "parallel-processor"
COMMANDS = {
    "plan": "say what a job will take, and send nothing",
    "verify": "check that every request has its answer",
    "to-batch": "make files of the requests to upload to a Batch API",
    "from-batch": "make a results file of what a Batch API sent back",
    "export": "write the results as a table, CSV or Parquet",
    "run-on-ray": "send the requests by several workers, on this machine or on a Ray cluster",
}
"""The subcommands, and what each does."""


def reader(convert: Callable[[str], object], what: str) -> Callable[[str], object]:
    """Makes a value from text with ``convert``; the error says that the text is not ``what``."""

    def read(text: str) -> object:
        """The value; ``ArgumentTypeError`` if there is none."""
        try:
            return convert(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None

    return read


READERS = {int: reader(int, "a whole number"), float: reader(float, "a number")}
_DEFAULTS = Options()


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
