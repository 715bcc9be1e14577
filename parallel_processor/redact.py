"""Keys out of texts: servers echo the key, or parts of it, in their errors."""

from __future__ import annotations

import re

_LOOKS_LIKE_A_KEY = (
    r"\b(?:sk|pk|gsk|xai|rk|key)-[-_*.\w]{8,}"  # OpenAI, Anthropic, Groq, xAI …
    r"|\bgsk_\w{8,}"
    r"|\bAIza[-_\w]{20,}"  # Google
    r"|(?i:\bbearer\s+)[-_.=+/\w]{8,}"
)
_SHOWN = 4  # how few characters at either end of a key are already a part of it
_PLACEHOLDER = "[redacted]"


class Redactor:
    """Replaces the key of a run, what a server shows of it, and whatever else looks like a key."""

    def __init__(self, api_key: str | None) -> None:
        patterns = [_LOOKS_LIKE_A_KEY]
        if api_key and len(api_key) >= 2 * _SHOWN:
            head, tail = re.escape(api_key[:_SHOWN]), re.escape(api_key[-_SHOWN:])
            patterns.insert(
                0, rf"{re.escape(api_key)}|{head}[-_.…*\w]*[*.…]+[-_.…*\w]*|[*…]+{tail}"
            )
        elif api_key:
            patterns.insert(0, re.escape(api_key))
        self._pattern = re.compile("|".join(patterns))

    def __call__(self, text: str) -> str:
        """``text`` without keys."""
        return self._pattern.sub(_PLACEHOLDER, text)
