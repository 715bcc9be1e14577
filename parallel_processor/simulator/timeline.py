"""What happened in each second: the counters behind GET /timeline."""

from __future__ import annotations

from parallel_processor.runtime.locks import InterruptSafeLock

_FIELDS = 4


class Timeline:
    """Counts by model and whole second since the first request. Safe to call from any thread.

    It takes memory for each second in which something happened, however many requests that was.
    """

    def __init__(self) -> None:
        self._lock = InterruptSafeLock()  # guards _models
        self._models: dict[str, dict[int, list[int]]] = {}

    def book(
        self,
        model: str,
        at_s: float,
        *,
        admitted: int = 0,
        tokens: int = 0,
        refused: int = 0,
        answered: int = 0,
    ) -> None:
        """Add to what happened at a time."""
        second = int(at_s)
        with self._lock:
            seconds = self._models.setdefault(model, {})
            counts = seconds.get(second)
            if counts is None:
                seconds[second] = [admitted, tokens, refused, answered]
                return
            counts[0] += admitted
            counts[1] += tokens
            counts[2] += refused
            counts[3] += answered

    def snapshot(self) -> dict[str, list[list[int]]]:
        """Return for each model [admitted, tokens charged, refused, answered] of every second."""
        with self._lock:
            booked = {
                model: {second: counts[:] for second, counts in seconds.items()}
                for model, seconds in self._models.items()
            }
        return {
            model: [seconds.get(second, [0] * _FIELDS) for second in range(max(seconds) + 1)]
            for model, seconds in booked.items()
        }
