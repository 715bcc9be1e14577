"""The packer: it collects the requests that are read, and lets them go as packs.

It stands between the reader and the queues. A request that can't be packed goes on at once. Others wait in
an open pack, and go

* when it is full (``pack_sizes.py``);
* when the input pauses: it has been open for a quarter to half a second, and could be sent at once;
* when the reader waits, and nothing is under way that would wake it;
* at the end of the input.

So nothing waits for a pack that can't be filled. While others wait for the same bucket, an open pack waits
here instead of there, and gets fuller.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING

from parallel_processor.models import Estimate, Request, WaitCause
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
_MOST_UNKNOWN = 4096
_MOMENT_S, _MOMENTS = 0.005, 400  # for a bucket to say at the end what it waits for


class _OpenPack:
    """What is kept of one kind, to go together.

    Attributes:
        group: what its requests wait for.
        size: what a pack of them may hold.
        inputs: what there is, each with its tokens, whose sum is ``tokens``.
        is_old: true once it was looked at in a pause.
    """

    __slots__ = ("group", "inputs", "is_old", "size", "tokens")

    def __init__(self, group: AnyBucket, size: Size) -> None:
        self.group, self.size, self.tokens, self.is_old = group, size, 0, False
        self.inputs: list[tuple[Input, int]] = []

    @property
    def is_full(self) -> bool:
        """True if there is enough for a pack."""
        return len(self.inputs) >= self.size.inputs or self.tokens >= self.size.tokens

    def take(self, most: int) -> list[Input]:
        """Take the first ones that fit into a pack, ``most`` at most; one at least."""
        count = tokens = 0
        for _, more in self.inputs[:most]:
            if count and tokens + more > self.size.tokens:
                break
            count, tokens = count + 1, tokens + more
        taken = [each for each, _ in self.inputs[:count]]
        del self.inputs[:count]
        self.tokens -= tokens
        return taken


class Packer:
    """The open packs of one run. Any thread may call it, but :meth:`add` is for the reader.

    Args:
        url: where requests go that name no URL.
        sizes: what packs may hold.
        estimator: estimates what a request will cost.
        group_of: what a request waits for.
        is_waiting: true if others wait for that.
        put: queues a request that can't be packed, or, with an estimate, what others became. Called by one
            thread at a time.
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

    # Caller holds ``_lock``.

    def _collect(self, found: Input) -> None:
        pack = self._open.get(found.others) or self._begin(found)
        tokens = self._estimator.cost(found.estimate).tokens
        pack.inputs.append((found, tokens))
        pack.tokens += tokens
        if self._sizes.packs(pack.group):
            while pack.is_full:
                self._send(pack, pack.size.inputs)
                pack.size = self._sizes.size(
                    found.request, pack.group
                )  # the limits may have changed
            if self._sizes.is_auto and not self._is_waiting(pack.group):
                self._send_all(pack)
        else:
            self._try(pack)
        if not pack.inputs:
            del self._open[found.others]

    def _begin(self, found: Input) -> _OpenPack:
        if len(self._open) >= _MOST_OPEN:
            self._send_all(self._open.pop(next(iter(self._open))))  # the oldest
        group = self._group_of(found.request)
        pack = _OpenPack(group, self._sizes.size(found.request, group))
        self._open[found.others] = pack
        if pack.size.inputs > 1 and not self._wake.is_set:
            self._thread.start()
            self._wake.set()
        return pack

    def _try(self, pack: _OpenPack) -> None:
        """With ``auto``: let some go one by one, to see if they have to wait for the limit of requests.

        The bucket takes a moment to say so, in which many more may be read. So few go at first, and twice
        as many each time that none has to wait.
        """
        if not self._is_waiting(pack.group):
            for _ in range(min(self._sizes.trial(pack.group), len(pack.inputs))):
                self._send(pack, 1)
        elif pack.group.wait_cause is not WaitCause.NOTHING or len(pack.inputs) >= _MOST_UNKNOWN:
            self._send_all(pack)

    def _send(self, pack: _OpenPack, most: int) -> None:
        inputs = pack.take(most)
        self._put(join(inputs), self._estimator.together([each.estimate for each in inputs]))

    def _send_all(self, pack: _OpenPack) -> None:
        while pack.inputs:
            self._send(pack, pack.size.inputs if self._sizes.packs(pack.group) else 1)

    # For any thread.

    def flush(self) -> None:
        """Let all open packs go: nothing more comes now."""
        for _ in range(_MOMENTS if self._sizes.is_auto else 0):
            with self._lock:
                for pack in self._open.values():
                    if not self._sizes.packs(pack.group):
                        self._try(pack)
                is_known = all(self._sizes.packs(pack.group) for pack in self._open.values())
            if is_known or self._closing.wait(_MOMENT_S):
                break
        with self._lock:
            while self._open:
                self._send_all(self._open.pop(next(iter(self._open))))

    def fits(self, request: Request) -> bool:
        """False for a pack that is larger than its servers were found to take since it was queued."""
        if not isinstance(request, Pack) or not self._sizes.is_lowered:
            return True
        return len(request.inputs) <= self._sizes.taken(self._group_of(request))

    def smaller(self, pack: Pack) -> list[Sequence[Input]]:
        """The inputs of ``pack`` in parts that fit."""
        most = int(min(len(pack.inputs), self._sizes.taken(self._group_of(pack))))
        return [pack.inputs[i : i + most] for i in range(0, len(pack.inputs), most)]

    def lower(self, request: Request, inputs: int) -> bool:
        """The servers of ``request`` take so many inputs, and not twice as many; true if that is new."""
        with self._lock:
            return self._sizes.lower(self._group_of(request), inputs)

    def proves(self, pack: Pack) -> None:
        """The answer to ``pack`` came apart."""
        with self._lock:
            self._sizes.prove(self._group_of(pack), len(pack.inputs))

    def doubts(self, pack: Pack) -> int:
        """The answer to ``pack`` didn't: how many inputs later ones have for it; 0 for as many as now."""
        with self._lock:
            return self._sizes.doubt(self._group_of(pack), len(pack.inputs))

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
                waits = self._is_waiting(pack.group) and self._sizes.packs(pack.group)
                if pack.is_old and not waits:
                    self._send_all(self._open.pop(others))
                pack.is_old = True
            if not self._open and not self._closing.is_set:
                self._wake.clear()

    def close(self) -> list[Request]:
        """End the thread. Returns the requests that are left, after a stop."""
        with self._lock:
            self._closing.set()
            self._wake.set()
            packs, self._open = self._open.values(), {}
        self._thread.join()
        return [each.request for pack in packs for each, _ in pack.inputs]
