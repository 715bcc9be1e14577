"""What can go wrong outside a single request.

A request that fails is an :class:`~parallel_processor.Outcome`, not an exception. Exceptions are for
the caller's mistakes, for files that can't be used, and for an account that the server refuses::

    ParallelProcessorError
    ├── ConfigurationError (ValueError)   an option has a value that can't work
    │   └── LimitsFileError               a value in a file of limits can't work
    ├── InputFileError (OSError)          the requests file can't be read
    ├── ResultsFileError (OSError)        a results file can't be read, written or replaced
    ├── LimiterError (OSError)            the server that holds shared limits can't be used
    ├── WorkerProcessError                worker processes can't be started, or keep dying
    ├── RunStoppedError                   the server refuses the whole account; has the summary
    ├── RequestFailedError                raised by :meth:`Outcome.raise_for_error`; has the outcome
    ├── StopRequested                     why a run was told to stop; never raised
    │   └── InterpreterEnds               the same, at the end of the program
    └── TransportError                    one attempt got no whole answer; stays in the package
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from parallel_processor.models import Outcome
    from parallel_processor.report.summary import Summary


class StopCause(str, enum.Enum):
    """Why a run ended early. A member equals its value, a string.

    >>> summary = process_file(f"{folder}/requests.jsonl", request_url=url)
    >>> summary.stop_cause is StopCause.NOTHING
    True
    """

    NOTHING = ""  # it did not end early
    CALLER = "caller"  # the program or a person stopped it
    KEY = "key"  # the server does not accept the API key
    QUOTA = "quota"  # no credit, a spending limit, or a daily quota that is used up
    UNREACHABLE = "unreachable"  # no connection to the server could be made
    SETUP = "setup"  # no request can succeed: certificate, proxy, URL, protocol
    EQUAL_FAILURES = "equal failures"  # the first requests all failed for one and the same reason
    SERVER_WAIT = "server wait"  # the server asks for a longer wait than the settings permit
    BUDGET = "budget"  # money, tokens, time or failures have reached what the settings permit
    PRICE = "price"  # a model has no price that its budget could be kept with
    DISK = "disk"  # a results file can't be read, written or replaced
    READER_LEFT = "reader left"  # nobody reads the pipe any more that the results go to
    PROCESSES = "processes"  # worker processes can't be started, or do not live
    PROGRAM = "program"  # an exception of the input, of a callback, or of the package

    __str__ = str.__str__  # the value, in every Python version


class ParallelProcessorError(Exception):
    """The base of everything that this package raises on purpose.

    Attributes:
        summary: what the run had done by then; ``None`` if no run had begun.
        outcomes: the outcomes that ``Processor.map`` had by then.
        stop_cause: what ended the run, as a value that a program can compare.

    >>> try:
    ...     process_file(f"{folder}/no-such-file.jsonl", request_url=url)
    ... except ParallelProcessorError as error:
    ...     print(type(error).__name__, error.summary)
    InputFileError None
    """

    summary: Summary | None = None
    outcomes: tuple[Outcome, ...] = ()
    stop_cause: StopCause = StopCause.PROGRAM


class ConfigurationError(ParallelProcessorError, ValueError):
    """An option has a value that can't work; the message names the option and the value.

    >>> try:
    ...     Processor(request_url=url, max_workers=0)
    ... except ConfigurationError as error:
    ...     print(error)
    max_workers must be a whole number of at least 1, not 0
    """


class LimitsFileError(ConfigurationError):
    """A file of limits has a value that can't work; the message names the entry."""


class InputFileError(ParallelProcessorError, OSError):
    """The requests file is missing or can't be read.

    >>> try:
    ...     process_file(f"{folder}/no-such-file.jsonl", request_url=url)
    ... except InputFileError as error:
    ...     print(error)
    can't read ...no-such-file.jsonl: ...
    """


class ResultsFileError(ParallelProcessorError, OSError):
    """A results or errors file can't be read, written or replaced.

    It is raised after the run has ended in order: every record that could be written is on disk.

    >>> try:
    ...     process_file(f"{folder}/requests.jsonl", "/dev/full", request_url=url, write_retry_s=0)
    ... except ResultsFileError as error:
    ...     print(error)
    can't write /dev/full: No space left on device
    """

    stop_cause = StopCause.DISK


class LimiterError(ParallelProcessorError, OSError):
    """The server that holds the limits of several processes can't be used; nothing was sent.

    Attributes:
        is_lasting: true if it refuses this process, so that waiting can't help. During a run, that ends
            the run with a :class:`RunStoppedError`.

    >>> try:
    ...     Processor(request_url=url, limiter="redis://127.0.0.1:1/0")
    ... except LimiterError as error:
    ...     print(error)
    can't use the limiter redis://127.0.0.1:1/0: ...
    """

    is_lasting = False


class WorkerProcessError(ParallelProcessorError):
    """Worker processes can't be started, or end before they have sent anything.

    Requests without a record stay unanswered; the same call sends them.

    >>> try:
    ...     summary = process_file(f"{folder}/requests.jsonl", request_url=url, processes=2)
    ... except WorkerProcessError as error:
    ...     print("fewer processes may do:", error)
    >>> summary.answered
    3
    """

    stop_cause = StopCause.PROCESSES


class RunStoppedError(ParallelProcessorError):
    """No request of this account can be answered: a wrong key, no credit, a limit of hours, no server.

    Requests without a record stay unanswered; the same call sends them once the cause is removed.
    ``stop_cause`` tells the causes apart. ``models`` names those that are concerned, if not all are;
    an empty name stands for all models of a host.

    >>> from parallel_processor.simulator import Simulator, SimulatorOptions
    >>> with Simulator(SimulatorOptions(api_key="sk-right")) as server:
    ...     account: Settings = {"request_url": f"{server.url}/v1/embeddings", "api_key": "sk-wrong"}
    ...     try:
    ...         process_file(f"{folder}/requests.jsonl", **account)
    ...     except RunStoppedError as error:
    ...         print(str(error)[:8], error.stop_cause, error.summary.answered)
    HTTP 401 key 0
    """

    def __init__(
        self,
        message: str = "",
        stop_cause: StopCause = StopCause.CALLER,
        *,
        models: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.stop_cause = stop_cause
        self.models = models


class RequestFailedError(ParallelProcessorError):
    """A request failed, as an exception; its ``outcome`` says how.

    >>> from parallel_processor.simulator import Simulator, SimulatorOptions
    >>> once = RetryPolicy(max_attempts=1)
    >>> with Simulator(SimulatorOptions(error_rate=1.0, errors=("500",))) as server:
    ...     with Processor(request_url=f"{server.url}/v1/embeddings", retry=once) as processor:
    ...         (outcome,) = processor.map([{"model": "m", "input": "text"}])
    >>> try:
    ...     outcome.raise_for_error()
    ... except RequestFailedError as error:
    ...     print(error.outcome.error_kind, error.outcome.attempts)
    HTTP 500 server_error 1
    """

    def __init__(self, outcome: Outcome) -> None:
        place = f"request {outcome.request.number}" if outcome.request.number else "a request"
        super().__init__(f"{place} failed: {outcome.error or 'it was given up'}")
        self.outcome = outcome

    def __reduce__(self) -> tuple[type[RequestFailedError], tuple[Outcome], dict[str, Any]]:
        """Pickling calls the constructor with the outcome, not with the message."""
        return type(self), (self.outcome,), vars(self)


class StopRequested(ParallelProcessorError):
    """The caller stopped the run; the message says who, or why. It is a cause, never raised."""

    stop_cause = StopCause.CALLER


class InterpreterEnds(StopRequested):
    """The interpreter ends, and with it every thread that could be told."""


class TransportError(ParallelProcessorError):
    """One attempt ended without a whole answer."""

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        retryable: bool = True,
        is_cancelled: bool = False,
        unreachable: bool = False,
        is_setup: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind  # a short label to count by: timeout, connection error, torn body …
        self.retryable = retryable  # false if another attempt would end the same way
        self.is_cancelled = is_cancelled  # the run itself gave the attempt up
        self.unreachable = unreachable  # no connection was made, so that nothing was sent
        self.is_setup = is_setup  # no attempt can succeed until the user changes something


def stop_cause_of(error: BaseException | None) -> StopCause:
    """What ended a run that ``error`` stopped; nothing if it came to its end."""
    if error is None:
        return StopCause.NOTHING
    if isinstance(error, KeyboardInterrupt):
        return StopCause.CALLER
    return error.stop_cause if isinstance(error, ParallelProcessorError) else StopCause.PROGRAM
