"""Which requests of a file are still to be sent."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from parallel_processor.counters import Counters
from parallel_processor.models import Request
from parallel_processor.resume import AnsweredRequests

_log = logging.getLogger("parallel_processor")


def unanswered(
    requests: Iterator[Request],
    answered: AnsweredRequests,
    counters: Counters,
    is_over: Callable[[], bool],
) -> Iterator[Request]:
    """The requests that have no answer yet. One warning says which members were dropped."""
    warned = False
    for request in requests:
        if is_over():
            return
        if answered.take(request):
            counters.skipped()
            continue
        if answered.kept_failures.take(request):
            counters.skipped(failed=True)
            continue
        if request.dropped and not warned:
            warned = True
            names = ", ".join(sorted(request.dropped))
            number = request.number
            extra = {"request_number": number}
            _log.warning("line %d: %s left out, here and below", number, names, extra=extra)
        yield request
