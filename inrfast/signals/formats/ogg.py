"""Ogg: pages are checked before they are decoded, since decoders silently skip damaged ones."""

from __future__ import annotations

import zlib
from pathlib import Path

REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Each byte with its bits reversed."""

FIRST, LAST = 2, 4
"""Bits of a page's kind: the first and the last one of a stream."""


def check(content: bytes, file: Path) -> None:
    """Refuse an Ogg file that is not one whole stream with the checksums that it states.

    Raises
    ------
    ValueError
        A page is cut, missing or damaged; there is no last one; several streams.
    """
    at, number, kind, streams = 0, 0, 0, set()
    while at < len(content):
        head = content[at : at + 27]
        count = head[26] if len(head) == 27 else 0
        sizes = content[at + 27 : at + 27 + count]
        end = at + 27 + count + sum(sizes)
        if head[:5] != b"OggS\x00" or len(sizes) != count or end > len(content):
            raise ValueError(f"{file} is truncated or damaged: there is no whole page at byte {at}")
        page = head[:22] + bytes(4) + content[at + 26 : end]
        if checksum(page) != int.from_bytes(head[22:26], "little"):
            raise ValueError(f"{file} is damaged: the checksum of its page at byte {at} is wrong")
        kind = head[5]
        streams.add(head[14:18])
        if len(streams) > 1 or (number > 0 and kind & FIRST):
            raise ValueError(f"{file} holds several streams; a sound is one stream")
        if int.from_bytes(head[18:22], "little") != number:
            raise ValueError(f"{file} is damaged: page {number} of its stream is missing")
        at, number = end, number + 1
    if not kind & LAST:
        raise ValueError(f"{file} is truncated: the last of its {number} pages is not the stream's last")


def checksum(page: bytes) -> int:
    """Return Ogg's checksum: the polynomial of zlib's crc32 with reversed bits, without its complements."""
    plain = zlib.crc32(page.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int(f"{plain:032b}"[::-1], 2)
