"""Which models are told apart: a client may name as many as it likes, and memory must not grow."""

from __future__ import annotations

from parallel_processor.runtime.locks import InterruptSafeLock

MOST_MODELS = 1_000
OTHERS = "(others)"
"""The name under which all further models go."""

_LONGEST = 256


class ModelNames:
    """Remembers the first models by name. Safe to call from any thread."""

    def __init__(self, most: int = MOST_MODELS) -> None:
        self._most = most
        self._lock = InterruptSafeLock()  # held to add to _known, which may be read without it
        self._known: set[str] = set()

    def of(self, model: str) -> str:
        """Return a model's name, its first 256 characters, or `OTHERS` if there are too many."""
        name = model[:_LONGEST]
        if name in self._known:
            return name
        with self._lock:
            if len(self._known) >= self._most and name not in self._known:
                return OTHERS
            self._known.add(name)
            return name
