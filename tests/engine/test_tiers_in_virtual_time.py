"""Flex first, against a server that grants a part of it: minutes of it pass in a second.

From the queues to the settlement of each attempt, all parts are the real ones. The reader, the network and
the workers are not: see ``virtual.py``.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from functools import partial

import pytest
from virtual import World, make_response

from parallel_processor.engine.queues import RequestQueues
from parallel_processor.engine.settlement import Settlement
from parallel_processor.engine.stops import LeftOut
from parallel_processor.models import Estimate, Outcome, Request, Response
from parallel_processor.options import Limits, Options
from parallel_processor.providers.responses import classify
from parallel_processor.ratelimit.registry import TokenBuckets
from parallel_processor.report.counters import Counters
from parallel_processor.runtime.stop import StopSignal, WakeEvent
from parallel_processor.simulator import ModelLimits, SimulatorOptions
from parallel_processor.simulator.limits import RateLimits
from parallel_processor.simulator.tiers import Tiers
from parallel_processor.tokens.estimates import CostEstimator
from parallel_processor.upstreams.lanes import Lanes
from parallel_processor.upstreams.routes import Routes
from parallel_processor.workers.pending import AdmittedRequest

GOOD = {"choices": [{"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}]}
READ_AHEAD = 256


class TieredRun:
    """A run of ``count`` requests for a model with two tiers, of which flex has room for ``grants``.

    ``sent`` counts what the server took from the limits of each tier, by second; ``refused`` what it
    refused for limits.
    """

    def __init__(
        self,
        world: World,
        *,
        count: float = math.inf,
        grants: float = 1 / 3,
        flex: float = 600,
        default: float = 400,
        latency_s: float = 2.0,
        patience_s: float = 60.0,
        common: float | None = None,
    ) -> None:
        self._world, self._latency_s, self._began_s = world, latency_s, world.clock()
        limits = {"m@flex": flex, "m@default": default}
        own = {
            name: Limits(requests_per_minute=limit, tokens_per_minute=math.inf)
            for name, limit in limits.items()
        }
        options = Options(
            request_url="http://localhost/v1/chat/completions",
            service_tiers=("flex", "default"),
            tier_patience_s=patience_s,
            limits=Limits(requests_per_minute=common or math.inf, tokens_per_minute=math.inf),
            limits_by_model={} if common else own,
        )
        simulated = SimulatorOptions(
            limits_by_model={
                name: ModelLimits(requests_per_minute=limit) for name, limit in limits.items()
            }
        )
        self._limits = RateLimits(simulated, clock=world.clock)
        self._tiers = Tiers({"flex": grants}, "openai", world.random.random)
        self.stop, left_out = StopSignal(), LeftOut(None)
        estimator = CostEstimator(options)
        routes, self._url = Routes(options, TokenBuckets(options, world.clock)), options.request_url
        self._lanes = Lanes(options, routes, left_out, world.clock)
        self._queues = RequestQueues(estimator.cost, WakeEvent(), self._lanes)
        self._settlement = Settlement(
            options,
            estimator=estimator,
            counters=Counters(),
            stop=self.stop,
            waker=self._queues.wake,
            clock=world.clock,
            left_out=left_out,
            on_left_out=lambda bucket: None,
            routes=routes,
            lanes=self._lanes,
            is_crowded=self._queues.is_crowded,
        )
        self._left, self._numbers = count, itertools.count(1)
        self._timer_s = math.inf
        self.sent: dict[str, Counter[int]] = {"flex": Counter(), "default": Counter()}
        self.refused = 0
        self.outcomes: list[Outcome] = []
        self.ended_s = 0.0
        world.after(0.0, self._turn)

    def _turn(self) -> None:
        """What the reader, the dispatcher and the workers do when something has changed."""
        while self._left > 0 and self._queues.count < READ_AHEAD:
            self._left -= 1
            pending = self._lanes.enter(
                Request(body={"model": "m"}, number=next(self._numbers)), self._url, "m"
            )
            pending.estimate = Estimate(1)
            self._queues.put(pending)
            self._queues.take_in(1)
        now = self._world.clock()
        due_at = self._queues.release_due(now)
        while (uncounted := self._queues.take_uncounted()) is not None:
            uncounted.estimate = Estimate(1)
            self._queues.add_counted(uncounted)
        while (admitted := self._queues.admit()) is not None:
            self._world.after(self._world.random.uniform(0.0, 0.02), partial(self._serve, admitted))
        due_at = min(due_at, now + self._queues.take_places())
        if due_at < math.inf and not now < self._timer_s <= due_at:
            self._timer_s = due_at
            self._world.after(max(due_at - now, 0.001), self._turn)

    def _serve(self, admitted: AdmittedRequest) -> None:
        tier = admitted.pending.bucket.upstream.tier
        verdict = self._limits.admit(f"m@{tier}", read=1, written=0)
        reply = make_response(200, "", GOOD | {"service_tier": tier})
        if verdict.refusal is not None:
            self.refused += 1
            reply = make_response(429, "", {"error": {"message": "Rate limit reached", "code": ""}})
        else:
            self.sent[tier][int(self._world.clock() - self._began_s)] += 1
            _, full = self._tiers.admit(tier, "")
            if full is not None:
                reply = make_response(full.status, "", json.loads(full.body))
        latency_s = self._latency_s * self._world.random.uniform(0.5, 1.5)
        self._world.after(
            latency_s if reply.status == 200 else 0.05, partial(self._end, admitted, reply)
        )

    def _end(self, admitted: AdmittedRequest, reply: Response) -> None:
        settled = self._settlement.settle(*admitted, classify(reply))
        if settled.outcome is not None:
            self.outcomes.append(settled.outcome)
            self.ended_s = self._world.clock() - self._began_s
        else:
            due_at = self._world.clock() + settled.retry_in_s
            self._queues.add_again(admitted.pending, due_at if settled.retry_in_s else -math.inf)
        self._turn()

    def used(self, tier: str, limit: float, until_s: int) -> float:
        """The share of a tier's limit that was used in the first ``until_s`` seconds."""
        sent = sum(number for second, number in self.sent[tier].items() if second < until_s)
        return sent / (limit * until_s / 60)

    def most_in_a_minute(self, tier: str) -> int:
        """The most that was sent in any 60 whole seconds."""
        counts = self.sent[tier]
        return max(sum(counts[s] for s in range(t, t + 60)) for t in range(max(counts) + 1))


def test_both_tiers_are_used_to_the_full_and_neither_beyond_it() -> None:
    """Flex grants a third of 600 a minute, and default takes 400: all of both, in every minute."""
    world = World(seed=3)
    run = TieredRun(world, count=2400)
    world.run(600.0)
    assert len(run.outcomes) == 2400 and all(outcome.ok for outcome in run.outcomes)
    assert {outcome.service_tier for outcome in run.outcomes} == {"flex", "default"}
    assert run.refused == 0
    assert run.most_in_a_minute("flex") <= 600 and run.most_in_a_minute("default") <= 400
    assert run.used("flex", 600, 210) >= 0.95 and run.used("default", 400, 210) >= 0.95
    assert run.ended_s < 2400 / 600 * 60 + 20


@pytest.mark.parametrize("grants", [0.05, 0.8])
def test_both_tiers_are_busy_whatever_flex_grants(grants: float) -> None:
    """What default has no room for is tried in flex again; what flex has no room for overflows."""
    world = World(seed=5)
    run = TieredRun(world, grants=grants, patience_s=10.0)
    world.run(240.0)
    assert run.refused == 0 and run.stop.cause is None
    assert run.most_in_a_minute("flex") <= 600 and run.most_in_a_minute("default") <= 400
    assert run.used("flex", 600, 240) >= 0.95 and run.used("default", 400, 240) >= 0.95
    assert all(outcome.ok for outcome in run.outcomes)


def test_a_common_limit_holds_for_both_tiers_together() -> None:
    """It is used to the full, and default gets no more than flex refuses."""
    world = World(seed=7)
    run = TieredRun(world, common=500, flex=10_000, default=10_000, grants=0.9)
    world.run(240.0)
    together = run.sent["flex"] + run.sent["default"]
    most = max(sum(together[s] for s in range(t, t + 60)) for t in range(240))
    assert most <= 500 and sum(together.values()) >= 0.95 * 500 * 4
    assert sum(run.sent["default"].values()) < 0.2 * sum(run.sent["flex"].values())
