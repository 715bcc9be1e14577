"""Kills the real command at random moments, over and over, and checks what is left."""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

from commands import Server, command, environment, simulator, write_lines

from parallel_processor.files.verify import Verification, verify_results

MAX_WORKERS = 40
WRITER_SLACK = 256  # outcomes that may not be written yet


@dataclass(frozen=True)
class CrashReport:
    """What came of a job that was killed ``kills`` times and then left to end.

    ``answered`` is how often the server answered, which is what is paid for.
    """

    kills: int
    lines: int
    pack_inputs: int
    answered: int
    verification: Verification
    exit_code: int

    @property
    def ok(self) -> bool:
        """Nothing lost, nothing twice, no torn line; sent again was only what was in flight."""
        least = self.lines // self.pack_inputs
        most = 2 * least if self.pack_inputs > 1 else least  # some packs can't be filled
        most += self.kills * (MAX_WORKERS + WRITER_SLACK)
        return self.exit_code == 0 and self.verification.ok and least <= self.answered <= most


def crash(
    folder: Path,
    *,
    lines: int,
    kills: int,
    seed: int,
    error_rate: float = 0.0,
    processes: int = 1,
    has_tiers: bool = False,
    pack_inputs: int = 1,
) -> CrashReport:
    """Run a job of ``lines`` to its end in spite of ``kills`` times SIGKILL.

    With ``has_tiers``, half of it goes through two service tiers. ``pack_inputs`` go in one request.
    """
    rng = random.Random(seed)
    inputs = [f"{n % (lines // 2)}" for n in range(lines)]  # some lines are equal
    rows = [{"model": "m", "input": x, "metadata": {"row": n % 7}} for n, x in enumerate(inputs)]
    source = write_lines(folder / "in.jsonl", rows)
    results = folder / "out.jsonl"
    flags: tuple[object, ...] = (
        "--latency_s",
        0.03,
        "--latency_jitter",
        0.9,
        "--seed",
        seed,
        "--error_rate",
        error_rate,
    )
    grants, tiers = ("--tier_grant", "flex=0.5"), ("--service_tier", "flex,default")
    flags += grants if has_tiers else ()
    with simulator(*flags, "--errors", "500,reset,torn") as server:
        words = command(
            *("--requests_filepath", source, "--save_filepath", results, "--no_progress"),
            *("--request_url", f"{server.url}/v1/embeddings", "--max_workers", MAX_WORKERS),
            *("--max_requests_per_minute", 60_000, "--max_tokens_per_minute", "inf"),
            *("--logging_level", 40, "--processes", processes),
            *(tiers if has_tiers else ()),
            *("--pack_inputs", pack_inputs),
        )
        done = 0
        while done < kills:
            done += _run_and_kill(words, server, rng, share=lines / kills / pack_inputs)
        code = subprocess.run(words, env=environment(), timeout=300).returncode
        stats = server.stats()
    return CrashReport(
        kills=kills,
        lines=lines,
        pack_inputs=pack_inputs,
        answered=stats["requests_received"] - sum(stats["faults"].values()) - stats["tier_full"],
        verification=verify_results(source, results),
        exit_code=code,
    )


def _run_and_kill(words: list[str], server: Server, rng: random.Random, share: float) -> bool:
    """Start the command, kill it after some more requests have arrived; false if it ended before."""
    received = begun_at = server.stats()["requests_received"]
    kill_at = begun_at + rng.uniform(0, share)
    with subprocess.Popen(words, env=environment(), stderr=subprocess.DEVNULL) as process:
        while not _ends_within(process, 0.05 if received == begun_at else 0.005):
            received = server.stats()["requests_received"]
            if received >= kill_at:
                process.kill()
        return process.returncode != 0


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """True once the process has ended, false if that takes longer."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
