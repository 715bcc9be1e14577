"""Other Pythons to run the same rows with, each with an environment that is kept for the next time."""

from __future__ import annotations

import subprocess
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

from benchmarks.processes import ROOT, SCRIPTS, environment

_VERSION = (
    "import sys, sysconfig as s; "
    "print('%d.%d' % sys.version_info[:2] + 't' * bool(s.get_config_var('Py_GIL_DISABLED')))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """A Python. ``version`` is like ``3.13``, and ends in ``t`` where it has no GIL."""

    version: str
    path: Path


def interpreters(asked: str) -> list[Interpreter]:
    """Those that are asked for, in environments with what the package requires.

    ``asked`` has versions that ``scripts/pythons`` finds, paths, or ``all`` for all it finds, with commas
    between them. A Python that can't be used is named in a line, and left out.
    """
    paths = {each.version: each.path for each in _found()}
    bases: list[Path] = []
    for word in filter(None, asked.split(",")):
        bases += paths.values() if word == "all" else [paths.get(word, Path(word))]
    made = [_environment(base) for base in dict.fromkeys(bases)]
    return [each for each in made if each is not None]


def _found() -> list[Interpreter]:
    listed = subprocess.run(
        [SCRIPTS / "pythons"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    paths = [Path(line) for line in listed.splitlines()]
    return [Interpreter(version=_version(path), path=path) for path in paths]


def _version(path: Path) -> str:
    return subprocess.check_output([path, "-c", _VERSION], text=True).strip()


def _environment(base: Path) -> Interpreter | None:
    """``base`` in an environment of its own; ``None`` if that can't be made."""
    try:
        version = _version(base)
        folder = ROOT / f".venv-bench-{version}"
        python = folder / "bin" / "python"
        for command in (
            [str(SCRIPTS / "venv"), str(folder), str(base), *_requirements()],
            [str(python), "-c", "import parallel_processor.cli.main"],
        ):
            variables = environment(PYTHONPATH=str(ROOT))
            subprocess.run(command, check=True, capture_output=True, text=True, env=variables)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        print(f"note: {base} has no environment, its rows are skipped: {said[-1]}", flush=True)
        return None
    return Interpreter(version=version, path=python)


def _requirements() -> list[str]:
    """What the package can't do without."""
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", "utf-8")
    return config["options"]["install_requires"].split("\n")[1:]
