"""One limit for all workers: the buckets of the account in an actor.

The actor needs no CPU of its own and stays on the head node. It has a name and outlives the job, so that
several jobs on a cluster share the limits of their account. It also follows what servers' answers show,
for all workers together. If it is lost, Ray starts it again. It then has no memory, which
``limiter/buckets.py`` makes safe. A call is not repeated: it costs its lease, no limit.
"""

from __future__ import annotations

from typing import Any

from parallel_processor.cluster.load import load_ray
from parallel_processor.exceptions import LimiterError
from parallel_processor.limiter.buckets import SharedBuckets
from parallel_processor.limiter.leases import Ask, Lease

_NAME, _NAMESPACE = "limiter", "parallel-processor"
_TIMEOUT_S = 5.0
_ON_HEAD = {"node:__internal_head__": 0.001}  # every head has one of these


class BucketActor:
    """The buckets. Ray calls one method at a time."""

    def __init__(self) -> None:
        self._buckets, self._calls = SharedBuckets(), 0

    def lease(self, account: str, ask: Ask) -> Lease:
        """Grant a lease."""
        self._calls += 1
        return self._buckets.lease(account, ask)

    def calls(self) -> int:
        """How often it was asked since it was started."""
        return self._calls


def start_limiter() -> None:
    """Start the actor, if it isn't there. The program must be connected to Ray."""
    ray = load_ray()
    actor = ray.remote(BucketActor).options(
        name=_NAME,
        namespace=_NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        num_cpus=0,
        resources=_ON_HEAD,
        max_restarts=-1,
        max_task_retries=0,
    )
    actor.remote()


class RayLimiter:
    """Leases from the actor, inside a worker. For one thread."""

    follows_servers = True

    def __init__(self) -> None:
        self._ray = load_ray()
        self._actor: Any = None

    def lease(self, account: str, ask: Ask) -> Lease:
        """Ask for a lease. Raises :class:`LimiterError` if the actor doesn't answer."""
        try:
            if self._actor is None:
                self._actor = self._ray.get_actor(_NAME, namespace=_NAMESPACE)
            granted: Lease = self._ray.get(
                self._actor.lease.remote(account, ask), timeout=_TIMEOUT_S
            )
        except (
            self._ray.exceptions.RayError,
            ValueError,
        ) as error:  # ValueError: it has no such actor
            self._actor = None
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise LimiterError(f"the limiter's actor doesn't answer: {text}") from error
        return granted

    def close(self) -> None:
        """Forget the actor; the next lease looks for it."""
        self._actor = None
