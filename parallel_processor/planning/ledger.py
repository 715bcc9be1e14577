"""The file beside the results of a budget: what may have been spent and no record tells.

The results file is the only state of a job, except for this. Its records say what their answers used.
They can't say what was paid without an answer: an attempt that was in flight when the process was killed,
an answer that was refused (``json_schema``), a connection that broke. A budget that forgot it would be
exceeded by a little with every kill. So ``RESULTS.spent`` holds that amount: never less than what may
have been spent beyond the records that are on disk, and exactly that after a run that could end in order.
It is removed if that is nothing, and it is written with ``--max_cost`` or ``--max_total_tokens`` alone.

It is written ahead, before what it covers is sent, with some more than is needed (a thousandth of the
bound, or a hundredth of the amount), so that few attempts need a write. One write of a fixed length can't
be torn by a kill. It is forced to the disk at the end alone: a power cut may forget what was written in
the seconds before it.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from parallel_processor.exceptions import ResultsFileError
from parallel_processor.planning.costs import Spent

_LENGTH = 256
_STEPS = 1000  # of a bound
_SHARE = 0.01  # of the amount
_NOTHING = 1e-9  # US dollars: what is left of sums of fractions
_NOTE = "spent beyond what the records say: for --max_cost and --max_total_tokens, see the README"


def ledger_path(results: Path) -> Path:
    """Where the ledger of a results file is."""
    return results.with_name(f"{results.name}.spent")


class Ledger:
    """The ledger of one results file. Not thread-safe: the budget's lock guards it.

    Attributes:
        before: what earlier runs have left in it.
    """

    def __init__(self, path: Path, bound: Spent, *, overwrite: bool = False) -> None:
        """Read the ledger at ``path``; with ``overwrite`` remove it.

        Raises :class:`ResultsFileError` if it is there and can't be used.
        """
        self._path, self._bound = path, bound
        self._file = -1
        self._covered = Spent()
        try:
            if overwrite:
                path.unlink(missing_ok=True)
            self.before = _read(path)
        except OSError as error:
            raise self._error(error) from error
        self._covered = self.before

    def cover(self, amount: Spent) -> None:
        """Have the file cover ``amount``; called before more may be spent, and when it was less.

        Raises :class:`ResultsFileError` if it can't be written: then nothing more may be spent.
        """
        slack = Spent(*map(_slack, amount, self._bound))
        pairs = list(zip(amount, self._covered, slack, strict=True))
        rises = any(needed > covered for needed, covered, _ in pairs)
        if rises or any(covered - needed > 2 * more for needed, covered, more in pairs):
            self._write(amount.plus(slack))

    def finish(self, amount: Spent) -> None:
        """Nothing is in flight any more: leave exactly ``amount``, or no file if that is nothing."""
        try:
            if abs(amount.cost) < _NOTHING and abs(amount.tokens) < 0.5:
                self._path.unlink(missing_ok=True)
            elif amount != self._covered:
                self._write(amount)
            if self._file >= 0:
                os.fsync(self._file)
        except OSError as error:
            raise self._error(error) from error
        finally:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _write(self, amount: Spent) -> None:
        text = json.dumps(
            {"cost": round(amount.cost, 12), "tokens": math.ceil(amount.tokens), "note": _NOTE}
        )
        try:
            if self._file < 0:
                self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            os.pwrite(self._file, text.ljust(_LENGTH - 1).encode() + b"\n", 0)
        except OSError as error:
            raise self._error(error) from error
        self._covered = amount

    def _error(self, error: OSError) -> ResultsFileError:
        what = "the file of what was spent without an answer"
        return ResultsFileError(f"can't use {self._path}, {what}: {error.strerror or error}")


def _slack(amount: float, bound: float) -> float:
    return max(bound / _STEPS if bound < math.inf else 0.0, abs(amount) * _SHARE)


def _read(path: Path) -> Spent:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return Spent()
    if not text.strip(" \0\n"):  # it was made, and nothing was sent yet
        return Spent()
    try:
        found = json.loads(text)
        amount = Spent(float(found["cost"]), float(found["tokens"])).at_least_0()
        if all(map(math.isfinite, amount)):
            return amount
        raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError):
        hint = "it should say what was spent without an answer. Remove it to count that as nothing"
        raise ResultsFileError(f"can't read {path}: {hint}") from None
