"""Wavefront OBJ: the vertices and polygons of a file, whatever its white space, line ends, comments and names."""

from __future__ import annotations

import re
from itertools import chain, pairwise

import numpy as np

from inrfast.signals.meshes.polygons import Polygons
from inrfast.signals.meshes.text import (
    Rows,
    floats,
    integers,
    line_at,
    plain_text,
    rows_of,
    shown,
    without_comments,
)

LEFT_OUT = frozenset(
    b"vn vt vp g o s mg usemtl mtllib usemap maplib bevel c_interp d_interp lod shadow_obj trace_obj p l".split()
)
"""First words of lines without a surface: names, materials, normals, texture coordinates, points and lines."""

WIDTHS: tuple[frozenset[int], ...] = (frozenset({3, 6, 7}), frozenset({4, 7}))
"""Numbers of a vertex: three, then a colour of some or all; or with a weight, which polygons do not use, of all."""

_REFERENCES = re.compile(rb"(?:[+-]?\d++(?:/(?:[+-]?\d++)?(?:/(?:[+-]?\d++)?)?)?(?: |$))*+")


def read_obj(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices, fp64 (n, 3), and triangles, int64 (m, 3), of a file's content.

    Raises
    ------
    ValueError
        With the line: a word that is not known (free-form surfaces are not read), a vertex or a face that is none, or a
        last line that must have been longer.
    """
    text = plain_text(content)
    polygons, parts, found = Polygons(), [np.empty((0, 3))], 0
    last: list[bytes] = []  # words of the last line
    widths = WIDTHS  # what the vertices so far leave
    for rows in rows_of(_join_lines(text), comments=True):
        kinds = [row[0] for row in rows.words]
        _check_kinds(rows, kinds)
        lines = [i for i, kind in enumerate(kinds) if kind == b"v"]
        if lines:
            widths, new = _vertices(_pick(rows, lines), widths)
            parts.append(new)
        faces = [i for i, kind in enumerate(kinds) if kind == b"f"]
        before = found + np.searchsorted(lines, faces)
        _add_faces(polygons, _pick(rows, faces), before)
        found += len(lines)
        last = rows.words[-1] if kinds else last
    vertices = np.concatenate(parts)
    triangles = polygons.triangles(len(vertices), first=1)
    _check_end(text, last)
    return vertices, triangles


def _pick(rows: Rows, places: list[int]) -> Rows:
    return Rows([rows.numbers[i] for i in places], [rows.words[i] for i in places])


def _join_lines(text: bytes) -> bytes:
    """Join each line that ends in a backslash to the next, and keep the number of lines."""
    if b"\\\n" not in text:
        return text

    def join(match: re.Match[bytes]) -> bytes:
        lines = match[0].split(b"\\\n")
        for place, (line, following) in enumerate(pairwise(lines)):
            goes_on = without_comments(following).strip()
            if line != without_comments(line) and goes_on:
                what = "is a comment that ends in a backslash: the next may belong to it"
            elif line[-1:].strip() and following[:1].strip() and goes_on:
                what = "ends in a backslash without white space before it or after it"
            else:
                continue
            # Counted here alone: counting for each match would take time by the square of the text.
            raise ValueError(f"line {line_at(text, match.start()) + place} {what}")
        return b" ".join(lines) + b"\n" * (len(lines) - 1)

    return re.sub(rb"^(?:[^\n]*\\\n)+[^\n]*", join, text, flags=re.MULTILINE)


def _check_kinds(rows: Rows, kinds: list[bytes]) -> None:
    if unknown := set(kinds) - LEFT_OUT - {b"v", b"f"}:
        place = next(i for i, kind in enumerate(kinds) if kind in unknown)
        raise ValueError(
            f"line {rows.numbers[place]} is neither a vertex (v), a polygon (f) nor a known line without a surface: "
            f"{shown(rows.words[place])}"
        )


def _vertices(rows: Rows, allowed: tuple[frozenset[int], ...]) -> tuple[tuple[frozenset[int], ...], np.ndarray]:
    """Return which of the allowed sets of widths the rest of the file is left, and the vertices of lines, (n, 3)."""
    vertices = np.empty((len(rows.words), 3))
    widths = np.fromiter(map(len, rows.words), np.int64, len(rows.words)) - 1
    for width in np.unique(widths).tolist():
        places = np.flatnonzero(widths == width).tolist()
        left = tuple(one for one in allowed if width in one)
        if not left:
            one_of = " or ".join(map(str, sorted(set().union(*allowed))))
            raise ValueError(f"line {rows.numbers[places[0]]} is a vertex of {width} numbers, which have {one_of} here")
        allowed = left
        vertices[places] = floats(_pick(rows, places), range(1, width + 1))[:, :3]  # colours are numbers too
    return allowed, vertices


def _add_faces(polygons: Polygons, rows: Rows, before: np.ndarray) -> None:
    """Add the faces of lines; ``before`` each are that many vertices, from which negative numbers count."""
    sizes = np.fromiter(map(len, rows.words), np.int64, len(rows.words)) - 1
    words = list(chain.from_iterable(row[1:] for row in rows.words))
    joined = b" ".join(words)
    if b"/" in joined:
        if not _REFERENCES.fullmatch(joined):
            _refuse_reference(rows)
        words = re.sub(rb"/\S*", b"", joined).split()
    corners = integers(rows, words, sizes)
    if (corners <= 0).any():
        from_end = np.repeat(before, sizes) + corners
        if (absent := (corners == 0) | (corners < 0) & (from_end < 0)).any():
            place = int(absent.argmax())
            line = int(np.searchsorted(sizes.cumsum(), place, side="right"))
            raise ValueError(
                f"line {rows.numbers[line]} names vertex {corners[place]}; vertices count from 1, and back from -1, "
                f"the last of the {before[line]} before it"
            )
        corners = np.where(corners < 0, from_end, corners - 1)
    else:
        corners -= 1
    polygons.add(corners, sizes, rows.numbers)


def _refuse_reference(rows: Rows) -> None:
    for number, row in zip(rows.numbers, rows.words, strict=True):
        for word in row[1:]:
            if not _REFERENCES.fullmatch(word):
                raise ValueError(f"line {number} holds {shown([word])} in place of a vertex, or vertex/texture/normal")


def _check_end(text: bytes, last: list[bytes]) -> None:
    """Refuse a last line without an end that must have been longer: the one sign that a file of this format is cut.

    A vertex may miss digits, and a face with less than a triangle, or whose last corner alone is without texture and
    normal, has been cut. Of other faces nothing can be told: files written by hand end like that.
    """
    tail = text[text.rfind(b"\n") + 1 :]
    if tail != without_comments(tail) or not tail.strip() or last[0] in LEFT_OUT:
        return
    if last[0] == b"f" and len(last) > 3 and (b"/" in last[-1]) == (b"/" in last[1]):
        return
    raise ValueError(
        f"line {line_at(text, len(text))} is the last, has no line end and may have been longer, as in a file cut "
        "short; end it with a line end if it is whole"
    )
