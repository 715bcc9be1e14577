"""Whole jobs without what only Unix has: as on Windows, as far as that can be played on Linux."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from commands import command, environment, read_lines, simulator, write_lines

from parallel_processor import verify_results

pytestmark = pytest.mark.acceptance

# A sitecustomize: every Python of the job begins with it, worker processes too.
_ELSEWHERE = '''
import errno, functools, os, select, signal, socket, sys

for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty", "tty", "syslog"):
    sys.modules[name] = None
missing = {
    os: "fork forkpty register_at_fork set_blocking get_blocking fchown fchmod chown O_NONBLOCK O_NOFOLLOW"
        " O_CLOEXEC O_DIRECTORY O_SYNC geteuid getuid getgid getegid sync pread pwrite fdatasync mkfifo"
        " sched_getaffinity setsid killpg",
    select: "poll epoll kqueue",
    signal: "SIGKILL SIGHUP SIGQUIT SIGUSR1 SIGUSR2 SIGPIPE SIGALRM SIGCHLD pthread_kill pthread_sigmask"
            " setitimer getitimer sigwait alarm pause siginterrupt",
    socket: "SO_REUSEPORT MSG_DONTWAIT sendmsg recvmsg",
}
for module, names in missing.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

# Without this flag, Windows writes CRLF.
os.O_BINARY = 1 << 30
real_open = os.open

def opened(path, flags, *args, **kwargs):
    writes = flags & (os.O_WRONLY | os.O_RDWR)
    if os.path.isdir(path):
        raise PermissionError(errno.EACCES, "directories can't be opened", path)
    if writes and str(path).endswith((".jsonl", "~")) and not flags & os.O_BINARY:
        raise AssertionError(f"{path} is opened as text")
    return real_open(path, flags & ~os.O_BINARY, *args, **kwargs)

def guarded(real):
    """Nothing may be done to the name of an open file."""
    def call(*paths, **kwargs):
        found = set()
        for name in os.listdir("/proc/self/fd"):
            try:
                found.add(os.readlink(f"/proc/self/fd/{name}"))
            except OSError:
                pass
        for path in paths:
            if os.path.realpath(path) in found:
                raise PermissionError(errno.EACCES, "it is used by another process", str(path))
        return real(*paths, **kwargs)
    return functools.partial(call)  # which never becomes a method

os.open = opened
for name in ("replace", "rename", "unlink", "remove"):
    setattr(os, name, guarded(getattr(os, name)))
'''

_JOB = """
import math, sys
from parallel_processor import Limits, RetryPolicy, process_file
url, source, save, report, processes = sys.argv[1:]
import os
assert not hasattr(os, "fork") and sys.modules["fcntl"] is None, "this is not elsewhere"
summary = process_file(
    source, save, request_url=url + "/v1/embeddings", processes=int(processes), report_path=report,
    retry=RetryPolicy(max_attempts=1), limits=Limits(requests_per_minute=math.inf),
)
print(summary.answered, summary.failed, summary.already_answered)
"""


def elsewhere(directory: Path) -> dict[str, str]:
    """The environment of a Python that lacks all this."""
    place = directory / "elsewhere"
    place.mkdir()
    (place / "sitecustomize.py").write_text(_ELSEWHERE, "utf-8")
    path = environment().get("PYTHONPATH", "")
    return environment(PYTHONPATH=f"{place}:{path}" if path else str(place))


def ended(words: list[str], environ: dict[str, str], code: int = 0) -> str:
    """What a program prints, which has to end with ``code``."""
    ran = subprocess.run(words, capture_output=True, text=True, env=environ, timeout=60)
    assert ran.returncode == code, ran.stderr
    return ran.stdout


@pytest.mark.parametrize("processes", [1, 2])
def test_a_job_is_done_and_resumed(processes: int, tmp_path: Path) -> None:
    """Failed and torn records are replaced by the next run, and every line has its answer."""
    source = write_lines(tmp_path / "in.jsonl", [{"input": f"{n}"} for n in range(60)])
    save, report = tmp_path / "out.jsonl", tmp_path / "report.json"
    environ = elsewhere(tmp_path)
    words = [sys.executable, "-W", "error", "-c", _JOB]
    with simulator("--error_rate", "0.5", "--errors", "500", "--seed", "3") as server:
        rest = [server.url, str(source), str(save), str(report), str(processes)]
        answered, failed, _ = map(int, ended(words + rest, environ).split())
    assert answered + failed == 60 and answered > 5 and failed > 5
    records = read_lines(save)
    assert b"\r" not in save.read_bytes()
    save.write_bytes(save.read_bytes() + b'[{"input": "torn')
    with simulator() as server:
        rest[0] = server.url
        assert ended(words + rest, environ) == f"{failed} 0 {answered}\n"
    assert verify_results(source, save).ok
    assert len(records) == len(read_lines(save)) == 60
    assert json.loads(report.read_text("utf-8"))["answered"] == failed
    assert [path.name for path in tmp_path.glob("*~")] == []


def test_the_command_works(tmp_path: Path) -> None:
    """The command line does its job, refuses what is wrong, and verifies, with no fork and no lock."""
    source = write_lines(tmp_path / "in.jsonl", [{"input": f"{n}"} for n in range(20)])
    environ = elsewhere(tmp_path)
    with simulator() as server:
        flags = ["--requests_filepath", source, "--request_url", f"{server.url}/v1/embeddings"]
        ended(command(*flags, "--no_progress"), environ)
        ended(command(*flags, "--max_workers", 0), environ, code=2)
    assert "answered 20" in ended(command("verify", "--requests_filepath", source), environ)
