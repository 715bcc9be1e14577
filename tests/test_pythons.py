"""``scripts/pythons`` finds free-threaded builds, and scripts that need another can leave them out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import environment

SCRIPT = Path(__file__).parent.parent / "scripts" / "pythons"
WITH_A_GIL = f"""#!/bin/sh
exec '{sys.executable}' "$@"
"""
WITHOUT = f"""#!/bin/sh
exec '{sys.executable}' -c '
import sys, sysconfig
sysconfig.get_config_vars()["Py_GIL_DISABLED"] = 1
sys.executable = sys.argv.pop(1)
exec(sys.argv.pop(1))' "$0" "$2" "$3"
"""

pytestmark = pytest.mark.acceptance


@pytest.fixture
def free_threaded(tmp_path: Path) -> Path:
    """What says that it is this Python without its GIL, beside one that says that it has one."""
    for name, text in (("python3", WITH_A_GIL), ("python3.19t", WITHOUT)):
        (tmp_path / name).write_text(text, "utf-8")
        (tmp_path / name).chmod(0o755)
    return tmp_path.resolve() / "python3.19t"


def pythons(folder: Path, *words: str) -> list[str]:
    """The paths that it prints where the system's folders and ``folder`` have candidates."""
    changed = environment(PATH=f"{folder}:/usr/bin:/bin")
    done = subprocess.run(
        [SCRIPT, *words], env=changed, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_free_threaded_build_is_a_version_of_its_own(free_threaded: Path) -> None:
    """It stands behind the other build of its number."""
    found = pythons(free_threaded.parent)
    place = found.index(os.fspath(free_threaded))
    asked = "import sys; print(sys.version_info[:2])"
    versions = [subprocess.check_output([path, "-c", asked]) for path in found]
    assert versions[place - 1] == versions[place]


def test_free_threaded_builds_can_be_left_out(free_threaded: Path) -> None:
    """As where a script needs packages that have no wheels for them."""
    found = pythons(free_threaded.parent, "--gil")
    assert found
    assert os.fspath(free_threaded) not in found
