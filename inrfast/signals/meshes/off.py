"""OFF of Geomview: the vertices and polygons of a file, with or without colours, normals and texture coordinates."""

from __future__ import annotations

import re
from itertools import chain

import numpy as np

from inrfast.signals.meshes.polygons import Polygons
from inrfast.signals.meshes.text import (
    RowReader,
    check_line_count,
    check_open_index,
    floats,
    integers,
    plain_text,
    shown,
)

_HEADER = re.compile(rb"(ST)?(C)?(N)?(4)?(n)?OFF(\d+)?|off")

COLOURS = frozenset({0, 1, 3, 4})
"""Numbers after the corners of a face: no colour, its place in a palette, red green blue, and opacity."""


def read_off(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices, fp64 (n, 3), and triangles, int64 (m, 3), of a file's content.

    Raises
    ------
    ValueError
        With the line: another header, other sizes than stated, a vertex or a face that is none.
    """
    text = plain_text(content)
    reader = RowReader(text, comments=True)
    widths, vertex_count, face_count = _sizes(reader)
    check_line_count(text, vertex_count + face_count)
    parts, polygons = [np.empty((0, 3))], Polygons()
    for rows in reader.take(vertex_count, "vertices"):
        for number, row in zip(rows.numbers, rows.words, strict=True):
            if len(row) not in widths:
                expected = " or ".join(map(str, sorted(widths)))
                raise ValueError(f"line {number} is a vertex of {len(row)} numbers in place of {expected}")
            widths = {len(row)}  # as the first, so are all
        parts.append(floats(rows, range(len(rows.words[0])))[:, :3])
    extra = 0
    for rows in reader.take(face_count, "faces"):
        sizes = integers(rows, [row[0] for row in rows.words], np.ones(len(rows.words), dtype=np.int64))
        for number, row, size in zip(rows.numbers, rows.words, sizes.tolist(), strict=True):
            extra = len(row) - 1 - size
            if extra not in COLOURS or size < 0:
                raise ValueError(f"line {number} is a face of {size} corners with {len(row) - 1} numbers after that")
        words = chain.from_iterable(row[1 : 1 + size] for row, size in zip(rows.words, sizes.tolist(), strict=True))
        polygons.add(integers(rows, list(words), sizes), sizes, rows.numbers)
    reader.finish()
    triangles = polygons.triangles(vertex_count)
    if polygons.last_size() > 2 and not extra:
        check_open_index(text, comments=True, largest=vertex_count - 1)
    return np.concatenate(parts), triangles


def _sizes(reader: RowReader) -> tuple[set[int], int, int]:
    """Return how many numbers a vertex may have, and the stated numbers of vertices and faces."""
    (rows,) = reader.take(1, "lines of a header")
    (number,), (row,) = rows
    header = _HEADER.fullmatch(row[0])
    if header is None:
        raise ValueError(f"line {number} does not begin with OFF, COFF, NOFF, CNOFF, STOFF or the like: {shown(row)}")
    texture, colour, normal, four, any_dimension, glued = header.groups()
    if four or any_dimension or row[1:2] == [b"BINARY"]:
        raise ValueError(f"line {number}: {shown(row)} is binary or has other than three dimensions, which is not read")
    words = ([glued] if glued else []) + row[1:]
    if not words:
        (rows,) = reader.take(1, "lines of sizes")
        words = rows.words[0]
    sizes = integers(rows, words, np.array([len(words)])).tolist()
    if len(sizes) not in (2, 3) or min(sizes) < 0:
        raise ValueError(f"line {rows.numbers[0]} does not state how many vertices and faces: {shown(rows.words[0])}")
    width = 3 + 3 * bool(normal) + 2 * bool(texture)
    # Some writers leave the C of the header out.
    return {width + extra for extra in ((3, 4) if colour else (0, 3, 4))}, sizes[0], sizes[1]
