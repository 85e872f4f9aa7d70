"""Checks of image headers that Pillow skips: missing ends, and depths that it would reduce to 8 bits."""

from __future__ import annotations

import re
import struct
from pathlib import Path

from inrfast.signals.formats import jpeg, png
from inrfast.signals.formats.raster import Demand

JPEG2000, CODESTREAM = b"\x00\x00\x00\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"
ICON, PCX_PALETTE, SGI = b"\x00\x00\x01\x00", b"\x0a\x05\x01\x08", b"\x01\xda"

END, TILE = b"\xff\xd9", b"\xff\x90"
"""Markers of JPEG 2000."""

INNER_BYTES = 12
"""Bytes per pixel while decoding: in the decoder, and in Pillow."""


def check(content: bytes, file: Path, demand: Demand) -> None:
    """Refuse an image of which Pillow would silently invent pixels, or keep 8 of more bits.

    Raises
    ------
    ValueError
        A JPEG or JPEG 2000 without its end, a JPEG of too few bytes or too many scans,
        an icon with damaged PNGs, a PCX without its palette; more than 8 bits.
    MemoryBudgetError
        A picture within an icon exceeds the budget.
    """
    bits = 8
    if content.startswith(jpeg.SIGNATURE):
        jpeg.check(content, file)
    elif content.startswith((b"GIF87a", b"GIF89a")):
        _check_gif(content, file)
    elif content.startswith((JPEG2000, CODESTREAM)):
        at = content.find(CODESTREAM)
        _check_codestream(content, at, file)
        width, height, left, top = struct.unpack_from(">4I", content.ljust(at + 24, b"\0"), at + 8)
        _check_inner(file, abs(height - top), abs(width - left), demand)
        bits = _jpeg2000_bits(content, at)
    elif content[4:8] == b"ftyp" and (at := content.find(b"av1C")) > 0:
        bits = 10 if content[at + 6 : at + 7] and content[at + 6] & 0x40 else 8
    elif content.startswith(SGI):
        bits = 8 * (content[3:4] or b"\x01")[0]
    elif content.startswith(ICON):
        bits = _check_icon(content, file, demand)
    elif content.startswith(PCX_PALETTE) and content[65:66] == b"\x01" and content[-769:-768] != b"\x0c":
        raise ValueError(f"{file} is truncated or damaged: its palette of 256 colours is missing")
    if bits != 8:
        raise ValueError(
            f"{file} holds {bits} bits per channel, which its format loses here; convert it to PNG or TIFF"
        )


def _check_gif(content: bytes, file: Path) -> None:
    """Refuse a GIF whose blocks do not lead to its trailer: Pillow skips gaps and missing blocks."""
    at = 13 + (3 << (content[10] & 7) + 1 if content[10:11] >= b"\x80" else 0)
    while content[at : at + 1] in (b"!", b","):
        if content[at] == ord(","):
            flags = int.from_bytes(content[at + 9 : at + 10])
            at += 9 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        at += 2  # skip the type of an extension, or the code size of an image
        while (length := int.from_bytes(content[at : at + 1])) > 0:
            at += 1 + length
        at += 1
    if content[at : at + 1] != b";":
        raise ValueError(f"{file} is truncated or damaged: no block of a GIF begins at byte {at}")


def _check_codestream(content: bytes, at: int, file: Path) -> None:
    """Refuse a JPEG 2000 whose segments and tiles do not lead to its end marker."""
    at += 2
    while 0 < at < len(content) - 1:
        marker = content[at : at + 2]
        if marker == END:
            return
        if marker == TILE:
            length = int.from_bytes(content[at + 6 : at + 10], "big")
            if length == 0 and content.find(END, at) > 0:  # the last one, up to the end marker
                return
            least = 14
        else:
            length, least = 2 + int.from_bytes(content[at + 2 : at + 4], "big"), 4
        if length < least or marker[:1] != b"\xff":
            break
        at += length
    raise ValueError(f"{file} is truncated or damaged: its JPEG 2000 data have no end")


def _jpeg2000_bits(content: bytes, at: int) -> int:
    """Return the bits per channel; 8 where Pillow keeps all of them: unsigned 8, or one channel of unsigned 16."""
    channels = int.from_bytes(content[at + 40 : at + 42], "big")
    depths = set(content[at + 42 : at + 42 + 3 * channels : 3])  # bits - 1, and 128 for a sign
    if depths <= {7} or (depths == {15} and channels == 1):
        return 8
    return 1 + max(depths)


def _check_icon(content: bytes, file: Path, demand: Demand) -> int:
    """Return the most bits per channel of the PNGs in an icon, none of which is damaged; no picture is too large."""
    bits = 8
    for found in re.finditer(re.escape(png.SIGNATURE), content):
        part = png.check(content[found.start() :], file)
        _check_inner(file, part.height, part.width, demand)
        bits = max(bits, part.bits)
    for entry in range(int.from_bytes(content[4:6], "little")):
        at = int.from_bytes(content[18 + 16 * entry : 22 + 16 * entry], "little")
        if len(content) >= at + 12 and not content.startswith(png.SIGNATURE, at):
            width, height = struct.unpack_from("<2i", content, at + 4)  # of the picture, and its mask below
            _check_inner(file, abs(height) // 2, abs(width), demand)
    return bits


def _check_inner(file: Path, height: int, width: int, demand: Demand) -> None:
    """Refuse an embedded picture beyond the budget; its size is stated twice, and Pillow reports one of them."""
    demand.check(file, height, width, INNER_BYTES * height * width)
