"""What a results file answers, and how it is repaired."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import random
import stat
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel_processor.exceptions import ResultsFileError, StopRequested
from parallel_processor.files import resume
from parallel_processor.files.append_file import AppendFile
from parallel_processor.files.formats import parse_line
from parallel_processor.files.identity import identity
from parallel_processor.files.resume import AnsweredRequests, open_files, prepare
from parallel_processor.models import Request

URL = "https://api.openai.com/v1/chat/completions"


def request(number: int) -> Request:
    """The request of a line that differs from those with other numbers."""
    return parse_line(b'{"model": "m", "input": "%d"}' % number, number + 1, URL)


def good(number: int) -> bytes:
    """The record of its answer."""
    return b'[{"model": "m", "input": "%d"}, {"id": "a]\\n", "n": [{"x": 1.5}]}]\n' % number


def bad(number: int) -> bytes:
    """The record of its failure."""
    return b'[{"model": "m", "input": "%d"}, ["HTTP 500", "timeout: e"]]\n' % number


def batch(name: str, status: int = 200) -> bytes:
    """A record in the Batch format."""
    error = "null" if status == 200 else '{"code": "c", "message": "m"}'
    response = f'{{"status_code": {status}, "request_id": null, "body": {{"b": [1]}}}}'
    line = f'{{"id": "x", "custom_id": "{name}", "response": {response}, "error": {error}}}\n'
    return line.encode()


def batch_request(name: str) -> Request:
    """The request of a Batch line."""
    return parse_line(b'{"custom_id": "%s", "body": {}}' % name.encode(), 1, URL)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the results are."""
    return tmp_path / "results.jsonl"


@pytest.fixture
def errors(tmp_path: Path) -> Path:
    """Where the failures are, if not among the results."""
    return tmp_path / "errors.jsonl"


def mended(path: Path, errors: Path | None = None, **options: Any) -> AnsweredRequests:
    """What the files answer; they are mended."""
    with open_files(path, errors) as files:
        return prepare(files, **options)


def prepared(path: Path, content: bytes) -> AnsweredRequests:
    """What a results file with that content says."""
    path.write_bytes(content)
    return mended(path)


def is_free(path: Path) -> bool:
    """True if no process has the file."""
    try:
        AppendFile(path).close()
    except ResultsFileError:
        return False
    return True


def descriptors() -> int:
    """How many files this process has open."""
    return len(os.listdir("/dev/fd"))


def test_no_file_and_an_empty_file_answer_nothing(path: Path) -> None:
    """The first run starts with nothing, in a file that is made at once."""
    assert not mended(path).take(request(1))
    assert path.read_bytes() == b""
    assert not prepared(path, b"").take(request(1))
    assert path.read_bytes() == b""


def test_what_has_a_good_record_is_answered(path: Path) -> None:
    """In both formats; failures and requests that aren't there are not."""
    content = good(1) + bad(2) + batch("i") + batch("j", 500) + good(3)
    answered = prepared(path, content)
    assert (answered.answered, answered.failed, answered.foreign) == (3, 2, 0)
    requests = [request(1), request(2), request(3), request(4)]
    assert [answered.take(r) for r in requests] == [True, False, True, False]
    assert [answered.take(batch_request(i)) for i in "ijk"] == [True, False, False]
    assert path.read_bytes() == good(1) + batch("i") + good(3)


OVERLOADED = {"error": {"message": "overloaded", "type": "server_error", "code": None}}
CHAT = {"choices": [{"message": {"content": "Hi."}, "finish_reason": "stop"}]}
ANSWERS_OF_OTHERS: list[Any] = [
    *(CHAT, {"text": "Hi."}, {"answer": None}, {}, {"data": {"embedding": [0.1]}}),
    *([[0.1, 0.2]], [{"index": 0, "score": 0.5}], [{"text": "a"}, "b"]),
]
FAILURES_OF_OTHERS: list[Any] = [
    *([OVERLOADED] * 5, [OVERLOADED], [OVERLOADED, "timeout"], [None], [None, "a"], []),
    *(OVERLOADED, {"error": "Rate limit"}, {"choices": None}, {"detail": "Not Found"}, None),
    *({"choices": [{"message": {"content": "Half"}, "finish_reason": "error"}]}, "", "null"),
    *(
        "TimeoutError()",
        "openai.RateLimitError: Error code: 429",
        "Error: no",
        "Request timed out.",
    ),
    *("HTTP 500", "503 Service Unavailable", "Traceback (most recent call last): a", "Failed: no"),
]
UNCLEAR: list[Any] = ["Paris", "None of these", "Errors are human", 5, True, 0.5, "Failed states …"]


@pytest.mark.parametrize(
    ("response", "is_answer"),
    [*((r, True) for r in ANSWERS_OF_OTHERS), *((r, False) for r in FAILURES_OF_OTHERS)],
)
def test_records_of_other_programs_are_judged_as_responses_are(
    response: Any, is_answer: bool, path: Path
) -> None:
    """The cookbook's older script wrote lists of error objects, its forks nulls and exceptions as texts."""
    line = json.dumps([json.loads(good(2))[0], response]).encode() + b"\n"
    answered = prepared(path, good(1) + line)
    assert answered.take(request(2)) == is_answer
    assert path.read_bytes() == good(1) + line * is_answer


@pytest.mark.parametrize("response", UNCLEAR)
def test_what_may_be_an_answer_or_an_error_keeps_the_file_as_it_is(
    response: Any, path: Path, errors: Path
) -> None:
    """The error names the line and what to do, whichever file it is in, before any is mended."""
    rows = [good(1), bad(2), json.dumps([{"n": 1}, response]).encode() + b"\n", b"[torn"]
    path.write_bytes(bad(3))
    errors.write_bytes(b"".join(rows))
    with pytest.raises(ResultsFileError, match=r"errors.jsonl: line 3 .*Remove such lines"):
        mended(path, errors)
    assert (path.read_bytes(), errors.read_bytes()) == (bad(3), b"".join(rows))
    row = json.dumps({"custom_id": "a", "response": response, "error": None}).encode() + b"\n"
    with pytest.raises(ResultsFileError, match="line 1"):
        prepared(path, row)
    assert path.read_bytes() == row


def test_records_in_another_order_keep_the_file_as_it_is(path: Path) -> None:
    """A fork wrote the metadata before the request; the row of a request without them is fine."""
    row = json.dumps([{"row": 1}, {"model": "m", "messages": []}, CHAT]).encode() + b"\n"
    with pytest.raises(ResultsFileError, match="line 2"):
        prepared(path, good(1) + row)
    assert path.read_bytes() == good(1) + row


@pytest.mark.parametrize(
    ("response", "error", "is_answer"),
    [
        (CHAT, None, True),
        ({"status_code": 200, "body": CHAT}, None, True),
        ({"status_code": "200", "body": CHAT}, {"code": None, "message": ""}, True),
        ({"status_code": 200, "body": ["a", "b"]}, None, True),
        ({"body": CHAT}, None, True),
        ({"status_code": 200, "body": None}, None, False),
        ({"status_code": 200, "body": {"error": {"code": 429}}}, None, False),
        ({"status_code": 200, "body": {"choices": []}}, None, False),
        ({"status_code": 202, "body": {"id": "p"}}, None, False),
        ({"status_code": 200, "body": CHAT}, "failed", False),
        ({"status_code": 400, "body": None}, {"error": {"message": "no"}}, False),
        ({"object": "error", "message": "no", "code": 404}, None, False),
        (None, {"code": "batch_expired"}, False),
        (None, None, False),
    ],
)
def test_rows_of_other_batch_runners_are_judged_by_their_body(
    response: Any, error: Any, is_answer: bool, path: Path
) -> None:
    """An older vLLM wrote the bare body; a status of 200 alone is no answer."""
    row = {"id": "b", "custom_id": "i", "response": response, "error": error}
    answered = prepared(path, good(1) + json.dumps(row).encode() + b"\n")
    assert answered.take(batch_request("i")) == is_answer


def test_too_few_vectors_on_record_are_no_answer(path: Path) -> None:
    """The record has its request, which says how many there must be."""
    body = {"model": "m", "input": ["a", "b", "c"]}
    rows = [{"object": "embedding", "index": n, "embedding": [0.5]} for n in range(2)]
    answer = {"object": "list", "data": rows, "usage": {"prompt_tokens": 3}}
    line = json.dumps([body, answer]).encode() + b"\n"
    assert not prepared(path, line).take(parse_line(json.dumps(body).encode(), 1, URL))


def test_a_line_that_cannot_be_sent_is_never_answered(path: Path) -> None:
    """Its record is a failure, which is dropped and made again."""
    answered = prepared(path, good(1) + b'["x", ["line 2: not JSON"]]\n')
    assert not answered.take(parse_line(b"x", 2, URL))
    assert path.read_bytes() == good(1)


@given(st.lists(st.integers(0, 4)), st.lists(st.integers(0, 4)))
def test_equal_lines_need_as_many_answers(records: list[int], lines: list[int]) -> None:
    """Whatever the order, k equal lines take k answers, and no answer serves two."""
    answered = AnsweredRequests()
    for number in records:
        answered.add(identity(request(number)))
    taken = Counter(number for number in lines if answered.take(request(number)))
    assert taken == Counter(records) & Counter(lines)


KEYS = st.binary(min_size=1, max_size=1).map(lambda b: b * 16) | st.binary(min_size=16, max_size=16)


@given(st.lists(KEYS), st.randoms())
def test_the_set_counts_as_a_counter_does(keys: list[bytes], rng: random.Random) -> None:
    """Against a plain counter, with keys that look alike from any byte on."""
    answered, counts = AnsweredRequests(), Counter[bytes]()
    for key in keys:
        answered.add(key)
        counts[key] += 1
    asked = keys + keys[: len(keys) // 2] + [key[1:] + key[:1] for key in keys]
    rng.shuffle(asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "keys", lambda key: [key])
        for key in asked:
            assert answered.take(_Keyed(key)) == (counts[key] > 0)  # type: ignore[arg-type]
            counts[key] -= counts[key] > 0


class _Keyed(bytes):
    """A key in the place of the request that it belongs to."""

    invalid_reason = None


def test_keys_across_two_others_are_not_found() -> None:
    """A key whose bytes end one entry and begin the next is another key."""
    answered = AnsweredRequests()
    prefix = b"\0\0"
    first, second = bytes(range(14)), bytes(range(14, 28))
    answered.add(prefix + first)
    answered.add(prefix + second)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "keys", lambda key: [key])
        across = (first + second)[5:19]
        assert not answered.take(_Keyed(prefix + across))  # type: ignore[arg-type]
        answered.add(prefix + across)
        assert answered.take(_Keyed(prefix + across))  # type: ignore[arg-type]
        assert not answered.take(_Keyed(prefix + across))  # type: ignore[arg-type]
        assert answered.take(_Keyed(prefix + second))  # type: ignore[arg-type]
        assert answered.take(_Keyed(prefix + first))  # type: ignore[arg-type]


def test_an_answer_takes_few_bytes() -> None:
    """At most 24 bytes of memory for each answered line, beyond a constant."""
    rng = random.Random(1)
    tracemalloc.start()
    try:
        answered = AnsweredRequests()
        for _ in range(100_000):
            answered.add(rng.randbytes(16))
        half = tracemalloc.get_traced_memory()[0]
        for _ in range(100_000):
            answered.add(rng.randbytes(16))
        full = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert (full - half) / 100_000 < 24
    assert full < 3_000_000 + 200_000 * 24


FILE = (
    good(1)
    + batch("i")
    + bad(2)
    + b"a foreign line\n"
    + good(1)
    + b"\r\n"
    + bad(3)
    + bad(4)
    + '[{"model": "m", "input": "é"}, {"t": "\u2028 \\ud800"}, {"row": [1]}]\n'.encode()
    + batch("j", 400)
    + batch("k")
    + good(5)
)
LINES = FILE.splitlines(keepends=True)


def kept(lines: list[bytes]) -> list[bytes]:
    """The lines that stay."""
    failures = {bad(2), bad(3), bad(4), batch("j", 400)}
    return [line for line in lines if line not in failures]


@pytest.mark.parametrize("part", range(8))
def test_a_file_that_was_cut_anywhere_keeps_its_whole_good_records(path: Path, part: int) -> None:
    """At every byte offset: no good record is lost, no torn or failed one stays, and it is stable."""
    for offset in range(part, len(FILE) + 1, 8):
        lines = FILE[:offset].split(b"\n")
        whole = [line + b"\n" for line in lines[:-1]]
        last = lines[-1] + b"\n"
        if last in LINES or b"a foreign line\n".startswith(lines[-1]) or last == b"\r\n":
            whole += [last] if lines[-1] else []
        answered = prepared(path, FILE[:offset])
        assert path.read_bytes() == b"".join(kept(whole)), FILE[:offset]
        ids = Counter(line for line in kept(whole) if line.startswith((b"[", b"{")))
        assert answered.answered == ids.total()
        again = mended(path)
        assert (again.answered, again.failed) == (answered.answered, 0)
        assert path.read_bytes() == b"".join(kept(whole))
    assert os.listdir(path.parent) == [path.name]


RECORDS = st.lists(
    st.sampled_from(
        [good(1), good(2), bad(1), batch("i"), batch("j", 500), b"# note\n", b"\n", b"[1]\n"]
    )
)


@given(RECORDS, st.data())
@settings(max_examples=50)
def test_any_file_keeps_its_good_records_in_order(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], data: st.DataObject
) -> None:
    """With records of all kinds and a cut anywhere, what stays is what is whole and not a failure."""
    content = b"".join(lines)
    content = good(3) + content[: data.draw(st.integers(0, len(content)))]
    path = tmp_path_factory.mktemp("results") / "r.jsonl"
    answered = prepared(path, content)
    left = path.read_bytes()
    whole = [line for line in content.splitlines(keepends=True) if line.endswith(b"\n")]
    stays = [line for line in whole if line not in (bad(1), batch("j", 500))]
    assert left.startswith(b"".join(stays))
    rest = left[len(b"".join(stays)) :]
    records = (good(1), good(2), good(3), batch("i"))
    assert rest in (b"", b"[1]\n", *records) or b"# note\n".startswith(rest[:-1])
    assert answered.answered == sum(line in records for line in [*stays, rest])


def test_a_whole_record_without_its_line_end_gets_one(path: Path) -> None:
    """The next record must not be appended to it; one of a failure is dropped."""
    answered = prepared(path, good(1) + good(2)[:-1])
    assert path.read_bytes() == good(1) + good(2)
    assert answered.answered == 2
    answered = prepared(path, good(1) + bad(2)[:-1])
    assert path.read_bytes() == good(1)
    assert (answered.answered, answered.failed) == (1, 1)
    prepared(path, bad(1) + good(2) + bad(3) + good(4)[:-1])
    assert path.read_bytes() == good(2) + good(4)
    assert prepared(path, bad(1) + bad(2)).failed == 2
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "tail", [b"\0" * 100, b'[{"model": "m"\0\0\0', b'{"id": "x", "custom_id"', b"[", b'["\xff']
)
def test_torn_tails_are_cut(path: Path, tail: bytes) -> None:
    """The beginning of a record, and zeros that a power loss left."""
    answered = prepared(path, good(1) + tail)
    assert path.read_bytes() == good(1)
    assert (answered.answered, answered.failed, answered.foreign) == (1, 0, 0)


@pytest.mark.parametrize(
    "content",
    [
        b"name,value\n1,2\n3,4",
        b'{\n  "a": 1\n}',
        b'{"a": 1}',
        b'{"custom_id": "i", "method": "POST", "url": "/v1/x", "body": {}}\n' * 2,
        b'{"model": "m", "input": "x"}\n' * 2,
        b'{"custom_id": "i", "result": {"type": "succeeded"}}\n',
        bytes(range(256)),
    ],
)
def test_a_file_without_any_record_is_refused(path: Path, content: bytes) -> None:
    """A file that was named by mistake stays as it is; between records, the same lines stay too."""
    with pytest.raises(
        ResultsFileError, match="holds no records: name another .* with --overwrite"
    ):
        prepared(path, content)
    assert path.read_bytes() == content
    answered = prepared(path, good(1) + content)
    assert path.read_bytes() in (good(1) + content, good(1) + content + b"\n")
    assert (answered.answered, answered.failed) == (1, 0)
    assert answered.foreign > 0


def test_a_copy_is_made_only_if_one_is_needed(path: Path) -> None:
    """A torn tail is cut off in place: a full disk is no obstacle. A file in order keeps even its time."""
    path.write_bytes(good(1) + b"foreign\n" + good(2) + good(3)[:20])
    inode = path.stat().st_ino
    mended(path)
    assert path.stat().st_ino == inode
    os.utime(path, (1, 1))
    mended(path)
    assert (path.stat().st_ino, path.stat().st_mtime) == (inode, 1)


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664])
def test_the_files_mode_and_owner_stay(path: Path, mode: int) -> None:
    """The new file has the permissions and the owner of the old one."""
    path.write_bytes(bad(1) + good(2))
    path.chmod(mode)
    with contextlib.suppress(PermissionError):  # only root may
        os.chown(path, 12345, 54321)
    before = path.stat()
    mended(path)
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert stat.S_IMODE(after.st_mode) == mode
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


def test_a_symbolic_link_stays_one(tmp_path: Path, path: Path) -> None:
    """The target is replaced, in its own folder."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    target = folder / "target.jsonl"
    target.write_bytes(bad(1) + good(2) + good(3)[:5])
    path.symlink_to(target)
    assert mended(path).answered == 1
    assert path.is_symlink()
    assert target.read_bytes() == good(2)
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "results.jsonl"]
    assert os.listdir(folder) == ["target.jsonl"]


def test_devices_hold_no_answers(tmp_path: Path) -> None:
    """They are neither read nor repaired; a link to nowhere becomes a file."""
    assert mended(Path(os.devnull)).answered == 0
    dangling = tmp_path / "dangling"
    dangling.symlink_to(tmp_path / "nowhere")
    assert mended(dangling).answered == 0


def _full(*_: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def _interrupted(*_: Any) -> Any:
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["write", "replace", "fsync", "fchmod"])
@pytest.mark.parametrize(
    ("fails", "raised"), [(_full, ResultsFileError), (_interrupted, KeyboardInterrupt)]
)
def test_a_replacement_that_fails_leaves_the_old_file(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    fails: Callable[..., Any],
    raised: type[BaseException],
) -> None:
    """Wherever it fails, the file is unchanged, and nothing is left beside it."""
    content = good(1) + bad(2) + good(3)
    path.write_bytes(content)
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fails)
        with pytest.raises(raised, match="results.jsonl" if raised is ResultsFileError else None):
            mended(path)
    assert path.read_bytes() == content
    assert os.listdir(path.parent) == [path.name]
    assert mended(path).answered == 2


def test_what_a_killed_replacement_left_behind_is_overwritten(path: Path) -> None:
    """The next replacement cleans up after it."""
    beside = path.with_name(f"{path.name}.new~")
    beside.write_bytes(b"half of a fil" * 1000)
    prepared(path, bad(1) + good(2))
    assert path.read_bytes() == good(2)
    assert not beside.exists()


def test_files_may_belong_to_somebody_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the owner can't be kept, the new file belongs to the current user."""

    def refuse(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    prepared(path, bad(1) + good(2))
    assert path.read_bytes() == good(2)


def test_a_folder_that_cannot_be_synced_is_no_obstacle(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some systems can't open or sync a folder; the replacement has happened."""
    really = os.fsync

    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        really(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    assert prepared(path, bad(1) + good(2)).answered == 1
    assert path.read_bytes() == good(2)


def test_an_unreadable_results_file_is_an_error_of_its_own(path: Path) -> None:
    """The message names the file."""
    with pytest.raises(ResultsFileError, match="x{300}"):
        mended(path.with_name("x" * 300))


def test_a_large_file_with_failures_all_over_is_mended(path: Path) -> None:
    """Larger than any buffer, with failures at both ends, in a row, and far from each other."""
    rng = random.Random(2)
    padding = b'[{"model": "m", "input": "%d"}, {"t": "' + b"x" * 1500 + b'"}]\n'
    lines = [bad(0), *(bad(1) if rng.random() < 0.1 else padding % i for i in range(3000)), bad(0)]
    lines.insert(1500, padding.replace(b"x", b"y" * 2000) % 1)
    answered = prepared(path, b"".join(lines))
    stays = [line for line in lines if line not in (bad(0), bad(1))]
    assert path.read_bytes() == b"".join(stays)
    assert answered.answered == len(stays)
    assert answered.failed == len(lines) - len(stays)


def test_a_file_of_the_cookbooks_script_resumes(path: Path) -> None:
    """Its records and its failures are read as ours."""
    body = {"model": "m", "input": "é\ud800"}
    rows = [[body, {"data": []}, {"row_id": 1}], [body, ["429"]], [body, {"data": []}]]
    answered = prepared(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    lines = [{**body, "metadata": {"row_id": 1}}, {**body, "metadata": {}}, body]
    requests = [parse_line(json.dumps(line).encode(), 1, URL) for line in lines]
    assert [answered.take(request) for request in requests] == [True, True, False]


# The files of a job together


def test_the_files_are_ours_while_they_are_open(path: Path, errors: Path) -> None:
    """Both are created and locked, and unlocked after the block, however it ends."""
    with open_files(path, errors) as files:
        assert [file.path for file in files] == [path, errors]
        assert not is_free(path)
        assert not is_free(errors)
    assert is_free(path)
    with pytest.raises(KeyboardInterrupt), open_files(path, None) as files:
        assert [file.path for file in files] == [path]
        raise KeyboardInterrupt
    assert is_free(path)


def test_nothing_stays_open_if_one_cant_be_opened(path: Path, errors: Path) -> None:
    """If the errors file is locked by somebody else, the results file is unlocked again."""
    before = descriptors()
    theirs = AppendFile(errors)
    with pytest.raises(ResultsFileError, match="another process"), open_files(path, errors):
        raise AssertionError("it isn't ours")
    theirs.close()
    assert is_free(path)
    assert descriptors() == before


def test_answers_of_both_files_count(path: Path, errors: Path) -> None:
    """Whatever file a record is in, good ones stay and failures are sent again."""
    path.write_bytes(good(1) + bad(2) + good(3)[:-5])
    errors.write_bytes(bad(4) + good(5))
    answered = mended(path, errors)
    assert [answered.take(request(number)) for number in range(1, 6)] == [
        *(True, False, False, False, True)
    ]
    assert (path.read_bytes(), errors.read_bytes()) == (good(1), good(5))


def test_failures_that_are_kept_stay(path: Path, errors: Path) -> None:
    """They stand for their requests as answers do, each in its file."""
    path.write_bytes(good(1) + bad(2))
    errors.write_bytes(bad(4))
    answered = mended(path, errors, keep_failures=True)
    assert (path.read_bytes(), errors.read_bytes()) == (good(1) + bad(2), bad(4))
    assert (answered.answered, answered.failed) == (1, 2)
    assert [answered.take(request(number)) for number in (1, 2)] == [True, False]
    kept = answered.kept_failures
    assert [kept.take(request(number)) for number in (1, 2, 2, 4)] == [False, True, False, True]


def test_overwriting_starts_afresh(path: Path, errors: Path) -> None:
    """Both files are emptied, even of lines that are no records."""
    path.write_bytes(b"a letter to my grandmother\n")
    errors.write_bytes(bad(1) + good(2))
    answered = mended(path, errors, overwrite=True, keep_failures=True)
    assert path.read_bytes() == errors.read_bytes() == b""
    assert not answered.take(request(2))
    assert (answered.answered, answered.failed) == (0, 0)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_pipe_has_no_answers(path: Path, overwrite: bool) -> None:
    """What can't be read back is neither read nor cut."""
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert not mended(path, overwrite=overwrite).take(request(1))
    finally:
        os.close(reader)


@pytest.mark.parametrize(
    ("keep_failures", "words"), [(False, "are tried again"), (True, "stay as they are")]
)
def test_what_was_found_is_said(
    path: Path, errors: Path, caplog: pytest.LogCaptureFixture, keep_failures: bool, words: str
) -> None:
    """The sums of both files are logged once, with what happens to them."""
    path.write_bytes(good(1) * 1500 + bad(2) + b"a remark\n")
    errors.write_bytes(bad(3) * 2)
    with caplog.at_level(logging.INFO, logger="parallel_processor"):
        mended(path, errors, keep_failures=keep_failures)
    assert caplog.messages == [
        f"{path} has 1,500 answers",
        f"3 requests that failed before {words}",
        "1 lines of the results are no records; they stay",
    ]


def test_nothing_is_said_of_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A first run finds nothing to tell."""
    with caplog.at_level(logging.INFO, logger="parallel_processor"):
        mended(path)
    assert caplog.messages == []


def test_the_reading_can_be_stopped(path: Path) -> None:
    """A stop while a long file is read leaves it as it was."""
    content = bad(1) + good(2) * 1500
    path.write_bytes(content)
    checks = iter([None, StopRequested("enough")])

    def check() -> None:
        cause = next(checks)
        if cause is not None:
            raise cause

    with pytest.raises(StopRequested), open_files(path, None) as files:
        prepare(files, overwrite=False, keep_failures=False, check=check)
    assert path.read_bytes() == content
    assert is_free(path)
