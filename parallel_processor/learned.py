"""How long answers turn out to be: what is reserved for a request that doesn't say, or says too much."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Hashable

_KEPT = 200
_QUANTILE = 0.9
_EVERY = 10  # answers after which the quantile is worked out anew; fewer tell nothing
_MAX_KEYS = 256


class _Recent:
    """The newest answers of one model and kind."""

    __slots__ = ("expected", "fresh", "sizes")

    def __init__(self) -> None:
        self.sizes: deque[int] = deque(maxlen=_KEPT)
        self.fresh = 0
        self.expected: int | None = None

    def add(self, tokens: int) -> None:
        """One more; works out ``expected`` after each ten."""
        self.sizes.append(tokens)
        self.fresh += 1
        if self.fresh == _EVERY:
            self.fresh = 0
            ordered = sorted(self.sizes)
            self.expected = ordered[int(_QUANTILE * (len(ordered) - 1))]


class OutputSizes:
    """The output tokens of recent answers, by model and kind. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards what follows
        self._recent: dict[Hashable, _Recent] = {}

    def note(self, key: Hashable, tokens: int) -> None:
        """An answer had ``tokens`` of output. Beyond 256 keys, new ones are not learned."""
        with self._lock:
            recent = self._recent.get(key)
            if recent is None:
                if len(self._recent) >= _MAX_KEYS:
                    return
                recent = self._recent[key] = _Recent()
            recent.add(tokens)

    def expected(self, key: Hashable) -> int | None:
        """What nine of ten recent answers stayed within; ``None`` before ten have come."""
        with self._lock:
            recent = self._recent.get(key)
            return recent.expected if recent is not None else None
