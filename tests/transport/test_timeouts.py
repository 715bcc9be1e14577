"""Timeouts: when the thread that watches looks, and what it ends."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from raw_server import RawServer, Visit
from transports import error_of

from parallel_processor.runtime.threads import InterruptSafeThread
from parallel_processor.transport.timeouts import SocketTimer, Timeouts

pytestmark = pytest.mark.usefixtures("clean_environment")


class Clock:
    """A clock that a test sets."""

    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two that are connected."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.fixture
def unwatched(monkeypatch: pytest.MonkeyPatch) -> Timeouts:
    """Exchanges of 10 s, which nobody looks at but the test."""
    monkeypatch.setattr(InterruptSafeThread, "start", lambda self: None)
    return Timeouts(10.0, clock=Clock())


def at(timeouts: Timeouts, now_s: float) -> float:
    """Look at this time; gives what :meth:`Timeouts.look` does."""
    clock = timeouts._clock
    assert isinstance(clock, Clock)
    clock.now_s = now_s
    return timeouts.look()


def test_the_next_look_is_at_the_earliest_deadline(
    unwatched: Timeouts, sockets: tuple[socket.socket, socket.socket]
) -> None:
    """Also of an exchange that begins right after this look; no exchange wakes the thread."""
    timers = [unwatched.timer(each) for each in sockets]
    assert at(unwatched, 1000.0) == 10.0
    timers[0].begin(1009.0)
    timers[1].begin(1004.0)
    assert at(unwatched, 1003.0) == 1.0
    assert timers[1].end()
    assert at(unwatched, 1003.0) == 6.0
    timers[0].close()
    assert at(unwatched, 1003.0) == 10.0


def test_what_is_late_is_shut_down(
    unwatched: Timeouts, sockets: tuple[socket.socket, socket.socket]
) -> None:
    """A call that blocks returns then, and the exchange learns why."""
    timer = unwatched.timer(sockets[0])
    assert sockets[0].gettimeout() is None
    timer.begin(1010.0)
    at(unwatched, 1009.9)
    assert not timer.is_late
    at(unwatched, 1010.0)
    assert timer.is_late
    assert sockets[0].recv(1) == sockets[1].recv(1) == b""
    assert not timer.end()


def test_an_exchange_that_ended_is_never_late(
    unwatched: Timeouts, sockets: tuple[socket.socket, socket.socket]
) -> None:
    """Nor is the next one on the same socket."""
    timer = unwatched.timer(sockets[0])
    timer.begin(1010.0)
    assert timer.end()
    timer.begin(1015.0)
    at(unwatched, 1010.0)
    sockets[1].sendall(b"x")
    assert sockets[0].recv(1) == b"x"
    assert timer.end()


def test_an_exchange_that_ends_at_its_last_moment(
    unwatched: Timeouts, sockets: tuple[socket.socket, socket.socket]
) -> None:
    """The one that was late is not taken for the next, which began while the thread looked at it."""
    timer = unwatched.timer(sockets[0])

    class Deadlines(list[float]):
        """An exchange ends, and the next one begins, before the late one is taken out."""

        def remove(self, value: float) -> None:
            assert timer.end()
            timer.begin(1015.0)
            super().remove(value)

    timer._deadlines = Deadlines()
    timer.begin = timer._deadlines.append
    timer.begin(1010.0)
    at(unwatched, 1010.0)
    sockets[1].sendall(b"x")
    assert sockets[0].recv(1) == b"x"
    assert timer.end()


def test_without_a_thread_each_call_has_a_timeout(
    sockets: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the system has no thread left, nothing blocks for ever."""

    def fail(self: InterruptSafeThread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(InterruptSafeThread, "start", fail)
    timer: SocketTimer = Timeouts(10.0).timer(sockets[0])
    assert timer.sock.gettimeout() == 10.0


@pytest.mark.usefixtures("trusted_certificate")
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n\r\n{"])
def test_a_server_that_falls_silent_is_left(said: bytes, tls: bool) -> None:
    """What came until then is no answer, even where its end would be that of the connection."""

    def script(visit: Visit) -> None:
        visit.read()
        visit.sock.sendall(said)
        visit.wait_for_the_end()

    with RawServer(script, tls=tls) as server:
        error = error_of(server.url, request_timeout_s=0.3)
    assert (error.kind, error.retryable) == ("timeout", True)
