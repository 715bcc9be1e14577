"""Which encoding a model uses, and how many tokens a text has in it.

tiktoken downloads rank files on first use, without a timeout, into a directory that it takes from
the environment. So this package contains the two files that today's models need (OpenAI's own, MIT
license), and gives their content to ``tiktoken.Encoding`` in memory. Once per process this takes
0.1 s for ``cl100k_base`` and 0.2 s for ``o200k_base``, less than tiktoken's own cache. It needs no
network and no cache directory, and neither reads nor changes the user's ``TIKTOKEN_CACHE_DIR``.

The tokens are stored in the order of their ranks and compressed by zlib: that loads three times as
fast as base64 and numbers compressed by xz. ``scripts/pack_ranks`` makes them from tiktoken's file.
Their sha256 is checked when they are loaded.

tiktoken itself loads all other encodings (``p50k_base``, plugins …), within a time limit. If that
fails, a quarter of the UTF-8 bytes is taken for the number of tokens, and one warning says so.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from parallel_processor.exceptions import ConfigurationError
from parallel_processor.models import model_name
from parallel_processor.runtime.forks import FORK_LOCK

if TYPE_CHECKING:
    import tiktoken

_logger = logging.getLogger("parallel_processor")

DEFAULT_ENCODING = "cl100k_base"  # for no model, or a model whose encoding isn't known
_STOCK_NAMES = (  # of tiktoken 0.13; to check one of these needs no import of tiktoken
    *("cl100k_base", "gpt2", "o200k_base", "o200k_harmony", "p50k_base", "p50k_edit", "r50k_base"),
)
_O200K_PREFIXES = (  # OpenAI's families that tiktoken 0.14 has no entry for
    *("gpt-6", "gpt-4.5", "gpt-realtime", "gpt-audio", "gpt-oss"),
    *("computer-use-preview", "codex-mini", "omni-moderation"),
)
_SEPARATOR = b"\xf8\xf9"  # between packed tokens; no token has these bytes, which UTF-8 never has
_LOAD_TIMEOUT_S = 30.0
_CHUNK_CHARS = 100_000  # the slowest such text takes 0.1 s; o200k fails on 1,000,000 spaces
_MAX_CHUNKS = 20  # a text above 2,000,000 characters exceeds every model's context: it is sampled
_REMEMBERED_CHARS, _REMEMBERED_TEXTS = 8_192, 1_024


class _Bundle(NamedTuple):
    """A file of tokens that is part of this package."""

    file: str  # its name in ``data``
    sha256: str  # of its decompressed content
    pattern: str  # splits texts before the ranks are applied; as in ``tiktoken_ext.openai_public``


_CL100K = _Bundle(
    "cl100k_base.tokens.z",
    "1cfaf63faf275ec8e32e30bce6dac1188e913953a19c64167d2ecec50a78cf0c",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s",
)
_O200K = _Bundle(
    "o200k_base.tokens.z",
    "94cea462233445cf4bc97dfc5b71c1e99255cc53eac38162be7d4910b86e6a88",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# Encodings of one file differ only in their special tokens, which are never counted as such.
_BUNDLES: Mapping[str, _Bundle] = MappingProxyType(
    {"cl100k_base": _CL100K, "o200k_base": _O200K, "o200k_harmony": _O200K}
)


class TextCounter:
    """Counts the tokens of texts in one encoding.

    Any thread may call it, and no text makes it raise. The names of special tokens, such as
    ``<|endoftext|>``, are counted as plain text. A text above 100,000 characters is counted in
    pieces, which adds up to two tokens per boundary. One above 2,000,000 characters is estimated
    from at most twenty samples. Without ``encode``, every count is a quarter of the bytes.
    """

    def __init__(self, name: str, encode: Callable[[str], Sequence[int]] | None) -> None:
        self.name = name
        self._encode = encode
        self._remembered = functools.lru_cache(maxsize=_REMEMBERED_TEXTS)(self.count)

    def count(self, text: str) -> int:
        """The number of tokens in ``text``."""
        if len(text) > _CHUNK_CHARS:
            return self._count_long(text)
        if self._encode is None:
            return estimated_tokens(text)
        try:
            return len(self._encode(text))
        except BaseException as error:  # a regular expression gave up, in Python or in Rust
            if not isinstance(error, ValueError) and type(error).__name__ != "PanicException":
                raise
            return estimated_tokens(text)

    def count_repeated(self, text: str) -> int:
        """Like :meth:`count`, for texts that occur again: roles, names, system prompts.

        The results of the last 1,024 texts up to 8,192 characters are remembered.
        """
        return self._remembered(text) if len(text) <= _REMEMBERED_CHARS else self.count(text)

    def _count_long(self, text: str) -> int:
        starts = range(0, len(text), _CHUNK_CHARS)
        sampled = starts[:: -(-len(starts) // _MAX_CHUNKS)]
        chunks = [text[start : start + _CHUNK_CHARS] for start in sampled]
        tokens, seen = sum(map(self.count, chunks)), sum(map(len, chunks))
        return -(-tokens * len(text) // seen)  # which is ``tokens`` if the whole text was seen


def estimated_tokens(text: str) -> int:
    """A quarter of the UTF-8 bytes, rounded up: about what English text has."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return (size + 3) // 4


def base_model_name(model: object) -> str:
    """``model`` in lower case, without vendor and fine-tuning: ``openai/GPT-4o``, ``ft:gpt-4o:org::id``.

    Empty if it can't be a model's name.
    """
    name = model_name({"model": model}).strip().lower().rsplit("/", 1)[-1]
    return name.split(":")[1] if name.startswith("ft:") else name


def encoding_for_model(model: object) -> str:
    """The name of the encoding that ``model`` uses, as far as known. Never raises.

    The sources, in order: tiktoken's table; OpenAI's newer families, which use ``o200k_base`` (not
    verified for ``gpt-6``); :data:`DEFAULT_ENCODING`.
    """
    return _encoding_for_name(base_model_name(model))


@functools.lru_cache(maxsize=1_024)
def _encoding_for_name(name: str) -> str:
    if not name:
        return DEFAULT_ENCODING
    try:
        with FORK_LOCK:
            import tiktoken

        return tiktoken.encoding_name_for_model(name)
    except (KeyError, ImportError):
        pass
    encoding_name = "o200k_base" if name.startswith(_O200K_PREFIXES) else DEFAULT_ENCODING
    _logger.debug("tiktoken does not know the model %r: counting with %s", name, encoding_name)
    return encoding_name


def check_encoding_name(name: str) -> None:
    """Raise :class:`ConfigurationError` unless tiktoken or one of its plugins has ``name``."""
    if name in _STOCK_NAMES:
        return
    known = set(_STOCK_NAMES)
    try:
        with FORK_LOCK:
            import tiktoken

            known.update(tiktoken.list_encoding_names())
    except (ImportError, ValueError) as error:  # ValueError: two plugins define the same name
        _logger.debug("tiktoken can't list its encodings: %s", error)
    if name not in known:
        raise ConfigurationError(
            f"unknown token encoding {name!r}: choose one of {', '.join(sorted(known))}"
        )


def text_counter(name: str) -> TextCounter:
    """The counter for the encoding ``name``. It is made at the first call, and kept for the process.

    Never raises: if the encoding can't be loaded, the counter estimates, and a warning says why.
    """
    with FORK_LOCK:  # also makes a second thread wait, so that an encoding is loaded only once
        return _text_counter(name)


@functools.lru_cache(maxsize=32)
def _text_counter(name: str) -> TextCounter:
    try:
        encoding = _load(name)
    except Exception as error:  # whatever it is: a run must not fail because it can't count
        message = "tokens are estimated as bytes / 4: the encoding %s can't be loaded (%s: %s)"
        _logger.warning(message, name, type(error).__name__, error)
        return TextCounter(name, None)
    return TextCounter(name, encoding.encode_ordinary)


def _load(name: str) -> tiktoken.Encoding:
    bundle = _BUNDLES.get(name)
    if bundle is not None:
        try:
            import tiktoken

            ranks = bundled_ranks(bundle.file, bundle.sha256)
            return tiktoken.Encoding(
                name, pat_str=bundle.pattern, mergeable_ranks=ranks, special_tokens={}
            )
        except Exception as error:  # a broken installation, or a Python without zlib
            _logger.warning("the bundled copy of %s can't be used: %s", name, error)
    return _load_by_tiktoken(name, _LOAD_TIMEOUT_S)


def bundled_ranks(file: str, sha256: str) -> dict[bytes, int]:
    """The ranks of the tokens in this package's ``data/<file>``.

    Raises ``ValueError`` if the tokens don't have that sha256, and ``zlib.error`` or ``OSError`` if
    the file can't be read.
    """
    import importlib.resources
    import zlib

    packed = (importlib.resources.files("parallel_processor.tokens") / "data" / file).read_bytes()
    content = zlib.decompress(packed)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"data/{file} is damaged: its sha256 is not {sha256}")
    return {token: rank for rank, token in enumerate(content.split(_SEPARATOR))}


def _load_by_tiktoken(name: str, timeout_s: float) -> tiktoken.Encoding:
    """Let tiktoken load an encoding, from its cache or the network. Raises after ``timeout_s``.

    The constructor is called here, because tiktoken's ``get_encoding`` holds the lock of its registry
    while it waits for the network. A network that drops packets would stop the caller's other threads.
    """
    from concurrent.futures import Future

    import tiktoken
    import tiktoken.registry

    tiktoken.list_encoding_names()  # finds the constructors
    loaded = tiktoken.registry.ENCODINGS.get(name)
    if loaded is not None:
        return loaded
    constructor = (tiktoken.registry.ENCODING_CONSTRUCTORS or {})[name]
    future: Future[tiktoken.Encoding] = Future()

    def load() -> None:
        """Resolve ``future``."""
        try:
            future.set_result(tiktoken.Encoding(**constructor()))
        except Exception as error:
            future.set_exception(error)

    # A daemon thread: nothing can end a hanging download, and it must not keep the process alive.
    threading.Thread(target=load, name="parallel-processor-encoding", daemon=True).start()
    return future.result(timeout_s)
