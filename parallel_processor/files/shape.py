"""Tells a requests file that is no JSONL at all, by its beginning, and says how to make it one.

One bad line is a failed record. A file of another format would make a failed record of every line, so it is
refused as a whole, before anything is sent.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from parallel_processor.providers.jsontext import parse

_BOM = b"\xef\xbb\xbf"
_TABLES = ("csv", "tsv")  # the other texts that are read, by their names' ends
_LEAST_LINES = 10  # that must all be bad before a file of no known format is refused
# How a file begins; what it is; the command that makes JSONL of it, for its name.
_COMPRESSED = (
    (b"\x1f\x8b", "gzip", "gunzip -c {}"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc {}"),
    (b"BZh", "bzip2", "bunzip2 -c {}"),
    (b"\xfd7zXZ\0", "xz", "xz -dc {}"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc {}"),
    (b"PK\x03\x04", "zip", "unzip -p {}"),
)


def why_not_jsonl(head: bytes, is_whole: bool, path: Path) -> str | None:
    """Why the file that begins with ``head`` can't be sent, with the remedy; ``None`` if it may be JSONL.

    ``is_whole`` says that ``head`` is the whole file.
    """
    return why_not_plain(head, path) or _why_no_lines(head.removeprefix(_BOM), is_whole, path)


def why_not_plain(head: bytes, path: Path) -> str | None:
    """Why a file that begins with ``head`` is no text in UTF-8, with the remedy; ``None`` if it may be."""
    for magic, name, command in _COMPRESSED:
        if head.startswith(magic):
            return f"{path} is compressed ({name}): unpack it first ({_shell(command, path)})"
    if head.startswith(b"PAR1"):
        return (
            f"{path} is a Parquet file: name it so that it ends with .parquet, and give a template"
        )
    encoding = _other_unicode(head)
    if encoding is not None:
        command = _shell(f"iconv -f {encoding} -t UTF-8 {{}}", path)
        return f"{path} is {encoding}, not UTF-8: convert it first ({command})"
    return None


def _shell(command: str, path: Path) -> str:
    """``command`` for the file at ``path``, whose output goes to another file."""
    stem, _, suffix = path.name.partition(".")
    ending = next((name for name in _TABLES if name in suffix.lower().split(".")), "jsonl")
    made = f"{stem}_lines.{ending}"
    return f"{command.format(shlex.quote(str(path)))} > {shlex.quote(made)}"


def _other_unicode(head: bytes) -> str | None:
    """The encoding of a text in UTF-16 or UTF-32."""
    encoding = json.detect_encoding(head)
    if encoding.startswith("utf-8"):
        return None
    has_mark = encoding in ("utf-16", "utf-32")
    start = head[:64].decode(encoding, "ignore").lstrip()
    if not has_mark and start[:1] not in ("{", "["):
        return None
    return encoding[:6].upper() + encoding[7:].upper()  # as iconv spells it: UTF-16LE


def _why_no_lines(head: bytes, is_whole: bool, path: Path) -> str | None:
    """Why a text in UTF-8 is no JSONL."""
    lines = [line for line in head.split(b"\n") if line.strip()]
    if head and not is_whole and len(lines) > 1 and not head.endswith(b"\n"):
        lines.pop()  # its end is not there
    if not lines or isinstance(value := _value(lines[0]), dict):
        return None
    first = lines[0].lstrip()[:1]
    if first == b"[" and isinstance(value, list) and len(lines) > 1:
        if all(line.lstrip()[:1] == b"[" for line in lines):
            what = "a JSON array in each line, as a results file does"
            return f"{path} holds {what}: name the file of the requests, one JSON object a line"
    elif first == b"[":
        command = _shell("jq -c '.[]' {}", path)
        return f"{path} holds a JSON array, not one JSON object a line: take it apart first ({command})"
    if first == b"{" and _goes_on(head, lines):
        command = _shell("jq -c . {}", path)
        return f"{path} holds JSON over several lines, not one object a line: join them first ({command})"
    if len(lines) < _LEAST_LINES or any(isinstance(_value(line), dict) for line in lines):
        return None
    return (
        f"{path} is no JSONL file: none of its first {len(lines):,} lines is a JSON object. "
        "Write one object a line"
    )


def _goes_on(head: bytes, lines: list[bytes]) -> bool:
    """True if the object that begins in the first line ends in a later one."""
    if len(lines) > 1 and lines[0].strip() == b"{" and not isinstance(_value(lines[1]), dict):
        return True
    text = head.decode("utf-8", "replace").lstrip()
    try:
        _, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return False
    return "\n" in text[:end]


def _value(line: bytes) -> Any:
    """The JSON value of ``line``; ``None`` if there is none."""
    try:
        return parse(line.decode("utf-8").strip(), strict=False)
    except ValueError:
        return None
