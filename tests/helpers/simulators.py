"""What tests of the simulator share."""

from __future__ import annotations

from typing import Any

from parallel_processor.models import Endpoint


class WordCounter:
    """One token a word of the input, and of output what max_tokens says."""

    def input_tokens(self, body: Any, endpoint: Endpoint) -> int:
        return len(str(body.get("input", "")).split())

    def output_tokens(self, body: Any, endpoint: Endpoint) -> int:
        return int(body.get("max_tokens", 0))
