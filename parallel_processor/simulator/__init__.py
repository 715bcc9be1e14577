"""An OpenAI-like server to try a job on before paying for it, and to test against.

It has no model, but it has an account: limits on requests and tokens that it enforces with a
server's token bucket, a key, money, latency, and faults on demand. As a process of its own::

    python -m parallel_processor.simulator --port 8000 --tokens_per_minute 250000 --latency_s 0.5

and inside one::

    with Simulator(SimulatorOptions(requests_per_minute=600, error_rate=0.1)) as simulator:
        ...  # POST to simulator.url + "/v1/chat/completions"
        print(simulator.stats())
"""

from __future__ import annotations

from parallel_processor.simulator.options import SimulatorOptions
from parallel_processor.simulator.server import Simulator

__all__ = ["Simulator", "SimulatorOptions"]
