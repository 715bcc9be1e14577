"""Files of another format are refused as a whole, with the remedy; one bad line is none of them."""

from __future__ import annotations

import io
import json
import os
import re
import threading
import tracemalloc
from pathlib import Path

import pytest
from services import NO_LIMITS

from parallel_processor.api import process_file
from parallel_processor.exceptions import InputFileError
from parallel_processor.files.requests_file import RequestsFile
from parallel_processor.files.shape import why_not_jsonl
from parallel_processor.files.sources import find_sources, open_sources

ROWS = [{"model": "m", "input": f"text {number}"} for number in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
DATA = LINES.encode()
BROKEN = '{"model": "m", '
BATCH = '{"custom_id": 5, "body": {}}\n'


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x04\x22\x4d\x18", "compressed (lz4)"),
        (b"PK\x03\x04", "compressed (zip)"),
        (b"PAR1\x15", "Parquet"),
        (
            LINES.encode("utf-16"),
            "is UTF-16, not UTF-8: convert it first (iconv -f UTF-16 -t UTF-8 ",
        ),
        (LINES.encode("utf-16-le"), "iconv -f UTF-16LE "),
        (LINES.encode("utf-16-be"), "iconv -f UTF-16BE "),
        (LINES.encode("utf-32"), "iconv -f UTF-32 "),
        ("prompt,model\n".encode("utf-16"), "iconv -f UTF-16 "),
        (b"\x28\xb5\x2f\xfd\x04\x58", "the end of its zstd data is missing"),
        (b"\x1f\x8b nonsense", "its gzip data is damaged"),
        ('[{"model": "m"}, {"object": "list"}]\n', "a record of a results file"),
        ("[1, 2]", "an array without objects"),
        ("[]", "an array without objects"),
        ("\n".join(json.dumps(row, indent=2) for row in ROWS), "join them first (jq -c . "),
        ('{"model": "m",\n "input": "text"}\n', "jq -c . "),
        ('{"a":\n {"b": 1}\n}', "jq -c . "),
        (json.dumps({"n": ["x" * 99] * 9999}, indent=1), "jq -c . "),
        ('[{"model": "m"}, {"object": "list"}]\n' * 3, "as a results file does"),
        ("prompt,model\n" + "a,m\n" * 9, "none of its first 10 lines is a JSON object"),
        ("{'model': 'm'}\n" * 30, "none of its first 30 lines"),
    ],
)
def test_another_format_is_named_with_its_remedy(
    data: bytes | str, words: str, tmp_path: Path
) -> None:
    """One sentence says what the file is; no results file is made, and nothing is sent."""
    path = tmp_path / "in.data"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(InputFileError) as raised:
        process_file(path, tmp_path / "out.jsonl", request_url="http://127.0.0.1:9/v1/embeddings")
    text = str(raised.value)
    assert words in text
    assert "\n" not in text
    assert "in.data" in text
    assert f"> {path.name}" not in text
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        LINES,
        "\ufeff" + LINES,
        BROKEN + "\n" + LINES,
        "[]\n" + LINES,
        "[" + json.dumps(ROWS[0]) + "]\n" + LINES,
        "nonsense\n" * 9,
        "nonsense\n" * 30 + LINES,
        BATCH * 30,
        '{"a": 1}{"b": 2}\n' * 3,
        "\0" * 64 + "\n" + LINES,
        LINES + "[\n",
        "{",
        "{\n" + LINES,
    ],
)
def test_bad_lines_are_not_another_format(text: str, tmp_path: Path) -> None:
    """What has objects, or too few lines to tell, is read line by line."""
    path = tmp_path / "in.jsonl"
    path.write_bytes(text.encode())
    with RequestsFile(path) as lines:
        assert b"".join(lines).lstrip() == text.encode().lstrip()


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps(ROWS, indent=2),
        "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
        "\n [\n" + json.dumps(ROWS[0]) + "\n]",
        "\ufeff" + json.dumps(ROWS),
        json.dumps(ROWS * 9000),  # more than is looked at
        json.dumps(
            [{"n": [']}"\\,[' * 99_999], "m": "\\"}, {"": "ü\n\\u00fc"}], ensure_ascii=False
        ),
        json.dumps([{"a": [{"b": [[]]}, {}]}, 5, "x", [], None]),
    ],
)
def test_the_elements_of_an_array_are_lines(text: str, tmp_path: Path) -> None:
    """However they are laid out, and however long they are."""
    path = tmp_path / "in.json"
    path.write_text(text, "utf-8")
    with RequestsFile(path) as lines:
        found = [json.loads(line) for line in lines]
        assert lines.place(2) == "element 2"
    assert found == json.loads(text.removeprefix("\ufeff"))


class Pieces(io.BytesIO):
    """An open file that gives what it has piece by piece, as a pipe may."""

    def __init__(self, *pieces: bytes) -> None:
        super().__init__()
        self._pieces = list(pieces)

    def read1(self, size: int | None = -1, /) -> bytes:
        """The next piece."""
        return self._pieces.pop(0) if self._pieces else b""


@pytest.mark.parametrize("blank", [(b"\n",), (b"\xef\xbb\xbf\r\n  ", b"\n"), (b" ", b" \n", b"\n")])
def test_blank_lines_in_front_hide_nothing(blank: tuple[bytes, ...]) -> None:
    """Although a pipe's first pieces hold nothing else. Lines behind them keep their numbers."""
    array = json.dumps(ROWS, indent=1).encode()
    with open_sources(find_sources(Pieces(*blank, array))) as source:
        assert [(n, json.loads(line)) for n, line in source.numbered()] == list(enumerate(ROWS, 1))
        assert source.place(1) == "element 1"
    with open_sources(find_sources(Pieces(*blank, DATA))) as source:
        numbers = [n for n, line in source.numbered() if line.strip()]
    first = b"".join(blank).count(b"\n") + 1
    assert numbers == [first, first + 1, first + 2]
    with (
        open_sources(find_sources(Pieces(*blank, b"PK\x03\x04"))) as source,
        pytest.raises(InputFileError, match="unzip"),
    ):
        list(source.numbered())


def test_a_text_of_escapes_takes_no_more_memory_than_another(tmp_path: Path) -> None:
    """It was 50 bytes for each."""
    path = tmp_path / "in.json"
    path.write_text(json.dumps(['\n"\\' * 500_000]), "utf-8")
    with RequestsFile(path) as lines:
        tracemalloc.start()
        try:
            assert len(json.loads(next(iter(lines)))) == 1_500_000
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 8 * path.stat().st_size


@pytest.mark.parametrize(
    ("text", "count", "words"),
    [
        ('[{"a": 1}, {"b": ', 1, "has no end"),
        ('[{"a": 1}, {"b": "x', 1, "has no end"),
        ('[{"a": 1}, ', 1, "has no end"),
        ('[\n{"a": 1}]\n{"b": 2}', 1, "something follows"),
    ],
)
def test_an_array_that_is_torn_ends_in_an_error(
    text: str, count: int, words: str, tmp_path: Path
) -> None:
    """What is missing is never taken for the end; what is there is sent."""
    path = tmp_path / "in.json"
    path.write_text(text, "utf-8")
    with RequestsFile(path) as lines:
        reading = iter(lines)
        assert len([next(reading) for _ in range(count)]) == count
        with pytest.raises(InputFileError, match=rf"^{re.escape(str(path))}: .*{words}"):
            next(reading)


def test_what_is_no_json_in_an_array_is_a_bad_element(tmp_path: Path) -> None:
    """The elements around it are sent."""
    path = tmp_path / "in.json"
    path.write_text('[\n{"a": 1}, nonsense,, {"b": 2},\n]', "utf-8")
    with RequestsFile(path) as lines:
        assert list(lines) == [b'{"a": 1}', b"nonsense", b"nothing", b'{"b": 2}']


@pytest.mark.parametrize("head", [b"", b"{", b'{"model": ', b'{"model"\n', b"\xef\xbb\xbf{"])
def test_the_beginning_of_a_line_tells_nothing(head: bytes) -> None:
    """A pipe may bring less than a line at first."""
    assert why_not_jsonl(head, False, Path("/dev/stdin")) is None


def test_a_pipe_is_looked_at_before_its_first_line(tmp_path: Path) -> None:
    """Opening it waits for nothing; its format is refused when the first line is asked for."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(b"PK\x03\x04" * 99,))
    writer.start()
    with pytest.raises(InputFileError, match="unzip"):
        process_file(
            *(path, tmp_path / "out.jsonl"),
            request_url="http://127.0.0.1:9/v1/embeddings",
            limits=NO_LIMITS,
        )
    writer.join(10)
