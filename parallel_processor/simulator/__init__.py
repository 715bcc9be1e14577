"""An OpenAI-like server to try a job on before paying for it, and to test against.

It has no model, but it has an account: limits on requests and tokens that it enforces as servers
do, a key, money, latency, and faults on demand. As a process of its own::

    python -m parallel_processor.simulator --port 8000 --tokens_per_minute 250000 --latency_s 0.5

and inside one::

    with Simulator(SimulatorOptions(requests_per_minute=600, error_rate=0.1)) as simulator:
        ...  # POST to simulator.url + "/v1/chat/completions"
        print(simulator.stats())

The account need not stay as it is: limits may differ by model, change in the middle of a run and be
used by somebody else at the same time, and the server may get slower the more is asked of it::

    SimulatorOptions(
        limits_by_model={"gpt-4o*": ModelLimits(requests_per_minute=600, tokens_per_minute=30_000)},
        changes=(LimitChange(at_s=30, requests_per_minute=300),),
        rival_requests_per_minute=120,
        best_in_flight=50,
        latency_s=0.5,
    )

It can also be the servers that people have at home, and the gateways before them::

    SimulatorOptions(rules=(Rule(answer="concurrency", in_flight=5),), latency_s=1)  # five slots
    SimulatorOptions(slots=1, latency_s=0.25)  # queues without end, as Ollama and llama.cpp do
    SimulatorOptions(rules=(Rule(answer="loading", until_s=60),))  # loads its model first
    SimulatorOptions(rules=(Rule(answer="502", from_s=20, until_s=50),))  # no server behind it
    SimulatorOptions(outages=(Outage(from_s=20, until_s=50),))  # restarts: nothing listens
    SimulatorOptions(rules=(Rule(answer="long_context", containing="text 7"),))  # one, for ever
    SimulatorOptions(rules=(Rule(answer="nginx", per_s=50, burst=20),))  # limit_req as it comes
    SimulatorOptions(rules=(Rule(answer="nginx", in_flight=10),))  # limit_conn
    SimulatorOptions(rules=(Rule(answer=CannedAnswer(status=402), share=0.1),))  # whatever you like

How limits are enforced and told differs between providers, and so it does here: `enforcement` (a
bucket, or windows that may be as short as a second), `token_charge` (what an answer may have at
most, or what it has), `header_style` and `retry_after`. It speaks the `dialect` of each of them: its
answers by the path alone, its errors, limit headers and the header of its key by the host that the
client names, as to a proxy, or by the path. `Simulator.timeline()` and GET /timeline
tell what passed in each second, to compare with what the limits were.
"""

from __future__ import annotations

from parallel_processor.simulator.options import LimitChange, ModelLimits, Outage, SimulatorOptions
from parallel_processor.simulator.rules import CannedAnswer, Rule
from parallel_processor.simulator.server import Simulator

__all__ = [
    "CannedAnswer",
    "LimitChange",
    "ModelLimits",
    "Outage",
    "Rule",
    "Simulator",
    "SimulatorOptions",
]
