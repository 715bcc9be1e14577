"""A command that prints a key, such as ``az account get-access-token``.

It is run without a shell: its words are split as a shell would, and nothing else is done with them. For
pipes and variables, make it ``sh -c '…'``.
"""

from __future__ import annotations

import json
import os
import selectors
import shlex
import signal
import subprocess
import time
from typing import Any

from parallel_processor.credentials.key_text import read_key
from parallel_processor.credentials.redact import Redactor
from parallel_processor.exceptions import ConfigurationError
from parallel_processor.runtime.exits import at_exit
from parallel_processor.runtime.stop import WakeEvent

_TIMEOUT_S = 60.0
_START_S = 10.0  # for its start, while the program ends
_MEMBERS = ("accessToken", "access_token", "token")  # of JSON: Azure, OAuth, others
_MOST_CHARS = 300  # of its last words
_MOST_BYTES = 65_536  # of its output: no key is so long


class KeyCommand:
    """Runs ``command`` and returns the key that it prints. It can be pickled; its ``repr`` says nothing.

    The output is one key, or JSON with ``accessToken``, ``access_token`` or ``token``. Raises
    :class:`ConfigurationError` if the command can't be run, fails, takes longer than ``timeout_s``, or
    prints no key. The message has the end of what it wrote to its standard error, without keys.
    """

    def __init__(self, command: str, timeout_s: float = _TIMEOUT_S) -> None:
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise ConfigurationError(
                f"--api_key_command can't be split into words: {error}"
            ) from None
        if not self._words:
            raise ConfigurationError("--api_key_command is empty")
        self.command, self._timeout_s = command, timeout_s

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"

    def __call__(self) -> str:
        """The key."""
        what = f"--api_key_command ({os.path.basename(self._words[0])})"
        running = _Running()
        at_exit(running.kill)  # before it is started: the program may end at any moment
        try:
            process = running.start(self._words)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigurationError(f"{what} can't be run: {reason}") from None
        with process:
            try:
                output, errors = _read(process, self._timeout_s)
                if len(output) > _MOST_BYTES:
                    running.kill()
            except subprocess.TimeoutExpired:
                running.kill()
                raise ConfigurationError(
                    f"{what} printed no key within {self._timeout_s:g} s"
                ) from None
            except BaseException:
                running.kill()
                raise
        if len(output) > _MOST_BYTES:
            raise ConfigurationError(f"{what} printed more than {_MOST_BYTES:,} bytes")
        if process.returncode:
            code = process.returncode
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise ConfigurationError(f"{what} {how}{_last_words(errors)}")
        return _key_in(output, what, errors)


def _read(process: subprocess.Popen[bytes], timeout_s: float) -> tuple[bytes, bytes]:
    """What ``process`` prints, and the end of its errors, when it has ended or printed too much.

    Raises :class:`subprocess.TimeoutExpired`.
    """
    assert process.stdout is not None and process.stderr is not None
    end_s, output, errors = time.monotonic() + timeout_s, b"", b""
    with selectors.DefaultSelector() as waiting:
        waiting.register(process.stdout, selectors.EVENT_READ)
        waiting.register(process.stderr, selectors.EVENT_READ)
        while waiting.get_map():
            ready = waiting.select(max(0.0, end_s - time.monotonic()))
            if not ready:
                raise subprocess.TimeoutExpired(process.args, timeout_s)
            for key, _ in ready:
                data = os.read(key.fd, _MOST_BYTES)
                if not data:
                    waiting.unregister(key.fileobj)
                elif key.fileobj is process.stderr:
                    errors = (errors + data)[-_MOST_BYTES:]
                else:
                    output += data
            if len(output) > _MOST_BYTES:
                return output, errors
    process.wait(max(0.0, end_s - time.monotonic()))
    return output, errors


class _Running:
    """A command that is started, and runs. It ends with the interpreter."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._is_started = WakeEvent(max_waiters=2)  # or will never be

    def start(self, words: list[str]) -> subprocess.Popen[bytes]:
        """Start the command. ``OSError`` or ``ValueError`` if that can't be done."""
        try:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a terminal's Ctrl-C is for the run alone
            )
            return self._process
        finally:
            self._is_started.set()

    def kill(self) -> None:
        """Kill the command, and what it has started. One that another thread starts now is waited for."""
        self._is_started.wait(_START_S)
        process = self._process
        if process is None or process.returncode is not None:  # its number may be another's by now
            return
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except OSError:
            process.kill()


def _key_in(output: bytes, what: str, errors: bytes) -> str:
    """The key that ``output`` holds."""
    place = f"the output of {what}"
    try:
        text = output.decode("utf-8-sig").strip()
    except ValueError:
        raise ConfigurationError(f"{place} is no text") from None
    if text.startswith(("{", "[")):
        text = _member(text, place)
    key = read_key(text, place)
    if not key:
        raise ConfigurationError(f"{what} printed no key{_last_words(errors)}")
    return key


def _member(text: str, place: str) -> str:
    try:
        value: Any = json.loads(text)
    except ValueError:
        raise ConfigurationError(f"{place} is neither one key nor JSON") from None
    found = [value[name] for name in _MEMBERS if isinstance(value, dict) and name in value]
    if not found or not isinstance(found[0], str):
        raise ConfigurationError(f"{place} is JSON without a text {', '.join(_MEMBERS)}")
    return found[0]


def _last_words(errors: bytes) -> str:
    """The last line of what a command wrote to its standard error, without what looks like a key."""
    lines = errors.decode("utf-8", "replace").split("\n")
    words = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f": {Redactor()(words)[:_MOST_CHARS]}" if words else ""
