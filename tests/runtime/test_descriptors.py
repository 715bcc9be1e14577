"""How many connections a process may have, each case in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

resource = pytest.importorskip("resource")

SETTING = """
import logging, resource
from parallel_processor.runtime.descriptors import affordable_workers, raise_soft_limit
logging.basicConfig(format="%(levelname)s %(message)s")
resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))
{code}
"""


def run(soft: int, hard: int, code: str) -> str:
    """What ``code`` prints and logs in a process with these limits."""
    script = SETTING.format(soft=soft, hard=hard, code=code)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout + done.stderr


def soft_limit_after(soft: int, hard: int, max_workers: int) -> int:
    """The soft limit once it was raised for so many workers."""
    code = f"raise_soft_limit({max_workers}); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    return int(run(soft, hard, code))


def test_the_soft_limit_is_raised_to_what_is_needed() -> None:
    """It becomes what the workers and some other files need, and no more."""
    assert soft_limit_after(256, 1024, 500) == 564


def test_the_soft_limit_is_raised_to_the_hard_limit_at_most() -> None:
    """Workers beyond the hard limit don't make the raising fail."""
    assert soft_limit_after(256, 1024, 100_000) == 1024


@pytest.mark.parametrize("max_workers", [10, 192])
def test_a_soft_limit_that_suffices_stays(max_workers: int) -> None:
    """Nothing is changed without need."""
    assert soft_limit_after(256, 1024, max_workers) == 256


@pytest.mark.parametrize("max_workers", [10**9, 10**30])
def test_no_number_of_workers_is_too_large_to_ask_for(max_workers: int) -> None:
    """An absurd number is lowered like any other."""
    assert soft_limit_after(256, 1024, max_workers) == 1024
    assert "960\n" in run(1024, 1024, f"print(affordable_workers({max_workers}))")


def test_enough_files_leave_the_workers_as_they_are() -> None:
    """Where the limit suffices, nothing is lowered or said."""
    assert run(256, 256, "print(affordable_workers(192))") == "192\n"


def test_too_few_files_lower_the_workers_and_say_so() -> None:
    """The warning names both numbers and the limit."""
    assert run(256, 256, "print(affordable_workers(1000))") == (
        "192\n"
        "WARNING max_workers is 192 instead of 1000: only 256 files may be open; raise that with"
        " ulimit -n\n"
    )


def test_one_worker_is_always_left() -> None:
    """However few files may be open, the run begins."""
    assert run(40, 40, "print(affordable_workers(1000))").startswith("1\n")
    assert run(40, 40, "print(affordable_workers(1))") == "1\n"
