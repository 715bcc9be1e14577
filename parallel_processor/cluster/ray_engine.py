"""Workers as actors of Ray: on a cluster, or embedded, with a Ray of its own on this machine.

Ray starts an actor again that was lost (``max_restarts=-1``), but repeats none of its calls
(``max_task_retries=0``): the driver hands its blocks out again. Ray's own repetition waits for ever if a
node is gone and no other one has room.

The embedded Ray is for this process alone. It listens on the loopback interface only, and wants a token
that nobody else knows. It has no dashboard, sends no statistics, and its folder is removed at the end. The
folder of a process that was killed is removed by the next one.

Ray is imported when it is used. It reads its settings from the environment when it is imported or started.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from parallel_processor.cluster.driver import Answered, Ended, Engine, Event, Lost
from parallel_processor.cluster.job import Attempt, BlockReport, Job, Standing, Unfit, unfit
from parallel_processor.cluster.load import load_ray
from parallel_processor.cluster.ray_limiter import RayLimiter, start_limiter
from parallel_processor.cluster.worker import BlockWorker
from parallel_processor.exceptions import ConfigurationError, WorkerProcessError
from parallel_processor.options import Settings

_STORE_BYTES = 80 * 1024 * 1024  # Ray refuses less than 75 MB; only small messages go through it
_PREFIX = "pp-ray-"
_MOST_FOLDER_CHARS = 40  # the names of Ray's sockets are longer by 62, and have at most 107
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else a warning
    "RAY_worker_niceness": "0",  # Ray's 15 costs a third of the throughput
}
_CONNECT_S = 10.0
_CALLS = 8  # of one actor at once: two blocks, a question, a stop


class BlockActor:
    """A worker as an actor. Ray calls several methods at once, each in a thread of its own."""

    def __init__(self, job: Job) -> None:
        """Make the worker. If that fails, :meth:`ask` tells why: Ray's own text hides it."""
        self._job = job
        self._worker = self._made()

    def _made(self) -> BlockWorker | Unfit:
        try:
            return BlockWorker(self._job)
        except Exception as error:
            return unfit(error)

    def run(self, attempt: Attempt) -> BlockReport:
        """Make an attempt."""
        assert isinstance(self._worker, BlockWorker)
        return self._worker.run(attempt)

    def ask(self) -> Standing | Unfit:
        """How it is doing. What keeps it from being made is tried again, if that may pass."""
        if isinstance(self._worker, Unfit) and self._worker.may_pass:
            self._worker = self._made()
        return self._worker if isinstance(self._worker, Unfit) else self._worker.standing()

    def stop(self, reason: str, cancels: bool) -> None:
        """End its attempts."""
        if isinstance(self._worker, BlockWorker):
            self._worker.stop(reason, cancels=cancels)


class RayEngine:
    """Actors of the Ray that this process is connected to. For the driver's thread."""

    def __init__(self, job: Job, workers: int) -> None:
        self._ray = load_ray()
        self.workers = workers
        self._calls: dict[Any, tuple[int, str]] = {}  # what was called, by what it will return
        actor = self._ray.remote(BlockActor).options(
            num_cpus=job.settings.get("processes", 1),
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=_CALLS,
            scheduling_strategy="SPREAD",
        )
        self.actors = [actor.remote(job) for _ in range(workers)]

    def run(self, worker: int, attempt: Attempt) -> None:
        self._calls[self.actors[worker].run.remote(attempt)] = (worker, "run")

    def ask(self, worker: int) -> None:
        self._calls[self.actors[worker].ask.remote()] = (worker, "ask")

    def stop(self, worker: int, reason: str, *, cancels: bool = False) -> None:
        self._calls[self.actors[worker].stop.remote(reason, cancels)] = (worker, "stop")

    def events(self, timeout_s: float) -> list[Event]:
        if not self._calls:
            threading.Event().wait(timeout_s)
            return []
        self._ray.wait(list(self._calls), num_returns=1, timeout=timeout_s)
        ready, _ = self._ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        found = (self._event(call) for call in ready if call in self._calls)
        return [event for event in found if event is not None]

    def _event(self, call: Any) -> Event | None:
        worker, kind = self._calls.pop(call)
        try:
            value = self._ray.get(call)
        except self._ray.exceptions.RayError as error:
            self._calls = {c: what for c, what in self._calls.items() if what[0] != worker}
            return Lost(worker, _reason(error), is_final=getattr(error, "actor_init_failed", False))
        if kind == "stop":
            return None
        if isinstance(value, Unfit):
            is_final = not value.may_pass
            return Lost(worker, value.reason, is_final=is_final, error_class=value.error_class)
        return Ended(worker, value) if kind == "run" else Answered(worker, value)

    def close(self) -> None:
        """End all actors at once."""
        for actor in self.actors:
            with suppress(self._ray.exceptions.RayError):
                self._ray.kill(actor)


def _reason(error: Exception) -> str:
    """What Ray says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"


@contextmanager
def on_ray(job: Job, workers: int, *, address: str | None = None) -> Iterator[Engine]:
    """An engine on the Ray at ``address``; on an embedded one without an address."""
    with connected(address, workers * job.settings.get("processes", 1)):
        has_limiter = job.settings.get("limiter") is not None or job.key.limiter_variable
        if not has_limiter:
            start_limiter()
            settings: Settings = {**job.settings, "limiter": RayLimiter}
            job = dataclasses.replace(job, settings=settings)
        engine = RayEngine(job, workers)
        try:
            yield engine
        finally:
            engine.close()


@contextmanager
def connected(address: str | None, cpus: int = 1) -> Iterator[Any]:
    """The package ``ray``, connected. If the program has connected it already, that is used."""
    if "ray" in sys.modules and load_ray().is_initialized():
        yield load_ray()
        return
    with _embedded(cpus) if address is None else _cluster(address) as ray:
        yield ray


@contextmanager
def _cluster(address: str) -> Iterator[Any]:
    _check_address(address)
    with environment({"RAY_USAGE_STATS_ENABLED": "0"}):
        ray = load_ray()
        try:
            _connect(ray, address=address)
        except (ConnectionError, RuntimeError, ValueError) as error:
            text = str(error).strip().splitlines()[0]
            raise ConfigurationError(f"can't connect to Ray at {address}: {text}") from None
        try:
            yield ray
        finally:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Raise :class:`ConfigurationError` if nothing listens there: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if address == "auto" or "//" in address:
        return
    try:
        if not host:
            raise OSError("the port is missing, as in HOST:6379")
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        text = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"can't connect to Ray at {address}: {text}. It is the address that `ray start --head` names"
        ) from None


@contextmanager
def _embedded(cpus: int) -> Iterator[Any]:
    with _folder() as folder, environment(_SETTINGS | _token()):
        ray = load_ray()
        try:
            with _on_loopback(ray):
                _connect(
                    ray,
                    num_cpus=cpus,
                    include_dashboard=False,
                    object_store_memory=_STORE_BYTES,
                    _temp_dir=str(folder),
                )
        except (RuntimeError, OSError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise WorkerProcessError(f"Ray can't be started: {lines[0]}") from error
        try:
            yield ray
        finally:
            ray.shutdown()


@contextmanager
def _on_loopback(ray: Any) -> Iterator[None]:
    """Have a Ray that is started listen on the loopback interface alone.

    Ray does so where it can't be a cluster, on macOS and Windows. Elsewhere it takes another address even
    if it is given 127.0.0.1, and then listens on all interfaces.
    """
    constants = ray._private.ray_constants
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@lru_cache(maxsize=1)
def _token() -> dict[str, str]:
    """What makes Ray ask for a token that nobody else knows. Ray reads it once in a process.

    A program that has imported Ray itself decides that itself.
    """
    if "ray" in sys.modules:
        return {}
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _connect(ray: Any, **settings: Any) -> None:
    """``ray.init``, quietly, and without the handler that it sets for SIGTERM."""
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if is_main else ()
    handlers = {number: signal.getsignal(number) for number in numbers}
    try:
        ray.init(log_to_driver=False, configure_logging=False, logging_level="ERROR", **settings)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextmanager
def environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Set variables for Ray and its processes; what the user has set stays."""
    added = {name: value for name, value in settings.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder for Ray, with a short name; it and those of processes that are gone are removed."""
    home = Path(tempfile.gettempdir())
    if len(str(home)) > _MOST_FOLDER_CHARS - len(_PREFIX) - 20:
        home = Path("/tmp")
    for old in home.glob(f"{_PREFIX}*"):
        if not _is_alive(old.name.removeprefix(_PREFIX).partition("-")[0]):
            shutil.rmtree(old, ignore_errors=True)  # those of other users stay
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=home))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: str) -> bool:
    """True if a process of that number is there, or if it is no number."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        return True
    return True
