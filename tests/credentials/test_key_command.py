"""A command that prints a key, and what is said of one that doesn't."""

from __future__ import annotations

import os
import pickle
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from parallel_processor.credentials.key_command import KeyCommand
from parallel_processor.exceptions import ConfigurationError

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJleHAiOjE3fQ.c2ln"


def printing(text: str) -> str:
    """A command that prints ``text``."""
    return shlex.join(["printf", "%s", text])


@pytest.mark.parametrize(
    "output",
    [
        *(TOKEN, f"{TOKEN}\n", f'"{TOKEN}"\n', f"Bearer {TOKEN}", f"\n  {TOKEN}  \n"),
        f'{{"accessToken": "{TOKEN}", "expiresOn": "2026-11-30 16:00:00.000000"}}',  # az
        f'{{"access_token": "{TOKEN}", "expires_in": 3599}}',  # OAuth
        f'{{\n  "token": "{TOKEN}"\n}}\n',
    ],
)
def test_the_key_of_its_output_is_taken(output: str) -> None:
    """One key, or JSON in which its member has one of the usual names."""
    assert KeyCommand(printing(output))() == TOKEN


def test_its_words_are_split_as_by_a_shell_and_nothing_else_is_done() -> None:
    """Quotes count; a variable, a pattern or a pipe is a text."""
    assert KeyCommand("printf '%s-' 'a;b' \"$HOME\" * '|'")() == "a;b-$HOME-*-|-"
    assert KeyCommand("sh -c 'printf %s a | tr a b'")() == "b"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("true", "(true) printed no key"),
        ("printf '\"\"'", "(printf) printed no key"),
        ("false", "(false) ended with exit code 1"),
        ("/no/such/tool x", "(tool) can't be run: No such file or directory"),
        (
            "sh -c 'echo first >&2; echo Please run az login >&2; exit 3'",
            "(sh) ended with exit code 3: Please run az login",
        ),
        ("sh -c 'echo no sk-proj-0123456789abcdef >&2; exit 1'", "code 1: no [redacted]"),
        ("sh -c 'kill -9 $$'", "(sh) was killed by signal 9"),
        ("printf 'a\\nb'", "the output of --api_key_command (printf) must hold one key"),
        ("printf '{\"key\": 1}'", "is JSON without a text accessToken, access_token, token"),
        ("printf '{\"token\": 1}'", "is JSON without a text accessToken, access_token, token"),
        ("printf '{oops'", "is neither one key nor JSON"),
        ("printf '\\377'", "is no text"),
        ("yes", "(yes) printed more than 65,536 bytes"),
        ("sh -c 'yes no | head -c 999999 >&2; exit 4'", "exit code 4: no"),
    ],
)
def test_a_command_that_gives_no_key_is_explained(command: str, words: str) -> None:
    """The message names the command's program, and what it said last."""
    with pytest.raises(ConfigurationError) as caught:
        KeyCommand(command)()
    assert words in str(caught.value)


def test_a_command_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    """With what it has started: nothing holds its pipe open."""
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], stdin=0)"
    command = shlex.join(
        [sys.executable, "-c", f"import os; r, w = os.pipe(); os.dup2(r, 0); {code}"]
    )
    with pytest.raises(ConfigurationError, match="printed no key within 0.2 s"):
        KeyCommand(command, timeout_s=0.2)()


_LEAVER = """
import sys, threading
from parallel_processor.credentials.key_command import KeyCommand
threading.Thread(target=KeyCommand(sys.argv[1]), daemon=True).start()
sys.stdin.read()
"""


def test_a_command_does_not_outlive_the_program(tmp_path: Path) -> None:
    """Nor does what it has started: a program may end while its key is fetched."""
    os.mkfifo(pipe := tmp_path / "alive")
    hangs = shlex.join(["sh", "-c", f"exec 3>{shlex.quote(str(pipe))}; sleep 1000"])
    program = subprocess.Popen([sys.executable, "-c", _LEAVER, hangs], stdin=subprocess.PIPE)
    with program, pipe.open("rb") as alive:  # opened once the command has
        program.communicate(timeout=30)
        assert alive.read() == b""  # the last one that held it has ended


@pytest.mark.parametrize("command", ["", "  ", "az 'account"])
def test_what_is_no_command_is_refused(command: str) -> None:
    """Before anything is run."""
    with pytest.raises(ConfigurationError, match="api_key_command"):
        KeyCommand(command)


def test_it_can_be_sent_to_another_process() -> None:
    """Which shows nothing of it."""
    command = pickle.loads(pickle.dumps(KeyCommand(printing(TOKEN))))
    assert command() == TOKEN
    assert repr(command) == "KeyCommand(…)"
