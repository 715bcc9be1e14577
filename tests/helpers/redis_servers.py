"""A Redis server of Debian's package, on loopback, in a process of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from programs import program, unused_port

from parallel_processor.runtime.forks import load


class RedisServer:
    """A server without a memory on disk. It can be stopped, and started again on the same port."""

    def __init__(self, folder: Path, *flags: str, login: str = "") -> None:
        self.port = unused_port()
        self.url = f"redis://{login}127.0.0.1:{self.port}/0"
        self._folder, self._flags = folder, flags
        self._process_id = 0

    @contextmanager
    def running(self) -> Iterator[RedisServer]:
        """Run it until the block ends. The test is skipped if Redis is not installed."""
        words = ["redis-server", "--port", self.port, "--bind", "127.0.0.1", "--save", ""]
        words += ["--dir", self._folder, *self._flags]
        with program(words, self.port, self._folder / "redis.log"):
            self._process_id = int(self.ask("INFO", "server")["process_id"])
            yield self

    def ask(self, *words: str | int) -> Any:
        """What the server answers to a command."""
        redis: Any = load("redis")
        with redis.Redis.from_url(self.url, decode_responses=True) as client:
            return client.execute_command(*words)

    def signal(self, number: signal.Signals) -> None:
        """Send the server a signal."""
        os.kill(self._process_id, number)

    def calls(self) -> int:
        """How many leases were asked for."""
        stats = self.ask("INFO", "commandstats")
        return sum(
            int(stats[name]["calls"])
            for name in ("cmdstat_evalsha", "cmdstat_eval")
            if name in stats
        )


@contextmanager
def redis_server(folder: Path, *flags: str, login: str = "") -> Iterator[RedisServer]:
    """A server that runs until the block ends."""
    with RedisServer(folder, *flags, login=login).running() as server:
        yield server
