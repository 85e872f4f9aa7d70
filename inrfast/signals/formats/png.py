"""PNG: every chunk checked before anything is decoded, and 16 bits per channel, of which Pillow returns the upper 8."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inrfast.errors import needs

SIGNATURE = b"\x89PNG\r\n\x1a\n"

CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples per pixel by the type of colour: grey, RGB, palette, grey with opacity, RGB with opacity."""

MOST_INFLATED = 1032
"""Bytes that one byte of a deflate stream gives at most: 258 for a length and a distance of one bit each."""

TEXTS, ORIENTING = (b"tEXt", b"zTXt", b"iTXt"), (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
"""Chunks of text, and the keywords of those in which Pillow finds a camera's orientation."""

PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of an interlaced PNG: the first column and row, and the steps from one to the next."""


@dataclass(frozen=True)
class Header:
    """What the first chunk of a PNG states, whether a colour is transparent, its orientation's chunk, its frames."""

    width: int
    height: int
    bits: int
    kind: int
    transparent: bool
    exif: bytes | None
    frames: int
    interlaced: bool
    stream: tuple[memoryview, ...]


def check(content: bytes, file: Path) -> Header:
    """Return the header of a PNG whose chunks are whole, with the checksums that they state.

    Raises
    ------
    ValueError
        A chunk is cut, its checksum wrong, or the picture larger than the file's bytes can inflate to.
    """
    chunks: dict[bytes, bytes] = {}
    at, packed, view = len(SIGNATURE), 0, memoryview(content)
    stream: list[memoryview] = []
    while b"IEND" not in chunks:
        length, name = int.from_bytes(view[at : at + 4], "big"), bytes(view[at + 4 : at + 8])
        end = at + 8 + length
        if end + 4 > len(content):
            raise ValueError(f"{file} is truncated: it ends within a chunk, {len(content)} bytes from its start")
        if zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            raise ValueError(f"{file} is damaged: the checksum of its chunk {name!r} at byte {at} is wrong")
        if not chunks and (name != b"IHDR" or length != 13):
            raise ValueError(f"{file} is damaged: a PNG begins with a header of 13 bytes")
        if name == b"IDAT":
            packed += length
            stream.append(view[at + 8 : end])
        elif name in (b"IHDR", b"tRNS", b"eXIf", b"acTL", b"IEND"):
            chunks.setdefault(name, bytes(view[at + 8 : end]))
        at = end + 4
    header = chunks[b"IHDR"]
    width, height = int.from_bytes(header[:4], "big"), int.from_bytes(header[4:8], "big")
    bits, kind = header[8], header[9]
    if kind not in CHANNELS or not width or not height:
        raise ValueError(f"{file} is damaged: its header states {height}x{width} pixels of the colour type {kind}")
    pixels = height * width * CHANNELS[kind] * bits // 8
    if pixels > MOST_INFLATED * packed:
        raise ValueError(f"{file} is damaged: its header states {height}x{width} pixels, more than {packed} bytes hold")
    if header[10] or header[11] or header[12] > 1:
        raise ValueError(f"{file} is damaged: its header states a compression, filter or interlace that PNG has not")
    frames = max(int.from_bytes(chunks.get(b"acTL", b"")[:4], "big"), 1)
    transparent, exif, interlaced = b"tRNS" in chunks, chunks.get(b"eXIf"), bool(header[12])
    return Header(width, height, bits, kind, transparent, exif, frames, interlaced, tuple(stream))


def without_texts(content: bytes) -> bytes:
    """Return a checked PNG without its text chunks, except those that may state the camera's orientation.

    Pillow reads all of them, and refuses the picture if one is long.
    """
    kept, start, at = [], 0, len(SIGNATURE)
    name = b""
    while name != b"IEND":
        end, name = at + 12 + int.from_bytes(content[at : at + 4], "big"), content[at + 4 : at + 8]
        if name in TEXTS and not content.startswith(ORIENTING, at + 8):
            kept.append(content[start:at])
            start = end
        at = end
    return b"".join([*kept, content[start:]]) if kept else content


def stating(content: bytes, icc: bytes | None, dpi: tuple[float, float] | None) -> bytes:
    """Return a PNG that also states a profile of its colours and dots per inch (x, y), after its header."""
    parts = [] if icc is None else [b"iCCP" + b"ICC profile\0\0" + zlib.compress(icc)]
    if dpi is not None:
        per_metre = b"".join(round(each / 0.0254).to_bytes(4, "big") for each in dpi)
        parts.append(b"pHYs" + per_metre + b"\x01")
    start = len(SIGNATURE) + 25
    chunks = [(len(each) - 4).to_bytes(4, "big") + each + zlib.crc32(each).to_bytes(4, "big") for each in parts]
    return b"".join([content[:start], *chunks, content[start:]])


def check_pixels(header: Header, file: Path) -> None:
    """Refuse pixels that do not inflate to the rows that the header states: Pillow invents what is missing."""
    expected, bits = 0, CHANNELS[header.kind] * header.bits
    for left, top, across, down in PASSES if header.interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(header.width - left) // across), -(-(header.height - top) // down)
        expected += rows * (1 + (columns * bits + 7) // 8) if columns > 0 and rows > 0 else 0
    inflate, found = zlib.decompressobj(), 0
    try:
        for part in header.stream:
            while len(part) and not inflate.eof and found <= expected:
                found += len(inflate.decompress(part, 2**20))
                part = memoryview(inflate.unconsumed_tail)
    except zlib.error as error:
        raise ValueError(f"{file} is damaged: its pixels cannot be inflated ({error})") from None
    if found != expected or not inflate.eof:
        raise ValueError(f"{file} is truncated or damaged: its pixels do not inflate to the {expected} bytes they take")


def decode_deep(content: bytes) -> np.ndarray[Any, Any]:
    """Return the samples of a PNG of 16 bits, uint16 (H, W, S); a transparent colour becomes a channel of opacity."""
    with needs("images", "reading a PNG of 16 bits"):
        from imagecodecs import png_decode  # slow to import, and needed for few files

    samples = png_decode(content)
    if samples.dtype != np.uint16:
        raise ValueError(f"its decoder gave {samples.dtype}")
    return samples[..., None] if samples.ndim == 2 else samples
