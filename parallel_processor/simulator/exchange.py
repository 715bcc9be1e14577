"""A POST on its way to its answer."""

from __future__ import annotations

from typing import Any

from parallel_processor.models import Endpoint
from parallel_processor.simulator.dialects import Dialect
from parallel_processor.simulator.headers import LimitHeaders
from parallel_processor.simulator.quotas import QuotaLevel


class Exchange:
    """What is known of a request so far; used by one thread.

    `model` is the name it goes under in the limits, `cost` the tokens charged so far, `in_flight`
    how many requests were being answered when this one began, itself included; 0 before. `ruled` is
    true once the rules have let it through. `dialect` is how it is answered, `tier` the service tier
    that answers.
    """

    __slots__ = (
        "arrived_s",
        "body",
        "cost",
        "dialect",
        "digest",
        "endpoint",
        "in_flight",
        "latency_s",
        "levels",
        "model",
        "number",
        "read",
        "ruled",
        "tier",
    )

    def __init__(self, number: int, arrived_s: float, dialect: Dialect) -> None:
        self.number = number
        self.dialect = dialect
        self.arrived_s = arrived_s
        self.body: dict[str, Any] = {}
        self.endpoint = Endpoint.UNKNOWN
        self.model = ""
        self.read = self.cost = 0
        self.digest = 0
        self.in_flight = 0
        self.ruled = False
        self.tier = ""
        self.latency_s = 0.0
        self.levels: tuple[QuotaLevel, ...] = ()

    @property
    def request_id(self) -> str:
        """The id that the server gives the request."""
        return f"req_{self.number:032x}"

    def headers(self, limits: LimitHeaders) -> str:
        """Write the headers that every answer has, as far as they are known."""
        return (
            f"x-request-id: {self.request_id}\r\n"
            f"openai-processing-ms: {round(self.latency_s * 1000)}\r\n"
            f"{limits.levels(self.levels, self.cost)}"
        )
