"""STL, binary and ASCII: the triangles of a file, all its solids together."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from itertools import islice

import numpy as np

from inrfast.signals.meshes.text import blocks, is_float, line_at, plain_text, shown, to_floats

HEADER, COUNT = 80, 4
"""Bytes before the triangles of a binary file: anything, and how many there are."""

TRIANGLE = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])

FACET = b"facet normal * * * outer loop vertex * * * vertex * * * vertex * * * endloop endfacet".split()
"""Words of a triangle in an ASCII file; a star is a number."""

CORNERS = FACET.index(b"vertex")
"""Words before the corners."""

_UNDEFINED = re.compile(rb"[+-]?(nan|inf|1\.#)\S*", re.IGNORECASE)
"""What writers of several systems put for the normal of a face without area; normals are not used."""

_MARKER = re.compile(rb"^[^\S\n]*(end)?solid(?!\S)[^\n]*", re.IGNORECASE | re.MULTILINE)


def read_stl(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices, fp64 (3m, 3), and triangles, int64 (m, 3), of a file's content.

    The format states no common vertices: each triangle has its own three.

    Raises
    ------
    ValueError
        Other sizes than stated; with the line, a text without its end, or with other words than the format's.
    """
    start = HEADER + COUNT
    stated = int.from_bytes(content[HEADER:start], "little")
    size = start + stated * TRIANGLE.itemsize
    if len(content) == max(size, start):
        corners = np.frombuffer(content, TRIANGLE, offset=start)["corners"].astype(np.float64)
    # A binary header may begin like a text, but zero bytes follow all but surely, and a text has none.
    elif _MARKER.match(content.removeprefix(codecs.BOM_UTF8).lstrip()) and b"\0" not in content:
        corners = _ascii_corners(plain_text(content))
    elif len(content) < start:
        raise ValueError(f"it has {len(content)} bytes; binary it has at least {start}, ASCII it begins with 'solid'")
    else:
        raise ValueError(f"it states {stated} triangles, as files of {size} bytes do, and has {len(content)} bytes")
    return corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3)


def _ascii_corners(text: bytes) -> np.ndarray:
    """Return the corners of all triangles, fp64 (m, 3, 3)."""
    parts, opened, place = [np.empty((0, 3, 3))], None, 0
    for marker in _MARKER.finditer(text):
        if re.search(rb"facet\s+normal", marker[0], re.IGNORECASE):
            raise ValueError(f"line {line_at(text, marker.start())} holds a triangle where a solid has its name")
        if marker[1] and opened is not None:
            parts.extend(_facets(text, opened.end(), marker.start()))
            opened, place = None, marker.end()
        elif marker[1]:
            raise ValueError(f"line {line_at(text, marker.start())} ends a solid (endsolid) where none has begun")
        elif opened is not None:
            raise ValueError(f"line {line_at(text, marker.start())} begins a solid before the last has its endsolid")
        else:
            _check_empty(text, place, marker.start())
            opened = marker
    if opened is not None:
        raise ValueError(f"the solid that begins in line {line_at(text, opened.start())} has no end (endsolid)")
    _check_empty(text, place, len(text))
    return np.concatenate(parts)


def _check_empty(text: bytes, start: int, stop: int) -> None:
    if word := re.compile(rb"\S+").search(text, start, stop):
        raise ValueError(f"line {line_at(text, word.start())} is outside of a solid: {shown([word[0]])}")


def _facets(text: bytes, start: int, stop: int) -> Iterator[np.ndarray]:
    """Yield the corners of one solid's triangles, a block at a time."""
    rest: list[bytes] = []
    done = 0
    for block in blocks(text, start, stop):
        words = rest + block.split()
        whole = len(words) // len(FACET) * len(FACET)
        try:
            if whole:
                yield _corners(words[:whole])
        except ValueError:
            _refuse_word(text, start, stop, done, words)
            raise
        done, rest = done + whole, words[whole:]
    if rest:
        _refuse_word(text, start, stop, done, rest)
        raise ValueError(f"the triangle before line {line_at(text, stop)} is not whole")


def _corners(words: list[bytes]) -> np.ndarray:
    """Return the corners of whole triangles, fp64 (m, 3, 3); ValueError if they have other words than the format's."""
    count = len(words) // len(FACET)
    columns = []
    for place, expected in enumerate(FACET):
        column = words[place :: len(FACET)]
        if expected == b"*":
            if place > CORNERS:
                columns.append(to_floats(column))
            else:
                _check_normals(column)
        elif column.count(expected) < count and [word.lower() for word in column].count(expected) < count:
            raise ValueError
    return np.stack(columns, axis=1).reshape(-1, 3, 3)


def _check_normals(words: list[bytes]) -> None:
    try:
        to_floats(words)
    except ValueError:
        if not all(map(_is_normal, words)):
            raise


def _is_normal(word: bytes) -> bool:
    return is_float(word) or bool(_UNDEFINED.fullmatch(word))


def _refuse_word(text: bytes, start: int, stop: int, done: int, words: list[bytes]) -> None:
    """Raise an error that names the first word of a solid that is not the format's, from its word ``done`` on."""
    for place, word in enumerate(words):
        expected = FACET[place % len(FACET)]
        number = _is_normal if place % len(FACET) < CORNERS else is_float
        if not (number(word) if expected == b"*" else word.lower() == expected):
            found = next(islice(re.compile(rb"\S+").finditer(text, start, stop), done + place, None))
            what = "a number" if expected == b"*" else f"'{expected.decode()}'"
            raise ValueError(f"line {line_at(text, found.start())} has {shown([word])} in place of {what}")
