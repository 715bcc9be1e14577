"""Forks while another thread loads what the process needs: the child can do its own work."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from commands import environment

from parallel_processor.runtime.forks import FORK_LOCK, load, load_here
from parallel_processor.simulator import Simulator

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")

_PROGRAM = """
import faulthandler, math, os, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later warn of forks beside threads
from parallel_processor import Limits, Processor, RetryPolicy

url, work = sys.argv[1:]
sys.setswitchinterval(0.0001)

def run():
    limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
    made = Processor(request_url=url + "/v1/embeddings", limits=limits, max_workers=2)
    rows = [{"model": model, "input": "text"} for model in ("gpt-4o", "text-embedding-3-small")]
    assert sum(each.ok for each in made.imap_unordered(rows)) == 2

def contexts():
    for _ in range(10):
        TLSContexts().get(TLSPolicy("CERT_REQUIRED"))

if work == "contexts":
    from parallel_processor.transport.tls import TLSContexts, TLSPolicy
work = {"run": run, "contexts": contexts}[work]
forked = threading.Event()

def busy():
    work()
    while not forked.is_set():  # on a slow machine it may be over before the first fork
        work()

thread = threading.Thread(target=busy)
thread.start()
children = []
while thread.is_alive() and len(children) < 12:
    child = os.fork()
    if not child:
        faulthandler.dump_traceback_later(25, exit=True)
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    children.append(child)
    forked.set()
    thread.join(0.01)
thread.join()
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
assert codes and not any(codes), codes
"""


@pytest.mark.parametrize("work", ["run", "contexts"])
def test_a_fork_amid_loading_leaves_the_child_able_to_work(work: str) -> None:
    """Forks at many moments of a first run: each child runs to its end."""
    with Simulator() as server:
        ran = subprocess.run(
            [sys.executable, "-c", _PROGRAM, server.url, work],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=90,
        )
    assert ran.returncode == 0, ran.stderr


_HOOKS = """
import os, threading, time
from parallel_processor.runtime.forks import FORK_LOCK, load, load_here
has_lock, forks = threading.Event(), threading.Event()

def load():
    with FORK_LOCK:
        has_lock.set()
        forks.wait()
        threading.Event().wait(0.2)  # the fork is waiting for the lock by then
        import parallel_processor.workers.pool, parallel_processor.report.progress, tenacity

thread = threading.Thread(target=load)
thread.start()
has_lock.wait()
forks.set()
if not (child := os.fork()):
    os._exit(0)
os.waitpid(child, 0)
thread.join()
"""


def test_a_fork_that_waited_releases_no_lock_of_what_was_loaded() -> None:
    """Nothing that is imported under the lock registers fork hooks with a lock of its own."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _HOOKS]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=90)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks beside threads
def test_a_fork_waits_while_something_is_loaded(tmp_path: Path) -> None:
    """It goes on when that is loaded, and nobody has the lock in the child."""
    has_lock, may_release = threading.Event(), threading.Event()
    order: list[str] = []

    def load() -> None:
        with FORK_LOCK:
            has_lock.set()
            may_release.wait(30)
            order.append("loaded")

    def fork() -> None:
        child = os.fork()
        if not child:
            os._exit(0 if FORK_LOCK.acquire(blocking=False) else 1)
        order.append("forked")
        assert os.waitpid(child, 0)[1] == 0

    loading, forking = threading.Thread(target=load), threading.Thread(target=fork)
    loading.start()
    has_lock.wait(30)
    forking.start()
    may_release.set()
    forking.join(30)
    loading.join()
    assert order == ["loaded", "forked"]


def test_a_module_is_loaded_where_no_interrupt_hits_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread imports it. For a name of this package it is the caller's: that starts no thread."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("loaded_apart", "loaded_here"):
        tmp_path.joinpath(f"{name}.py").write_text("import threading\nBY = threading.get_ident()\n")
    here = threading.get_ident()
    assert here != load("loaded_apart").BY
    assert here == load_here("loaded_here").BY
    assert load("loaded_apart") is load("loaded_apart")
