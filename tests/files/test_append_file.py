"""The results file: whole lines, and only one process that writes it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from parallel_processor.exceptions import ResultsFileError
from parallel_processor.files.append_file import AppendFile

HOLD = """
import sys
from pathlib import Path
from parallel_processor.files.append_file import AppendFile
file = AppendFile(Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the file is."""
    return tmp_path / "out.jsonl"


def descriptors() -> set[str]:
    """What this process has open."""
    return set(os.listdir("/proc/self/fd"))


def holder(path: Path) -> subprocess.Popen[str]:
    """Another process that has the file."""
    words = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "locked\n"
    return process


def test_a_second_opening_is_refused(path: Path) -> None:
    """Two processors of one process can't share a results file either."""
    first = AppendFile(path)
    before = descriptors()
    with pytest.raises(ResultsFileError, match=r"another process is writing .*out\.jsonl"):
        AppendFile(path)
    assert descriptors() == before
    first.close()
    AppendFile(path).close()


def test_a_killed_process_lets_go(path: Path) -> None:
    """The lock of another process refuses at once, and ends with SIGKILL."""
    with holder(path) as other:
        with pytest.raises(ResultsFileError, match="another process"):
            AppendFile(path)
        other.kill()
    AppendFile(path).close()


def test_the_lock_goes_with_the_replacement(path: Path) -> None:
    """After a replacement the new file is locked, and appended to."""
    path.write_bytes(b"old\n")
    path.chmod(0o640)
    file = AppendFile(path)
    other = AppendFile(path.with_name("beside"), mode=0o600)
    other.append(b"new\n")
    other.sync()
    file.replace_by(other)
    with pytest.raises(ResultsFileError, match="another process"):
        AppendFile(path)
    file.append(b"newer\n")
    file.close()
    assert path.read_bytes() == b"new\nnewer\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(path.parent) == [path.name]
    AppendFile(path).close()


def test_a_file_that_was_replaced_meanwhile_is_opened_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the file is replaced just after it was opened, the new one is opened."""
    path.write_bytes(b"old\n")
    really, replaced = os.open, []

    def open_and_lose(name: object, *args: int) -> int:
        descriptor = really(name, *args)  # type: ignore[call-overload]
        if name == path and not replaced:
            replaced.append(path.rename(path.with_name("gone")))
            path.write_bytes(b"new\n")
        return int(descriptor)

    monkeypatch.setattr(os, "open", open_and_lose)
    file = AppendFile(path)
    file.append(b"more\n")
    file.close()
    assert path.read_bytes() == b"new\nmore\n"


def test_a_file_that_cant_be_opened_is_named(path: Path) -> None:
    """The message has the path and the reason, and nothing stays open."""
    before = descriptors()
    with pytest.raises(ResultsFileError, match=r"missing/file\.jsonl: No such file"):
        AppendFile(path.with_name("missing") / "file.jsonl")
    with pytest.raises(ResultsFileError, match="Is a directory"):
        AppendFile(path.parent)
    assert descriptors() == before


def test_devices_have_no_lock() -> None:
    """Two runs may write to /dev/null."""
    files = [AppendFile(Path(os.devnull)) for _ in range(2)]
    for file in files:
        assert not file.is_regular
        file.append(b"line\n")
        file.sync()
        file.close()


def test_what_is_truncated_is_forgotten(path: Path) -> None:
    """The first bytes stay, and appending goes on behind them; closing twice does no harm."""
    file = AppendFile(path)
    file.append(b"one\ntwo\n")
    file.truncate(4)
    file.append(b"three\n")
    assert file.size == 10
    file.close()
    file.close()
    assert path.read_bytes() == b"one\nthree\n"


@pytest.mark.parametrize("how", ["removed", "replaced", "shortened"])
def test_a_file_that_is_lost_meanwhile_is_an_error(path: Path, how: str) -> None:
    """What another program does to the file is found at the next sync, not at the end of the job."""
    file = AppendFile(path)
    file.append(b"line\n")
    file.sync()
    if how == "shortened":
        path.write_bytes(b"")
    else:
        path.unlink()
        if how == "replaced":
            path.write_bytes(b"line\n")
    if how != "shortened":
        file.append(b"another\n")
    file.dirty = True
    with pytest.raises(OSError, match="another program has"):
        file.sync()
    file.close()


def test_a_pipe_that_nobody_reads_is_an_error(tmp_path: Path) -> None:
    """Opening it fails at once, instead of waiting forever."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(ResultsFileError, match="fifo: No such device"):
        AppendFile(fifo)
