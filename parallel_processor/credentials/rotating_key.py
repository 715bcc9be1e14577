"""A key that expires: it is fetched when it is first needed, when it is old, and when a server refuses it.

One thread at a time fetches, in a thread of its own. Meanwhile requests are sent with the key that there
is. Only those whose key was refused wait. What they are told:

* If the key was replaced after the request was sent, the request is sent again with the new one.
* If the refused key was itself fetched for a refusal, and no server ever took it, the key is wrong.
* A fetch that fails leaves the old key in its place, and is tried again ten seconds later. After six
  failures in a row, those who wait are told that there is no other key.

Nothing is fetched twice within ten seconds, whatever happens.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from parallel_processor.credentials.redact import Redactor
from parallel_processor.exceptions import ConfigurationError
from parallel_processor.runtime.threads import InterruptSafeThread

_log = logging.getLogger("parallel_processor")
_LEAST_INTERVAL_S = 10.0  # between the beginnings of two fetches
_MOST_FAILURES = 6  # in a row
_FRESH_S = 60.0  # for so long, a refusal says that a key is wrong, and not that it has expired
_KEPT_TEXTS = 32  # old keys that are still cut out of texts


class KeyVersion(NamedTuple):
    """A key, and how many there were up to it; 0 before the first."""

    text: str
    generation: int


class RotatingKey:
    """A key that ``fetch`` gives, again and again. Any thread may call it, but for ``fetch_first``.

    A copy in another process (pickled) has the present key, and fetches the next ones by itself; so does a
    fork. Calling it gives the present key.

    Args:
        fetch: returns the key. One thread at a time calls it.
        ttl_s: seconds after which a key is replaced though no server has refused it.
        interval_s: the least number of seconds between two fetches.
        clock: seconds that never go back.

    Attributes:
        version: the present key.
        texts: the present key and the ones before it.
        accepted: the newest generation that a server took. Whoever sends sets it.
    """

    def __init__(
        self,
        fetch: Callable[[], str],
        ttl_s: float = math.inf,
        *,
        interval_s: float = _LEAST_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fetch, self.ttl_s = fetch, ttl_s
        self._interval_s, self._clock = interval_s, clock
        self.version, self.accepted = KeyVersion("", 0), 0
        self.texts: tuple[str, ...] = ()
        self._process_id, self._changed = os.getpid(), threading.Condition()  # guards what follows
        self._is_fetching = False
        self._is_for_refusal = False  # the present key was fetched for one
        self._refused = 0  # the newest generation that was refused
        self._fetched_at_s, self._next_fetch_at_s = -math.inf, -math.inf
        self._due_at_s = math.inf  # when the present key is old
        self._failures = 0  # in a row
        self._fault, self._is_told = "", False  # the last one, and whether it was logged

    @property
    def _lock(self) -> threading.Condition:
        """Guards the fields. A fork has its own: its parent's may stay held, and nobody fetches there."""
        if self._process_id != os.getpid():
            self._process_id, self._changed = os.getpid(), threading.Condition()
            self._is_fetching, self._next_fetch_at_s = False, -math.inf
        return self._changed

    def __reduce__(self) -> tuple[Any, ...]:
        return _copy, (self.fetch, self.ttl_s, self._interval_s, self.version.text, self.texts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"

    def __call__(self) -> str:
        """The present key. Raises as :meth:`fetch_first` does."""
        self.fetch_first()
        return self.version.text

    def fetch_first(self) -> None:
        """Fetch the key, in this thread, if there is none yet.

        Raises :class:`ConfigurationError` if there is none to be had.
        """
        if not self.version.generation:
            self._take(self._fetched())

    def usable(self, is_cancelled: Callable[[], bool]) -> KeyVersion:
        """The key to send with. It is waited for if the present one was refused.

        An old key is replaced while it is still sent.
        """
        generation = self.version.generation
        if not generation or generation == self._refused:
            self._next(generation, is_cancelled)
        elif self._clock() >= self._due_at_s:
            self._fetch_if_possible()
        return self.version

    def refused(self, generation: int, is_cancelled: Callable[[], bool]) -> str | None:
        """A server has refused the key of ``generation``. Waits for the next one.

        ``None``: send again, with the key of :meth:`usable`. Else why there is no other key, which may be
        empty: then the key is wrong.
        """
        with self._lock:
            if generation < self.version.generation:
                return None
            is_fresh = self._clock() - self._fetched_at_s < _FRESH_S
            if self._is_for_refusal and is_fresh and self.accepted < generation:
                return ""
            is_first, self._refused = self._refused < generation, max(self._refused, generation)
        if is_first:
            _log.info("the API key was refused: it is fetched again")
        return self._next(generation, is_cancelled)

    def wake(self) -> None:
        """Have those who wait look whether they are cancelled."""
        with self._lock:
            self._changed.notify_all()

    def _next(self, generation: int, is_cancelled: Callable[[], bool]) -> str | None:
        """Wait until the key of ``generation`` is replaced; ``None``, or why it is not."""
        with self._lock:
            if self._clock() >= self._next_fetch_at_s:
                self._failures %= (
                    _MOST_FAILURES  # those who waited for the last series are told by now
                )
        while not is_cancelled():
            with self._lock:
                if self.version.generation > generation:
                    return None
                if self._failures >= _MOST_FAILURES:
                    return self._fault
                wait_s = None if self._is_fetching else self._next_fetch_at_s - self._clock()
                if wait_s is None or wait_s > 0:
                    if not is_cancelled():
                        self._changed.wait(wait_s)
                    continue
            self._fetch_if_possible()
        return "cancelled"

    def _fetch_if_possible(self) -> None:
        """Begin to fetch, unless a fetch is under way or the last one has only just begun."""
        with self._lock:
            now = self._clock()
            if self._is_fetching or now < self._next_fetch_at_s:
                return
            self._is_fetching, self._due_at_s = True, math.inf
            self._next_fetch_at_s = now + self._interval_s
        try:
            InterruptSafeThread(self._fetch_again, "parallel-processor-key").start()
        except RuntimeError:  # the system has no thread left
            self._fetch_again()

    def _fetch_again(self) -> None:
        """Runs in a thread of its own: fetch, and tell those who wait."""
        try:
            text = self._fetched()
        except BaseException as error:  # whatever it is, somebody may wait
            self._fail(str(error))
        else:
            self._take(text)

    def _fetched(self) -> str:
        try:
            text = self.fetch()
        except ConfigurationError as error:  # it may repeat a key that has expired
            raise ConfigurationError(Redactor(*self.texts)(str(error))) from None
        except Exception as error:
            why = Redactor(*self.texts)(f"{type(error).__name__}: {error}")
            raise ConfigurationError(f"the function api_key failed: {why}") from error
        if not is_key(text) or not text:
            raise ConfigurationError(
                "the function api_key must return printable ASCII without spaces around it"
            )
        return text

    def _take(self, text: str) -> None:
        with self._lock:
            now, (before, generation) = self._clock(), self.version
            self._is_for_refusal = 0 < generation == self._refused
            self._is_fetching, self._failures, self._is_told = False, 0, False
            self._fetched_at_s, self._due_at_s = now, now + self.ttl_s
            self._next_fetch_at_s = max(self._next_fetch_at_s, now)
            if not generation:
                self._next_fetch_at_s = now + self._interval_s
            if text not in self.texts:
                self.texts = (text, *self.texts[: _KEPT_TEXTS - 1])
            if text != before or self._is_for_refusal:
                self.version = KeyVersion(text, generation + 1)
            self._changed.notify_all()

    def _fail(self, fault: str) -> None:
        with self._lock:
            was_told, self._is_told = self._is_told, True
        if not was_told:  # before those who wait go on
            _log.warning("%s: the old key is kept, and this is tried again every 10 s", fault)
        with self._lock:
            self._failures += 1
            self._is_fetching, self._fault = False, fault
            self._next_fetch_at_s = self._clock() + self._interval_s
            if self.ttl_s < math.inf:
                self._due_at_s = self._next_fetch_at_s
            self._changed.notify_all()


def is_key(key: object) -> bool:
    """True for what can be sent as a key, and for an empty text, which is none."""
    return isinstance(key, str) and key.isascii() and key.isprintable() and key == key.strip()


def _copy(
    fetch: Callable[[], str], ttl_s: float, interval_s: float, text: str, texts: tuple[str, ...]
) -> RotatingKey:
    made = RotatingKey(fetch, ttl_s, interval_s=interval_s)
    if text:
        made._take(text)
        made.texts, made._next_fetch_at_s = texts, -math.inf  # nothing was fetched here
    return made
