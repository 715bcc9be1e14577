"""How many tokens an image costs.

The formulas are OpenAI's ("Images and vision": "Model sizing behavior", "Calculating costs") and,
for Claude, Anthropic's ("Vision": width · height / 750, long side at most 1,568 pixels).

They need the image's size. It is read from the header of a ``data:`` URL of any length: base64 maps
every 3 bytes to 4 characters, so only the few bytes that matter are decoded. The size of a remote
image isn't known. It is assumed to be 1,024 × 1,024, which costs 765 tokens on gpt-4o.

Nothing here raises, whatever it gets.
"""

from __future__ import annotations

import binascii
import functools
import math
import struct
from typing import NamedTuple

UNKNOWN_SIZE = (1_024, 1_024)  # the assumed width and height in pixels if they can't be read
_LOW_SIDE_PX = 512  # with `detail: low`, the model sees the image at this size
_MAX_SIDE_PX = 1 << 24
_MAX_JPEG_SEGMENTS = 512
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a segment


class TileRule(NamedTuple):
    """Base tokens and tokens per tile of 512 × 512 pixels."""

    base: int
    tile: int


class PatchRule(NamedTuple):
    """Tokens per patch of 32 × 32 pixels."""

    factor: float  # tokens per patch
    patches: int = 1_536  # at most
    side: int = 2_048  # the longest side in pixels


class PixelRule(NamedTuple):
    """Pixels per token."""

    pixels: int
    side: int  # the longest side in pixels


Rule = TileRule | PatchRule | PixelRule

# The first matching prefix decides.
_RULES: tuple[tuple[str, Rule], ...] = (
    ("gpt-4o-mini", TileRule(2_833, 5_667)),
    ("gpt-4.1-mini", PatchRule(1.62)),
    ("gpt-4.1-nano", PatchRule(2.46)),
    ("gpt-5-mini", PatchRule(1.62)),
    ("gpt-5-nano", PatchRule(2.46)),
    ("gpt-5.2", PatchRule(1.0)),
    ("gpt-5.3", PatchRule(1.0)),
    ("gpt-5.1", TileRule(70, 140)),
    ("gpt-5.", PatchRule(1.0, 2_500)),  # gpt-5.4 and later
    ("gpt-6", PatchRule(1.0, 2_500)),
    ("gpt-5", TileRule(70, 140)),
    ("o4-mini", PatchRule(1.72)),
    ("o1", TileRule(75, 150)),
    ("o3", TileRule(75, 150)),
    ("computer-use-preview", TileRule(65, 129)),
    ("claude", PixelRule(750, 1_568)),
)
_DEFAULT_RULE = TileRule(85, 170)  # gpt-4o, gpt-4.1, gpt-4.5
_ORIGINAL = {2_500: PatchRule(1.0, 10_000, 6_000)}  # by patches at `high`


def image_tokens(model: str, size: tuple[int, int] | None, detail: object = "auto") -> int:
    """Tokens of an image for ``model``.

    Args:
        model: the bare name in lower case.
        size: width and height in pixels, both above 0; ``None`` if they aren't known.
        detail: ``low``, ``high``, ``auto`` or ``original``. Anything else means ``auto``, which is
            counted as ``high``. ``original`` means ``high`` on models that don't have it.
    """
    return tokens_for_size(rule_for_model(model), size or UNKNOWN_SIZE, detail)


@functools.lru_cache(maxsize=256)
def rule_for_model(model: str) -> Rule:
    """The formula for ``model``, a bare name in lower case; gpt-4o's if the model isn't known."""
    return next((rule for prefix, rule in _RULES if model.startswith(prefix)), _DEFAULT_RULE)


def tokens_for_size(rule: Rule, size: tuple[int, int], detail: object = "auto") -> int:
    """Tokens of an image of ``size``, width and height in pixels, both above 0."""
    width, height = (min(side, _MAX_SIDE_PX) for side in size)
    if isinstance(rule, TileRule):
        return rule.base if detail == "low" else _tile_tokens(rule, width, height)
    if detail == "low":
        width, height = _fit(width, height, _LOW_SIDE_PX)
    if isinstance(rule, PixelRule):
        width, height = _fit(width, height, rule.side)
        return math.ceil(width * height / rule.pixels)
    if detail == "original":
        rule = _ORIGINAL.get(rule.patches, rule)
    return math.ceil(_patches(rule, width, height) * rule.factor)


def _fit(width: int, height: int, side: int) -> tuple[int, int]:
    """Scale down, never up, so that the longer side is at most ``side``."""
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _tile_tokens(rule: TileRule, width: int, height: int) -> int:
    scale = min(1.0, 2_048 / max(width, height))
    scale = min(scale, 768 / min(width, height))
    tiles = math.ceil(round(width * scale) / 512) * math.ceil(round(height * scale) / 512)
    return rule.base + max(1, tiles) * rule.tile


def _patches(rule: PatchRule, width: int, height: int) -> int:
    width, height = _fit(width, height, rule.side)
    patches = math.ceil(width / 32) * math.ceil(height / 32)
    if patches <= rule.patches:
        return patches
    scale = math.sqrt(1_024 * rule.patches / (width * height))
    columns, rows = width * scale / 32, height * scale / 32
    # Shrink a little more, so that one side is a whole number of patches, and at least one.
    scale *= min(max(1, math.floor(columns)) / columns, max(1, math.floor(rows)) / rows)
    fitted = math.ceil(round(width * scale) / 32) * math.ceil(round(height * scale) / 32)
    return max(1, min(fitted, rule.patches))


def data_url_size(url: object) -> tuple[int, int] | None:
    """Width and height in pixels, from the header of a base64 ``data:`` URL.

    ``None`` for a remote URL, and where :func:`base64_size` finds no size.
    """
    if not isinstance(url, str) or url[:5].lower() != "data:":
        return None
    comma = url.find(",", 0, 256)
    if comma < 0 or not url[:comma].lower().endswith(";base64"):
        return None
    return base64_size(url, comma + 1)


def base64_size(text: str, start: int = 0) -> tuple[int, int] | None:
    """Width and height of the PNG, JPEG, GIF or WebP image whose base64 begins at ``text[start]``.

    It decodes only some dozen bytes. ``None`` for other formats, for damage, and for base64 with
    line breaks.
    """
    source = _Base64Bytes(text, start)
    try:
        head = source.read(0, 30)
        if head.startswith(b"\x89PNG\r\n\x1a\n"):
            size: tuple[int, int] = struct.unpack_from(">II", head, 16)
        elif head[:6] in (b"GIF87a", b"GIF89a"):
            size = struct.unpack_from("<HH", head, 6)
        elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            size = _webp_size(head)
        elif head[:2] == b"\xff\xd8":
            size = _jpeg_size(source)
        else:
            return None
    except (ValueError, struct.error):  # not base64, or too short
        return None
    return size if size[0] > 0 and size[1] > 0 else None


class _Base64Bytes(NamedTuple):
    """The bytes of a base64 text, decoded where they are read."""

    text: str
    start: int

    def read(self, offset: int, count: int) -> bytes:
        """Up to ``count`` bytes from ``offset``; fewer at the end. ``ValueError`` if it isn't base64."""
        first, last = offset // 3, -(-(offset + count) // 3)
        quads = self.text[self.start + 4 * first : self.start + 4 * last]
        data = binascii.a2b_base64(quads[: len(quads) // 4 * 4])
        return data[offset - 3 * first :][:count]


def _webp_size(head: bytes) -> tuple[int, int]:
    """From the first 30 bytes (RFC 9649, sections 2.5 to 2.7)."""
    kind = head[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
        return (width + 1, height + 1) if len(head) == 30 else (0, 0)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", head, 21)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 " and head[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", head, 26)
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _jpeg_size(source: _Base64Bytes) -> tuple[int, int]:
    """From the first frame header, found by going from segment to segment (ITU T.81, annex B)."""
    offset = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        prefix, marker, length = struct.unpack(">BBH", source.read(offset, 4))
        if prefix != 0xFF:
            break
        if marker == 0xFF:  # padding
            offset += 1
        elif marker in _JPEG_BARE:
            offset += 2
        elif marker in _JPEG_FRAMES:
            height, width = struct.unpack(">HH", source.read(offset + 5, 4))
            return width, height
        else:
            offset += 2 + length
    return 0, 0
