"""Classifies a response: one tolerant reader for the answers and errors of every provider.

The HTTP status decides first, then the error's ``code`` and ``type``. The text of a success is
never searched. ``failed`` is about one request. ``fatal`` is about the whole run: a wrong key, or
no money.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from parallel_processor.exceptions import StopCause
from parallel_processor.models import Attempt, AttemptStatus, Response
from parallel_processor.providers.answers import POLLED, UNKNOWN, Expected, Fault, fault_of
from parallel_processor.providers.bodies import fault_of_body, whole_answer
from parallel_processor.providers.errors import body_text
from parallel_processor.providers.failures import failed, of_failure
from parallel_processor.providers.texts import plain_line
from parallel_processor.providers.usage import read_usage


def classify(
    response: Response,
    readings: Sequence[Any] = (),
    sent_at_s: float = 0.0,
    latency_s: float | None = None,
    expected: Expected = UNKNOWN,
) -> Attempt:
    """What ``response`` means for its request, of which ``expected`` tells, and for the run.

    The other arguments become fields of the attempt: a good one is not copied to add them.
    """
    if not 200 <= response.status < 300:
        attempt = of_failure(response)
    elif not response.is_json and (whole := whole_answer(response, expected)) is not None:
        return classify(whole, readings, sent_at_s, latency_s, expected)
    elif (fault := _fault_of_success(response, expected)) is not None:
        attempt = _of_fault(fault, response)
    else:
        used, output = read_usage(response.data)
        return Attempt(
            status=AttemptStatus.ANSWERED,
            response=response,
            used_tokens=used,
            output_tokens=output,
            readings=readings,
            sent_at_s=sent_at_s,
            latency_s=latency_s,
        )
    return replace(attempt, readings=readings, sent_at_s=sent_at_s, latency_s=latency_s)


def _fault_of_success(response: Response, expected: Expected) -> Fault | None:
    """Why a success is no answer; ``None`` if it is one."""
    is_json = response.is_json
    fault = fault_of(response.data, expected) if is_json else fault_of_body(response, expected)
    if response.status == 202 and (fault is None or fault.error is None):
        return Fault("not answered yet", POLLED, is_final=True)
    return fault


def _of_fault(fault: Fault, response: Response) -> Attempt:
    """A success that is no answer. What says that it is an error means what its own status would."""
    if fault.error is None:
        status = AttemptStatus.FAILED if fault.is_final else AttemptStatus.RETRY
        start = f": {body_text(response)[:200]}" if fault.kind == "no answer" else ""
        attempt = failed(status, response, fault.kind, plain_line(fault.message + start, 700))
        cause = StopCause.SETUP if fault.is_setup else StopCause.NOTHING
        used, _ = read_usage(response.data)  # half an answer has been charged, too
        return replace(attempt, stop_cause=cause, used_tokens=used)
    error = {name: value for name, value in fault.error.items() if name != "http_status"}
    inner = fault.error["http_status"] or 400
    meant = replace(response, status=inner, data={"error": error}, is_json=True)
    attempt = of_failure(meant)
    what = f"error in HTTP {response.status}" + f" {inner}" * (str(inner) == str(error["code"]))
    kind, text = (text.replace(f"HTTP {inner}", what, 1) for text in (attempt.kind, attempt.error))
    return replace(attempt, response=response, kind=kind, error=text)
