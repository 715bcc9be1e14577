"""The package and every public name are explained, with an example, and each example does what it says.

An example sees what ``from parallel_processor import *`` gives, ``url`` and ``chat_url`` of a server
that answers, and ``folder``, in which there is a ``requests.jsonl`` of three embeddings requests.
"""

from __future__ import annotations

import dataclasses
import doctest
import inspect
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import write_lines

import parallel_processor
from parallel_processor.simulator import Simulator, SimulatorOptions

PUBLIC: dict[str, Any] = {
    name: getattr(parallel_processor, name) for name in parallel_processor.__all__
} | {"parallel_processor": parallel_processor}
CLASSES = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}
ROWS = [{"model": "text-embedding-3-small", "input": f"text {number}"} for number in range(3)]


def members(kind: type) -> dict[str, Any]:
    """The public methods and properties that a class of the package has of its own."""
    return {
        name: value
        for name, value in vars(kind).items()
        if not name.startswith("_") and (inspect.isroutine(value) or isinstance(value, property))
    }


def docstrings(name: str) -> dict[str, str]:
    """The docstrings of a public name and of its members, by their full names."""
    value = PUBLIC[name]
    found = {name: value}
    if inspect.isclass(value):
        found |= {f"{name}.{member}": each for member, each in members(value).items()}
    return {full_name: inspect.getdoc(each) or "" for full_name, each in found.items()}


@pytest.fixture(scope="module")
def server() -> Iterator[Simulator]:
    """A server without limits, for all examples."""
    with Simulator(SimulatorOptions()) as simulator:
        yield simulator


@pytest.fixture
def _log_level() -> Iterator[None]:
    """One of the examples sets the level of the package's log, as the cookbook's function does."""
    logger = logging.getLogger("parallel_processor")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.mark.usefixtures("_log_level")
@pytest.mark.parametrize("name", PUBLIC)
def test_every_example_does_what_it_says(
    name: str, server: Simulator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the examples of a public name and of its members print is what stands below them."""
    write_lines(tmp_path / "requests.jsonl", ROWS)
    urls = {"url": f"{server.url}/v1/embeddings", "chat_url": f"{server.url}/v1/chat/completions"}
    known = PUBLIC | urls | {"folder": str(tmp_path)}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    examples = 0
    for full_name, text in docstrings(name).items():
        test = doctest.DocTestParser().get_doctest(text, known, full_name, full_name, 0)
        examples += len(test.examples)
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0, capsys.readouterr().out
    assert examples, f"{name} has no example"


@pytest.mark.parametrize("name", PUBLIC)
def test_everything_public_is_explained(name: str) -> None:
    """A public name and each of its members say in a sentence what they are."""
    for full_name, text in docstrings(name).items():
        assert re.match(r"[A-Z`].{10,}", text), full_name
        assert re.search(r"[.:?!;…](\s|$)", text), full_name


@pytest.mark.parametrize(
    "name", [name for name, kind in CLASSES.items() if dataclasses.is_dataclass(kind)]
)
def test_every_field_is_explained(name: str) -> None:
    """The docstring of a class names each of its fields, on a line of its own or as code."""
    text = inspect.getdoc(CLASSES[name]) or ""
    code = " ".join(re.findall(r"``.*?``|^ +\w+: ", text, re.MULTILINE))
    fields = {field.name for field in dataclasses.fields(CLASSES[name])}
    assert fields - set(re.findall(r"\w+", code)) == set()
