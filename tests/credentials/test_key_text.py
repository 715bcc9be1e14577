"""Keys as people keep them."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from parallel_processor.credentials.key_text import read_key, read_key_file
from parallel_processor.exceptions import ConfigurationError

KEY = "sk-proj-0123_4567=="


@pytest.mark.parametrize(
    "text",
    [
        *(KEY, f"  {KEY}\r\n", f'"{KEY}"', f"'{KEY}'\n", f"Bearer {KEY}", f"bearer  {KEY}"),
        *(
            f"Authorization: Bearer {KEY}",
            f'"Bearer {KEY}"',
            f'Bearer "{KEY}"',
            f"OPENAI_API_KEY={KEY}",
        ),
        *(f'export OPENAI_API_KEY="{KEY}"\n', f"api_key: {KEY}", f"\ufeff{KEY}"),
    ],
)
def test_what_stands_around_a_key_is_left_out(text: str) -> None:
    """Quotes, a header's words and a shell's are no part of it."""
    assert read_key(text, "--api_key") == KEY


@pytest.mark.parametrize(
    "data",
    [
        *(KEY.encode(), codecs.BOM_UTF8 + KEY.encode(), f"Bearer {KEY}\n".encode()),
        *(codecs.BOM_UTF16_LE + f"{KEY}\r\n".encode("utf-16-le"), KEY.encode("utf-16")),
    ],
)
def test_a_key_file_of_any_editor_is_read(data: bytes, tmp_path: Path) -> None:
    """A byte-order mark is no part of the key, nor is UTF-16 a fault."""
    path = tmp_path / "key"
    path.write_bytes(data)
    assert read_key_file(str(path), "FILE") == (KEY,)


def test_a_key_file_may_have_several_keys(tmp_path: Path) -> None:
    """Each is on a line of its own; blank lines, remarks and repetitions are left out."""
    path = tmp_path / "keys"
    path.write_text(f"# the team's\n{KEY}\n\n  Bearer sk-2\nOPENAI_API_KEY='sk-3'\n{KEY}\n")
    assert read_key_file(str(path), "FILE") == (KEY, "sk-2", "sk-3")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "there is no key in --api_key_file"),
        (b'""', "there is no key in --api_key_file"),
        (b"# none\n\n", "there is no key in --api_key_file"),
        (f"{KEY}\nsk-\u00e9".encode(), r"line 2 of --api_key_file {path} has a character that no"),
        ("sk-123\u200b".encode(), r"at position 7: '\u200b'"),
        ("sk-\u00e9".encode(), r"at position 4: '\xe9'"),
        (b"$KEY | cat", "at position 5: ' '"),
        (b"sk\x00", r"at position 3: '\x00'"),
        (b"\xff\xfe\x00", "is no text"),
        (b"sk-\xe9", "is no text"),
    ],
)
def test_what_is_no_key_is_explained(data: bytes, words: str, tmp_path: Path) -> None:
    """The message names the flag and the file, and never the key."""
    path = tmp_path / "key"
    path.write_bytes(data)
    with pytest.raises(ConfigurationError) as caught:
        read_key_file(str(path), f"--api_key_file {path}")
    assert words.replace("{path}", str(path)) in str(caught.value)
    assert f"--api_key_file {path}" in str(caught.value)
    assert "sk-" not in str(caught.value).replace(str(path), "")
