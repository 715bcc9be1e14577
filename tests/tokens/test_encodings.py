"""Encodings: exact with no network, and never a reason for a run to fail."""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiktoken
import tiktoken.registry
from hypothesis import given
from hypothesis import strategies as st

import parallel_processor
from parallel_processor.exceptions import ConfigurationError
from parallel_processor.tokens import encodings
from parallel_processor.tokens.encodings import (
    TextCounter,
    base_model_name,
    bundled_ranks,
    check_encoding_name,
    encoding_for_model,
    estimated_tokens,
    text_counter,
)

PACKAGE = Path(parallel_processor.__file__).resolve().parent
BUNDLED = ("cl100k_base", "o200k_base", "o200k_harmony")
CACHE_NAMES = {  # sha1 of the URL from which tiktoken downloads
    "cl100k_base": "9b5ad71b2ce5302211f9c61530b329a4922fc6a4",
    "o200k_base": "fb374d419588a4632f3f557e76b4b70aebbca790",
}
SHA256 = {  # as in tiktoken_ext.openai_public
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}
# The cookbook's table: cl100k_base, o200k_base.
STRINGS = [
    ("tiktoken is great!", 6, 6),
    ("antidisestablishmentarianism", 6, 6),
    ("2 + 2 = 4", 7, 7),
    ("お誕生日おめでとう", 9, 8),
    ("hello world", 2, 2),
    ("", 0, 0),
]
OFFLINE = """
import socket, logging
def refuse(*args, **kwargs):
    raise OSError("the network is cut off")
socket.socket.connect = socket.socket.connect_ex = refuse
socket.create_connection = socket.getaddrinfo = refuse
logging.basicConfig(format="%(levelname)s %(message)s")
from parallel_processor.tokens.encodings import check_encoding_name, text_counter
"""


def run_offline(code: str, home: Path, *paths: Path, **environment: str) -> tuple[str, str]:
    """Run code in a process with no network, no cache and an empty home: its stdout and stderr."""
    home.mkdir(exist_ok=True)
    places = {name: str(home) for name in ("HOME", "TMPDIR", "TEMP", "TMP", "XDG_CACHE_HOME")}
    search = os.pathsep.join(map(str, paths or (PACKAGE.parent,)))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OFFLINE + code],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=home,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": search, **places, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def rank_file(name: str) -> bytes:
    """The file that tiktoken would download, made of what the package has."""
    bundle = encodings._BUNDLES[name]
    ranks = bundled_ranks(bundle.file, bundle.sha256).items()
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks)


@pytest.fixture(scope="module")
def tiktokens_own(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tiktoken.Encoding]:
    """The encodings as tiktoken makes them from a cache that has the right files."""
    cache = tmp_path_factory.mktemp("cache")
    for name, cache_name in CACHE_NAMES.items():
        (cache / cache_name).write_bytes(rank_file(name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(cache))
        tiktoken.list_encoding_names()  # finds the constructors
        constructors = tiktoken.registry.ENCODING_CONSTRUCTORS or {}
        return {name: tiktoken.Encoding(**constructors[name]()) for name in BUNDLED}


@pytest.mark.parametrize("name", SHA256)
def test_the_ranks_are_those_of_openai(name: str) -> None:
    """The rank file that the bundled tokens make is OpenAI's, byte for byte."""
    assert hashlib.sha256(rank_file(name)).hexdigest() == SHA256[name]


@pytest.mark.parametrize(("text", "cl100k", "o200k"), STRINGS)
def test_strings_have_the_documented_counts(text: str, cl100k: int, o200k: int) -> None:
    """The cookbook's example strings have the cookbook's counts."""
    assert text_counter("cl100k_base").count(text) == cl100k
    assert text_counter("o200k_base").count(text) == o200k
    assert text_counter("o200k_harmony").count(text) == o200k


@given(
    st.text()
    | st.text(alphabet="aB1 \n\r\t'.,-/é中あ😀<|>")
    | st.lists(st.sampled_from(["<|endoftext|>", "don't", " \n", "I'LL", "12345", "ﬀ"])).map(
        "".join
    )
)
def test_counts_are_tiktokens_own(tiktokens_own: dict[str, tiktoken.Encoding], text: str) -> None:
    """For any text, the bundled encodings count what tiktoken's own count."""
    for name, encoding in tiktokens_own.items():
        assert text_counter(name).count(text) == len(encoding.encode(text, disallowed_special=()))


@pytest.mark.parametrize("name", BUNDLED)
def test_names_of_special_tokens_and_lone_surrogates_are_text(name: str) -> None:
    """Neither the name of a special token nor a lone surrogate makes counting fail."""
    counter = text_counter(name)
    assert counter.count("<|endoftext|><|fim_prefix|><|start|>") > 3
    assert counter.count("a\ud800b\udfff") > 0
    assert estimated_tokens("a\ud800") == 1


def test_exact_without_network_cache_or_home(tmp_path: Path) -> None:
    """With no network, no cache and an empty home the counts are exact, and no file is written."""
    texts = [text for text, *_ in STRINGS]
    code = f"for n in {BUNDLED}: print([text_counter(n).count(t) for t in {texts!r}])"
    out, err = run_offline(code, tmp_path / "home")
    expected = [[row[1] for row in STRINGS], *[[row[2] for row in STRINGS]] * 2]
    assert out.splitlines() == [str(row) for row in expected]
    assert err == ""
    assert list((tmp_path / "home").iterdir()) == []


@pytest.mark.parametrize("variable", ["TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"])
def test_a_users_cache_directory_is_left_alone(tmp_path: Path, variable: str) -> None:
    """A cache directory of the user's with a wrong file in it is neither needed nor changed."""
    wrong = tmp_path / CACHE_NAMES["cl100k_base"]
    wrong.write_bytes(b"not a rank file")
    code = "print(text_counter('cl100k_base').count('2 + 2 = 4'))"
    out, err = run_offline(code, tmp_path / "home", **{variable: str(tmp_path)})
    assert (out, err) == ("7\n", "")
    assert wrong.read_bytes() == b"not a rank file"


def test_an_encoding_that_cant_be_had_is_estimated_and_said_once(tmp_path: Path) -> None:
    """Without its rank file and a network, an encoding's tokens are bytes / 4, with one warning."""
    code = "for n in range(3): print(text_counter('p50k_base').count('x' * 41))"
    out, err = run_offline(code, tmp_path / "home")
    assert out == "11\n" * 3
    assert err.count("WARNING tokens are estimated as bytes / 4") == 1
    assert "p50k_base" in err
    assert "Traceback" not in err


PLUGIN = """
import threading
def tiny():
    ranks = {bytes([i]): i for i in range(256)}
    return dict(name="tiny", pat_str=r"[\\s\\S]", mergeable_ranks=ranks, special_tokens={})
def hangs():
    threading.Event().wait()
ENCODING_CONSTRUCTORS = {"tiny": tiny, "hangs": hangs}
"""


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A folder with a plugin of tiktoken."""
    (tmp_path / "tiktoken_ext").mkdir()
    (tmp_path / "tiktoken_ext" / "tiny.py").write_text(PLUGIN)
    return tmp_path


def test_plugins_of_tiktoken_can_be_used(plugin: Path) -> None:
    """An encoding that a tiktoken plugin brings is known and counts."""
    code = "check_encoding_name('tiny'); print(text_counter('tiny').count('four'))"
    assert run_offline(code, plugin / "home", PACKAGE.parent, plugin) == ("4\n", "")


def test_a_load_that_hangs_is_given_up(plugin: Path) -> None:
    """A load that never ends is given up after its time; the process can end, and so can others."""
    code = """
import concurrent.futures, tiktoken
from parallel_processor.tokens.encodings import _load_by_tiktoken
try:
    _load_by_tiktoken("hangs", 0.05)
except concurrent.futures.TimeoutError as error:
    print("gave up", error)
print(tiktoken.get_encoding("tiny").name)
"""
    out, _ = run_offline(code, plugin / "home", PACKAGE.parent, plugin)
    assert out.startswith("gave up")
    assert out.endswith("tiny\n")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "missing", "other"])
def test_damaged_data_is_detected(tmp_path: Path, damage: str) -> None:
    """A damaged rank file is never used: the counts become estimates, and two warnings say why."""
    copy = tmp_path / "site" / "parallel_processor"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "o200k*"))
    file = copy / "tokens" / "data" / "cl100k_base.tokens.z"
    content = file.read_bytes()
    damaged = {
        "truncated": content[:-1000],
        "flipped": content[:300_000] + bytes([content[300_000] ^ 1]) + content[300_001:],
        "empty": b"",
        "other": zlib.compress(zlib.decompress(content) + b"\xf8\xf9one more"),
    }
    file.unlink()
    if damage in damaged:
        file.write_bytes(damaged[damage])
    code = "print(text_counter('cl100k_base').count('tiktoken is great!'))"
    out, err = run_offline(code, tmp_path / "home", copy.parent)
    assert out == "5\n"
    assert "WARNING the bundled copy of cl100k_base can't be used" in err
    assert "WARNING tokens are estimated" in err


def test_the_checksum_guards_the_ranks() -> None:
    """Ranks whose file has another sha256 than is expected are rejected."""
    with pytest.raises(ValueError, match="damaged"):
        bundled_ranks("cl100k_base.tokens.z", "0" * 64)


def test_importing_the_package_does_not_import_tiktoken(tmp_path: Path) -> None:
    """tiktoken is imported when something is counted, and not before."""
    code = "import sys, parallel_processor.tokens.counter; print('tiktoken' in sys.modules)"
    assert run_offline(code, tmp_path / "home")[0] == "False\n"


O200K_MODELS = [
    *("gpt-4o-mini-2024-07-18", "gpt-4.1", "gpt-5-nano", "o3-pro", "openai/gpt-4o", "GPT-4o"),
    *("ft:gpt-4.1-mini-2025-04-14:org:name:id", "openai/ft:gpt-4o-2024-08-06:org::id"),
    *("gpt-6-mini", "gpt-4.5", "gpt-realtime", "computer-use-preview", "codex-mini-latest"),
    "omni-moderation-latest",
]
CL100K_MODELS: list[object] = [
    *("gpt-3.5-turbo-0125", "gpt-4", "gpt-35-turbo", "gpt-35-turbo-16k", "text-embedding-3-large"),
    *("ft:gpt-3.5-turbo-0125:org::id", "claude-opus-4-8", "my-deployment", "ft:", "/", ""),
    *["x" * 1_000_000, None, 4, ["gpt-4o"]],
]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        *((model, "o200k_base") for model in O200K_MODELS),
        *((model, "cl100k_base") for model in CL100K_MODELS),
        ("davinci", "r50k_base"),
        ("gpt-oss-120b", "o200k_harmony"),
        ("openrouter/openai/gpt-oss-20b:free", "o200k_harmony"),
    ],
)
def test_models_have_their_encodings(model: object, name: str) -> None:
    """A model's name leads to its encoding, whatever stands around the name."""
    assert encoding_for_model(model) == name


@given(st.text())
def test_any_model_name_has_an_encoding_that_exists(model: str) -> None:
    """No name of a model raises, and what it leads to exists."""
    check_encoding_name(encoding_for_model(model))
    assert "/" not in base_model_name(model)


def test_an_unknown_model_is_not_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """A model that isn't known is mentioned once, below the level of warnings."""
    with caplog.at_level(logging.DEBUG, logger="parallel_processor"):
        for _ in range(3):
            encoding_for_model("some-model-of-test-encodings")
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]


@pytest.mark.parametrize("name", ["cl100k", "", "CL100K_BASE", "gpt-4o"])
def test_an_unknown_encoding_is_rejected_with_the_list(name: str) -> None:
    """An encoding that doesn't exist is rejected, and the message lists those that do."""
    with pytest.raises(ConfigurationError) as caught:
        check_encoding_name(name)
    assert repr(name) in str(caught.value)
    assert all(known in str(caught.value) for known in tiktoken.list_encoding_names())


def test_threads_share_one_counter() -> None:
    """Threads that ask for an encoding at once get one and the same counter."""
    encodings._text_counter.cache_clear()
    with ThreadPoolExecutor(8) as pool:
        counters = set(pool.map(text_counter, ["cl100k_base"] * 8))
    assert len(counters) == 1


def test_a_text_that_tiktoken_gives_up_on_is_estimated() -> None:
    """If tiktoken's regular expressions give up, the text's tokens are a quarter of its bytes."""

    class PanicException(BaseException):
        """What Rust's panics are in Python."""

    def raising(error: BaseException) -> Callable[[str], list[int]]:
        def encode(text: str) -> list[int]:
            raise error

        return encode

    for error in (ValueError("Max stack size exceeded"), PanicException("no way")):
        assert TextCounter("broken", raising(error)).count("é" * 5) == 3
    with pytest.raises(KeyboardInterrupt):
        TextCounter("sound", raising(KeyboardInterrupt())).count("é")


def test_long_texts_are_counted_in_pieces() -> None:
    """Above 100,000 characters a text is cut, which adds at most two tokens per cut."""
    counter = text_counter("o200k_base")
    paragraph = "The quick brown fox doesn't jump over 12345 lazy dogs.\n"
    exact = counter.count(paragraph * 1_000) * 10
    assert exact - 20 <= counter.count(paragraph * 10_000) <= exact + 20


def test_very_long_texts_are_sampled() -> None:
    """Above 2,000,000 characters samples tell the count, to a percent for an even text."""
    calls = []

    def count_words(text: str) -> list[int]:
        calls.append(len(text))
        return [0] * text.count("word ")

    tokens = TextCounter("words", count_words).count("word " * 1_234_567)
    assert tokens == pytest.approx(1_234_567, rel=0.01)
    assert len(calls) <= 20
    assert max(calls) <= 100_000


@pytest.mark.parametrize("character", [" ", "a", "\n", "😀", "\ud800"])
@pytest.mark.parametrize("name", ["cl100k_base", "o200k_base"])
def test_a_million_equal_characters_are_counted(name: str, character: str) -> None:
    """Texts on which regular expressions blow up are counted, within the bound of any encoding."""
    assert 0 < text_counter(name).count(character * 1_100_000) <= 4 * 1_100_000


@given(st.text())
def test_repeated_texts_count_the_same(text: str) -> None:
    """A remembered count is the count."""
    counter = text_counter("cl100k_base")
    assert counter.count_repeated(text) == counter.count_repeated(text) == counter.count(text)
    assert counter.count_repeated(text * 1_000) == counter.count(text * 1_000)
