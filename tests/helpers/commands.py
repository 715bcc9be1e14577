"""The commands as processes of their own: the simulator as the server, the command line as the client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def command(*words: object) -> list[str]:
    """The command line, run as a module by this Python."""
    return [sys.executable, "-m", "parallel_processor", *map(str, words)]


def environment(**changes: str) -> dict[str, str]:
    """This environment without a key or a proxy, and with ``changes``."""
    hidden = ("OPENAI_API_KEY", "http_proxy", "https_proxy", "all_proxy")
    kept = {k: v for k, v in os.environ.items() if k not in hidden and k.lower() not in hidden}
    return kept | changes


def run(*words: object, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    return subprocess.run(
        command(*words), capture_output=True, text=True, env=environment(**changes), timeout=300
    )


class Server:
    """A simulator in a process of its own."""

    def __init__(self, url: str) -> None:
        self.url = url

    def stats(self) -> dict[str, Any]:
        """What has arrived so far."""
        with urllib.request.urlopen(f"{self.url}/stats", timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found


@contextmanager
def simulator(*flags: object) -> Iterator[Server]:
    """A simulator with ``flags`` on a free port; it is ended behind the block."""
    words = [sys.executable, "-m", "parallel_processor.simulator", "--port", "0", *map(str, flags)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment()) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            assert line.startswith("listening on "), line
            yield Server(line.removeprefix("listening on "))
        finally:
            process.terminate()
            process.wait(timeout=30)


def write_lines(path: Path, rows: Sequence[object]) -> Path:
    """``rows`` as JSONL in ``path``."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read_lines(path: Path) -> list[Any]:
    """The rows of a JSONL file; each line must be whole."""
    text = path.read_text("utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.split("\n")[:-1]]
