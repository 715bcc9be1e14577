"""The settings as keyword arguments are those of ``Options``, name by name and type by type."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import get_type_hints

import pytest

from parallel_processor import Options, Processor, Settings, process_file
from parallel_processor import options as vocabulary


def test_the_settings_are_the_options() -> None:
    """Every field of ``Options`` is a setting of the same type, in the same order, and nothing else is."""
    wanted = get_type_hints(Options, vars(vocabulary))
    assert list(get_type_hints(Settings).items()) == list(wanted.items())


def test_any_setting_may_be_missing() -> None:
    """No setting is required, since each option has a default."""
    assert Settings.__required_keys__ == frozenset()
    assert Settings.__optional_keys__ == set(Settings.__annotations__)


@pytest.mark.parametrize("function", [Processor, process_file])
def test_the_settings_are_the_keyword_arguments(function: object) -> None:
    """Whoever takes settings takes these, beside names of its own that are none of them."""
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    assert parameters["settings"].annotation == "Unpack[Settings]"
    assert not set(parameters) & set(Settings.__annotations__)


def test_type_checkers_may_read_the_package() -> None:
    """The marker of PEP 561 is beside the modules, in the wheel too."""
    assert Path(inspect.getfile(Processor)).with_name("py.typed").is_file()
