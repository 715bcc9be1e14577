"""Files of requests, the commands that send them, and the check that none was lost or doubled."""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import zlib
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.processes import (
    ROOT,
    BenchmarkError,
    Usage,
    bench_environment,
    measured,
    python,
    raise_file_limit,
)
from benchmarks.server import CONNECTIONS, Server, nginx

PROMPT_CHARS = 350
_SENTENCE = "Explain how a token bucket lets short bursts pass while it keeps the long-run rate. "
_RANKS_URL = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
_SEPARATOR = b"\xf8\xf9"  # of the package's tokens
NO_LIMIT = ("--max_requests_per_minute", "inf", "--max_tokens_per_minute", "inf")
PLENTY = ("--max_requests_per_minute", "1000000000", "--max_tokens_per_minute", "1000000000000")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a benchmark works, and with what."""

    folder: Path
    server: Server
    cookbook: Path | None = None


@contextmanager
def place(cookbook: Path | None = None, slow_s: float = 2.0) -> Iterator[Place]:
    """A temporary folder with a server, gone behind the block."""
    if cookbook is not None and not cookbook.is_file():
        raise BenchmarkError(f"{cookbook} is no file")
    raise_file_limit(CONNECTIONS + 128)
    with TemporaryDirectory(prefix="bench_") as name:
        folder = Path(name)
        make_token_cache(folder / "tiktoken")
        with nginx(folder / "server", slow_s) as server:
            script = cookbook.resolve() if cookbook is not None else None
            yield Place(folder=folder, server=server, cookbook=script)


def parser(name: str) -> argparse.ArgumentParser:
    """The flags that all benchmarks have."""
    made = argparse.ArgumentParser(prog=f"scripts/bench {name}")
    made.add_argument("--size", choices=("tiny", "small", "full"), default="full")
    made.add_argument(
        "--cookbook", type=Path, help="a copy of the cookbook's script, to run in its place"
    )
    return made


def request(number: int, chars: int = PROMPT_CHARS) -> dict[str, Any]:
    """A chat request whose prompt has about ``chars`` characters, and its number in it."""
    prompt = f"Question {number}: " + (_SENTENCE * (chars // len(_SENTENCE) + 1))
    message = {"role": "user", "content": prompt[: max(chars, 20)]}
    return {"model": "gpt-4-turbo", "messages": [message]}


def write_requests(path: Path, count: int, chars: int = PROMPT_CHARS) -> Path:
    """``count`` requests in ``path``."""
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            file.write(json.dumps(request(number, chars)) + "\n")
    return path


def our_command(requests: Path, results: Path, url: str, *flags: object) -> list[str]:
    """The package's command line."""
    return python(
        *("-m", "parallel_processor", "--requests_filepath", requests, "--save_filepath", results),
        *("--request_url", url, "--no_progress", "--logging_level", 40, *flags),
    )


def cookbook_command(where: Place, requests: Path, results: Path, url: str) -> list[str]:
    """The cookbook's way, or its own script if there is one."""
    script = [where.cookbook] if where.cookbook else ["-m", "benchmarks.cookbook_loop"]
    return python(
        *(*script, "--requests_filepath", requests, "--save_filepath", results),
        *("--request_url", url, "--api_key", "sk-benchmark", "--logging_level", 20, *PLENTY),
    )


def client_command(name: str, requests: Path, url: str, count: int, threads: int) -> list[str]:
    """A baseline of :mod:`benchmarks.clients`."""
    words = ("-m", "benchmarks.clients", name, url, requests, count, "--threads", threads)
    return python(*words)


def run(where: Place, command: list[str], requests: int, **options: Any) -> Usage:
    """Run ``command``, which must send so many requests, neither more nor fewer."""
    variables = where.server.variables() | {"TIKTOKEN_CACHE_DIR": str(where.folder / "tiktoken")}
    before = where.server.counts()[1]
    usage = measured(command, where.folder, **options, **variables)
    sent = where.server.counts()[1] - before - 1
    if sent != requests:
        what = f"{sent} requests were sent instead of {requests}"
        raise BenchmarkError(f"{' '.join(command)}: {what}")
    return usage


def check_results(requests: Path, results: Path) -> None:
    """Each request has one good record, and nothing else is there."""
    words = ("--requests_filepath", requests, "--save_filepath", results)
    command = python("-m", "parallel_processor", "verify", *words)
    done = subprocess.run(
        command, cwd=requests.parent, env=bench_environment(), capture_output=True, text=True
    )
    if done.returncode != 0:
        raise BenchmarkError(f"{results} is not whole: {done.stdout}{done.stderr}")


def our_flags() -> str:
    """What the command says of its flags, for those that may come later."""
    command = python("-m", "parallel_processor", "--help")
    return subprocess.check_output(command, env=bench_environment(), text=True)


def has(module: str, *, quiet: bool = False) -> bool:
    """True if ``module`` of the extra ``bench`` is there; says so if it isn't."""
    if find_spec(module) is not None:
        return True
    if not quiet:
        print(f"note: {module} is missing (pip install '.[bench]'): its rows are skipped")
    return False


def make_token_cache(folder: Path) -> None:
    """What tiktoken would have downloaded for ``cl100k_base``, from the copy that the package has."""
    spec = find_spec("parallel_processor")
    package = Path(spec.origin).parent if spec and spec.origin else ROOT / "parallel_processor"
    folder.mkdir()
    content = zlib.decompress((package / "tokens" / "data" / "cl100k_base.tokens.z").read_bytes())
    tokens = content.split(_SEPARATOR)
    ranks = b"".join(b"%s %d\n" % (b64encode(token), n) for n, token in enumerate(tokens))
    (folder / hashlib.sha1(_RANKS_URL.encode()).hexdigest()).write_bytes(ranks)
