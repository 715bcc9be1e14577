"""Processes under one limit in a real Redis: runs, stops, outages, forks, and what is wrong from the start.

Several cases are what users of other limiters met:

* hosts whose clocks differ (spring-cloud-gateway 1688; each process of ``test_leasing.py`` has its own);
* a server that restarted and lost the script (bottleneck 118);
* a connection that fell silent (ldp 464);
* keys in several slots of a cluster (litellm 11961, 15066, 25049; in ``test_buckets.py``);
* a cluster's node that redirects (litellm 8159);
* a connection to the primary of before, which refuses writes for ever (envoyproxy/ratelimit 1191);
* a proxy that knows EVAL, but not SCRIPT (litellm 32232);
* a call that is sent again after an outage, and counts twice (OpenWA 932);
* a connection that a forked child inherited (sidekiq 5535);
* requests larger than a second's worth, and locks of requests and tokens apart (openlimit 10).
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from certificates import CERTIFICATE
from commands import command, environment, run
from programs import program, unused_port
from raw_server import RawServer, Visit
from redis_servers import RedisServer, redis_server
from services import processor, rows, threads

from parallel_processor import (
    ConfigurationError,
    LimiterError,
    Limits,
    Options,
    Processor,
    RetryPolicy,
    RunStoppedError,
    StopCause,
)
from parallel_processor.limiter.accounts import account_name
from parallel_processor.limiter.buckets import SharedBuckets
from parallel_processor.limiter.leases import Ask, Lease
from parallel_processor.limiter.redis_errors import diagnose
from parallel_processor.runtime.forks import load

RATE = 1 / 61  # of a limit, a second
AWAY = "requests wait until it is back"
BACK = "the limiter is back"


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A server of its own for each test."""
    with redis_server(tmp_path) as server:
        yield server


def a_minute(requests: float, tokens: float = math.inf) -> Limits:
    """Limits of so many a minute."""
    return Limits(requests_per_minute=requests, tokens_per_minute=tokens)


class Arrivals:
    """A server that notes when each request came."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.url = ""

    def __call__(self, visit: Visit) -> None:
        while visit.read():
            self.times.append(time.monotonic())
            visit.answer()

    def most_in(self, seconds: float) -> int:
        """The largest number in any so many seconds."""
        times = sorted(self.times)
        return max(bisect_right(times, t + seconds) - i for i, t in enumerate(times))


@contextmanager
def arrivals() -> Iterator[Arrivals]:
    noted = Arrivals()
    with RawServer(noted) as server:
        noted.url = server.url
        yield noted


def started(folder: Path, name: str, count: int, url: str, *flags: object) -> subprocess.Popen[str]:
    """The command at work on so many requests of its own."""
    source = folder / f"{name}.jsonl"
    lines = [json.dumps({"model": "m", "input": f"{name} {number}"}) for number in range(count)]
    source.write_text("\n".join(lines), "utf-8")
    words = ["--requests_filepath", source, "--request_url", f"{url}/v1/embeddings"]
    words += ["--max_tokens_per_minute", "inf", *flags]
    return subprocess.Popen(command(*words), stderr=subprocess.PIPE, text=True, env=environment())


def ended(process: subprocess.Popen[str]) -> str:
    """What a process logged, which ended well."""
    _, log = process.communicate(timeout=100)
    assert process.returncode == 0, log
    return log


def read_until(process: subprocess.Popen[str], text: str) -> None:
    """Wait until the process logs ``text``."""
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line)
        if text in line:
            return
    raise AssertionError("".join(lines))


# Runs.


def test_three_processes_share_a_limit(redis: RedisServer, tmp_path: Path) -> None:
    """Together they send in no second, and in no ten, more than the limit allows one process."""
    limit = 2400
    with arrivals() as server:
        flags = ("--max_requests_per_minute", limit, "--limiter", redis.url)
        fleet = [started(tmp_path, name, 60, server.url, *flags) for name in "abc"]
        for process in fleet:
            ended(process)
    assert len(server.times) == 180
    for seconds in (1.0, 5.0, 10.0):
        assert server.most_in(seconds) <= limit * RATE * (seconds + 1.0) + 1


def test_threads_share_a_lease(redis: RedisServer) -> None:
    """Sixteen threads of one process, each with a run of its own, ask for few leases, by one thread."""
    with (
        arrivals() as server,
        processor(server.url, limits=a_minute(30_000), limiter=redis.url) as made,
        ThreadPoolExecutor(16) as pool,
    ):
        runs = [pool.submit(made.map, rows(50, 50 * number)) for number in range(16)]
        names = threads()
        assert all(outcome.ok for each in runs for outcome in each.result(60))
    assert len(server.times) == 800
    assert names.count("parallel-processor-limiter") <= 1
    assert redis.calls() < 0.3 * 800


def test_processors_of_an_account_share_leases(redis: RedisServer) -> None:
    """Two processors with the same limits take from one stock; another key has limits of its own."""
    settings: dict[str, Any] = {"limiter": redis.url, "limits": a_minute(600), "api_key": "one"}
    with arrivals() as server:
        url = server.url
        with processor(url, **settings) as first, processor(url, **settings) as second:
            assert (
                first._account.buckets.limits()[0].quotas
                == second._account.buckets.limits()[0].quotas
            )
            assert all(each.map(rows(3)) for each in (first, second))
            with processor(url, **settings | {"api_key": "two"}) as third:
                assert third.map(rows(1))[0].ok
    assert len({key.split("}")[0] for key in redis.ask("KEYS", "*")}) == 2


def test_the_thread_and_its_connection_end(redis: RedisServer) -> None:
    """A second after the last request there is neither, and the rest of the lease was given back."""
    with (
        arrivals() as server,
        processor(server.url, limits=a_minute(6000), limiter=redis.url) as made,
    ):
        made.map(rows(40))
        for thread in threading.enumerate():
            if thread.name == "parallel-processor-limiter":
                thread.join(20)
        assert "parallel-processor-limiter" not in threads()
        assert len(redis.ask("CLIENT", "LIST").splitlines()) == 1  # this question
        assert made.map(rows(1))[0].ok


def test_requests_and_tokens_are_leased_together(redis: RedisServer) -> None:
    """Requests of more tokens than a second allows are sent, under both limits at once."""
    with arrivals() as server:
        limits = a_minute(600, 60_000)
        body = {"model": "m", "input": "word " * 3000}
        with processor(server.url, limits=limits, limiter=redis.url) as made:
            assert all(outcome.ok for outcome in made.map([body, body, *rows(3)]))
            (bucket,) = made._account.buckets.reports(0.0, lambda bucket: {})
    assert {limit.name: limit.configured for limit in bucket.limits} == {
        "requests": 600,
        "tokens": 60_000,
    }


def test_limits_by_model_are_shared_apart(redis: RedisServer) -> None:
    """Each pattern has a bucket there, below that of all models; a used up model delays no other."""
    by_model = {"slow*": a_minute(30), "fast*": a_minute(6000)}
    settings: dict[str, Any] = {"limiter": redis.url, "limits_by_model": by_model}
    with arrivals() as server, processor(server.url, limits=a_minute(30_000), **settings) as made:
        slow = made.submit({"model": "slow-1", "input": "x"})
        slower = made.submit({"model": "slow-1", "input": "y"})
        bodies = [{"model": "fast-1", "input": str(number)} for number in range(100)]
        assert all(outcome.ok for outcome in made.map(bodies))
        assert slow.result(60).ok
        assert slower.cancel()
    names = {key.partition("}:")[2] for key in redis.ask("KEYS", "*")}
    assert {"*:requests", "=slow*:requests", "=fast*:requests"} <= names


def test_the_summary_names_the_limit_in_force(redis: RedisServer, tmp_path: Path) -> None:
    """If another process has set a lower limit, that one is shown, and said to be of another process."""
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows(40)), "utf-8")
    settings: dict[str, Any] = {"limiter": redis.url, "account": "a"}
    with arrivals() as server:
        with processor(server.url, limits=a_minute(1200), **settings) as other:
            assert other.map(rows(1))[0].ok
        # Another URL of the same server: nothing is shared but by way of it, as between two processes.
        settings["limiter"] += "?client_name=b"
        with processor(server.url, limits=a_minute(6000), **settings) as made:
            summary = made.process_file(source, output)
            assert made.stats().limits["requests"] == 1200
    (bucket,) = summary.buckets
    (limit,) = bucket.limits
    assert (limit.configured, limit.in_force) == (6000, 1200)
    assert "1,200 requests/min, which another process set, instead of 6,000" in str(summary)


def test_limits_that_change_are_leased(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A lower one holds for all processes from the next lease on, a higher one after two minutes."""
    settings: dict[str, Any] = {"limiter": redis.url, "account": "a"}
    with arrivals() as server, processor(server.url, limits=a_minute(6000), **settings) as made:
        assert all(outcome.ok for outcome in made.map(rows(5)))
        made.set_limits(a_minute(1200), {"m*": a_minute(3000)})
        assert all(outcome.ok for outcome in made.map(rows(5)))
        settings["limiter"] += "?client_name=b"
        with processor(server.url, limits=a_minute(6000), **settings) as other:
            assert other.map(rows(1))[0].ok
            assert other.stats().limits["requests"] == 1200
        caplog.clear()
        made.set_limits(a_minute(2400), {})
        assert all(outcome.ok for outcome in made.map(rows(5)))
        assert made.stats().limits["requests"] == 1200
        assert any("that holds here, not 2400" in each.getMessage() for each in caplog.records)
        made.set_limits(a_minute(math.inf), {})
        assert all(outcome.ok for outcome in made.map(rows(5)))
        assert made.stats().limits["requests"] == math.inf
    assert len(server.times) == 21


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_leases_for_itself(redis: RedisServer) -> None:
    """A child made while its parent leases has a thread and a connection of its own; both go on."""
    with (
        arrivals() as server,
        processor(server.url, limits=a_minute(3000), limiter=redis.url) as made,
    ):
        future = made.submit(rows(1)[0])
        children = []
        for _ in range(2):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    code = 0 if all(outcome.ok for outcome in made.map(rows(30))) else 2
                finally:
                    os._exit(code)
            children.append(child)
        assert all(outcome.ok for outcome in made.map(rows(30)))
        assert future.result(60).ok
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0, 0]
    assert len(server.times) == 91


def test_a_pause_that_one_process_is_told_holds_for_another(redis: RedisServer) -> None:
    """After a 429 with a wait, a process that has not seen it sends nothing of that model meanwhile."""
    refused_at: list[float] = []
    times: list[float] = []

    def refuse_once(visit: Visit) -> None:
        while visit.read():
            times.append(time.monotonic())
            if refused_at:
                visit.answer()
                continue
            refused_at.append(times[-1])
            headers = "Retry-After: 2\r\n"
            visit.answer(b'{"error": {}}', status="429 Too Many Requests", headers=headers)

    settings: dict[str, Any] = {"limits": a_minute(600), "retry": RetryPolicy(backoff_initial_s=0)}
    with (
        RawServer(refuse_once) as server,
        processor(server.url, limiter=redis.url, **settings) as first,
        # Another URL of the same server: nothing is shared but by way of it, as between two processes.
        processor(server.url, limiter=f"{redis.url}?client_name=b", **settings) as second,
    ):
        future = first.submit(rows(1)[0])
        wait_for(lambda: any(key.endswith(":pauses") for key in redis.ask("KEYS", "*")))
        assert all(outcome.ok for outcome in second.map(rows(5, 1)))
        assert future.result(60).ok
    assert len(times) == 7
    assert min(times[1:]) >= refused_at[0] + 1.9


# The server goes, and comes back.


def test_a_run_waits_while_the_server_is_away(tmp_path: Path) -> None:
    """It sends nothing without a lease, says so, and ends well once the server is back without a memory."""
    redis = RedisServer(tmp_path)
    limit = 1200
    with arrivals() as server:
        flags = ("--max_requests_per_minute", limit, "--limiter", redis.url)
        with redis.running():
            process = started(tmp_path, "a", 60, server.url, *flags)
            read_until(process, "sending")
            wait_for(lambda: len(server.times) >= 10)
        read_until(process, AWAY)
        before = len(server.times)
        with redis.running():
            log = ended(process)
    assert before < 60
    assert len(server.times) == 60
    assert BACK in log
    assert server.most_in(5.0) <= limit * RATE * 6 + 1


def wait_for(is_so: Callable[[], bool]) -> None:
    """Wait until something is so; fails after 30 s."""
    event = threading.Event()
    for _ in range(3000):
        if is_so():
            return
        event.wait(0.01)
    raise AssertionError("it never was so")


def test_a_server_that_falls_silent_is_noticed(redis: RedisServer, tmp_path: Path) -> None:
    """A connection on which no answer comes is given up, and a call is not sent twice on it."""
    with arrivals() as server:
        flags = ("--max_requests_per_minute", 600, "--limiter", redis.url)
        process = started(tmp_path, "a", 60, server.url, *flags)
        wait_for(lambda: len(server.times) >= 10)
        redis.signal(signal.SIGSTOP)
        try:
            read_until(process, AWAY)
        finally:
            redis.signal(signal.SIGCONT)
        assert BACK in ended(process)
    assert len(server.times) == 60


def test_a_stop_ends_a_wait_for_the_server(tmp_path: Path) -> None:
    """Ctrl-C ends a run whose limiter is away as it ends any other; the next run sends the rest."""
    redis = RedisServer(tmp_path)
    with arrivals() as server:
        flags = ("--max_requests_per_minute", 600, "--limiter", redis.url)
        with redis.running():
            process = started(tmp_path, "a", 40, server.url, *flags)
            wait_for(lambda: len(server.times) >= 5)
        read_until(process, AWAY)
        process.send_signal(signal.SIGINT)
        _, log = process.communicate(timeout=60)
        assert process.returncode == 130, log
        with redis.running():
            ended(started(tmp_path, "a", 40, server.url, *flags))
    assert len(server.times) == 40


def test_a_killed_process_costs_the_others_one_lease(redis: RedisServer, tmp_path: Path) -> None:
    """What it had leased becomes void; the other process goes on within the limit."""
    with arrivals() as server:
        flags = ("--max_requests_per_minute", 1200, "--limiter", redis.url)
        killed = started(tmp_path, "a", 200, server.url, *flags)
        other = started(tmp_path, "b", 60, server.url, *flags)
        wait_for(lambda: len(server.times) >= 20)
        killed.kill()
        killed.communicate()
        ended(other)
    assert server.most_in(5.0) <= 1200 * RATE * 6 + 1


# Wrong from the start.


def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The command ends with exit code 2 and one line, without a password; nothing was sent."""
    url = f"redis://:secret@127.0.0.1:{unused_port()}/0"
    with arrivals() as server:
        process = started(tmp_path, "a", 1, server.url, "--limiter", url)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "error: can't use the limiter redis://127.0.0.1:" in log
    assert "refused" in log and "secret" not in log
    assert server.times == []


def test_a_wrong_password_is_named(tmp_path: Path) -> None:
    """It is the server's own reason that is told, at the start; the password is not."""
    with redis_server(tmp_path, "--requirepass", "right", login=":right@") as redis:
        url = redis.url.replace("right", "wrong")
        with pytest.raises(LimiterError, match="password") as caught:
            Processor(limiter=url, api_key="sk")
        assert ":wrong@" not in f"{caught.value}{Options(limiter=url, api_key='sk')!r}"
        Processor(limiter=redis.url, api_key="sk")


def test_a_password_that_is_missing_is_asked_for(tmp_path: Path) -> None:
    """The line says how a URL names it."""
    with redis_server(tmp_path, "--requirepass", "right", login=":right@") as redis:
        with pytest.raises(
            LimiterError, match=r"wants a password: name it in the URL, as in"
        ) as error:
            Processor(limiter=redis.url.replace(":right@", ""), api_key="sk")
    assert error.value.is_lasting


def test_a_server_that_may_not_run_the_script_is_named(redis: RedisServer) -> None:
    """A user without the right to scripts is told which rights it needs, and these suffice."""
    redis.ask("ACL", "SETUSER", "reader", "on", "nopass", "~*", "+get")
    url = redis.url.replace("//", "//reader:x@")
    with pytest.raises(LimiterError, match="too few permissions") as error:
        Processor(limiter=url, api_key="sk")
    rights = str(error.value).partition("the rights ")[2].rstrip(")").split()
    redis.ask("ACL", "SETUSER", "reader", "reset", "on", "nopass", *rights)
    with arrivals() as server, processor(server.url, limits=a_minute(600), limiter=url) as made:
        assert all(outcome.ok for outcome in made.map(rows(8)))


WRONG_SERVERS = [
    (["--replicaof", "127.0.0.1", "1"], "read-only replica: name its primary"),
    (
        ["--replicaof", "127.0.0.1", "1", "--replica-serve-stale-data", "no"],
        "a replica that has lost its primary",
    ),
    (["--min-replicas-to-write", "1"], "too few replicas to accept writes"),
    (["--rename-command", "EVALSHA", ""], "it knows no scripts"),
    (["--cluster-enabled", "yes"], "its cluster is down, or has no node"),
    (["--databases", "1"], "no database of the number in the URL"),
]


@pytest.mark.parametrize(("flags", "text"), WRONG_SERVERS)
def test_a_server_that_can_hold_no_limits_is_told_why(
    tmp_path: Path, flags: list[str], text: str
) -> None:
    """It is one line, before the first request, with what helps."""
    with redis_server(tmp_path, *flags) as redis:
        url = redis.url.removesuffix("0") + "7" if "--databases" in flags else redis.url
        with pytest.raises(LimiterError, match=text) as error:
            Processor(limiter=url, api_key="sk")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "told", "is_lasting"),
    [
        ("BusyLoadingError", "Redis is loading the dataset in memory", "still loading", False),
        ("OutOfMemoryError", "command not allowed when used memory", "raise its maxmemory", False),
        ("TryAgainError", "Multiple keys request during rehashing", "moving the limiter's", False),
        ("ResponseError", "DENIED Redis is running in protected mode because", "requirepass", True),
        ("ResponseError", "MISCONF Redis is configured to save RDB", "its log says why", False),
        ("ResponseError", "SELECT is not allowed in cluster mode", "end the URL with /0", True),
        ("ConnectionError", "Connection closed by server.", r"begins with rediss://", False),
        ("ResponseError", "something new", "^something new$", False),
    ],
)
def test_what_an_error_means(name: str, text: str, told: str, is_lasting: bool) -> None:
    """What is hard to bring a real server to say is told apart by the package's class and the text."""
    error = getattr(load("redis.exceptions"), name)(text)
    reason, lasts = diagnose(error, "redis://127.0.0.1/0")
    assert re.search(told, reason) and lasts is is_lasting


def test_a_replica_that_takes_over_is_waited_for(redis: RedisServer, tmp_path: Path) -> None:
    """After a failover the primary of before refuses writes: requests wait, and the run goes on."""
    with arrivals() as server:
        flags = ("--max_requests_per_minute", 1200, "--limiter", redis.url)
        process = started(tmp_path, "a", 60, server.url, *flags)
        wait_for(lambda: len(server.times) >= 10)
        redis.ask("REPLICAOF", "127.0.0.1", "1")
        read_until(process, f"name its primary, or an address that leads to the primary; {AWAY}")
        redis.ask("REPLICAOF", "NO", "ONE")
        log = ended(process)
    assert BACK in log and len(server.times) == 60


class Forwarder:
    """An address that leads to one server, and for later connections to another one."""

    def __init__(self, port: int) -> None:
        self.to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.to))
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._copy, args=(one, other), daemon=True).start()

    def _copy(self, one: socket.socket, other: socket.socket) -> None:
        with one, suppress(OSError):
            while data := one.recv(65536):
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def test_a_failover_behind_an_address_is_followed(tmp_path: Path) -> None:
    """The old primary keeps its connections and refuses writes: a new connection finds the new one."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with (
        redis_server(tmp_path / "one") as one,
        redis_server(tmp_path / "two", "--replicaof", "127.0.0.1", str(one.port)) as two,
        closing(Forwarder(one.port)) as address,
        arrivals() as server,
    ):
        flags = ("--limiter", f"redis://127.0.0.1:{address.port}/0")
        process = started(tmp_path, "a", 60, server.url, "--max_requests_per_minute", 1200, *flags)
        wait_for(lambda: len(server.times) >= 10)
        two.ask("REPLICAOF", "NO", "ONE")
        one.ask("REPLICAOF", "127.0.0.1", two.port)
        address.to = two.port
        assert BACK in ended(process)
    assert len(server.times) == 60


def test_a_proxy_that_knows_no_script_command_is_no_obstacle(redis: RedisServer) -> None:
    """The script is sent whole where the server lacks it; nothing loads it by a command of its own."""
    redis.ask("ACL", "SETUSER", "proxied", "on", "nopass", "~*", "+@all", "-script")
    url = redis.url.replace("//", "//proxied:x@")
    with arrivals() as server, processor(server.url, limits=a_minute(600), limiter=url) as made:
        assert made.map(rows(1))[0].ok


def test_a_server_that_loads_its_data_is_waited_for(tmp_path: Path) -> None:
    """At the start that is an error, which says so; in a run, requests wait until it has loaded."""
    slow = ("--key-load-delay", "250000", "--loading-process-events-interval-bytes", "1024")
    redis = RedisServer(tmp_path, *slow)
    with arrivals() as server:
        flags = ("--max_requests_per_minute", 1200, "--limiter", redis.url)
        with redis.running():
            process = started(tmp_path, "a", 60, server.url, *flags)
            wait_for(lambda: len(server.times) >= 10)
            for number in range(12):
                redis.ask("SET", f"other {number}", os.urandom(1500).hex())
            redis.ask("SAVE")
        with redis.running():
            with pytest.raises(LimiterError, match="still loading its data: wait until it has"):
                Processor(limiter=redis.url, api_key="sk")
            log = ended(process)
    assert BACK in log and len(server.times) == 60


def test_a_full_memory_is_waited_for(redis: RedisServer, tmp_path: Path) -> None:
    """OOM is said with its remedy; when there is room again, the run goes on."""
    with arrivals() as server:
        flags = ("--max_requests_per_minute", 1200, "--limiter", redis.url)
        process = started(tmp_path, "a", 60, server.url, *flags)
        wait_for(lambda: len(server.times) >= 10)
        redis.ask("CONFIG", "SET", "maxmemory", 1000)
        read_until(process, f"(OOM): raise its maxmemory, or free some; {AWAY}")
        redis.ask("CONFIG", "SET", "maxmemory", 0)
        assert BACK in ended(process)
    assert len(server.times) == 60


def test_a_right_that_is_taken_away_ends_the_runs(redis: RedisServer, tmp_path: Path) -> None:
    """Waiting can't help: exit code 3 with the reason and a summary; the next run sends the rest."""
    redis.ask("ACL", "SETUSER", "someone", "on", "nopass", "~*", "+@all")
    with arrivals() as server:
        url = redis.url.replace("//", "//someone:x@")
        flags = ("--max_requests_per_minute", 1200, "--limiter", url)
        process = started(tmp_path, "a", 60, server.url, *flags)
        wait_for(lambda: len(server.times) >= 10)
        redis.ask("ACL", "SETUSER", "someone", "-evalsha")
        _, log = process.communicate(timeout=60)
        assert process.returncode == 3, log
        assert "ERROR stopped: can't use the limiter" in log and "the rights" in log
        assert "Correct what the message names, then run the command again" in log
        redis.ask("ACL", "SETUSER", "someone", "+evalsha")
        ended(started(tmp_path, "a", 60, server.url, *flags))
    assert len(server.times) == 60


def test_two_runs_of_a_processor_end_with_a_lasting_refusal(redis: RedisServer) -> None:
    """Each of them raises; later ones go on, once the server permits it."""
    redis.ask("ACL", "SETUSER", "someone", "on", "nopass", "~*", "+@all")
    url = redis.url.replace("//", "//someone:x@")
    with (
        arrivals() as server,
        processor(server.url, limits=a_minute(600), limiter=url) as made,
        ThreadPoolExecutor(2) as pool,
    ):
        runs = [pool.submit(made.map, rows(60, 60 * number)) for number in range(2)]
        wait_for(lambda: len(server.times) >= 4)
        redis.ask("ACL", "SETUSER", "someone", "-evalsha")
        for each in runs:
            with pytest.raises(RunStoppedError, match="too few permissions") as error:
                each.result(60)
            assert error.value.stop_cause is StopCause.SETUP
        redis.ask("ACL", "SETUSER", "someone", "+evalsha")

        def goes_on() -> bool:
            with suppress(RunStoppedError):
                return made.map(rows(1))[0].ok
            return False

        wait_for(goes_on)


# A cluster.


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[RedisServer]]:
    """Three nodes, each with a third of the slots."""
    with ExitStack() as stack:
        nodes = []
        for name in "abc":
            (tmp_path / name).mkdir()
            flags = ("--cluster-enabled", "yes", "--cluster-port", str(unused_port()))
            nodes.append(stack.enter_context(redis_server(tmp_path / name, *flags)))
        bounds = [0, 5461, 10922, 16384]
        for node, low, high in zip(nodes, bounds, bounds[1:], strict=False):
            node.ask("CLUSTER", "ADDSLOTSRANGE", low, high - 1)
        for node in nodes[1:]:
            bus = node.ask("CONFIG", "GET", "cluster-port")["cluster-port"]
            nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, bus)
        wait_for(lambda: all("state:ok" in str(node.ask("CLUSTER", "INFO")) for node in nodes))
        yield nodes


def test_any_node_of_a_cluster_may_be_named(cluster: list[RedisServer]) -> None:
    """The call goes to the node that holds the account's slot; accounts are held by different nodes."""
    with arrivals() as server:
        for node in cluster:
            for account in "abcd":
                settings: dict[str, Any] = {"limiter": node.url, "account": account}
                with processor(server.url, limits=a_minute(6000), **settings) as made:
                    made._account.buckets.limits()  # it has asked for nothing yet
        with processor(server.url, limits=a_minute(6000), **settings) as made:
            assert all(outcome.ok for outcome in made.map(rows(8)))
    holders = [len({key.split("}")[0] for key in node.ask("KEYS", "*")}) for node in cluster]
    assert sum(holders) == 4 and max(holders) < 4


def test_without_the_package_the_extra_is_named() -> None:
    """The error says what to install."""
    program = """
import sys
sys.modules["redis"] = sys.modules["redis.exceptions"] = None
from parallel_processor import Processor
Processor(limiter="redis://127.0.0.1/0", api_key="sk")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'parallel-api-processor[redis]'" in done.stderr.splitlines()[-1]


def test_without_the_setting_nothing_of_it_is_loaded() -> None:
    """A processor without ``limiter`` loads neither the package ``redis`` nor ours."""
    program = """
import sys
from parallel_processor import Processor
Processor(api_key="sk")
print([name for name in sys.modules if name.startswith(("redis", "parallel_processor.limiter"))])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1",
        "redis",
        "",
        7,
        "redis://127.0.0.1:none/0",
        "redis://127.0.0.1/0?unknown=1",
        "redis://127.0.0.1/0?socket_timeout=9",
        "redis://127.0.0.1/jobs",
    ],
)
def test_a_wrong_value_is_refused(url: Any) -> None:
    """What is no URL of Redis is an error of configuration."""
    with pytest.raises(ConfigurationError, match=r"^limiter must be"):
        Processor(limiter=url, api_key="sk")


def test_a_limiter_without_a_limit_is_refused() -> None:
    """There would be nothing to share."""
    with pytest.raises(ConfigurationError, match="nothing to share"):
        Processor(limiter="redis://127.0.0.1", limits=a_minute(math.inf), api_key="sk")


# Ways there.


def test_a_socket_file_is_a_way(tmp_path: Path) -> None:
    """``unix://`` names the socket of a server on this machine."""
    path = tmp_path / "s"
    with (
        redis_server(tmp_path, "--unixsocket", str(path)),
        arrivals() as server,
        processor(server.url, limits=a_minute(600), limiter=f"unix://{path}") as made,
    ):
        assert made.map(rows(1))[0].ok


def test_a_connection_may_be_encrypted(tmp_path: Path) -> None:
    """``rediss://`` verifies the server's certificate; an unknown authority is an error at the start."""
    (tmp_path / "pem").write_text(CERTIFICATE, "ascii")
    port = unused_port()
    words = ["redis-server", "--port", 0, "--tls-port", port, "--bind", "127.0.0.1", "--save", ""]
    for flag in ("--tls-cert-file", "--tls-key-file", "--tls-ca-cert-file"):
        words += [flag, tmp_path / "pem"]
    words += ["--tls-auth-clients", "no", "--dir", tmp_path]
    url = f"rediss://127.0.0.1:{port}/0"
    with program(words, port, tmp_path / "redis.log"), arrivals() as server:
        trusted = f"{url}?ssl_ca_certs={tmp_path / 'pem'}"
        with processor(server.url, limits=a_minute(600), limiter=trusted) as made:
            assert made.map(rows(1))[0].ok
        with pytest.raises(LimiterError, match=r"(?i)certificate"):
            Processor(limiter=url, api_key="sk")


def test_a_limiter_of_the_callers_own(caplog: pytest.LogCaptureFixture) -> None:
    """A function may make any object that leases, one in front of an actor say; errors make it wait."""
    caplog.set_level(logging.INFO, "parallel_processor")
    buckets, lock, fails = SharedBuckets(), threading.Lock(), iter([False, True, True])

    class InProcess:
        def lease(self, account: str, ask: Ask) -> Lease:
            if next(fails, False):
                raise RuntimeError("the actor is being restarted")
            with lock:
                return buckets.lease(account, ask)

        def close(self) -> None: ...

    with (
        arrivals() as server,
        processor(server.url, limits=a_minute(6000), limiter=InProcess) as made,
    ):
        assert all(outcome.ok for outcome in made.map(rows(50)))
    told = " ".join(record.getMessage() for record in caplog.records)
    assert "the actor is being restarted; requests wait" in told and BACK in told


# Secrets.


def test_no_key_reaches_the_server(redis: RedisServer, tmp_path: Path) -> None:
    """The account is told by the host and a hash of the key, or by the name that the user gives it."""
    with arrivals() as server:
        for name in ("a", "b"):
            flags = ["--limiter", redis.url, "--api_key", "sk-secret", "--allow_plain_http"]
            flags += ["--account", "team one}"] if name == "b" else []
            ended(started(tmp_path, name, 1, server.url, *flags))
    keys = redis.ask("KEYS", "*")
    assert not [key for key in keys if "secret" in key]
    found = {key.partition("{")[2].partition("}")[0] for key in keys}
    host = server.url.partition("//")[2].replace(":", "%3A")
    assert "team%20one%7D" in found
    assert len(found) == 2 and any(each.startswith(f"{host}-") for each in found)


def test_an_account_has_the_same_name_everywhere() -> None:
    """Its name depends on the host, the key and the login alone, on every machine."""
    one = Options(request_url="https://API.example/v1/embeddings", api_key="sk-1")
    same = Options(request_url="https://api.example/v1/chat/completions", api_key="sk-1")
    assert account_name(one) == account_name(same) == "api.example-030aded8d401139e85a3"
    others = [
        Options(request_url="https://api.example/v1", api_key="sk-2"),
        Options(request_url="https://user:pw@api.example/v1"),
        Options(request_url="https://other.example/v1", api_key="sk-1"),
    ]
    assert len({account_name(each) for each in [one, *others]}) == 4


def test_verify_needs_no_limiter() -> None:
    """The subcommand does not take the flag."""
    assert (
        run("verify", "--requests_filepath", "x", "--limiter", "redis://127.0.0.1").returncode == 2
    )
