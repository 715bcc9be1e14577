"""Removes API keys from texts: servers repeat the key, or parts of it, in their errors.

A pattern matches a candidate to its end before a function decides about it. So the time for a long
text grows only with its length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from urllib.parse import quote, quote_plus

_ESCAPE = r"(?<=\\[nrt])"  # after an escaped line end in JSON: its letter belongs to no word
_LOOKS_LIKE_A_KEY = re.compile(
    rf"(?:(?<![^\W_])|{_ESCAPE})(?:"
    r"(?:sk|pk|gsk|xai)-[-_*.\w]{7,}[-_*\w]"  # OpenAI, Anthropic, xAI …
    r"|gsk_\w{8,}"  # Groq
    r"|AIza[-_\w]{20,}"  # Google
    r"|(?i:bearer)\s+[-_*.~=+/\w]{8,})"
)
_LEAST_SECRET = 8  # a shorter key is the dummy of a local server, and may be a word
_SHOWN = 4  # servers show at least so many characters of either end of a key
_NOTHING = "(?!)"  # matches nowhere
_MASKS = ("*", "…", "..")
_PLACEHOLDER = "[redacted]"


class Redactor:
    """Replaces the secrets of a run, parts of them, and anything else that looks like a key.

    The secrets are API keys, a password and the header that carries it, and whatever else must not be seen;
    any may be missing. ``more`` tells those that come and go. Any thread may call it.
    """

    def __init__(
        self, *secrets: str | None, more: Callable[[], Iterable[str]] | None = None
    ) -> None:
        self._secrets = [_Secret(secret) for secret in dict.fromkeys(secrets) if secret]
        self._more = more
        self._changing: dict[str, _Secret] = {}

    def __call__(self, text: str) -> str:
        """``text`` without secrets."""
        for secret in self._secrets:
            text = secret.cut_out(text)
        if self._more is not None:
            known = self._changing
            self._changing = {each: known.get(each) or _Secret(each) for each in self._more()}
            for secret in tuple(self._changing.values()):
                text = secret.cut_out(text)
        return _LOOKS_LIKE_A_KEY.sub(_replace_random, text)


class _Secret:
    """Finds one secret, and parts of it."""

    def __init__(self, key: str) -> None:
        escaped = json.dumps(key)[1:-1]
        spellings = {key, escaped, key.replace("/", r"\/"), escaped.replace("/", r"\/")}
        spellings |= {quote_plus(key), quote(key), quote(key, safe="")}  # in a URL
        whole = "|".join(map(re.escape, sorted(spellings)))
        part = _NOTHING
        if len(key) >= _LEAST_SECRET:
            head, tail = re.escape(key[:_SHOWN]), re.escape(key[-_SHOWN:])
            part = rf"{head}[-_.…*\w]*|(?<![.…*])[.…*]+{tail}"
        else:
            whole = rf"(?:(?<!\w)|{_ESCAPE})(?:{whole})(?!\w)"
        self._key, self._whole, self._part = key, re.compile(whole), re.compile(part)

    def cut_out(self, text: str) -> str:
        """``text`` without the secret."""
        return self._part.sub(self._replace_part, self._whole.sub(_PLACEHOLDER, text))

    def _replace_part(self, match: re.Match[str]) -> str:
        """Replace a part of the key if it is masked, or too long to be another word."""
        found = match[0]
        is_start = len(found) >= _LEAST_SECRET and self._key.startswith(found)
        return _PLACEHOLDER if is_start or any(mask in found for mask in _MASKS) else found


def _replace_random(match: re.Match[str]) -> str:
    """Replace a match unless it is a word: words have no digits, and fewer than 40 characters."""
    found = match[0]
    is_word = len(found) < 40 and not any(c.isdigit() or c == "*" for c in found)
    return found if is_word else _PLACEHOLDER
