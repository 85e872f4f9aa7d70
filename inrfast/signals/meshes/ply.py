"""PLY, ASCII and binary of both byte orders: the vertices and polygons of a file."""

from __future__ import annotations

import re
import reprlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from inrfast.signals.meshes.polygons import Polygons
from inrfast.signals.meshes.text import (
    RowReader,
    Rows,
    check_floats,
    check_line_count,
    check_open_index,
    floats,
    integers,
    open_word,
    plain_text,
    shown,
)

TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8"},
    **{f"{kind}{8 * size}": f"{kind[0]}{size}" for kind in ("int", "uint") for size in (1, 2, 4, 8)},
    **{f"float{8 * size}": f"f{size}" for size in (2, 4, 8)},
}
"""Names of numbers in a header, and NumPy's."""

ORDERS = {"ascii": None, "binary_little_endian": "<", "binary_big_endian": ">"}

CORNERS = ("vertex_indices", "vertex_index")
"""Names of a face's list of vertices."""

GATHERED = 2**13
"""Rows with lists of several lengths that are read at once."""


@dataclass
class Property:
    """A number of an element, or a list of numbers behind its length, whose type is then ``length``."""

    name: str
    dtype: str
    length: str | None = None


@dataclass
class Element:
    """Things of one kind, such as vertices: how many, and what is stated of each."""

    name: str
    count: int
    properties: list[Property] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    """Of the properties."""

    @property
    def label(self) -> str:
        """The name for a message, shortened."""
        return reprlib.repr(self.name)

    def place(self, name: str) -> int:
        """Return the place of a property that is no list."""
        for place, one in enumerate(self.properties):
            if one.name == name and one.length is None:
                return place
        raise ValueError(f"its element {self.label} has no number {name!r}")

    def corners(self) -> int:
        """Return the place of the list of a face's vertices."""
        named = [place for place, one in enumerate(self.properties) if one.length and one.name in CORNERS]
        if len(named) != 1 or self.properties[named[0]].dtype[0] == "f":
            raise ValueError(f"its element {self.label} has no list of whole numbers {CORNERS[0]!r}")
        return named[0]


NORMALS = ("nx", "ny", "nz")
"""Names of a vertex's normal."""


def has_faces(content: bytes) -> bool:
    """Return whether the header of a file, whose first bytes are given, states faces; True if it is none."""
    try:
        elements = _header(content)[1]
    except ValueError:
        return True
    return "vertex" not in elements or any(e.count for e in elements.values() if _is_surface(e))


def _is_surface(element: Element) -> bool:
    return element.name == "face" or any(one.name in CORNERS for one in element.properties)


def read_ply_points(content: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the vertices, fp64 (n, 3), and their normals, if the file has any; its faces are checked and left out.

    Raises
    ------
    ValueError
        As in :func:`read_ply`.
    """
    order, elements, start = _header(content)
    if "vertex" not in elements:
        raise ValueError("it states no vertices")
    axes = ("x", "y", "z", *(NORMALS if set(NORMALS) <= elements["vertex"].names else ()))
    read = _read_ascii if order is None else _read_binary
    polygons = Polygons()
    rows = read(content, start, order, elements, polygons, axes)
    polygons.triangles(len(rows))
    return rows[:, :3], rows[:, 3:] if len(axes) > 3 else None


def read_ply(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices, fp64 (n, 3), and triangles, int64 (m, 3), of a file's content.

    Raises
    ------
    ValueError
        With the line where it is text: a header that is none, other sizes than it states, faces stated in another way
        than as lists of vertices.
    """
    order, elements, start = _header(content)
    for element in elements.values():
        if element.name != "face" and any(one.name in CORNERS for one in element.properties):
            raise ValueError(f"its element {element.label} names vertices as strips or the like do, which is not read")
    polygons = Polygons()
    if "vertex" not in elements or "face" not in elements:
        return np.empty((0, 3)), polygons.triangles(0)
    read = _read_ascii if order is None else _read_binary
    vertices = read(content, start, order, elements, polygons, ("x", "y", "z"))
    return vertices, polygons.triangles(len(vertices))


# ---- header ------------------------------------------------------------------------------------------------------


def _header(content: bytes) -> tuple[str | None, dict[str, Element], int]:
    """Return the byte order (None: ASCII), the elements by name, and where the data begin."""
    first = re.match(rb"(?:\xef\xbb\xbf)?ply[ \t]*(\r\n|\n|\r)", content)
    if first is None:
        raise ValueError("it does not begin with the word ply and a line end")
    # A lone \r ends a line only where it ends the first: binary data may begin with \n.
    end = re.compile(rb"\rend_header[ \t]*\r" if first[1] == b"\r" else rb"\nend_header[ \t\r]*\n").search(content)
    if end is None:
        raise ValueError("its header has no end (end_header)")
    lines = content[: end.start()].split(first[1][-1:])
    orders: list[str | None] = []
    elements: dict[str, Element] = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            _header_line([word.decode("latin-1") for word in line.split()], orders, elements)
        except ValueError as error:
            raise ValueError(f"line {number} of the header is {shown([line.strip()])}: {error}") from None
    if len(orders) != 1:
        raise ValueError(f"its header states {len(orders)} formats in place of one")
    return orders[0], elements, end.end()


def _header_line(words: list[str], orders: list[str | None], elements: dict[str, Element]) -> None:
    match words:
        case [] | ["comment", *_] | ["obj_info", *_]:
            return
        case ["format", name, "1.0"] if name in ORDERS:
            orders.append(ORDERS[name])
        case ["element", name, count] if re.fullmatch("[0-9]{1,40}", count) and name not in elements:
            elements[name] = Element(name, int(count))
        case ["property", "list", length, kind, name] if TYPES.get(length, "f")[0] != "f" and kind in TYPES:
            _add(elements, Property(name, TYPES[kind], TYPES[length]))
        case ["property", kind, name] if kind in TYPES:
            _add(elements, Property(name, TYPES[kind]))
        case _:
            raise ValueError("no format, element or property that is known, or one that is there already")


def _add(elements: dict[str, Element], new: Property) -> None:
    if not elements:
        raise ValueError("it stands before any element")
    last = next(reversed(elements.values()))
    if new.name in last.names:
        raise ValueError("its element has such a property already")
    last.names.add(new.name)
    last.properties.append(new)


# ---- text --------------------------------------------------------------------------------------------------------


def _read_ascii(
    content: bytes,
    start: int,
    order: str | None,
    elements: dict[str, Element],
    polygons: Polygons,
    axes: Sequence[str],
) -> np.ndarray:
    """Return these numbers of the vertices, fp64 (n, axes), and add the faces."""
    first = len(plain_text(content[:start]).split(b"\n"))
    text = plain_text(content[start:])
    filled = [element for element in elements.values() if element.properties]
    check_line_count(text, sum(element.count for element in filled))
    reader = RowReader(text, comments=False, number=first)
    parts = [np.empty((0, len(axes)))]
    for element in filled:
        for rows in reader.take(element.count, f"elements {element.label}"):
            if element.name == "vertex":
                parts.append(_ascii_vertices(rows, element, axes))
            else:
                lists = _ascii_lists(rows, element)
                if element.name != "face" or len(element.properties) > 1:
                    check_floats(rows)
                if element.name == "face":
                    corners, sizes = lists[element.corners()]
                    polygons.add(integers(rows, corners, np.array(sizes)), sizes, rows.numbers)
    reader.finish()
    _check_end(text, filled[-1], sum(map(len, parts)), polygons.last_size(), axes)
    return np.concatenate(parts)


def _ascii_vertices(rows: Rows, element: Element, axes: Sequence[str]) -> np.ndarray:
    places = [element.place(axis) for axis in axes]
    _ascii_lists(rows, element)
    if any(one.length for one in element.properties):
        raise ValueError("its vertices have lists, which is not read")
    return floats(rows, range(len(element.properties)))[:, places]  # colours must be numbers too


def _ascii_lists(rows: Rows, element: Element) -> dict[int, tuple[list[bytes], list[int]]]:
    """Return the words of the lists and how many each line has, by the place of the property.

    Each line must have as many words as its lists state.
    """
    lists: dict[int, tuple[list[bytes], list[int]]] = {
        place: ([], []) for place, one in enumerate(element.properties) if one.length
    }
    for number, row in zip(rows.numbers, rows.words, strict=True):
        length = len(element.properties)
        for place, (words, sizes) in lists.items():
            start = place + length - len(element.properties)  # behind the lists before
            size = row[start] if start < len(row) else b""
            if not size.isdigit() or int(size[:9]) > len(row):
                raise ValueError(f"line {number} has {shown([size])} in place of the length of a list that it holds")
            words.extend(row[start + 1 : start + 1 + int(size)])
            sizes.append(int(size))
            length += int(size)
        if len(row) != length:
            raise ValueError(f"line {number} has {len(row)} numbers where its element {element.label} takes {length}")
    return lists


def _check_end(text: bytes, last: Element, vertices: int, corners: int, axes: Sequence[str]) -> None:
    """Refuse an open end that may have had more digits, where they would have changed the mesh.

    ``corners`` is how many the last face has.
    """
    ends = last.properties[-1].name
    if last.name == "face" and last.corners() == len(last.properties) - 1:
        if corners > 2:
            check_open_index(text, comments=False, largest=vertices - 1)
    elif last.name == "vertex" and ends in axes and open_word(text, comments=False):
        raise ValueError("its last line has no line end and may have gone on; end it with a line end if it is whole")


# ---- binary ------------------------------------------------------------------------------------------------------


def _read_binary(
    content: bytes,
    start: int,
    order: str | None,
    elements: dict[str, Element],
    polygons: Polygons,
    axes: Sequence[str],
) -> np.ndarray:
    """Return these numbers of the vertices, fp64 (n, axes), and add the faces."""
    vertices = np.empty((0, len(axes)))
    for element in elements.values():
        least = sum(np.dtype(one.length or one.dtype).itemsize for one in element.properties)
        if element.count * least > len(content) - start:
            raise ValueError(
                f"it states {element.count} elements {element.label}, of {least} bytes or more each, and has "
                f"{len(content) - start} bytes for them"
            )
        if element.count == 0 or not element.properties:
            continue
        same = _same_lengths(content, start, order, element)
        if same is not None:
            table = np.frombuffer(content, same, element.count, start)
            start += table.nbytes
            if element.name == "vertex":
                places = [element.place(axis) for axis in axes]
                vertices = np.stack([table[f"{place}"].astype(np.float64) for place in places], axis=1)
            elif element.name == "face":
                corners = table[f"{element.corners()}"].astype(np.int64)
                polygons.add(corners.reshape(-1), np.full(len(corners), corners.shape[1]))
        elif element.name == "vertex":
            raise ValueError("its vertices have lists, which is not read")
        else:
            start = _gather(content, start, order, element, polygons)
    if start != len(content):
        raise ValueError(f"it has {len(content) - start} bytes after the end that its sizes state")
    return vertices


def _same_lengths(content: bytes, start: int, order: str | None, element: Element) -> np.dtype | None:
    """Return the type of a row if all have lists of the first one's lengths, else None; fields are named by place."""
    fields: list[tuple] = []
    at = start  # behind the fields so far of the first row
    for place, one in enumerate(element.properties):
        item = np.dtype(f"{order}{one.dtype}")
        if one.length is None:
            fields.append((f"{place}", item))
            at += item.itemsize
            continue
        length = np.dtype(f"{order}{one.length}")
        if at + length.itemsize > len(content):
            return None
        size = int(np.frombuffer(content, length, 1, at)[0])
        at += length.itemsize
        if not 0 <= size * item.itemsize <= len(content) - at:
            return None
        fields += [(f"length {place}", length), (f"{place}", item, (size,))]
        at += size * item.itemsize
    row = np.dtype(fields)
    if element.count * row.itemsize > len(content) - start:
        return None
    table = np.frombuffer(content, row, element.count, start)
    lengths = [name for name in row.names or () if name.startswith("length")]
    return row if all((table[name] == table[name][0]).all() for name in lengths) else None


def _gather(content: bytes, start: int, order: str | None, element: Element, polygons: Polygons) -> int:
    """Add faces whose lists have several lengths, if they are faces, and return where the element ends."""
    chosen = element.corners() if element.name == "face" else None
    data = np.frombuffer(content, np.uint8)
    for rows in range(0, element.count, GATHERED):
        places, sizes, start = _walk(content, start, order, element, chosen, min(GATHERED, element.count - rows))
        if chosen is None:
            continue
        dtype = np.dtype(f"{order}{element.properties[chosen].dtype}")
        total = sizes.cumsum()
        items = np.arange(total[-1]) - np.repeat(total - sizes, sizes)  # the place of each corner in its face
        offsets = np.repeat(places, sizes) + items * dtype.itemsize
        corners = data[offsets[:, None] + np.arange(dtype.itemsize)].reshape(-1).view(dtype)
        polygons.add(corners.astype(np.int64), sizes)
    return start


def _walk(
    content: bytes, start: int, order: str | None, element: Element, chosen: int | None, count: int
) -> tuple[np.ndarray, np.ndarray, int]:
    """Return where the chosen list of each of some rows begins, how long it is, and where the rows end."""
    byteorder: Literal["big", "little"] = "big" if order == ">" else "little"
    steps = [
        (place, np.dtype(one.length or "i1").itemsize if one.length else 0, np.dtype(one.dtype).itemsize)
        for place, one in enumerate(element.properties)
    ]
    signed = {place for place, one in enumerate(element.properties) if one.length and one.length[0] == "i"}
    places, sizes = array("q"), array("q")
    for _ in range(count):
        for place, length, itemsize in steps:
            if not length:
                start += itemsize
                continue
            size = int.from_bytes(content[start : start + length], byteorder, signed=place in signed)
            start += length
            if size < 0 or start + size * itemsize > len(content):
                raise ValueError(f"its element {element.label} has a list of length {size} at byte {start - length}")
            if place == chosen:
                places.append(start)
                sizes.append(size)
            start += size * itemsize
    if start > len(content):
        raise ValueError(f"it ends within its elements {element.label}")
    return np.array(places, dtype=np.int64), np.array(sizes, dtype=np.int64), start
