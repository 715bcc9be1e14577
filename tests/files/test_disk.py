"""Disks that are full, too small, read-only or not ours, for the real command and real file systems."""

from __future__ import annotations

import errno
import functools
import os
import resource
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from commands import command, environment, read_lines, simulator, write_lines
from raw_server import RawServer, answer_all

from parallel_processor import Limits, Processor
from parallel_processor.files.verify import verify_results

pytestmark = pytest.mark.acceptance

FAST = ("--max_requests_per_minute", 60_000, "--max_tokens_per_minute", "inf", "--max_workers", 20)
COUNT = 250
ROWS = [{"model": "m", "input": f"text {number}"} for number in range(COUNT)]
LARGE = ("--embedding_dimensions", 500)  # an answer of 4.5 kB
ROOM_BYTES = 500_000
HANGS_S = 60.0

Disk = Callable[[str], Path]


def _mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Makes a memory disk with mount's options; skips where that isn't permitted."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def make(options: str) -> Path:
        try:
            _mount("-t", "tmpfs", "-o", options, "tmpfs", folder)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no disk can be mounted here: {error}")
        return folder

    try:
        yield make
    finally:
        if os.path.ismount(folder):
            subprocess.run(["umount", folder], check=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Requests whose results need about 1.1 MB."""
    return write_lines(tmp_path / "in.jsonl", ROWS)


def words_for(url: str, source: Path, save: Path, *flags: object) -> list[str]:
    """The command."""
    paths = ("--requests_filepath", source, "--save_filepath", save)
    return command(*paths, "--request_url", f"{url}/v1/embeddings", *FAST, *flags)


def ended(words: list[str], **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        words, stderr=subprocess.PIPE, text=True, env=environment(), timeout=HANGS_S, **settings
    )


def assert_says(stderr: str, save: Path, reason: str) -> None:
    """One error line, clear and at the end, and before it what to do."""
    errors = [line for line in stderr.splitlines() if " ERROR " in line]
    assert len(errors) == 1, stderr
    assert errors[0].endswith(f"stopped: can't write {save}: {reason}.")
    assert "\nMake room on the disk, or make the results writable, then run the same" in stderr
    assert stderr.endswith(errors[0] + "\n")
    assert "Traceback" not in stderr


def assert_no_longer_than(save: Path, size: int) -> int:
    """The file has whole, good records only, and fits; how many there are."""
    assert save.stat().st_size <= size
    records = read_lines(save)
    assert 0 < len(records) < COUNT
    assert all(isinstance(row[1], dict) for row in records)
    return len(records)


# Room that isn't enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Small:
    """A place for 500 kB of results: what the system says once it is full, and how to make room there."""

    save: Path
    reason: str
    make_room: Callable[[int], object]
    settings: dict[str, Any] = field(default_factory=dict)


def _limit() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM_BYTES, resource.RLIM_INFINITY))


@pytest.fixture(params=["disk", "limit of a file's size"])
def small(request: pytest.FixtureRequest, disk: Disk, tmp_path: Path) -> Small:
    """A small disk, or a limit of the process, which the system enforces by a signal."""
    if request.param == "disk":
        save = disk(f"size={ROOM_BYTES}") / "out.jsonl"
        return Small(
            save=save,
            reason="No space left on device",
            make_room=lambda _: _mount("-o", "remount,size=5m", save.parent),
        )
    if not hasattr(resource, "prlimit"):
        pytest.skip("no other process's limits can be set here")
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    return Small(
        save=tmp_path / "out.jsonl",
        reason="File too large",
        make_room=lambda pid: resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited),
        settings={"preexec_fn": _limit},
    )


def test_a_full_disk_and_room_made_later(small: Small, source: Path) -> None:
    """On 500 kB the command ends with the reason and whole lines; with more room it does the rest."""
    save = small.save
    with simulator(*LARGE) as server:
        words = words_for(server.url, source, save, "--write_retry_seconds", 0.5)
        done = ended(words, **small.settings)
        assert done.returncode == 1
        assert_says(done.stderr, save, small.reason)
        kept = assert_no_longer_than(save, ROOM_BYTES + 12_288)
        sent = server.stats()["requests_received"]
        assert kept <= sent <= kept + 20 + 256  # in flight, and answered while the disk was at it
        small.make_room(0)
        assert ended(words).returncode == 0
        assert server.stats()["requests_received"] == sent + COUNT - kept
    assert verify_results(source, save).ok


def test_room_that_is_made_in_time(small: Small, source: Path) -> None:
    """Answers in memory are written once there is room: none that the server gave is lost."""
    save = small.save
    with simulator(*LARGE, "--latency_s", 0.05) as server:
        words = words_for(server.url, source, save)
        with subprocess.Popen(
            words, stderr=subprocess.PIPE, text=True, env=environment(), **small.settings
        ) as process:
            watchdog = threading.Timer(HANGS_S, process.kill)
            watchdog.start()
            try:
                assert process.stderr is not None
                for line in process.stderr:
                    if "trying again for a while" in line:
                        break
                small.make_room(process.pid)
                stderr = process.stderr.read()
                assert process.wait() == 1
            finally:
                watchdog.cancel()
                process.kill()
        assert_says(stderr, save, small.reason)
        kept = assert_no_longer_than(save, 5_000_000)
        assert server.stats()["answered"] == server.stats()["requests_received"] == kept
        assert ended(words).returncode == 0
        assert server.stats()["requests_received"] == COUNT
    assert verify_results(source, save).ok


def test_a_disk_has_its_own_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short ``drain_s`` doesn't shorten how long refused records are tried again."""
    source = write_lines(tmp_path / "in.jsonl", ROWS[:10])
    save = tmp_path / "out.jsonl"
    write, refusals = os.write, 2

    def refusing(descriptor: int, data: Any) -> int:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    limits = Limits(requests_per_minute=60.0, tokens_per_minute=float("inf"))
    with RawServer(answer_all) as server:
        with Processor(request_url=server.url, limits=limits, drain_s=0.01) as processor:
            with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
                patch.setattr(os, "write", refusing)
                processor.process_file(source, save)
        assert len(read_lines(save)) == len(server.bodies) > 0


# What can't be written at all


@functools.cache
def without_privileges() -> tuple[str, ...]:
    """How to start a command that permissions hold for, though root starts it."""
    if os.geteuid() != 0:
        return ()
    capabilities = "-dac_override,-dac_read_search"
    words = ("setpriv", f"--bounding-set={capabilities}", f"--inh-caps={capabilities}")
    if shutil.which("setpriv") is None or subprocess.run([*words, "true"]).returncode:
        pytest.skip("root may write everywhere, and can't be kept from it here")
    return words


def assert_refused_at_once(source: Path, path: Path, reason: str, flag: str, *start: str) -> None:
    """The command ends before it sends anything, and names the file."""
    with RawServer(answer_all) as server:
        save = path if flag == "--save_filepath" else source.with_name("out.jsonl")
        flags = () if flag == "--save_filepath" else (flag, path)
        done = ended([*start, *words_for(server.url, source, save, *flags)])
        assert server.visits == 0
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert str(path) in last and reason in last
    assert "Traceback" not in done.stderr


FLAGS = pytest.mark.parametrize("flag", ["--save_filepath", "--errors_filepath"])


@FLAGS
def test_a_place_that_takes_no_file_is_found_first(
    flag: str, disk: Disk, source: Path, tmp_path: Path
) -> None:
    """A missing directory, one that is closed, and a read-only disk are found before the first request."""
    assert_refused_at_once(
        source, tmp_path / "no" / "out.jsonl", "create it, or name another", flag
    )
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    start = without_privileges()
    assert_refused_at_once(source, folder / "out.jsonl", "Permission denied", flag, *start)
    assert list(folder.iterdir()) == []
    path = disk("size=1m,ro") / "out.jsonl"
    assert_refused_at_once(source, path, "Read-only file system", flag)


@FLAGS
def test_a_read_only_file_is_found_first(flag: str, source: Path, tmp_path: Path) -> None:
    """A file without permission to write is found before the first request, and stays as it is."""
    path = write_lines(tmp_path / "old.jsonl", [[ROWS[0], {"ok": True}]])
    before = path.read_bytes()
    path.chmod(0o444)
    assert_refused_at_once(source, path, "Permission denied", flag, *without_privileges())
    assert path.read_bytes() == before


def test_failures_that_cant_be_replaced_are_found_first(source: Path, tmp_path: Path) -> None:
    """A file that may be written, in a directory that may not, keeps its failed records, and all else."""
    folder = tmp_path / "closed"
    folder.mkdir()
    path = write_lines(folder / "out.jsonl", [[ROWS[0], {"ok": True}], [ROWS[1], ["failed"]]])
    before = path.read_bytes()
    folder.chmod(0o555)
    start = without_privileges()
    assert_refused_at_once(source, path, "Permission denied", "--save_filepath", *start)
    assert path.read_bytes() == before
    with RawServer(answer_all) as server:
        words = words_for(server.url, source, path, "--keep_failures")
        assert ended([*start, *words]).returncode == 1  # one has failed, and stays so
    assert verify_results(source, path).answered == COUNT - 1
