"""What all runs of a processor share."""

from __future__ import annotations

import time

import pytest

from parallel_processor.engine.account import Account
from parallel_processor.options import Options


@pytest.mark.parametrize("cancels", [False, True])
def test_a_stop_is_for_calls_that_have_no_run_yet(cancels: bool) -> None:
    """A call that has begun is stopped as soon as its run is there, and a later call is not."""
    account = Account(Options(request_url="http://127.0.0.1:1/v1/embeddings"), time.monotonic)
    begun = account.stops
    account.stop("enough", cancels=cancels)
    with account.run(stops=begun) as run:
        assert str(run.stop_cause) == "enough"
        assert list(run.outcomes([])) == []
    with account.run(stops=account.stops) as run:
        assert run.stop_cause is None
        assert list(run.outcomes([])) == []
