"""The key as people keep it: in a file, in a variable, with quotes or ``Bearer`` around it.

What is no key is explained by the name of the place that it came from.
"""

from __future__ import annotations

import codecs
import re
from pathlib import Path

from parallel_processor.exceptions import ConfigurationError

# What stands around a key in a file of settings, in a header, or in a shell's command.
_AROUND = re.compile(
    r"(?:export\s+)?(?:[A-Za-z_]\w*_KEY\s*[=:]\s*)?(?P<quote>['\"]?)"
    r"(?:(?:authorization:\s*)?bearer\s+)?(?P<inner>['\"]?)(?P<key>.*?)(?P=inner)(?P=quote)",
    re.IGNORECASE | re.DOTALL,
)


class PlacedKey(str):
    """A key that knows where it was found. Its ``place`` is for messages."""

    place = ""


def _placed(key: str, place: str) -> PlacedKey:
    placed = PlacedKey(key)
    placed.place = place
    return placed


def read_key(text: str, place: str) -> str:
    """The key in ``text``, which is at ``place``, without what stands around it; empty if there is none.

    Raises :class:`ConfigurationError` for what can't be sent as a key.
    """
    text = text.strip().lstrip("\ufeff").strip()
    match = _AROUND.fullmatch(text)
    key = match["key"].strip() if match else text
    lines = len(key.splitlines())
    if lines > 1:
        raise ConfigurationError(
            f"{place} must hold one key and nothing else, but has {lines} lines"
        )
    for number, letter in enumerate(key, 1):
        if not letter.isascii() or not letter.isprintable() or letter == " ":
            raise ConfigurationError(
                f"the key of {place} has a character that no key has, at position {number}: "
                f"{ascii(letter)}"
            )
    return _placed(key, place)


def read_key_file(path: str, place: str) -> tuple[str, ...]:
    """The keys in the file at ``path``, one a line, without those that stand there twice.

    ``place`` names the file in messages. Blank lines, and those that begin with ``#``, are left out. Raises
    :class:`ConfigurationError` if there is no key.
    """
    try:
        data = Path(path).read_bytes()
        is_utf_16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if is_utf_16 else "utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"can't read {place}: {error.strerror or error}") from None
    except ValueError as error:
        raise ConfigurationError(f"{place} is no text: {error}") from None
    lines = text.lstrip("\ufeff").splitlines()
    found = {
        number: line.strip()
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.lstrip().startswith("#")
    }
    keys = [
        read_key(line, place if len(found) == 1 else f"line {number} of {place}")
        for number, line in found.items()
    ]
    if not any(keys):
        raise ConfigurationError(f"there is no key in {place}")
    return tuple(dict.fromkeys(filter(None, keys)))
