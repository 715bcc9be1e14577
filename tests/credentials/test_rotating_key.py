"""A key that expires: when it is fetched, and what those who wait for it are told."""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from clocks import FakeClock
from commands import environment

from parallel_processor.credentials.rotating_key import RotatingKey
from parallel_processor.exceptions import ConfigurationError


def never() -> bool:
    """Nobody is cancelled."""
    return False


class Source:
    """Gives ``key-1``, ``key-2`` …, or raises what ``errors`` has. It can be held up."""

    def __init__(self) -> None:
        self.calls = 0
        self.errors: list[BaseException] = []
        self.texts: list[Any] = []
        self.open = threading.Event()
        self.open.set()
        self.called = threading.Semaphore(0)

    def __call__(self) -> Any:
        self.calls += 1
        number = self.calls
        self.called.release()
        assert self.open.wait(30)
        if self.errors:
            raise self.errors.pop(0)
        return self.texts.pop(0) if self.texts else f"key-{number}"


class Bench:
    """A rotating key whose first key was fetched, and its clock."""

    def __init__(self, ttl_s: float = float("inf")) -> None:
        self.clock = FakeClock()
        self.source = Source()
        self.key = RotatingKey(self.source, ttl_s, clock=self.clock)
        self.key.fetch_first()

    def pass_s(self, seconds: float) -> None:
        """Let time pass; those who wait look at it."""
        self.clock.now_s += seconds
        self.key.wake()

    def fail(self, count: int) -> None:
        """Wait until so many fetches have failed in a row, ten seconds one after the other."""
        for number in range(1, count + 1):
            if number > 1:
                self.pass_s(10)
            with self.key._lock:
                while self.key._failures != number:
                    assert self.key._changed.wait(30)

    def refused(self, generation: int) -> str | None:
        return self.key.refused(generation, never)

    def in_thread(self, work: Callable[[], Any]) -> Callable[[], Any]:
        """Do ``work`` in a thread; the result waits for what it returns."""
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(work()))
        thread.start()

        def result() -> Any:
            thread.join(30)
            return results[0]

        return result


def test_a_refused_key_is_replaced() -> None:
    """The request is sent again, and the next ones have the new key."""
    bench = Bench()
    bench.pass_s(20)
    assert bench.key.usable(never).text == "key-1"
    assert bench.refused(1) is None
    assert bench.key.usable(never) == ("key-2", 2)


def test_one_refusal_of_many_fetches() -> None:
    """Who was sent with the key before is sent again at once."""
    bench = Bench()
    bench.pass_s(20)
    assert [bench.refused(1) for _ in range(5)] == [None] * 5
    assert bench.source.calls == 2


def test_a_key_that_was_fetched_for_a_refusal_and_never_taken_is_wrong() -> None:
    """There is no better one, and nothing is fetched again."""
    bench = Bench()
    bench.pass_s(20)
    assert bench.refused(1) is None
    assert bench.refused(2) == ""
    assert bench.source.calls == 2


def test_a_key_that_was_taken_has_expired() -> None:
    """However soon it is refused."""
    bench = Bench()
    bench.pass_s(20)
    assert bench.refused(1) is None
    bench.key.accepted = 2
    bench.pass_s(10)
    assert bench.refused(2) is None
    assert bench.key.version == ("key-3", 3)


def test_the_same_key_again_is_wrong() -> None:
    """It is tried once more: the server may have been at fault."""
    bench = Bench()
    bench.source.texts = ["key-1"]
    bench.pass_s(20)
    assert bench.refused(1) is None
    assert bench.key.version == ("key-1", 2)
    assert bench.refused(2) == ""


def test_nothing_is_fetched_twice_in_ten_seconds() -> None:
    """A refusal that comes too soon waits."""
    bench = Bench()
    bench.pass_s(9)
    result = bench.in_thread(lambda: bench.refused(1))
    bench.pass_s(0.5)
    assert bench.source.calls == 1
    bench.pass_s(0.5)
    assert result() is None
    assert bench.source.calls == 2


def test_an_old_key_is_sent_until_the_new_one_is_there() -> None:
    """Nobody waits for a key that only is old."""
    bench = Bench(ttl_s=60)
    bench.source.open.clear()
    bench.source.called.acquire()
    bench.pass_s(59)
    assert bench.key.usable(never).generation == 1
    bench.pass_s(1)
    assert bench.key.usable(never).generation == 1
    bench.source.called.acquire()  # it is being fetched
    assert bench.key.usable(never).generation == 1
    bench.source.open.set()
    assert bench.refused(1) is None  # waits for that
    assert bench.key.usable(never).text == "key-2"
    assert bench.source.calls == 2


def test_one_thread_at_a_time_fetches() -> None:
    """Whoever needs a new key waits for the same one."""
    bench = Bench()
    bench.pass_s(20)
    bench.source.open.clear()
    results = [bench.in_thread(lambda: bench.refused(1)) for _ in range(8)]
    bench.source.called.acquire()
    bench.source.called.acquire()
    bench.source.open.set()
    assert [result() for result in results] == [None] * 8
    assert bench.source.calls == 2


def test_a_request_that_is_about_to_be_sent_waits_for_the_key() -> None:
    """It isn't sent with one that was refused."""
    bench = Bench()
    bench.pass_s(20)
    bench.source.open.clear()
    refused = bench.in_thread(lambda: bench.refused(1))
    bench.source.called.acquire()
    bench.source.called.acquire()
    about_to_send = bench.in_thread(lambda: bench.key.usable(never))
    bench.source.open.set()
    assert refused() is None
    assert about_to_send() == ("key-2", 2)


def test_a_fetch_that_fails_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    """One warning is given, which has no key in it."""
    bench = Bench(ttl_s=60)
    bench.source.errors = [RuntimeError("no network for key-1"), RuntimeError("no network")]
    bench.pass_s(50)
    result = bench.in_thread(lambda: bench.refused(1))
    bench.fail(2)
    bench.pass_s(10)
    assert result() is None
    assert bench.key.usable(never).text == "key-4"
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert "the function api_key failed: RuntimeError: no network for" in record.getMessage()
    assert "key-1" not in record.getMessage()


def test_an_explained_failure_has_no_old_key_in_it(caplog: pytest.LogCaptureFixture) -> None:
    """A command's last words may repeat the key that has expired."""
    bench = Bench()
    bench.source.errors = [ConfigurationError("key-1 has expired") for _ in range(6)]
    bench.pass_s(20)
    result = bench.in_thread(lambda: bench.refused(1))
    bench.fail(6)
    assert result() == "[redacted] has expired"
    assert "key-1" not in caplog.text and "[redacted] has expired" in caplog.text


def test_what_keeps_failing_is_told() -> None:
    """After six failures in a row; ten seconds later another series may begin."""
    bench = Bench()
    bench.source.errors = [ConfigurationError(f"fault {number}") for number in range(1, 7)]
    bench.pass_s(20)
    result = bench.in_thread(lambda: bench.refused(1))
    bench.fail(6)
    assert result() == "fault 6"
    assert bench.refused(1) == "fault 6"
    assert bench.source.calls == 7
    bench.pass_s(10)
    assert bench.refused(1) is None


def test_nobody_waits_after_a_cancel() -> None:
    """Neither for a fetch, nor for the time of the next one."""
    bench = Bench()
    is_cancelled = threading.Event()
    result = bench.in_thread(lambda: bench.key.refused(1, is_cancelled.is_set))
    is_cancelled.set()
    bench.key.wake()
    assert result() == "cancelled"


@pytest.mark.parametrize("text", ["", "key\n", "k\u00e9y", None, b"key"])
def test_what_is_no_key_is_refused(text: Any) -> None:
    """The message doesn't show it."""
    key = RotatingKey(lambda: text)
    with pytest.raises(ConfigurationError, match="must return printable ASCII") as caught:
        key.fetch_first()
    assert "key\n" not in str(caught.value)


def test_a_function_that_fails_is_told() -> None:
    """With the kind of its error; the error itself is the cause."""

    def fail() -> str:
        raise KeyError("vault")

    with pytest.raises(ConfigurationError, match="api_key failed: KeyError: 'vault'") as caught:
        RotatingKey(fail).fetch_first()
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_copy_has_the_key_and_goes_on_by_itself() -> None:
    """A worker process needs no fetch to begin."""
    copy = pickle.loads(pickle.dumps(_made()))
    assert copy.version == ("key", 1)
    assert copy.usable(never).text == "key"
    assert "key" in copy.texts


def _made() -> RotatingKey:
    key = RotatingKey(_key)
    key.fetch_first()
    return key


def _key() -> str:
    return "key"


def test_its_repr_says_nothing() -> None:
    """A key is in no log of an object."""
    assert repr(Bench().key) == "RotatingKey(…)"


def test_calling_it_gives_the_key() -> None:
    """So it can be what it was made of."""
    assert RotatingKey(_key)() == "key"


_FORK = """
import faulthandler, os, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later warn of forks beside threads
from parallel_processor.credentials.rotating_key import RotatingKey

keys = iter(["first", "second"])
key = RotatingKey(keys.__next__, interval_s=0.01)
key.fetch_first()
is_held, may_end = threading.Event(), threading.Event()

def hold():
    with key._lock:
        is_held.set()
        may_end.wait(30)

threading.Thread(target=hold).start()
is_held.wait(30)
if not (child := os.fork()):
    faulthandler.dump_traceback_later(25, exit=True)
    os._exit(key.refused(1, lambda: False) is not None or key.version.text != "second")
may_end.set()
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_fork_goes_on_by_itself() -> None:
    """Whatever another thread was doing with the key at that moment."""
    done = subprocess.run(
        [sys.executable, "-c", _FORK], capture_output=True, text=True, env=environment()
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_function_that_ends_its_thread_has_failed() -> None:
    """Nobody waits for it for ever."""
    bench = Bench()
    bench.source.errors = [SystemExit("enough")]
    bench.pass_s(20)
    result = bench.in_thread(lambda: bench.refused(1))
    bench.fail(1)
    bench.pass_s(10)
    assert result() is None
