"""A real notebook: a real kernel runs its cells, which are interrupted and run again."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import environment, read_lines, write_lines
from raw_server import RawServer, Visit

pytestmark = pytest.mark.acceptance

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
for package in ("ipykernel", "ipywidgets", "matplotlib", "pandas"):
    pytest.importorskip(package)

HANGS_S = 60
LINES, WORKERS, ANSWERS = 40, 5, 10
ANSWER = (
    b'{"model": "m", "choices": [{"message": {"content": "Yes."}}],'
    b' "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}'
)

SETUP = """
import asyncio, json, math, sys, threading, warnings
from collections import Counter
from parallel_processor import *

warnings.simplefilter("always")
limits = Limits(requests_per_minute=math.inf, tokens_per_minute=math.inf)
# Answers under way may take for ever: a cell that waits for them never ends.
account = {"request_url": URL, "limits": limits, "max_workers": WORKERS, "drain_s": 1e6}
loop = asyncio.get_running_loop()

def leftovers():
    import subprocess
    ours = [t.name for t in threading.enumerate() if t.name.startswith("parallel-processor")]
    subprocess._cleanup()
    return ours + subprocess._active
"""
WITHOUT_WIDGETS = "sys.modules['ipywidgets'] = None"
WITH_WIDGETS = (
    "import importlib, tqdm; del sys.modules['ipywidgets']; importlib.reload(tqdm.notebook)"
)
FILE = """
summary = process_file(SOURCE, SAVE, **account)
summary
"""
FILE_BY_PROCESSES = "process_file(SOURCE, OTHER, processes=2, **account)"
ITERABLE = """
kept = []
with Processor(**account) as processor:
    for outcome in processor.imap_unordered({"n": n} for n in range(1000)):
        kept.append(outcome)
"""
STATE = "print(json.dumps([leftovers(), loop.is_running(), len(globals().get('kept', []))]))"
FRAME = """
import pandas
frame = pandas.DataFrame(to_records(read_results(SAVE)))
print(len(frame), frame["total_tokens"].sum(), sorted(frame["metadata.id"]) == list(range(LINES)))
"""
PLOT = """
import matplotlib.pyplot as plt
frame.plot.scatter("metadata.id", "total_tokens")
plt.show()
"""


class Slow:
    """Answers so many requests, and holds all others until it is opened."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.answered: list[bytes] = []
        self._held = threading.Semaphore(0)
        self._lock = threading.Lock()  # guards _answers
        self._answers = 0

    def close(self, answers: int) -> None:
        """From now on, answer so many and hold the rest."""
        with self._lock:
            self.opened.clear()
            self._answers = answers

    def __call__(self, visit: Visit) -> None:
        while visit.read():
            with self._lock:
                self._answers -= 1
                holds = self._answers < 0
            if holds and not self.opened.is_set():
                self._held.release()
                self.opened.wait()
            visit.answer(ANSWER)
            self.answered.append(visit.body)

    def wait_for(self, count: int) -> None:
        """Return once so many more are held."""
        for _ in range(count):
            assert self._held.acquire(timeout=HANGS_S)


class Reader:
    """Runs the cells of a notebook, and interrupts some once the server is stuck."""

    def __init__(self, server: Slow, folder: Path) -> None:
        self._server = server
        self._book = nbformat.v4.new_notebook()
        self._client = nbclient.NotebookClient(self._book, kernel_name="python3", timeout=HANGS_S)
        self._folder = folder
        self._loop = asyncio.new_event_loop()  # the loops that nbclient makes itself stay open

    @contextmanager
    def kernel(self) -> Iterator[None]:
        """A kernel under way; it is ended behind the block."""
        settings = {"IPYTHONDIR": str(self._folder), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
        setup = self._client.async_setup_kernel(env=environment(**settings))
        self._loop.run_until_complete(setup.__aenter__())
        try:
            yield
        finally:
            self._loop.run_until_complete(setup.__aexit__(None, None, None))
            self._loop.close()

    def run(self, source: str, **names: object) -> list[Any]:
        """The outputs of a cell; each of ``names`` is a variable in it."""
        return self._run("".join(f"{name} = {value!r}\n" for name, value in names.items()) + source)

    def _run(self, source: str, *tags: str) -> list[Any]:
        cell = nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})
        self._book.cells.append(cell)
        index = len(self._book.cells) - 1
        self._loop.run_until_complete(self._client.async_execute_cell(cell, index))
        outputs: list[Any] = cell.outputs
        assert not [each for each in outputs if "Warning" in each.get("text", "")], outputs
        return outputs

    def interrupt(self, source: str) -> list[Any]:
        """The outputs of a cell that is interrupted when nothing but held requests is left of it."""
        self._server.close(ANSWERS)
        interrupted_at: list[float] = []

        def watch() -> None:
            self._server.wait_for(WORKERS)
            interrupted_at.append(time.monotonic())
            interrupt = self._client.km.interrupt_kernel()
            asyncio.run_coroutine_threadsafe(interrupt, self._loop).result(HANGS_S)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            outputs = self._run(source, "raises-exception")
        finally:
            watcher.join()
        print(f"ended {time.monotonic() - interrupted_at[0]:.2f} s after the interrupt")
        assert outputs[-1]["ename"] == "KeyboardInterrupt", outputs
        assert not self._server.opened.is_set()  # it ended with its requests unanswered
        return outputs


def images(outputs: list[Any]) -> set[str]:
    """The kinds of what a cell shows."""
    return {kind for each in outputs for kind in each.get("data", ())}


def text_of(outputs: list[Any]) -> str:
    """What a cell printed."""
    return "".join(each.get("text", "") for each in outputs)


def test_a_notebook_is_interrupted_and_goes_on(tmp_path: Path) -> None:
    """Cells end within a second or so with what was answered, and go on from there when run again."""
    bodies = [{"model": "m", "messages": [], "metadata": {"id": n}} for n in range(LINES)]
    source, save, other = (tmp_path / f"{name}.jsonl" for name in ("in", "out", "other"))
    write_lines(source, bodies)
    slow = Slow()
    with RawServer(slow) as server:
        reader = Reader(slow, tmp_path)
        names = {"SOURCE": str(source), "SAVE": str(save), "OTHER": str(other)}
        with reader.kernel():
            try:
                url = f"{server.url}/v1/chat/completions"
                reader.run(SETUP, URL=url, WORKERS=WORKERS, LINES=LINES, **names)

                reader.run(WITHOUT_WIDGETS)
                outputs = reader.interrupt(FILE)
                bars = text_of(outputs).split("\r")  # the last one stays, on a line of its own
                assert re.search(rf"\| {ANSWERS}/~?\d+, [^\n]*\n$", bars[-1]), bars
                assert reader.run(STATE)[0]["text"] == "[[], true, 0]\n"
                assert len(read_lines(save)) == ANSWERS

                reader.run(WITH_WIDGETS)
                slow.opened.set()
                outputs = reader.run(FILE)
                assert {"text/html", "application/vnd.jupyter.widget-view+json"} <= images(outputs)
                assert "<th" in outputs[-1]["data"]["text/html"]
                assert len(read_lines(save)) == LINES
                assert len(server.bodies) == LINES + WORKERS  # those that were held were sent again

                reader.interrupt(ITERABLE)
                text = reader.run(STATE)[0]["text"]
                assert text.startswith("[[], true, ") and 1 <= int(text[11:-2]) <= ANSWERS

                reader.interrupt(FILE_BY_PROCESSES)
                assert reader.run(STATE)[0]["text"].startswith("[[], true, ")
                assert len(read_lines(other)) == ANSWERS

                assert text_of(reader.run(FRAME)) == f"{LINES} {7 * LINES} True\n"
                assert "image/png" in images(reader.run(PLOT))
            finally:
                slow.opened.set()
