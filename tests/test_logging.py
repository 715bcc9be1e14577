"""What the package logs, and what it leaves alone of the embedding program's logging."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import environment, write_lines
from raw_server import RawServer, Visit

from parallel_processor import Limits, Processor, RetryPolicy
from parallel_processor.simulator import Simulator

HASTE = RetryPolicy(max_attempts=2, backoff_initial_s=0.0, pause_s=0.0)


def processor(url: str, tokens_per_minute: float = math.inf, **settings: Any) -> Processor:
    """A processor for the chat completions of a server."""
    limits = Limits(requests_per_minute=math.inf, tokens_per_minute=tokens_per_minute)
    options: dict[str, Any] = {"limits": limits, "retry": HASTE} | settings
    return Processor(request_url=f"{url}/v1/chat/completions", **options)


def test_every_record_about_a_request_has_its_number(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Attempts, retries, waits, failures and bad lines name the request in an attribute."""
    caplog.set_level(logging.DEBUG, logger="parallel_processor")
    refusals = ["500 Oops", "429 Later", "400 No"]

    def refuse(visit: Visit) -> None:
        while visit.read():
            visit.answer(b"{}", status=refusals.pop(0), headers="Retry-After: 0\r\n")

    good = {"model": "m", "messages": [{"role": "user", "content": "?"}], "stream": True}
    source = write_lines(tmp_path / "in.jsonl", ["no object", good])
    with RawServer(refuse) as server:
        processor(server.url).process_file(source, tmp_path / "out.jsonl")
        refusals.append("400 No")
        assert list(processor(server.url, tokens_per_minute=3).imap_unordered([good]))
    about = [r for r in caplog.records if hasattr(r, "request_number")]
    assert {(record.request_number, record.levelname) for record in about} == {
        *((1, "ERROR"), (2, "DEBUG"), (2, "WARNING"), (2, "ERROR")),
        *((1, "DEBUG"), (1, "WARNING")),
    }
    begins = (
        *("line 1", "line 2: stream left out", "request 2: attempt 3", "request 1 needs "),
        *("request 2 is tried again", "request 2 waits to be sent again", "request 2 failed"),
    )
    for begin in begins:
        assert any(record.getMessage().startswith(begin) for record in about), begin
    others = [r.getMessage() for r in caplog.records if r not in about]
    assert any(message.startswith("sending ") for message in others)
    assert any(message.startswith("pausing for ") for message in others)
    assert not [m for m in others if m.startswith(("request", "line"))]


_PROGRAM = """
import logging, math, sys
loggers = dict(logging.Logger.manager.loggerDict)

def state():
    ours = [name for name in logging.Logger.manager.loggerDict if name.startswith("parallel_")]
    handlers = logging.getLogger("parallel_processor").handlers
    return ours, [type(each).__name__ for each in handlers], logging.root.handlers, logging.root.level

import parallel_processor
from parallel_processor import Limits, Processor, RetryPolicy
before = state()
assert before == (["parallel_processor"], ["NullHandler"], [], logging.WARNING), before
names, settings = set(vars(parallel_processor)), logging.getLogger("parallel_processor").__dict__.copy()
limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
retry = RetryPolicy(max_attempts=1)
made = Processor(request_url=sys.argv[1] + "/v1/embeddings", limits=limits, retry=retry)
assert not any(each.ok for each in made.imap_unordered([{"input": "a"}] * 3))
assert state() == before, state()
after = logging.getLogger("parallel_processor").__dict__
assert {k: v for k, v in after.items() if k != "_cache"} == {
    k: v for k, v in settings.items() if k != "_cache"
}
assert not {name for name in set(vars(parallel_processor)) - names if name not in sys.modules
            and f"parallel_processor.{name}" not in sys.modules}
"""


def test_logging_stays_as_the_program_has_it() -> None:
    """One logger, its NullHandler, nothing on the root, and nothing on stderr if nothing is set up."""
    with RawServer(lambda visit: visit.read() and visit.answer(status="500 Oops")) as server:
        ran = subprocess.run(
            [sys.executable, "-W", "error", "-c", _PROGRAM, server.url],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=60,
        )
    assert (ran.returncode, ran.stderr, ran.stdout) == (0, "", "")


def test_whoever_sets_logging_up_sees_everything(caplog: pytest.LogCaptureFixture) -> None:
    """The records pass on to the program's handlers."""
    caplog.set_level(logging.DEBUG)
    with Simulator() as server:
        list(processor(server.url).imap_unordered([{"model": "m", "messages": []}]))
    assert "request 1: attempt 1" in caplog.messages
    ours = [r.name for r in caplog.records if r.pathname.find("parallel_processor/") > 0]
    assert set(ours) == {"parallel_processor"}
