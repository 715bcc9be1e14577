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


@pytest.mark.parametrize(
    ("max_workers", "limit"),
    [(10, 256), (192, 256), (500, 564), (100_000, 1024), (10**9, 1024), (10**30, 1024)],
)
def test_the_soft_limit_is_raised_to_what_is_needed(max_workers: int, limit: int) -> None:
    """It becomes what the workers and some other files need; it stays if that suffices, and has an end."""
    code = f"raise_soft_limit({max_workers}); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    assert int(run(256, 1024, code)) == limit


@pytest.mark.parametrize(
    ("files", "max_workers", "affordable"),
    [
        *((256, 192, 192), (256, 1000, 192), (1024, 10**30, 960), (128, 1000, 96)),
        *((64, 1000, 44), (40, 1000, 20), (20, 1000, 1), (40, 1, 1)),
    ],
)
def test_too_few_files_lower_the_workers_and_say_so(
    files: int, max_workers: int, affordable: int
) -> None:
    """It names both numbers and the limit. One worker is always left, and enough cause no warning."""
    said = run(files, files, f"print(affordable_workers({max_workers}))")
    warning = (
        f"WARNING max_workers is {affordable} instead of {max_workers}: only {files} files may be open;"
        " raise that with ulimit -n\n"
    )
    assert said == f"{affordable}\n" + (warning if affordable < max_workers else "")
