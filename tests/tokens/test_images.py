"""Images: the documented sums, and sizes read from a few bytes of base64."""

from __future__ import annotations

import base64
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parallel_processor.tokens.images import (
    UNKNOWN_SIZE,
    PatchRule,
    PixelRule,
    TileRule,
    base64_size,
    data_url_size,
    image_tokens,
    rule_for_model,
    tokens_for_size,
)

DETAILS = ("low", "high", "auto", "original", None, 3)


def png(width: int, height: int) -> bytes:
    head = struct.pack(">I4sII", 13, b"IHDR", width, height)
    return b"\x89PNG\r\n\x1a\n" + head + b"\x08\x02" * 20


def gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x00" * 30


def jpeg(width: int, height: int, *, before: bytes = b"", marker: int = 0xC0) -> bytes:
    """The beginning of a JPEG file, with segments before its frame header."""
    app0 = b"\xff\xe0" + struct.pack(">H", 16) + b"JFIF\0" + bytes(9)
    frame = bytes([0xFF, marker]) + struct.pack(">HBHHB", 11, 8, height, width, 1) + bytes(3)
    return b"\xff\xd8" + app0 + before + frame + b"\xff\xda" + bytes(30)


def webp(kind: bytes, rest: bytes) -> bytes:
    return b"RIFF" + bytes(4) + b"WEBP" + kind + bytes(4) + rest + bytes(20)


def webp_vp8(width: int, height: int) -> bytes:
    return webp(b"VP8 ", bytes(3) + b"\x9d\x01\x2a" + struct.pack("<HH", width, height))


def webp_vp8l(width: int, height: int) -> bytes:
    return webp(b"VP8L", b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14))


def webp_vp8x(width: int, height: int) -> bytes:
    """The beginning of an extended WebP file."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return webp(b"VP8X", bytes(4) + sides)


MAKERS = (png, gif, jpeg, webp_vp8, webp_vp8l, webp_vp8x)


def url_of(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("model", "size", "detail", "tokens"),
    [
        ("gpt-4o", (1024, 1024), "high", 765),
        ("gpt-4o", (2048, 4096), "high", 1_105),
        ("gpt-4o", (512, 512), "auto", 255),
        ("gpt-4o", (4096, 8192), "low", 85),
        ("gpt-4.1", (1024, 1024), "original", 765),
        ("gpt-4o-mini", (1024, 1024), "high", 2_833 + 4 * 5_667),
        ("gpt-4o-mini", (1024, 1024), "low", 2_833),
        ("gpt-5", (1024, 1024), "high", 70 + 4 * 140),
        ("gpt-5-chat-latest", (1024, 1024), "high", 70 + 4 * 140),
        ("o1-pro", (1024, 1024), "high", 75 + 4 * 150),
        ("o3", (1024, 1024), "high", 75 + 4 * 150),
        ("computer-use-preview", (1024, 1024), "high", 65 + 4 * 129),
        ("gpt-5.2", (1024, 1024), "high", 1_024),
        ("gpt-5.3-codex", (1800, 2400), "high", 1_452),
        ("gpt-5-mini", (1024, 1024), "high", 1_659),
        ("gpt-4.1-mini", (1024, 1024), "high", 1_659),
        ("gpt-5-nano", (1024, 1024), "high", 2_520),
        ("gpt-4.1-nano", (1024, 1024), "high", 2_520),
        ("o4-mini", (1024, 1024), "high", 1_762),
        ("gpt-5-mini", (1024, 1024), "low", 415),
        ("gpt-5.4", (1568, 1568), "high", 49 * 49),
        ("gpt-5.4", (3200, 3200), "original", 100 * 100),
        ("gpt-6", (1024, 1024), "high", 1_024),
        ("claude-opus-4-8", (750, 1000), "auto", 1_000),
        ("anything", (1024, 1024), "auto", 765),
    ],
)
def test_documented_sums(model: str, size: tuple[int, int], detail: str, tokens: int) -> None:
    """The examples of the vendors' documentation cost what it says they cost."""
    assert image_tokens(model, size, detail) == tokens


def test_an_image_of_unknown_size_costs_a_flat_sum() -> None:
    """An image elsewhere costs what one of 1,024 x 1,024 costs: 765 on gpt-4o, 85 in low detail."""
    size = data_url_size("https://example.com/cat.png")
    assert size is None
    assert image_tokens("gpt-4o", size) == 765
    assert image_tokens("gpt-4o", size, "low") == 85
    assert image_tokens("", None) == 765
    assert UNKNOWN_SIZE == (1024, 1024)


@given(
    st.sampled_from(["gpt-4o", "gpt-5-nano", "gpt-5.4", "claude-x", "o4-mini"]),
    st.tuples(st.integers(1, 2**32), st.integers(1, 2**32)),
    st.sampled_from(DETAILS),
)
def test_any_size_has_a_bounded_cost(model: str, size: tuple[int, int], detail: object) -> None:
    """Any size, slivers too, costs at least one token and at most what the rule permits."""
    rule = rule_for_model(model)
    tokens = tokens_for_size(rule, size, detail)
    if isinstance(rule, TileRule):
        assert rule.base <= tokens <= rule.base + 8 * rule.tile
    elif isinstance(rule, PatchRule):
        assert 1 <= tokens <= 10_000 * rule.factor
        assert detail == "original" or tokens <= rule.patches * rule.factor + 1
    else:
        assert isinstance(rule, PixelRule)
        assert 1 <= tokens <= 3_279


@given(st.sampled_from(MAKERS), st.integers(1, 16_383), st.integers(1, 16_383))
def test_sizes_are_read_from_headers(maker: object, width: int, height: int) -> None:
    """The size of a PNG, GIF, JPEG or WebP image is read from its header, whatever its label."""
    assert callable(maker)
    data = maker(width, height)
    assert data_url_size(url_of(data, "application/octet-stream")) == (width, height)
    assert base64_size(base64.b64encode(data).decode()) == (width, height)


def test_a_jpegs_size_is_found_behind_large_segments() -> None:
    """A frame header behind a megabyte of metadata, padding and bare markers is found."""
    segment = b"\xff\xe2" + struct.pack(">H", 65_535) + bytes(65_533)
    before = segment * 20 + b"\xff\xff\xff" + b"\xff\x01" + b"\xff\xc4" + struct.pack(">H", 2)
    for marker in (0xC0, 0xC1, 0xC2, 0xCF):
        assert data_url_size(url_of(jpeg(640, 480, before=before, marker=marker))) == (640, 480)


class CountingText(str):
    """A text that counts the characters which are taken from it."""

    taken = 0

    def __getitem__(self, key: object) -> str:
        part = super().__getitem__(key)  # type: ignore[index]
        self.taken += len(part)
        return part


def test_only_a_few_characters_are_decoded() -> None:
    """The size of a 10 MB image takes some hundred characters of its base64."""
    text = CountingText(url_of(jpeg(640, 480) + bytes(10_000_000)))
    assert data_url_size(text) == (640, 480)
    assert text.taken < 500


@pytest.mark.parametrize(
    "url",
    [
        *("", "data:", "data:,", "data:image/png;base64", "data:image/png;base64,"),
        *("data:image/png,iVBORw0KGgo", "data:image/png;base64,!!!!", "data:image/png;base64,é中"),
        "data:image/svg+xml;base64,PHN2Zz4=",
        url_of(png(0, 5)),
        url_of(jpeg(0, 0)),
        url_of(b"\xff\xd8" + b"\xff" * 10_000),
        url_of(b"\xff\xd8" + b"\xff\xe0\x00\x02" * 10_000),
        url_of(b"\xff\xd8" + b"\xff\xe0\xff\xff"),
        url_of(webp(b"VP8 ", bytes(30))),
        url_of(webp(b"ALPH", bytes(30))),
        *[None, 7, {"url": "data:"}],
    ],
)
def test_what_is_no_image_has_no_size(url: object) -> None:
    """What isn't a base64 image in a known format has no size, and nothing raises."""
    assert data_url_size(url) is None


def test_the_label_of_a_data_url_may_be_in_any_case() -> None:
    """Schemes and the word base64 are read without regard to case."""
    url = url_of(gif(7, 9)).replace("data:", "DATA:").replace("base", "BASE")
    assert data_url_size(url) == (7, 9)


@pytest.mark.parametrize("maker", MAKERS)
def test_a_header_that_is_cut_short_has_its_size_or_none(maker: object) -> None:
    """A header that is cut anywhere yields the right size or none."""
    assert callable(maker)
    data = maker(300, 200)
    for end in range(len(data)):
        assert base64_size(base64.b64encode(data[:end]).decode()) in (None, (300, 200))


@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"\xff\xd8\xff", b"RIFF1234WEBPVP8"]),
    st.binary(),
)
def test_arbitrary_bytes_never_raise(magic: bytes, data: bytes) -> None:
    """Whatever follows a format's magic number, nothing raises and a size is positive."""
    size = data_url_size(url_of(magic + data))
    assert size is None or min(size) > 0


@given(st.text(), st.sampled_from(DETAILS), st.text())
def test_arbitrary_texts_never_raise(text: str, detail: object, model: str) -> None:
    """Whatever stands where a URL should, the image costs something."""
    for url in (text, f"data:image/png;base64,{text}"):
        assert image_tokens(model, data_url_size(url), detail) > 0
