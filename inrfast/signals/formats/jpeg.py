"""JPEG: segments, frames and scans checked before anything is decoded; decoders invent what is missing."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SIGNATURE = b"\xff\xd8\xff"

END, SCAN = 0xD9, 0xDA
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1), 0xC2
ARITHMETIC = (0xC9, 0xCA)
FRAMES = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
"""Markers, by their second byte; those of a frame say how it is coded, the last one as JPEG-LS."""

MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")
"""What begins a segment; other bytes after FF belong to the data of a scan, or fill."""

MOST_SCANS = 100
"""Most scans of a frame: each costs a pass over all pixels, however few bytes it has. Encoders write up to about 12."""


@dataclass(frozen=True)
class Frame:
    """What a frame states: its kind, sides, bits per sample, and of each component the blocks of 8x8 samples."""

    kind: int
    height: int
    width: int
    bits: int
    blocks: dict[int, int]

    @classmethod
    def of(cls, kind: int, segment: bytes) -> Frame:
        """Read the segment of a frame, which may be cut."""
        bits, height, width = segment[0], int.from_bytes(segment[1:3], "big"), int.from_bytes(segment[3:5], "big")
        parts = [segment[at : at + 3] for at in range(6, len(segment) - 2, 3)]
        sides = {part[0]: (max(part[1] & 15, 1), max(part[1] >> 4, 1)) for part in parts}
        down, across = (max((side[axis] for side in sides.values()), default=1) for axis in (0, 1))
        blocks = {name: (-height * v // down // 8) * (-width * h // across // 8) for name, (v, h) in sides.items()}
        return cls(kind, height, width, bits, blocks)

    def least_bits(self, scan: bytes) -> int:
        """Return the fewest bits of a scan: a Huffman code has at least one.

        A block takes one for its mean and, where all of it is in one scan, one for the end of its other coefficients.
        """
        count = scan[0] if scan else 0
        names, first = scan[1 : 1 + 2 * count : 2], scan[1 + 2 * count : 2 + 2 * count]
        each = 2 if self.kind in SEQUENTIAL else 1 if self.kind == PROGRESSIVE and first == b"\0" else 0
        return each * sum(self.blocks.get(name, 0) for name in names)


def frame(content: bytes) -> Frame | None:
    """Return the first frame of a JPEG, also of one within a TIFF; None where there is none."""
    at = 2
    while found := MARKER.search(content, at):
        kind, length = found[0][1], int.from_bytes(content[found.end() : found.end() + 2], "big")
        if kind in FRAMES and length >= 8:
            return Frame.of(kind, content[found.end() + 2 : found.end() + length].ljust(6, b"\0"))
        if kind in (END, SCAN) or length < 2:
            return None
        at = found.end() + length
    return None


def check(content: bytes, file: Path) -> None:
    """Refuse a JPEG of a kind that is not read, or of which a decoder would silently invent pixels.

    Raises
    ------
    ValueError
        Another code than Huffman's or the arithmetic one of 8-bit cosines, and what :func:`check_data` refuses.
    """
    about = frame(content)
    if about is not None:
        _check_kind(about, file)
    check_data(content, about, file)


def check_data(content: bytes, about: Frame | None, file: Path) -> None:
    """Refuse a JPEG, also one within a TIFF, that lacks data or would take too long.

    Raises
    ------
    ValueError
        No end marker, a component without a scan, fewer bytes of a scan than its blocks take; more than
        :data:`MOST_SCANS` scans.
    """
    at, scans, seen = 2, 0, set[int]()
    while found := MARKER.search(content, at):
        if found[0][1] == END:
            if about is not None and seen < set(about.blocks):
                raise ValueError(f"{file} is truncated or damaged: {len(seen)} of its {len(about.blocks)} colours came")
            return
        at = found.end()
        length = int.from_bytes(content[at : at + 2], "big")
        if length < 2 or at + length > len(content):
            break
        segment = content[at + 2 : at + length]
        at += length
        if found[0][1] == SCAN and about is not None:
            scans += 1
            seen.update(segment[1 : 1 + 2 * (segment[0] if segment else 0) : 2])
            if scans > MOST_SCANS:
                raise ValueError(f"{file} holds more than {MOST_SCANS} scans of its pixels, which would take too long")
            following = MARKER.search(content, at)
            held = (following.start() if following else len(content)) - at
            if about.least_bits(segment) > 8 * held:
                raise ValueError(
                    f"{file} is truncated or damaged: it states {about.height}x{about.width} pixels, more than the "
                    f"{held} bytes of its scan {scans} hold"
                )
    raise ValueError(f"{file} is truncated or damaged: its JPEG data have no end")


def _check_kind(about: Frame, file: Path) -> None:
    if about.kind not in (*SEQUENTIAL, PROGRESSIVE, *ARITHMETIC):
        name = "JPEG-LS" if about.kind == 0xF7 else f"JPEG of the lossless or hierarchical kind {about.kind:#x}"
        raise ValueError(f"{file} is a {name}, which is not read; convert it to PNG")
    if about.bits != 8:
        raise ValueError(
            f"{file} holds {about.bits} bits per channel, and of JPEG 8 are read; convert it to PNG or TIFF"
        )
