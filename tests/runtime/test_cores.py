"""When the threads of a run share a core, and when they leave it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable

import pytest

from parallel_processor.runtime.cores import Cores, SharedCore, _own_cores, joined
from parallel_processor.runtime.threads import InterruptSafeThread

ALL = Cores({0, 1, 2, 3})


class Load:
    """Workers whose rate depends on the cores they are told to use, on clocks that are set by hand."""

    def __init__(self, *, free: float, shared: float, busy: float = 1.0) -> None:
        self.free, self.shared, self.busy = free, shared, busy
        self.now_s = self.cpu_s = 100.0
        self.cores = SharedCore(clock=lambda: self.now_s, cpu_clock=lambda: self.cpu_s, cores=ALL)
        self.ended = 0
        self.shared_s = 0.0

    @property
    def is_shared(self) -> bool:
        return len(self.cores.wanted) == 1

    def run(self, seconds: float) -> float:
        """Let requests end for so long; the share of the time on one core."""
        until, before, began = self.now_s + seconds, self.shared_s, self.now_s
        while self.now_s < until:
            step_s = 1.0 / (self.shared if self.is_shared else self.free)
            self.shared_s += step_s * self.is_shared
            self.now_s += step_s
            self.cpu_s += step_s * self.busy
            self.ended += 1
            self.cores.ended()
        return (self.shared_s - before) / (self.now_s - began)


def test_busy_workers_share_a_core_if_that_is_faster() -> None:
    """They try it soon, stay, and look ever more rarely whether it still is."""
    load = Load(free=5000, shared=7000)
    load.run(1.0)
    assert load.is_shared
    assert load.run(10.0) > 0.9
    assert load.run(100.0) > 0.98


def test_workers_that_lose_by_it_are_let_go() -> None:
    """Long prompts are counted, encrypted and parsed on several cores at once."""
    load = Load(free=300, shared=180)
    assert load.run(10.0) < 0.2  # three trials
    assert load.run(100.0) < 0.03
    assert not load.is_shared


def test_a_small_difference_moves_nobody() -> None:
    """What may be chance is no reason, neither to go to one core nor to leave it."""
    assert Load(free=500, shared=510).run(100.0) < 0.03
    assert Load(free=5100, shared=5000).run(100.0) > 0.97


def test_short_requests_begin_on_one_core() -> None:
    """That is nearly always better for them. Where it isn't, they leave it soon."""
    load = Load(free=5000, shared=7000)
    load.run(0.1)
    assert load.is_shared
    load = Load(free=5000, shared=3000)
    assert 0.1 < load.run(10.0) < 0.4
    assert load.run(100.0) < 0.03


def test_workers_that_wait_for_a_server_never_move() -> None:
    """The interpreter's lock is free then."""
    load = Load(free=5000, shared=9000, busy=0.3)
    load.now_s += 1.0  # until the first answer
    assert load.run(100.0) == 0.0
    assert Load(free=5000, shared=9000, busy=0.3).run(100.0) < 0.002


def test_a_core_that_others_take_is_left_soon() -> None:
    """The rate falls; a trial shows that the other cores are better. It is tried again later."""
    load = Load(free=5000, shared=7000)
    load.run(60.0)
    load.shared = 2000.0
    assert load.run(4.0) < 0.7
    assert not load.is_shared
    load.shared = 7000.0
    load.run(100.0)
    assert load.is_shared


def test_workers_with_less_to_do_leave_it() -> None:
    """When a server becomes slow, there is nothing to gain any more."""
    load = Load(free=5000, shared=7000)
    load.run(2.0)
    load.busy = 0.2
    load.run(1.0)
    assert not load.is_shared


@pytest.mark.parametrize("cores", [Cores(), Cores({3})])
def test_without_a_choice_nothing_is_tried(cores: Cores) -> None:
    """On a single core, and where threads can't choose."""
    load = Load(free=5000, shared=7000)
    load.cores = SharedCore(clock=lambda: load.now_s, cpu_clock=lambda: load.cpu_s, cores=cores)
    load.run(10.0)
    assert load.cores.wanted == cores


CAN_CHOOSE = pytest.mark.skipif(
    len(_own_cores()) < 2, reason="threads can't choose among several cores"
)


@CAN_CHOOSE
def test_those_that_joined_move_together_and_nobody_else() -> None:
    """Those that come later are moved as well, and those that leave come back."""
    own = Cores(os.sched_getaffinity(0))
    core = SharedCore()
    one = Cores({max(own)})
    joined, go_on, seen = threading.Barrier(3), threading.Barrier(3), []

    def work() -> None:
        core.join()
        joined.wait(10)
        go_on.wait(10)
        seen.append(Cores(os.sched_getaffinity(0)))
        core.leave()
        seen.append(Cores(os.sched_getaffinity(0)))

    workers = [threading.Thread(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    joined.wait(10)
    core._go(one)
    go_on.wait(10)
    for worker in workers:
        worker.join()
    assert sorted(seen, key=len) == [one, one, own, own]
    in_thread(core.join, lambda: seen.append(Cores(os.sched_getaffinity(0))))
    assert seen[-1] == one
    assert Cores(os.sched_getaffinity(0)) == own


@CAN_CHOOSE
def test_what_a_member_starts_is_a_member() -> None:
    """A run's writer and dispatcher are started by its reader, and stay with it."""
    own, core, seen = Cores(os.sched_getaffinity(0)), SharedCore(), []
    one = Cores({max(own)})
    core._go(one)

    def look() -> None:
        seen.append((joined(), Cores(os.sched_getaffinity(0))))

    def start() -> None:
        for _ in range(2):
            thread = InterruptSafeThread(look, "looks")
            thread.start()
            thread.join()
            core.leave()

    in_thread(core.join, start)
    assert seen == [(core, one), (None, own)]
    assert core._threads == {}


@CAN_CHOOSE
def test_a_thread_that_has_ended_is_no_error() -> None:
    """It need not have left."""
    core = SharedCore()
    in_thread(core.join)
    core._share()
    assert len(core.wanted) == 1 and core.wanted < core.all
    core._share()
    assert len(core.wanted) == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads can't choose their cores")
def test_cores_that_are_gone_are_no_error() -> None:
    """The cores of a container may change while it runs."""
    core = SharedCore(cores=Cores({100_000, 100_001}))
    in_thread(core.join, core.join, core.leave)
    assert core.wanted == core.all == Cores()


def in_thread(*steps: Callable[[], object]) -> None:
    """Take the steps in a thread that ends behind them."""

    def work() -> None:
        for step in steps:
            step()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_an_interpreter_without_the_lock_moves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its threads run side by side."""
    monkeypatch.setattr(sys, "_is_gil_enabled", lambda: False, raising=False)
    assert SharedCore().wanted == Cores()
