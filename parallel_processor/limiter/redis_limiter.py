"""The buckets in a Redis or Valkey server: one script, one round trip for each lease.

The server's clock is the only one that counts. A call is never sent twice: an answer that got lost costs
its lease, not the limit. Each wait for the server is bounded, because a connection may be dropped without
a word. After any error the connection is closed: behind the same name there may be another server by then.

**A cluster.** All keys of an account are in one hash slot. A node that does not hold it names the one that
does, and has executed nothing: the call goes there, and so do the next ones until there is an error.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from parallel_processor.exceptions import ConfigurationError, LimiterError
from parallel_processor.limiter.leases import Ask, Lease
from parallel_processor.limiter.redis_errors import diagnose
from parallel_processor.options import shown_url
from parallel_processor.runtime.forks import FORK_LOCK

_TIMEOUT_S = 2.0
_PREFIX = "parallel-processor"
_DATABASE = re.compile(r"/?\d*")
_MOST_MOVES = 3  # in one call


@cache
def script() -> str:
    """The script that the server runs."""
    return Path(__file__).with_name("lease.lua").read_text("utf-8")


class RedisLimiter:
    """Leases from the server of a URL: ``redis://``, ``rediss://`` or ``unix://``."""

    follows_servers = False  # its script knows configured limits alone

    def __init__(self, url: str, *, timeout_s: float = _TIMEOUT_S) -> None:
        """Make a client without a connection.

        Raises :class:`ConfigurationError` if the package ``redis`` is missing, or the URL is malformed.
        """
        self._url, self._where = url, shown_url(url)
        try:
            with FORK_LOCK:  # the first time, this imports them
                import redis.exceptions
                from redis.backoff import NoBackoff
                from redis.retry import Retry
        except ImportError:
            text = "limiter needs the package redis: pip install 'parallel-api-processor[redis]'"
            raise ConfigurationError(text) from None
        self._redis: Any = redis
        try:
            _check(url)
            self._home: Any = redis.Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),
                retry_on_error=[],
                max_connections=1,
            )
            pool = self._home.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # not connected: checks the options
        except (ValueError, TypeError):  # its text may hold a part of the password
            text = (
                "limiter must be a URL such as redis://HOST:PORT/0, with / in a password as %2F and ? as "
                "%3F; behind ? may only be db=, client_name= and options for TLS, such as ssl_ca_certs="
            )
            raise ConfigurationError(text) from None
        self._client, self._node = (
            self._home,
            "",
        )  # the node of a cluster that calls are redirected to
        self._sha = hashlib.sha1(script().encode(), usedforsecurity=False).hexdigest()

    def lease(self, account: str, ask: Ask, now: float | None = None) -> Lease:
        """Ask for a lease under the limits of ``account``; ``now`` stands for the server's clock in a test.

        Raises :class:`LimiterError`.
        """
        prefix = f"{_PREFIX}:{{{account}}}:"
        keys = [f"{prefix}pauses"]
        for terms in ask.terms:
            keys += [prefix + terms.key, f"{prefix}{terms.key}:slots"]
        values = [*keys, _encode(ask), "" if now is None else repr(now)]
        try:
            return _decode(self._follow(len(keys), values))
        except self._redis.exceptions.RedisError as error:
            found = self._error(error)
            self._go_home()
            raise found from error

    def _error(self, error: Exception) -> LimiterError:
        # The text of an error may name an address, but no password.
        reason, is_lasting = diagnose(error, self._url)
        node = f" (sent on to {self._node} by its cluster)" if self._node else ""
        found = LimiterError(f"can't use the limiter {self._where}{node}: {reason}")
        found.is_lasting = is_lasting
        return found

    def _follow(self, keys: int, values: list[str]) -> Any:
        """Call the script at the node of a cluster that holds the keys."""
        moved = self._redis.exceptions.MovedError
        for _ in range(_MOST_MOVES):
            try:
                return self._run(keys, values)
            except moved as error:
                self._move(error)
        return self._run(keys, values)

    def _move(self, error: Any) -> None:
        settings = dict(self._home.connection_pool.connection_kwargs)
        host = error.host or settings.get("host")
        if host is None:  # a socket file
            raise error
        self._go_home()
        settings |= {"host": host, "port": error.port}
        pool_class = self._redis.ConnectionPool
        kind = self._home.connection_pool.connection_class
        pool = pool_class(connection_class=kind, max_connections=1, **settings)
        self._client, self._node = self._redis.Redis(connection_pool=pool), f"{host}:{error.port}"

    def _run(self, keys: int, values: list[str]) -> Any:
        try:
            return self._client.evalsha(self._sha, keys, *values)
        except self._redis.exceptions.NoScriptError:  # it is new there, or the server was restarted
            return self._client.eval(script(), keys, *values)

    def _go_home(self) -> None:
        """Close the connection; the next call begins with the server of the URL."""
        self.close()
        self._client, self._node = self._home, ""

    def close(self) -> None:
        """Close the connection; the next lease makes another."""
        self._client.close()
        self._client.connection_pool.disconnect()


def _check(url: str) -> None:
    """Raise ``ValueError`` for what the package would take for another database, or for our settings."""
    parts = urlsplit(url)
    if parts.scheme in ("redis", "rediss") and not _DATABASE.fullmatch(parts.path):
        raise ValueError("no number of a database")
    names = {name for name, _ in parse_qsl(parts.query) if not name.startswith("ssl_")}
    if names - {"db", "client_name"}:
        raise ValueError("another option")


def _encode(ask: Ask) -> str:
    overused = ask.overused or (0.0,) * len(ask.terms)
    return json.dumps(
        {
            "ttl": ask.ttl_s,
            "quotas": [
                {
                    "limit": terms.limit,
                    "rate": terms.rate(ask.ttl_s),
                    "burst": terms.burst_s,
                    "amount": amount,
                    "epoch": epoch,
                    "serial": serial,
                    "overused": over,
                }
                for terms, amount, epoch, serial, over in zip(
                    ask.terms, ask.amounts, ask.epochs, ask.serials, overused, strict=True
                )
            ],
            "returned": ask.returned,
            "history": ask.history,
            "pauses": ask.pauses,
        }
    )


def _decode(answer: Any) -> Lease:
    is_granted, delay, binding, slot, epochs, serials, limits, pauses = answer
    texts = [each.decode() if isinstance(each, bytes) else str(each) for each in pauses]
    return Lease(
        is_granted=is_granted == 1,
        delay_s=float(delay),
        binding=binding,
        slot=slot,
        epochs=tuple(epochs),
        serials=tuple(serials),
        limits=tuple(map(float, limits)),
        pauses=tuple(
            (name, float(left)) for name, left in zip(texts[::2], texts[1::2], strict=True)
        ),
    )
