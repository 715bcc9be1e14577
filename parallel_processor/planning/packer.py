"""The packer: it collects the requests that are read, and lets them go as packs.

It stands between the reader and the queues. A request that can't be packed goes on at once. Others wait in
an open pack, and go

* when it is full (``pack_sizes.py``);
* when the input pauses: it has been open for a quarter of a second, and could be sent at once;
* when the reader waits, and nothing is under way that would wake it;
* at the end of the input.

So nothing waits for a pack that can't be filled. While others wait for the same bucket, an open pack waits
here instead of there, and gets fuller.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from parallel_processor.models import Estimate, Request
from parallel_processor.planning.pack_sizes import PackSizes, Size
from parallel_processor.planning.packs import Input, Pack, find_input, join
from parallel_processor.runtime.locks import InterruptSafeLock
from parallel_processor.runtime.stop import WakeEvent
from parallel_processor.runtime.threads import InterruptSafeThread
from parallel_processor.tokens.estimates import CostEstimator

if TYPE_CHECKING:
    from parallel_processor.upstreams.replicas import AnyBucket

_PAUSE_S = 0.25
_MOST_OPEN = 64  # a file may have other parameters in each line


class _OpenPack:
    """A pack that is being filled.

    Attributes:
        size: what it takes.
        inputs: what it has, and ``tokens`` how many these are.
        is_old: true once it was looked at in a pause.
    """

    __slots__ = ("inputs", "is_old", "size", "tokens")

    def __init__(self, size: Size) -> None:
        self.size, self.inputs, self.tokens, self.is_old = size, list[Input](), 0, False

    @property
    def is_full(self) -> bool:
        return len(self.inputs) >= self.size.inputs or self.tokens >= self.size.tokens


class Packer:
    """The open packs of one run. Any thread may call it, but :meth:`add` is for the reader.

    Args:
        url: where requests go that name no URL.
        sizes: what packs may hold.
        estimator: estimates what a request will cost.
        group_of: what a request waits for.
        is_waiting: true if others wait for that.
        put: queues a request that can't be packed, or, with an estimate, what became of others. It is called
            by one thread at a time.
        fail: called with an exception that must end the run.
    """

    def __init__(
        self,
        url: str,
        sizes: PackSizes,
        *,
        estimator: CostEstimator,
        group_of: Callable[[Request], AnyBucket],
        is_waiting: Callable[[AnyBucket], bool],
        put: Callable[[Request, Estimate | None], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._url, self._sizes, self._estimator = url, sizes, estimator
        self._group_of, self._is_waiting, self._put, self._fail = group_of, is_waiting, put, fail
        self._lock = InterruptSafeLock()  # guards the fields below, the sizes, and each call of put
        self._open: dict[Hashable, _OpenPack] = {}  # the oldest first
        self._wake, self._closing = WakeEvent(), WakeEvent()  # set while packs are open; at the end
        self._thread = InterruptSafeThread(self._watch, "parallel-processor-packer")

    def add(self, request: Request) -> None:
        """Queue ``request``, alone or in a pack, now or later."""
        found = find_input(request, request.url or self._url)
        if found is not None:
            found = found._replace(estimate=self._estimator.estimate(request))
        with self._lock:
            if found is None:
                self._put(request, None)
            else:
                self._collect(found)

    def _collect(self, found: Input) -> None:
        """Caller holds ``_lock``."""
        tokens = self._estimator.cost(found.estimate).tokens
        pack = self._open.get(found.others)
        if pack is not None and pack.tokens + tokens > pack.size.tokens:
            self._emit(found.others)
            pack = None
        if pack is None:
            pack = self._begin(found)
        pack.inputs.append(found)
        pack.tokens += tokens
        if pack.is_full:
            self._emit(found.others)

    def _begin(self, found: Input) -> _OpenPack:
        """Caller holds ``_lock``."""
        if len(self._open) >= _MOST_OPEN:
            self._emit(next(iter(self._open)))  # the oldest
        pack = self._open[found.others] = _OpenPack(self._sizes.next_size(found.request))
        if pack.size.inputs > 1 and not self._wake.is_set:
            self._thread.start()
            self._wake.set()
        return pack

    def _emit(self, others: Hashable) -> None:
        """Caller holds ``_lock``."""
        inputs = self._open.pop(others).inputs
        self._put(join(inputs), self._estimator.together([each.estimate for each in inputs]))

    def flush(self) -> None:
        """Let all open packs go: nothing more comes now."""
        with self._lock:
            for others in tuple(self._open):
                self._emit(others)

    def fits(self, request: Request) -> bool:
        """False for a pack that is larger than its servers were found to take since it was queued."""
        if not isinstance(request, Pack):
            return True
        return len(request.inputs) <= self._sizes.taken(self._group_of(request))

    def smaller(self, pack: Pack) -> list[Sequence[Input]]:
        """The inputs of ``pack`` in parts that fit."""
        most = int(min(len(pack.inputs), self._sizes.taken(self._group_of(pack))))
        return [pack.inputs[i : i + most] for i in range(0, len(pack.inputs), most)]

    def lower(self, request: Request, inputs: int) -> None:
        """The servers of ``request`` take so many inputs, and not twice as many."""
        with self._lock:
            self._sizes.lower(self._group_of(request), inputs)

    # The thread.

    def _watch(self) -> None:
        try:
            while not self._closing.is_set:
                self._wake.wait()
                self._closing.wait(_PAUSE_S)
                self.look()
        except BaseException as error:  # the run ends with it
            self._fail(error)

    def look(self) -> None:
        """Let packs go that were open before, and could be sent at once. Called time and again."""
        with self._lock:
            for others, pack in tuple(self._open.items()):
                if pack.is_old and not self._is_waiting(self._group_of(pack.inputs[0].request)):
                    self._emit(others)
                pack.is_old = True
            if not self._open and not self._closing.is_set:
                self._wake.clear()

    def close(self) -> None:
        """End the thread."""
        with self._lock:
            self._closing.set()
            self._wake.set()
        self._thread.join()
