"""Headers and parameters as they are typed: ``--header`` and ``--query``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from parallel_processor.exceptions import ConfigurationError


def read_headers(given: Iterable[str] | None) -> dict[str, str]:
    """The headers of ``--header``; ``@FILE`` stands for the lines of a file."""
    found: dict[str, str] = {}
    for place, line in (pair for each in given or () for pair in _header_lines(each)):
        name, colon, value = line.partition(":")
        if not colon or not name.strip() or not value.strip():
            raise ConfigurationError(f"{place} is no header: write it as 'NAME: VALUE'")
        found[name.strip()] = value.strip()
    return found


def _header_lines(given: str) -> list[tuple[str, str]]:
    """Headers, and where each stands."""
    if not given.startswith("@"):
        name, colon, _ = given.partition(":")  # what follows may be a secret
        return [(f"--header {name!r}" if colon else "a --header without a colon", given)]
    place = f"--header {given}"
    try:
        text = Path(given[1:]).read_text("utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"can't read {place}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigurationError(f"{place} is no text: {error}") from None
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    kept = [(number, line) for number, line in lines if line and not line.startswith("#")]
    return [(f"line {number} of {place}", line) for number, line in kept]


def read_query(given: Iterable[str] | None) -> dict[str, str]:
    """The parameters of ``--query``."""
    pairs = [each.partition("=") for each in given or ()]
    if any(not equals or not name for name, equals, _ in pairs):
        raise ConfigurationError("each --query must be NAME=VALUE")
    return {name: value for name, _, value in pairs}
