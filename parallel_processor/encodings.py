"""Which encoding a model uses, and how many tokens a text has in it.

tiktoken downloads its rank files on first use, without a timeout, into a directory that it takes
from the environment. What is in the two files that today's models need is therefore part of this
package (OpenAI's own, MIT) and is handed to ``tiktoken.Encoding`` in memory. That takes 0.1 s for
``cl100k_base`` and 0.2 s for ``o200k_base`` once per process, less than from tiktoken's cache, and
leaves nothing to go wrong: no network, no cache directory that can't be written, no environment
variable that is changed. A ``TIKTOKEN_CACHE_DIR`` of the user's is neither needed nor touched.

The tokens are kept in the order of their ranks, packed by zlib, since that is read three times as fast
as base64 and numbers packed by xz (``scripts/pack_ranks`` makes it of tiktoken's file). Their sha256 is
checked, and a test that the file which they make again has tiktoken's.

All other encodings (``p50k_base``, plugins …) are loaded by tiktoken itself, within a time limit.
Where that fails, tokens are taken to be a quarter of the UTF-8 bytes, and a warning says so once.
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
from parallel_processor.forks import FORKS_WAIT
from parallel_processor.models import model_name

if TYPE_CHECKING:
    import tiktoken

_logger = logging.getLogger("parallel_processor")

DEFAULT_ENCODING = "cl100k_base"
"""For requests that name no model, or one whose encoding isn't known."""

_STOCK_NAMES = (  # tiktoken 0.13; checking one of these needs no import of tiktoken
    "cl100k_base",
    "gpt2",
    "o200k_base",
    "o200k_harmony",
    "p50k_base",
    "p50k_edit",
    "r50k_base",
)
_O200K_PREFIXES = (  # OpenAI's families that tiktoken 0.14 has no entry for
    "gpt-6",
    "gpt-4.5",
    "gpt-realtime",
    "gpt-audio",
    "gpt-oss",
    "computer-use-preview",
    "codex-mini",
    "omni-moderation",
)
_SEPARATOR = b"\xf8\xf9"  # of packed tokens, none of which has it: UTF-8 has no such bytes
_LOAD_TIMEOUT_S = 30.0
_CHUNK_CHARS = 100_000  # the worst text of this length takes 0.1 s; o200k fails on 1,000,000 spaces
_MAX_CHUNKS = 20  # texts above 2,000,000 characters exceed every model's context: sampled
_REMEMBERED_CHARS, _REMEMBERED_TEXTS = 8_192, 1_024


class _Bundle(NamedTuple):
    """A file of tokens, and the pattern that splits texts before ranks are applied."""

    file: str
    sha256: str  # of what is packed in it
    pattern: str  # as in tiktoken_ext.openai_public


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
# The encodings of a file differ in their special tokens alone, and those are never counted as such.
_BUNDLES: Mapping[str, _Bundle] = MappingProxyType(
    {"cl100k_base": _CL100K, "o200k_base": _O200K, "o200k_harmony": _O200K}
)


class TextCounter:
    """Counts the tokens of texts in one encoding.

    Any thread may call it, and no text makes it raise. Special tokens' names, such as ``<|endoftext|>``,
    are counted as the text they are. Texts above 100,000 characters are counted in pieces (a token or two
    too many per cut), those above 2,000,000 from at most twenty samples. ``exact`` is false where every
    count is a quarter of the bytes.
    """

    __slots__ = ("_encode", "_remembered", "exact", "name")

    def __init__(self, name: str, encode: Callable[[str], Sequence[int]] | None) -> None:
        self.name = name
        self.exact = encode is not None
        self._encode = encode
        self._remembered = functools.lru_cache(maxsize=_REMEMBERED_TEXTS)(self.count)

    def __repr__(self) -> str:
        return f"<TextCounter {self.name!r}{'' if self.exact else ' (bytes / 4)'}>"

    def count(self, text: str) -> int:
        """Tokens of ``text``."""
        if len(text) > _CHUNK_CHARS:
            return self._count_long(text)
        if self._encode is None:
            return estimated_tokens(text)
        try:
            return len(self._encode(text))
        except BaseException as error:  # its regular expressions gave up, in Python or in Rust
            if not isinstance(error, ValueError) and type(error).__name__ != "PanicException":
                raise
            return estimated_tokens(text)

    def count_repeated(self, text: str) -> int:
        """As :meth:`count`, for texts that come again: roles, names, system prompts.

        The last 1,024 of them are remembered; those above 8,192 characters are not.
        """
        return self._remembered(text) if len(text) <= _REMEMBERED_CHARS else self.count(text)

    def _count_long(self, text: str) -> int:
        starts = range(0, len(text), _CHUNK_CHARS)
        sampled = starts[:: -(-len(starts) // _MAX_CHUNKS)]
        chunks = [text[start : start + _CHUNK_CHARS] for start in sampled]
        tokens = sum(map(self.count, chunks))
        seen = sum(map(len, chunks))
        return tokens if seen == len(text) else -(-tokens * len(text) // seen)


def estimated_tokens(text: str) -> int:
    """A quarter of the UTF-8 bytes, rounded up: what English text has, roughly."""
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return (size + 3) // 4


def base_model_name(model: object) -> str:
    """``model`` without vendor, fine-tuning and case: ``openai/GPT-4o``, ``ft:gpt-4o:org::id``.

    Empty for what can't be a model's name.
    """
    name = model_name(model).strip().lower().rsplit("/", 1)[-1]
    return name.split(":")[1] if name.startswith("ft:") else name


def encoding_for_model(model: object) -> str:
    """The name of the encoding that ``model`` uses, as far as is known.

    tiktoken's table first, then OpenAI's newer families, which use ``o200k_base`` (not verified for
    ``gpt-6``), then :data:`DEFAULT_ENCODING`. Never raises.
    """
    return _encoding_for_name(base_model_name(model))


@functools.lru_cache(maxsize=1_024)
def _encoding_for_name(name: str) -> str:
    if not name:
        return DEFAULT_ENCODING
    try:
        with FORKS_WAIT:
            import tiktoken

        return tiktoken.encoding_name_for_model(name)
    except (KeyError, ImportError):
        pass
    encoding_name = "o200k_base" if name.startswith(_O200K_PREFIXES) else DEFAULT_ENCODING
    _logger.debug("tiktoken does not know the model %r: counting with %s", name, encoding_name)
    return encoding_name


def check_encoding_name(name: str) -> None:
    """Raise :class:`ConfigurationError` unless tiktoken or a plugin of its has ``name``."""
    if name in _STOCK_NAMES:
        return
    known: set[str] = set(_STOCK_NAMES)
    try:
        with FORKS_WAIT:
            import tiktoken

            known.update(tiktoken.list_encoding_names())
    except (ImportError, ValueError) as error:  # ValueError: two plugins are at odds
        _logger.debug("tiktoken can't list its encodings: %s", error)
    if name not in known:
        raise ConfigurationError(
            f"unknown token encoding {name!r}: choose one of {', '.join(sorted(known))}"
        )


def text_counter(name: str) -> TextCounter:
    """The counter of the encoding ``name``, made at the first call and kept for the process.

    Never raises: where the encoding can't be loaded, the counter estimates, and a warning says why.
    """
    with FORKS_WAIT:  # as does the second of two threads for the first one's work
        return _text_counter(name)


@functools.lru_cache(maxsize=32)
def _text_counter(name: str) -> TextCounter:
    try:
        encoding = _load(name)
    except Exception as error:  # whatever it is, a run must not fail for want of a count
        _logger.warning(
            "tokens are estimated as bytes / 4: the encoding %s can't be loaded (%s: %s)",
            name,
            type(error).__name__,
            error,
        )
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
    there is nothing to decompress.
    """
    import importlib.resources
    import zlib

    packed = (importlib.resources.files("parallel_processor") / "data" / file).read_bytes()
    content = zlib.decompress(packed)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"data/{file} is damaged: its sha256 is not {sha256}")
    return {token: rank for rank, token in enumerate(content.split(_SEPARATOR))}


def _load_by_tiktoken(name: str, timeout_s: float) -> tiktoken.Encoding:
    """Let tiktoken load an encoding, from its cache or the network, or raise in ``timeout_s``.

    tiktoken's own ``get_encoding`` would hold the lock of its registry while it waits for a network
    that drops packets, and so stop the embedding program's other threads; hence the constructor.
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
        """Runs in the thread."""
        try:
            future.set_result(tiktoken.Encoding(**constructor()))
        except Exception as error:
            future.set_exception(error)

    # A daemon: nothing can end a download that hangs, and it must not keep the process from ending.
    threading.Thread(target=load, name="parallel-processor-encoding", daemon=True).start()
    return future.result(timeout_s)
