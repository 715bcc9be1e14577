"""The file of limits by model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from parallel_processor.cli.limits_file import read_limits_file
from parallel_processor.exceptions import ConfigurationError
from parallel_processor.options import Limits


def read(tmp_path: Path, content: object, **common: float) -> dict[str, Limits]:
    """The limits in a file with that content; what isn't text becomes JSON."""
    path = tmp_path / "limits.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return read_limits_file(path, **common)


def refused(tmp_path: Path, content: object) -> str:
    """What is said against that content."""
    with pytest.raises(ConfigurationError) as caught:
        read(tmp_path, content)
    return str(caught.value)


def test_the_patterns_stay_in_their_order(tmp_path: Path) -> None:
    """The first that matches counts, so that the file's order matters."""
    names = ["gpt-4o-mini*", "gpt-4o*", "modèle-\u6a21", "*"]
    content = json.dumps({name: {} for name in names}, ensure_ascii=False)  # the file is UTF-8
    assert list(read(tmp_path, content)) == names
    assert read(tmp_path, {}) == {}


@pytest.mark.parametrize(
    ("entry", "limits"),
    [
        ({}, ("auto", "auto")),
        ({"requests_per_minute": 500}, (500, "auto")),
        ({"requests_per_minute": "auto", "tokens_per_minute": 30000.5}, ("auto", 30000.5)),
        ({"requests_per_minute": "inf", "tokens_per_minute": None}, (math.inf, math.inf)),
        (
            {"input_tokens_per_minute": 40000, "output_tokens_per_minute": 8000},
            ("auto", "auto", 40000, 8000),
        ),
        ({"input_tokens_per_minute": None, "output_tokens_per_minute": "inf"}, ("auto", "auto")),
    ],
)
def test_an_entry_is_a_limit(tmp_path: Path, entry: object, limits: tuple[Any, ...]) -> None:
    """A number is a maximum; what isn't named is found out; "inf" and null are no limit."""
    names = (
        f"{kind}_per_minute" for kind in ("requests", "tokens", "input_tokens", "output_tokens")
    )
    assert read(tmp_path, {"m": entry}) == {"m": Limits(**dict(zip(names, limits, strict=False)))}


def test_what_is_common_holds_for_each(tmp_path: Path) -> None:
    """Burst and headroom come from the command line, and are the same for all models."""
    found = read(tmp_path, {"a": {}, "b": {}}, burst_seconds=2.0, headroom=0.25)
    assert [(each.burst_seconds, each.headroom) for each in found.values()] == [(2.0, 0.25)] * 2


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (500, 'must be an object such as {"requests_per_minute": 500}'),
        (None, "must be an object"),
        ([], "must be an object"),
        ({"rpm": 5}, "the unknown name 'rpm'; known are requests_per_minute, tokens_per_minute"),
        ({"burst_seconds": 5}, "have the unknown name 'burst_seconds'; known"),
        ({"requests_per_minute": 0}, "requests_per_minute must be above 0, not 0"),
        ({"requests_per_minute": -5}, "requests_per_minute must be above 0, not -5"),
        ({"tokens_per_minute": "500"}, "tokens_per_minute must be a number, inf or auto, not '5"),
        ({"tokens_per_minute": True}, "tokens_per_minute must be a number, not True"),
        ({"tokens_per_minute": [5]}, "tokens_per_minute must be a number, not [5]"),
        ({"tokens_per_minute": math.nan}, "tokens_per_minute must be a number, not nan"),
        ({"input_tokens_per_minute": "auto"}, "input_tokens_per_minute must be a number"),
    ],
)
def test_an_entry_that_cant_work_is_refused(tmp_path: Path, entry: Any, message: str) -> None:
    """The message names the file, the pattern and the value."""
    found = refused(tmp_path, {"good": {}, "gpt-4o*": entry})
    assert found.startswith(f"{tmp_path / 'limits.json'}: the limits of 'gpt-4o*'")
    assert message in found


@pytest.mark.parametrize("content", ["[]", "5", "null", '"a"'])
def test_a_file_without_patterns_is_refused(tmp_path: Path, content: str) -> None:
    """Limits must be for something."""
    assert "limits.json must be an object of limits by model pattern, such as " in refused(
        tmp_path, content
    )


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('{"m": {}, "n": {}, "m": {"requests_per_minute": 5}}', "m"),
        ('{"m": {"requests_per_minute": 5, "requests_per_minute": 6}}', "requests_per_minute"),
    ],
)
def test_what_is_there_twice_is_refused(tmp_path: Path, content: str, name: str) -> None:
    """Of two limits nobody knows which is meant."""
    assert f"{name!r} is there twice" in refused(tmp_path, content)


_NO_JSON = ("", "{", '{"m": {}} x', '{"m": {"requests_per_minute": 1e}}')


@pytest.mark.parametrize("content", [*_NO_JSON, '{"m": ' * 100_000, "[" * 100_000])
def test_what_is_no_json_is_refused(tmp_path: Path, content: str) -> None:
    """The message names the file, and deep nesting doesn't end in a traceback."""
    found = refused(tmp_path, content)
    assert found.startswith(f"can't read the limits in {tmp_path / 'limits.json'}: ")


def test_a_file_that_cant_be_read_is_refused(tmp_path: Path) -> None:
    """A missing file, a directory, and bytes that are no UTF-8."""
    binary = tmp_path / "binary"
    binary.write_bytes(b'{"m\xff": {}}')
    for path in (tmp_path / "nowhere", tmp_path, binary):
        with pytest.raises(ConfigurationError, match="can't read the limits in"):
            read_limits_file(path)
