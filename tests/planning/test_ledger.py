"""The file beside the results of a budget."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from parallel_processor.exceptions import ResultsFileError
from parallel_processor.planning.costs import Spent
from parallel_processor.planning.ledger import Ledger, ledger_path

BOUND = Spent(1.0, math.inf)


def read(path: Path) -> Spent:
    """What the file says at this moment, as a process that starts now would read it."""
    return Ledger(path, BOUND).before


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return ledger_path(tmp_path / "out.jsonl")


def test_the_file_covers_at_each_moment_what_may_be_spent(path: Path) -> None:
    """It never says less than it was told, and mostly little more."""
    ledger = Ledger(path, BOUND)
    for step in (*range(100), *range(100, 0, -1)):
        amount = Spent(step / 1000, step * 10)
        ledger.cover(amount)
        covered = read(path) if path.exists() else Spent()
        assert covered.cost >= amount.cost and covered.tokens >= amount.tokens
        assert covered.cost <= amount.cost + 0.0025 + amount.cost * 0.03


def test_few_attempts_need_a_write(path: Path) -> None:
    """A rise and a fall within what is covered leaves the file as it is."""
    ledger = Ledger(path, BOUND)
    ledger.cover(Spent(0.5))
    before = path.stat().st_mtime_ns, path.read_bytes()
    for amount in (0.5001, 0.4999, 0.5004):
        ledger.cover(Spent(amount))
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


def test_only_the_end_waits_for_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing without that, and the budget's lock is held."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    ledger = Ledger(path, BOUND)
    ledger.cover(Spent(0.5))
    assert read(path).cost >= 0.5 and not synced
    ledger.finish(Spent(0.5))
    assert len(synced) == 1


def test_a_file_that_takes_something_back_counts_as_nothing(path: Path) -> None:
    """Its records may be gone, and what they took back with them."""
    path.write_text(json.dumps({"cost": -0.5, "tokens": 7}))
    assert read(path) == (0, 7)


def test_an_end_in_order_leaves_exactly_the_rest(path: Path) -> None:
    """If nothing is left, there is no file."""
    ledger = Ledger(path, BOUND)
    ledger.cover(Spent(0.5, 10))
    ledger.finish(Spent(0.25, 7))
    assert read(path) == Spent(0.25, 7)
    again = Ledger(path, BOUND)
    again.cover(Spent(0.4, 9))
    again.finish(Spent(1e-12, 0))
    assert not path.exists()


def test_a_run_that_sends_nothing_leaves_the_file_as_it_is(path: Path) -> None:
    """Nothing is written before something may be spent."""
    ledger = Ledger(path, BOUND)
    ledger.finish(Spent())
    assert not path.exists()
    Ledger(path, BOUND).cover(Spent(0.25, 7))
    before = path.read_bytes()
    ledger = Ledger(path, BOUND)
    ledger.finish(ledger.before)
    assert path.read_bytes() == before


def test_what_is_no_ledger_is_refused(path: Path) -> None:
    """An empty file is one that was just made; with overwrite, whatever is there goes."""
    path.write_text("")
    assert read(path) == Spent()
    for text in ('{"cost": "much"}', '{"cost": NaN, "tokens": 1}', '{"cost": 1, "tokens": 1e400}'):
        path.write_text(text)
        with pytest.raises(ResultsFileError, match=r"out\.jsonl\.spent: it should say what was"):
            Ledger(path, BOUND)
    Ledger(path, BOUND, overwrite=True)
    assert not path.exists()


def test_nothing_more_may_be_spent_if_it_cannot_be_written(path: Path) -> None:
    """A folder that is gone is named."""
    ledger = Ledger(path.parent / "gone" / "out.jsonl.spent", BOUND)
    with pytest.raises(ResultsFileError, match="what was spent without an answer: No such file"):
        ledger.cover(Spent(0.1))
